"""Reading array files: each kind of file as an `ArraySource`.

Memory stays flat: a source holds one batch at a time, never the array; where a format forbids that, its module says so.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource, FloatRows, MemoryArray
from saecodec.formats.array_streams import reading_file
from saecodec.formats.numpy_arrays import open_npy, open_npz
from saecodec.formats.safetensors_arrays import open_safetensors
from saecodec.formats.torch_arrays import TorchArray

__all__ = ["ArraySource", "FloatRows", "MemoryArray", "open_array"]

_OPENERS: dict[str, Callable[[str, str | None], ArraySource]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".safetensors": open_safetensors,
    ".pt": TorchArray,
    ".pth": TorchArray,
}


def open_array(path: str | os.PathLike[str], key: str | None = None) -> ArraySource:
    """Open an array file: `.npy`, `.npz`, `.safetensors`, `.pt` or `.pth`; no pickle code is ever run.

    `key` chooses one of several arrays in a file; it may be left out where there is only one.

    Raises:
        InputError: the file is missing, truncated, corrupt or of another kind; `key` is needed or is not there (the
            message lists the arrays); the dtype is not one of `ITEM_BYTES`; the shape is () or (..., 0).
    """
    name = os.fspath(path)
    extension = os.path.splitext(name)[1].lower()
    if extension not in _OPENERS:
        raise InputError(f"{name}: has the extension {extension!r}; expected one of {', '.join(_OPENERS)}")
    if not os.path.isfile(name):
        found = "is not a file" if os.path.exists(name) else "no such file"
        raise InputError(f"{name}: {found}; expected an array file")
    with reading_file(name):
        return _OPENERS[extension](name, key)
