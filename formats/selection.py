"""Rows that are left out of a measure: the first of each sequence, or those of a mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource, FloatRows
from saecodec.formats.row_values import load_row_values
from saecodec.sae import SAE
from saecodec.sequences import check_ids, positions


class SelectedRows(ArraySource):
    """Rows of an array, in order. rows: which, int64 (n,), ascending."""

    def __init__(self, source: ArraySource, rows: NDArray[np.int64]) -> None:
        super().__init__(source.path, (len(rows), source.width), source.dtype)
        self._source, self._rows = source, rows
        self.files, self.row_shape = source.files, source.row_shape

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[FloatRows]:
        # The source's spans follow each other too: each ends behind the last row that is wanted of it.
        kept, wanted, taken = self._rows, list(spans), [0]
        for _, stop in wanted:
            taken.append(int(kept[stop - 1]) + 1 if stop else taken[-1])
        parts = self._source._read(pairwise(taken))
        for (start, stop), first, part in zip(wanted, taken[:-1], parts, strict=True):
            yield part[kept[start:stop] - first]


@dataclass(frozen=True, eq=False)
class Selected:
    """The rows that stay of an array. ids: their sequence ids, or None. rows: their places in the array, int64 (n,).
    positions: in their sequences, int64 (n,), or None."""

    source: ArraySource
    ids: NDArray[np.integer[Any]] | None
    rows: NDArray[np.int64]
    positions: NDArray[np.int64] | None


@dataclass(frozen=True)
class Selection:
    """What to leave out. skip_first: rows at the beginning of each sequence. mask: path of a `.npy` file of bool, one
    a row, True for rows that stay."""

    skip_first: int = 0
    mask: str | None = None

    def apply(self, source: ArraySource, ids: NDArray[np.integer[Any]] | None) -> Selected:
        """The rows that stay; InputError when none does, first rows are to go and there are no sequences, or `ids` is
        not one integer a row."""
        if ids is not None:
            check_ids(np.asarray(ids), source.n_rows)
        places = None if ids is None else positions(np.asarray(ids))
        if not self.skip_first and self.mask is None:
            return Selected(source, ids, np.arange(source.n_rows), places)
        keep = self._kept(source)
        if self.skip_first:
            if places is None:
                raise InputError(
                    f"{source.path}: the first rows of sequences cannot be told without sequences: give the ids "
                    "(--seq IDS.npy), or an array of shape (..., position, d)"
                )
            keep &= places >= self.skip_first
        rows = np.flatnonzero(keep)
        if not len(rows):
            raise InputError(f"{source.path}: no row stays of {source.n_rows}: leave fewer out")
        kept = None if ids is None else np.asarray(ids)[rows]
        return Selected(SelectedRows(source, rows), kept, rows, None if places is None else places[rows])

    def _kept(self, source: ArraySource) -> NDArray[np.bool_]:
        if self.mask is None:
            return np.ones(source.n_rows, np.bool_)
        expected = "bool, True to keep a row, for each"
        return np.array(load_row_values(self.mask, source.n_rows, "b", expected), np.bool_)

    def check(self, sae: SAE) -> None:
        """InputError when rows cannot be left out for an SAE: it looks at whole sequences."""
        if (self.skip_first or self.mask is not None) and sae.normalization == "sequence_norm":
            raise InputError(
                f"the SAE {sae.name!r} divides rows by the mean norm of their sequence, which leaving rows out would "
                "change: measure all rows"
            )

    def told(self, n_rows: int) -> dict[str, Any]:
        """What was left out of an array of so many rows."""
        return {"rows_in_input": n_rows, "skip_first": self.skip_first, "rows_mask": self.mask}
