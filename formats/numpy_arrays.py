"""Reading `.npy` and `.npz` files.

Column-major values in an `.npz` are unpacked into a temporary file, because rows cross all of it.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.lib.format as npy_format
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.array_keys import Listed, choose, refuse_key
from saecodec.formats.array_source import ArraySource, float_dtype
from saecodec.formats.array_streams import FortranArray, Opener, StreamedArray, opened_at, opened_member, spooled
from saecodec.formats.zip_members import check_members

_LONGEST_NPY_HEADER = 1 << 16  # NumPy itself refuses headers beyond 10,000 bytes


class NpyHeader(NamedTuple):
    """What an `.npy` says of its array."""

    shape: tuple[int, ...]
    fortran: bool
    stored: np.dtype[Any]
    end: int  # bytes from the start of the file to the first value

    def __str__(self) -> str:
        return f"{self.stored.name} {self.shape}"

    def listed(self) -> Listed:
        return Listed.of(self.stored.name, self.shape)

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


def open_npy(path: str, key: str | None) -> ArraySource:
    """The array of an `.npy` file."""
    refuse_key(path, key)
    with open(path, "rb") as file:
        header = _parse_npy(file.read(_LONGEST_NPY_HEADER), path)
    opener = partial(opened_at, path, header.end)
    return header.source(path, os.path.getsize(path), opener, opener)


def open_npz(path: str, key: str | None) -> ArraySource:
    """One of the arrays of an `.npz` file."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename[:-4]: info for info in archive.infolist() if info.filename.endswith(".npy")}

        def header_of(name: str) -> NpyHeader:
            return npz_header(archive, path, name)

        if key is None and {"data", "indices", "indptr", "shape"} <= members.keys():
            raise InputError(f"{path}: holds a sparse matrix of scipy; feature activations are taken with --latents")
        name = choose(path, list(members), key, lambda name: header_of(name).listed())
        header, info = header_of(name), members[name]
        if header.fortran and len(header.shape) > 1:  # is unpacked into a temporary file
            check_members(archive, path)
    opener = partial(opened_member, path, info.filename, header.end)
    return header.source(path, info.file_size, opener, partial(spooled, opener))


def npz_header(archive: zipfile.ZipFile, path: str, name: str) -> NpyHeader:
    """The header of an array of an `.npz`; InputError when it cannot be read."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise InputError(f"{path}: {name!r} is encrypted or unusually compressed; save it again with np.savez")
    with archive.open(info) as member:
        return _parse_npy(member.read(_LONGEST_NPY_HEADER), f"{path}[{name!r}]")


def map_npy(path: str) -> npt.NDArray[Any]:
    """The array of an `.npy` file of any dtype, memory-mapped; InputError when it cannot be read in full."""
    with open(path, "rb") as file:
        header = _parse_npy(file.read(_LONGEST_NPY_HEADER), path)
    size, needed = os.path.getsize(path), header.end + math.prod(header.shape) * header.stored.itemsize
    if header.stored.hasobject or needed != size:
        raise InputError(f"{path}: has {size} bytes, but {header} needs {needed}: the file is truncated or corrupt")
    return np.memmap(path, header.stored, "r", header.end, header.shape, "F" if header.fortran else "C")


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
