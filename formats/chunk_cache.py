"""Decoded chunks that are kept: the least recently used go first."""

from __future__ import annotations

import os
from collections import OrderedDict
from threading import Lock

from saecodec.layers import Layers


class ChunkCache:
    """Decoded chunks by number, of at most `limit` bytes together. For several threads; a forked process begins with an
    empty one, since a thread that the fork left behind may have been about to change it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reset()

    def _reset(self) -> None:
        self._lock, self._used = Lock(), 0
        self._held: OrderedDict[int, Layers] = OrderedDict()
        self._process = os.getpid()  # last: other threads go by it

    def get(self, i: int) -> Layers | None:
        """Chunk i, if it is there."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            if i in self._held:
                self._held.move_to_end(i)
            return self._held.get(i)

    def put(self, i: int, layers: Layers) -> None:
        """Keep chunk i, unless it is larger than the limit."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            if i in self._held or layers.nbytes > self._limit:
                return
            self._held[i] = layers
            self._used += layers.nbytes
            while self._used > self._limit:
                _, gone = self._held.popitem(last=False)
                self._used -= gone.nbytes
