"""Atomic output: nothing appears under the final name until it is complete.

The bytes go to a hidden temporary file in the folder of the target, which takes the final name only after they are
on the disk. A run that fails or is interrupted (Ctrl-C) leaves the target as it was, and no temporary file behind; one
that is killed leaves the target as it was.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

from saecodec.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@contextmanager
def atomic_output(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[BinaryIO]:
    """Yield a new binary file, open for read and write, that becomes `path` when the block ends without an exception.

    The target is checked before the block runs (see `check_output_path`). Without `force`, a file that appears under
    the name while the block runs is not overwritten either. A symbolic link is followed: the file it points to is
    replaced. The final file has the permissions that the umask gives to any new file.

    Raises:
        OutputError: the target is refused, or writing fails (the disk is full, say); the message has the reason.
            An `OSError` that the block raises for another reason than writing this file is passed on as it is.
    """
    check_output_path(path, force=force)
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    temporary = os.path.join(folder, f".saecodec-{secrets.token_hex(8)}.tmp")
    try:
        with _reporting(path):
            # Not tempfile: it makes files that only the owner can read, and the umask cannot be asked for safely.
            raw = _OutputFile(temporary, "x+")
        try:
            file = io.BufferedRandom(raw)
            try:
                yield cast(BinaryIO, file)
            except Exception as error:
                # Not the type of `error` decides: a library that was handed the file may have wrapped the failed write.
                if raw.failure is not None:
                    raise _failed(path, raw.failure) from error
                raise
            with _reporting(path):
                file.flush()
                os.fsync(raw.fileno())
        finally:
            with _reporting(path):
                raw.close()  # not `file`, which would try once more to write what it holds
        if raw.failure is not None:  # and the block went on all the same
            raise _failed(path, raw.failure)
        with _reporting(path):
            _publish(temporary, target, force=force)
        _sync_folder(folder)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def publish(staged: str | os.PathLike[str], path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Give a complete file on the same file system the name `path`; its old name goes. Raises OutputError as
    `atomic_output` does."""
    target = os.path.realpath(path)
    with _reporting(path):
        _publish(os.fspath(staged), target, force=force)
    _sync_folder(os.path.dirname(target))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(staged)


def check_output_path(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Raise `OutputError` unless a file can be made under `path`; costs nothing, so call it before long work.

    The folder must exist and be writable, and the target must not exist; with `force` it may be a regular file.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if os.path.isdir(target):
        raise OutputError(f"{path}: is a folder; expected the name of a file to write")
    if os.path.exists(target) and not os.path.isfile(target):
        # Renaming over /dev/null or a pipe would replace the device itself.
        raise OutputError(f"{path}: is a device, pipe or socket; expected the name of a regular file to write")
    if not os.path.isdir(folder):
        raise OutputError(f"{path}: there is no folder {folder}; create it, or choose another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {folder} is not writable; choose another place")
    if os.path.lexists(target) and not force:
        raise _exists(path)


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str], *, force: bool = False, mine: Callable[[str], bool] = lambda name: False
) -> Iterator[str]:
    """Yield the name of a new, empty folder that becomes `path` when the block ends without an exception.

    force: replace a folder, but only one that holds nothing but files whose names are `mine`; the old one is there
    until the new one is. Raises OutputError as `atomic_output` does.
    """
    check_output_folder(path, force=force, mine=mine)
    target = os.path.realpath(path)
    parent = os.path.dirname(target)
    temporary, old = (os.path.join(parent, f".saecodec-{secrets.token_hex(8)}.{end}") for end in ("tmp", "old"))
    try:
        with _reporting(path):
            os.mkdir(temporary)
        try:
            yield temporary
        except OSError as error:
            raise _failed(path, error) from error
        check_output_folder(path, force=force, mine=mine)
        with _reporting(path):
            for name in os.listdir(temporary):
                _sync(os.path.join(temporary, name))
            replaced = os.path.isdir(target)
            if replaced:
                os.rename(target, old)
            try:
                os.rename(temporary, target)
            except OSError:
                if replaced:
                    os.rename(old, target)
                raise
        _sync_folder(parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_COMMON = "config.json"
"""A name in folders of ours, and in many that are not."""


def check_output_folder(
    path: str | os.PathLike[str], *, force: bool = False, mine: Callable[[str], bool] = lambda name: False
) -> None:
    """Raise `OutputError` unless a folder can be made under `path`; costs nothing, so call it before long work.

    The folder that it lies in must exist and be writable, and there must be nothing under the name; with `force` there
    may be a folder of plain files whose names are `mine`.
    """
    target = os.path.realpath(path)
    parent = os.path.dirname(target)
    if not os.path.isdir(parent):
        raise OutputError(f"{path}: there is no folder {parent}; create it, or choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {parent} is not writable; choose another place")
    if not os.path.lexists(target):
        return
    if not os.path.isdir(target):
        raise OutputError(f"{path}: is a file; expected the name of a folder to make")
    if not force:
        raise _exists(path)
    others = [entry.name for entry in os.scandir(target) if not (mine(entry.name) and entry.is_file())]
    held = os.listdir(target)
    if held == [_COMMON]:  # anybody's
        others = held
    if others:
        raise OutputError(
            f"{path}: is not replaced, because it holds {others[0]!r}; choose another folder, or remove it"
        )


class _OutputFile(io.FileIO):
    """A file that remembers why a write failed, so that it can be told from the other errors of the block."""

    failure: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _publish(temporary: str, target: str, *, force: bool) -> None:
    """Give the temporary file its final name; raises FileExistsError if that is taken and `force` is not given."""
    if not force:
        try:
            os.link(temporary, target)  # unlike a rename, refuses a name that exists; the caller removes the old name
            return
        except FileExistsError:
            raise
        except OSError:  # the file system has no hard links
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
    os.replace(temporary, target)


def _sync_folder(folder: str) -> None:
    """Make the new name survive a power cut, where the platform lets a folder be synced."""
    with contextlib.suppress(OSError):
        _sync(folder)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _reporting(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an OSError into an OutputError that names the output."""
    try:
        yield
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise _failed(path, error) from error


def _exists(path: str | os.PathLike[str]) -> OutputError:
    return OutputError(f"{path}: already exists; pass --force (force=True) to replace it, or choose another name")


def _failed(path: str | os.PathLike[str], error: OSError) -> OutputError:
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); nothing was left under that name")
