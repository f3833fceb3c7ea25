"""The bucket code: a non-negative integer as a bucket (coded under a table) and an offset in it (coded uniformly).

Values below 16 are buckets of their own; above, each octave [2^e, 2^(e+1)) is cut into 8 equal buckets, so a bucket
spans at most 1/8 of its value and a uniform offset inside it costs next to nothing. The 304 buckets cover
[0, 2^40): the tail of a table is its escape, an Exp-Golomb code whose prefix is bounded and modelled.
Normative: docs/format.md, "Bucket code".
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

DIRECT: Final = 16  # values coded without an offset
PER_OCTAVE: Final = 8
MAX_BITS: Final = 40
N_BUCKETS: Final = DIRECT + (MAX_BITS - 4) * PER_OCTAVE

_index = np.arange(N_BUCKETS, dtype=np.int64)
_octave = np.maximum((_index - DIRECT) // PER_OCTAVE, 0)
OFFSET_BITS: Final[NDArray[np.int64]] = np.where(_index < DIRECT, 0, _octave + 1)
"""Bits of the offset of each bucket, int64 (304,)."""
BASE: Final[NDArray[np.int64]] = np.where(
    _index < DIRECT, _index, (PER_OCTAVE + (_index - DIRECT) % PER_OCTAVE) << (_octave + 1)
)
"""Smallest value of each bucket, int64 (304,)."""


_TABLE_SIZE: Final = 1 << 14
_spans = np.diff(np.append(BASE, 1 << MAX_BITS)).clip(max=_TABLE_SIZE)
_TABLE: Final = np.repeat(_index, _spans)[:_TABLE_SIZE]


def bucket_of(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bucket of each value, int64.

    values: int64 (N,), 0 <= value < 2^40.

    >>> bucket_of(np.array([0, 15, 16, 17, 18, 31, 32])).tolist()
    [0, 15, 16, 16, 17, 23, 24]
    """
    out = _TABLE.take(values, mode="clip")
    big = np.flatnonzero(values >= _TABLE_SIZE)
    if big.size:
        v = values[big]
        exponent = np.frexp(v.astype(np.float64))[1].astype(np.int64) - 1  # exact below 2^53
        out[big] = DIRECT + (exponent - 4) * PER_OCTAVE + ((v >> (exponent - 3)) & (PER_OCTAVE - 1))
    return np.asarray(out)
