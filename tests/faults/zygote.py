"""Runs `saecodec` where something goes wrong: on a small, full or read-only disk, with a limit, or until it is killed.

A process that has imported all once and forks for every command: one that starts anew would take seconds. It reads
requests, a JSON object a line, and answers in the same way.

command: the arguments; if the first is "-c", the second is a program, as Python's.
disk: the folder that it runs in, to which `existing`, name -> path, are copied first.
told: a folder for its output.
room: bytes that are free on the disk then, which is a tmpfs in a mount namespace of its own, so that nobody else sees
it and nothing of it stays; without, the folder as it is. read_only: the disk is.
limit: of the size of files (RLIMIT_FSIZE).
fails: name of a function of `os` that finds no space.
hold: "write" or "sync", where the command stops; then it gets `signal`, or `second`, another command, runs before it
goes on. passing: how many of them come first.

The answer has status, stdout and stderr; files: name -> content in hexadecimal; untouched: whether each of `existing`
is as it was, the time included; of the second command status and output under `second`. Or `skip`, the reason why there
can be no such disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import saecodec.cli
import saecodec.formats.atomic
import saecodec.formats.store_file
from saecodec.cli.app import app  # noqa: F401

for module in ("matplotlib.figure", "pyarrow.parquet", "scipy.sparse", "zarr"):  # what commands would import one by one
    with contextlib.suppress(ImportError):
        importlib.import_module(module)

_PAGE = 4096
_NEW_NS, _NEW_USER = 0x20000, 0x10000000
_READ_ONLY, _REMOUNT, _RECURSIVE, _PRIVATE = 1, 32, 16384, 1 << 18
_PATIENCE = 60.0  # seconds


def serve() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    gc.freeze()  # a collection in a child would copy all of this process's memory
    for line in sys.stdin:
        answers.write(json.dumps(_in_child(lambda line=line: _answer(json.loads(line)))) + "\n")
        answers.flush()


def _in_child(function: Callable[[], Any]) -> Any:
    """What a function returns in a process of its own."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        try:
            result = function()
        except BaseException:
            result = {"error": traceback.format_exc()}
        with os.fdopen(writer, "w") as file:
            json.dump(result, file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        result = json.load(file)
    os.waitpid(child, 0)
    return result


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    disk, existing = Path(request["disk"]), request.get("existing", {})
    if request.get("room") is not None:
        held = sum(-(-os.path.getsize(path) // _PAGE) * _PAGE for path in existing.values())
        try:
            _mount(disk, _PAGE + held + request["room"])
        except OSError as error:
            return {"skip": f"no file system can be mounted here: {error}"}
        (disk / ".filler").write_bytes(bytes(_PAGE))  # a tmpfs of no bytes has no limit
    for name, path in existing.items():
        shutil.copyfile(path, disk / name)
    before = {name: (disk / name).stat().st_mtime_ns for name in existing}
    if request.get("read_only"):
        _libc("mount", b"none", bytes(disk), None, _REMOUNT | _READ_ONLY, None)
    answer = _run(request)
    answer["untouched"] = {
        name: (disk / name).is_file()
        and (disk / name).stat().st_mtime_ns == before[name]
        and (disk / name).read_bytes() == Path(path).read_bytes()
        for name, path in existing.items()
    }
    answer["files"] = dict(sorted(_files(disk)))
    return answer


def _files(disk: Path) -> Iterator[tuple[str, str]]:
    """Names, of empty folders too, and contents in hexadecimal."""
    for place, folders, names in os.walk(disk):
        for name in names:
            path = Path(place, name)
            if path != disk / ".filler":
                yield str(path.relative_to(disk)), path.read_bytes().hex()
        if not folders and not names and Path(place) != disk:
            yield str(Path(place).relative_to(disk)) + "/", ""


def _run(request: dict[str, Any]) -> dict[str, Any]:
    told = Path(request["told"])
    answer = {}
    child = _start(request["command"], request, told / "first")
    if "hold" in request:
        _await(told / "first.held", child)
        if "second" in request:
            other = _start(request["second"], {"disk": request["disk"]}, told / "second")
            answer["second"] = _ended(other, told / "second")
            (told / "first.held").unlink()
        else:
            os.kill(child, request["signal"])
    return answer | _ended(child, told / "first")


def _ended(child: int, told: Path) -> dict[str, Any]:
    """Status and output of a process, when it has ended."""
    _, status = os.waitpid(child, 0)
    out, err = (Path(f"{told}.{name}").read_text() for name in ("out", "err"))
    return {"status": os.waitstatus_to_exitcode(status), "stdout": out, "stderr": err}


def _await(path: Path, child: int) -> None:
    until = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > until or os.waitpid(child, os.WNOHANG)[0]:
            raise TimeoutError("the command did not come to where it was to be held")
        time.sleep(0.002)


def _start(command: list[str], faults: dict[str, Any], told: Path) -> int:
    """A process that runs a command, as one that was started from a shell."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{told}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.chdir(faults["disk"])
        _arrange(faults, told)
        sys.argv = ["saecodec", *command]
        if command[0] == "-c":
            exec(command[1], {"__name__": "__main__"})
        else:
            saecodec.cli.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _arrange(faults: dict[str, Any], told: Path) -> None:
    """Let happen in this process what is to go wrong."""
    if "limit" in faults:
        resource.setrlimit(resource.RLIMIT_FSIZE, (faults["limit"], resource.RLIM_INFINITY))
    if "fails" in faults:

        def full(*arguments: Any, **options: Any) -> Any:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        setattr(os, faults["fails"], full)
    if "hold" in faults:
        held, passed = Path(f"{told}.held"), []

        def holding(function: Callable[..., Any]) -> Callable[..., Any]:
            def held_function(*arguments: Any, **options: Any) -> Any:
                result = function(*arguments, **options)
                passed.append(function)
                if len(passed) == 1 + faults.get("passing", 0):
                    held.touch()
                    until = time.monotonic() + _PATIENCE
                    while held.exists():
                        if time.monotonic() > until:  # the zygote is gone
                            os._exit(70)
                        time.sleep(0.002)
                return result

            return held_function

        if faults["hold"] == "sync":
            os.fsync = holding(os.fsync)
        else:
            for kind in (saecodec.formats.atomic._OutputFile, saecodec.formats.store_file._Whole):
                kind.write = holding(kind.write)  # type: ignore[method-assign]


def _mount(disk: Path, size: int) -> None:
    """Mount a tmpfs of a size that only this process and its children see."""
    if os.geteuid():
        user, group = os.geteuid(), os.getegid()
        _libc("unshare", _NEW_USER | _NEW_NS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    else:
        _libc("unshare", _NEW_NS)
    _libc("mount", b"none", b"/", None, _RECURSIVE | _PRIVATE, None)
    _libc("mount", b"tmpfs", bytes(disk), b"tmpfs", 0, f"size={size}".encode())


def _libc(name: str, *arguments: Any) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    serve()
