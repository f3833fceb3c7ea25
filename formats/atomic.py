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
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from saecodec.errors import OutputError
from saecodec.formats.file_lock import is_file, locked, replacing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


PARTIAL: Final = ".partial"


@contextmanager
def atomic_output(path: str | os.PathLike[str], *, force: bool = False, partial: bool = False) -> Iterator[BinaryIO]:
    """Yield a new binary file, open for read and write, that becomes `path` when the block ends without an exception.

    The target is checked before the block runs (see `check_output_path`). Without `force`, a file that appears under
    the name while the block runs is not overwritten either. A symbolic link is followed: the file it points to is
    replaced. The final file has the permissions that the umask gives to any new file. partial: under the name that
    `new_partial` gives it, so that a killed run leaves it where people find it.

    Raises:
        OutputError: the target is refused, or writing fails (the disk is full, say); the message has the reason.
            An `OSError` that the block raises for another reason than writing this file is passed on as it is.
    """
    check_output_path(path, force=force)
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    with new_partial(path, force=force) if partial else _new_temporary(path, folder) as temporary:
        with reporting(path):
            raw = _OutputFile(temporary, "r+")
        try:
            file = io.BufferedRandom(raw)
            try:
                yield cast(BinaryIO, file)
            except Exception as error:
                # Not the type of `error` decides: a library that was handed the file may have wrapped the failed write.
                if raw.failure is not None:
                    raise _failed(path, raw.failure) from error
                raise
            with reporting(path):
                file.flush()
                os.fsync(raw.fileno())
        finally:
            with reporting(path):
                raw.close()  # not `file`, which would try once more to write what it holds
        if raw.failure is not None:  # and the block went on all the same
            raise _failed(path, raw.failure)
        publish(path, temporary, force=force)


@contextmanager
def new_partial(path: str | os.PathLike[str], *, force: bool = False, keep: bool = False) -> Iterator[str]:
    """Yield the name of a new, empty file beside `path`, which is locked meanwhile: `path.partial`.

    It is removed at the end, unless it is to be kept. One that a killed run has left is refused; with `force` it is
    discarded, and so is one without a byte. OutputError too when another process is writing it.
    """
    temporary, name = os.path.realpath(path) + PARTIAL, os.fspath(path) + PARTIAL
    if os.path.realpath(name) != temporary:  # `path` is a link
        name = temporary
    with reporting(name):
        if os.path.lexists(temporary):
            with locked(temporary, name):
                if os.path.getsize(temporary) and not force:
                    raise OutputError(
                        f"{name}: is left of a run that was killed. Keep its rows (saecodec recover {name} -o "
                        "OUT.saec) and remove it; or pass --force (force=True) to discard them"
                    )
                os.unlink(temporary)
        open(temporary, "xb").close()
    with locked(temporary, name) as mine:
        try:
            yield temporary
        finally:
            if not keep and is_file(temporary, mine):  # and not that of another run, after it was published
                os.unlink(temporary)


@contextmanager
def _new_temporary(path: str | os.PathLike[str], folder: str) -> Iterator[str]:
    """Yield the name of a new, empty, hidden file, which is removed at the end."""
    temporary = os.path.join(folder, f".saecodec-{secrets.token_hex(8)}.tmp")
    try:
        with reporting(path):
            # Not tempfile: it makes files that only the owner can read, and the umask cannot be asked for safely.
            open(temporary, "xb").close()
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def check_output_path(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Raise `OutputError` unless a file can be made under `path`; costs nothing, so call it before long work.

    The folder must exist and be writable, and the target must not exist; with `force` it may be a regular file that
    nobody is writing.
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
    with reporting(path), replacing(target, path):
        pass  # and not after the work


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
        with reporting(path):
            os.mkdir(temporary)
        try:
            yield temporary
        except OSError as error:
            raise _failed(path, error) from error
        check_output_folder(path, force=force, mine=mine)
        with reporting(path):
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


def publish(path: str | os.PathLike[str], temporary: str, *, force: bool) -> None:
    """Give a temporary file its final name; OutputError if that is taken and `force` is not given, or the file that has
    it is being written."""
    target = os.path.realpath(path)
    with reporting(path), replacing(target, path) if force else contextlib.nullcontext():
        _rename(temporary, target, force=force)
    _sync_folder(os.path.dirname(target))


def _rename(temporary: str, target: str, *, force: bool) -> None:
    if not force:
        try:
            os.link(temporary, target)  # unlike a rename, refuses a name that exists
            os.unlink(temporary)
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
def reporting(path: str | os.PathLike[str]) -> Iterator[None]:
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
