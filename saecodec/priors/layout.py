"""The order in which a chunk's cells are laid out: groups of classes of columns, one column per latent.

A chunk of T rows has F columns of T cells. The columns are sorted by support class, then latent; a cell's position is
column * T + row. Consecutive support classes form a *group*, whose support is a stream and whose levels are another.
Levels have an order of their own, in which one table serves a long run: by group, then level class, then position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Cells:
    """A chunk's nonzeros in the order of their positions, in arrays of length K."""

    column: Integers
    row: Integers
    level: NDArray[np.int32]

    def take(self, kept: NDArray[np.bool_]) -> Cells:
        """The nonzeros that are kept, bool (K,)."""
        return Cells(self.column[kept], self.row[kept], self.level[kept])

    @classmethod
    def concatenate(cls, parts: list[Cells]) -> Cells:
        """Nonzeros one after the other."""
        none = np.zeros(0, np.int64)
        column = np.concatenate([none, *(part.column for part in parts)])
        row = np.concatenate([none, *(part.row for part in parts)])
        return cls(column, row, np.concatenate([none.astype(np.int32), *(part.level for part in parts)]))


@dataclass(frozen=True, eq=False)
class Layout:
    """Support class and level class of each latent, int64 (F,) each, and the number of support classes per group."""

    support_class: Integers
    level_class: Integers
    group_sizes: tuple[int, ...]

    @cached_property
    def latent_of(self) -> Integers:
        """The latent of each column, int64 (F,)."""
        return np.argsort(self.support_class, kind="stable")

    @cached_property
    def column_of(self) -> NDArray[np.uint16] | Integers:
        """The column of each latent, (F,); 16-bit when it fits, for which numpy's stable sort is a radix sort."""
        return narrow(_inverse(self.latent_of), len(self.latent_of))

    @cached_property
    def class_start(self) -> Integers:
        """First column of each support class, and F at the end: int64 (C + 1,)."""
        counts = np.bincount(self.support_class, minlength=sum(self.group_sizes))
        return np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def class_bounds(self) -> list[int]:
        """First support class of each group, and C at the end."""
        return [0, *np.cumsum(self.group_sizes).tolist()]

    @cached_property
    def _group_start(self) -> Integers:
        """First column of each group, and F at the end."""
        return self.class_start[self.class_bounds]

    @cached_property
    def _by_level(self) -> Integers:
        """The columns in the order of levels, int64 (F,)."""
        group = np.repeat(np.arange(len(self.group_sizes)), np.diff(self._group_start))
        return np.lexsort((self.level_class[self.latent_of], group))

    @cached_property
    def _run_start(self) -> Integers:
        """Place in `_by_level` of the first column of each run of one level class in a group, and F at the end."""
        level = self.level_class[self.latent_of][self._by_level]
        new = np.diff(level) != 0
        new[self._group_start[1:-1][self._group_start[1:-1] > 0] - 1] = True
        return np.concatenate([[0], np.flatnonzero(new) + 1, [len(level)]])

    @cached_property
    def run_class(self) -> Integers:
        """Level class of each run, int64 (R,)."""
        return self.level_class[self.latent_of[self._by_level[self._run_start[:-1]]]]

    @cached_property
    def run_bounds(self) -> list[int]:
        """First run of each group, and R at the end."""
        return list(np.searchsorted(self._run_start, self._group_start).tolist())

    def last_run(self, columns: Integers) -> int:
        """The last run that holds levels of any of these columns (n,), n > 0."""
        places = self._place_by_level[columns]
        return int(np.searchsorted(self._run_start, places.max(), side="right")) - 1

    @cached_property
    def _place_by_level(self) -> Integers:
        return _inverse(self._by_level)

    def level_order(self, column: Integers) -> tuple[Integers, Integers]:
        """The order of levels: places (K,) in the order of positions, and the first nonzero of each run (R + 1,).

        column: of each nonzero, in the order of positions, int64 (K,).
        """
        counts = np.bincount(column, minlength=len(self.latent_of))
        order = _gather(counts, self._by_level)
        ends = np.concatenate([[0], np.cumsum(counts[self._by_level])])
        return order, ends[self._run_start]

    def cells(self, codes: Codes) -> Cells:
        """The nonzeros of a chunk, sorted by position."""
        order = self.order(codes)
        column = self.column_of.take(codes.latents.take(order)).astype(np.int64)
        return Cells(column, codes.rows().take(order), codes.levels.take(order))

    def order(self, codes: Codes) -> Integers:
        """The nonzeros of a chunk in the order of `cells`: places in `codes`, int64 (K,)."""
        return np.argsort(self.column_of.take(codes.latents), kind="stable")  # rows stay in order inside a column

    def codes(self, cells: Cells, n_rows: int) -> Codes:
        """The inverse of `cells`."""
        n_latents = len(self.latent_of)
        by_latent = _gather(np.bincount(cells.column, minlength=n_latents), _inverse(self.latent_of))
        order = by_latent[np.argsort(narrow(cells.row, n_rows)[by_latent], kind="stable")]
        indptr = np.zeros(n_rows + 1, np.int64)
        np.cumsum(np.bincount(cells.row, minlength=n_rows), out=indptr[1:])
        latents = self.latent_of[cells.column[order]].astype(np.int32)
        return Codes(indptr, latents, cells.level[order], n_latents)


def narrow(values: Integers, limit: int) -> NDArray[np.uint16] | Integers:
    """`values` (all below `limit`) as uint16 when they fit, for numpy's radix sort; else as they are."""
    return values.astype(np.uint16) if limit <= 1 << 16 else values


def _inverse(permutation: Integers) -> Integers:
    out = np.empty(len(permutation), np.int64)
    out[permutation] = np.arange(len(permutation))
    return out


def _gather(counts: Integers, order: Integers) -> Integers:
    """Places of the nonzeros of columns `order`, one column after the other, where column c has counts[c] of them."""
    start = np.cumsum(counts) - counts
    taken = counts[order]
    shift = start[order] - (np.cumsum(taken) - taken)
    return np.repeat(shift, taken) + np.arange(int(taken.sum()))
