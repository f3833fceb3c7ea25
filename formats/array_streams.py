"""Arrays in byte streams: values that lie in a file, or in a member of a zip archive, from some offset on."""

from __future__ import annotations

import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource, FloatRows, rows_of, to_float32
from saecodec.formats.temporary import temporary_file

Opener = Callable[[], AbstractContextManager[IO[bytes]]]
"""Opens a stream at the first value of an array."""

_READ_BYTES = 1 << 20


class StreamedArray(ArraySource):
    """C-ordered values that follow each other in a byte stream, which `opener` opens at the first value."""

    def __init__(self, path: str, shape: tuple[int, ...], dtype: str, stored: np.dtype[Any], opener: Opener) -> None:
        super().__init__(path, shape, dtype)
        self._stored = stored
        self._opener = opener

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[FloatRows]:
        with reading_file(self.path), self._opener() as stream:
            for start, stop in spans:
                block = np.empty((stop - start, self.width), self._stored)
                fill(stream, block)
                yield to_float32(block, copy=False)


class FortranArray(StreamedArray):
    """Column-major values: a row is spread over the whole file, so it has to be mapped."""

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[FloatRows]:
        with reading_file(self.path), self._opener() as file:
            offset = file.tell()
            for start, stop in spans:
                # Mapped anew for every batch, so that the pages of earlier ones are not resident.
                array = np.memmap(file, self._stored, "r", offset, self.shape, order="F")
                yield to_float32(rows_of(array, start, stop))


@contextmanager
def opened_at(path: str, offset: int) -> Iterator[IO[bytes]]:
    """A file, from `offset` on."""
    with open(path, "rb") as file:
        file.seek(offset)
        yield file


@contextmanager
def opened_member(path: str, name: str, offset: int) -> Iterator[IO[bytes]]:
    """A member of a zip archive, from `offset` on."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as member:
        member.read(offset)
        yield member
        member.read(1)  # zipfile compares the checksum when it meets the end


@contextmanager
def spooled(opener: Opener) -> Iterator[IO[bytes]]:
    """The stream as a temporary file, which can be mapped."""
    with temporary_file() as file:
        with opener() as stream:
            shutil.copyfileobj(stream, file, _READ_BYTES)
        file.flush()
        file.seek(0)
        yield file


def fill(stream: IO[bytes], block: npt.NDArray[Any]) -> None:
    """Read all bytes of a C-contiguous block; raises EOFError if the stream ends before."""
    target = block.reshape(-1).view(np.uint8).data
    while target:
        # In pieces, because zipfile reads as much compressed data as it is asked for values.
        part = stream.read(min(len(target), _READ_BYTES))
        if not part:
            raise EOFError("it ends before its last row")
        target[: len(part)] = part
        target = target[len(part) :]


@contextmanager
def reading_file(path: str) -> Iterator[None]:
    """Turn what reading a bad file raises into an InputError that names the file."""
    try:
        yield
    except (OSError, EOFError, ValueError, struct.error, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InputError(f"{path}: cannot be read ({reason}); the file may be truncated or corrupt") from error
