"""Items made ahead, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from saecodec.prefetch import prefetched


def test_the_items_come_in_order_and_are_made_ahead_but_not_far() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    found = prefetched(items(), 2)
    assert next(found) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.1)
    assert len(made) == 4  # two wait, and one has no room yet
    assert list(found) == list(range(1, 50))


def test_what_making_an_item_raises_is_raised_behind_those_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("two")

    found = prefetched(items())
    assert next(found) == 1
    with pytest.raises(KeyError, match="two"):
        next(found)


def test_the_thread_ends_when_nobody_asks_any_more() -> None:
    before = threading.active_count()
    found = prefetched(iter(range(1000)))
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert list(prefetched([])) == []
