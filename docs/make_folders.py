"""Measures `encode-dir`: `make folders DATA=path/to/data` (three minutes); writes docs/folders.json.

DATA holds `minilm_l3_train.npz` and `saes/<name>/`. 24 shards of 6,300 rows are coded on local processes and on Ray,
once with an actor killed when half of them are done. "seconds" is all of a run, with the start of processes or of Ray;
"first_to_last" goes from the first finished shard to the last. The runs take turns, and the fastest of three counts:
whatever else the machine does makes one slower. Linux: it looks for processes in /proc.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import saecodec
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.codecfile import save_codec
from saecodec.formats.encoding import fit_array
from saecodec.formats.folder_work import EncodeFolder
from saecodec.formats.folders import run

SAE = "minilm_l3_batchtopk_3072_k32"
SHARDS = 24
REPEATS = 3
RUNS: dict[str, dict[str, Any]] = {
    "local, 1 process": {"engine": "local", "jobs": 1},
    "local, 2 processes": {"engine": "local", "jobs": 2},
    "ray, 2 actors": {"engine": "ray", "jobs": 2},
    "ray, 2 actors, one killed": {"engine": "ray", "jobs": 2},
}


def prepare(data: Path, folder: Path) -> dict[str, Any]:
    """Write shards and a codec; returns what they are."""
    rows = np.load(data / "minilm_l3_train.npz")["x"]
    (folder / "acts").mkdir()
    for i, part in enumerate(np.array_split(rows, SHARDS)):
        np.save(folder / "acts" / f"{i:02}.npy", part)
    codec = fit_array(MemoryArray(rows[:32768]), saecodec.load_sae(data / "saes" / SAE, "cpu"))
    save_codec(codec, folder / "l3.saecodec", embed_sae=True)
    return {"sae": SAE, "shards": SHARDS, "rows": len(rows), "bytes": rows.nbytes, "prior": codec.latents.prior.name}


def actors() -> list[int]:
    """Processes below this one that are Ray Data's actors."""
    found, below = [], [os.getpid()]
    while below:
        pid = below.pop()
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                below += [int(child) for child in (task / "children").read_text().split()]
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(pid)
        except FileNotFoundError:  # it has ended meanwhile
            continue
    return found


def measured(dst: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A run into a new folder, with what came out of it."""
    folder, finished, killed = dst.parent, list[float](), list[int]()

    def watch(stage: str, done: int, total: int, note: str = "", /) -> None:
        if stage != "encode":
            return
        finished.append(time.perf_counter())
        if "killed" in dst.name and done == total // 2:
            killed.append(actors()[0])
            os.kill(killed[0], signal.SIGKILL)

    task = EncodeFolder(src=str(folder / "acts"), dst=str(dst), codec=str(folder / "l3.saecodec"), device="cpu")
    summary = run(task, progress=watch, **options)
    digest = hashlib.sha256()
    for path in sorted(dst.rglob("*.saec")):
        digest.update(path.read_bytes())
    print(f"{dst.name}: {summary['seconds']:.1f} s")
    facts = {key: summary[key] for key in ("done", "failed", "seconds", "bits_per_row", "nmse")}
    return facts | {
        "first_to_last": round(finished[-1] - finished[0], 3),
        "killed": len(killed),
        "sha256_of_outputs": digest.hexdigest(),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    data: Path = parser.parse_args().data
    report: dict[str, Any] = {"machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"}
    with tempfile.TemporaryDirectory() as name:
        report["input"] = prepare(data, Path(name))
        tried = [
            {run: measured(Path(name, f"{i} {run}"), options) for run, options in RUNS.items()} for i in range(REPEATS)
        ]
    runs = {run: min((found[run] for found in tried), key=lambda found: found["seconds"]) for run in RUNS}
    local, ray = runs["local, 2 processes"], runs["ray, 2 actors"]
    report["runs"] = runs
    report["ray_over_local"] = {key: round(ray[key] / local[key], 3) for key in ("seconds", "first_to_last")}
    every = [found for turn in tried for found in turn.values()]
    report["outputs_equal"] = len({found["sha256_of_outputs"] for found in every}) == 1
    Path(__file__).with_name("folders.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: report[key] for key in ("ray_over_local", "outputs_equal")}), file=sys.stderr)
    assert report["outputs_equal"]
    assert all((found["done"], found["failed"]) == (SHARDS, 0) for found in every)
    assert all(turn["ray, 2 actors, one killed"]["killed"] == 1 for turn in tried)


if __name__ == "__main__":
    main()
