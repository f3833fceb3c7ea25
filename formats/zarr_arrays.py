"""Reading zarr stores in folders, of version 2 and 3 (zarr-python 3, an extra).

A chunk that a store lacks reads as its fill value: so zarr defines it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from saecodec.errors import InputError, UnsupportedError
from saecodec.formats.array_blocks import BlockArray, block_slices
from saecodec.formats.array_keys import Listed, choose, refuse_key
from saecodec.formats.array_source import float_dtype
from saecodec.formats.optional_library import library_errors, load_library

_MARKS = ("zarr.json", ".zarray", ".zgroup")
_LARGEST_CHUNK = 1 << 32  # bytes, HDF5's limit too: a chunk is unpacked in one piece

# A codec that is not listed here is refused: numcodecs has one that unpickles, which may run any code.
_CODECS = {
    *("adler32", "astype", "bitround", "blosc", "bytes", "bz2", "crc32", "crc32c", "delta", "fixedscaleoffset"),
    *("fletcher32", "gzip", "jenkins_lookup3", "lz4", "lzma", "packbits", "pcodec", "quantize", "sharding_indexed"),
    *("shuffle", "transpose", "zfpy", "zlib", "zstd"),
}


def is_zarr(folder: str) -> bool:
    """Whether a folder is a zarr store: an array, or a group of arrays."""
    return any(os.path.isfile(os.path.join(folder, mark)) for mark in _MARKS)


def load_zarr(path: str) -> Any:
    """The library, for `path`; InputError without it, UnsupportedError where it is too old."""
    zarr = load_library("zarr", "zarr", path)
    if int(zarr.__version__.split(".")[0]) < 3:
        raise UnsupportedError(
            f"{path}: needs zarr 3 (Python 3.11 or later), and zarr {zarr.__version__} is installed: "
            "pip install 'saecodec[zarr]'"
        )
    return zarr


class ZarrArray(BlockArray):
    """An array of a zarr store, read a few chunks at a time; `key` is its path in a group."""

    def __init__(self, path: str, key: str | None) -> None:
        self._zarr = load_zarr(path)
        self._key: str | None = None
        with library_errors(path):
            node = self._open(path)
            if isinstance(node, self._zarr.Array):
                refuse_key(path, key)
            else:
                members = dict(node.members(max_depth=None))
                arrays = {name: item for name, item in members.items() if isinstance(item, self._zarr.Array)}
                wanted = key.strip("/") if key else key
                self._key = choose(path, list(arrays), wanted, lambda name: _listed(arrays[name]))
                node = arrays[self._key]
            where = path if self._key is None else f"{path}[{self._key!r}]"
            super().__init__(path, tuple(node.shape), float_dtype(np.dtype(node.dtype), where))
            _check_codecs(node, where)

    def _open(self, path: str) -> Any:
        store = self._zarr.storage.LocalStore(path, read_only=True)
        # Not by the consolidated metadata: they may name what is not there.
        return self._zarr.open(store, mode="r", use_consolidated=False)

    def _blocks(self) -> Iterator[npt.NDArray[Any]]:
        node = self._open(self.path)
        array = node if self._key is None else node[self._key]
        if tuple(array.shape) != self.shape:
            raise InputError(f"{self.path}: changed from {self.shape} to {array.shape} since it was opened")
        for index in block_slices(self.shape, array.chunks, array.dtype.itemsize):
            yield np.asarray(array[index]).reshape(-1, self.width)


def _listed(array: Any) -> Listed:
    return Listed.of(np.dtype(array.dtype).name, tuple(array.shape))


def _check_codecs(array: Any, where: str) -> None:
    """InputError unless every codec is known to do no more than to unpack, and a chunk fits into memory."""
    metadata = array.metadata.to_dict()
    used = set(_codec_names([metadata.get(part) for part in ("codecs", "filters", "compressor")]))
    unknown = sorted(used - _CODECS)
    if unknown:
        raise InputError(f"{where}: uses the codecs {unknown}; expected some of: {', '.join(sorted(_CODECS))}")
    chunk_bytes = math.prod(array.chunks) * array.dtype.itemsize
    if chunk_bytes > _LARGEST_CHUNK:
        raise InputError(f"{where}: has chunks of {array.chunks}, {chunk_bytes:,} bytes each; write it in smaller ones")


def _codec_names(part: Any) -> Iterator[str]:
    """The names of codecs in metadata, those inside a sharding codec too."""
    if isinstance(part, list | tuple):
        for item in part:
            yield from _codec_names(item)
    elif isinstance(part, dict):
        name = part.get("name", part.get("id"))
        if name is not None:
            yield str(name).removeprefix("numcodecs.")
        inside = part.get("configuration")
        if isinstance(inside, dict):
            yield from _codec_names([inside.get(part) for part in ("codecs", "index_codecs")])
    elif part is not None:
        yield repr(part)
