"""Spools: chunks of features, codes or residual levels in a temporary file, so that an array goes through the SAE once
in flat memory.

Fitting looks at all activations several times (step, classes, tables, coding). A chunk takes 8 bytes a row and 8 a
nonzero, or 4 a residual level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes
from saecodec.features import Features, Side
from saecodec.formats.temporary import temporary_file

Chunk = TypeVar("Chunk")
Array = NDArray[Any]


class Spool(Generic[Chunk]):
    """Chunks that are a few arrays each, appended and iterated as often as needed.

    take: the arrays of a chunk, of any dtype and number of dimensions; make: the chunk of such arrays. The file has no
    name and vanishes when it is closed; `TMPDIR` says where it lies.
    """

    def __init__(self, take: Callable[[Chunk], tuple[Array, ...]], make: Callable[..., Chunk]) -> None:
        self._file = temporary_file()
        self._take = take
        self._make = make
        self._arrays: list[list[tuple[tuple[int, ...], np.dtype[Any]]]] = []  # shapes and dtypes of each chunk

    def append(self, chunk: Chunk) -> None:
        """Add a chunk."""
        self._file.seek(0, 2)
        arrays = [np.ascontiguousarray(array) for array in self._take(chunk)]
        for array in arrays:
            self._file.write(array.data)
        self._file.flush()
        self._arrays.append([(array.shape, array.dtype) for array in arrays])

    def __iter__(self) -> Iterator[Chunk]:
        at = 0
        for shapes in self._arrays:
            self._file.seek(at)
            parts = [np.empty(shape, dtype) for shape, dtype in shapes]
            for part in parts:
                if part.size and self._file.readinto(part.data.cast("B")) != part.nbytes:
                    raise OSError("a temporary file of coded rows ended early")
            at = self._file.tell()
            yield self._make(*parts)

    def close(self) -> None:
        """Free the file."""
        self._file.close()

    def __enter__(self) -> Spool[Chunk]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def feature_spool() -> Spool[Features]:
    """A spool of feature activations."""

    def take(features: Features) -> tuple[Array, ...]:
        side = features.side
        of_rows = () if side is None else (side.scale,) if side.mean is None else (side.scale, side.mean)
        return features.indptr, features.latents, features.values, *of_rows

    def make(indptr: Array, latents: Array, values: Array, *of_rows: Array) -> Features:
        return Features(indptr, latents, values, Side(*of_rows) if of_rows else None)

    return Spool(take, make)


def code_spool(n_latents: int, columns: tuple[str, ...] = ()) -> Spool[Codes]:
    """A spool of codes with these columns."""
    return Spool(
        lambda codes: (codes.indptr, codes.latents, codes.levels, *(codes.columns[name] for name in columns)),
        lambda indptr, latents, levels, *values: Codes(
            indptr, latents, levels, n_latents, dict(zip(columns, values, strict=True))
        ),
    )


def level_spool() -> Spool[NDArray[np.int32]]:
    """A spool of residual levels, int32 (T, M) a chunk."""
    return Spool(lambda levels: (levels,), lambda levels: levels)
