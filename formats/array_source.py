"""The array source: rows of activations as float32 batches, whichever file or memory they lie in.

Every source flattens its leading dimensions: an array (..., d) is `T` rows of width `d`, and (d,) is one row.
"""

from __future__ import annotations

import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saecodec.errors import InputError

FloatRows = npt.NDArray[np.float32]
"""A batch (n, d) of rows."""

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
"""The dtypes that activations may have, and the bytes of one value."""


class ArraySource(ABC):
    """An array of activations; `path` names it in messages, `shape` and `dtype` are as stored. row_shape: of a row.

    Raises:
        InputError: the shape has no dimensions, or its last one is zero.
    """

    def __init__(self, path: str, shape: tuple[int, ...], dtype: str) -> None:
        if not shape or shape[-1] == 0:
            raise InputError(f"{path}: has shape {shape}; expected rows of at least one value, (..., width)")
        self.path = path
        self.files: tuple[str, ...] = (path,)  # or folders, that hold the values
        self.shape = shape
        self.dtype = dtype
        self.row_shape: tuple[int, ...] = shape[-1:]

    @property
    def n_rows(self) -> int:
        """T, the product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """d, the last dimension."""
        return self.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the values, uncompressed."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    def lies_in(self, path: str | os.PathLike[str]) -> bool:
        """Whether a file, which need not exist, is one of those that hold the values, or lies in their folder."""
        if not os.path.exists(path):
            return False
        folders = Path(os.path.realpath(path)).parents
        return any(
            os.path.exists(file) and (os.path.samefile(path, file) or Path(os.path.realpath(file)) in folders)
            for file in self.files
        )

    def batches(self, rows: int | Sequence[int]) -> Iterator[FloatRows]:
        """Yield all rows in order as C-contiguous float32 (n, d), at most `rows` at a time, or so many as it lists.

        Every call starts again. A batch is the caller's own to change. Values of float64 beyond the range of float32
        become infinite.

        Raises:
            InputError: `rows` is not positive, or does not list all rows; while iterating: the file is truncated or
                corrupt.
        """
        if isinstance(rows, int):
            if rows < 1:
                raise InputError(f"{self.path}: batches of {rows} rows were asked for; expected at least 1")
            edges = [*range(0, self.n_rows, rows), self.n_rows]
        else:
            edges = list(accumulate(rows, initial=0))
            if edges[-1] != self.n_rows:
                raise InputError(f"{self.path}: batches of {edges[-1]} rows were asked for, it has {self.n_rows}")
        return self._read(pairwise(edges))

    @abstractmethod
    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[FloatRows]:
        """Yield the rows [start, stop) of each span; the spans follow each other."""


class MemoryArray(ArraySource):
    """An array that is in memory already, of any layout and byte order; `path` is what messages call it."""

    def __init__(self, array: npt.NDArray[Any], path: str = "<memory>") -> None:
        super().__init__(path, array.shape, float_dtype(array.dtype, path))
        self._array = array

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[FloatRows]:
        for start, stop in spans:
            yield to_float32(rows_of(self._array, start, stop))


class JoinedHeads(ArraySource):
    """An array (..., heads, d_head) as rows of heads x d_head values (SAELens' `hook_z`)."""

    def __init__(self, source: ArraySource) -> None:
        super().__init__(source.path, (*source.shape[:-2], math.prod(source.shape[-2:])), source.dtype)
        self._source, self.row_shape = source, source.shape[-2:]

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[FloatRows]:
        heads = self.row_shape[0]
        for part in self._source._read((start * heads, stop * heads) for start, stop in spans):
            yield part.reshape(-1, self.width)


def rows_for(source: ArraySource, width: int, row_dims: int) -> ArraySource:
    """An array as rows of `width` values: itself, or with `row_dims` 2 its heads joined, where they make such rows."""
    joined = row_dims == 2 and len(source.shape) > 1 and source.width != width
    return JoinedHeads(source) if joined and math.prod(source.shape[-2:]) == width else source


def rows_of(array: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[Any]:
    """Rows [start, stop) of an array (..., d), as (stop - start, d); copies those at most, whatever the strides."""
    array = np.asarray(array)  # a plain view of a memmap
    if array.ndim <= 2 or array.flags.c_contiguous:
        return array.reshape(-1, array.shape[-1])[start:stop]
    rows: npt.NDArray[Any] = array[np.unravel_index(np.arange(start, stop), array.shape[:-1])]
    return rows


def to_float32(block: npt.NDArray[Any], *, copy: bool = True) -> FloatRows:
    """Values as C-contiguous float32; uint16 means the bits of bfloat16, which are the upper half of a float32."""
    if block.dtype.kind == "u":
        bits = block.astype(np.uint32, order="C")
        bits <<= np.uint32(16)
        return bits.view(np.float32)
    if block.dtype == np.float16 and "torch" in sys.modules:
        import torch  # numpy converts halves value by value, torch ten times faster; who codes rows has loaded it

        rows: FloatRows = torch.from_numpy(np.require(block, "=f2", ["C", "W"])).to(torch.float32).numpy()
        return rows
    with np.errstate(over="ignore", invalid="ignore"):
        return block.astype(np.float32, order="C", copy=copy)


def float_dtype(dtype: np.dtype[Any], where: str) -> str:
    """The name of a dtype, 'float16' say, in any byte order; raises InputError unless it is in `ITEM_BYTES`."""
    if dtype.name not in ITEM_BYTES:
        raise bad_dtype(where, "object (a pickle, which is never loaded)" if dtype.hasobject else str(dtype))
    return str(dtype.name)


def bad_dtype(where: str, found: str) -> InputError:
    """The error for an array at `where` with a dtype that is not in `ITEM_BYTES`."""
    return InputError(f"{where}: has dtype {found}; expected one of {', '.join(ITEM_BYTES)}: convert the array first")
