"""Work side by side on the CPU's cores, each piece on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Result = TypeVar("Result")

_ONE_AT_A_TIME = Lock()  # the number of torch's threads is the process's, not the caller's


def map_batches(function: Callable[[Batch], Result], batches: Sequence[Batch], device: torch.device) -> list[Result]:
    """[function(batch) for batch in batches], on as many cores as torch may use, one batch a core.

    A search is hundreds of small torch operations. Split over cores one by one, each would wait for the slowest core:
    on a machine that does something else too, 10 to 20 times as long. A batch on a core waits for nobody, and its
    result does not depend on how many cores there are.
    """
    if device.type != "cpu" or not batches:
        return [function(batch) for batch in batches]
    with _ONE_AT_A_TIME:
        cores = torch.get_num_threads()
        workers = min(cores, len(batches))
        try:
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(function, batches))
        finally:
            torch.set_num_threads(cores)


@contextmanager
def second_core() -> Iterator[Executor]:
    """A thread to hand work to, while torch keeps to one core in it and in the caller's: see `map_batches`."""
    cores = torch.get_num_threads()  # of this thread
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)
