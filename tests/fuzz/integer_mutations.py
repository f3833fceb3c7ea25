"""Mutations of coded integer arrays inside a payload: classes, code steps, centroids, columns, the index.

An array is range-coded and ends where its stream says, so changed bytes are nearly always refused; here the integers
are changed and coded again.
"""

from __future__ import annotations

import random

import numpy as np

from saecodec.integers import pack_ints, unpack_ints
from saecodec.wire import ByteReader

_TRIES = 100  # offsets at which an array is looked for; most are refused at once
_MOST = 1 << 12
_EDGES = (0, 1, 2, 15, 16, 255, 1 << 16, 1 << 20, (1 << 32) - 1, (1 << 40) - 1)


def with_other_integers(data: bytes, rng: random.Random) -> bytes | None:
    """`data` with an array in it changed; None where none was found."""
    for _ in range(_TRIES if data else 0):
        at = rng.randrange(len(data))
        reader = ByteReader(data[at:], "")
        try:
            n = ByteReader(data[at:], "").varint(_MOST)
            values = unpack_ints(reader, n)
        except Exception:
            continue
        if n:
            return data[:at] + pack_ints(_changed(values, rng)) + data[len(data) - reader.left :]
    return None


def _changed(values: np.ndarray, rng: random.Random) -> np.ndarray:
    out = values.copy()
    what, i = rng.randrange(8), rng.randrange(len(out))
    if what == 0:
        out = np.delete(out, i)
    elif what == 1:
        out = np.insert(out, i, out[rng.randrange(len(out))])
    elif what == 2:
        out[:] = rng.choice(_EDGES)
    elif what == 3:
        out[i] = rng.choice(_EDGES)
    elif what == 4:
        out[i] = out[rng.randrange(len(out))]
    elif what == 5:
        out[i] ^= 1 << rng.randrange(12)
    else:
        out[i] += rng.choice((-1, 1))
    return out.clip(0, _EDGES[-1])
