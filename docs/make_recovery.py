"""Kills `saecodec encode` at random moments and recovers: `make recovery DATA=path/to/data` (some minutes); writes
docs/recovery.json.

DATA holds `minilm_l3_test.npy` and `saes/<name>/`. One run is left alone; each other one gets a SIGKILL at a moment
that is drawn uniformly over the time from the header to the end of the first one; one that has ended by then does not
count. What it left must be the beginning of the undisturbed file, and what `saecodec recover` makes of it must hold
every chunk that is complete there, bit by bit.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from saecodec.formats.recovering import recover_file
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.formats.structure import checked_frames
from saecodec.frames import HEAD_BYTES

PROGRAM = [sys.executable, "-c", "from saecodec.cli import main; main()"]
SAE = "minilm_l3_batchtopk_3072_k32"
CHUNK_ROWS = 64


def command(data: Path, folder: Path, out: Path) -> list[str]:
    """An encode under a codec that was fitted before, so that chunks are written from the start."""
    arguments = ["encode", data / "minilm_l3_test.npy", "-s", data / "saes" / SAE, "-c", folder / "l3.saecodec"]
    return [*PROGRAM, *map(str, arguments), "--chunk-rows", str(CHUNK_ROWS), "-o", str(out)]


def chunk_ends(file: SaecFile) -> list[int]:
    """Where the frames of each chunk end."""
    return [at + HEAD_BYTES + head.length for at, head, _ in checked_frames(file) if head.kind == "CHNK"]


def header_seen(process: subprocess.Popen[bytes], partial: Path) -> None:
    """Wait until a run has begun to write."""
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.001)


def run(arguments: list[str], partial: Path) -> float:
    """Run undisturbed; returns the seconds from the first bytes to the end."""
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        header_seen(process, partial)
        started = time.perf_counter()
        assert process.wait() == 0
    return time.perf_counter() - started


def killed(arguments: list[str], partial: Path, after: float) -> bool:
    """Run, and kill so many seconds after the first bytes; whether it had not ended by then."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    header_seen(process, partial)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def measure(data: Path, folder: Path, n_kills: int, seed: int) -> dict[str, Any]:
    """All kills, and what came back."""
    fit = ["fit", data / "saes" / SAE, data / "minilm_l3_test.npy", "-o", folder / "l3.saecodec"]
    subprocess.run([*PROGRAM, *map(str, fit)], check=True, stdout=subprocess.DEVNULL)
    whole, out = folder / "whole.saec", folder / "acts.saec"
    seconds = run(command(data, folder, whole), folder / "whole.saec.partial")
    undisturbed = whole.read_bytes()
    with open_saec(whole) as file:
        ends, rows = chunk_ends(file), file.index.rows.tolist()
        start = int(file.index.offsets[0])
    drawn, partial, found, ended = random.Random(seed), Path(f"{out}.partial"), [], 0
    while len(found) < n_kills:
        if not killed(command(data, folder, out), partial, drawn.uniform(0, seconds)):
            ended += 1
            assert out.read_bytes() == undisturbed
            out.unlink()
            continue
        assert not out.exists()
        left = partial.read_bytes()
        partial.unlink()
        assert undisturbed.startswith(left)
        assert len(left) >= start
        complete = sum(end <= len(left) for end in ends)
        (folder / "left").write_bytes(left)
        report = recover_file(folder / "left", folder / "back.saec", force=True)
        with open_saec(folder / "back.saec") as file:
            assert chunk_ends(file) == ends[:complete]
        back = (folder / "back.saec").read_bytes()
        assert back[: report.kept_bytes] == undisturbed[: (start, *ends)[complete]]
        assert report.rows == sum(rows[:complete])
        found.append({"bytes_left": len(left), "chunks": complete, "rows": report.rows, "torn": report.skipped_bytes})
    kept = [run["rows"] for run in found]
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "rows": sum(rows),
        "chunks": len(rows),
        "chunk_rows": CHUNK_ROWS,
        "seconds_of_writing": round(seconds, 2),
        "seed": seed,
        "ended_before_the_kill": ended,
        "killed": n_kills,
        "recovered_all_complete_chunks_bit_by_bit": len(found),  # each was asserted
        "different_moments": len({run["bytes_left"] for run in found}),
        "torn_in_a_chunk": sum(run["torn"] > 0 for run in found),
        "rows_recovered": {"least": min(kept), "median": statistics.median(kept), "most": max(kept)},
        "rows_by_run": kept,
    }


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("recovery.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(given.data.resolve(), Path(folder), given.kills, given.seed)
    text = json.dumps(result, indent=1)
    given.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
