"""Gaps: the support of a chunk as distances between the nonzeros of a class, and back.

For one class, the columns of its latents are laid end to end into one 0/1 sequence; what is coded is the number of
zeros before each one. Gaps see a latent's rate and its burstiness in time, and cost one symbol per nonzero. The cells
after a class's last one are not coded: the number of ones is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import FormatError
from saecodec.priors.layout import Cells


def gaps_of(cells: Cells, n_rows: int, class_start: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The gap before each nonzero, int64 (K,), and the first nonzero of each class, int64 (C + 1,).

    class_start: first column of each class and the number of columns, int64 (C + 1,).
    """
    position = cells.column * n_rows + cells.row
    first = np.searchsorted(cells.column, class_start)
    gaps = np.diff(position, prepend=-1) - 1
    filled = first[:-1] < first[1:]
    heads = first[:-1][filled]
    gaps[heads] = position[heads] - class_start[:-1][filled] * n_rows
    return gaps, first


def positions_of(
    gaps: NDArray[np.int64], counts: NDArray[np.int64], n_rows: int, class_start: NDArray[np.int64], what: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Column and row of each nonzero, int64 (K,) each: the inverse of `gaps_of`.

    counts: nonzeros of each class, int64 (C,), summing to K. FormatError when a class's gaps lead past its cells.
    """
    n_cells = int(class_start[-1]) * n_rows
    if gaps.sum(dtype=np.float64) > n_cells:  # before the sums below could overflow
        raise FormatError(f"{what}: the gaps of the support lead past the end of the chunk")
    ends = np.cumsum(gaps + 1)
    last = np.cumsum(counts)
    before = np.concatenate([[0], ends])[last - counts]  # where each class's sum begins
    position = ends - 1 + np.repeat(class_start[:-1] * n_rows - before, counts)
    filled = counts > 0
    if (position[last[filled] - 1] >= class_start[1:][filled] * n_rows).any():
        raise FormatError(f"{what}: the gaps of the support lead past the end of a class")
    column = position // max(n_rows, 1)
    return column, position - column * n_rows
