"""Identities: sha256 over canonical, uncompressed content, which outlives re-compression and other file formats."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_SLICE: Final = 1 << 20


def content_hash(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256, in hex, of facts and arrays (docs/format.md, "Identity").

    The text is compact JSON of `facts` with sorted keys, plus the arrays' shapes under "shapes"; then come the arrays
    in the order of their names, floats as little-endian float32 (-0.0 as 0.0), integers as little-endian int64.
    """
    shapes = {name: list(arrays[name].shape) for name in sorted(arrays)}
    text = json.dumps({**facts, "shapes": shapes}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        if np.issubdtype(array.dtype, np.floating):
            digest.update(np.ascontiguousarray(array + np.float32(0), dtype="<f4").data)
        else:
            flat = array.reshape(-1)
            for i in range(0, flat.size, _SLICE):  # int8 weights are many: not all at eight times their size
                digest.update(np.ascontiguousarray(flat[i : i + _SLICE], dtype="<i8").data)
    return digest.hexdigest()
