"""A report as `compare` makes it, of SAEs that do not exist: its numbers are made up, and agree with each other."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from saecodec.formats.two_part import break_even, shortest_by_rows, two_part

Report = dict[str, Any]
Columns = dict[str, list[Any]]

RAW_BITS = 16.0 * 384
DISTORTIONS = ("No bytes are made.", "Latents are taken as independent.")
PARTS = ("support", "levels", "side", "columns", "residual", "tables", "decoder", "headers")


def synthetic_report(
    n_saes: int = 3,
    *,
    names: tuple[str, ...] = (),
    latents: int = 40,
    pairs: int = 12,
    metric: bool = False,
    rows: int = 32768,
    targets: tuple[float, ...] = (0.12, 0.2),
) -> Report:
    """`n_saes` SAEs of rising rate and falling floor, five files each; all but the last of several have a detail."""
    rng = np.random.default_rng(0)
    named = [*names, *(f"sae_{1024 * (i + 1)}_k{8 * (i + 2)}" for i in range(len(names), n_saes))][:n_saes]
    saes = [_sae(name, i, rng, rows, targets, metric, latents, pairs) for i, name in enumerate(named)]
    if n_saes > 1:
        saes[-1]["detail"] = None
    return {
        "kind": "compare",
        "version": "0.1.0",
        "input": "activations/test.npy",
        "rows": rows,
        "width": 384,
        "selection": {"rows_in_input": rows + 261, "skip_first": 1, "rows_mask": None},
        "weights": "float32",
        "prior": "factorized",
        "search": "none",
        "residual": False,
        "targets": list(targets),
        "metric": "probe:accuracy" if metric else None,
        "bootstrap": {"unit": "sequences", "blocks": 261, "resamples": 1000, "level": 0.95},
        "saes": saes,
        "at": {f"{target:g}": _verdict(saes, f"{target:g}", rows) for target in targets},
        "baselines": {f"{target:g}": _baselines(target, rows) for target in targets},
        "pareto": _pareto(saes),
        "bd_rate": {
            "reference": named[0],
            "percent": {sae["name"]: None if i == n_saes - 1 else 3.1 * i for i, sae in enumerate(saes)},
        },
        "crossings": [
            {"a": a, "b": b, "nmse": 0.171, "bits_per_row": 141.3, "lowest": True} for a, b in pairwise(named[:2])
        ],
    }


def synthetic_measure() -> Report:
    """A measure of one file, in the form of a report: without a target, and with the SAE counted."""
    report = synthetic_report(1, targets=())
    (sae,) = report["saes"]
    sae["points"] = [point] = sae["points"][2:3]
    others = _baselines(point["nmse"], report["rows"]) | {"saebench": sae.pop("saebench")}
    sizes = {name: facts["bytes"] for name, facts in sae["decoder"].items()}
    weighed = two_part(point["bytes"], report["rows"], 0, sizes, RAW_BITS, others["pca"])
    kept = {key: value for key, value in report.items() if key not in ("pareto", "bd_rate", "crossings")}
    return kept | {"kind": "measure", "baselines": others, "two_part": weighed}


def _baselines(nmse: float, rows: int) -> Report:
    """What other codes take at an NMSE."""
    fixed, entropy, linear = (base * (0.2 / nmse) ** 0.3 for base in (948.2, 530.7, 243.8))
    one_hot = {"n_exemplars": rows, "nmse": nmse, "index_bits": 15.0, "bits_per_row": fixed + 15}
    exemplars = [
        {"n_exemplars": n, "nmse": 1.9 / n**0.1, "index_bits": index, "bits_per_row": index + n * fixed / rows}
        for n, index in ((4, 2.0), (4096, 12.0))
    ]
    return {
        "sample_rows": 16384,
        "dense": {"target": nmse, "nmse": nmse, "bits_per_row": fixed, "entropy_per_row": entropy},
        "one_hot": one_hot,
        "exemplars": exemplars,
        "pca": {"target": nmse, "nmse": 1.001 * nmse, "bits_per_row": linear, "model_bytes": 108394},
        "missing": {},
    }


def _sae(
    name: str,
    i: int,
    rng: np.random.Generator,
    rows: int,
    targets: tuple[float, ...],
    metric: bool,
    latents: int,
    pairs: int,
) -> Report:
    floor = 0.131 - 0.012 * i
    points = [_point(step, i, floor, rows, metric) for step in (0.4, 0.6, 0.8, 1.2, 1.7)]
    decoder = 4 * 384 * (1024 * (i + 1) + 1)
    at: dict[str, Report] = {}
    for target in targets:
        if target <= floor:
            at[f"{target:g}"] = {"missing": f"floor {floor:.4f} is above"}
            continue
        logs = [np.log([p[key] for p in points]) for key in ("nmse", "bits_per_row")]
        pca = _baselines(target, rows)["pca"]
        bits = float(np.exp(np.interp(np.log(target), *logs)))
        at[f"{target:g}"] = {
            "bits_per_row": bits,
            "interval": [0.99 * bits, 1.01 * bits],
            "sae_bits_per_row": 8 * decoder / rows,
            "total_bits_per_row": bits + 8 * decoder / rows,
            "rows_to_break_even_raw": break_even(8.0 * decoder, bits, 0.0, RAW_BITS),
            "rows_to_break_even_pca": break_even(8.0 * decoder, bits, 8 * pca["model_bytes"], pca["bits_per_row"]),
        }
    return {
        "name": name,
        "path": f"saes/{i}",
        "n_latents": 1024 * (i + 1),
        "l0": 8.0 * (i + 2),
        "floor": floor,
        "decoder": {
            "float32": {"bytes": decoder},
            "bfloat16": {"bytes": decoder // 2, "nmse": points[0]["nmse"] * 1.0001},
            "int8": {"bytes": decoder // 5, "nmse": points[0]["nmse"] * 1.001},
        },
        "points": points,
        "at": at,
        "saebench": {
            "chosen": {"num_bins": 8, "mdl_bits": 185.0 + 30 * i, "nmse": 2930.4 + i},
            "distortions": [*DISTORTIONS, f"The NMSE of what is decoded is {2930 + i}."],
        },
        "detail": _detail(rng, 1024 * (i + 1), min(latents, 1024 * (i + 1)), pairs, rows),
    }


def _point(step: float, i: int, floor: float, rows: int, metric: bool) -> Report:
    scale = (150 + 41 * i) * rows / 8
    sizes = [scale * 0.9 / (1 + step**2), scale * 0.3 / (1 + 4 * step**2), 0, 0, 0, 7411 + 3 * i, 0, 2111]
    parts = {part: int(size) for part, size in zip(PARTS, sizes, strict=True)}
    total = sum(parts.values())
    bits, nmse = 8 * total / rows, floor * (1 + 0.31 * step**2)
    found = 0.911 - 0.4 * (nmse - 0.1) if metric else None
    return {
        "step": step,
        "file_bytes": total,
        "bytes": parts,
        "bits_per_row": bits,
        "bits_interval": [0.9871 * bits, 1.0117 * bits],
        "nmse": nmse,
        "nmse_interval": [0.979 * nmse, 1.0213 * nmse],
        "nmse_median": 0.83 * nmse,
        "l0": 8.0 * (i + 2) / (1 + 0.1 * step),
        "estimates": {"l0_formula": 1.9 * bits, "sum_entropy": 1.02 * bits},
        "metric": found,
        "metric_interval": None if found is None else [found - 0.004, found + 0.004],
    }


def _detail(rng: np.random.Generator, n_latents: int, shown: int, pairs: int, rows: int) -> Report:
    support = np.sort(rng.lognormal(-3, 1.5, shown))[::-1]
    levels = 0.25 * support * rng.uniform(0.5, 1.5, shown)
    removal = 1e-4 * support * rng.lognormal(0, 1, shown)
    worst = np.sort(rng.lognormal(3, 1, 30))[::-1]
    row_bits = rng.normal(240, 40, rows)
    counts, edges = np.histogram(row_bits, bins=40)
    latent_edges = np.geomspace(1e-4, 10, 31)
    latent_counts, _ = np.histogram(rng.lognormal(-4, 1.4, n_latents), bins=latent_edges)
    latent, other = rng.permutation(n_latents)[:shown], rng.permutation(n_latents)
    return {
        "step": 0.8,
        "histograms": {
            "row_bits": {"edges": edges.tolist(), "counts": counts.tolist(), "unit": "bits"},
            "latent_bits": {
                "edges": latent_edges.tolist(),
                "counts": latent_counts.tolist(),
                "unit": "bits per row",
                "log": True,
            },
        },
        "latents": {
            "columns": {
                "latent": latent.tolist(),
                "rate": rng.uniform(1e-4, 0.2, shown).tolist(),
                "bits": (support + levels).tolist(),
                "support": support.tolist(),
                "levels": levels.tolist(),
                "removal_nmse": removal.tolist(),
                "bits_per_nmse": ((support + levels) / removal).tolist(),
            },
            "shown": shown,
            "of": n_latents,
            "rest_bits": 12.3,
        },
        "worst_rows": {
            "columns": {
                "row": rng.integers(0, rows, 30).tolist(),
                "sequence": rng.integers(0, 261, 30).tolist(),
                "position": rng.integers(0, 126, 30).tolist(),
                "bits": rng.normal(300, 30, 30).tolist(),
                "squared_error": worst.tolist(),
                "share": (worst / worst.sum() / 20).tolist(),
            }
        },
        "groups": {
            "columns": {
                "group": ["position 9", "position 10", "others"],
                "rows": [261, 261, rows - 522],
                "bits": [231.4, 228.9, 244.0],
                "nmse": [0.121, 0.119, 0.114],
            }
        },
        "pairs": {
            "near_duplicates": {
                "columns": {
                    "a": latent[:pairs].tolist(),
                    "b": other[:pairs].tolist(),
                    "jaccard": np.linspace(0.95, 0.6, pairs).tolist(),
                    "cosine": np.linspace(0.9, 0.1, pairs).tolist(),
                    "saved": np.geomspace(0.5, 0.001, pairs).tolist(),
                }
            },
            "parents": {
                "columns": {
                    "child": other[:pairs].tolist(),
                    "parent": latent[:pairs].tolist(),
                    "given": np.linspace(1, 0.95, pairs).tolist(),
                    "rate_child": np.geomspace(0.01, 0.001, pairs).tolist(),
                    "rate_parent": np.geomspace(0.1, 0.01, pairs).tolist(),
                    "saved": np.geomspace(0.4, 0.002, pairs).tolist(),
                }
            },
        },
    }


def _verdict(saes: list[Report], key: str, rows: int) -> Report:
    reached = {sae["name"]: sae["at"][key] for sae in saes if "bits_per_row" in sae["at"][key]}
    rates = {name: float(at["bits_per_row"]) for name, at in reached.items()}
    decoders = {name: rows * float(at["sae_bits_per_row"]) for name, at in reached.items()}
    ordered = sorted(rates, key=lambda name: rates[name])
    differences: list[Report] = []
    for i, a in enumerate(ordered):
        for b in ordered[i + 1 :]:
            bits = rates[b] - rates[a]
            even = break_even(decoders[a], rates[a], decoders[b], rates[b])
            differences.append(
                {"a": a, "b": b, "bits": bits, "interval": [bits - 3, bits + 3], "tie": bits < 3}
                | {"rows_to_break_even": even}
            )
    best = ordered[0] if ordered else None
    total = min(reached, key=lambda name: float(reached[name]["total_bits_per_row"]), default=None)
    ties = [one["b"] for one in differences if one["a"] == best and one["tie"]]
    return {
        "mdl": best,
        "ties": ties,
        "mdl_with_sae": total,
        "shortest_from_rows": shortest_by_rows(decoders, rates),
        "differences": differences,
    }


def _pareto(saes: list[Report]) -> list[Report]:
    points = [{"sae": sae["name"], **point} for sae in saes for point in sae["points"]]
    points.sort(key=lambda point: (point["bits_per_row"], point["nmse"]))
    front: list[Report] = []
    for point in points:
        if not front or point["nmse"] < front[-1]["nmse"]:
            front.append({key: point[key] for key in ("sae", "step", "bits_per_row", "nmse")})
    return front
