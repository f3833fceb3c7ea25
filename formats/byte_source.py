"""Random reads of a file's bytes: on a disk, or wherever fsspec reaches (s3://, gs://, hf://, https://, memory://).

Reads may come from several threads, and from processes that were forked.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from errno import EISDIR
from stat import S_ISDIR, S_ISREG
from typing import Any, Final, Protocol
from weakref import finalize

from saecodec.errors import FormatError, InputError

_ENDS: Final = 1 << 16  # bytes at either end of a remote file that are read at once: header, tables and index are there


class ByteSource(Protocol):
    """The bytes of a file, which does not change. path: as it was given. size: in bytes. ahead: bytes that are worth
    reading at a time."""

    path: str
    size: int
    ahead: int

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each range, start to stop, which lie inside the file. FormatError when it is shorter than it
        was, InputError when it cannot be read."""

    def close(self) -> None:
        """Let go of the file."""


def open_bytes(path: str | os.PathLike[str]) -> ByteSource:
    """The bytes of a path or URL; InputError when it cannot be opened."""
    name = os.fspath(path)
    return _RemoteFile(name) if is_url(name) else _LocalFile(name)


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a path or URL; InputError when it cannot be opened."""
    with closing(open_bytes(path)) as source:
        return source.size


def is_url(path: str) -> bool:
    """Whether a path is a URL."""
    return "://" in path


class _LocalFile:
    """A file on a disk. It is closed at the latest when nothing refers to it."""

    ahead = 0

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # Without O_NONBLOCK a pipe would be waited for.
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
            self._close = finalize(self, os.close, self._descriptor)
            status = os.fstat(self._descriptor)
            if S_ISDIR(status.st_mode):
                raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
            if not S_ISREG(status.st_mode):
                raise InputError(f"{path}: is a device, pipe or socket; expected a regular file")
        except OSError as error:
            raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
        self.size = status.st_size

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self._read(start, stop) for start, stop in ranges]

    def _read(self, start: int, stop: int) -> bytes:
        if not self._close.alive:  # the number may be another file's by now
            raise InputError(f"{self.path}: is closed")
        parts, at = [], start
        while at < stop:  # one call reads 2 GiB at most
            try:
                part = os.pread(self._descriptor, stop - at, at)
            except OSError as error:
                raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error
            if not part:
                raise _short(self.path, start, stop - start, at - start)
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        self._close()


class _RemoteFile:
    """A file that fsspec reads, by byte ranges. What lies at its ends is fetched once."""

    ahead = 8 << 20

    def __init__(self, path: str) -> None:
        self.path = path
        self._process, self._system, self._name, self._closed = -1, None, "", False
        system = self._reach()
        try:
            self.size = int(system.info(self._name)["size"])
        except (TypeError, KeyError) as error:
            raise InputError(f"{path}: has no known size, so no parts of it can be read: download it first") from error
        except Exception as error:
            raise _failed(path, "opened", error) from error
        self._head = self._tail = b""
        n = min(_ENDS, self.size)
        self._head, self._tail = self.read([(0, n), (self.size - n, self.size)])

    def _reach(self) -> Any:
        """The file system. A process has its own: connections do not survive a fork."""
        if self._process != os.getpid():
            try:
                from fsspec.core import url_to_fs
            except ImportError as error:
                raise InputError(f"{self.path}: reading URLs takes fsspec: pip install 'saecodec[remote]'") from error
            try:
                self._system, self._name = url_to_fs(self.path)
            except ImportError as error:  # s3fs, gcsfs ...
                raise InputError(f"{self.path}: takes another package: {error}") from error
            except Exception as error:
                raise _failed(self.path, "opened", error) from error
            self._process = os.getpid()
        return self._system

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        if self._closed:
            raise InputError(f"{self.path}: is closed")
        out = [self._held(start, stop) for start, stop in ranges]
        missing = [i for i, data in enumerate(out) if data is None]
        joined: list[list[int]] = []  # ranges that touch are one request
        for i in missing:
            start, stop = ranges[i]
            if joined and joined[-1][1] == start:
                joined[-1][1] = stop
            else:
                joined.append([start, stop])
        found = self._fetch(joined)
        at = 0
        for i in missing:
            start, stop = ranges[i]
            while stop > joined[at][1]:
                at += 1
            out[i] = found[at][start - joined[at][0] : stop - joined[at][0]]
        return [data for data in out if data is not None]

    def _fetch(self, ranges: list[list[int]]) -> list[bytes]:
        if not ranges:
            return []
        try:
            starts, stops = [a for a, _ in ranges], [b for _, b in ranges]
            found = self._reach().cat_ranges([self._name] * len(ranges), starts, stops)
        except InputError:
            raise
        except Exception as error:
            raise _failed(self.path, "read", error) from error
        for (start, stop), data in zip(ranges, found, strict=True):
            if isinstance(data, Exception):
                raise _failed(self.path, "read", data) from data
            if len(data) > stop - start:
                raise InputError(f"{self.path}: whoever serves it gives no parts of it: download it first")
            if len(data) != stop - start:
                raise _short(self.path, start, stop - start, len(data))
        return [bytes(data) for data in found]

    def _held(self, start: int, stop: int) -> bytes | None:
        first = self.size - len(self._tail)
        if stop <= len(self._head) or start >= stop:
            return self._head[start:stop]
        return self._tail[start - first : stop - first] if start >= first else None

    def close(self) -> None:
        self._head, self._tail, self._closed = b"", b"", True


def _short(path: str, start: int, wanted: int, found: int) -> FormatError:
    return FormatError(f"{path}: truncated: {wanted} bytes needed at offset {start}, {found} read")


def _failed(path: str, how: str, error: Exception) -> InputError:
    reason = "no such file" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {error}"
    return InputError(f"{path}: cannot be {how} ({reason})")
