"""The frames of a `.saec` file, one behind the other, and the index of its chunks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from saecodec.formats.frame_file import TRAILER
from saecodec.formats.index import Index
from saecodec.frames import frame


class FrameWriter:
    """Writes at the end of `file`, which is `at`, and keeps where the chunks are. index: of those that are there.

    Whoever knows better than the header which bytes come next writes through this: a new file, an appended one, and
    those that are made of the chunks of others.
    """

    def __init__(self, file: BinaryIO | io.RawIOBase, at: int = 0, index: Index | None = None) -> None:
        self._file, self.at = file, at
        self._rows: list[int] = [] if index is None else index.rows.tolist()
        self._offsets: list[int] = [] if index is None else index.offsets.tolist()
        self._lengths: list[int] = [] if index is None else index.lengths.tolist()
        self.n_rows = sum(self._rows)

    @property
    def n_chunks(self) -> int:
        """Chunks in the file."""
        return len(self._rows)

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes that are no chunk."""
        self._file.write(data)
        self.at += len(data)

    def add(self, n_rows: int, parts: Sequence[bytes]) -> None:
        """Write a chunk, the frames `CHNK` and perhaps `RCHK`, and hand it to the system: what a process has handed on
        outlives it."""
        for data in parts:
            self._file.write(data)
        self._file.flush()
        self._rows.append(n_rows)
        self._offsets.append(self.at)
        self._lengths.append(len(parts[0]))
        self.n_rows += n_rows
        self.at += sum(len(data) for data in parts)

    def finish(self, leading: tuple[int, ...]) -> None:
        """Write the index and the trailer."""
        columns = (np.array(values, np.int64) for values in (self._rows, self._offsets, self._lengths))
        at = self.at
        self.write(frame("INDX", Index(leading, *columns).to_bytes()) + frame("TAIL", TRAILER.pack(at)))
        self._file.flush()
