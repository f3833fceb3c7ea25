"""Zip archives (`.npz`, `.pt`) that libraries unpack into memory: what they may unpack to."""

from __future__ import annotations

import os
import zipfile

from saecodec.limits import check_expansion


def check_members(archive: zipfile.ZipFile, path: str) -> None:
    """LimitError when the members of an archive are larger than its bytes account for."""
    unpacked = sum(info.file_size for info in archive.infolist())
    check_expansion(unpacked, os.path.getsize(path), path)


def check_zip(path: str | os.PathLike[str]) -> None:
    """`check_members` of a file, where it is a zip archive; what else it may be is for who reads it."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_members(archive, os.fspath(path))
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return
