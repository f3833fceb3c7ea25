"""Side information of rows in the bitstream: scales by their logarithm, means uniformly, as columns of integers.

Its precision is fitted: rounding adds at most about half a percent to the squared error that the SAE makes anyway.
Normative: docs/format.md, "Side information".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from saecodec.codes import MAX_COLUMN, Codes
from saecodec.errors import FormatError, InputError
from saecodec.features import Features
from saecodec.integers import unzigzag, zigzag
from saecodec.normalization import KINDS, Side, has_mean, sequence_scales, unrestored
from saecodec.wire import ByteReader, varint

if TYPE_CHECKING:
    from saecodec.sae import SAE

SCALE: Final = "side.scale"
MEAN: Final = "side.mean"
MAX_RESOLUTION: Final = 1 << 20
_SHARE: Final = 0.005  # of the squared error, that rounding may add in all
_FLOOR: Final = 1e-6  # of the rows' energy: an error that is taken to be at least this
_CENTRE_LIMIT: Final = 1 << 38
_FINEST: Final = 2.0**-36  # step of means, of the largest mean: float32 knows it less well, and the centre fits


def side_columns(kind: str) -> tuple[str, ...]:
    """Names of the columns that hold side information of a kind."""
    return () if kind == "none" else (SCALE, MEAN) if has_mean(kind) else (SCALE,)


@dataclass(frozen=True)
class SideQuantizer:
    """Side information <-> columns of integers.

    kind: of `normalization.KINDS`, not "none". resolution: levels of an octave of scale. lowest: the level of scale
    that is stored as 1. mean_step, mean_centre: mean = (column + mean_centre) mean_step; for kinds without means 1, 0.
    """

    kind: str
    resolution: int
    lowest: int
    mean_step: float = 1.0
    mean_centre: int = 0

    def columns(self, side: Side) -> dict[str, NDArray[np.int64]]:
        """The columns, int64 (T,), of side information; InputError when a mean cannot be stored."""
        there = side.scale > 0
        level = np.rint(np.log2(np.where(there, side.scale, 1), dtype=np.float64) * self.resolution).astype(np.int64)
        above = level - self.lowest
        out = {SCALE: np.where(there, above + (above >= 0), 0)}
        if side.mean is not None:
            mean = np.rint(side.mean / np.float64(self.mean_step)) - self.mean_centre
            if len(mean) and not np.abs(mean).max() < MAX_COLUMN:
                raise InputError(
                    f"a row's mean is {np.abs(side.mean).max():g}: too large for this codec's steps of "
                    f"{self.mean_step:g}; drop such rows, or fit a codec on rows like them"
                )
            out[MEAN] = mean.astype(np.int64)
        return out

    def side(self, columns: Mapping[str, NDArray[np.int64]], what: str = "encoded rows") -> Side:
        """The side information that columns stand for. FormatError when they are missing or stand for no float32."""
        missing = [name for name in side_columns(self.kind) if name not in columns]
        if missing:
            raise FormatError(f"{what}: without their side information: column {missing[0]!r} is missing")
        stored = columns[SCALE]
        level = stored - (stored > 0) + self.lowest
        with np.errstate(over="ignore"):
            scale = np.where(stored == 0, 0.0, np.exp2(level / self.resolution)).astype(np.float32)
            mean = (columns[MEAN] + self.mean_centre) * self.mean_step if has_mean(self.kind) else np.zeros(0)
            mean = mean.astype(np.float32)
        if not (np.isfinite(scale).all() and np.isfinite(mean).all()):
            raise FormatError(f"{what}: the side information stands for no float32")
        return Side(scale, mean if has_mean(self.kind) else None)

    def rounded(self, side: Side) -> Side:
        """What a decoder will know of side information."""
        return self.side(self.columns(side))

    def to_bytes(self) -> bytes:
        """Kind and precision."""
        head = varint(KINDS.index(self.kind)) + varint(self.resolution) + _signed(self.lowest)
        return head + (struct.pack("<d", self.mean_step) + _signed(self.mean_centre) if has_mean(self.kind) else b"")

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, what: str) -> SideQuantizer:
        """The inverse of `to_bytes`; FormatError when it is none."""
        reader = ByteReader(data, f"{what}, side information")
        kind = KINDS[reader.varint(len(KINDS) - 1)]
        resolution, lowest = reader.varint(MAX_RESOLUTION), _read_signed(reader)
        if kind == "none" or not resolution:
            raise FormatError(f"{reader.what}: kind {kind!r} of resolution {resolution}")
        step, centre = 1.0, 0
        if has_mean(kind):
            (step,) = struct.unpack("<d", reader.take(8))
            centre = _read_signed(reader)
            if not 0 < step < math.inf:
                raise FormatError(f"{reader.what}: the step of means is {step}")
        reader.end()
        return cls(kind, resolution, lowest, step, centre)


class SideStatistics:
    """Sums over rows from which the precision of their side information comes."""

    def __init__(self, sae: SAE) -> None:
        self._sae, self._kind, self._width = sae, sae.normalization, sae.width
        self._n_rows, self._lowest = 0, math.inf
        self._error = self._energy = self._mean = self._largest = 0.0

    def add(self, x: NDArray[np.float32], features: Features) -> None:
        """Add rows, float32 (T, d), and their feature activations; nothing for an SAE that does not normalize rows."""
        side = features.side
        if side is None:
            return
        x_hat = self._sae.rows(features).cpu().numpy()
        centred = x if side.mean is None else x - side.mean[:, None]
        left = x - x_hat
        self._energy += float(np.einsum("td,td->", centred, centred, dtype=np.float64))
        self._error += float(np.einsum("td,td->", left, left, dtype=np.float64))
        self._n_rows += len(x)
        if (side.scale > 0).any():
            self._lowest = min(self._lowest, float(side.scale[side.scale > 0].min()))
        if side.mean is not None:
            self._mean += float(side.mean.sum(dtype=np.float64))
            self._largest = max(self._largest, float(np.abs(side.mean).max(initial=0)))

    def quantizer(self, error: float | None = None) -> SideQuantizer | None:
        """The precision for rows that are coded with `error` a row, or about the SAE's own squared error; None for an
        SAE that does not normalize rows.

        A uniform rounding by a step s adds s^2 / 12: to each of d values, the mean's; times energy, the scale's
        relative one, which is ln 2 / resolution.
        """
        if self._kind == "none":
            return None
        rows, parts = max(self._n_rows, 1), 2 if has_mean(self._kind) else 1
        energy = self._energy / rows or 1.0
        error = max(self._error / rows if error is None else error, _FLOOR * energy)
        budget = _SHARE * error / parts
        resolution = min(math.ceil(math.log(2) * math.sqrt(energy / (12 * budget))), MAX_RESOLUTION)
        lowest = math.floor(math.log2(self._lowest) * resolution) if self._lowest < math.inf else 0
        if not has_mean(self._kind):
            return SideQuantizer(self._kind, resolution, lowest)
        step = max(math.sqrt(12 * budget / self._width), _FINEST * self._largest)
        return SideQuantizer(self._kind, resolution, lowest, step, round(self._mean / rows / step))


def with_side(codes: Codes, features: Features, quantizer: SideQuantizer | None) -> Codes:
    """Codes with the side information of the features that they were made of."""
    if quantizer is None or features.side is None:
        return codes
    return replace(codes, columns={**codes.columns, **quantizer.columns(features.side)})


def side_at(scales: NDArray[np.float32] | None, first_row: int, n_rows: int) -> Side | None:
    """The side information of rows from `first_row` on, where the scales of all rows (T,) are known beforehand."""
    return None if scales is None else Side(np.asarray(scales[first_row : first_row + n_rows]))


def scales_of(
    sae: SAE, rows: Iterable[NDArray[np.float32]], ids: NDArray[np.integer] | None
) -> NDArray[np.float32] | None:
    """The scales of all rows, float32 (T,), for an SAE that goes by their sequences' norms; None for any other.

    rows: chunk by chunk. ids: of the sequences, (T,); InputError without.
    """
    if sae.normalization != "sequence_norm":
        return None
    if ids is None:
        sae.side(np.zeros((0, sae.width), np.float32))  # says what is missing
    assert ids is not None
    norms = [np.sqrt(np.einsum("td,td->t", x, x, dtype=np.float64)) for x in rows]
    return sequence_scales(np.concatenate([np.zeros(0), *norms]), np.asarray(ids), sae.width)


def targets(
    sae: SAE, quantizer: SideQuantizer | None, x: NDArray[np.float32], first_row: int, side: Side | None
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.int64]]]:
    """What a search is to reconstruct for rows x, float32 (T, d), and the columns of their side information.

    side: of the rows, where it is known beforehand. The rounded scale is undone here, so a search makes up for its
    rounding; not the rounded mean, which may be off by many times the scale.
    """
    if quantizer is None:
        return x, {}
    sae.check_rows(x, first_row)
    exact = sae.side(x) if side is None else side
    assert exact is not None
    columns = quantizer.columns(exact)
    rounded = Side(quantizer.side(columns).scale, exact.mean)
    return unrestored(torch.from_numpy(np.array(x)), rounded).numpy(), columns


def _signed(value: int) -> bytes:
    return varint(int(zigzag(np.array([value]))[0]))


def _read_signed(reader: ByteReader) -> int:
    return int(unzigzag(np.array([reader.varint(_CENTRE_LIMIT)]))[0])
