"""Atomic output: nothing appears under the final name until it is complete.

The bytes go to a file without a name in the folder of the target, or, where there can be none (on Linux there mostly
can), to a hidden one; it takes the final name only after they are on the disk. A run that fails or is interrupted
(Ctrl-C) leaves the target as it was, and nothing else; so does one that is killed, if the file had no name.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from saecodec.errors import OutputError
from saecodec.formats.file_lock import is_file, locked, replacing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


PARTIAL: Final = ".partial"
_DESCRIPTORS: Final = "/proc/self/fd"


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
    target, named = os.path.realpath(path), False
    folder = os.path.dirname(target)
    with new_partial(path, force=force) if partial else _hidden_name(folder) as temporary:
        with reporting(path):
            raw = _OutputFile(temporary, "r+", opener=None if partial else _unnamed)
        try:
            file = io.BufferedRandom(raw)
            try:
                yield cast(BinaryIO, file)
            except Exception as error:
                # Not the type of `error` decides: a library that was handed the file may have wrapped the failed write.
                if raw.failure is not None:
                    raise write_failed(path, raw.failure) from error
                held: BaseException | None = error
                while held is not None and not isinstance(held, (KeyboardInterrupt, SystemExit)):
                    held = held.__context__
                if held is not None:  # an interrupt, of which a library has made its own error
                    raise held from None
                raise
            with reporting(path):
                file.flush()
                os.fsync(raw.fileno())
                if raw.failure is not None:  # and the block went on all the same
                    raise raw.failure
                if not (partial or os.path.lexists(temporary)):
                    named = _give_name(raw.fileno(), target, temporary, force=force)
        finally:
            with reporting(path):
                raw.close()  # not `file`, which would try once more to write what it holds
        if named:
            sync_folder(folder)
        else:
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
def _hidden_name(folder: str) -> Iterator[str]:
    """Yield a new, hidden name; what has it at the end is removed."""
    temporary = os.path.join(folder, f".saecodec-{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _unnamed(name: str, flags: int) -> int:
    """Open a new file without a name in the folder of `name`, or where there can be none a file of that name."""
    # Not tempfile: it makes files that only the owner can read, and the umask cannot be asked for safely.
    if hasattr(os, "O_TMPFILE") and os.path.isdir(_DESCRIPTORS):
        with contextlib.suppress(OSError):
            return os.open(os.path.dirname(name), flags | os.O_TMPFILE, 0o666)
    return os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666)


def _give_name(descriptor: int, target: str, hidden: str, *, force: bool) -> bool:
    """Name an open file that has none; whether it is `target`, at once, so that a kill leaves no other name. It is
    `hidden` where a file is to be replaced (by force), or there are no hard links."""
    for name in (target, hidden):
        try:
            # A link of what the name in /proc points to; Python makes one only if it is given a folder, too.
            os.link(f"{_DESCRIPTORS}/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)
            return name == target
        except FileExistsError:
            if not force:
                raise
        except OSError:  # the file system has no hard links
            break
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb", closefd=False) as source, open(hidden, "xb") as copy:
        shutil.copyfileobj(source, copy)
        copy.flush()
        os.fsync(copy.fileno())
    return False


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
        raise taken(path)
    with reporting(path), replacing(target, path):
        pass  # and not after the work


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
    sync_folder(os.path.dirname(target))


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


def sync_folder(folder: str) -> None:
    """Make the new name survive a power cut, where the platform lets a folder be synced."""
    with contextlib.suppress(OSError):
        sync(folder)


def sync(path: str) -> None:
    """See that a file or folder is on the disk."""
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
        raise taken(path) from error
    except OSError as error:
        raise write_failed(path, error) from error


def taken(path: str | os.PathLike[str]) -> OutputError:
    """What to raise when something has the name of an output."""
    return OutputError(f"{path}: already exists; pass --force (force=True) to replace it, or choose another name")


def write_failed(path: str | os.PathLike[str], error: OSError) -> OutputError:
    """What to raise when an output cannot be written."""
    there = "what is there is as it was" if os.path.lexists(path) else "nothing was left under that name"
    return OutputError(f"{path}: cannot be written ({error.strerror or error}); {there}")
