"""Measures experiments (b), (c) and (d) of docs/paper.md, and writes it: `make paper DATA=path/to/data`.

    python docs/make_paper.py DATA --part b     the table of dense, one-hot and SAE codes (a minute)
    python docs/make_paper.py DATA --part c     feature splitting: widths at equal NMSE (an hour: six codecs are fitted)
    python docs/make_paper.py DATA --part d     hierarchy: children coded given their parents (two minutes)
    python docs/make_paper.py DATA --text       docs/paper.md from what was measured

Figures go into docs/paper.json, section by section. (a) is docs/paper_mnist.py. DATA: see docs/make_results.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saecodec
from saecodec.co_occurrence import CoOccurrence, near_duplicates, parent_child
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.formats.arrays import open_array
from saecodec.formats.comparing import Candidate, compare
from saecodec.formats.encoding import encode_array, fit_array
from saecodec.formats.measuring import Extras, measure_array
from saecodec.formats.rate_curve import Setting
from saecodec.formats.saec import open_saec
from saecodec.goal import Goal
from saecodec.hierarchy import best_forest, containment_forest
from saecodec.joint_code import coded_forest, joint_code

DOCS = Path(__file__).parent
REFERENCE = "minilm_l3_batchtopk_3072_k32"
WIDTHS = tuple(f"minilm_l3_batchtopk_{width}_k32" for width in (1536, 3072, 6144))
TARGETS = (0.15, 0.2)
FIT_SECONDS = 1500.0  # longer than any training takes: the clock decides nothing


class Data:
    """The shared rows and SAEs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train, self.test = open_array(folder / "minilm_l3_train.npz"), open_array(folder / "minilm_l3_test.npy")
        self.ids = {name: np.load(folder / f"minilm_l3_{name}_seq.npy") for name in ("train", "test")}

    def sae(self, name: str) -> saecodec.SAE:
        """An SAE."""
        return saecodec.load_sae(self.folder / "saes" / name)


def table(data: Data) -> dict[str, Any]:
    """(b) Dense, one-hot and SAE codes of the same rows at the same NMSE: estimates beside real files."""
    out = {}
    for name in ("minilm_l3_batchtopk_3072_k16", REFERENCE, "minilm_l3_batchtopk_3072_k64"):
        report = measure_array(data.test, sae=data.sae(name), seq=data.ids["test"], extras=Extras(baselines=True))
        held = ("rows", "bits_per_row", "bits_interval", "nmse", "nmse_interval", "l0", "estimates", "two_part")
        out[name] = {key: report[key] for key in (*held, "baselines", "decoder", "bytes")}
        log(f"{name}: {report['bits_per_row']:.1f} bits/row at NMSE {report['nmse']:.4f}")
    return out


def splitting(data: Data) -> dict[str, Any]:
    """(c) Three widths at equal NMSE, with the factorized prior and with the context prior."""
    candidates = [Candidate(name, lambda name=name: data.sae(name)) for name in WIDTHS]  # type: ignore[misc]
    report = compare(
        data.test,
        candidates,
        TARGETS,
        seq=data.ids["test"],
        setting=Setting(weights="float32"),
        baselines=False,
        detail=False,
        log=log,
    )
    report["input"] = Path(report["input"]).name  # where the data lies is no part of what was measured
    out: dict[str, Any] = {"compare": report, "context": {}}
    for name, facts in zip(WIDTHS, report["saes"], strict=True):
        target = TARGETS[0]
        point = min(facts["points"], key=lambda point: abs(point["nmse"] - target))
        out["context"][name] = {prior: _under(data, name, point["step"], prior) for prior in ("factorized", "context")}
    return out


def _under(data: Data, name: str, step: float, prior: str) -> dict[str, Any]:
    """The test rows under a codec that was fitted on the train rows at a step."""
    sae, started = data.sae(name), time.perf_counter()
    seconds = None if prior == "factorized" else FIT_SECONDS
    codec = fit_array(data.train, sae, Goal.of(step, prior=prior, fit_seconds=seconds), seq=data.ids["train"])
    fitted = time.perf_counter() - started
    n_bytes = len(codec.to_bytes())
    report = measure_array(data.test, sae=sae, codec=codec, codec_bytes=n_bytes, seq=data.ids["test"])
    log(f"{name}, {prior}: {report['bits_per_row']:.1f} bits/row at NMSE {report['nmse']:.4f}, {fitted:.0f} s")
    held = ("bits_per_row", "bits_interval", "nmse", "nmse_interval", "bits", "bits_per_row_with_codec", "l0")
    return {key: report[key] for key in held} | {"codec_bytes": n_bytes, "step": step, "fit_seconds": fitted}


def hierarchy(data: Data) -> dict[str, Any]:
    """(d) Children coded given their parents: real bytes of the codes at step 0.4rms."""
    return {name: _hierarchy(data, name) for name in (REFERENCE, "minilm_l3_batchtopk_6144_k32")}


def _hierarchy(data: Data, name: str) -> dict[str, Any]:
    codec, chunks = _codes(data, name)
    assert codec.sae is not None
    counts = sum((np.bincount(codes.latents, minlength=codes.n_latents) for codes in chunks), np.zeros(1, np.int64))
    co = CoOccurrence.most_frequent(counts)
    for codes in chunks:
        co.add(codes)
    source: Callable[[], list[Codes]] = lambda: chunks  # noqa: E731
    forests = {
        "containment": containment_forest(co),
        "strongest": best_forest(co, min_bits=0.0),
        "coded": coded_forest(co, source),
    }
    found = {}
    for kind, forest in forests.items():
        joint = joint_code(source, forest)
        found[kind] = asdict(joint) | {"independent": joint.bytes_independent, "joint": joint.bytes_joint}
        log(f"{name}, {kind}: {joint.bytes_independent} -> {joint.bytes_joint} bytes, {joint.n_children} children")
    pairs, twins = parent_child(co), near_duplicates(co, w_dec=codec.sae.w_dec.cpu().numpy())
    return {
        "rows": sum(codes.n_rows for codes in chunks),
        "pairs": len(pairs.child),
        "pairs_saved": float(pairs.saved.sum()),
        "twins": len(twins.first),
        "twins_cosine": float(np.median(twins.cosine)) if twins.cosine is not None and len(twins.cosine) else None,
        "forests": found,
    }


def _codes(data: Data, name: str) -> tuple[Codec, list[Codes]]:
    """The codes of the test rows in a file at step 0.4rms."""
    sae = data.sae(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.saec"
        encode_array(data.test, path, sae=sae, goal=Goal.of())
        with open_saec(path, sae=sae) as file:
            return file.decoder, list(file.codes())


PARTS: dict[str, Callable[[Data], dict[str, Any]]] = {"b": table, "c": splitting, "d": hierarchy}


def log(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the shared data")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this alone; may be repeated")
    parser.add_argument("--text", action="store_true", help="measure nothing, write docs/paper.md")
    arguments = parser.parse_args()
    path = DOCS / "paper.json"
    held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not arguments.text:
        data = Data(arguments.data)
        for part in arguments.part or PARTS:
            held[part] = PARTS[part](data) | {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads"}
            path.write_text(json.dumps(held, indent=1) + "\n")
    from paper_text import write  # beside this file

    write(held)


if __name__ == "__main__":
    main()
