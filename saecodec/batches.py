"""Batches of rows side by side on the CPU's cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
