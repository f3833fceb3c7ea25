"""The report of `compare` as text for people."""

from __future__ import annotations

import math
from typing import Any, Final

from saecodec.cli.render import columns_text, count, groups_text, number, size

_MUCH: Final = 0.1  # of the bits: what tables take is told above this


def compare_text(report: dict[str, Any], residual: str = "--residual") -> str:
    """Verdicts at each target, then what each SAE takes. residual: how a residual layer is asked for."""
    told, layer = report["bootstrap"], " with a residual layer" if report["residual"] else ""
    head = (
        f"{report['input']}: {count(report['rows'], 'row')} of {report['width']} values; search {report['search']}"
        f"{layer}, decoders in {report['weights']}; 95 % intervals from {told['blocks']:,} blocks ({told['unit']})"
    )
    kept = report["selection"]
    if kept["rows_in_input"] != report["rows"]:
        head += f"\n{kept['rows_in_input'] - report['rows']:,} rows of {kept['rows_in_input']:,} are left out"
    lines = [head, *(_target_text(report, key, residual) for key in report["at"]), _curves_text(report)]
    for sae in report["saes"]:
        told_of = f"groups of rows in the file of {sae['name']} nearest to NMSE {report['targets'][0]:g}"
        lines += ["\n".join(part) for part in [groups_text(sae["detail"], told_of)] if part]
    return "\n\n".join(lines)


def _target_text(report: dict[str, Any], key: str, residual: str) -> str:
    verdict = report["at"][key]
    saes = sorted(report["saes"], key=lambda sae: sae["at"][key].get("bits_per_row", float("inf")))
    against = {pair["b"]: pair for pair in verdict["differences"] if pair["a"] == verdict["mdl"]}
    head = ["SAE", "bits/row", "95 %", "above the MDL-SAE", "95 %", f"with its decoder, {report['rows']:,} rows"]
    head += ["median row's NMSE", *([report["metric"]] if report["metric"] else [])]
    table, missing, beyond, heavy = [head], [], [], []
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
        if report["metric"]:
            figures.append(number(at["file"]["metric"], 4))
        if at["tables_bits_per_row"] > _MUCH * rate:
            heavy.append(f"{at['tables_bits_per_row']:,.1f} of {sae['name']}")
        if at["not_reached"]:
            beyond.append(f"{100 * at['not_reached']:.1f} % by {sae['name']}")
        table.append([sae["name"], *figures])
    out = [f"at NMSE {key}", columns_text(table, left=(0,))] if len(table) > 1 else [f"at NMSE {key}"]
    if missing:
        way_out = "" if report["residual"] else f"; with {residual}, a layer codes what they leave"
        out.append(f"not reached by {', '.join(missing)}{way_out}")
    if heavy:
        out.append(f"of these bits, tables take {', '.join(heavy)}: more rows would share them")
    if beyond:
        out.append(
            f"resamples whose rows are too hard for every file, which leave intervals unbounded: {', '.join(beyond)}"
        )
    if verdict["ties_with_sae"]:
        out.append(f"with decoders counted, {verdict['mdl_with_sae']} ties with {', '.join(verdict['ties_with_sae'])}")
    steps = verdict["shortest_from_rows"]
    if len(table) > 2:
        turns = [f"{step['name']} from {math.ceil(step['from_rows']):,} rows on" for step in steps[1:]]
        out.append(f"shortest with decoder and tables counted: {', '.join([steps[0]['name'] + ' at first', *turns])}")
    if verdict["mdl"] is not None:
        out.append(_others_text(report, key, saes[0]))
    return "\n".join(out)


def _others_text(report: dict[str, Any], key: str, best: dict[str, Any]) -> str:
    """What others estimate or need, and the MDL-SAE's bits as a share of each."""
    at = best["at"][key]
    file = next(point for point in best["points"] if point["file_bytes"] == at["file"]["file_bytes"])

    def beside(what: str, bits: float | None, ours: float) -> list[str]:
        return [] if not bits else [f"{what} {bits:,.1f} ({ours / bits:.3f})"]

    rate, nmse = file["bits_per_row"], file["nmse"]
    parts = beside("sum of entropies", file["estimates"]["sum_entropy"], rate)
    parts += beside("L0 (B + log2 F)", file["estimates"]["l0_formula"], rate)
    lines = [
        f"the MDL-SAE's file at NMSE {nmse:.4f}, {rate:,.1f} bits/row, as a share of estimates: {'; '.join(parts)}"
    ]
    found = report["baselines"] and report["baselines"][key]
    parts, ours = [], at["bits_per_row"]
    if found and found["dense"]:
        parts += beside("dense", found["dense"]["bits_per_row"], ours)
        parts += beside("its entropy", found["dense"]["entropy_per_row"], ours)
        parts += beside("one-hot", found["one_hot"]["bits_per_row"], ours)
    if found and found["pca"]:
        model = size(found["pca"]["model_bytes"])
        parts += beside(f"PCA (a real codec, {model} of model apart)", found["pca"]["bits_per_row"], ours)
    if parts:
        lines.append(f"the MDL-SAE's {ours:,.1f} bits/row as a share of other codes at NMSE {key}: {'; '.join(parts)}")
    return "\n".join(lines)


def _curves_text(report: dict[str, Any]) -> str:
    """A line for each SAE."""
    reference = report["bd_rate"]["reference"]
    table = [
        ["SAE", "latents", "L0", "floor (NMSE)", "decoder", f"BD-rate to {reference}", "SAEBench mdl (decodes to NMSE)"]
    ]
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
                "-" if rate is None else f"{rate:+.1f} % ({_range(report['bd_rate']['interval'][sae['name']])})",
                "-"
                if mdl is None
                else f"{mdl['mdl_bits']:,.1f} ({number(mdl['nmse'], 0 if (mdl['nmse'] or 0) > 99 else 3)})",
            ]
        )
    crossings = [
        f"{point['a']} and {point['b']} cross at NMSE {point['nmse']:.4f}, {point['bits_per_row']:.1f} bits/row"
        for point in report["crossings"]
        if point["lowest"]
    ]
    return "\n".join([columns_text(table, left=(0,)), *crossings])


def _short(value: float | None) -> str:
    return number(value, 0 if value is not None and value > 99 else 3)


def _range(interval: list[float | None]) -> str:
    low, high = ("unbounded" if end is None else f"{end:,.1f}" for end in interval)
    return f"{low} to {high}"
