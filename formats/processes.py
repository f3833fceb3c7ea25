"""Processes that work for the one that started them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from threading import Lock, Thread, current_thread, main_thread
from types import FrameType, ModuleType
from typing import Any

import numpy as np

_MAIN = Lock()


class _Process(SpawnProcess):
    """A spawned process that does not run the main module of its parent again, as others do first.

    Nothing that it is to do lies there, it may import torch, and a script would need `if __name__ == "__main__"`.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _MAIN:
            main = sys.modules["__main__"]
            sys.modules["__main__"] = ModuleType("__main__")  # has no file that could be run
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                sys.modules["__main__"] = main


class Spawning(SpawnContext):
    """What starts such processes. Not by a fork: that would copy the locks of torch's threads."""

    Process = _Process


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def holding_interrupts() -> Iterator[None]:
    """Ctrl-C waits until the block ends, and for ever in the processes that the block starts: it reaches all of a
    terminal's, and the one that started them answers it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def deferring_interrupts() -> Iterator[Callable[[], None]]:
    """Ctrl-C, and a SIGTERM that somebody handles, wait until the function that this gives is called, or the block ends
    without an exception; then what handles them does so, with KeyboardInterrupt or SystemExit mostly. A second one does
    not wait. Unlike a blocked signal, it waits whichever thread the system hands it to.

    It changes nothing outside the main thread, and leaves Ctrl-C alone where somebody else handles it, or where it is
    ignored, as it is in what a shell's script starts in the background.
    """
    noted: list[int] = []
    before: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def note(number: int, frame: FrameType | None) -> None:
        if noted:
            before[number](number, frame)
        noted.append(number)

    def let_through() -> None:
        while noted:
            number = noted.pop()
            before[number](number, None)

    if current_thread() is main_thread():
        for ending in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(ending)
            foreign = ending == signal.SIGINT and handler is not signal.default_int_handler
            if callable(handler) and not isinstance(handler, signal.Handlers) and not foreign:
                before[ending] = handler
        for each in before:
            signal.signal(each, note)
    try:
        yield let_through
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    let_through()


def keep_freed_memory() -> None:
    """Let glibc keep what arrays free, for the next ones, instead of asking the system for new pages each time.

    It does so for arrays up to the size of the largest that it has seen freed, 32 MiB at most; a process that has
    loaded an SAE has seen some, one that only codes chunks has not. Other allocators are not affected.
    """
    np.empty((1 << 25) - (1 << 16), np.uint8)  # freed at once, and never touched


def end_with_parent(end: Callable[[], object]) -> None:
    """Call `end`, in a thread, when the process that started this one has ended, however it did.

    Those of a pool would wait for work for ever: each holds both ends of the pipe that it comes through.
    """
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        end()

    Thread(target=watch, name="saecodec-parent", daemon=True).start()
