"""The layers of coded rows: levels of the SAE's latents, and of the residual where the codec has that layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes
from saecodec.sequences import Chunking

_BATCH_VALUES: Final = 1 << 22  # 16 MiB of float32, where rows are not wider than that


def batches_of(n_rows: int, width: int) -> Iterator[slice]:
    """Rows of a chunk that are reconstructed together: a few bytes may stand for a million rows of any width."""
    most = max(1, _BATCH_VALUES // width)
    return (slice(start, min(start + most, n_rows)) for start in range(0, n_rows, most))


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

    def batches(self, width: int) -> Iterator[Layers]:
        """The rows in batches of `batches_of`."""
        parts = list(batches_of(self.n_rows, width))
        return iter([self]) if len(parts) == 1 else (self[part] for part in parts)

    def take(self, rows: NDArray[np.int64]) -> Layers:
        """Any rows, in any order."""
        return Layers(self.codes.take(rows), None if self.residual is None else self.residual[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[Layers]) -> Layers:
        """The rows of one part or more, one after the other; all are of the same codec, with the same columns."""
        residuals = [part.residual for part in parts if part.residual is not None]
        codes = Codes.concatenate([part.codes for part in parts], parts[0].codes.n_latents)
        return cls(codes, np.concatenate(residuals) if residuals else None)
