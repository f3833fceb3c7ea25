"""Measures what `saecodec train` gives: `python docs/make_training.py path/to/data` (two hours on 2 cores).

    --part train     the SAEs below, into build/training (those that are there are left)
    --part measure   real files of the test rows at NMSE targets, of each SAE, without search and with pursuit
    --part context   the best of each family under both priors, codecs fitted on the train rows
    --part memory    peak memory of a wide SAE's training
    --part text      docs/training.md from docs/training.json

All parts in this order by default; --only NAME,... restricts the first two, and --only 0.2 the third, so that two
processes can share them.
Trainings use one thread each. DATA as for make_results.py. Figures go into docs/training.json.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saecodec
from saecodec.errors import TargetError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.arrays import open_array
from saecodec.formats.encoding import fit_array
from saecodec.formats.measuring import measure_array
from saecodec.formats.training import FACTS, Run, train_array
from saecodec.goal import Goal
from saecodec.training import Aim, Settings

DOCS = Path(__file__).parent
OUT = DOCS.parent / "build" / "training"
FIGURES = DOCS / "training.json"
TARGETS = (0.2, 0.15)
SEARCHES = ("none", "pursuit")
TOKENS = 3_000_000
LONG_TOKENS = 13_496_320  # of the shared SAE
SHARED = "minilm_l3_batchtopk_3072_k32"
SAES = {f"batchtopk_k{k}": Settings(3072, aim=Aim("l0", k), tokens=TOKENS) for k in (6, 8, 10, 13, 18, 24)}
SAES |= {f"rate_nmse{nmse:g}": Settings(3072, "jumprelu", "rate", Aim("nmse", nmse), TOKENS) for nmse in (0.2, 0.15)}
SAES["batchtopk_k32_long"] = Settings(3072, aim=Aim("l0", 32), tokens=LONG_TOKENS)
WIDE = {"n_latents": 16384, "width": 768, "rows": 20_480, "steps": 12}


def train(data: Path, only: list[str]) -> None:
    """The SAEs, one after another."""
    source = open_array(data / "minilm_l3_train.npz")
    for name, settings in SAES.items():
        folder = OUT / name
        if (only and name not in only) or folder.exists():
            continue
        OUT.mkdir(parents=True, exist_ok=True)
        resume = Path(f"{folder}.checkpoint").exists()
        facts = train_array(source, folder, settings, Run("cpu", resume=resume))
        log(f"{name}: {facts['seconds']:.0f} s, {facts['held_out']}")


def measure(data: Path, only: list[str]) -> None:
    """Files of the test rows, each decoded again."""
    test = open_array(data / "minilm_l3_test.npy")
    for name, folder in {**{name: OUT / name for name in SAES}, "shared": data / "saes" / SHARED}.items():
        if (only and name not in only) or not folder.exists():
            continue
        sae = saecodec.load_sae(folder)
        facts = json.loads((folder / FACTS).read_text())
        report = measure_array(test, sae=sae)
        found: dict[str, Any] = {"seconds": facts.get("seconds", facts.get("train_seconds")), "at": {}}
        found |= {"settings": facts.get("settings"), "held_out": facts.get("held_out")}
        found |= {"nmse": report["sae_alone"]["nmse"], "l0": report["sae_alone"]["l0"]}
        for target in TARGETS:
            for search in SEARCHES:
                found["at"][f"{target:g} {search}"] = point(test, sae, target, search)
        keep("saes", name, found)
        log(f"{name}: {json.dumps(found['at'])}")


def point(test: Any, sae: saecodec.SAE, target: float, search: str) -> dict[str, Any] | None:
    """A file at a target; None where the SAE does not reach it."""
    try:
        report = measure_array(test, sae=sae, goal=Goal.of(nmse=target, search=search))
    except TargetError:
        return None
    return {key: report[key] for key in ("bits_per_row", "bits_interval", "nmse", "l0", "step")}


def context(data: Path, only: list[str]) -> None:
    """The best of each family, by pursuit, under codecs fitted on the train rows with either prior."""
    rows, test = open_array(data / "minilm_l3_train.npz"), open_array(data / "minilm_l3_test.npy")
    ids = {name: np.load(data / f"minilm_l3_{name}_seq.npy") for name in ("train", "test")}
    measured = json.loads(FIGURES.read_text())["saes"]
    for target in (target for target in TARGETS if not only or f"{target:g}" in only):
        for family in ("batchtopk", "rate"):
            name = best(measured, family, f"{target:g} pursuit")
            sae, found = saecodec.load_sae(OUT / name), {"sae": name}
            for prior in ("factorized", "context"):
                goal = Goal.of(nmse=target, prior=prior)
                started = time.perf_counter()
                codec = fit_array(rows, sae, goal, seq=ids["train"], verify=False)
                report = measure_array(test, codec=codec, goal=Goal.of(nmse=target), seq=ids["test"])
                found[prior] = {key: report[key] for key in ("bits_per_row", "nmse", "l0")}
                found[prior]["seconds"] = round(time.perf_counter() - started)
                log(f"{target:g} {name} {prior}: {found[prior]}")
            keep("context", f"{target:g} {family}", found)


def best(measured: dict[str, Any], family: str, key: str) -> str:
    """The SAE of a family, of equal tokens, with the fewest bits."""
    bits = {
        name: facts["at"][key]["bits_per_row"]
        for name, facts in measured.items()
        if name.startswith(family) and not name.endswith("_long") and facts["at"][key] is not None
    }
    return min(bits, key=lambda name: bits[name])


def memory() -> None:
    """A wide SAE's first steps, in a process for each objective: its largest resident size."""
    for objective in ("sparsity", "rate"):
        wide = [sys.executable, __file__, ".", "--part", f"wide-{objective}"]
        run = subprocess.run(wide, stdout=subprocess.PIPE, check=True)
        keep("memory", objective, json.loads(run.stdout.splitlines()[-1]) | WIDE)


def wide(objective: str) -> None:
    """What `memory` runs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(WIDE["rows"], 64)).astype(np.float32) @ rng.normal(size=(64, WIDE["width"])).astype(np.float32)
    rate = objective == "rate"
    settings = Settings(
        WIDE["n_latents"],
        "jumprelu" if rate else "batchtopk",
        objective,
        Aim("nmse", 0.2) if rate else Aim("l0", 64),
        WIDE["steps"] * 1024,
    )
    folder = OUT / f"wide_{objective}"
    OUT.mkdir(parents=True, exist_ok=True)
    facts = train_array(MemoryArray(x), folder, settings, Run("cpu", force=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak_bytes": peak, "seconds": facts["seconds"]}))


def keep(section: str, name: str, found: dict[str, Any]) -> None:
    """Put figures into docs/training.json, which other processes may be writing, too."""
    with open(FIGURES, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        held = json.loads(text) if text else {}
        held.setdefault(section, {})[name] = found
        held["machine"] = {"cores": 2, "machine": platform.machine(), "torch": torch.__version__.split("+")[0]}
        file.truncate(0)
        file.write(json.dumps(held, indent=1) + "\n")


def log(line: str) -> None:
    """Say something now."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """All parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the shared data")
    parser.add_argument("--part")
    parser.add_argument("--only", default="", metavar="NAME,...")
    arguments = parser.parse_args()
    only = [name for name in arguments.only.split(",") if name]
    if arguments.part and arguments.part.startswith("wide-"):
        wide(arguments.part.removeprefix("wide-"))
        return
    torch.set_num_threads(1)
    parts = {
        "train": lambda: train(arguments.data, only),
        "measure": lambda: measure(arguments.data, only),
        "context": lambda: context(arguments.data, only),
        "memory": memory,
    }
    for name, part in parts.items():
        if arguments.part in (None, name):
            part()
    if arguments.part in (None, "text"):
        import training_text

        (DOCS / "training.md").write_text(training_text.filled(DOCS))


if __name__ == "__main__":
    main()
