"""The index of a `.saec` file: the shape of the array, and where its chunks are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import MAX_CHUNK_ROWS
from saecodec.errors import FormatError
from saecodec.frames import HEAD_BYTES
from saecodec.integers import pack_ints, unpack_ints
from saecodec.wire import ByteReader, varints

MAX_DIMENSIONS: Final = 64  # as numpy 2
_MAX_ROWS: Final = 1 << 48


def leading_of(n_rows: int, inner: tuple[int, ...]) -> tuple[int, ...]:
    """Leading dimensions of rows: (N, *inner) where they are whole blocks of `inner`, else (T,).

    >>> leading_of(12, (2, 3)), leading_of(13, (2, 3))
    ((2, 2, 3), (13,))
    """
    block = math.prod(inner)
    return (n_rows // block, *inner) if block and n_rows % block == 0 else (n_rows,)


@dataclass(frozen=True, eq=False)
class Index:
    """The leading dimensions of the array, and where the chunk frames are: rows, offset in the file and length (head
    included) of each, int64 (n,)."""

    leading: tuple[int, ...]
    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def to_bytes(self) -> bytes:
        """Leading dimensions, number of chunks, rows, lengths, and each frame's distance from the end of the last."""
        ends = np.concatenate([[0], (self.offsets + self.lengths)[:-1]])
        columns = (self.rows, self.lengths, self.offsets - ends[: len(self.offsets)])
        head = varints([len(self.leading), *self.leading, len(self.rows)])
        return head + b"".join(pack_ints(column) for column in columns)

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, file_size: int, what: str) -> Index:
        """Parse; FormatError unless the frames lie one after the other inside the file."""
        reader = ByteReader(data, what)
        leading = tuple(reader.varints(reader.varint(MAX_DIMENSIONS - 1), _MAX_ROWS))
        n = reader.varint(file_size // HEAD_BYTES)
        rows = unpack_ints(reader, n, below=MAX_CHUNK_ROWS + 1)
        lengths, distances = (unpack_ints(reader, n) for _ in range(2))
        reader.end()
        # The product without zeros bounds the shape of an empty array too: numpy cannot hold larger ones.
        if math.prod(leading) != int(rows.sum()) or math.prod(n for n in leading if n) >= _MAX_ROWS:
            raise FormatError(f"{what}: leading dimensions {leading} and {rows.sum()} rows contradict each other")
        ends = np.cumsum(lengths + distances)
        if n and (lengths.min() < HEAD_BYTES or float(np.sum(lengths + distances, dtype=np.float64)) > file_size):
            raise FormatError(f"{what}: the index points outside the file")
        return cls(leading, rows, ends - lengths, lengths)

    @property
    def filled_rows(self) -> list[int]:
        """Rows of each chunk that has any."""
        return list(self.rows[self.rows > 0].tolist())

    @cached_property
    def first_row(self) -> NDArray[np.int64]:
        """First row of each chunk, and the number of rows: int64 (n + 1,)."""
        return np.concatenate([[0], np.cumsum(self.rows)])
