"""Measures what docs/results.md reports, and writes it: `make results DATA=path/to/data`.

DATA holds `minilm_l3_test.npy`, `minilm_l3_train.npz`, `saes/<name>/` and `mnist/mnist_test.npz`. Every size is that
of a file that was written and decoded again. Timings are ratios of two things timed in turn in this process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import store_text
import torch
from make_context import page, table

import saecodec
from saecodec.codec import Codec
from saecodec.costs import DEFAULT_SLOPE
from saecodec.fit_residual import RESIDUAL_SLOPE, fit_layer
from saecodec.fitting import Point
from saecodec.formats.arrays import open_array
from saecodec.formats.decoding import decode_file
from saecodec.formats.encoding import encode_array, fit_array
from saecodec.formats.measuring import measure_array
from saecodec.goal import Goal
from saecodec.rate_control import Sample, Trial, Trials
from saecodec.row_coder import RowCoder
from saecodec.search import Search
from saecodec.solver import solve

REFERENCE = "minilm_l3_batchtopk_3072_k32"
ROUNDS = 9


def rate_row(label: str, report: dict[str, Any]) -> list[str]:
    """One line of a rate table."""
    bits, ideal = report["bits"], report["ideal"]
    outside = report["outside"]["codec_bytes"]
    coded = bits["support"] + bits["levels"]
    return [
        label,
        f"{report['bits_per_row']:.2f}",
        f"{report['nmse']:.4f}",
        f"{report['sae_alone']['l0']:.1f} / {report['l0']:.1f}",
        f"{bits['support']:.2f}",
        f"{bits['levels']:.2f}",
        f"{bits['tables']:.2f}",
        f"{bits['headers']:.2f}",
        f"{100 * (coded / (ideal['support'] + ideal['levels']) - 1):.2f} %",
        f"{report['estimates']['sum_entropy']:.1f}",
        f"{report['estimates']['l0_formula']:.1f}",
        f"{outside:,}" if outside else "-",
    ]


RATE_HEAD = [
    "case",
    "bits/row",
    "NMSE",
    "L0",
    "support",
    "levels",
    "tables",
    "headers",
    "over ideal",
    "sum of entropies",
    "L0 (B + log2 F)",
    "codec bytes outside",
]


def rates(data: Path, log: Callable[[str], None]) -> str:
    """Rate and distortion of every SAE, of the reference SAE at several steps, and with a codec outside."""
    test = open_array(data / "minilm_l3_test.npy")
    sae = saecodec.load_sae(data / "saes" / REFERENCE)
    out = [rate_row("MiniLM, 3072 k32, fitted on itself", measure_array(test, sae=sae))]
    log(f"reference: {out[0][1]} bits/row")
    codec = fit_array(open_array(data / "minilm_l3_train.npz"), sae)
    with tempfile.TemporaryDirectory() as folder:
        saecodec.save_codec(codec, Path(folder) / "codec.saecodec")
        size = (Path(folder) / "codec.saecodec").stat().st_size
    report = measure_array(test, sae=sae, codec=codec, codec_bytes=size)
    out.append(rate_row("MiniLM, 3072 k32, codec fitted on the train rows", report))
    log(f"codec outside: {out[1][1]} bits/row")
    for step in ("0.2rms", "0.8rms", "1.2rms"):
        out.append(rate_row(f"MiniLM, 3072 k32, step {step}", measure_array(test, sae=sae, goal=Goal.of(step))))
    bundled = Path(str(files("saecodec") / "bundled"))
    small = measure_array(open_array(bundled / "minilm_l3_rows.npy"), sae=saecodec.load_sae(bundled / "minilm_l3_sae"))
    out.append(rate_row("bundled: 2,048 rows, 1536 k32", small))
    for folder in sorted((data / "saes").glob("minilm_l3_*")):
        if folder.name != REFERENCE:
            label = folder.name.removeprefix("minilm_l3_").replace("batchtopk_", "").replace("_", " ")
            out.append(rate_row(f"MiniLM, {label}", measure_array(test, sae=saecodec.load_sae(folder))))
            log(f"{label}: {out[-1][1]} bits/row")
    mnist = open_array(data / "mnist" / "mnist_test.npz")
    for name in ("mnist_batchtopk_256_k8", "mnist_batchtopk_256_k16", "mnist_batchtopk_1024_k8"):
        report = measure_array(mnist, sae=saecodec.load_sae(data / "saes" / name))
        out.append(rate_row(f"MNIST test, {name.removeprefix('mnist_batchtopk_').replace('_', ' ')}", report))
    return table(RATE_HEAD, out)


def _digest(job: tuple[bytes, bytes, str, str]) -> str:
    """sha256 of the chunks that a fresh process makes of saved codes."""
    data, codec_bytes, sae_path, threads = job
    torch.set_num_threads(int(threads))
    codec = Codec.from_bytes(codec_bytes).with_sae(saecodec.load_sae(sae_path))
    chunks = [codec.latents.pack(codes) for codes in codec.codes(data)]
    return hashlib.sha256(b"".join(chunks)).hexdigest()


def determinism(data: Path) -> str:
    """Identical bytes for identical codes; levels that the SAE's own float arithmetic moves."""
    path = data / "saes" / REFERENCE
    sae, x = saecodec.load_sae(path), np.load(data / "minilm_l3_test.npy")
    codes, fitted = {}, {}
    codec = Codec.fit(sae, x)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        codes[threads] = [codec.quantize(x[i : i + 4096]) for i in range(0, len(x), 4096)]
        fitted[threads] = saecodec.LatentCodec.fit(codes[1]).to_bytes()
    torch.set_num_threads(2)
    encoded = codec.encode(x)
    jobs = [(encoded, codec.to_bytes(), str(path), threads) for threads in ("1", "2", "1", "2")]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        digests = set(pool.map(_digest, jobs))
    digests.add(hashlib.sha256(b"".join(codec.latents.pack(part) for part in codec.codes(encoded))).hexdigest())
    moved = total = 0
    for a, b in zip(codes[1], codes[2], strict=True):
        left, right = a.to_dense(), b.to_dense()
        moved, total = moved + int((left != right).sum()), total + a.nnz
    return table(
        ["check", "found"],
        [
            ["distinct chunk bytes of the same codes over 5 runs (1 and 2 threads, 3 processes)", str(len(digests))],
            ["distinct fitted tables of the same codes, 1 and 2 threads", str(len(set(fitted.values())))],
            [
                "levels that differ between 1 and 2 threads, same rows",
                f"{moved} of {total:,} ({1e6 * moved / total:.2f} per million)",
            ],
        ],
    )


def paired(a: Callable[[], object], b: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float, float]:
    """Median seconds of a and of b, run in turn, and the median of their ratio pair by pair."""
    a(), b()
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        started = time.perf_counter()
        a()
        middle = time.perf_counter()
        b()
        times.append((middle - started, time.perf_counter() - middle))
    ratio = statistics.median(first / second for first, second in times)
    return statistics.median(t for t, _ in times), statistics.median(t for _, t in times), ratio


@torch.no_grad()
def speed(data: Path) -> str:
    """Encode against the dense encoder, decode against the dense decoder: files included, one process, 2 threads."""
    sae, source = saecodec.load_sae(data / "saes" / REFERENCE), open_array(data / "minilm_l3_test.npy")
    assert sae.encoder is not None
    threshold = sae.encoder.nonlinearity.tensors()["threshold"]
    z = sae.encode(torch.from_numpy(np.load(source.path)[:4096].astype(np.float32)))

    def dense_encoder() -> None:
        for x in source.batches(sae.batch_rows):
            h = torch.addmm(sae.encoder.b_enc, torch.from_numpy(x) - sae.b_dec, sae.encoder.w_enc)  # type: ignore[union-attr]
            torch.relu(h) * (h > threshold)

    def dense_decoder() -> None:
        for _ in range(source.n_rows // len(z)):
            z @ sae.w_dec

    with tempfile.TemporaryDirectory() as folder:
        saec, out, name = Path(folder) / "x.saec", Path(folder) / "x.npy", Path(folder) / "c.saecodec"
        codec = fit_array(source, sae)
        saecodec.save_codec(codec, name)

        def decode() -> None:
            with saecodec.open(saec, sae=sae) as file:
                decode_file(file, out, force=True)

        def decode_in_memory() -> None:
            with saecodec.open(saec, sae=sae) as file:
                for _ in file.batches():
                    pass

        cases = [
            ("encode, tables fitted on the input", lambda: _encode(source, saec, sae, None), dense_encoder),
            ("encode, with a codec", lambda: _encode(source, saec, sae, codec), dense_encoder),
            ("decode to .npy", decode, dense_decoder),
            ("decode to memory", decode_in_memory, dense_decoder),
        ]
        rows = []
        for label, ours, dense in cases:
            _encode(source, saec, sae, None)
            seconds, base, ratio = paired(ours, dense)
            against = "dense encoder" if dense is dense_encoder else "dense z @ W_dec"
            rate = f"{source.n_rows / seconds:,.0f}", f"{4 * source.n_rows * source.width / seconds / 1e6:.0f}"
            rows.append([label, f"{seconds:.3f}", *rate, against, f"{base:.3f}", f"{ratio:.2f}"])
    return table(["what", "seconds", "rows/s", "MB/s (float32)", "against", "its seconds", "ratio"], rows)


@torch.no_grad()
def searches(data: Path) -> str:
    """What the searches cost beside the SAE's own forward pass, and that decoding does not care."""
    sae = saecodec.load_sae(data / "saes" / REFERENCE)
    x = np.load(data / "minilm_l3_test.npy")[:4096].astype(np.float32)
    rows = []
    for mode, nmse in (("refit", 0.15), ("pursuit", 0.2), ("pursuit", 0.15), ("pursuit", 0.12)):
        codec = Codec.fit(sae, x, nmse=nmse, search=mode)
        coder = RowCoder(codec, mode, active=32)
        costs, search = codec.latents.prior.costs(), Search(sae, mode, 32)
        forward = partial(sae.features, x)
        ours, base, ratio = paired(lambda: search(x, codec.quantizer, costs, DEFAULT_SLOPE), forward, 5)  # noqa: B023
        found, own = coder(x).codes, codec.quantize(x)
        chunks = [codec.latents.pack(codes) for codes in (found, own)]
        decodes = [partial(_decode_chunk, codec, chunk) for chunk in chunks]
        a, b, _ = paired(*decodes)
        rows.append(
            [
                f"{mode}, NMSE {nmse}",
                f"{found.nnz / len(x):.1f}",
                f"{1e6 * ours / len(x):.0f}",
                f"{1e6 * base / len(x):.0f}",
                f"{ratio:.1f}",
                f"{1e9 * a / found.nnz:.0f}",
                f"{1e9 * b / own.nnz:.0f}",
            ]
        )
    head = [
        "search",
        "L0",
        "us a row",
        "SAE forward, us a row",
        "ratio",
        "decoding, ns a nonzero",
        "of the SAE's own codes",
    ]
    return table(head, rows)


def _decode_chunk(codec: Codec, chunk: bytes) -> None:
    codec.reconstruct(codec.latents.unpack(chunk))


def slopes(data: Path) -> str:
    """Bits at an NMSE under other slopes than the defaults: base layer at 0.15, residual layer at 0.05."""
    sae = saecodec.load_sae(data / "saes" / REFERENCE)
    x = np.load(data / "minilm_l3_test.npy")[::4].astype(np.float32)
    trials = Trials(sae, Sample(x, float(x.var(0, dtype=np.float64).sum())), "pursuit", 4096, lambda codec: 0.0)
    base, held = [], None
    for slope in (0.03, 0.04, DEFAULT_SLOPE, 0.11, 0.16):
        held = None

        def at(step: float, slope: float = slope) -> tuple[float, Trial]:
            nonlocal held
            trial = trials.at(Point(step, slope), held, 3 if held is None else 1)
            held = trial.codec
            return trial.nmse, trial

        found = solve(at, 0.15, 0.8 * trials.rms, (0.1 * trials.rms, 4 * trials.rms), rising=True)
        base.append([f"{slope}", f"{found.at / trials.rms:.2f} rms", f"{found.result.bits:.1f}"])
    codec, codes = trials.base(Point(0.6 * trials.rms), None, 3)
    left = [x[i : i + 4096] - codec.reconstruct(part) for i, part in zip(range(0, len(x), 4096), codes, strict=True)]
    layers = []
    for factor in (0.0, 0.5, 1.0, 2.0):
        slope = factor * RESIDUAL_SLOPE * DEFAULT_SLOPE

        def code(step: float, slope: float = slope) -> tuple[float, float]:
            levels: list[np.ndarray] = []
            layer = fit_layer(lambda: iter(left), x.shape[1], step, slope, levels)
            error = sum(float(((a - layer.rows(b)) ** 2).sum()) for a, b in zip(left, levels, strict=True))
            return error / trials.sample.variance / len(x), 8 * sum(len(layer.encode(b)) for b in levels) / len(x)

        solved = solve(code, 0.05, 0.5, (0.05, 5.0), rising=True)
        layers.append([f"{slope:g}", f"{solved.at:.3f}", f"{solved.result:.1f}"])
    return "\n\n".join(
        [
            table(["slope of the base layer", "its step at NMSE 0.15", "bits/row"], base),
            table(["slope of the residual layer", "its step at NMSE 0.05", "its bits/row"], layers),
        ]
    )


def rate_distortion() -> str:
    """The table of what `make rd` measured."""
    facts = json.loads((Path(__file__).parent / "rd.json").read_text())
    head = [
        "bits/row at NMSE",
        *(f"{target:g}" for target in facts["targets"]),
        "model outside",
        "encode MB/s",
        "decode MB/s",
    ]
    rows = []
    for curve in facts["curves"]:
        points = curve["points"]
        at = ["-" if bits is None else f"{bits:.1f}" for bits in curve["bits_per_row_at"].values()]
        model = f"{max(point['model_bytes'] for point in points) / 1e3:,.0f} kB"
        if points[0]["sae_bytes"]:
            model += f" + SAE decoder {points[0]['sae_bytes'] / 1e6:.1f} MB"
        speeds = [statistics.median(point[key] for point in points) for key in ("encode_mb_s", "decode_mb_s")]
        rows.append([curve["name"].removeprefix("minilm_l3_batchtopk_"), *at, model, *(f"{v:.3g}" for v in speeds)])
    return table(head, rows)


def _encode(source: Any, path: Path, sae: saecodec.SAE, codec: Codec | None) -> None:
    encode_array(source, path, sae=sae, codec=codec, force=True)


_PEAK = """
import re, sys
import saecodec
from saecodec.formats.arrays import open_array
from saecodec.formats.encoding import encode_array
encode_array(open_array(sys.argv[1]), sys.argv[2], sae=saecodec.load_sae(sys.argv[3]))
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])  # ru_maxrss would count the parent's
"""


def memory(data: Path) -> str:
    """Peak memory of encoding the test rows once and ten times over."""
    x, peaks = np.load(data / "minilm_l3_test.npy"), []
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 10):
            path = Path(folder) / f"{times}.npy"
            np.save(path, np.tile(x, (times, 1)))
            command = [sys.executable, "-c", _PEAK, str(path), str(path) + ".saec", str(data / "saes" / REFERENCE)]
            peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    rows = [[f"{n * len(x):,}", f"{peak / 1024:.0f}"] for n, peak in zip((1, 10), peaks, strict=True)]
    growth = f"Growth: {100 * (peaks[1] / peaks[0] - 1):.1f} %."
    return table(["rows", "peak resident MB"], rows) + "\n\n" + growth


def latents(facts: dict[str, Any]) -> str:
    """What a delphi cache costs, from docs/latents.json."""
    rows = [
        [
            "exact" if step == "0" else step,
            f"{case['nmse']:.4f}",
            f"{case['bits_per_nonzero']:.2f}",
            f"**{case['ratio']:.3f}**",
            f"{case['ratio_with_columns']:.3f}",
        ]
        for step, case in facts["steps"].items()
    ]
    cache, zstd = facts["cache"], facts["zstd"]
    head = ["step", "NMSE of z", "bits/nonzero", "of the cache's bytes", "tokens counted too"]
    told = (
        f"{cache['nonzeros']:,} activations of {cache['sequences']} sequences x {cache['positions']} positions, "
        f"{cache['latents']} latents, {cache['bytes']:,} bytes in five splits; zstd {zstd['level']} takes "
        f"{zstd['ratio']:.3f} of them, and {zstd['ratio_columns_apart']:.3f} column by column."
    )
    return f"{told}\n\n{table(head, rows)}"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the shared data")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results.md")
    parser.add_argument("--only", metavar="SECTION,...", help="measure these; the others stay (docs/results.json)")
    arguments = parser.parse_args()
    only = arguments.only.split(",") if arguments.only else None
    torch.set_num_threads(2)

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    held = Path(__file__).parent / "results.json"
    sections: dict[str, str] = json.loads(held.read_text()) if only else {}
    for name, measure in (
        ("rates", lambda: rates(arguments.data, log)),
        ("slopes", lambda: slopes(arguments.data)),
        ("determinism", lambda: determinism(arguments.data)),
        ("memory", lambda: memory(arguments.data)),
        ("searches", lambda: searches(arguments.data)),
        ("speed", lambda: speed(arguments.data)),
        ("rd", rate_distortion),
        ("context", lambda: page(json.loads((Path(__file__).parent / "context.json").read_text()))),
        ("store", lambda: store_text.section(Path(__file__).parent)),
        ("latents", lambda: latents(json.loads((Path(__file__).parent / "latents.json").read_text()))),
    ):
        if only is None or name in only:
            log(name)
            sections[name] = measure()
            held.write_text(json.dumps(sections, indent=1) + "\n")
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    template = (Path(__file__).parent / "results.template.md").read_text()
    arguments.output.write_text(template.format(machine=machine, versions=versions, **sections))
    log(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
