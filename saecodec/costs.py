"""What a prior charges for a nonzero: the rates that an encoder's search weighs against squared error.

They steer the encoder only. Nothing that is decoded depends on them, so floats do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets, exact
from saecodec.rangecoder import TOTAL

DEFAULT_SLOPE: Final = 0.06
"""Squared error that a bit may cost, in squared steps. The optimum is flat, since a step of its own goes with each
(docs/results.md)."""

COST_LEVELS: Final = 1024
"""Levels that priors tell apart in their costs."""


@dataclass(frozen=True, eq=False)
class Costs:
    """Bits of a nonzero.

    support: of its place, float32 (F,), the mean over the nonzeros of a latent. levels: of |level| = l in column l,
    its sign included, float32 (C, L); column 0 is 0, and levels beyond the last column cost as much as the last.
    level_class: row of `levels` of each latent, int64 (F,).
    """

    support: NDArray[np.float32]
    levels: NDArray[np.float32]
    level_class: NDArray[np.int64]


def bucket_bits(weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits of a value of each bucket, its offset included, under tables with weights (C, 304): float64 (C, 304)."""
    return np.asarray(buckets.OFFSET_BITS - np.log2(weights / TOTAL))


def mean_bits(weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits of a value under bucket tables with weights (C, 304) that tell the truth: their entropies, float64 (C,)."""
    return np.asarray((weights / TOTAL * bucket_bits(weights)).sum(1))


def value_bits(weights: NDArray[np.int64], n_values: int) -> NDArray[np.float32]:
    """Bits of each value 0..n_values - 1 under bucket tables with weights (C, 304): float32 (C, n_values), the nearest
    ones, so that what they decide does not depend on a library's logarithm."""
    inverse = np.broadcast_to(TOTAL * 2.0**buckets.OFFSET_BITS, weights.shape).ravel()  # of a value's probability
    flat = exact.nearest(bucket_bits(weights).ravel(), lambda i: exact.log2(float(inverse[i]), float(weights.flat[i])))
    return flat.reshape(weights.shape)[:, buckets.bucket_of(np.arange(n_values))]
