"""Mutual information of two events, from the counts of rows in which they happen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]


def mutual_information(both: Counts, own: float | Counts, other: float | Counts, rows: float) -> Counts:
    """Mutual information of pairs of events in bits per row, of the shape of `both` (Cover & Thomas 2006, eq. 2.28).

    both: rows with both events; own, other: rows with each, which broadcast against `both`; rows: all. What an ideal
    code of the two together saves against ideal codes of each.
    """
    joint = [both, own - both, other - both, rows - own - other + both]
    marginals = [own * other, own * (rows - other), (rows - own) * other, (rows - own) * (rows - other)]
    total = np.zeros(np.shape(both))
    for n, m in zip(joint, marginals, strict=True):
        total += np.where(n > 0, n * np.log2(np.maximum(n, 1) * max(rows, 1) / np.maximum(m, 1)), 0)
    return total / max(rows, 1)
