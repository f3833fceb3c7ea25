"""Chunks coded side by side, in processes: the range coder holds Python's global lock, so threads gain nothing.

Whatever is done to a chunk is integers from integers, so the results do not depend on the number of processes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final, TypeVar

from saecodec.chunk_coder import ChunkCoder
from saecodec.errors import InputError, SaecodecError
from saecodec.formats.processes import Spawning, end_with_parent, holding_interrupts, keep_freed_memory, usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH: Final = {"factorized": 64, "context": 32}
"""Chunks by prior for which it pays to start a process: that takes a quarter of a second, with torch one and a half."""

_coder: ChunkCoder
"""Of a process that codes."""


def jobs_for(jobs: int | None, coder: ChunkCoder, n_chunks: int) -> int:
    """How many processes code `n_chunks` chunks: as many as asked for, if there is something to do for all; None is as
    many as there are cores, if it pays to start them. InputError when it is not a positive number."""
    if jobs is not None and jobs < 1:
        raise InputError(f"{jobs} jobs were asked for, expected 1 or more")
    worth = n_chunks // _WORTH.get(coder.latents.prior.name, 1)
    return max(1, min(usable_cores(), worth) if jobs is None else min(jobs, n_chunks))


def map_chunks(
    function: Callable[[ChunkCoder, Item], Result], coder: ChunkCoder, items: Iterable[Item], jobs: int
) -> Iterator[Result]:
    """function(coder, item) of items that come one by one, in their order, in `jobs` processes.

    With one, in this process, when its turn comes; with more, a few items ahead of who asks, so that making items,
    coding them and using the results all go on at the same time. function: of a module that is not the main one.
    """
    if jobs == 1:
        for item in items:
            yield function(coder, item)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ProcessPoolExecutor(jobs, Spawning(), _begin, (coder.to_bytes(),))
    try:
        for item in items:
            with holding_interrupts():  # the first one starts the processes
                waiting.append(pool.submit(_work, function, item))
            if len(waiting) > 2 * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise SaecodecError(
            "a process that codes chunks has ended, perhaps for want of memory: use fewer (--jobs 1 takes no others)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(coder: bytes) -> None:
    """What a process does first. It ends with the one that started it, however that ends."""
    global _coder
    end_with_parent(lambda: os._exit(1))
    keep_freed_memory()  # a chunk decodes in 15 ms instead of 21
    os.environ["OMP_NUM_THREADS"] = "1"  # a process a core: torch, should it come, takes no more
    _coder = ChunkCoder.from_bytes(coder)


def _work(function: Callable[[ChunkCoder, Any], Any], item: Any) -> Any:
    return function(_coder, item)
