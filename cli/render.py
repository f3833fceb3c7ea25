"""Reports as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from saecodec.rate_control import Target

TARGET_TOLERANCE: Final = 0.01
PARTS = {
    "support": "support: which latents fire",
    "levels": "levels: how strongly",
    "side": "side information: scales and means",
    "columns": "row-aligned columns",
    "residual": "residual: what the SAE leaves",
    "tables": "tables of the prior",
    "decoder": "embedded decoder",
    "headers": "headers, index, frames",
}


def size(n_bytes: float) -> str:
    """A number of bytes for people: '988,059 bytes', '9.5 MB'."""
    return (
        f"{n_bytes:,.0f} bytes"
        if n_bytes < 1e6
        else f"{n_bytes / 1e6:,.1f} MB"
        if n_bytes < 1e9
        else f"{n_bytes / 1e9:,.1f} GB"
    )


def count(n: int, what: str) -> str:
    """A number of things: '1 chunk', '8 chunks'."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def number(value: float | None, digits: int = 2) -> str:
    """A number that may be undefined."""
    return "-" if value is None else f"{value:,.{digits}f}"


def pairs(rows: list[tuple[str, str]], indent: str = "  ") -> str:
    """Lines of two aligned columns."""
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{indent}{label:<{width}}  {value}" for label, value in rows)


def target_text(target: Target, reached: float | None) -> str:
    """What was asked for and reached."""
    assert reached is not None
    missed = target.missed_by(reached)
    warning = "" if missed <= TARGET_TOLERANCE else f": missed by {100 * missed:.1f} %, which was the nearest found"
    return f"{target} asked for, {reached:.4g} reached{warning}"


def measure_text(report: dict[str, Any], name: str) -> str:
    """The report of `measure`."""
    outside = report["outside"]
    rate = [
        ("bits per row", number(report["bits_per_row"])),
        ("bits per scalar", number(report["bits_per_scalar"], 4)),
        ("bits per nonzero", number(report["bits_per_nonzero"])),
        ("smaller than float32", f"{report['ratio_float32']:,.1f}x"),
        ("smaller than the input", f"{report['ratio_input']:,.1f}x"),
    ]
    distortion = [
        ("NMSE (FVU)", number(report["nmse"], 4)),
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
    estimates, bits = report["estimates"], report["bits_per_row"]

    def beside(value: float | None) -> str:
        return number(value) + (f"   (file / estimate = {bits / value:.3f})" if value and bits else "")

    other = [
        ("L0 (B + log2 F)", beside(estimates["l0_formula"])),
        ("sum of entropies", beside(estimates["sum_entropy"])),
    ]
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
            "estimates on the same codes (bits per row; arXiv 2410.11179)",
            pairs(other),
            *context,
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


def bench_text(report: dict[str, Any]) -> str:
    """The report of `bench`: a line for each codec."""
    head = [
        "bits per row at NMSE",
        *(f"{target:g}" for target in report["targets"]),
        "encode MB/s",
        "decode MB/s",
        "model outside",
    ]
    lines = [head]
    for curve in report["curves"]:
        points = curve["points"]
        if not points:
            continue
        at = [number(bits, 1) for bits in curve["bits_per_row_at"].values()]
        speeds = [_span([point[key] for point in points]) for key in ("encode_mb_s", "decode_mb_s")]
        model = size(max(point["model_bytes"] for point in points))
        if points[0]["sae_bytes"]:
            model += f" + SAE decoder {size(points[0]['sae_bytes'])}"
        lines.append([curve["name"], *at, *speeds, model])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    table = [
        "  ".join(
            text.ljust(width) if i in (0, len(head) - 1) else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rows = (
        f"{count(report['rows'], 'row')} of {report['width']} values, fitted on {report['calibration_rows']:,} others"
    )
    shared = f" ({report['shared_rows']:,} of the measured rows occur among them)" if report["shared_rows"] else ""
    return "\n".join([rows + shared, *table, *report["missing"]])


def _span(values: list[float]) -> str:
    """The range of some numbers."""
    low, high = (f"{value:.3g}" for value in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"
