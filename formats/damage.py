"""Rows that a damaged chunk has lost: what is done about them, and which they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from saecodec.errors import FormatError, InputError

ON_ERROR: Final = ("raise", "skip", "nan")


class _Rows(Protocol):
    @property
    def n_rows(self) -> int: ...


Salvaged = TypeVar("Salvaged")
Coded = TypeVar("Coded", bound=_Rows)
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Lost:
    """Rows [start, stop), over the flattened leading dimensions, that do not decode. error: why. chunks: that hold
    them."""

    start: int
    stop: int
    error: FormatError
    chunks: int = 1

    @property
    def n_rows(self) -> int:
        """How many."""
        return self.stop - self.start

    def reason(self, path: str) -> str:
        """Why, without the name of the file: of the first chunk."""
        more = f"; and {self.chunks - 1} more behind it" if self.chunks > 1 else ""
        return str(self.error).removeprefix(f"{path}, ") + more

    def told(self, path: str) -> tuple[int, int, str]:
        """Start, stop and reason."""
        return self.start, self.stop, self.reason(path)


def add_range(ranges: list[Lost], lost: Lost) -> None:
    """Add rows that lie behind those of `ranges`, in which those that touch are one."""
    last = ranges[-1] if ranges else None
    if last is not None and last.stop == lost.start:
        ranges[-1] = replace(last, stop=lost.stop, chunks=last.chunks + lost.chunks)
    else:
        ranges.append(lost)


class Losses:
    """What is to be done about rows that are lost, and the record of them.

    on_error: "raise" their error, "skip" them, or put "nan" in their place. advice: how to get the other rows, which
    the error that is raised ends with.
    """

    def __init__(self, on_error: str = "raise", *, advice: str = "") -> None:
        if on_error not in ON_ERROR:
            raise InputError(f"on_error is {on_error!r}, expected one of {', '.join(ON_ERROR)}")
        self.on_error, self._advice = on_error, f"; {advice}" if advice else ""
        self.ranges: list[Lost] = []
        """In order; those that touch are one."""

    def kept(
        self, parts: Iterable[Salvaged | Lost], stand_in: Callable[[int], Iterable[Salvaged]] | None = None
    ) -> Iterator[Salvaged]:
        """The parts that are not lost. stand_in: what stands for so many rows where those are to be NaN."""
        for part in parts:
            if not isinstance(part, Lost):
                yield part
                continue
            if self.on_error == "raise":
                raise FormatError(f"{part.error}{self._advice}") from part.error
            add_range(self.ranges, part)
            if self.on_error == "nan" and stand_in is not None:
                yield from stand_in(part.n_rows)

    @property
    def n_rows(self) -> int:
        """Rows that are lost."""
        return sum(lost.n_rows for lost in self.ranges)

    def listed(self, path: str) -> list[tuple[int, int, str]]:
        """Start, stop and reason of each range of file `path`."""
        return [lost.told(path) for lost in self.ranges]


def intact(parts: Iterable[Salvaged | Lost]) -> Iterator[Salvaged]:
    """Parts of which none may be lost; raises the error of the first that is."""
    for part in parts:
        if isinstance(part, Lost):
            raise part.error
        yield part


def converted(
    parts: Iterable[Coded | Lost], function: Callable[[Coded], Value], first: int, path: str
) -> Iterator[Value | Lost]:
    """function(part) of parts that follow each other from row `first` of file `path` on; a FormatError that it raises
    costs the rows of its part."""
    for part in parts:
        stop = first + part.n_rows
        if isinstance(part, Lost):
            yield part
        else:
            try:
                value = function(part)
            except FormatError as error:
                yield Lost(first, stop, FormatError(f"{path}, rows {first}:{stop}: {error}"))
            else:
                yield value
        first = stop
