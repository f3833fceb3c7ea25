"""Temporary files without a name, which vanish with their process."""

from __future__ import annotations

import io
import os
import tempfile
from typing import TYPE_CHECKING

from saecodec.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def temporary_file() -> io.BufferedRandom:
    """A new file for reading and writing; `TMPDIR` says where it lies. OutputError when it cannot be made, and from its
    writes and `close` when there is no room."""
    try:
        with tempfile.TemporaryFile(prefix="saecodec-", buffering=0) as file:
            return io.BufferedRandom(_Temporary(os.dup(file.fileno()), "r+"))
    except OSError as error:
        raise _failed(error) from error


class _Temporary(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise _failed(error) from error


def _failed(error: OSError) -> OutputError:
    try:
        where = f" in {tempfile.gettempdir()}"
    except OSError:  # no folder is writable, which is what `error` says
        where = ""
    return OutputError(
        f"a temporary file{where} cannot be written ({error.strerror}): set TMPDIR to a folder with more room"
    )
