"""Writing activation arrays: rows go in as float32 and leave as `.npy`, `.npz`, `.safetensors`, `.pt`, `.parquet` or
a `.zarr` folder.

The values are little-endian and C-ordered, and the file appears only when every row has been written. All formats but
`.pt` are streamed; `.pt` is collected in memory, because torch writes whole tensors.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO

import numpy as np
import numpy.lib.format as npy_format
import numpy.typing as npt

from saecodec.errors import OutputError
from saecodec.formats.array_source import ITEM_BYTES, FloatRows
from saecodec.formats.atomic import atomic_output, check_output_path
from saecodec.formats.atomic_folder import atomic_folder, check_output_folder
from saecodec.formats.optional_library import load_library
from saecodec.formats.parquet_sink import parquet_rows
from saecodec.formats.zarr_arrays import load_zarr
from saecodec.formats.zarr_sink import is_zarr_part, zarr_rows
from saecodec.limits import check_limit
from saecodec.stored_floats import STORED, narrowed

_Store = Callable[[npt.NDArray[Any]], object]
"""Appends rows that have the dtype of the file already (bfloat16 as its bits, uint16)."""

_SAFETENSORS_CODES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
_HOLD_BFLOAT16 = (".safetensors", ".pt", ".pth")
_FOLDER = ".zarr"
_UNPACKED = (".npy", ".npz", ".safetensors", ".pt", ".pth")  # of which the size is known


class ArraySink:
    """Takes the rows of one array in order; made by `create_array`."""

    def __init__(self, path: str, shape: tuple[int, ...], dtype: str, store: _Store) -> None:
        self.path = path
        self.shape = shape
        self.dtype = dtype
        self.rows_written = 0
        self._store = store

    @property
    def n_rows(self) -> int:
        """T, the rows that have to be written: the product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """d, the last dimension."""
        return self.shape[-1]

    def write(self, rows: FloatRows) -> None:
        """Append rows, float32 (n, d).

        Finite values stay finite: one beyond the range of float16 or bfloat16 becomes the largest finite value of its
        sign. Infinities and NaN stay what they are.

        Raises:
            OutputError: the rows have another shape or dtype, or are more than the shape of the array holds.
        """
        if rows.ndim != 2 or rows.shape[1] != self.width or rows.dtype != np.float32:
            raise OutputError(f"{self.path}: got {rows.dtype} {rows.shape}; expected float32 rows (n, {self.width})")
        if self.rows_written + len(rows) > self.n_rows:
            raise OutputError(
                f"{self.path}: got row {self.rows_written + len(rows)}; the shape {self.shape} has {self.n_rows} rows"
            )
        if len(rows):
            self._store(narrowed(rows, self.dtype))
        self.rows_written += len(rows)

    def finish(self) -> None:
        """Raise OutputError unless every row was written; `create_array` calls it."""
        if self.rows_written != self.n_rows:
            raise OutputError(
                f"{self.path}: got {self.rows_written} rows, but the shape {self.shape} has {self.n_rows}"
            )


@contextmanager
def create_array(
    path: str | os.PathLike[str], shape: tuple[int, ...], dtype: str, *, force: bool = False, key: str = "x"
) -> Iterator[ArraySink]:
    """Yield a sink for an array of this shape and dtype; the file appears when the block ends and all rows are in.

    `key` names the array in formats that have names (`.npz`, `.safetensors`, `.parquet`); a `.pt` or `.zarr` holds the
    bare array. A shape (..., d) takes its rows flattened, (d,) takes one.

    Raises:
        OutputError: `path` is refused (see `check_array_output`), the shape has no rows of at least one value, the rows
            do not fit the shape, or writing fails.
        InputError: the library of the format is not installed.
    """
    name = os.fspath(path)
    extension = resolve_output_format(path, dtype)
    shape = tuple(int(n) for n in shape)
    if not shape or shape[-1] == 0 or min(shape) < 0:
        raise OutputError(f"{name}: has shape {shape}; expected rows of at least one value, (..., width)")
    if key == "__metadata__" and extension == ".safetensors":
        raise OutputError(f"{name}: the key {key!r} is reserved in .safetensors; choose another key")
    check_room(path, shape, dtype)
    if extension == _FOLDER:
        output: AbstractContextManager[Any] = atomic_folder(path, force=force, mine=is_zarr_part)
    else:
        output = atomic_output(path, force=force)
    with output as target, _WRITERS[extension](target, shape, dtype, key) as store:
        sink = ArraySink(name, shape, dtype, store)
        yield sink
        sink.finish()


def check_room(path: str | os.PathLike[str], shape: tuple[int, ...], dtype: str) -> None:
    """OutputError when the disk has no room for an array file of a format whose size is known: a few bytes may stand
    for terabytes of rows. Costs nothing."""
    if resolve_output_format(path, dtype) not in _UNPACKED:
        return
    folder, n_bytes = os.path.dirname(os.path.realpath(path)), math.prod(shape) * ITEM_BYTES[dtype]
    free = shutil.disk_usage(folder).free if os.path.isdir(folder) else n_bytes
    if n_bytes > free:
        raise OutputError(
            f"{os.fspath(path)}: cannot be written (No space left on device: it takes {n_bytes:,} bytes, {free:,} are "
            "free)"
        )


def check_array_output(path: str | os.PathLike[str], dtype: str, *, force: bool = False) -> None:
    """Raise unless an array of this dtype can be made under `path`; costs nothing, so call it before long work.

    Raises:
        OutputError: see `resolve_output_format`, `check_output_path` and, for a `.zarr`, `check_output_folder`.
        InputError: the library of the format is not installed.
    """
    extension = resolve_output_format(path, dtype)
    if extension == _FOLDER:
        load_zarr(os.fspath(path))
        check_output_folder(path, force=force, mine=is_zarr_part)
        return
    if extension == ".parquet":
        load_library("pyarrow.parquet", "arrow", os.fspath(path))
    check_output_path(path, force=force)


def resolve_output_format(path: str | os.PathLike[str], dtype: str) -> str:
    """The format (the extension, '.npy' say) that `path` asks for, if it can hold `dtype`.

    Touches no file: it is for refusing before long work begins.

    Raises:
        OutputError: the extension or the dtype is not known, or the format has no such dtype.
    """
    extension = os.path.splitext(os.fspath(path))[1].lower()
    if extension not in _WRITERS:
        raise OutputError(f"{path}: has the extension {extension!r}; expected one of {', '.join(_WRITERS)}")
    if dtype not in ITEM_BYTES:
        raise OutputError(f"{path}: dtype {dtype!r} was asked for; expected one of {', '.join(ITEM_BYTES)}")
    if dtype == "bfloat16" and extension not in _HOLD_BFLOAT16:
        raise OutputError(
            f"{path}: {extension} has no bfloat16; write to {' or '.join(_HOLD_BFLOAT16)}, or choose --dtype float32"
        )
    return extension


def _write_npy_header(file: Any, shape: tuple[int, ...], dtype: str) -> None:
    npy_format.write_array_header_1_0(file, {"descr": STORED[dtype], "fortran_order": False, "shape": shape})


@contextmanager
def _npy(file: BinaryIO, shape: tuple[int, ...], dtype: str, key: str) -> Iterator[_Store]:
    _write_npy_header(file, shape, dtype)
    yield lambda rows: file.write(rows.data)


@contextmanager
def _npz(file: BinaryIO, shape: tuple[int, ...], dtype: str, key: str) -> Iterator[_Store]:
    # zip64 is forced as in np.savez: zipfile cannot know beforehand that a streamed member stays below 2 GiB.
    with zipfile.ZipFile(file, "w") as archive, archive.open(f"{key}.npy", "w", force_zip64=True) as member:
        _write_npy_header(member, shape, dtype)
        yield lambda rows: member.write(rows.data)


@contextmanager
def _safetensors(file: BinaryIO, shape: tuple[int, ...], dtype: str, key: str) -> Iterator[_Store]:
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    entry = {"dtype": _SAFETENSORS_CODES[dtype], "shape": shape, "data_offsets": (0, nbytes)}
    header = json.dumps({key: entry}, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    yield lambda rows: file.write(rows.data)


@contextmanager
def _torch(file: BinaryIO, shape: tuple[int, ...], dtype: str, key: str) -> Iterator[_Store]:
    import torch  # half a second: only for who writes a .pt file

    check_limit("array_bytes", math.prod(shape) * ITEM_BYTES[dtype], "the array, which a .pt file has whole in memory")
    values = np.empty((math.prod(shape[:-1]), shape[-1]), STORED[dtype])
    filled = 0

    def store(rows: npt.NDArray[Any]) -> None:
        nonlocal filled
        values[filled : filled + len(rows)] = rows
        filled += len(rows)

    yield store
    if dtype == "bfloat16":
        tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(values)
    torch.save(tensor.reshape(shape), file)


# Of the output, a file or for `.zarr` the name of a folder; shape, dtype and key.
_WRITERS: dict[str, Callable[[Any, tuple[int, ...], str, str], AbstractContextManager[_Store]]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".pt": _torch,
    ".pth": _torch,
    ".parquet": parquet_rows,
    ".zarr": zarr_rows,
}
EXTENSIONS = tuple(_WRITERS)
"""Endings of the names of array files."""
