"""Atomic folders: nothing appears under the final name until all of it is there.

The files go into a hidden folder beside it. A run that fails or is interrupted (Ctrl-C) leaves nothing; one that is
killed leaves the hidden folder, `.saecodec-*.tmp`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from saecodec.errors import OutputError
from saecodec.formats.atomic import reporting, sync, sync_folder, taken, write_failed

_HERE: Final = -100  # AT_FDCWD, of Linux
_SWAP: Final = 2  # RENAME_EXCHANGE
_COMMON: Final = "config.json"
"""A name in folders of ours, and in many that are not."""


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
            raise write_failed(path, error) from error
        with reporting(path):
            for name in os.listdir(temporary):
                sync(os.path.join(temporary, name))
        check_output_folder(path, force=force, mine=mine)
        with reporting(path):
            if not (force and os.path.isdir(target) and _exchange(temporary, target)):
                _move(temporary, target, old if force else None)
        sync_folder(parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(a: str, b: str) -> bool:
    """Swap two names at once, so that there is no moment without either; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _SWAP) == 0)


def _move(folder: str, target: str, old: str | None) -> None:
    """Rename a folder; one that is there is moved to `old` first, or refused where there is no such name."""
    replaced = old is not None and os.path.isdir(target)
    if replaced:
        assert old is not None
        os.rename(target, old)
    try:
        os.rename(folder, target)  # which an empty folder does not stop
    except BaseException as error:
        if replaced:
            assert old is not None
            os.rename(old, target)
        if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        raise


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
        raise taken(path)
    others = [entry.name for entry in os.scandir(target) if not (mine(entry.name) and entry.is_file())]
    held = os.listdir(target)
    if held == [_COMMON]:  # anybody's
        others = held
    if others:
        raise OutputError(
            f"{path}: is not replaced, because it holds {others[0]!r}; choose another folder, or remove it"
        )
