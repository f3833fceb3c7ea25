"""Array inputs: each kind of file or folder as an `ArraySource`. `FORMATS` is the list of them.

Memory stays flat: a source holds one batch at a time, never the array; where a format forbids that, its module says so.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from typing import NamedTuple

from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource, FloatRows, MemoryArray
from saecodec.formats.array_streams import reading_file
from saecodec.formats.arrow_arrays import is_dataset, open_arrow, open_dataset, open_parquet
from saecodec.formats.hdf5_arrays import Hdf5Array
from saecodec.formats.numpy_arrays import open_npy, open_npz
from saecodec.formats.safetensors_arrays import open_safetensors
from saecodec.formats.shards import ShardedArray, natural_order
from saecodec.formats.torch_arrays import TorchArray
from saecodec.formats.zarr_arrays import ZarrArray, is_zarr

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "ArrayFormat",
    "ArraySource",
    "FloatRows",
    "MemoryArray",
    "is_array_folder",
    "open_array",
]


class ArrayFormat(NamedTuple):
    """A kind of array input: files with one of `extensions`, or folders that `is_folder` knows by what they hold."""

    name: str
    open: Callable[[str, str | None], ArraySource]  # of path and key
    extensions: tuple[str, ...] = ()
    is_folder: Callable[[str], bool] | None = None


FORMATS = (
    ArrayFormat("npy", open_npy, (".npy",)),
    ArrayFormat("npz", open_npz, (".npz",)),
    ArrayFormat("safetensors", open_safetensors, (".safetensors",)),
    ArrayFormat("torch", TorchArray, (".pt", ".pth")),
    ArrayFormat("Parquet", open_parquet, (".parquet",)),
    ArrayFormat("Arrow", open_arrow, (".arrow", ".feather")),
    ArrayFormat("HDF5", Hdf5Array, (".h5", ".hdf5")),
    ArrayFormat("dataset folder", open_dataset, is_folder=is_dataset),
    ArrayFormat("zarr", ZarrArray, is_folder=is_zarr),
)

EXTENSIONS = tuple(extension for kind in FORMATS for extension in kind.extensions)
"""Endings of the names of files that `open_array` opens."""
_EXPECTED = f"{', '.join(EXTENSIONS)}, a zarr store, a folder written by datasets.save_to_disk, a folder of shards"

# What lies beside shards without being one; our own outputs among them.
_BESIDE_SHARDS = (".json", ".jsonl", ".txt", ".md", ".yaml", ".yml", ".log", ".saec", ".saecodec")


def open_array(path: str | os.PathLike[str], key: str | None = None) -> ArraySource:
    """Open an array: a file or folder of one of `FORMATS`; no pickle code is ever run.

    A folder of files of one kind, or a glob pattern that matches such files, is one array: concatenated along the first
    axis in natural order (`shard_2` before `shard_10`). `key` chooses one of several arrays in a file; it may be left
    out where only one may be activations: a float array of two dimensions or more.

    Raises:
        InputError: the input is missing, truncated, corrupt or of another kind; its library is not installed; `key` is
            needed or is not there (the message lists the arrays); the dtype is not one of `ITEM_BYTES`; the shape is ()
            or (..., 0); shards differ.
    """
    name = os.fspath(path)
    if glob.has_magic(name) and not os.path.exists(name):
        return _open_shards(name, glob.glob(name, recursive=True), key)
    kind = _format_of(name)
    if kind is None and os.path.isdir(name):
        return _open_shards(name, [os.path.join(name, entry) for entry in os.listdir(name)], key)
    if kind is None:
        extension = os.path.splitext(name)[1].lower()
        raise InputError(f"{name}: has the extension {extension!r}; expected one of {_EXPECTED}")
    if not os.path.exists(name):
        raise InputError(f"{name}: no such file; expected an array file")
    with reading_file(name):
        return kind.open(name, key)


def is_array_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is one array by what it holds (a zarr store, say), not a folder of files."""
    return os.path.isdir(path) and _format_of(os.fspath(path)) is not None


def _format_of(path: str) -> ArrayFormat | None:
    """The format of a file by its extension, of a folder by what it holds."""
    if os.path.isdir(path):
        return next((kind for kind in FORMATS if kind.is_folder and kind.is_folder(path)), None)
    extension = os.path.splitext(path)[1].lower()
    return next((kind for kind in FORMATS if extension in kind.extensions), None)


def _open_shards(path: str, candidates: list[str], key: str | None) -> ArraySource:
    """The array files among `candidates` as one array; InputError unless they are of one kind."""
    shards = [name for name in candidates if not _beside_shards(name)]
    shards.sort(key=natural_order)
    kinds: dict[str, ArrayFormat | None] = {}
    examples: dict[str, str] = {}
    for name in shards:
        kind = _format_of(name)
        unknown = "folder" if os.path.isdir(name) else f"unknown ({os.path.splitext(name)[1]!r})"
        label = kind.name if kind else unknown
        kinds[label] = kind
        examples.setdefault(label, name)
    if not shards:
        raise InputError(f"{path}: holds no array files; expected {_EXPECTED}")
    if len(kinds) > 1 or None in kinds.values():
        found = ", ".join(f"{label}: {os.path.basename(name)}" for label, name in sorted(examples.items()))
        raise InputError(
            f"{path}: holds {found}; expected array files of one kind ({', '.join(EXTENSIONS)}): choose them with a "
            "pattern, 'folder/*.npy' say"
        )
    (kind,) = kinds.values()
    assert kind is not None

    def opener(name: str, key: str | None, kind: ArrayFormat = kind) -> ArraySource:
        with reading_file(name):
            return kind.open(name, key)

    return ShardedArray(path, shards, key, opener)


def _beside_shards(path: str) -> bool:
    """Whether a file or folder among shards is none: hidden, a note, or a mark without an extension (`_SUCCESS`)."""
    name = os.path.basename(path)
    if name.startswith("."):
        return True
    extension = os.path.splitext(name)[1].lower()
    return not os.path.isdir(path) and (extension in _BESIDE_SHARDS or (name.startswith("_") and not extension))
