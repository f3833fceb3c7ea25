"""Zip archives (`.npz`, `.pt`) that libraries unpack into memory: what they may unpack to."""

from __future__ import annotations

import os
import zipfile
from typing import Final

from saecodec.limits import check_expansion

_DEFLATE_MOST: Final = 1032
"""Times as many bytes as deflate packs them into, at most."""


def check_members(archive: zipfile.ZipFile, path: str) -> None:
    """LimitError when the members of an archive are larger than its bytes account for."""
    size = os.path.getsize(path)
    check_expansion(sum(unpacked(info, size) for info in archive.infolist()), size, path)


def check_zip(path: str | os.PathLike[str]) -> None:
    """`check_members` of a file, where it is a zip archive; what else it may be is for who reads it."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, os.fspath(path))
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return


def unpacked(info: zipfile.ZipInfo, size: int) -> int:
    """Bytes that a member of an archive can have; one that says it has more is damaged, which its reader finds out."""
    packed = min(info.compress_size, size)
    return min(info.file_size, packed if info.compress_type == zipfile.ZIP_STORED else _DEFLATE_MOST * (packed + 1))
