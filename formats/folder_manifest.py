"""The manifest of a folder of outputs: one JSON line for each finished shard, appended as it finishes.

An output is first staged in a hidden folder, then its line is appended and synced, then it gets its name. So no output
is there without its line, and what a crash leaves between the two is seen when the manifest is opened again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Final

from saecodec.errors import FormatError, InputError, OutputError
from saecodec.formats.atomic import publish, reporting
from saecodec.formats.file_lock import locked

Line = dict[str, Any]
"""What is known of a finished shard: docs/folders.md lists the keys."""

MANIFEST: Final = "manifest.jsonl"
SUMMARY: Final = "summary.json"
STAGING: Final = ".saecodec-staging"
_TOLD: Final = {
    "command": str,
    "source": str,
    "source_bytes": int,
    "source_mtime_ns": int,
    "source_sha256": str,
    "output": str,
    "output_bytes": int,
    "output_sha256": str,
    "settings": dict,
    "rows": int,
}
"""The keys that a line must have, because something here goes by them."""
_FIGURES: Final = ("squared_error", "variance")
"""Keys that it may have: numbers, or null."""
_SLICE: Final = 1 << 20


def file_hash(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, hex; InputError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(_SLICE):
                digest.update(part)
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def path_inside(folder: str, name: str) -> str:
    """The path of a name in a folder; OutputError when a link there leads out of the folder, which somebody else may
    have filled."""
    path, root = os.path.join(folder, name), os.path.realpath(folder)
    if os.path.commonpath([root, os.path.realpath(path)]) != root:
        raise OutputError(f"{path}: leads out of {folder}, by a link; remove it, or choose another folder")
    return path


def staged_path(folder: str, output: str) -> str:
    """Where the output of a shard lies until its line is in the manifest; the folder for it is made."""
    path = _unlinked(folder, f"{STAGING}/{output}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def _unlinked(folder: str, name: str) -> str:
    """The path of a name in a folder; OutputError when a link is in the way, for what it leads to would be replaced."""
    path = os.path.join(folder, name)
    if os.path.realpath(path) != os.path.join(os.path.realpath(folder), name):
        raise OutputError(f"{path}: is reached by a link; remove it, or choose another folder")
    return path


class Manifest:
    """The lines of a folder; made by `open_manifest`."""

    def __init__(self, folder: str, command: str, file: BinaryIO) -> None:
        self.folder, self._file = folder, file
        self._lines: dict[str, list[Line]] = {}
        for line in self._read(os.path.join(folder, MANIFEST), command):
            self._lines.setdefault(line["output"], []).append(line)

    def latest(self, output: str) -> Line | None:
        """The last line of an output, which is the one that holds."""
        return self._lines[output][-1] if output in self._lines else None

    def made(self, output: str, sha256: str) -> bool:
        """Whether a file of this hash was ever written under the name."""
        return any(line["output_sha256"] == sha256 for line in self._lines.get(output, ()))

    def add(self, line: Line) -> None:
        """Append a line; it is on the disk when this returns."""
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"{self.folder}/{MANIFEST}: cannot be written ({error.strerror})") from error
        self._lines.setdefault(line["output"], []).append(line)

    def settle(self, line: Line, *, force: bool) -> None:
        """Append the line of a staged output, and give the output its name. force: a file has that name already, and
        may go."""
        target = path_inside(self.folder, line["output"])
        with reporting(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
        self.add(line)
        publish(target, staged_path(self.folder, line["output"]), force=force)

    def recover(self, *, force: bool) -> None:
        """Give outputs their names that a crash left between line and name, and remove what else is staged."""
        staging = os.path.join(self.folder, STAGING)
        for place, _, names in os.walk(staging):
            for name in names:
                path = os.path.join(place, name)
                if os.path.islink(path):
                    continue
                output = os.path.relpath(path, staging).replace(os.sep, "/")
                line = self.latest(output)
                if line is None or line["output_sha256"] != file_hash(path):
                    continue
                target = path_inside(self.folder, output)
                if os.path.lexists(target) and not force and not self.made(output, file_hash(target)):
                    raise OutputError(
                        f"{target}: stands where an earlier run was about to put its output, {path}; remove it, or "
                        "pass --force to replace it"
                    )
                os.makedirs(os.path.dirname(target), exist_ok=True)
                publish(target, path, force=True)
        shutil.rmtree(staging, ignore_errors=True)

    def _read(self, path: str, command: str) -> Iterator[Line]:
        """The lines of the file, which ends behind the last one then: a crash may have cut that short."""
        self._file.seek(0)
        at = 0
        for number, text in enumerate(self._file, 1):
            try:
                line = _parsed(text, f"{path}, line {number}")
            except FormatError:
                if self._file.read(1) or not _begins(text, command):
                    raise
                self._file.truncate(at)
                break
            if line["command"] != command:
                raise OutputError(f"{self.folder}: holds what {line['command']} wrote; choose another folder")
            yield line
            at += len(text)
            if not text.endswith(b"\n"):
                self._file.write(b"\n")
        self._file.seek(0, os.SEEK_END)


def _begins(text: bytes, command: str) -> bool:
    """Whether a line may be the beginning of one of a command, or the zeros that a power cut leaves of it."""
    found, expected = text.strip(b"\0"), json.dumps({"command": command}).encode()[:-1]
    return found.startswith(expected[: len(found)])


def _parsed(text: bytes, where: str) -> Line:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: is not JSON ({error}): not a manifest of saecodec, or damaged") from error
    wrong = [key for key, kind in _TOLD.items() if not isinstance(line, dict) or type(line.get(key)) is not kind]
    wrong = wrong or [key for key in _FIGURES if not _is_figure(line.get(key))]
    if wrong:
        raise FormatError(f"{where}: has no {wrong[0]!r} as saecodec writes it: not a manifest of saecodec, or damaged")
    return dict(line)


def _is_figure(value: object) -> bool:
    """Whether a value is null, or a number that can be summed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value is None
    return -sys.float_info.max <= value <= sys.float_info.max


@contextmanager
def open_manifest(folder: str, command: str, *, force: bool = False) -> Iterator[Manifest]:
    """The manifest of a folder of outputs, which is made where it is missing, for one run at a time.

    Raises OutputError when the folder cannot be written or belongs to another command, another run works in it, or it
    holds a summary that no manifest explains (with `force` that is overwritten); FormatError when the file under the
    manifest's name is something else.
    """
    path, *_ = (_unlinked(folder, name) for name in (MANIFEST, SUMMARY, STAGING))
    if os.path.exists(os.path.join(folder, SUMMARY)) and not os.path.exists(path) and not force:
        raise OutputError(f"{folder}: holds a {SUMMARY}, but no {MANIFEST}; pass --force to overwrite it")
    if not os.path.isdir(os.path.dirname(os.path.abspath(folder))):
        raise OutputError(f"{folder}: the folder that it would lie in is not there; create it, or choose another place")
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    with file, locked(path, path):
        manifest = Manifest(folder, command, file)
        manifest.recover(force=force)
        try:
            yield manifest
        except BaseException:
            for place, _, _ in os.walk(os.path.join(folder, STAGING), topdown=False):
                with suppress(OSError):  # an output that has its line already is for the next run
                    os.rmdir(place)
            raise
        shutil.rmtree(os.path.join(folder, STAGING), ignore_errors=True)
