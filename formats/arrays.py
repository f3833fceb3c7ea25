"""Reading array files: `.npy`, `.npz`, `.safetensors` and `.pt` as an `ArraySource`.

Memory stays flat: a source holds one batch at a time, never the array. Two exceptions: a `.pt` from before torch 1.6 is
loaded whole, and column-major values in an `.npz` are unpacked into a temporary file, because rows cross all of it.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.lib.format as npy_format
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.array_source import (
    ITEM_BYTES,
    ArraySource,
    FloatRows,
    MemoryArray,
    bad_dtype,
    float_dtype,
    rows_of,
    to_float32,
)
from saecodec.formats.array_streams import (
    FortranArray,
    Opener,
    StreamedArray,
    opened_at,
    opened_member,
    reading_file,
    spooled,
)

if TYPE_CHECKING:
    import torch

__all__ = ["ArraySource", "FloatRows", "MemoryArray", "open_array"]

# NumPy has no bfloat16: its bits are read as unsigned integers.
_SAFETENSORS_DTYPES = {
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "F32": ("float32", "<f4"),
    "F64": ("float64", "<f8"),
}
_LONGEST_NPY_HEADER = 1 << 16  # NumPy itself refuses headers beyond 10,000 bytes
_LONGEST_SAFETENSORS_HEADER = 100_000_000  # the limit of the safetensors library
_LISTED = 20  # names in a message
_BYTES_PER_MAP = 1 << 28  # pages that were read count as resident until they are unmapped


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


class _TorchArray(ArraySource):
    """A tensor of a `.pt` file, memory-mapped where the file allows it."""

    def __init__(self, path: str, key: str | None) -> None:
        array, dtype, mapped = _load_torch(path, key)
        super().__init__(path, array.shape, dtype)
        self._key = key
        self._loaded = None if mapped else array

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[FloatRows]:
        array, seen = self._loaded, 0
        for start, stop in spans:
            if array is None or (self._loaded is None and seen >= _BYTES_PER_MAP):
                array, seen = _load_torch(self.path, self._key)[0], 0
            yield to_float32(rows_of(array, start, stop))
            seen += (stop - start) * self.width * array.itemsize


class NpyHeader(NamedTuple):
    """What an `.npy` says of its array."""

    shape: tuple[int, ...]
    fortran: bool
    stored: np.dtype[Any]
    end: int  # bytes from the start of the file to the first value

    def __str__(self) -> str:
        return f"{self.stored.name} {self.shape}"

    def source(self, where: str, size: int, opener: Opener, mappable: Opener) -> ArraySource:
        """The array of `size` bytes with this header; raises InputError unless it can be read in full."""
        kind = FortranArray if self.fortran and len(self.shape) > 1 else StreamedArray
        used = mappable if kind is FortranArray else opener
        array = kind(where, self.shape, float_dtype(self.stored, where), self.stored, used)
        if size != self.end + array.nbytes:
            raise InputError(
                f"{where}: has {size} bytes, but {self} needs {self.end + array.nbytes}; "
                "the file is truncated, or holds more than one array"
            )
        return array


def _open_npy(path: str, key: str | None) -> ArraySource:
    _refuse_key(path, key)
    with open(path, "rb") as file:
        header = _parse_npy(file.read(_LONGEST_NPY_HEADER), path)
    opener = partial(opened_at, path, header.end)
    return header.source(path, os.path.getsize(path), opener, opener)


def _open_npz(path: str, key: str | None) -> ArraySource:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}

        def header_of(name: str) -> NpyHeader:
            return npz_header(archive, path, name)

        name = _choose(path, list(members), key, lambda name: str(header_of(name)))
        header, info = header_of(name), members[name]
    opener = partial(opened_member, path, info.filename, header.end)
    return header.source(path, info.file_size, opener, partial(spooled, opener))


def npz_header(archive: zipfile.ZipFile, path: str, name: str) -> NpyHeader:
    """The header of an array of an `.npz`; InputError when it cannot be read."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise InputError(f"{path}: {name!r} is encrypted or unusually compressed; save it again with np.savez")
    with archive.open(info) as member:
        return _parse_npy(member.read(_LONGEST_NPY_HEADER), f"{path}[{name!r}]")


def _open_safetensors(path: str, key: str | None) -> ArraySource:
    # Read here, not with the safetensors library: that has no NumPy dtype for bfloat16, and maps whole tensors.
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        data_start = 8 + length
        data_bytes = os.path.getsize(path) - data_start
        if data_bytes < 0 or length > _LONGEST_SAFETENSORS_HEADER:
            raise InputError(f"{path}: is truncated, or not a safetensors file (its header would have {length} bytes)")
        try:
            tensors = json.loads(file.read(length))
            tensors.pop("__metadata__", None)
            listing = {name: f"{tensor['dtype']} {tuple(tensor['shape'])}" for name, tensor in tensors.items()}
            name = _choose(path, list(tensors), key, listing.__getitem__)
            code, shape = str(tensors[name]["dtype"]), tuple(tensors[name]["shape"])
            begin, end = tensors[name]["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                raise ValueError("negative or fractional numbers")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path}: its safetensors header is corrupt ({error!r})") from error
    if code not in _SAFETENSORS_DTYPES:
        raise bad_dtype(path, code)
    dtype, stored = _SAFETENSORS_DTYPES[code]
    opener = partial(opened_at, path, data_start + begin)
    array = StreamedArray(path, shape, dtype, np.dtype(stored), opener)
    if end - begin != array.nbytes or end > data_bytes:
        raise InputError(
            f"{path}: {name!r} {listing[name]} needs {array.nbytes} bytes, but has [{begin}, {end}) of {data_bytes}; "
            "the file is truncated or corrupt"
        )
    return array


def load_torch_tensor(path: str, key: str | None) -> tuple[torch.Tensor, bool]:
    """The tensor of a `.pt` file, alone or in a dict, of any dtype and layout, and whether it is mapped."""
    import torch  # half a second: only for who has a .pt file

    mapped = True
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError, OSError):  # not a zip (before torch 1.6), or a file system without maps
            mapped = False
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # corrupt files make the unpickler raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be loaded as tensors only: {reason}") from error
    if isinstance(loaded, dict):
        tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
        named = [name for name in tensors if isinstance(name, str)]
        loaded = tensors[_choose(path, named, key, lambda n: f"{tensors[n].dtype} {tuple(tensors[n].shape)}")]
    else:
        _refuse_key(path, key)
    if not isinstance(loaded, torch.Tensor):
        raise InputError(f"{path}: holds a {type(loaded).__name__}; expected a tensor or a dict of tensors")
    return loaded, mapped


def _load_torch(path: str, key: str | None) -> tuple[npt.NDArray[Any], str, bool]:
    """A tensor of a `.pt` file as an array (bfloat16 as its bits, uint16), its dtype, and whether it is mapped."""
    import torch

    loaded, mapped = load_torch_tensor(path, key)
    dtype = str(loaded.dtype).removeprefix("torch.")
    if dtype not in ITEM_BYTES:
        raise bad_dtype(path, dtype)
    if loaded.layout != torch.strided or loaded.is_nested or loaded.device.type != "cpu":
        raise InputError(
            f"{path}: holds a sparse, nested or meta tensor; save a dense one (--latents takes sparse ones)"
        )
    dense = loaded.detach().resolve_neg()
    if dtype == "bfloat16":
        return dense.view(torch.int16).numpy().view(np.uint16), dtype, mapped
    return dense.numpy(), dtype, mapped


_OPENERS: dict[str, Callable[[str, str | None], ArraySource]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
    ".pt": _TorchArray,
    ".pth": _TorchArray,
}


def _parse_npy(start: bytes, where: str) -> NpyHeader:
    """The header of an `.npy` file from its first bytes."""
    stream = io.BytesIO(start)
    try:
        version = npy_format.read_magic(stream)
        # Version 3.0 differs from 2.0 in the encoding of field names only, and arrays with fields are refused anyway.
        parse = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran, stored = parse(stream)
        if min(shape, default=0) < 0:
            raise ValueError(f"negative dimension in {shape}")
    except Exception as error:  # it is parsed as a Python literal: bad ones raise TypeError, RecursionError, TokenError
        raise InputError(f"{where}: is truncated, corrupt or not an .npy file ({error})") from error
    return NpyHeader(shape, fortran, stored, stream.tell())


def _choose(path: str, names: Sequence[str], key: str | None, describe: Callable[[str], str]) -> str:
    """The name that `key` means; `describe` gives dtype and shape of a name, for the message."""
    if key is None and len(names) == 1:
        return names[0]
    if key is not None and key in names:
        return key
    listing = ", ".join(f"{name!r} {describe(name)}" for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    if not names:
        raise InputError(f"{path}: holds no arrays; expected at least one")
    if key is None:
        raise InputError(f"{path}: holds {len(names)} arrays; choose one with key (--key): {listing}{more}")
    raise InputError(f"{path}: holds no array named {key!r}; expected one of: {listing}{more}")


def _refuse_key(path: str, key: str | None) -> None:
    if key is not None:
        raise InputError(f"{path}: holds one array without a name, so the key {key!r} fits nothing; leave it out")
