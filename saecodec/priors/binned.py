"""Symbols by bin: how the context prior sorts a chunk's gaps and levels, and hands them out again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import FormatError
from saecodec.priors.layout import Cells

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Binned:
    """The symbols of a chunk, bin by bin. gaps: before each nonzero, int64 (K,), and their first in each bin (B + 1,).
    level_order: the nonzeros, in the order of their cells, by level bin; first_level: the first in each."""

    cells: Cells
    gaps: Integers
    first_gap: Integers
    level_order: Integers
    first_level: Integers
    bins: NDArray[np.uint8]
    level_bins: NDArray[np.uint8]


class BinQueues:
    """Values in order, bin by bin, taken from the front of each bin."""

    def __init__(self, values: Integers, first: Integers) -> None:
        self._values, self._at, self._end = values, first[:-1].copy(), first[1:]

    @property
    def left(self) -> bool:
        """Whether any value was not taken."""
        return bool((self._at < self._end).any())

    def take_below(self, limits: Integers) -> tuple[Integers, Integers]:
        """The values below their bin's limit, where values rise inside a bin, and the bin of each."""
        stops = self._at.copy()
        for i in np.flatnonzero(self._at < self._end).tolist():
            stops[i] += np.searchsorted(self._values[self._at[i] : self._end[i]], limits[i])
        taken = stops - self._at
        where = np.repeat(self._at - (np.cumsum(taken) - taken), taken) + np.arange(int(taken.sum()))
        self._at = stops
        return self._values[where], np.repeat(np.arange(len(taken)), taken)

    def take(self, bins: NDArray[np.uint8], what: str) -> Integers:
        """The next value of the bin of each place."""
        order = np.argsort(bins, kind="stable")
        taken = np.bincount(bins, minlength=len(self._at))
        if (self._at + taken > self._end).any():
            raise FormatError(f"{what}: more levels are needed of a bin than there are")
        out = np.empty(len(bins), np.int64)
        where = np.repeat(self._at - (np.cumsum(taken) - taken), taken) + np.arange(len(bins))
        out[order] = self._values[where]
        self._at = self._at + taken
        return out


def first_of_bins(bins: NDArray[np.uint8], n_bins: int) -> Integers:
    """The first nonzero of each bin once they are sorted by bin, and K at the end: int64 (n_bins + 1,)."""
    return np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=n_bins))])


def ranks_of(gaps: Integers, first: Integers, n_cells: int, what: str) -> Integers:
    """Ranks of nonzeros in their bins, from gaps: int64 (K,)."""
    if gaps.sum(dtype=np.float64) > n_cells:  # before the sums below could overflow
        raise FormatError(f"{what}: the gaps of the support lead past the end of the chunk")
    ends = np.concatenate([[0], np.cumsum(gaps + 1)])
    return np.asarray(ends[1:] - 1 - np.repeat(ends[first[:-1]], np.diff(first)))
