"""The order in which a chunk's cells are laid out: groups of classes of columns, one column per latent.

A chunk of T rows has F columns of T cells. The columns are sorted by support class, then level class, then latent;
a cell's position is column * T + row. Classes are contiguous in it, and consecutive classes form a *group*, whose
support and levels are a stream each. Inside a support class the runs of one level class are *segments*.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes


@dataclass(frozen=True, eq=False)
class Cells:
    """A chunk's nonzeros in the order of their positions, in arrays of length K."""

    column: NDArray[np.int64]
    row: NDArray[np.int64]
    level: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Layout:
    """The column order of latents that have a support class and a level class each, int64 (F,)."""

    support_class: NDArray[np.int64]
    level_class: NDArray[np.int64]

    @cached_property
    def latent_of(self) -> NDArray[np.int64]:
        """The latent of each column, int64 (F,)."""
        return np.lexsort((self.level_class, self.support_class))  # stable: ties keep the latents' order

    @cached_property
    def column_of(self) -> NDArray[np.uint16] | NDArray[np.int64]:
        """The column of each latent, (F,); 16-bit when it fits, for which numpy's stable sort is a radix sort."""
        out = np.empty(len(self.latent_of), np.int64)
        out[self.latent_of] = np.arange(len(out))
        return narrow(out, len(out))

    @cached_property
    def class_start(self) -> NDArray[np.int64]:
        """First column of each support class, and F at the end: int64 (C + 1,)."""
        counts = np.bincount(self.support_class)
        return np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def segment_start(self) -> NDArray[np.int64]:
        """First column of each segment, and F at the end: int64 (S + 1,)."""
        support, level = self.support_class[self.latent_of], self.level_class[self.latent_of]
        new = (np.diff(support) != 0) | (np.diff(level) != 0)
        return np.concatenate([[0], np.flatnonzero(new) + 1, [len(support)]])

    @cached_property
    def segment_class(self) -> NDArray[np.int64]:
        """Level class of each segment, int64 (S,)."""
        return self.level_class[self.latent_of[self.segment_start[:-1]]]

    def cells(self, codes: Codes) -> Cells:
        """The nonzeros of a chunk, sorted by position."""
        column = self.column_of[codes.latents]
        order = np.argsort(column, kind="stable")  # rows stay in order inside a column
        return Cells(column[order].astype(np.int64), codes.rows()[order], codes.levels[order])

    def codes(self, cells: Cells, n_rows: int) -> Codes:
        """The inverse of `cells`."""
        n_latents = len(self.latent_of)
        latent = self.latent_of[cells.column]
        by_latent = np.argsort(narrow(latent, n_latents), kind="stable")
        order = by_latent[np.argsort(narrow(cells.row, n_rows)[by_latent], kind="stable")]
        indptr = np.zeros(n_rows + 1, np.int64)
        np.cumsum(np.bincount(cells.row, minlength=n_rows), out=indptr[1:])
        return Codes(indptr, latent[order].astype(np.int32), cells.level[order], n_latents)


def narrow(values: NDArray[np.int64], limit: int) -> NDArray[np.uint16] | NDArray[np.int64]:
    """`values` (all below `limit`) as uint16 when they fit, for numpy's radix sort; else as they are."""
    return values.astype(np.uint16) if limit <= 1 << 16 else values
