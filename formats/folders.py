"""A folder of shards, coded file by file into another folder: what is done already is left alone.

The process that calls `run` is the only one that writes the manifest and gives outputs their names; others code shards
into a hidden folder (`folder_work`), wherever they run (`folder_pool`, `folder_ray`). docs/folders.md is for users.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Final

from saecodec.errors import InputError, OutputError
from saecodec.formats.atomic import atomic_output
from saecodec.formats.codecfile import codec_bytes
from saecodec.formats.folder_manifest import SUMMARY, Line, Manifest, file_hash, open_manifest
from saecodec.formats.folder_plan import Shard, plan
from saecodec.formats.folder_pool import default_jobs, one_by_one, side_by_side
from saecodec.formats.folder_work import EncodeFolder, Task, Work
from saecodec.progress import Progress, no_progress

ENGINES: Final = ("local", "ray")
_NAMED: Final = 3  # of the outputs that an error is about

Lines = Generator[Line, None, None]


@dataclass(frozen=True)
class _Left:
    """What a run has to do. replaced: outputs that are there, and may go. done: lines that prove a shard done."""

    shards: list[Shard]
    replaced: set[str]
    done: list[Line]


def run(
    task: Task,
    *,
    engine: str = "local",
    jobs: int | None = None,
    pattern: str | None = None,
    check: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Code what is not done yet of a folder; write and return the summary, whose keys docs/folders.md has.

    engine: "local", processes of this machine, or "ray". jobs: processes or actors, by default one a core. pattern: see
    `plan`. check: hash the outputs that are there, instead of looking at their sizes. force: replace files that the
    manifest does not know, and those made with other settings. A shard that fails does not stop the others, and is
    listed in the summary. Raises, before any work, InputError (what `plan` refuses), OutputError, and what loading the
    SAE and the codec raises.
    """
    started = time.perf_counter()
    if engine not in ENGINES:
        raise InputError(f"the engine is {engine!r}, expected one of {', '.join(ENGINES)}")
    task = _absolute(task)
    shards = plan(task.src, task.extension, task.kinds, pattern)
    if engine == "local":
        jobs = min(jobs or default_jobs(task.device), len(shards))
    # Loaded even where others do the work: so that a piece which is missing or wrong is told once, and at once.
    work = (task if jobs == 1 and engine == "local" else replace(task, device="cpu")).load()
    outside = _codec_bytes(task)
    failures: list[Line] = []
    with open_manifest(task.dst, task.command, force=force) as manifest:
        left = _left(task, work, shards, manifest, check=check, force=force, progress=progress)
        lines = list(left.done)
        with closing(_results(task, work, left.shards, engine, jobs)) as results:
            for i, line in enumerate(results, 1):
                if "error" in line:
                    failures.append(line)
                else:
                    manifest.settle(line, force=line["output"] in left.replaced)
                    lines.append(line)
                note = f"{len(failures)} failed" if failures else ""
                progress(task.command.partition("-")[0], i, len(left.shards), note)
        counts = {"shards": len(shards), "done": len(lines) - len(left.done), "skipped": len(left.done)}
        summary = {"command": task.command, "engine": engine, **counts, "failed": len(failures)}
        summary |= _totals(task, lines, outside) | work.same | {"seconds": round(time.perf_counter() - started, 3)}
        summary["failures"] = [{key: line[key] for key in ("source", "error")} for line in failures]
        try:
            with atomic_output(os.path.join(task.dst, SUMMARY), force=True) as file:
                file.write(json.dumps(summary, indent=1).encode() + b"\n")
        except OutputError as error:
            first = f"; the first of {len(failures)} that failed, {failures[0]['source']}: {failures[0]['error']}"
            raise OutputError(f"{error}{first if failures else ''}") from error
    return summary


def _absolute(task: Task) -> Task:
    """With paths that mean the same in every process. An SAE may be named by more than a path."""

    def whole(name: str | None) -> str | None:
        here = name is not None and (os.path.exists(name) or os.path.exists(name.rpartition("#")[0]))
        return os.path.abspath(name) if name is not None and here else name

    src, dst = os.path.abspath(task.src), os.path.abspath(task.dst)
    return replace(task, src=src, dst=dst, sae=whole(task.sae), codec=whole(task.codec))


def _results(task: Task, work: Work, shards: Sequence[Shard], engine: str, jobs: int | None) -> Lines:
    if engine == "ray" and shards:
        from saecodec.formats.folder_ray import on_ray

        return on_ray(task, shards, jobs)
    return one_by_one(work, shards, task.device) if jobs == 1 else side_by_side(task, shards, jobs or 1)


def _left(
    task: Task, work: Work, shards: list[Shard], manifest: Manifest, *, check: bool, force: bool, progress: Progress
) -> _Left:
    """What is left to do; OutputError when files would be replaced that are not this task's."""
    left, refused = _Left([], set(), []), []
    for i, shard in enumerate(shards, 1):
        progress("check", i, len(shards))
        line = _proof(task, work, shard, manifest, check=check)
        if line is not None:
            left.done.append(line)
            continue
        left.shards.append(shard)
        output = os.path.join(task.dst, shard.output)
        if not os.path.lexists(output):
            continue
        left.replaced.add(shard.output)
        reason = None if force else _not_ours(output, shard, work, manifest)
        if reason:
            refused.append(f"{shard.output} {reason}")
    if refused:
        more = f", and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        raise OutputError(
            f"{task.dst}: {'; '.join(refused[:_NAMED])}{more}; pass --force (force=True) to replace what is there, "
            "remove it, or choose another folder"
        )
    return left


def _proof(task: Task, work: Work, shard: Shard, manifest: Manifest, *, check: bool) -> Line | None:
    """The line that proves a shard done: by this task, from the source as it is, with its output there."""
    line, output = manifest.latest(shard.output), os.path.join(task.dst, shard.output)
    if line is None or line["source"] != shard.source or not work.made(line):
        return None
    if not os.path.isfile(output) or os.path.getsize(output) != line["output_bytes"]:
        return None
    if check and file_hash(output) != line["output_sha256"]:
        return None
    source = os.path.join(task.src, shard.source)
    try:
        now = os.stat(source)
    except OSError:  # it vanished, which the shard's failure will tell
        return None
    if now.st_size != line["source_bytes"]:
        return None
    if now.st_mtime_ns != line["source_mtime_ns"]:
        if file_hash(source) != line["source_sha256"]:
            return None
        line = line | {"source_mtime_ns": now.st_mtime_ns}  # so that it need not be hashed again
        manifest.add(line)
    return line


def _not_ours(output: str, shard: Shard, work: Work, manifest: Manifest) -> str | None:
    """Why an output that is there must not be replaced: None when it is an earlier one of this task."""
    line = manifest.latest(shard.output)
    if line is None:
        return "is there, and the manifest does not know it"
    if not os.path.isfile(output) or not manifest.made(shard.output, file_hash(output)):
        return "is not what was written (damaged, or somebody else's)"
    if not work.made(line):
        return "was made with another codec, SAE or settings"
    return None


def _codec_bytes(task: Task) -> int:
    """Size of the codec file that the outputs go without."""
    if not isinstance(task, EncodeFolder) or task.codec is None or task.embed != "none":
        return 0
    return codec_bytes(task.codec)


def _totals(task: Task, lines: list[Line], outside: int) -> dict[str, Any]:
    """Sums over all shards that are done, now or before. outside: bytes of the codec file."""
    rows, bytes_in, bytes_out = (sum(line[key] for line in lines) for key in ("rows", "source_bytes", "output_bytes"))
    totals: dict[str, Any] = {"rows": rows, "bytes_in": bytes_in, "bytes_out": bytes_out}
    if not isinstance(task, EncodeFolder):
        losses = [{"source": line["source"], "lost": line["lost"]} for line in lines if "lost" in line]
        return totals | {"losses": losses}
    read_back = [line for line in lines if None not in (line.get("squared_error"), line.get("variance"))]
    variance = sum(line["variance"] for line in read_back)
    return totals | {
        "ratio": bytes_in / bytes_out if bytes_out else None,
        "bits_per_row": 8 * bytes_out / rows if rows else None,
        "bits_per_row_with_codec": 8 * (bytes_out + outside) / rows if rows else None,
        "read_back": len(read_back),
        "nmse": sum(line["squared_error"] for line in read_back) / variance if variance else None,
    }
