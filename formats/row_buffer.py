"""Rows that wait until their chunk is complete."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.sequences import Chunking

Rows = NDArray[np.float32]
Ids = NDArray[np.integer[Any]]


class RowBuffer:
    """Rows (n, d) and, where they have them, sequence ids (n,), cut into the chunks that `Chunking.of` makes of all of
    them: so it holds at most a chunk's rows, and with ids one more, which shows whether a sequence goes on."""

    def __init__(self, chunk_rows: int) -> None:
        Chunking.of(0, chunk_rows)  # checks it
        self.chunk_rows, self.n_rows = chunk_rows, 0
        self._rows: list[Rows] = []
        self._ids: list[Ids] = []

    def put(self, rows: Rows, ids: Ids | None) -> int:
        """Copy the first of `rows`, as many as there is room for; returns their number."""
        n = min(self.chunk_rows + (ids is not None) - self.n_rows, len(rows))
        self._rows.append(np.array(rows[:n]))
        if ids is not None:
            self._ids.append(np.array(ids[:n], np.int64))
        self.n_rows += n
        return n

    def complete(self) -> int:
        """Rows of the chunk that no more rows can change; 0 when there is none yet."""
        if self.n_rows < self.chunk_rows + bool(self._ids):
            return 0
        return self.next()

    def next(self) -> int:
        """Rows of the next chunk, if no more came. There is one row at least."""
        return Chunking.of(self.n_rows, self.chunk_rows, self._held()[1]).sizes[0]

    def first(self, n: int) -> tuple[Rows, Chunking]:
        """The first n rows as a chunk, which stay until they are dropped."""
        rows, ids = self._held()
        return rows[:n], Chunking(self.chunk_rows, (n,), None if ids is None else ids[:n])

    def drop(self, n: int) -> None:
        """Forget the first n rows."""
        rows, ids = self._held()
        self._rows = [rows[n:].copy()] if self.n_rows > n else []
        self._ids = [ids[n:]] if ids is not None and self.n_rows > n else []
        self.n_rows -= n

    def _held(self) -> tuple[Rows, Ids | None]:
        self._rows = [np.concatenate(self._rows)]
        self._ids = [np.concatenate(self._ids)] if self._ids else []
        return self._rows[0], self._ids[0] if self._ids else None
