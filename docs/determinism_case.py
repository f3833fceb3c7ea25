"""One run of the matrix of docs/determinism.md: `python docs/determinism_case.py FOLDER OUT.json`, in one environment.

FOLDER is what `make_determinism.py` prepared: rows, codec files with their SAEs, and files coded by the reference. What
is found goes to OUT.json, what is compared to OUT.npz. `--part activations` runs nothing but the SAEs, on many rows.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

import saecodec
from saecodec.codec import Codec
from saecodec.distortion import Distortion
from saecodec.exact_encoder import deterministic_pieces
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.chunk_block import packed
from saecodec.formats.chunk_pool import map_chunks
from saecodec.formats.codecfile import load_codec
from saecodec.formats.encoding import encode_array
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.frames import frame
from saecodec.layers import Layers

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
PACKAGES = ("numpy", "torch", "constriction", "zstandard", "msgpack")


def digest(parts: Iterable[bytes]) -> str:
    """sha256, the first 16 digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()[:16]


def level_bytes(layers: Layers) -> Iterable[bytes]:
    """The integers of a chunk, as int64."""
    codes = layers.codes
    columns = [codes.columns[name] for name in sorted(codes.columns)]
    residual = [] if layers.residual is None else [layers.residual]
    for part in (codes.indptr, codes.latents, codes.levels, *columns, *residual):
        yield np.asarray(part, "<i8").tobytes()


def environment() -> dict[str, Any]:
    """What may make a difference."""
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {})  # type: ignore[call-overload]
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "torch_vectors": torch.backends.cpu.get_cpu_capability(),
        "numpy_vectors": (simd.get("found") or ["baseline"])[-1],
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def coded_again(file: SaecFile, jobs: int) -> dict[str, str]:
    """A file's levels, and the bytes of its chunks when they are coded again; "own" are those of the file itself."""
    chunks = range(len(file.index.rows))
    layers = list(file.chunk_layers(chunks, jobs=jobs))
    again = map_chunks(packed, file.codec.coder, layers, jobs)
    return {
        "levels": digest(part for chunk in layers for part in level_bytes(chunk)),
        "bytes": digest(part for _, frames in again for part in frames),
        "own": digest(
            frame(head.kind, data, critical=head.critical)
            for _, head, data in file.frames()
            if head.kind in ("CHNK", "RCHK")
        ),
    }


def golden() -> ModuleType:
    """The script that made the golden files."""
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def integers(folder: Path, jobs: int) -> dict[str, Any]:
    """Levels to bytes and back, of the golden files and of larger ones; tables fitted on the levels."""
    found: dict[str, Any] = {}
    for path in [*sorted(GOLDEN.glob("*.saec")), *sorted(folder.glob("*.saec"))]:
        beside = path.with_suffix(".saecodec")
        with open_saec(path, codec=load_codec(beside) if beside.exists() else None) as file:
            found[path.stem] = coded_again(file, jobs)
    with open_saec(folder / "large_batchtopk.saec") as file:
        tables = saecodec.LatentCodec.fit(list(file.codes())).to_bytes()
    return {"files": found, "tables": digest([tables])}


def nmse_of(codec: Codec, x: np.ndarray, layers: list[Layers]) -> float | None:
    """Of the reconstruction of levels."""
    distortion, first = Distortion(x.shape[1]), 0
    for part in layers:
        distortion.add(x[first : first + part.n_rows], codec.reconstruct(part.codes, part.residual))
        first += part.n_rows
    return distortion.nmse


def arrays_of(layers: Layers, name: str) -> dict[str, np.ndarray]:
    """What is compared between runs."""
    codes = layers.codes
    out = {"rows": codes.rows(), "latents": codes.latents, "levels": codes.levels}
    out["columns"] = np.array([codes.columns[key] for key in sorted(codes.columns)])
    if layers.residual is not None:
        out["residual"] = layers.residual
    return {f"{name}/{key}": values for key, values in out.items()}


def levels_of(folder: Path, out: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What rows become by each codec, by default and deterministically."""
    x = np.load(folder / "rows.npy").astype(np.float32)
    found: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("rows_*.saecodec")):
        name, codec = path.stem.removeprefix("rows_"), load_codec(path, arguments.device)
        facts: dict[str, Any] = {}
        modes = [("default", codec)]
        if arguments.device == "cpu":
            modes.append(("deterministic", deterministic_pieces(None, codec)[1]))
        for mode, by in modes:
            with tempfile.TemporaryDirectory() as temporary:
                file = Path(temporary) / "x.saec"
                given = {"chunk_rows": arguments.chunk_rows, "jobs": arguments.jobs}
                encode_array(MemoryArray(x), file, codec=by, **given)
                facts[mode] = {"file": digest([file.read_bytes()])}
                with open_saec(file, codec=by) as opened:
                    layers = list(opened.layers())
            whole = Layers.concatenate(layers)
            facts[mode] |= {"levels": digest(level_bytes(whole)), "nmse": nmse_of(codec, x, layers)}
            arrays |= arrays_of(whole, f"{mode}/{name}")
        found[name] = facts
    np.savez(out.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    return found


def activations(folder: Path, out: Path, arguments: argparse.Namespace) -> None:
    """Feature activations of many rows, into the arrays."""
    x = np.load(folder / "many.npy", mmap_mode="r")
    arrays: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("many_*.saecodec")):
        sae = load_codec(path, arguments.device).sae
        assert sae is not None
        sae = saecodec.deterministic(sae) if arguments.deterministic else sae
        size = arguments.chunk_rows
        parts = [sae.features(x[i : i + size].astype(np.float32)) for i in range(0, len(x), size)]
        counts = np.concatenate([np.diff(part.indptr) for part in parts])
        name = path.stem.removeprefix("many_")
        arrays[f"{name}/cell"] = np.repeat(np.arange(len(x)) * sae.n_latents, counts)
        arrays[f"{name}/cell"] += np.concatenate([part.latents for part in parts])
        arrays[f"{name}/value"] = np.concatenate([part.values for part in parts])
    np.savez(out.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]


def fits(folder: Path) -> dict[str, str]:
    """Codecs that are fitted on rows: their ids, of the tables' content."""
    x = np.load(folder / "rows.npy").astype(np.float32)
    sae = load_codec(folder / "rows_batchtopk.saecodec").sae
    assert sae is not None
    found = {"default": Codec.fit(sae, x), "deterministic": Codec.fit(saecodec.deterministic(sae), x)}
    found["residual"] = Codec.fit(sae, x[:2048], residual=True)
    return {name: codec.codec_id[:16] for name, codec in found.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--chunk-rows", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--deterministic", action="store_true", help="the activations")
    parser.add_argument("--part", choices=["coded", "activations"], default="coded")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found: dict[str, Any] = {"environment": environment()}
    if arguments.part == "activations":
        activations(arguments.folder, arguments.out, arguments)
    else:
        found["levels"] = levels_of(arguments.folder, arguments.out, arguments)
    if arguments.part == "coded" and arguments.device == "cpu":
        found["integers"] = integers(arguments.folder, arguments.jobs)
        found["fits"] = fits(arguments.folder)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
