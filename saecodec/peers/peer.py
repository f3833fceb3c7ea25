"""What a peer codec is: a family is fitted on calibration rows at a setting, and the peer codes rows as bytes.

Peers are measured, not stored: their bytes have no magic, version or checksum. All begin with T and d as varints, and
lengths that do not fit are a FormatError.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import FormatError, InputError, MissingPieceError
from saecodec.wire import ByteReader, varints

INSTALL = "pip install 'saecodec[bench]'"
_MAX_SIDE = (1 << 31) - 1  # of T and d: their product is an int64


class Peer(Protocol):
    """A codec of rows, fitted and ready. T rows, d values."""

    @property
    def name(self) -> str:
        """The family's name, for tables."""

    @property
    def setting(self) -> str:
        """What sets its rate, with the unit, such as "4 bits"."""

    @property
    def model_bytes(self) -> int:
        """Bytes a decoder needs besides the encoded ones (codebooks, means); a seed counts as 0."""

    def encode(self, x: NDArray[np.float32]) -> bytes:
        """Bytes of rows, float32 (T, d), T >= 1, all finite; InputError for anything else."""

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """The rows that `encode`'s bytes stand for, float32 (T, d); FormatError when they do not fit together."""


@dataclass(frozen=True)
class PeerFamily:
    """Peers that differ only in a setting.

    settings: width d -> the settings worth measuring, from coarse to fine. fit_rows: what `fit` calls once rows and
    packages were checked. package: the import name that the family needs, None when saecodec's own requirements do;
    distribution: what pip calls it.
    """

    name: str
    settings: Callable[[int], tuple[float, ...]]
    fit_rows: Callable[[NDArray[np.float32], float], Peer]
    package: str | None = None
    distribution: str | None = None

    def available(self) -> bool:
        """Whether the package it needs is installed, without importing it."""
        return self.package is None or find_spec(self.package) is not None

    def missing(self) -> str:
        """What to tell a user when the family is not available."""
        return f"{self.name} needs the package {self.distribution}, which is not installed: {INSTALL}"

    def fit(self, calibration: NDArray[np.float32], setting: float) -> Peer:
        """The peer for rows like `calibration`, float32 (N, d); MissingPieceError when the family is not available."""
        if not self.available():
            raise MissingPieceError(self.missing())
        return self.fit_rows(checked_rows(calibration, self.name), setting)


def import_package(name: str, extra: str = "bench") -> Any:
    """The package `name`, imported only now; MissingPieceError, which names the extra that has it, when it cannot
    be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # generated bindings trail Python's releases
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingPieceError(
            f"the package {name} cannot be imported ({error}): pip install 'saecodec[{extra}]'"
        ) from error


def checked_rows(x: NDArray[np.float32], name: str, width: int | None = None) -> NDArray[np.float32]:
    """`x` as C-contiguous float32 (T, d); InputError unless T and d are positive, d is `width`, and all is finite."""
    if x.ndim != 2 or not x.size or (width is not None and x.shape[1] != width):
        expected = f"(T, {'d' if width is None else width})"
        raise InputError(f"{name}: expected rows of shape {expected} with T >= 1, got {x.shape}")
    rows = np.ascontiguousarray(x, np.float32)
    if not np.isfinite(rows).all():
        raise InputError(f"{name}: the rows hold a value that is not finite")
    return rows


def write_shape(shape: tuple[int, ...]) -> bytes:
    """The first bytes of every peer: T and d."""
    return varints(shape)


def read_shape(data: bytes, name: str, width: int | None = None) -> tuple[int, int, ByteReader]:
    """T, d, and a reader of what follows them; FormatError unless both are positive and d is `width`."""
    reader = ByteReader(data, f"{name} bytes")
    n_rows, found = reader.varints(2, limit=_MAX_SIDE)
    if not (n_rows and found) or (width is not None and found != width):
        raise FormatError(f"{reader.what}: {n_rows} rows of width {found}, expected width {width or 'above 0'}")
    return n_rows, found, reader
