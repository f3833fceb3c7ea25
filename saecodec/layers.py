"""The layers of coded rows: levels of the SAE's latents, and of the residual where the codec has that layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes
from saecodec.sequences import Chunking


@dataclass(frozen=True, eq=False)
class Layers:
    """What is coded of T rows. codes: the base layer. residual: levels of M components, int32 (T, M), or None."""

    codes: Codes
    residual: NDArray[np.int32] | None = None

    @property
    def n_rows(self) -> int:
        """T."""
        return self.codes.n_rows

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.codes.nbytes + (0 if self.residual is None else self.residual.nbytes)

    def labelled(self, chunking: Chunking, first_row: int) -> Layers:
        """These layers of the rows from `first_row` on, with their sequence ids."""
        return Layers(chunking.label(self.codes, first_row), self.residual)

    def __getitem__(self, rows: slice) -> Layers:
        """The rows of a slice with step 1."""
        return Layers(self.codes[rows], None if self.residual is None else self.residual[rows])

    def take(self, rows: NDArray[np.int64]) -> Layers:
        """Any rows, in any order."""
        return Layers(self.codes.take(rows), None if self.residual is None else self.residual[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[Layers]) -> Layers:
        """The rows of one part or more, one after the other; all are of the same codec, with the same columns."""
        residuals = [part.residual for part in parts if part.residual is not None]
        codes = Codes.concatenate([part.codes for part in parts], parts[0].codes.n_latents)
        return cls(codes, np.concatenate(residuals) if residuals else None)
