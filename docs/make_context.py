"""Measures what the context prior does: `python docs/make_context.py path/to/data` (an hour on 2 cores).

Writes docs/context.json, section by section; `--only` measures some anew. DATA as for make_results.py, which makes the
tables of docs/results.md from the file. Codecs are fitted on the train rows, as `saecodec fit` does, and measured on
the test rows.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saecodec
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.formats.array_source import ArraySource
from saecodec.formats.arrays import open_array
from saecodec.formats.encoding import encode_array, fit_array
from saecodec.formats.measuring import measure_array
from saecodec.goal import Goal
from saecodec.priors.context_rows import batch_of
from saecodec.priors.fit_context import blocks, context_gains, fit_context
from saecodec.priors.layout import Layout
from saecodec.priors.network import Arithmetic, Walk
from saecodec.priors.quantize_network import BIN_NATS, quantize_network
from saecodec.priors.soft_network import Workspace, gradient
from saecodec.priors.train_network import Recipe, train
from saecodec.sequences import linked_rows

DOCS = Path(__file__).parent
REFERENCE = "minilm_l3_batchtopk_3072_k32"
TARGETS = (
    (0.2, "minilm_l3_batchtopk_3072_k16", False),
    (0.15, "minilm_l3_batchtopk_3072_k16", False),
    (0.1, REFERENCE, True),
)
SAES = (REFERENCE,)
ABLATION_PASSES = 3.0
ABLATION: dict[str, dict[str, Any]] = {
    "as built": {},
    "64 hidden units": {"rank": 64},
    "192 hidden units": {"rank": 192},
    "12 blocks": {"n_blocks": 12},
    "neither dropout nor decay": {"drop": 0.0, "decay": 0.0},
    "levels are no context": {"gain_power": 0.0},
    "no neighbouring rows": {"alone": True},
    "half of the rows": {"share": 0.5},
}


class Data:
    """The rows, and codecs of them as they are asked for."""

    def __init__(self, folder: Path, log: Callable[[str], None]) -> None:
        self.folder, self.log = folder, log
        self.train = open_array(folder / "minilm_l3_train.npz")
        self.test = open_array(folder / "minilm_l3_test.npy")
        self.ids = {name: np.load(folder / f"minilm_l3_{name}_seq.npy") for name in ("train", "test")}

    def sae(self, name: str) -> saecodec.SAE:
        """An SAE."""
        return saecodec.load_sae(self.folder / "saes" / name)

    def fitted(self, sae: saecodec.SAE, goal: Goal) -> tuple[Codec, int, float]:
        """A codec, the bytes of its file, and the seconds of the fit."""
        started = time.perf_counter()
        codec = fit_array(self.train, sae, goal, seq=self.ids["train"])
        seconds = time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "c.saecodec"
            saecodec.save_codec(codec, path)
            return codec, path.stat().st_size, seconds

    def measured(self, name: str, goal: Goal, seen: Goal | None = None) -> dict[str, Any]:
        """The report of `measure` on the test rows, with the codec's file. seen: the goal on the test rows."""
        sae = self.sae(name)
        codec, n_bytes, seconds = self.fitted(sae, goal)
        report = measure_array(self.test, sae=sae, codec=codec, codec_bytes=n_bytes, goal=seen, seq=self.ids["test"])
        self.log(
            f"{name}, {goal.prior}: {report['bits_per_row']:.2f} bits/row, NMSE {report['nmse']:.4f}, {seconds:.0f} s"
        )
        return report | {"sae": name, "fit_seconds": seconds, "info": codec.info.get("context")}


def rates(data: Data) -> list[dict[str, Any]]:
    """Every SAE at step 0.4rms without a search, under both priors."""
    return [data.measured(name, Goal.of(prior=prior)) for name in SAES for prior in ("factorized", "context")]


def targets(data: Data) -> list[dict[str, Any]]:
    """Pursuit at a target, reached on the test rows with a codec that was fitted for it on the train rows."""
    return [
        {"target_nmse": nmse, "has_residual": residual}
        | data.measured(name, Goal.of(nmse=nmse, residual=residual, prior=prior), Goal.of(nmse=nmse))
        for nmse, name, residual in TARGETS
        for prior in ("factorized", "context")
    ]


def ablation(data: Data) -> list[dict[str, Any]]:
    """Shorter trainings, each with one thing changed: ideal bits per test row."""
    sae = data.sae(REFERENCE)
    codec = fit_array(data.train, sae)
    rows = {
        name: _codes(codec, source, data.ids[name]) for name, source in (("train", data.train), ("test", data.test))
    }
    out = []
    for label, change in ABLATION.items():
        change = dict(change)
        share, alone = change.pop("share", 1.0), change.pop("alone", False)
        recipe = replace(Recipe(passes=ABLATION_PASSES / share), **change)
        used = {name: _alone(part) if alone else part for name, part in rows.items()}
        taken = used["train"][: int(share * used["train"].n_rows)]
        started = time.perf_counter()
        fit = fit_context(
            partial(_chunks, taken),
            codec.latents.prior,  # type: ignore[arg-type]
            device=sae.device,
            report=lambda done, total, bits: None,
            seconds=1e9,
            recipe=recipe,
        )
        bits = [fit.prior.ideal_bits(part) for part in _chunks(used["test"])]
        support, levels = (sum(part[i] for part in bits) / used["test"].n_rows for i in (0, 1))
        seconds = time.perf_counter() - started
        data.log(f"{label}: {support:.2f} + {levels:.2f} bits/row, {seconds:.0f} s")
        out.append(
            {
                "case": label,
                "support": support,
                "levels": levels,
                "bytes": len(fit.prior.to_bytes()),
                "seconds": seconds,
            }
        )
    return out


@torch.no_grad()
def quantization(data: Data) -> dict[str, float]:
    """What int8 costs: support of 2,016 test rows if each cell were coded with the network's own odds, by the real
    weights and by the integers that come of them, in bits per row. A short training."""
    sae = data.sae(REFERENCE)
    codec = fit_array(data.train, sae)
    train_rows = _codes(codec, data.train, data.ids["train"])
    test = _codes(codec, data.test, data.ids["test"])[:2016]
    block = blocks(np.bincount(train_rows.latents, minlength=sae.n_latents), Recipe().n_blocks)
    layout = Layout(block, np.zeros_like(block), (int(block.max()) + 1,))
    gains = context_gains(Recipe().gain_power)
    seen = train_rows[: -8 * 126]
    recipe = Recipe(passes=ABLATION_PASSES)
    arguments = (layout, gains, recipe, sae.device, 1e9, lambda done, total, bits: None)
    parameters = train(seen, train_rows[-8 * 126 :], *arguments)
    sample = batch_of(seen[:2048], layout, gains, sae.device)
    network = quantize_network(parameters, block, gains, sample)
    batch = batch_of(test, layout, gains, sae.device)
    work = Workspace(parameters.shape, test.n_rows, sae.device)
    loss = gradient(parameters, batch, work, with_loss=True)
    assert loss is not None
    # The integer logits are in bins' widths from the lowest bin's edge on; biases tell where that is in nats.
    arithmetic = Arithmetic(network)
    low = float((parameters.out_bias - arithmetic.out_bias * BIN_NATS).median())
    walk, cells = Walk(arithmetic, linked_rows(test.columns, test.n_rows)), layout.cells(test)
    nats = 0.0
    for i in range(network.n_blocks):
        first, end = network.starts[i : i + 2]
        here = slice(*np.searchsorted(cells.column, [first, end]).tolist())
        logits = torch.cat([walk.logits(c, min(c + 64, end)).clone() for c in range(first, end, 64)]) * BIN_NATS + low
        nats += float(torch.nn.functional.softplus(logits.double()).sum())
        nats -= float(logits[cells.column[here] - first, cells.row[here]].double().sum())
        walk.enter(cells.column[here], cells.row[here], cells.level[here])
    bits = math.log2(math.e) / test.n_rows
    out = {"real": float(loss[0]) * bits, "integer": nats * bits}
    data.log(str(out))
    return out


def _codes(codec: Codec, source: ArraySource, ids: np.ndarray) -> Codes:
    codes = Codes.concatenate(map(codec.quantize, source.batches(4096)), codec.latents.prior.n_latents)
    return replace(codes, columns={"seq": ids.astype(np.int64)})


def _alone(codes: Codes) -> Codes:
    return replace(codes, columns={"seq": np.arange(codes.n_rows)})


def _chunks(codes: Codes) -> Any:
    return (codes[i : i + 4096] for i in range(0, codes.n_rows, 4096))


def speed(data: Data) -> list[dict[str, Any]]:
    """Encoding and decoding of the test rows, SAE and files included, under both priors in turn: medians."""
    sae = data.sae(REFERENCE)
    short = Goal.of(prior="context", fit_seconds=30)  # how well the network is trained decides bits, not time
    codecs = {"factorized": data.fitted(sae, Goal.of())[0], "context": data.fitted(sae, short)[0]}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.saec" for name in codecs}

        def encode(name: str) -> None:
            encode_array(data.test, paths[name], sae=sae, codec=codecs[name], seq=data.ids["test"], force=True)

        def decode(name: str) -> None:
            with saecodec.open(paths[name], sae=sae, codec=codecs[name]) as file:
                for _ in file.batches():
                    pass

        out = []
        for what, function in (("encode", encode), ("decode", decode)):
            seconds: dict[str, list[float]] = {name: [] for name in codecs}
            for round_ in range(8):
                for name in codecs:
                    started = time.perf_counter()
                    function(name)
                    if round_:  # the first one warms up
                        seconds[name].append(time.perf_counter() - started)
            ratio = statistics.median(b / a for a, b in zip(seconds["factorized"], seconds["context"], strict=True))
            medians = {name: statistics.median(times) for name, times in seconds.items()}
            data.log(f"{what}: {medians}, ratio {ratio:.2f}")
            out.append({"what": what, "seconds": medians, "ratio": ratio, "rows": data.test.n_rows})
    return out


_LARGE = """
import re, sys, time
import numpy as np, torch
import saecodec
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.encoding import encode_array, fit_array
from saecodec.goal import Goal
from saecodec.nonlinearity import JumpReLU
from saecodec.sae import SAE, Encoder
small = saecodec.load_sae(sys.argv[1])
x = np.load(sys.argv[2])[:16384]
generator = torch.Generator().manual_seed(0)
noise = torch.randn(16384, x.shape[1], generator=generator)
w = small.w_dec.repeat(6, 1)[:16384]
w = w + 0.5 * w.norm(dim=1, keepdim=True) * noise / noise.norm(dim=1, keepdim=True)
w = w / w.norm(dim=1, keepdim=True)
h = (torch.from_numpy(x[:2048].astype(np.float32)) - small.b_dec) @ w.T
threshold = torch.quantile(h.reshape(-1)[::7], 1 - 32 / 16384)
encoder = Encoder(w.T.contiguous(), torch.zeros(16384), JumpReLU(threshold.expand(16384).clone()), True)
sae = SAE(w, small.b_dec, encoder, "jumprelu", "large", "made")
started = time.perf_counter()
codec = fit_array(MemoryArray(x), sae, Goal.of(prior="context", fit_seconds=60))
fitted = time.perf_counter()
encode_array(MemoryArray(x), sys.argv[3], sae=sae, codec=codec)
encoded = time.perf_counter()
with saecodec.open(sys.argv[3], sae=sae, codec=codec) as file:
    rows = sum(len(part) for part in file.batches())
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(rows, peak, fitted - started, encoded - fitted, time.perf_counter() - encoded, len(codec.to_bytes()))
"""


def memory(data: Data) -> dict[str, Any]:
    """Peak memory of fitting, encoding and decoding with an SAE of 16,384 latents: the reference's directions six times
    over, each turned at random, with one threshold for about 32 active latents."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [data.folder / "saes" / REFERENCE, data.test.path, Path(folder) / "x.saec"]
        command = [sys.executable, "-c", _LARGE, *map(str, arguments)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    names = ("rows", "peak_kib", "fit_seconds", "encode_seconds", "decode_seconds", "codec_bytes")
    out = dict(zip(names, map(float, told), strict=True))
    data.log(str(out))
    return out


def mnist(data: Data) -> list[dict[str, Any]]:
    """Rows without an order: every image is a sequence of its own."""
    train, test = (open_array(data.folder / "mnist" / f"mnist_{name}.npz") for name in ("train", "test"))
    out = []
    for name in ("mnist_batchtopk_1024_k8",):
        sae = data.sae(name)
        for prior in ("factorized", "context"):
            started = time.perf_counter()
            codec = fit_array(train, sae, Goal.of(prior=prior), seq=np.arange(train.n_rows))
            seconds = time.perf_counter() - started
            size = len(codec.to_bytes())
            report = measure_array(test, sae=sae, codec=codec, codec_bytes=size, seq=np.arange(test.n_rows))
            data.log(f"{name}, {prior}: {report['bits_per_row']:.2f} bits/row")
            out.append(report | {"sae": name, "fit_seconds": seconds})
    return out


def page(facts: dict[str, Any]) -> str:
    """The tables of docs/results.md."""
    cases = [(_saes(case["sae"]), case) for case in facts["rates"] + facts["mnist"]]
    parts = [table(_RATE_HEAD, [_rate(label, case) for label, case in cases])]
    parts += [_EXPLAINED, table(_SUPPORT_HEAD, [_support(label, case) for label, case in cases if case["context"]])]
    rows = [
        [
            f"{case['target_nmse']:g}",
            _saes(case["sae"]) + (" + residual" if case["has_residual"] else ""),
            case["prior"],
            f"{case['nmse']:.4f}",
            f"**{case['bits_per_row']:.1f}**",
            f"{case['bits_per_row_with_codec']:.1f}",
        ]
        for case in facts["targets"]
    ]
    head = ["NMSE asked for", "SAE", "prior", "NMSE", "bits/row", "with the codec file"]
    parts += ["Pursuit at a target, codec fitted for it on the train rows (it holds the target on the test rows):"]
    parts.append(table(head, rows))
    first = facts["ablation"][0]
    rows = [
        [
            case["case"],
            f"{case['support']:.1f}",
            f"{case['levels']:.1f}",
            f"{case['support'] + case['levels']:.1f}",
            f"{case['support'] + case['levels'] - first['support'] - first['levels']:+.1f}",
            f"{case['bytes'] / 1e6:.2f} MB",
        ]
        for case in facts["ablation"]
    ]
    parts += [_ABLATED.format(passes=ABLATION_PASSES)]
    parts.append(table(["one thing changed", "support", "levels", "bits/row", "change", "prior"], rows))
    q = facts["quantization"]
    parts += [
        f"Weights as int8 instead of real numbers: {q['real']:.2f} -> {q['integer']:.2f} bits/row of support, each "
        "cell coded with the network's own odds."
    ]
    rows = [
        [
            case["what"],
            *(f"{1e6 * case['seconds'][prior] / case['rows']:.0f}" for prior in ("factorized", "context")),
            f"{case['ratio']:.1f}",
        ]
        for case in facts["speed"]
    ]
    parts += ["Time in us a row, SAE and files included, 7 runs in turn, medians:"]
    parts.append(table(["", "factorized", "context", "ratio"], rows))
    m = facts["memory"]
    encoding, decoding = (1e6 * m[f"{what}_seconds"] / m["rows"] for what in ("encode", "decode"))
    parts.append(
        f"An SAE of 16,384 latents ({m['rows']:,.0f} rows, made from the reference): fitting (60 s of training), "
        f"encoding and decoding peak at {m['peak_kib'] / (1 << 20):.2f} GiB; {encoding:.0f} and {decoding:.0f} us a "
        f"row; codec {m['codec_bytes'] / 1e6:.1f} MB."
    )
    return "\n\n".join(parts)


_RATE_HEAD = [
    "SAE",
    "prior",
    "NMSE",
    "bits/row",
    "of the sum of entropies",
    "support",
    "levels",
    "codec file",
    "bits/row with it",
    "pays for itself after",
    "fit",
]
_SUPPORT_HEAD = ["SAE", "independent", "gaps", "other latents", "neighbouring rows", "dependence"]
_EXPLAINED = """\
"Pays for itself after" is the number of rows at which file and codec file together are smaller than with a factorized
prior that is fitted on the measured rows themselves. The dependence of latents, as bits/row of support (rates and
tables fitted on the measured codes). The network was trained with neighbouring rows, so what these are worth is at most
the last step (a network trained without them: the ablation below); saecodec/dependence.py:"""
_ABLATED = """\
Ablation: the reference SAE, {passes:g} passes over the train rows instead of the default's 16 (as many steps with fewer
rows), ideal bits on the test rows:"""


def _saes(name: str) -> str:
    return name.removeprefix("minilm_l3_").replace("batchtopk_", "").replace("_", " ")


def _rate(label: str, case: dict[str, Any]) -> list[str]:
    even = case["context"]["break_even"]["rows"] if case["context"] else None
    return [
        label,
        case["prior"],
        f"{case['nmse']:.4f}",
        f"**{case['bits_per_row']:.1f}**",
        f"{case['bits_per_row'] / case['estimates']['sum_entropy']:.3f}",
        f"{case['bits']['support']:.1f}",
        f"{case['bits']['levels']:.1f}",
        f"{case['outside']['codec_bytes']:,}",
        f"{case['bits_per_row_with_codec']:.1f}",
        f"{even:,.0f} rows" if even is not None else "-",
        f"{case['fit_seconds']:.0f} s",
    ]


def _support(label: str, case: dict[str, Any]) -> list[str]:
    support, total = case["context"]["support"], case["context"]["dependence"]["total"]
    models = [f"{support[name]:.1f}" for name in ("independent", "gaps", "row", "neighbours")]
    return [label, *models, f"{total['bits_per_row']:.1f} ({100 * total['share']:.0f} %)"]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


SECTIONS: dict[str, Callable[[Data], Any]] = {
    "rates": rates,
    "targets": targets,
    "speed": speed,
    "memory": memory,
    "mnist": mnist,
    "quantization": quantization,
    "ablation": ablation,
}


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the shared data")
    parser.add_argument("--only", metavar="SECTION,...", help=f"of {', '.join(SECTIONS)}")
    arguments = parser.parse_args()
    path = DOCS / "context.json"
    held = json.loads(path.read_text()) if path.exists() else {}
    data = Data(arguments.data, partial(print, file=sys.stderr, flush=True))
    for name in arguments.only.split(",") if arguments.only else SECTIONS:
        held[name] = SECTIONS[name](data)
        held["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
        path.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
