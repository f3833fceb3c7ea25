"""Priors by name, and the interface they share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes
from saecodec.costs import Costs
from saecodec.errors import UnsupportedError
from saecodec.priors.factorized import FactorizedPrior
from saecodec.wire import ByteReader

CONTEXT: Final = "context"
PRIORS: Final = (FactorizedPrior.name, CONTEXT)


class Prior(Protocol):
    """The probability model of a chunk of codes. T rows, F latents."""

    name: ClassVar[str]

    @property
    def n_latents(self) -> int:
        """F."""

    @property
    def signed(self) -> bool:
        """Whether levels can be negative."""

    @property
    def level_class(self) -> NDArray[np.int64]:
        """Class of each latent that its centroids go by, int64 (F,)."""

    @property
    def n_level_classes(self) -> int:
        """How many of these classes there are."""

    def encode(self, codes: Codes) -> bytes:
        """Support and levels of one chunk."""

    def decode(self, reader: ByteReader, n_rows: int, columns: Mapping[str, NDArray[np.int64]]) -> Codes:
        """The inverse of `encode`. columns: those of the chunk, which are decoded before (sequence ids, say)."""

    def decode_some(
        self, reader: ByteReader, n_rows: int, columns: Mapping[str, NDArray[np.int64]], latents: NDArray[np.int64]
    ) -> Codes:
        """What `decode` gives of some latents alone, int64 (n,), with as little work as that takes."""

    def stream_bytes(self, reader: ByteReader, n_rows: int) -> tuple[int, int]:
        """Bytes of a chunk that are support and levels, without decoding it."""

    def ideal_bits(self, codes: Codes) -> tuple[float, float]:
        """Ideal code length of support and levels under the tables, in bits."""

    def nonzero_bits(self, codes: Codes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What `ideal_bits` is the sum of: bits of each nonzero's place and level, float64 (K,) each, in the order of
        the codes."""

    def costs(self) -> Costs:
        """What a nonzero costs, for the encoder's search."""

    def content(self) -> Mapping[str, NDArray[Any]]:
        """Everything that decides a symbol, as integer arrays: what identities are made of."""

    def to_bytes(self) -> bytes:
        """The prior and its tables."""


def read_prior(name: str, reader: ByteReader) -> Prior:
    """The prior `name` from its `to_bytes`; UnsupportedError when this version does not know it."""
    if name == FactorizedPrior.name:
        return FactorizedPrior.read(reader)
    if name == CONTEXT:
        from saecodec.priors.context import ContextPrior  # its network takes torch, which the rest does without

        return ContextPrior.read(reader)
    raise UnsupportedError(f"{reader.what}: unknown prior {name!r}: this version knows {', '.join(PRIORS)}")
