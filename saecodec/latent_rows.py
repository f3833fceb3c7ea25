"""`LatentRows`: nonzero feature activations of some rows in the dtype that they are stored in, and what may be wrong.

`Features` are what an SAE gives, float32 and known to be in order; these come from files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError
from saecodec.features import Features
from saecodec.stored_floats import as_float


@dataclass(frozen=True, eq=False)
class LatentRows:
    """Feature activations of T rows as compressed sparse rows.

    indptr: int64 (T + 1,). latents: int32 (K,), strictly ascending inside a row. values: (K,), float16, float32,
    float64, or uint16: the bits of bfloat16; zeros may be among them. columns: name -> int64 (T,).
    """

    indptr: NDArray[np.int64]
    latents: NDArray[np.int32]
    values: NDArray[Any]
    columns: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """T."""
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        """K."""
        return len(self.latents)

    def rows(self) -> NDArray[np.int64]:
        """The row of each activation, int64 (K,)."""
        return np.repeat(np.arange(self.n_rows), np.diff(self.indptr))

    @classmethod
    def sorted(
        cls,
        indptr: NDArray[np.int64],
        latents: NDArray[np.integer[Any]],
        values: NDArray[Any],
        n_latents: int,
        what: str,
        first_row: int = 0,
    ) -> LatentRows:
        """Rows whose latents come in any order, sorted.

        InputError, with `what` and the row (counted from `first_row`), when a latent is not in [0, n_latents) or twice
        in a row.
        """
        rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        if len(latents) and not 0 <= latents.min() <= latents.max() < n_latents:
            bad = int(np.flatnonzero((latents < 0) | (latents >= n_latents))[0])
            raise InputError(
                f"{what}: row {first_row + rows[bad]} has latent {latents[bad]}, but there are {n_latents} latents: "
                "give their true number (--n-latents), or mend the file"
            )
        numbers = latents.astype(np.int32)
        same_row = rows[1:] == rows[:-1]
        if (same_row & (numbers[1:] <= numbers[:-1])).any():
            order = np.lexsort((numbers, rows))
            numbers, values = numbers[order], values[order]
            twice = np.flatnonzero(same_row & (numbers[1:] == numbers[:-1]))
            if len(twice):
                row, latent = first_row + int(rows[twice[0]]), numbers[twice[0]]
                raise InputError(f"{what}: row {row} has latent {latent} twice: sum or drop duplicates before coding")
        return cls(indptr, numbers, values)


def as_features(rows: LatentRows) -> Features:
    """Activations as float32, explicit zeros included; what float32 cannot hold becomes infinite."""
    return Features(rows.indptr, rows.latents, as_float(rows.values, np.dtype(np.float32)))
