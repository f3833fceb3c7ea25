"""Reading `.safetensors` files.

By hand, not with the safetensors library: that has no NumPy dtype for bfloat16, and maps whole tensors.
"""

from __future__ import annotations

import json
import os
from functools import partial

import numpy as np

from saecodec.errors import InputError
from saecodec.formats.array_keys import Listed, choose
from saecodec.formats.array_source import ArraySource, bad_dtype
from saecodec.formats.array_streams import StreamedArray, opened_at

# NumPy has no bfloat16: its bits are read as unsigned integers.
_DTYPES = {
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "F32": ("float32", "<f4"),
    "F64": ("float64", "<f8"),
}
_LONGEST_HEADER = 1 << 23  # a hundred thousand tensors; JSON takes 40 times its bytes in memory


def open_safetensors(path: str, key: str | None) -> ArraySource:
    """One of the tensors of a `.safetensors` file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        data_start = 8 + length
        data_bytes = os.path.getsize(path) - data_start
        if data_bytes < 0 or length > _LONGEST_HEADER:
            raise InputError(f"{path}: is truncated, or not a safetensors file (its header would have {length} bytes)")
        try:
            tensors = json.loads(file.read(length))
            tensors.pop("__metadata__", None)
            listing = {
                name: Listed.of(_DTYPES.get(tensor["dtype"], (str(tensor["dtype"]),))[0], tuple(tensor["shape"]))
                for name, tensor in tensors.items()
            }
            name = choose(path, list(tensors), key, listing.__getitem__)
            code, shape = str(tensors[name]["dtype"]), tuple(tensors[name]["shape"])
            begin, end = tensors[name]["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                raise ValueError("negative or fractional numbers")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path}: its safetensors header is corrupt ({error!r})") from error
    if code not in _DTYPES:
        raise bad_dtype(path, code)
    dtype, stored = _DTYPES[code]
    opener = partial(opened_at, path, data_start + begin)
    array = StreamedArray(path, shape, dtype, np.dtype(stored), opener)
    if end - begin != array.nbytes or end > data_bytes:
        raise InputError(
            f"{path}: {name!r} {listing[name].text} needs {array.nbytes} bytes, but lies in [{begin}, {end}) "
            f"of {data_bytes}; the file is truncated or corrupt"
        )
    return array
