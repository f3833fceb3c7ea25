"""Reads hostile files, each in a process of its own, and prints as JSON what each came to: `run_attacks.py FILES...`.

The processes are forks of one that has imported everything, so what they take beyond it is what the file costs.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import saecodec.filled_rows
import saecodec.formats.arrays
import saecodec.formats.checkpoints
import saecodec.formats.decoding
import saecodec.formats.folder_manifest
import saecodec.formats.recovering
import saecodec.formats.safetensors_arrays
import saecodec.formats.weights
import saecodec.priors.context
import saecodec.priors.network_bytes
from saecodec.errors import SaecodecError
from saecodec.formats.checkpoint import read_config
from saecodec.formats.codecfile import load_codec
from saecodec.formats.saec import open_saec

MOST_ADDRESSES = 8 << 30  # beyond what the process has: a bomb must not take the machine


def _saec(path: Path) -> None:
    with open_saec(path, device="cpu") as file:
        saecodec.formats.decoding.verify_file(file)


def _manifest(path: Path) -> None:
    with saecodec.formats.folder_manifest.open_manifest(str(path.parent), "encode-dir"):
        pass


def _zarr_chunk(path: Path) -> None:
    codec = load_codec(Path(__file__).parent.parent / "golden" / "none.saecodec", "cpu")
    saecodec.filled_rows.FilledRows.read(codec, path.read_bytes(), 4)


def _recover(path: Path) -> None:
    saecodec.formats.recovering.recover_file(path, path.with_suffix(".saec"))


READERS: dict[str, Callable[[Path], object]] = {
    ".saec": _saec,
    ".saecodec": lambda path: load_codec(path, "cpu"),
    ".sae.npz": lambda path: saecodec.formats.checkpoints.load_sae(path, "cpu"),
    ".pt": lambda path: saecodec.formats.checkpoints.load_sae(path, "cpu"),
    ".torn": _recover,
    ".json": read_config,
    ".jsonl": _manifest,
    ".zarr-chunk": _zarr_chunk,
    **dict.fromkeys((".npy", ".npz", ".safetensors"), lambda path: saecodec.formats.arrays.open_array(str(path), None)),
}


def read(path: Path) -> dict[str, object]:
    """The error of a file, "" when it is read, and the seconds of processor time that it took."""
    reader = next(reader for suffix, reader in READERS.items() if path.name.endswith(suffix))
    started = time.process_time()
    try:
        reader(path)
        error, told = "", ""
    except BaseException as found:
        error, told = type(found).__name__, str(found)
        if not isinstance(found, SaecodecError):
            error = f"not a SaecodecError: {error}"
    return {"error": error, "message": told[:2000], "seconds": time.process_time() - started}


def in_a_fork(work: Callable[[], dict[str, object]]) -> dict[str, object]:
    """What a forked process returns, and its largest resident memory in bytes."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(sending, "w") as pipe:
            pipe.write(json.dumps(work()))
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        text = pipe.read()
    _, status, usage = os.wait4(child, 0)
    found = json.loads(text) if text else {"error": f"ended with status {status}", "message": "", "seconds": 0.0}
    return found | {"bytes": usage.ru_maxrss * 1024}


def main() -> None:
    """Read all files."""
    torch.set_num_threads(1)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_ADDRESSES,) * 2)
    idle = in_a_fork(lambda: {})["bytes"]
    assert isinstance(idle, int)
    out = {}
    for name in sys.argv[1:]:
        found = in_a_fork(lambda name=name: read(Path(name)))  # type: ignore[misc]
        assert isinstance(found["bytes"], int)
        out[name] = found | {"bytes": found["bytes"] - idle}
    print(json.dumps(out))


if __name__ == "__main__":
    main()
