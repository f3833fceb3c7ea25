"""Shards on a Ray cluster: Ray Data hands paths to actors that hold the SAE, and lines come back; no rows travel.

An actor that dies is replaced, and its shard begins again: Ray Data's default. All nodes have to see the folders, the
SAE and the codec under the same paths.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from saecodec.errors import InputError, MissingPieceError
from saecodec.formats.folder_manifest import Line, staged_path
from saecodec.formats.folder_plan import Shard
from saecodec.formats.folder_pool import ATTEMPTS, use_one_core
from saecodec.formats.folder_work import Task, failure, loading

_OBJECT_STORE: Final = 100 << 20  # bytes; Ray demands 75 MiB, paths and lines need next to nothing
_DIED: Final = "its actor died {} times (out of memory?)"


class _Actor:
    """Codes shards, one at a time; a row of the data set is a shard, and becomes its line."""

    def __init__(self, task: Task) -> None:
        use_one_core(task.device)
        self._dst, self._code = task.dst, loading(task)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = Shard(row["source"], row["output"])
        # Ray would hand a shard that kills its actors to new ones for ever.
        died = self._begun(shard) > ATTEMPTS
        return {"line": json.dumps(failure(shard, _DIED.format(ATTEMPTS)) if died else self._code(shard))}

    def _begun(self, shard: Shard) -> int:
        """How often the shard was begun, this time included."""
        with open(staged_path(self._dst, f"{shard.output}.begun"), "ab") as file:
            file.write(b".")
            return file.tell()


def on_ray(task: Task, shards: Sequence[Shard], jobs: int | None) -> Generator[Line, None, None]:
    """The lines of shards as they finish, coded by `jobs` actors, by default one for each core of the cluster, or for
    each GPU where the task's device is one.

    Ray is started on this machine, and stopped, unless it runs in this process already or RAY_ADDRESS tells where.
    MissingPieceError when it is not installed.
    """
    gpu = task.device.startswith("cuda")
    with _cluster(jobs) as ray:
        jobs = jobs or int(ray.cluster_resources().get("GPU" if gpu else "CPU", 1))
        data = ray.data.from_items([vars(shard) for shard in shards], override_num_blocks=len(shards))  # a task each
        data = data.map(
            _Actor,
            fn_constructor_args=(task,),
            # One waits while one is coded: handing out the next takes a tenth of a second.
            compute=ray.data.ActorPoolStrategy(size=max(1, min(jobs, len(shards))), max_tasks_in_flight_per_actor=2),
            num_cpus=None if gpu else 1,
            num_gpus=1 if gpu else None,
        )
        lost = {shard.source: shard for shard in shards}
        try:
            for row in data.iter_rows():
                line = json.loads(row["line"])
                del lost[line["source"]]
                yield line
        except ray.exceptions.RayError as error:
            reason = next((text.strip() for text in reversed(str(error).splitlines()) if text.strip()), "")
            raise InputError(
                f"Ray gave up ({type(error).__name__}: {reason}); what is done stays done. Every node needs saecodec, "
                "and sees folders, SAE and codec under the same paths"
            ) from error
    for shard in lost.values():
        yield failure(shard, "Ray lost it; its logs tell why")


@contextmanager
def _cluster(cores: int | None) -> Iterator[Any]:
    """Ray, running and quiet; settings are what they were afterwards."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingPieceError(
            f"--engine ray needs Ray Data, which cannot be imported ({error}): pip install 'saecodec[ray]'"
        ) from error
    mine = not ray.is_initialized()
    if mine:
        on_term = signal.getsignal(signal.SIGTERM)
        _start(ray, cores)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)  # Ray's own stops its processes under our feet, and aborts
    context = ray.data.DataContext.get_current()
    told = {"enable_progress_bars": False, "print_on_execution_start": False, "max_errored_blocks": -1}
    before = {name: getattr(context, name) for name in told if hasattr(context, name)}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        for name in before:
            setattr(context, name, told[name])
        logger.setLevel(logging.ERROR)
        yield ray
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)
        if mine:
            ray.shutdown()


def _start(ray: Any, cores: int | None) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one on this machine."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for reports to Ray's makers
    ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=_OBJECT_STORE, **quiet)
