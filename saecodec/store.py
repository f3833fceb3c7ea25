"""Stores: where what is coded goes, chunk by chunk, to be read again: a list, or a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes
from saecodec.features import Features

Item = TypeVar("Item")


class Store(Protocol[Item]):
    """Takes chunks in order, and gives them back as often as asked."""

    def append(self, item: Item, /) -> None:
        """Take the next chunk."""

    def __iter__(self) -> Iterator[Item]:
        """All chunks, from the first."""


class Stores(Protocol):
    """Makes stores for what is coded."""

    def features(self) -> Store[Features]:
        """For feature activations."""

    def codes(self, n_latents: int, columns: tuple[str, ...] = ()) -> Store[Codes]:
        """For codes with these columns."""

    def levels(self) -> Store[NDArray[np.int32]]:
        """For residual levels."""

    def discard(self, store: object) -> None:
        """Free a store, or None, that is not needed any more."""


class MemoryStores:
    """Stores in memory."""

    def features(self) -> Store[Features]:
        """A list."""
        return []

    def codes(self, n_latents: int, columns: tuple[str, ...] = ()) -> Store[Codes]:
        """A list."""
        return []

    def levels(self) -> Store[NDArray[np.int32]]:
        """A list."""
        return []

    def discard(self, store: object) -> None:
        """Nothing: who holds the list frees it."""
