"""Items of an iterator made ahead, in a thread: reading goes on while what was read is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")


def prefetched(items: Iterable[Item], ahead: int = 1) -> Iterator[Item]:
    """The items, in order, up to `ahead` of them made before they are asked for. What making one raises is raised when
    its turn comes. The thread ends when the iterator does, or is closed."""
    queue: Queue[tuple[Item] | BaseException | None] = Queue(ahead)
    over = Event()

    def put(entry: tuple[Item] | BaseException | None) -> bool:
        while not over.is_set():
            try:
                queue.put(entry, timeout=0.05)
            except Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((item,)):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = Thread(target=make, name="saecodec-prefetch", daemon=True)
    thread.start()
    try:
        while (entry := queue.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]
    finally:
        over.set()
        thread.join()
