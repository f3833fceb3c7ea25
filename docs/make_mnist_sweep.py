"""Runs `saecodec train --sweep` on MNIST: `make mnist-sweep DATA=path/to/data` (a quarter of an hour).

DATA holds `mnist/mnist_train.npz` and `mnist/mnist_test.npz`. The command trains the grid and compares it on the test
images. docs/mnist_sweep.json, a section of docs/paper.md and docs/mnist_decoder.png, decoder images of three SAEs, tell
what came out. SAEs that are there already are not trained again. `--text` measures nothing, and writes the section.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import paper_text
from mnist_sweep_text import shown, title_of, told
from paper_mnist_counts import IMAGES
from paper_mnist_figures import plot_features
from paper_mnist_shapes import most_used

import saecodec
from saecodec.formats.arrays import open_array
from saecodec.formats.sweep_verdicts import total_bits

DOCS = Path(__file__).resolve().parent
PROGRAM = [sys.executable, "-c", "from saecodec.cli import main; main()"]
WIDTHS = (32, 64, 128, 256, 512, 1024)
KS = (4, 8, 16)
TARGETS = (0.2, 0.25, 0.3, 0.35)
TRAIN, TEST = "mnist/mnist_train.npz", "mnist/mnist_test.npz"
FEATURES = 24  # that are shown of each SAE


def listed(values: tuple[float, ...]) -> str:
    """4,8,16."""
    return ",".join(f"{value:g}" for value in values)


def command(output: str, tokens: int) -> list[str]:
    """What follows `saecodec`, in the folder of the data."""
    grid = ["--width", listed(WIDTHS), "--k", listed(KS), "--tokens", str(tokens), "--batch", "512"]
    return ["train", TRAIN, "-o", output, "--sweep", *grid, "--test", TEST, "--at", listed(TARGETS), "--search", "none"]


def taken(at: dict[str, Any], n_rows: int) -> dict[str, Any]:
    """Bits per image of an SAE at a target. total_many: decoder and tables shared by `IMAGES`, not by `n_rows`."""
    kept = {name: at[name] for name in ("bits_per_row", "interval", "total_bits_per_row", "tables_bits_per_row")}
    return kept | {"total_many": total_bits(at, n_rows, IMAGES)}


def facts_of(report: dict[str, Any], saes: Path) -> dict[str, Any]:
    """What is kept of a comparison: verdicts, and of each SAE its training and what it takes at the targets."""
    found = {}
    for sae in report["saes"]:
        training = json.loads((saes / sae["name"] / "training.json").read_text())
        at = {key: one if "missing" in one else taken(one, report["rows"]) for key, one in sae["at"].items()}
        found[sae["name"]] = {
            "width": sae["n_latents"],
            "k": training["settings"]["aim"]["value"],
            "l0": sae["l0"],
            "floor": sae["floor"],
            "decoder_bytes": sae["decoder"][report["weights"]]["bytes"],
            "training": {key: training[key] for key in ("steps", "rows", "threads", "seconds")},
            "at": at,
        }
    keys = ("mdl", "ties", "mdl_with_sae", "ties_with_sae", "shortest_from_rows")
    verdicts = {}
    for key, one in report["at"].items():
        many = {name: sae["at"][key]["total_many"] for name, sae in found.items() if "missing" not in sae["at"][key]}
        best = min(many, key=lambda name, many=many: many[name], default=None)  # type: ignore[misc]
        verdicts[key] = {name: one[name] for name in keys} | {"mdl_many": best}
    kept = {key: report[key] for key in ("version", "rows", "search", "weights", "targets")}
    return kept | {"bootstrap": report["bootstrap"]["unit"], "saes": found, "at": verdicts}


def draw(facts: dict[str, Any], data: Path, saes: Path, path: Path) -> None:
    """The decoder images of the latents that fire most in test images, of the SAEs that are shown."""
    test = open_array(data / TEST)
    sheets = [
        (title_of(facts, name), most_used(saecodec.load_sae(saes / name), test, FEATURES)) for name in shown(facts)
    ]
    plot_features(sheets, path)


def main() -> None:
    """Run the command, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the shared data")
    parser.add_argument("--saes", type=Path, default=DOCS.parent / "build" / "mnist_sweep", help="folder of the SAEs")
    parser.add_argument("--tokens", type=int, default=400_000, help="images of a training, repeats counted")
    parser.add_argument("--text", action="store_true", help="measure nothing, write docs/paper.md")
    arguments = parser.parse_args()
    held = DOCS / "mnist_sweep.json"
    if not arguments.text:
        saes = arguments.saes.resolve()
        resumed = saes.exists()
        saes.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        subprocess.run(
            [*PROGRAM, *command(str(saes), arguments.tokens)],
            cwd=arguments.data,
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            check=True,
        )
        seconds = time.perf_counter() - started
        facts = facts_of(json.loads((saes / "compare.json").read_text()), saes)
        facts["command"] = " ".join(["saecodec", *command("build/mnist_sweep", arguments.tokens)])
        facts["seconds"] = {
            "training": sum(sae["training"]["seconds"] for sae in facts["saes"].values()),
            "command": None if resumed else seconds,
        }
        facts["machine"] = f"{platform.machine()}, 1 thread"
        draw(facts, arguments.data, saes, DOCS / "mnist_decoder.png")
        held.write_text(json.dumps(facts, indent=1) + "\n")
    print(told(json.loads(held.read_text())))
    paper_text.write(json.loads((DOCS / "paper.json").read_text()))


if __name__ == "__main__":
    main()
