"""Measures the rate-distortion curves of docs/results.md: `make rd DATA=path/to/data` (an hour on 2 cores).

Everything is fitted on the first 65,536 rows of `minilm_l3_train.npz` and measured on all of `minilm_l3_test.npy`.
Writes docs/rd.json, curve by curve (those it holds already are not measured again: delete it to start anew), then
docs/rd.svg.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import saecodec
from saecodec.formats.arrays import open_array
from saecodec.formats.benchmark import TARGETS, Rows, bench_peer, bench_sae, report
from saecodec.formats.plot import plot_curves
from saecodec.peers.registry import families

DOCS = Path(__file__).parent
OURS = {
    "minilm_l3_batchtopk_3072_k32": {
        "none": TARGETS[:4],
        "refit": TARGETS[:4],
        "pursuit": TARGETS[:4],
        "none+residual": TARGETS[2:],
        "pursuit+residual": TARGETS[2:],
    },
    "minilm_l3_batchtopk_3072_k16": {"pursuit": TARGETS[:3]},
    "minilm_l3_batchtopk_3072_k64": {"pursuit": TARGETS[2:4]},
    "minilm_l3_batchtopk_6144_k32": {"pursuit": TARGETS[:4]},
}
PEERS = ("PCA + range coder", "FAISS RQ", "int + zstd", "TurboQuant-style", "SZ3", "zfp")


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the shared data")
    data = parser.parse_args().data
    rows, shared = Rows.read(
        open_array(data / "minilm_l3_test.npy"), open_array(data / "minilm_l3_train.npz"), 1 << 20, 65536
    )
    path = DOCS / "rd.json"
    held: dict[str, Any] = (
        {curve["name"]: curve for curve in json.loads(path.read_text())["curves"]} if path.exists() else {}
    )

    def keep(curves: Any) -> None:
        facts = report(list(curves), rows, shared, TARGETS)
        held.update({curve["name"]: curve for curve in facts["curves"]})
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
        path.write_text(json.dumps(facts | {"machine": machine, "curves": list(held.values())}, indent=1) + "\n")

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    for name, modes in OURS.items():
        sae = saecodec.load_sae(data / "saes" / name)
        for mode, targets in modes.items():
            if f"{name}, {mode}" not in held:
                keep(bench_sae(rows, sae, [mode], targets, log))
    for family in families():
        if family.name in PEERS and family.name not in held and family.available():
            keep([bench_peer(rows, family, TARGETS, log)])
    facts = json.loads(path.read_text())
    title = f"MiniLM layer 3, {facts['rows']:,} rows of {facts['width']} values, fitted on others"
    plot_curves(facts, title, DOCS / "rd.svg", force=True)


if __name__ == "__main__":
    main()
