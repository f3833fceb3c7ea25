"""Measures docs/determinism.json: `make determinism DATA=path/to/data` (half an hour, and 20 GB for environments).

DATA holds `minilm_l3_test.npy`, its `_seq`, `minilm_l3_train.npz`, and `saes/<name>/`. The reference is the environment
that runs this. Others are made under build/matrix/, one for each entry of ENVIRONMENTS whose Python is found: on PATH,
or by `--python PATH` (a pattern in quotes will do), which may be repeated. Each runs `determinism_case.py` on what the
reference prepared. `--text-only` writes docs/determinism.md of the figures at hand; `--only TEXT` runs anew what has
TEXT in its name, and the reference; `--only speed` measures how much slower it is; `--part` runs one of two parts.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from determinism_text import page

import saecodec
from saecodec.codec import Codec
from saecodec.decoder_precision import with_precision
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.codecfile import load_codec, save_codec
from saecodec.formats.encoding import encode_array
from saecodec.nonlinearity import TopK
from saecodec.sae import SAE

DOCS = Path(__file__).parent
ROOT = DOCS.parent
ROWS = 8192
CONTEXT_ROWS, CONTEXT_SECONDS = 2048, 15
MANY, MANY_ROWS = ("batchtopk", "topk", "gated"), 40_960
SPEED_ROWS, SPEED_ROUNDS = 4096, 7
SAES = {"batchtopk": "batchtopk_3072_k32", "gated": "gated", "relu": "relu"}
ENVIRONMENTS = (
    ("3.10", "1.26.4", "2.4.1"),
    ("3.11", "1.26.4", "2.13.0"),
    ("3.12", "2.2.6", "2.6.0"),
    ("3.13", "2.4.6", "2.14.1"),
)
"""Python, numpy and torch. On Linux all but the CPU wheels of torch bring 4 GB of CUDA with them."""
_NO_AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V4"  # numpy 2.4: X86_V4
_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": _NO_AVX512,
}
_SSE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": f"{_NO_AVX512} X86_V3 AVX2 FMA3 F16C AVX",
}


@dataclass(frozen=True)
class Run:
    """One environment, and how the case runs in it. cpu: what it is told that the CPU can do, by the environment."""

    name: str
    python: str
    arguments: tuple[str, ...] = ()
    cpu: dict[str, str] = field(default_factory=dict)


def of_reference() -> list[Run]:
    """Runs of this environment; the first is what all are compared with."""
    here = Run("reference", sys.executable)
    runs = [
        here,
        replace(here, name="1 thread", arguments=("--threads", "1")),
        replace(here, name="chunks of 1,000 rows", arguments=("--chunk-rows", "1000")),
        replace(here, name="2 processes code", arguments=("--jobs", "2")),
        replace(here, name="as a CPU with AVX2", cpu=_AVX2),
        replace(here, name="as a CPU without AVX", cpu=_SSE),
        replace(here, name="deterministic", arguments=("--deterministic",)),
    ]
    return [*runs, replace(here, name="cuda", arguments=("--device", "cuda"))] if torch.cuda.is_available() else runs


def pythons(given: list[str]) -> dict[str, str]:
    """Interpreters by version, such as 3.10."""
    paths = [path for pattern in given for path in sorted(glob.glob(os.path.expanduser(pattern)))]
    if not given:
        paths = [path for minor in range(10, 15) if (path := shutil.which(f"python3.{minor}"))]
    asked = "import sys; print('%d.%d' % sys.version_info[:2])"
    told = [(subprocess.run([path, "-c", asked], capture_output=True, text=True), path) for path in paths]
    return {run.stdout.strip(): path for run, path in told if run.returncode == 0}  # a shim may have nothing behind it


def named(version: str, numpy: str, torch_version: str) -> str:
    """A run's name."""
    return f"Python {version}, numpy {numpy}, torch {torch_version}"


def made(python: str, version: str, numpy: str, torch_version: str, folder: Path) -> Run:
    """The virtual environment of an interpreter and versions, which is made unless it is there."""
    name = f"py{version}-numpy{numpy}-torch{torch_version}"
    inside = folder / name / "bin" / "python"
    if not inside.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pins = [f"torch=={torch_version}", f"numpy=={numpy}"]
        others = [
            line
            for line in (ROOT / "constraints.txt").read_text().splitlines()
            if not line.startswith(("torch==", "numpy=="))
        ]
        constraints = folder / f"{name}.constraints"
        constraints.write_text("\n".join([*pins, *others]) + "\n")
        subprocess.run([python, "-m", "venv", folder / name], check=True)
        install = [inside, "-m", "pip", "install", "-q", "--no-cache-dir"]
        subprocess.run([*install, *pins], check=True)
        subprocess.run([*install, "-c", constraints, "-e", ROOT], check=True)
    return Run(named(version, numpy, torch_version), str(inside))


def prepare(data: Path, folder: Path, parts: list[str]) -> None:
    """Rows, codecs with their SAEs, and for the part "coded" files of the larger case."""
    x = np.load(data / "minilm_l3_test.npy")[:ROWS]
    seq = np.load(data / "minilm_l3_test_seq.npy")[:ROWS]
    np.save(folder / "rows.npy", x)
    rows = x.astype(np.float32)
    saes: dict[str, SAE] = {
        name: saecodec.load_sae(data / "saes" / f"minilm_l3_{path}", "cpu") for name, path in SAES.items()
    }
    reference = saes["batchtopk"]
    assert reference.encoder is not None
    saes["topk"] = replace(reference, encoder=replace(reference.encoder, nonlinearity=TopK(32)))  # type: ignore[call-arg]
    saes["layer_norm"] = replace(saes["topk"], normalization="layer_norm")
    codecs = {name: Codec.fit(sae, rows) for name, sae in saes.items() if name in MANY or "coded" in parts}
    np.save(folder / "many.npy", np.load(data / "minilm_l3_train.npz")["x"][:MANY_ROWS])
    for name in MANY:
        save_codec(codecs[name], folder / f"many_{name}.saecodec", embed_sae=True)
    if "coded" not in parts:
        return
    codecs["residual"] = Codec.fit(reference, rows, residual=True)
    for name, codec in codecs.items():
        save_codec(codec, folder / f"rows_{name}.saecodec", embed_sae=True)
    for name in ("batchtopk", "residual", "layer_norm"):
        encode_array(MemoryArray(x), folder / f"large_{name}.saec", codec=codecs[name], embed="tables", seq=seq)
    rounded = with_precision(reference, "int8")
    source, weights = MemoryArray(x), {"embed": "decoder", "weights": "int8"}
    encode_array(source, folder / "large_int8.saec", codec=Codec.fit(rounded, rows), sae=reference, **weights)  # type: ignore[arg-type]
    part, ids = rows[:CONTEXT_ROWS], seq[:CONTEXT_ROWS]
    context = Codec.fit(reference, part, prior="context", fit_seconds=CONTEXT_SECONDS, seq=ids)
    encode_array(MemoryArray(part), folder / "large_context.saec", codec=context, embed="tables", seq=ids)


def case(run: Run, folder: Path, out: Path, part: str) -> dict[str, Any]:
    """What a part of a run found."""
    told = os.environ | run.cpu | {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    command = [run.python, str(DOCS / "determinism_case.py"), str(folder), str(out), "--part", part, *run.arguments]
    subprocess.run(command, check=True, env=told, cwd=folder)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def moved(of: Any, than: Any, name: str, than_name: str, n_latents: int) -> dict[str, int]:
    """How many levels differ between arrays of runs, by names in these. support: those that are 0 in one of them."""
    keys, levels = [], []
    for arrays, name_in in ((of, name), (than, than_name)):
        keys.append(arrays[f"{name_in}/rows"].astype(np.int64) * n_latents + arrays[f"{name_in}/latents"])
        levels.append(arrays[f"{name_in}/levels"])
    both, at, there = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    alone = len(keys[0]) + len(keys[1]) - 2 * len(both)
    out = {"nonzeros": len(keys[1]), "moved": alone + int((levels[0][at] != levels[1][there]).sum()), "support": alone}
    out["columns"] = int((of[f"{name}/columns"] != than[f"{than_name}/columns"]).sum())
    if f"{name}/residual" in of:
        left, right = of[f"{name}/residual"], than[f"{than_name}/residual"]
        out |= {"residual_nonzeros": int(np.count_nonzero(right)), "residual_moved": int((left != right).sum())}
    return out


def compared(out: Path, reference: Path, folder: Path) -> dict[str, Any]:
    """Levels moved by codec, against the reference in the same mode; "modes": of its default against its own other."""
    found: dict[str, Any] = {"default": {}, "deterministic": {}, "modes": {}}
    with np.load(out.with_suffix(".npz")) as ours, np.load(reference.with_suffix(".npz")) as theirs:
        for path in sorted(folder.glob("rows_*.saecodec")):
            name, n_latents = path.stem.removeprefix("rows_"), load_codec(path).latents.prior.n_latents
            for mode in ("default", "deterministic"):
                if f"{mode}/{name}/rows" not in ours:
                    continue
                found[mode][name] = moved(ours, theirs, f"{mode}/{name}", f"{mode}/{name}", n_latents)
            if f"deterministic/{name}/rows" in ours:
                found["modes"][name] = moved(ours, ours, f"default/{name}", f"deterministic/{name}", n_latents)
    return found


def speed(folder: Path) -> dict[str, Any]:
    """How many times as long deterministic arithmetic takes, by codec: the fastest of some runs, taken in turn."""
    x = np.load(folder / "rows.npy")[:SPEED_ROWS].astype(np.float32)
    out: dict[str, Any] = {"rows": len(x), "threads": torch.get_num_threads(), "slower": {}}
    for path in sorted(folder.glob("rows_*.saecodec")):
        codec = load_codec(path, "cpu")
        assert codec.sae is not None
        saes = {"default": codec.sae, "deterministic": saecodec.deterministic(codec.sae)}
        best: dict[tuple[str, str], float] = {}
        for _ in range(SPEED_ROUNDS):
            for mode, sae in saes.items():
                by = codec.with_sae(sae)
                for part, function in {"sae": sae.features, "encode": by.encode}.items():
                    started = time.perf_counter()
                    function(x)
                    seconds = time.perf_counter() - started
                    best[part, mode] = min(seconds, best.get((part, mode), seconds))
        name = path.stem.removeprefix("rows_")
        out["slower"][name] = {part: best[part, "deterministic"] / best[part, "default"] for part in ("sae", "encode")}
        out["slower"][name]["microseconds_a_row"] = {
            f"{part}, {mode}": 1e6 * seconds / len(x) for (part, mode), seconds in best.items()
        }
    return out


def activations_compared(out: Path, reference: Path, folder: Path) -> dict[str, Any]:
    """Activations against the reference's, by SAE. nonzeros: levels; moved, support: see `moved`. expected: levels of a
    million that differences of such sizes move, the mean difference in steps: steadier than a count of so few."""
    found: dict[str, Any] = {}
    with np.load(out.with_suffix(".npz")) as ours, np.load(reference.with_suffix(".npz")) as theirs:
        for name in MANY:
            codec = load_codec(folder / f"many_{name}.saecodec", "cpu")
            assert codec.sae is not None
            steps, cells = [], [arrays[f"{name}/cell"] for arrays in (ours, theirs)]
            for arrays, cell in zip((ours, theirs), cells, strict=True):
                length = codec.sae.norms[cell % codec.sae.n_latents] * np.abs(arrays[f"{name}/value"])
                steps.append(length / codec.quantizer.step)
            levels = [np.floor(of + 0.5) for of in steps]
            _, at, there = np.intersect1d(*cells, assume_unique=True, return_indices=True)
            alone = sum(
                int(np.count_nonzero(of)) - int(np.count_nonzero(of[shared]))
                for of, shared in zip(levels, (at, there), strict=True)
            )
            a, b = levels[0][at], levels[1][there]
            found[name] = {
                "nonzeros": int(np.count_nonzero(levels[1])),
                "moved": alone + int((a != b).sum()),
                "support": alone + int(((a == 0) != (b == 0)).sum()),
                "expected": 1e6 * float(np.abs(steps[0][at] - steps[1][there]).mean()),
                "values_differ": float((ours[f"{name}/value"][at] != theirs[f"{name}/value"][there]).mean()),
            }
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--python", action="append", default=[], metavar="PATH")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "matrix")
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--part", choices=["coded", "activations"])
    parser.add_argument("--text-only", action="store_true")
    arguments = parser.parse_args()
    target = DOCS / "determinism.json"
    if not arguments.text_only:
        interpreters = pythons(arguments.python)
        runs = of_reference()
        for version, numpy, torch_version in ENVIRONMENTS:
            if arguments.only not in named(version, numpy, torch_version):
                continue
            if version in interpreters:
                python = interpreters[version]
                runs.append(made(python, version, numpy, torch_version, arguments.build.absolute()))
            else:
                print(f"no Python {version}: skipped", file=sys.stderr)
        again = arguments.only or arguments.part
        found: dict[str, Any] = json.loads(target.read_text()) if again else {"runs": {}}
        chosen = [run for run in runs if arguments.only in run.name]
        runs = [run for run in runs if chosen and (run is runs[0] or run in chosen)]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "prepared"
            folder.mkdir()
            parts = [arguments.part] if arguments.part else ["coded", "activations"]
            prepare(arguments.data, folder, ["coded"] if arguments.only == "speed" else parts)
            reference, other = Path(temporary) / "reference.json", Path(temporary) / "other.json"
            for part in parts:
                for run in runs:
                    if part == "coded" and "--deterministic" in run.arguments:
                        continue
                    out = reference if run is runs[0] else other
                    print(part, run.name, flush=True)
                    of_part = case(run, folder, out, part)
                    facts = found["runs"].setdefault(run.name, {})
                    facts |= of_part | {"cpu": run.cpu}
                    if part == "coded":
                        facts["moved"] = compared(out, reference, folder)
                    else:
                        facts["activations"] = activations_compared(out, reference, folder)
            if arguments.only == "speed" or not again:
                found["speed"] = speed(folder)
        found |= {"rows": ROWS, "many_rows": MANY_ROWS}
        target.write_text(json.dumps(found, indent=1) + "\n")
    (DOCS / "determinism.md").write_text(page(json.loads(target.read_text())))


if __name__ == "__main__":
    main()
