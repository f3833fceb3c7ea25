"""The report of `compare` as text for people."""

from __future__ import annotations

from typing import Any

from saecodec.cli.render import columns_text, count, groups_text, number, size


def compare_text(report: dict[str, Any]) -> str:
    """Verdicts at each target, then what each SAE takes."""
    told, layer = report["bootstrap"], " with a residual layer" if report["residual"] else ""
    head = (
        f"{report['input']}: {count(report['rows'], 'row')} of {report['width']} values; search {report['search']}"
        f"{layer}, decoders in {report['weights']}; 95 % intervals from {told['blocks']:,} blocks ({told['unit']})"
    )
    kept = report["selection"]
    if kept["rows_in_input"] != report["rows"]:
        head += f"\n{kept['rows_in_input'] - report['rows']:,} rows of {kept['rows_in_input']:,} are left out"
    lines = [head, *(_target_text(report, key) for key in report["at"]), _curves_text(report)]
    for sae in report["saes"]:
        told_of = f"groups of rows, {sae['name']} at NMSE {report['targets'][0]:g}"
        lines += ["\n".join(part) for part in [groups_text(sae["detail"], told_of)] if part]
    return "\n\n".join(lines)


def _target_text(report: dict[str, Any], key: str) -> str:
    verdict = report["at"][key]
    saes = sorted(report["saes"], key=lambda sae: sae["at"][key].get("bits_per_row", float("inf")))
    against = {pair["b"]: pair for pair in verdict["differences"] if pair["a"] == verdict["mdl"]}
    head = ["SAE", "bits/row", "95 %", "above the MDL-SAE", "95 %", "with its decoder", "median row's NMSE"]
    table, missing = [head], []
    for sae in saes:
        at, pair = sae["at"][key], against.get(sae["name"])
        if "missing" in at:
            missing.append(f"{sae['name']} ({at['missing']})")
            continue
        beside = ["MDL-SAE", ""] if pair is None else [f"{pair['bits']:+.1f}", _range(pair["interval"])]
        if pair is not None and pair["tie"]:
            beside[1] += " tie"
        rate, total, median = at["bits_per_row"], at["total_bits_per_row"], at["file"]["nmse_median"]
        figures = [number(rate, 1), _range(at["interval"]), *beside, number(total, 1), number(median, 4)]
        table.append([sae["name"], *figures])
    out = [f"at NMSE {key}", columns_text(table, left=(0,))] if len(table) > 1 else [f"at NMSE {key}"]
    if missing:
        way_out = "" if report["residual"] else "; with --residual, a layer codes what they leave"
        out.append(f"not reached by {', '.join(missing)}{way_out}")
    steps = verdict["shortest_from_rows"]
    if steps:
        out.append(
            "shortest with its decoder and tables counted: "
            + ", ".join(f"{step['name']} from {step['from_rows']:,.0f} rows on" for step in steps)
        )
    if report["baselines"] and report["baselines"][key]:
        out.append(_baselines_text(report["baselines"][key], saes[0]["at"][key].get("bits_per_row")))
    return "\n".join(out)


def _baselines_text(found: dict[str, Any], best: float | None) -> str:
    """Other codes, and how many times as long they are as the MDL-SAE's files."""

    def beside(bits: float) -> str:
        return f"{bits:,.1f}" + ("" if best is None else f" ({bits / best:.2f}x)")

    parts = []
    if found["dense"]:
        dense = found["dense"]
        parts.append(f"dense {beside(dense['bits_per_row'])}, its entropy {beside(dense['entropy_per_row'])}")
        parts.append(f"one-hot {beside(found['one_hot']['bits_per_row'])}")
    if found["pca"]:
        model = size(found["pca"]["model_bytes"])
        parts.append(f"PCA, a real codec, {beside(found['pca']['bits_per_row'])} and {model} of model")
    return "without an SAE, bits/row: " + "; ".join(parts or ["-"])


def _curves_text(report: dict[str, Any]) -> str:
    """A line for each SAE."""
    reference = report["bd_rate"]["reference"]
    table = [["SAE", "latents", "L0", "floor (NMSE)", "decoder", f"BD-rate to {reference}", "SAEBench mdl, its NMSE"]]
    for sae in report["saes"]:
        rate = report["bd_rate"]["percent"].get(sae["name"])
        mdl = sae["saebench"]["chosen"] if sae["saebench"] else None
        table.append(
            [
                sae["name"],
                f"{sae['n_latents']:,}",
                number(sae["l0"], 1),
                number(sae["floor"], 4),
                size(sae["decoder"][report["weights"]]["bytes"]),
                "-" if rate is None else f"{rate:+.1f} %",
                "-" if mdl is None else f"{mdl['mdl_bits']:,.1f}, {number(mdl['nmse'], 3)}",
            ]
        )
    crossings = [
        f"{point['a']} and {point['b']} cross at NMSE {point['nmse']:.4f}, {point['bits_per_row']:.1f} bits/row"
        for point in report["crossings"]
        if point["lowest"]
    ]
    return "\n".join([columns_text(table, left=(0,)), *crossings])


def _range(interval: list[float]) -> str:
    return f"{interval[0]:,.1f} to {interval[1]:,.1f}"
