"""Which files of a folder are coded, and under which names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from saecodec.errors import InputError
from saecodec.formats.arrays import is_array_folder


@dataclass(frozen=True)
class Shard:
    """A file that is coded whole. source, output: paths relative to their folders, with "/" between names."""

    source: str
    output: str


def plan(folder: str, extension: str, kinds: tuple[str, ...], pattern: str | None = None) -> list[Shard]:
    """The shards of a folder and of all folders in it, in the order of their names.

    extension: of the outputs. kinds: extensions of the sources. pattern: of names, or with a "/" of relative paths.
    Hidden files and folders are left out; links to folders are not followed. InputError when there is no such folder,
    nothing to code in it, a store that is a folder itself, or two shards whose outputs would have one name.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; expected a folder of files")
    shards: dict[str, Shard] = {}
    for source in sorted(_files(folder, all_kinds=pattern is None)):
        stem, found = os.path.splitext(source)
        if found.lower() not in kinds or not _matches(source, pattern):
            continue
        shard = Shard(source, stem + extension)
        if shard.output in shards:
            raise InputError(
                f"{folder}: {shards[shard.output].source} and {source} would both become {shard.output}; rename one, "
                "or choose one kind with --pattern"
            )
        shards[shard.output] = shard
    if not shards:
        what = f"no file that matches {pattern!r}" if pattern else "no file to code"
        raise InputError(f"{folder}: holds {what}; expected files that end in {', '.join(kinds)}")
    return list(shards.values())


def _matches(source: str, pattern: str | None) -> bool:
    if pattern is None:
        return True
    return fnmatchcase(source if "/" in pattern else source.rpartition("/")[2], pattern)


def _files(folder: str, *, all_kinds: bool) -> Iterator[str]:
    """Relative paths of all files, but for pipes and devices, which may never end. all_kinds: none may be left out, so
    a store that is a folder is an error."""
    for place, inner, names in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".")]
        stores = [name for name in inner if is_array_folder(os.path.join(place, name))]
        if stores and all_kinds:
            raise InputError(
                f"{os.path.join(place, stores[0])}: is an array in a folder of its own, not a file; code it with "
                "'saecodec encode', and choose the files here with --pattern"
            )
        inner[:] = [name for name in inner if name not in stores]
        for name in names:
            path = os.path.join(place, name)
            if not name.startswith(".") and (os.path.isfile(path) or not os.path.exists(path)):
                yield os.path.relpath(path, folder).replace(os.sep, "/")
