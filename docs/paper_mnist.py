"""Measures docs/paper_mnist.md, and writes it: `make paper-mnist DATA=path/to/data`.

DATA holds `mnist/mnist_train.npz`, `mnist/mnist_test.npz` and `saes/mnist_batchtopk_*`. The SAEs measured are those of
paper_mnist_saes.py; what is missing of them is trained first. Every rate is that of files that were written and decoded
again. Writes docs/paper_mnist.json, the figures and the page.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper_mnist_counts import parts_at, rates, verdict
from paper_mnist_figures import plot_features, plot_rates
from paper_mnist_page import cells, page
from paper_mnist_saes import grid, name_of, train_missing, training_of
from paper_mnist_shapes import most_used, shapes_of, shapes_of_images

import saecodec
from saecodec.decoder_precision import INT8, with_precision
from saecodec.errors import TargetError
from saecodec.formats.array_source import ArraySource
from saecodec.formats.arrays import open_array
from saecodec.formats.baseline_report import baselines_at, sample_rows
from saecodec.formats.comparing import Candidate, compare
from saecodec.formats.point import Ground
from saecodec.formats.rate_curve import CurveMaker, Setting
from saecodec.formats.two_part import decoder_bytes
from saecodec.formats.verdicts import AtTarget, Curve
from saecodec.goal import Goal

DOCS = Path(__file__).parent
TARGET = 0.25
BESIDE = (1.03, 0.97)  # of the target: the two files of an SAE with a residual layer
RESIDUAL_WIDTHS = (32, 64, 128, 256, 512)  # that are measured with a residual layer, which takes a minute an SAE
BEFORE, AFTER = ("mnist_32_k16", "mnist_256_k32"), ("mnist_128_k1",)  # shown beside the MDL-SAE: denser, and sparser
FEATURES = 24  # that are shown of each
PARTS = ("plain", "residual", "shared", "shapes", "baselines")

Log = Callable[[str], None]


def plain(source: ArraySource, candidates: list[Candidate], log: Log) -> dict[str, Any]:
    """What SAEs take alone, by `compare`."""
    seq = np.arange(source.n_rows)  # every image a sequence: images are resampled
    setting = Setting(weights=INT8)
    report = compare(source, candidates, [TARGET], seq=seq, setting=setting, baselines=False, detail=False, log=log)
    key = f"{TARGET:g}"
    saes = {}
    for sae in report["saes"]:
        at, decoder = sae["at"][key], sae["decoder"][INT8]["bytes"]
        saes[sae["name"]] = {"l0": sae["l0"], "floor": sae["floor"], "decoder_bytes": decoder}
        if "missing" not in at:
            near = min(sae["points"], key=lambda point: abs(np.log(point["nmse"] / TARGET)))
            parts = parts_at(sae["points"], TARGET)
            saes[sae["name"]] |= rates(at, parts, decoder, source.n_rows) | {"coded_l0": near["l0"]}
    return {"saes": saes} | verdict(report["at"][key], saes) | {"bootstrap": report["bootstrap"]}


def with_residual(source: ArraySource, candidates: Iterable[Candidate], log: Log) -> dict[str, Any]:
    """What they take with a residual layer: two files an SAE, on both sides of the target. `compare` would make two
    more, far from it, for its curves."""
    ground = Ground(source, np.arange(source.n_rows))
    setting, curves = Setting(residual=True, weights=INT8), []
    for candidate in candidates:
        sae, name = candidate.load(), Path(candidate.path).name
        points = []
        with CurveMaker(name, with_precision(sae, INT8), ground, setting, log) as maker:
            for beside in BESIDE:
                try:
                    points.append(maker.measure(Goal.of(nmse=beside * TARGET, search=setting.search, residual=True)))
                except TargetError as error:
                    log(f"{name}: {error}")
        points.sort(key=lambda point: point.nmse)
        curves.append(Curve(name, points, decoder_bytes(sae)[INT8]))
    at = AtTarget.of(curves, TARGET, source.n_rows)
    saes = {}
    for curve in curves:
        if curve.name in at.bits:
            parts = parts_at([point.facts for point in curve.points], TARGET)
            saes[curve.name] = rates(at.of_curve(curve, ground, None), parts, curve.decoder_bytes, source.n_rows)
    return {"saes": saes} | verdict(at.verdict(), saes)


def shared_saes(source: ArraySource, data: Path, log: Log) -> dict[str, Any]:
    """The SAEs of DATA, alone, under the names that ours have at their width and k."""
    folders = sorted((data / "saes").glob("mnist_batchtopk_*"))
    found = plain(source, [candidate(folder) for folder in folders], log)
    names = {folder.name: folder.name.replace("batchtopk_", "") for folder in folders}
    saes = {names[name]: facts for name, facts in found["saes"].items()}
    for folder in folders:
        saes[names[folder.name]]["test_nmse"] = json.loads((folder / "training.json").read_text())["test_nmse"]
    return {"saes": saes, "best": names[found["verdicts"]["bits"]["best"]]}


def candidate(folder: Path) -> Candidate:
    """An SAE in a folder."""
    return Candidate(str(folder), lambda: saecodec.load_sae(folder))


def shapes(source: ArraySource, folders: Iterable[Path]) -> dict[str, Any]:
    """What the decoder images of each SAE look like, and how it was trained."""
    saes = {}
    for folder in folders:
        sae = saecodec.load_sae(folder)
        saes[folder.name] = shapes_of(sae, source) | {"training": training_of(folder, sae, source)}
    return {"images": shapes_of_images(source), "saes": saes}


def features_shown(source: ArraySource, folders: list[Path]) -> list[tuple[str, np.ndarray]]:
    """Titles and decoder images of the latents that fire most, (24, 784) for each SAE."""
    return [
        (
            folder.name.removeprefix("mnist_").replace("_k", " latents, k = "),
            most_used(saecodec.load_sae(folder), source, FEATURES),
        )
        for folder in folders
    ]


def main() -> None:
    """Measure what is asked for, and write the figures and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the shared data")
    parser.add_argument("saes", type=Path, help="folder of the SAEs; what is missing is trained")
    parser.add_argument("--only", metavar="PART,...", help=f"measure these of {', '.join(PARTS)}; the others stay")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = open_array(arguments.data / "mnist" / "mnist_test.npz")
    wanted = grid()
    folders = [arguments.saes / name_of(settings) for settings in wanted]
    every = [candidate(folder) for folder in folders]
    layered = [one for one, settings in zip(every, wanted, strict=True) if settings.n_latents in RESIDUAL_WIDTHS]

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    train_missing(open_array(arguments.data / "mnist" / "mnist_train.npz"), arguments.saes, wanted, log)
    parts: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain(source, every, log),
        "residual": lambda: with_residual(source, layered, log),
        "shared": lambda: shared_saes(source, arguments.data, log),
        "shapes": lambda: shapes(source, folders),
        "baselines": lambda: baselines_at(sample_rows(source), TARGET, source.n_rows),
    }
    held = DOCS / "paper_mnist.json"
    facts: dict[str, Any] = json.loads(held.read_text()) if arguments.only and held.exists() else {}
    for name in arguments.only.split(",") if arguments.only else PARTS:
        facts[name] = parts[name]()
        facts["target"] = TARGET
        facts["machine"] = f"{platform.machine()}, {torch.get_num_threads()} thread"
        held.write_text(json.dumps(facts, indent=1) + "\n")
    plot_rates(cells(facts), DOCS / "paper_mnist.svg")
    shown = [arguments.saes / name for name in (*BEFORE, facts["plain"]["verdicts"]["bits"]["best"], *AFTER)]
    plot_features(features_shown(source, shown), DOCS / "paper_mnist_features.png")
    (DOCS / "paper_mnist.md").write_text(page(facts))


if __name__ == "__main__":
    main()
