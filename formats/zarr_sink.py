"""Writing rows as a zarr v3 array in a folder (zarr-python 3, an extra)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import OutputError
from saecodec.formats.array_index import MOST_DIMENSIONS
from saecodec.formats.zarr_arrays import load_zarr
from saecodec.stored_floats import STORED

_CHUNK_ROWS: Final = 4096
_CHUNK_BYTES: Final = 1 << 26
_PART: Final = re.compile(r"zarr\.json|c(\.\d+)*")


def is_zarr_part(name: str) -> bool:
    """Whether a file has the name of one that `zarr_rows` writes."""
    return _PART.fullmatch(name) is not None


@contextmanager
def zarr_rows(folder: str, shape: tuple[int, ...], dtype: str, key: str) -> Iterator[Callable[[NDArray[Any]], object]]:
    """Yield what appends rows (n, d), flattened, to an array of this shape in an empty folder; memory holds a chunk.

    Chunks have about 4,096 rows, at most 64 MiB, and lie in the folder as files: no chunk is left out, so a copy that
    lacks one can be told.
    """
    if len(shape) > MOST_DIMENSIONS:
        raise OutputError(
            f"{folder}: an array of {len(shape)} dimensions; zarr has at most {MOST_DIMENSIONS}: take another format"
        )
    zarr, chunks = load_zarr(folder), _chunk_shape(shape, np.dtype(STORED[dtype]).itemsize)
    array = zarr.create_array(
        zarr.storage.LocalStore(folder),
        shape=shape,
        chunks=chunks,
        dtype=STORED[dtype],
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )
    blocks = _blocks(shape, chunks)
    held = np.empty((math.prod(chunks[:-1]), shape[-1]), STORED[dtype])
    filled, where = 0, next(blocks, ())

    def store(rows: NDArray[Any]) -> None:
        nonlocal filled, where
        while len(rows):
            size = tuple(part.stop - part.start for part in where)
            n_rows = math.prod(size)
            part, rows = rows[: n_rows - filled], rows[n_rows - filled :]
            held[filled : filled + len(part)] = part
            filled += len(part)
            if filled == n_rows:
                array[where] = held[:n_rows].reshape(*size, shape[-1])
                filled, where = 0, next(blocks, ())

    yield store


def _chunk_shape(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    """Whole inner dimensions as far as they go, a part of the next, one of those outside: rows that follow each other.

    >>> _chunk_shape((10, 500, 384), 4)
    (8, 500, 384)
    """
    left, chunk = min(_CHUNK_ROWS, max(1, _CHUNK_BYTES // (shape[-1] * item_bytes))), [shape[-1]]
    for n in reversed(shape[:-1]):
        chunk.append(max(1, min(n, left)))
        left //= max(n, 1)
    return tuple(reversed(chunk))


def _blocks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Where each chunk lies in the leading dimensions, in the order of rows."""
    cuts = ([slice(i, min(i + c, n)) for i in range(0, n, c)] for n, c in zip(shape[:-1], chunks[:-1], strict=True))
    return itertools.product(*cuts)
