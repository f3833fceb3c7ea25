"""docs/paper_mnist.md from what docs/paper_mnist.py measured: every number in it comes from docs/paper_mnist.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from make_context import table

Facts = dict[str, Any]


def cells(facts: Facts) -> list[Facts]:
    """The SAEs of the grid by width and k, with what each part has of them."""
    out = []
    for name, shape in facts["shapes"]["saes"].items():
        width, k = map(int, name.removeprefix("mnist_").split("_k"))
        cell = {"name": name, "width": width, "k": k, "shape": shape, "shared": facts["shared"]["saes"].get(name)}
        cell |= {part: facts[part]["saes"].get(name, {}) for part in ("plain", "residual")}
        out.append(cell)
    return sorted(out, key=lambda cell: (cell["width"], cell["k"]))


def grid(saes: Sequence[Facts], show: Callable[[Facts], str], widths: Sequence[int] | None = None) -> str:
    """A table with a line for each width and a column for each k."""
    by_place = {(sae["width"], sae["k"]): sae for sae in saes if widths is None or sae["width"] in widths}
    ks = sorted({k for _, k in by_place})
    rows = [
        [str(width), *(show(by_place[width, k]) if (width, k) in by_place else "" for k in ks)]
        for width in sorted({width for width, _ in by_place})
    ]
    return table(["width", *(f"k = {k}" for k in ks)], rows)


def rated(facts: Facts, part: str, count: str) -> Callable[[Facts], str]:
    """Shows the bits of an SAE: the fewest in bold, ties with a star, a dash where the target is out of reach."""
    verdict = facts[part]["verdicts"][count]

    def show(sae: Facts) -> str:
        if count not in sae[part]:
            return "–"
        bits = f"{sae[part][count]:.1f}"
        return f"**{bits}**" if sae["name"] == verdict["best"] else bits + "*" * (sae["name"] in verdict["ties"])

    return show


def words(name: str) -> str:
    """mnist_256_k8 -> width 256, k = 8."""
    width, k = name.removeprefix("mnist_").split("_k")
    return f"width {width}, k = {k}"


def tied(facts: Facts, part: str, count: str) -> str:
    """Those that tie with the best, in words."""
    ties = facts[part]["verdicts"][count]["ties"]
    return "; ".join(map(words, ties)) if ties else "none"


def beside(saes: Sequence[Facts]) -> str:
    """Our SAEs beside those of the shared data at the same width and k."""
    rows = []
    for sae in saes:
        other = sae["shared"]
        if other:
            bits = [f"{one['bits']:.1f}" if "bits" in one else "–" for one in (sae["plain"], other)]
            rows.append(
                [
                    str(sae["width"]),
                    str(sae["k"]),
                    f"{sae['shape']['training']['test_nmse']:.4f}",
                    f"{other['test_nmse']:.4f}",
                    *bits,
                ]
            )
    return table(["width", "k", "test NMSE, ours", "longer trained", "bits/image, ours", "longer trained"], rows)


def parts_of(saes: Sequence[Facts]) -> str:
    """Where the bits of an SAE with a residual layer go."""
    rows = []
    for sae in saes:
        if "bits" in sae["residual"]:
            parts = sae["residual"]["parts"]
            low, high = sae["residual"]["interval"]
            rows.append(
                [
                    f"{sae['width']}, {sae['k']}",
                    f"{parts['support'] + parts['levels']:.1f}",
                    f"{parts.get('residual', 0):.1f}",
                    f"{parts['tables']:.1f}",
                    f"{sae['residual']['bits']:.1f} ({low:.1f} to {high:.1f})",
                ]
            )
    return table(["width, k", "SAE's latents", "residual layer", "tables and basis", "bits/image (95 %)"], rows)


def page(facts: Facts) -> str:
    """The page. SystemExit when the text says what is not so any more."""
    saes = cells(facts)
    wrong = [claim for claim, holds in claims(facts, saes).items() if not holds]
    if wrong:
        raise SystemExit("docs/paper_mnist.template.md says what these facts do not: " + "; ".join(wrong))
    plain, residual = facts["plain"]["verdicts"], facts["residual"]["verdicts"]
    by_name = {sae["name"]: sae for sae in saes}
    best = by_name[plain["bits"]["best"]]
    low, high = best["plain"]["interval"]
    training = [sae["shape"]["training"] for sae in saes]
    pca = facts["baselines"]["pca"]
    fields = {
        "machine": facts["machine"],
        "n_saes": len(saes),
        "minutes": f"{sum(one['seconds'] for one in training) / 60:.0f}",
        "steps": training[0]["steps"],
        "batch": training[0]["batch"],
        "beside": beside(saes),
        "nmse": grid(saes, lambda sae: f"{sae['shape']['training']['test_nmse']:.3f}"),
        "dead": grid(saes, lambda sae: f"{100 * sae['shape']['dead']:.0f} %"),
        "plain": grid(saes, rated(facts, "plain", "bits")),
        "plain_many": grid(saes, rated(facts, "plain", "total_many")),
        "residual": grid(saes, rated(facts, "residual", "bits"), residual_widths(saes)),
        "residual_many": grid(saes, rated(facts, "residual", "total_many"), residual_widths(saes)),
        "parts": parts_of(saes),
        "ink": grid(saes, lambda sae: f"{100 * sae['shape']['ink']:.1f} / {sae['shape']['pieces']:.0f}"),
        "rate": grid(saes, lambda sae: f"{100 * sae['shape']['rate']:.1f} %"),
        "image_ink": f"{100 * facts['shapes']['images']['ink']:.1f} %",
        "mdl": words(best["name"]),
        "mdl_bits": f"{best['plain']['bits']:.1f}",
        "mdl_interval": f"{low:.1f} to {high:.1f}",
        "mdl_ties": tied(facts, "plain", "bits"),
        "mdl_ink": f"{100 * best['shape']['ink']:.1f} %",
        "mdl_l0": f"{best['plain']['l0']:.1f}",
        "mdl_coded_l0": f"{best['plain']['coded_l0']:.1f}",
        "shared_mdl": words(facts["shared"]["best"]),
        "shared_mdl_bits": f"{facts['shared']['saes'][facts['shared']['best']]['bits']:.1f}",
        "pca_bits": f"{pca['bits_per_row']:.1f}",
        "pca_many": f"{pca['bits_per_row'] + 8 * pca['model_bytes'] / 60_000:.1f}",
        "unit": facts["plain"]["bootstrap"]["unit"],
    }
    for part, verdicts in (("plain", plain), ("residual", residual)):
        for count in ("bits", "total", "total_many"):
            fields[f"{part}_{count}_best"] = words(verdicts[count]["best"])
            fields[f"{part}_{count}_bits"] = f"{verdicts[count]['bits']:.1f}"
            fields[f"{part}_{count}_ties"] = tied(facts, part, count)
    return (Path(__file__).parent / "paper_mnist.template.md").read_text().format(**fields)


def residual_widths(saes: Sequence[Facts]) -> list[int]:
    """Widths that were measured with a residual layer."""
    return sorted({sae["width"] for sae in saes if sae["residual"]})


def claims(facts: Facts, saes: Sequence[Facts]) -> dict[str, bool]:
    """What the text says in words, and whether it is so."""
    reach = [sae for sae in saes if "bits" in sae["plain"]]
    best = facts["plain"]["verdicts"]["bits"]["best"]
    return {}
