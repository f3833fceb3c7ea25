"""`Features`: the nonzero feature activations of some rows, before quantization, as compressed sparse rows, and their
side information."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Side:
    """Side information of T rows. scale: float32 (T,), >= 0, what a reconstruction is multiplied by. mean: float32
    (T,), what is then added to each of its values; None with a kind that subtracts none."""

    scale: NDArray[np.float32]
    mean: NDArray[np.float32] | None = None

    def __getitem__(self, rows: slice) -> Side:
        """Of a slice of the rows."""
        return Side(self.scale[rows], None if self.mean is None else self.mean[rows])


@dataclass(frozen=True, eq=False)
class Features:
    """Feature activations of T rows.

    indptr: int64 (T + 1,). latents: int32 (K,), ascending inside a row. values: float32 (K,), the activations z.
    side: side information of the rows, for an SAE that normalizes them.
    """

    indptr: NDArray[np.int64]
    latents: NDArray[np.int32]
    values: NDArray[np.float32]
    side: Side | None = None

    @property
    def n_rows(self) -> int:
        """T."""
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        """K."""
        return len(self.latents)
