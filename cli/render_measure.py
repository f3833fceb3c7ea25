"""The report of `measure` as text for people."""

from __future__ import annotations

from typing import Any, Final

from saecodec.cli.render import columns_text, groups_text, number, pairs, size

PARTS: Final = {
    "support": "support: which latents fire",
    "levels": "levels: how strongly",
    "side": "side information: scales and means",
    "columns": "row-aligned columns",
    "residual": "residual: what the SAE leaves",
    "tables": "tables of the prior",
    "decoder": "embedded decoder",
    "headers": "headers, index, frames",
}


def measure_text(report: dict[str, Any], name: str) -> str:
    """The report of `measure`."""
    outside = report["outside"]
    rate = [
        ("bits per row", number(report["bits_per_row"]) + _between(report["bits_interval"], 1)),
        ("bits per scalar", number(report["bits_per_scalar"], 4)),
        ("bits per nonzero", number(report["bits_per_nonzero"])),
        ("smaller than float32", f"{report['ratio_float32']:,.1f}x"),
        ("smaller than the input", f"{report['ratio_input']:,.1f}x"),
    ]
    distortion = [
        ("NMSE (FVU)", number(report["nmse"], 4) + _between(report["nmse_interval"], 4)),
        ("median of the rows' own NMSE", number(report["nmse_median"], 4)),
        ("variance explained", number(report["variance_explained"], 4)),
        ("mean cosine", number(report["cosine"], 4)),
        ("largest error", number(report["max_error"], 4)),
        ("L0 of the SAE / of the codes", f"{number(report['sae_alone']['l0'])} / {number(report['l0'])}"),
        ("NMSE of the SAE, unquantized", number(report["sae_alone"]["nmse"], 4)),
        ("search", report["search"]),
        ("step", f"{report['step']:.6g}"),
    ]
    if report["residual_step"] is not None:
        distortion.insert(1, ("NMSE of the base layer alone", number(report["base_nmse"], 4)))
        distortion.append(("step of the residual layer", f"{report['residual_step']:.6g}"))
    split = [
        (PARTS[part] + (f" ({report['weights']})" if part == "decoder" else ""), number(bits))
        for part, bits in report["bits"].items()
        if bits or part in ("support", "levels")
    ]
    if report["metric"] is not None:
        metric = report["metric"]
        distortion.append(
            (
                metric["name"],
                ("-" if metric["metric"] is None else f"{metric['metric']:.6g}")
                + _between(metric["metric_interval"], 4),
            )
        )
    missing = [("codec file", size(outside["codec_bytes"]))] if outside["codec_bytes"] else []
    missing += [(f"SAE {report['sae']['name']} (float32)", size(outside["sae_bytes"]))] if outside["sae_bytes"] else []
    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in report["seconds"].items())
    head = f"{name}: {report['rows']:,} rows in a file of {size(report['file_bytes'])}"
    if missing:
        head += "; outside it: " + ", ".join(f"{what} {n}" for what, n in missing)
    if outside["codec_bytes"]:
        rate.insert(1, ("  and with the codec file", number(report["bits_per_row_with_codec"])))
    context = context_text(report["context"]) if report["context"] is not None else []
    return "\n".join(
        [
            head,
            "rate",
            pairs(rate),
            "distortion",
            pairs(distortion),
            "where the bits go (bits per row, adding up to the file)",
            pairs(split),
            *_two_part_text(report),
            "other codes (bits per row; arXiv 2410.11179), and the file, without an SAE in it, as a share of them",
            pairs(_estimates(report)),
            *context,
            *groups_text(report["detail"]),
            f"time: {seconds}",
        ]
    )


def context_text(found: dict[str, Any]) -> list[str]:
    """What the context prior saves: lines for `measure_text`."""
    support, falls = found["support"], found["dependence"]
    models = [
        ("independent latents", "independent", None),
        ("gap coding: a latent's bursts", "gaps", "time"),
        ("given other latents of the row", "row", "row"),
        ("given neighbouring rows as well", "neighbours", "neighbours"),
    ]

    def fall(name: str) -> str:
        share = falls[name]["share"]
        return f"{falls[name]['bits_per_row']:,.2f}" + ("" if share is None else f" ({100 * share:.1f} %)")

    lines = [
        (label, number(support[model]) + ("" if step is None else f"   saves {fall(step)}"))
        for label, model, step in models
    ]
    lines.append(("dependence in all", fall("total")))
    even = found["break_even"]
    bits = even["chunk_bits_per_row"]
    paid = "never" if even["rows"] is None else f"after {even['rows']:,.0f} rows"
    cost = [
        ("chunks, factorized / context prior", f"{number(bits['factorized'])} / {number(bits['context'])}"),
        ("codec larger by", size(even["codec_bytes_more"])),
        ("pays for itself", paid),
    ]
    latents = [(f"latent {latent['latent']}", _dependent_text(latent)) for latent in found["latents"]]
    head = "latents whose support falls most (bits per row), and how often they fire given the strongest predecessors"
    return [
        "support, conditional on ever more (bits per row, ideal)",
        pairs(lines),
        "context prior against a factorized one fitted on these codes (bits per row)",
        pairs(cost),
        *([head, pairs(latents)] if latents else []),
    ]


def _dependent_text(latent: dict[str, Any]) -> str:
    where = {-1: " in the row before", 0: "", 1: " in the row after"}
    before = [f"{100 * p['probability']:.0f} % given {p['latent']}{where[p['offset']]}" for p in latent["predecessors"]]
    fires = ", ".join([f"fires in {100 * latent['rate']:.0f} % of rows", *before])
    return f"{latent['independent']:.3f} -> {latent['context']:.3f}; {fires}"


def _between(interval: list[float] | None, digits: int) -> str:
    """The 95 % interval behind a figure."""
    return "" if interval is None else f"   (95 %: {interval[0]:,.{digits}f} to {interval[1]:,.{digits}f})"


def _two_part_text(report: dict[str, Any]) -> list[str]:
    """L(rows) + L(prior) + L(SAE), by precision of the decoder."""
    rates = report["two_part"]["bits_per_row"]
    table = [["decoder in", "bytes", "NMSE alone", "bits/row", "total", "below raw rows from", "below PCA from"]]
    for name, found in report["two_part"]["with_sae"].items():
        table.append(
            [
                name,
                f"{found['sae_bytes']:,}",
                number(report["decoder"][name]["nmse"], 5),
                number(found["sae_bits_per_row"], 1),
                number(found["total_bits_per_row"], 1),
                *(_rows_text(found[f"rows_to_break_even_{other}"]) for other in ("raw", "pca")),
            ]
        )
    data, prior = number(rates["data"], 2), number(rates["prior"], 2)
    return [
        f"two-part description length (bits per row, {report['rows']:,} rows): rows {data}, prior {prior}, and the SAE",
        f"  (rows are coded for a decoder in {report['weights']}; --embed decoder --weights codes them for another)",
        "\n".join("  " + line for line in columns_text(table, left=(0,)).split("\n")),
    ]


def _rows_text(rows: float | None) -> str:
    return "-" if rows is None else f"{rows:,.0f} rows"


def _estimates(report: dict[str, Any]) -> list[tuple[str, str]]:
    estimates, bits = report["estimates"], report["bits_per_row"]
    if bits is not None:
        bits -= report["bits"]["decoder"]  # none of these count a model

    def beside(value: float | None) -> str:
        return number(value) + (f"   (file / this = {bits / value:.3f})" if value and bits else "")

    lines = [
        ("L0 (B + log2 F)", beside(estimates["l0_formula"])),
        ("sum of entropies", beside(estimates["sum_entropy"])),
    ]
    found = report["baselines"]
    if found is None:
        return lines
    if found["dense"] is not None:
        lines.append(("dense code at this NMSE, fixed length", beside(found["dense"]["bits_per_row"])))
        lines.append(("dense code at this NMSE, entropy", beside(found["dense"]["entropy_per_row"])))
        lines.append(("one-hot code: each row an exemplar", beside(found["one_hot"]["bits_per_row"])))
    if found["exemplars"]:
        last = found["exemplars"][-1]
        what = f"nearest of {last['n_exemplars']:,} exemplars, NMSE {last['nmse']:.3f}"
        lines.append((what, beside(last["bits_per_row"])))
    if found["pca"] is not None:
        pca = found["pca"]
        data = report["two_part"]["bits_per_row"]["data"]
        share = f"   (file without tables / this = {data / pca['bits_per_row']:.3f})"
        lines.append(("PCA at this NMSE, a real codec", number(pca["bits_per_row"]) + share))
        lines.append(("  its model", size(pca["model_bytes"])))
    mdl = found["saebench"]["chosen"]
    lines.append((f"SAEBench mdl, decodes to NMSE {number(mdl['nmse'], 3)}", beside(mdl["mdl_bits"])))
    return lines
