"""Work side by side on the CPU's cores, each piece on one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from threading import Lock, local
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Result = TypeVar("Result")

_MOST_AHEAD = 8  # batches that come one by one, and are held in memory
_thread = local()
_ONE_AT_A_TIME = Lock()  # the number of torch's threads is the process's, not the caller's


def map_batches(function: Callable[[Batch], Result], batches: Sequence[Batch], device: torch.device) -> list[Result]:
    """[function(batch) for batch in batches], on as many cores as torch may use, one batch a core.

    A search is hundreds of small torch operations. Split over cores one by one, each would wait for the slowest core:
    on a machine that does something else too, 10 to 20 times as long. A batch on a core waits for nobody, and its
    result does not depend on how many cores there are.
    """
    if device.type != "cpu":
        return [function(batch) for batch in batches]
    return [done.result() for done in _side_by_side(function, batches)]


def stream_batches(function: Callable[[Batch], Result], batches: Iterable[Batch]) -> Iterator[Result]:
    """function(batch) of batches that come one by one, as many at a time as there are cores, one batch a core.

    What a batch raises is raised when its turn comes. No core is busy while the caller is: batches may be made with all
    of them.
    """
    source = iter(batches)
    while group := list(islice(source, min(torch.get_num_threads(), _MOST_AHEAD))):
        for done in _side_by_side(function, group):
            yield done.result()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """torch works with n threads in the block."""
    with _ONE_AT_A_TIME:
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _side_by_side(function: Callable[[Batch], Result], batches: Sequence[Batch]) -> list[Future[Result]]:
    if not batches:
        return []
    if getattr(_thread, "at_work", False):  # a batch that has batches: its core does them one by one
        return [_done(function, batch) for batch in batches]
    with _ONE_AT_A_TIME:
        cores = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(min(cores, len(batches)), initializer=_begin) as pool:
                jobs = [pool.submit(function, batch) for batch in batches]
                wait(jobs)
                return jobs
        finally:
            torch.set_num_threads(cores)


def _begin() -> None:
    torch.set_num_threads(1)
    _thread.at_work = True


def _done(function: Callable[[Batch], Result], batch: Batch) -> Future[Result]:
    job: Future[Result] = Future()
    try:
        job.set_result(function(batch))
    except BaseException as error:
        job.set_exception(error)
    return job
