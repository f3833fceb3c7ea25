"""`Codes`: the quantized feature activations of some rows, as compressed sparse rows of integer levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError

MAX_LEVEL: Final = 1 << 20
MAX_COLUMN: Final = 1 << 38
MAX_CHUNK_ROWS: Final = 1 << 20


@dataclass(frozen=True, eq=False)
class Codes:
    """Levels of T rows and F latents in CSR form, plus row-aligned integer columns.

    indptr: int64 (T + 1,), indptr[0] = 0; row t holds nonzeros indptr[t]:indptr[t + 1].
    latents: int32 (K,), strictly ascending inside a row, in [0, F).
    levels: int32 (K,), nonzero, |level| <= 2^20.
    n_latents: F.
    columns: name -> int64 (T,), for instance sequence ids; |value| < 2^38.

    >>> codes = Codes.from_dense(np.array([[0, 2, 0], [0, 0, 0], [1, 0, 3]]))
    >>> codes.indptr, codes.latents, codes.levels
    (array([0, 1, 1, 3]), array([1, 0, 2], dtype=int32), array([2, 1, 3], dtype=int32))
    """

    indptr: NDArray[np.int64]
    latents: NDArray[np.int32]
    levels: NDArray[np.int32]
    n_latents: int
    columns: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """T."""
        return len(self.indptr) - 1

    def __len__(self) -> int:
        return self.n_rows

    @property
    def nnz(self) -> int:
        """K, the number of nonzero levels."""
        return len(self.latents)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        columns = sum(column.nbytes for column in self.columns.values())
        return self.indptr.nbytes + self.latents.nbytes + self.levels.nbytes + columns

    def __reduce__(self) -> Any:
        """For other processes: in the smallest integers that hold it, a third of its size."""
        counts, columns = np.diff(self.indptr), {name: _narrow(values) for name, values in self.columns.items()}
        return _widened, (_narrow(counts), _narrow(self.latents), _narrow(self.levels), self.n_latents, columns)

    def rows(self) -> NDArray[np.int64]:
        """The row of each nonzero, int64 (K,)."""
        return np.repeat(np.arange(self.n_rows), np.diff(self.indptr))

    def __getitem__(self, rows: slice) -> Codes:
        """The rows of a slice with step 1."""
        start, stop, step = rows.indices(self.n_rows)
        if step != 1:
            raise InputError(f"codes are sliced in steps of 1, got a step of {step}")
        stop = max(stop, start)
        a, b = int(self.indptr[start]), int(self.indptr[stop])
        columns = {name: values[start:stop] for name, values in self.columns.items()}
        indptr = self.indptr[start : stop + 1] - a
        return Codes(indptr, self.latents[a:b], self.levels[a:b], self.n_latents, columns)

    def take(self, rows: NDArray[np.int64]) -> Codes:
        """Any rows, in any order."""
        indptr, source = gather_rows(self.indptr, rows)
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Codes(indptr, self.latents[source], self.levels[source], self.n_latents, columns)

    def check(self) -> Codes:
        """`self`, or InputError naming the first rule of the class's description that does not hold."""
        indptr, latents, levels = self.indptr, self.latents, self.levels
        for name, array in (("indptr", indptr), ("latents", latents), ("levels", levels)):
            if not np.issubdtype(array.dtype, np.integer):
                raise InputError(f"{name} must be integers, got {array.dtype}")
        if indptr.ndim != 1 or len(indptr) < 1 or indptr[0] != 0 or (np.diff(indptr) < 0).any():
            raise InputError("indptr must be 1-D, start at 0 and never fall")
        if not len(latents) == len(levels) == indptr[-1]:
            raise InputError(
                f"indptr ends at {indptr[-1]}, but there are {len(latents)} latents and {len(levels)} levels"
            )
        if len(latents):
            if not 0 <= latents.min() <= latents.max() < self.n_latents:
                raise InputError(f"latents must be in [0, {self.n_latents}), found {latents.min()}..{latents.max()}")
            rises = np.diff(latents) > 0
            starts = indptr[1:-1]
            rises[starts[(starts > 0) & (starts < len(latents))] - 1] = True
            if not rises.all():
                raise InputError("latents must be strictly ascending inside each row")
            magnitude = np.abs(levels.astype(np.int64))
            if magnitude.min() == 0 or magnitude.max() > MAX_LEVEL:
                raise InputError(f"levels must be nonzero and at most 2^20 in magnitude, found {magnitude.max()}")
        for name, values in self.columns.items():
            if not name:
                raise InputError("a column needs a name")
            if np.shape(values) != (self.n_rows,) or not np.issubdtype(values.dtype, np.integer):
                raise InputError(f"column {name!r} must be integers of shape ({self.n_rows},), got {np.shape(values)}")
            if len(values) and max(-int(values.min()), int(values.max())) >= MAX_COLUMN:
                raise InputError(f"column {name!r} holds values of magnitude 2^38 or more")
        return self

    @classmethod
    def from_dense(cls, levels: NDArray[np.integer], columns: Mapping[str, NDArray[np.int64]] | None = None) -> Codes:
        """Codes of a dense array of integers (T, F)."""
        if levels.ndim != 2 or not np.issubdtype(levels.dtype, np.integer):
            raise InputError(f"levels must be integers of shape (T, F), got {levels.dtype} of shape {levels.shape}")
        if levels.size and not -MAX_LEVEL <= levels.min() <= levels.max() <= MAX_LEVEL:
            raise InputError(f"levels must be at most 2^20 in magnitude, found {levels.min()}..{levels.max()}")
        rows, latents = np.nonzero(levels)
        indptr = np.zeros(len(levels) + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=len(levels)), out=indptr[1:])
        values = np.asarray(levels[rows, latents], np.int32)
        return cls(indptr, latents.astype(np.int32), values, levels.shape[1], columns or {}).check()

    def to_dense(self) -> NDArray[np.int32]:
        """The levels as a dense array, int32 (T, F)."""
        out = np.zeros((self.n_rows, self.n_latents), np.int32)
        out[self.rows(), self.latents] = self.levels
        return out

    @classmethod
    def concatenate(cls, parts: Iterable[Codes], n_latents: int) -> Codes:
        """The rows of `parts`, one after the other; all have the same columns."""
        chunks: Sequence[Codes] = list(parts)
        counts = [np.diff(part.indptr) for part in chunks]
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([np.zeros(0, np.int64), *counts]))])
        latents = np.concatenate([np.zeros(0, np.int32), *(part.latents for part in chunks)])
        levels = np.concatenate([np.zeros(0, np.int32), *(part.levels for part in chunks)])
        names = chunks[0].columns if chunks else {}
        if any(part.columns.keys() != names.keys() for part in chunks):
            raise InputError("codes with different columns cannot be concatenated")
        columns = {name: np.concatenate([part.columns[name] for part in chunks]) for name in names}
        return cls(indptr, latents, levels, n_latents, columns)


def _narrow(values: NDArray[Any]) -> NDArray[Any]:
    """In the smallest type of integers."""
    if not len(values):
        return values
    kinds = (np.int8, np.uint16, np.int16, np.int32)
    least, most = int(values.min()), int(values.max())
    fits = (kind for kind in kinds if np.iinfo(kind).min <= least and most <= np.iinfo(kind).max)
    return values.astype(next(fits, np.int64), copy=False)


def _widened(
    counts: NDArray[Any], latents: NDArray[Any], levels: NDArray[Any], n_latents: int, columns: dict[str, NDArray[Any]]
) -> Codes:
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
    wide = {name: values.astype(np.int64) for name, values in columns.items()}
    return Codes(indptr, latents.astype(np.int32), levels.astype(np.int32), n_latents, wide)


def gather_rows(indptr: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row pointers of some rows in CSR form, int64 (n + 1,), and the places of their nonzeros, int64 (K,)."""
    taken = np.diff(indptr)[rows]
    out = np.concatenate([[0], np.cumsum(taken)])
    return out, np.repeat(indptr[:-1][rows] - out[:-1], taken) + np.arange(out[-1])
