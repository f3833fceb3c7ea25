"""Spools: chunks of features or codes in a temporary file, so that an array goes through the SAE once in flat memory.

Fitting looks at all activations several times (step, classes, tables, coding). A chunk takes 8 bytes a row and 8 a
nonzero.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from saecodec.codes import Codes
from saecodec.errors import OutputError
from saecodec.features import Features

Chunk = TypeVar("Chunk", Features, Codes)
Arrays = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]


class Spool(Generic[Chunk]):
    """Chunks of compressed sparse rows, appended and iterated as often as needed.

    take: the arrays (indptr, latents, values) of a chunk; make: the chunk of such arrays; dtype: of the values.
    The file has no name and vanishes when it is closed; `TMPDIR` says where it lies.
    """

    def __init__(self, take: Callable[[Chunk], Arrays], make: Callable[..., Chunk], dtype: DTypeLike) -> None:
        self._file = tempfile.TemporaryFile(prefix="saecodec-")  # noqa: SIM115 (__exit__ closes it)
        self._take: Callable[[Chunk], Arrays] = take
        self._make: Callable[..., Chunk] = make
        self._dtype = dtype
        self._sizes: list[tuple[int, int]] = []  # rows and nonzeros of each chunk
        self.nnz = 0
        self.n_rows = 0

    def append(self, chunk: Chunk) -> None:
        """Add a chunk."""
        self._file.seek(0, 2)
        self._sizes.append((chunk.n_rows, chunk.nnz))
        self.n_rows += chunk.n_rows
        self.nnz += chunk.nnz
        try:
            for array, dtype in zip(self._take(chunk), (np.int64, np.int32, self._dtype), strict=True):
                self._file.write(np.ascontiguousarray(array, dtype).data)
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"a temporary file in {tempfile.gettempdir()} cannot be written ({error.strerror}) after "
                f"{self.n_rows} rows: set TMPDIR to a folder with more room"
            ) from error

    def __iter__(self) -> Iterator[Chunk]:
        at = 0
        for n_rows, nnz in self._sizes:
            self._file.seek(at)
            parts = (np.empty(n_rows + 1, np.int64), np.empty(nnz, np.int32), np.empty(nnz, self._dtype))
            for part in parts:
                if part.size and self._file.readinto(part.data.cast("B")) != part.nbytes:
                    raise OSError("a temporary file of feature activations ended early")
            at = self._file.tell()
            yield self._make(*parts)

    def __enter__(self) -> Spool[Chunk]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def feature_spool() -> Spool[Features]:
    """A spool of feature activations."""
    return Spool(lambda features: (features.indptr, features.latents, features.values), Features, np.float32)


def code_spool(n_latents: int) -> Spool[Codes]:
    """A spool of codes without columns."""
    return Spool(
        lambda codes: (codes.indptr, codes.latents, codes.levels),
        lambda indptr, latents, levels: Codes(indptr, latents, levels, n_latents),
        np.int32,
    )
