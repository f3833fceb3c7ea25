"""Shards on the cores of this machine: in this process, or in a pool of processes, of which some may die.

Every shard is coded whole on one core, so its bytes do not depend on how many there are.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Final

import torch

from saecodec.formats.folder_manifest import Line
from saecodec.formats.folder_plan import Shard
from saecodec.formats.folder_work import Task, Work, failure, loading
from saecodec.formats.processes import Spawning, end_with_parent, holding_interrupts, usable_cores
from saecodec.sae import available

ATTEMPTS: Final = 3
"""How often a shard is begun whose process dies."""
_GRACE: Final = 10.0  # seconds, for a torch operation to end


def default_jobs(device: str) -> int:
    """As many processes as there are cores to use; one where a GPU does the work."""
    if available(device).type != "cpu":
        return 1
    return usable_cores()


def use_one_core(device: str) -> None:
    """Keep torch to one thread where it is the CPU that works."""
    if available(device).type == "cpu":
        torch.set_num_threads(1)


def one_by_one(work: Work, shards: Sequence[Shard], device: str) -> Generator[Line, None, None]:
    """The lines of shards, coded in this process by one thread of torch."""
    threads = torch.get_num_threads()
    try:
        use_one_core(device)
        for shard in shards:
            yield work.attempt(shard)
    finally:
        torch.set_num_threads(threads)


def side_by_side(task: Task, shards: Sequence[Shard], jobs: int) -> Generator[Line, None, None]:
    """The lines of shards as they finish, coded by `jobs` processes.

    When one dies (out of memory, say), the pool is made anew, and what was being coded begins again. Which shard it was
    is not known, so those that were there twice are tried once more alone, and fail if that process dies too.
    """
    deaths: Counter[Shard] = Counter()
    waiting, suspects, idle_deaths = deque(shards), deque[Shard](), 0
    while waiting or suspects:
        batch = waiting or deque([suspects.popleft()])
        at_once, before = min(jobs, len(batch)), len(batch)
        with _pool(task, at_once) as pool:
            lost = yield from _until_a_death(pool, batch, at_once)
        idle_deaths = idle_deaths + 1 if len(batch) == before else 0
        if idle_deaths == ATTEMPTS:  # before any shard began
            for shard in (*batch, *suspects):
                yield failure(shard, f"the processes that code died {ATTEMPTS} times before they began")
            return
        if batch is not waiting:
            suspects.extendleft(batch)  # died before it began
        for shard in lost:
            deaths[shard] += 1
            if deaths[shard] == ATTEMPTS:
                yield failure(shard, f"its process died {ATTEMPTS} times (out of memory?); fewer --jobs need less")
            else:
                (suspects if deaths[shard] == ATTEMPTS - 1 else waiting).append(shard)


def _until_a_death(
    pool: ProcessPoolExecutor, waiting: deque[Shard], at_once: int
) -> Generator[Line, None, list[Shard]]:
    """Yield lines until none is left, or a process died; returns the shards that were lost with it."""
    running: dict[Future[Line], Shard] = {}
    died, lost = False, list[Shard]()
    while (waiting and not died) or running:
        try:
            while waiting and len(running) < at_once:
                with holding_interrupts():
                    running[pool.submit(_attempt, waiting[0])] = waiting[0]
                waiting.popleft()
        except BrokenProcessPool:  # which an idle process can bring about too
            died = True
        wait(running, return_when=ALL_COMPLETED if died else FIRST_COMPLETED)
        finished = [future for future in running if future.done()]  # more may finish while these lines are settled
        if any(isinstance(future.exception(), BrokenProcessPool) for future in finished):
            died = True
            wait(running)
            finished = list(running)
        for future in finished:
            shard = running.pop(future)
            if isinstance(future.exception(), BrokenProcessPool):
                lost.append(shard)
            else:
                yield future.result()
    return lost


@contextmanager
def _pool(task: Task, jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, and with this process, however it dies."""
    pool = ProcessPoolExecutor(jobs, mp_context=Spawning(), initializer=_begin, initargs=(task,))
    try:
        yield pool
    except BaseException:  # Ctrl-C, a full disk: what is being coded is for nothing
        for process in list((pool._processes or {}).values()):
            process.terminate()  # `_end` answers it
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# -- in a process of the pool ------------------------------------------------------------------------------------------

_code: Callable[[Shard], Line]
_coding = False


def _begin(task: Task) -> None:
    global _code
    signal.signal(signal.SIGTERM, _end)
    end_with_parent(_quit)
    use_one_core(task.device)
    _code = loading(task)


def _quit() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(128 + signal.SIGTERM)


def _end(*_: Any) -> None:
    if _coding:
        raise SystemExit  # what is being written is removed on the way out
    os._exit(128 + signal.SIGTERM)


def _attempt(shard: Shard) -> Line:
    global _coding
    try:
        _coding = True
        return _code(shard)
    except SystemExit:  # the executor would take it for a result, and go on
        os._exit(128 + signal.SIGTERM)
    finally:
        _coding = False
