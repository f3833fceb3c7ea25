"""One writer a file: an exclusive lock that lasts as long as the process, where the platform has such locks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from saecodec.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows, where a file that is open for writing cannot be replaced anyway
    fcntl = None  # type: ignore[assignment]


_PATIENCE: Final = 0.5  # seconds, in which whoever merely replaces a file has done so
_PAUSE: Final = 0.005


@contextmanager
def locked(path: str, name: str | os.PathLike[str], flags: int = os.O_RDWR) -> Iterator[os.stat_result]:
    """Hold the lock of a file that exists; yields what `is_file` knows it by.

    OutputError, which calls it `name`, when another writer has it. A process that is killed lets its locks go, so what
    is locked is being written.
    """
    process, descriptor = os.getpid(), os.open(path, flags)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _busy(name) from error
            except OSError:
                pass  # a file system without locks
        found = os.fstat(descriptor)
        if not is_file(path, found):  # its writer finished, or discarded it, before it was locked here
            raise _busy(name)
        yield found
    finally:
        if fcntl is not None and os.getpid() == process:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has it too
        os.close(descriptor)


@contextmanager
def replacing(path: str, name: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of a file that is about to be replaced, where there is one: rows that another process appends would
    be lost with it. OutputError, which calls it `name`, when it is being written, and not merely replaced."""
    until = time.monotonic() + _PATIENCE
    with ExitStack() as held:
        while fcntl is not None and os.path.isfile(path) and os.access(path, os.R_OK):
            try:
                held.enter_context(locked(path, name, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY))
                break
            except (OutputError, FileNotFoundError):  # the latter of a file that went meanwhile
                if time.monotonic() > until:
                    raise
                time.sleep(_PAUSE)
        yield


def is_file(path: str, known: os.stat_result) -> bool:
    """Whether a path still names the file that was locked."""
    try:
        return os.path.samestat(os.stat(path), known)
    except FileNotFoundError:
        return False


def _busy(name: str | os.PathLike[str]) -> OutputError:
    return OutputError(f"{os.fspath(name)}: is being written by another process; wait for it, or choose another output")
