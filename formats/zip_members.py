"""Zip archives (`.npz`, `.pt`) that libraries unpack into memory: what they may unpack to."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import Final

from saecodec.errors import InputError
from saecodec.limits import check_expansion

_DEFLATE_MOST: Final = 1032
"""Times as many bytes as deflate packs them into, at most."""


_LOCAL_FILE: Final = b"PK\3\4"  # what torch goes by


def check_members(archive: zipfile.ZipFile, path: str) -> None:
    """LimitError when the members of an archive are larger than its bytes account for; InputError when one is packed in
    a way that gives no bound."""
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{path}: {info.filename!r} is unusually compressed; save it again, stored or deflated")
    size = os.path.getsize(path)
    check_expansion(sum(unpacked(info, size) for info in archive.infolist()), size, path)


def check_zip(path: str | os.PathLike[str]) -> None:
    """`check_members` of a file, where it begins as a zip archive; what else it may be is for who reads it. InputError
    when it cannot be parsed: torch reads archives that zipfile refuses."""
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            if file.read(len(_LOCAL_FILE)) != _LOCAL_FILE:
                return
    except OSError:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, name)
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise InputError(f"{name}: a zip archive that cannot be read ({error}): truncated or corrupt") from error


def unpacked(info: zipfile.ZipInfo, size: int) -> int:
    """Bytes that a member of an archive can have; one that says it has more is damaged, which its reader finds out."""
    packed = min(info.compress_size, size)
    return min(info.file_size, packed if info.compress_type == zipfile.ZIP_STORED else _DEFLATE_MOST * (packed + 1))
