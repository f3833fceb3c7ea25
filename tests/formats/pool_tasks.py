"""What `test_chunk_pool.py` has processes do: in a module that they import quickly."""

from __future__ import annotations

import os
import signal
import time

from saecodec.chunk_coder import ChunkCoder
from saecodec.codes import Codes
from saecodec.errors import FormatError


def packed(coder: ChunkCoder, codes: Codes) -> tuple[bytes, int]:
    return coder.latents.pack(codes), os.getpid()


def slow_first(coder: ChunkCoder, i: int) -> int:
    time.sleep(0.2 if i == 0 else 0)
    return i


def fails(coder: ChunkCoder, i: int) -> int:
    if i == 3:
        raise FormatError(f"item {i} is damaged")
    return i


def dies(coder: ChunkCoder, i: int) -> int:
    if i == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


def own_pid(coder: ChunkCoder, i: int) -> int:
    return os.getpid()
