"""`Store`: where what is coded goes, chunk by chunk, to be read again: a list, or a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Store(Protocol[Item]):
    """Takes chunks in order, and gives them back as often as asked."""

    def append(self, item: Item, /) -> None:
        """Take the next chunk."""

    def __iter__(self) -> Iterator[Item]:
        """All chunks, from the first."""
