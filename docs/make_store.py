"""Measures .saec files as a store: `make store DATA=path/to/data` (20 minutes); writes docs/store.json.

DATA holds `minilm_l3_test.npy`, `minilm_l3_train.npz`, their `_seq`, and `saes/<name>/`. The rows of both are repeated
to a million. Every part runs in processes of its own and on files of its own; "jobs" runs one and two processes in
turn. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse

import saecodec
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.chunk_block import packed, unpacked
from saecodec.formats.chunk_pool import map_chunks
from saecodec.formats.codecfile import load_codec, save_codec
from saecodec.formats.decoding import decode_file
from saecodec.formats.decoding_latents import decode_latents
from saecodec.formats.encoding import encode_array
from saecodec.formats.encoding_latents import encode_latents
from saecodec.formats.latent_source import open_latents
from saecodec.formats.saec import open_saec
from saecodec.latents import LatentCodec

SAE = "minilm_l3_batchtopk_3072_k32"
ROWS = 1 << 20
SMALL = ROWS // 20
LATENTS = (0, 123, 1000, 2000, 3000)
ROUNDS = 3


def seconds(function: Callable[[], object]) -> float:
    """Of one run."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


class Store:
    """Files of the rows repeated: made once, in a folder that is empty at first."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.folder = folder
        self.sae = saecodec.load_sae(data / "saes" / SAE)
        train, test = np.load(data / "minilm_l3_train.npz"), np.load(data / "minilm_l3_test.npy")
        self.test = test
        self.rows = np.concatenate([train[train.files[0]], test])
        self.ids = [np.load(data / f"minilm_l3_{part}_seq.npy") for part in ("train", "test")]
        self.codecs = {"factorized": self.codec("factorized"), "context": self.codec("context")}

    def codec(self, prior: str) -> Path:
        """A codec fitted on the test rows, with its SAE."""
        path = self.folder / f"{prior}.saecodec"
        options: dict[str, Any] = {"seq": self.ids[1], "fit_seconds": 60} if prior == "context" else {}
        save_codec(saecodec.Codec.fit(self.sae, self.test, prior=prior, **options), path, embed_sae=True)
        return path

    def repeated(self, n: int) -> np.ndarray:
        """The first n of the rows repeated."""
        return np.resize(self.rows, (n, self.rows.shape[1]))

    def array(self, n: int) -> Path:
        """An .npy of n rows."""
        path = self.folder / f"{n}.npy"
        if not path.exists():
            np.save(path, self.repeated(n))
        return path

    def file(self, n: int, prior: str = "factorized") -> Path:
        """A .saec of n rows."""
        path = self.folder / f"{n}-{prior}.saec"
        if not path.exists():
            encode_array(MemoryArray(np.load(self.array(n), mmap_mode="r")), path, codec=load_codec(self.codecs[prior]))
        return path


def access(store: Store) -> dict[str, Any]:
    """Rows from all over a file of a million, and what is decoded for them."""
    path, codec = store.file(ROWS), load_codec(store.codecs["factorized"])
    with saecodec.open(path, codec=codec) as array:
        array[0]  # the codec's tables and the SAE are not what is measured
    rng, decoded = np.random.default_rng(0), []
    unpack = LatentCodec.unpack
    LatentCodec.unpack = lambda self, chunk, what="chunk": (decoded.append(what), unpack(self, chunk, what))[1]  # type: ignore[method-assign]
    index = rng.integers(0, ROWS, 1000)
    with saecodec.open(path, codec=codec) as array:
        chunks = len(array.file.index.rows)
        cold = seconds(lambda: array[index])
        once = len(decoded) == len(set(decoded))
    LatentCodec.unpack = unpack  # type: ignore[method-assign]

    def one_row() -> object:
        with saecodec.open(path, codec=codec) as array:
            return array[int(rng.integers(0, ROWS))]

    single = [1e3 * seconds(one_row) for _ in range(50)]
    return {
        "rows": ROWS,
        "chunks": chunks,
        "file_bytes": path.stat().st_size,
        "thousand_rows_seconds": cold,
        "chunks_decoded": len(decoded),
        "each_once": once,
        "one_row_ms": {"median": statistics.median(single), "largest": max(single)},
    }


def slices(store: Store) -> dict[str, Any]:
    """Bytes that a slice of a remote file reads, as a file system counts them."""
    from fsspec.implementations.local import LocalFileSystem
    from fsspec.registry import register_implementation

    read: list[tuple[int, int]] = []

    class Counting(LocalFileSystem):
        protocol = "counted"

        def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
            read.append((start, end))
            return super().cat_file(path, start, end, **options)

    register_implementation("counted", Counting, clobber=True)
    path, codec = store.file(ROWS), load_codec(store.codecs["factorized"])
    with saecodec.open(f"counted://{path}", codec=codec) as array:
        opened, index = sum(b - a for a, b in read), array.file.index
        read.clear()
        array[500_000:510_000]
        first, last = (int(np.searchsorted(index.first_row, row, side="right")) - 1 for row in (500_000, 509_999))
        held = [int(index.lengths[i]) for i in range(first, last + 1)]
        return {
            "rows": 10_000,
            "bytes_on_opening": opened,
            "requests": len(read),
            "bytes_read": sum(b - a for a, b in read),
            "bytes_of_its_chunks": sum(held),
            "chunks": len(held),
        }


def features(store: Store) -> dict[str, Any]:
    """One latent of a file, beside decoding the file."""
    out: dict[str, Any] = {}
    target = store.folder / "decoded.npy"
    for prior, n in (("factorized", ROWS), ("context", SMALL)):
        path, codec = store.file(n, prior), load_codec(store.codecs[prior])
        with saecodec.open(path, codec=codec) as array:
            latents = LATENTS
            blocks = None
            if prior == "context":
                block = codec.latents.prior.network.block  # type: ignore[attr-defined]
                latents = tuple(int(np.flatnonzero(block == b)[0]) for b in (0, 8, 16, int(block.max())))
                blocks = [int(block[latent]) + 1 for latent in latents]
            array.feature(latents[0])
            whole, memory, single = [], [], []
            for _ in range(ROUNDS):
                whole.append(seconds(lambda: decode_file(array.file, target, force=True)))
                memory.append(seconds(lambda: [None for _ in array]))
                single.append([seconds(lambda latent=latent: array.feature(latent)) for latent in latents])  # type: ignore[misc]
            each = np.median(single, axis=0)
            out[prior] = {
                "rows": n,
                "decode_to_npy_seconds": statistics.median(whole),
                "decode_in_memory_seconds": statistics.median(memory),
                "latents": list(latents),
                "blocks_decoded": blocks,
                "feature_seconds": each.tolist(),
                "faster_than_npy": (statistics.median(whole) / each).tolist(),
                "faster_than_memory": (statistics.median(memory) / each).tolist(),
            }
            target.unlink()
    return out


def digest(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else ""


def in_turn(run: Callable[[int], Path | str]) -> dict[str, Any]:
    """Seconds of a run with one process and with two, in turn, and whether what they made (files, or digests) is
    equal."""
    found: dict[int, list[float]] = {1: [], 2: []}
    digests = set()
    for _ in range(ROUNDS):
        for jobs in (1, 2):
            output: list[Path | str] = []
            found[jobs].append(seconds(lambda jobs=jobs, output=output: output.append(run(jobs))))  # type: ignore[misc]
            digests.add(output[0] if isinstance(output[0], str) else digest(output[0]))
            if isinstance(output[0], Path):
                output[0].unlink()
    ratios = [one / two for one, two in zip(found[1], found[2], strict=True)]
    return {"one": found[1], "two": found[2], "ratio": statistics.median(ratios), "equal": len(digests) == 1}


def coding(store: Store) -> dict[str, Any]:
    """Levels to bytes and back, and nothing else: 4 million rows, the chunks of a file over and over."""
    path, codec = store.file(SMALL * 5), load_codec(store.codecs["factorized"])
    with open_saec(path, codec=codec) as file:
        chunks, blocks = list(file.layers()), list(file.chunk_blocks(range(len(file.index.rows))))
    times = 4 * ROWS // (SMALL * 5)

    def pack(jobs: int) -> str:
        found = hashlib.sha256()
        for _, frames in map_chunks(packed, codec.coder, (chunk for _ in range(times) for chunk in chunks), jobs):
            found.update(b"".join(frames))
        return found.hexdigest()

    def unpack(jobs: int) -> str:
        found = hashlib.sha256()
        for layers in map_chunks(unpacked, codec.coder, (block for _ in range(times) for block in blocks), jobs):
            found.update(layers.codes.levels[:1000].tobytes())
        return found.hexdigest()

    return {"rows": times * SMALL * 5, "pack": in_turn(pack), "unpack": in_turn(unpack)}


def jobs(store: Store) -> dict[str, Any]:
    """One process and two."""
    out: dict[str, Any] = {"coding": coding(store)}
    n = {"factorized": ROWS // 2, "context": ROWS // 8}
    for prior in ("factorized", "context"):
        array = MemoryArray(np.load(store.array(n[prior]), mmap_mode="r"))
        codec, path = load_codec(store.codecs[prior]), store.file(n[prior], prior)

        def encode(jobs: int) -> Path:
            target = store.folder / "out.saec"
            encode_array(array, target, codec=codec, jobs=jobs)  # noqa: B023
            return target

        def decode(jobs: int) -> Path:
            target = store.folder / "out.npy"
            with open_saec(path, codec=codec) as file:  # noqa: B023
                decode_file(file, target, jobs=jobs)
            return target

        def levels(jobs: int) -> Path:
            target = store.folder / "out.npz"
            with open_saec(path, codec=codec) as file:  # noqa: B023
                decode_latents(file, target, jobs=jobs)
            return target

        out[prior] = {
            "rows": n[prior],
            "encode": in_turn(encode),
            "decode": in_turn(decode),
            "latents": in_turn(levels),
        }
    out["stored_latents"] = {"rows": n["factorized"]} | {"encode": in_turn(_encode_stored(store, n["factorized"]))}
    return out


def _encode_stored(store: Store, n: int) -> Callable[[int], Path]:
    """Encoding of feature activations that were stored: no SAE, all of it is fitting and coding."""
    with saecodec.open(store.file(n), codec=load_codec(store.codecs["factorized"])) as array:
        sparse.save_npz(store.folder / "z.npz", sparse.csr_matrix(array.features[:]), compressed=False)
    source = open_latents(store.folder / "z.npz")

    def encode(jobs: int) -> Path:
        target = store.folder / "z.saec"
        encode_latents(source, target, jobs=jobs)
        return target

    return encode


_PEAK = """
import re, sys
from saecodec.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])  # ru_maxrss would count the parent's
"""
_SLICE = """
import re, sys, saecodec
from saecodec.formats.codecfile import load_codec
with saecodec.open(sys.argv[1], codec=load_codec(sys.argv[2])) as array:
    for start in range(0, len(array), len(array) // 50):
        array[start : start + 5000]
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


def memory(store: Store) -> dict[str, Any]:
    """Peak resident MB of commands, at a twentieth of the rows and at all."""
    codec, out = str(store.codecs["factorized"]), {}
    for n in (SMALL, ROWS):
        array, path = str(store.array(n)), str(store.file(n))
        runs = {"slices": [_SLICE, path, codec]}
        for jobs in ("1", "2"):
            options = ["-c", codec, "--jobs", jobs, "--force", "-o"]
            runs[f"encode_jobs_{jobs}"] = [_PEAK, "encode", array, *options, str(store.folder / "m.saec")]
            runs[f"decode_jobs_{jobs}"] = [_PEAK, "decode", path, *options, str(store.folder / "m.npy")]
        for name, (code, *arguments) in runs.items():
            ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
            out.setdefault(name, {})[str(n)] = int(ran.stdout.split()[-1]) / 1024
    return {name: found | {"growth": found[str(ROWS)] / found[str(SMALL)] - 1} for name, found in out.items()}


PARTS: dict[str, Callable[[Store], dict[str, Any]]] = {
    "access": access,
    "slices": slices,
    "features": features,
    "jobs": jobs,
    "memory": memory,
}


def main() -> None:
    """Measure, write docs/store.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append", help="only these; the others stay as they were")
    arguments = parser.parse_args()
    target = Path(__file__).parent / "store.json"
    report = json.loads(target.read_text()) if target.exists() else {}
    report["machine"] = f"{os.cpu_count()} {platform.machine()} cores, torch {torch.__version__.split('+')[0]}"
    with tempfile.TemporaryDirectory() as folder:
        store = Store(arguments.data, Path(folder))
        for name in arguments.part or PARTS:
            print(name, flush=True)
            report[name] = PARTS[name](store)
            print(json.dumps(report[name], indent=1), flush=True)
            target.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
