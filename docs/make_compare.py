"""Compares all SAEs of the shared data, as `saecodec compare` does: `make compare DATA=path/to/data` (2 minutes).

Writes docs/compare.json (verdicts and curves), docs/compare_minilm.svg, docs/compare_mnist.svg, the pages and their
JSON into build/compare, and docs/report.png, a screenshot of a page, where there is a chromium.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saecodec
from saecodec.formats.arrays import open_array
from saecodec.formats.comparing import Candidate, compare
from saecodec.formats.page import write_page
from saecodec.formats.plot import plot_comparison
from saecodec.formats.rate_curve import Setting

DOCS = Path(__file__).resolve().parent
PAGES = DOCS.parent / "build" / "compare"
SETTING = Setting(weights="int8")  # the command's default


def compared(name: str, rows: str, ids: Any, targets: tuple[float, ...]) -> dict[str, Any]:
    """The SAEs whose names begin with `name`, with page and plot."""
    started = time.perf_counter()
    paths = sorted(str(path) for path in Path("saes").glob(f"{name}*"))
    candidates = [Candidate(path, lambda path=path: saecodec.load_sae(path)) for path in paths]  # type: ignore[misc]
    report = compare(open_array(rows), candidates, targets, seq=ids, setting=SETTING, log=log)
    seconds = time.perf_counter() - started
    short = name.partition("_")[0]
    PAGES.mkdir(parents=True, exist_ok=True)
    write_page(report, PAGES / f"{short}.html", force=True)
    plot_comparison(report, DOCS / f"compare_{short}.svg", force=True)
    for sae in report["saes"]:
        sae["detail"] = None  # in the JSON beside the page
    return report | {"seconds": seconds}


def screenshot(page: Path, path: Path) -> None:
    """The page, 1280 pixels wide."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        log("no chromium: no screenshot")
        return
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,2400"]
    subprocess.run([browser, *options, f"--screenshot={path}", page.as_uri()], check=True, stderr=subprocess.DEVNULL)


def log(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the shared data")
    os.chdir(parser.parse_args().data)  # so that reports name inputs by short paths
    reports = {
        "minilm": compared("minilm_l3", "minilm_l3_test.npy", np.load("minilm_l3_test_seq.npy"), (0.12, 0.2)),
        "mnist": compared("mnist", "mnist/mnist_test.npz", np.arange(10_000), (0.25,)),
    }
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    (DOCS / "compare.json").write_text(json.dumps(reports | {"machine": machine}, indent=1) + "\n")
    screenshot(PAGES / "minilm.html", DOCS / "report.png")


if __name__ == "__main__":
    main()
