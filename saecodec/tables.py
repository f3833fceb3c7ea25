"""Frequency tables: how a prior's empirical distributions are stored, and the integer weights they stand for.

A table is a vector of *frequency codes*, small integers on a logarithmic scale with 2^resolution steps an octave.
`expand` turns them into the weights that the range coder uses, in integers only (docs/format.md, "Frequency tables");
`quantize` chooses them. Code 0 is a symbol that was never seen; it keeps weight 1 of 2^24, so it costs 24 bits and
can still be coded.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.rangecoder import TOTAL

MAX_RESOLUTION: Final = 3
_OCTAVES: Final = 20  # rarest to most frequent symbol that a table tells apart


def max_code(resolution: int) -> int:
    """Largest frequency code at `resolution` steps (log2) an octave."""
    return _OCTAVES << resolution


def frequency(codes: NDArray[np.int64], resolution: int) -> NDArray[np.int64]:
    """What frequency codes stand for: 0 for code 0, else (2^r + m) << e, where code - 1 = e 2^r + m."""
    one = 1 << resolution
    step = np.maximum(codes - 1, 0)
    return np.where(codes > 0, (one + (step & (one - 1))) << (step >> resolution), 0)


def expand(codes: NDArray[np.int64], resolution: int) -> NDArray[np.int64]:
    """Range-coder weights of frequency tables.

    codes: int64 (..., A), 0 <= code <= max_code(resolution), A < 2^16. Returns int64 of that shape, every weight >= 1,
    each table summing to 2^24: w = 1 + floor(f (2^24 - A) / sum f), and what the floors leave goes to the first symbol
    of the largest frequency. A table of zeros is uniform up to that rest.
    """
    f = frequency(codes, resolution)
    f = np.where(f.sum(-1, keepdims=True) > 0, f, 1)
    weights = 1 + f * (TOTAL - f.shape[-1]) // f.sum(-1, keepdims=True)
    rest = TOTAL - weights.sum(-1, keepdims=True)
    top = np.argmax(f, axis=-1, keepdims=True)
    np.put_along_axis(weights, top, np.take_along_axis(weights, top, -1) + rest, -1)
    return np.asarray(weights)


def quantize(counts: NDArray[np.float64], resolution: int) -> NDArray[np.int64]:
    """Frequency codes of the tables nearest (in log) to `counts`.

    counts: float64 (..., A), >= 0, of any scale. Returns int64 codes; what is rarer than 2^-19 of the most frequent
    symbol gets code 0.
    """
    top = counts.max(-1, keepdims=True)
    levels = frequency(np.arange(1, max_code(resolution) + 1), resolution).astype(np.float64)
    edges = np.sqrt(levels[1:] * levels[:-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(top > 0, counts / top, 0) * levels[-1]
    codes = 1 + np.searchsorted(edges, relative)
    floor = levels[0] / np.sqrt(2)
    return np.where(relative >= floor, codes, 0)
