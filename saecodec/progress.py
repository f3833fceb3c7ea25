"""`Progress`: who is told how far long work has come."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with what is being done, rows done, rows in all, and what there is to say of it."""

    def __call__(self, stage: str, done: int, total: int, note: str = "", /) -> None:
        """Take note."""


def no_progress(stage: str, done: int, total: int, note: str = "", /) -> None:
    """Reports to nobody."""
