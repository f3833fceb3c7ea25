"""Uncertainty of figures over rows: the block bootstrap.

Neighbouring rows resemble each other (tokens of one text), so rows are not drawn one by one but in blocks: sequences,
or runs of rows. A figure that is a function of sums over rows is computed anew from the sums of the blocks that a
resample draws, with replacement, as many as there are; the middle 95 % of the resamples are its interval (the
percentile bootstrap; Efron & Tibshirani 1993, 13.3, of blocks: Carlstein 1986). Two figures on the same rows are
compared by the same draws: what both share, hard rows say, cancels in their difference.

Tables, and the SAEs themselves, are held as they are: the interval is about other rows like these under this codec.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.95
RESAMPLES: Final = 1000
BLOCK_ROWS: Final = 128
_MAX_BLOCKS: Final = 2048  # more are joined: draws are a matrix (resamples, blocks)
_MIN_BLOCKS: Final = 64  # rows without sequences are cut into at least as many, where there are so many rows

_MIN_SEQUENCES: Final = 20

Sums = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Blocks:
    """How rows are drawn together. starts: first row of each block, int64 (N,), ascending from 0. n_rows: T. unit: what
    a block is, for people."""

    starts: NDArray[np.int64]
    n_rows: int
    unit: str

    @classmethod
    def of(cls, n_rows: int, ids: NDArray[np.integer[Any]] | None = None) -> Blocks:
        """Sequences, where rows have ids, (T,), and these are 20 or more; else runs of 128 rows, or fewer where that
        makes few blocks: the draws of a few blocks are too much alike for an interval.

        >>> Blocks.of(40, np.arange(40) // 2).starts[:3]
        array([0, 2, 4])
        """
        starts, unit = np.zeros(0, np.int64), ""
        if ids is not None and n_rows:
            new = np.concatenate([[True], np.asarray(ids)[1:] != np.asarray(ids)[:-1]])
            starts = np.flatnonzero(new)
            unit = "sequences" if len(starts) < n_rows else "single rows"
        if len(starts) < _MIN_SEQUENCES:
            length = max(1, min(BLOCK_ROWS, n_rows // _MIN_BLOCKS))
            starts, unit = np.arange(0, n_rows, length), f"runs of {length} row{'s' * (length > 1)}"
        if len(starts) > _MAX_BLOCKS:
            together = -(-len(starts) // _MAX_BLOCKS)
            starts, unit = starts[::together], f"{unit}, {together} at a time"
        return cls(starts, n_rows, unit)

    def __len__(self) -> int:
        return len(self.starts)

    def sums(self, values: NDArray[np.floating[Any]]) -> Sums:
        """Sums of values of rows, (T,), over each block: float64 (N,)."""
        return np.add.reduceat(np.asarray(values, np.float64), self.starts) if len(self) else np.zeros(0)

    @property
    def counts(self) -> Sums:
        """Rows of each block, float64 (N,)."""
        return np.diff(self.starts, append=self.n_rows).astype(np.float64)

    def draws(self, resamples: int = RESAMPLES, seed: int = 0) -> Sums:
        """How often each resample draws each block: float64 (B, N); all rows once come first, as row 0."""
        n = max(len(self), 1)
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        return np.concatenate([np.ones((1, n)), drawn])[:, : len(self)]


def bounds(values: Sums, level: float = LEVEL) -> tuple[float, float] | None:
    """The middle `level` of resampled figures, (B,): its lower and upper end, which may be infinite. Resamples in which
    a figure is not defined, NaN, are left out; None when it never is."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    # Without interpolation, which infinite figures do not allow.
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


def interval(values: Sums, level: float = LEVEL) -> list[float | None]:
    """`bounds`, for programs: None is an end that is infinite, or not defined."""
    return [end if end is not None and math.isfinite(end) else None for end in bounds(values, level) or (None, None)]
