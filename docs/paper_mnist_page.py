"""docs/paper_mnist.md from what docs/paper_mnist.py measured: every number in it comes from docs/paper_mnist.json."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from make_context import table
from paper_mnist_counts import COUNTS, IMAGES
from paper_mnist_saes import KS, WIDTHS

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
        "trainer": trainer(training),
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
        "residual_data": grid(saes, rated(facts, "residual", "data"), residual_widths(saes)),
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
        "pca_bits": f"{pca['bits_per_row']:.1f}",
        "pca_many": f"{pca['bits_per_row'] + 8 * pca['model_bytes'] / IMAGES:.1f}",
        "target": f"{facts['target']:g}",
        "untrained": untrained(saes),
        "envelope": envelope(facts, "plain"),
        "residual_envelope": envelope(facts, "residual"),
        "residual_widths": ", ".join(map(str, residual_widths(saes))),
        "most_dead": f"{100 * max(sae['shape']['dead'] for sae in saes):.0f} %",
        "eight": ", ".join(f"{by_name[f'mnist_{width}_k8']['plain']['bits']:.1f}" for width in (256, 512, 1024)),
        "shared_eight": ", ".join(
            f"{facts['shared']['saes'][f'mnist_{width}_k8']['bits']:.1f}" for width in (256, 512, 1024)
        ),
        "unit": facts["plain"]["bootstrap"]["unit"].replace("sequences", "images"),
        "whole": grid(saes, lambda sae: f"{100 * sae['shape']['whole']:.0f} %"),
        "mdl_whole": f"{100 * best['shape']['whole']:.0f} %",
        "apart": f"{max(abs(sae['residual']['bits'] - sae['plain']['bits']) for sae in alone(saes)):.1f}",
    }
    wide = [sae for sae in saes if sae["width"] >= 64]
    for k in KS:
        fields[f"ink_{k}"] = spread(wide, k, lambda sae: 100 * sae["shape"]["ink"])
        fields[f"whole_{k}"] = spread(wide, k, lambda sae: 100 * sae["shape"]["whole"])
        fields[f"data_{k}"] = spread(
            [sae for sae in wide if "data" in sae["residual"]], k, lambda sae: sae["residual"]["data"]
        )
    for part, verdicts in (("plain", plain), ("residual", residual)):
        for count in COUNTS:
            fields[f"{part}_{count}_best"] = words(verdicts[count]["best"])
            fields[f"{part}_{count}_bits"] = f"{verdicts[count]['bits']:.1f}"
            fields[f"{part}_{count}_ties"] = tied(facts, part, count)
    return filled((Path(__file__).parent / "paper_mnist.template.md").read_text().format(**fields))


def trainer(training: Sequence[Facts]) -> str:
    """What trained the SAEs of which the facts tell."""
    if all("trainer" in one for one in training):
        return f"`saecodec train` made them ({training[0]['trainer']}); docs/training.md says how it trains."
    return (
        "They were made before there was a `saecodec train`, by a script of this page alone, docs/train_mnist.py, "
        "which the repository's history holds: the same BatchTopK steps, learning rate, schedule and auxiliary loss as "
        "docs/training.md has them, but on all 60,000 images, which it did not scale, with latents that count as dead "
        "after 20 steps. Who runs the command above now trains the grid by `saecodec train` and gets other SAEs."
    )


def filled(text: str) -> str:
    """Paragraphs and lists in lines of 120; tables, code and headings as they are."""

    def fill(block: str) -> str:
        if block.startswith(("|", "#", "```", "!")):
            return block
        items = block.split("\n- ")
        indent = "  " if block.startswith("- ") else ""
        # A line does not end inside "k = 8".
        items = [item.replace("k = ", "k\0=\0") for item in items]
        lines = [item if i == 0 else f"- {item}" for i, item in enumerate(items)]
        whole = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
        return "\n".join(textwrap.fill(" ".join(line.split()), 120, **whole) for line in lines).replace("\0", " ")

    return "\n\n".join(fill(block) for block in text.strip().split("\n\n")) + "\n"


def alone(saes: Sequence[Facts]) -> list[Facts]:
    """Those that came out shorter without a residual layer where they could have had one."""
    return [
        sae
        for sae in saes
        if "bits" in sae["plain"] and "bits" in sae["residual"] and "residual" not in sae["residual"]["parts"]
    ]


def residual_widths(saes: Sequence[Facts]) -> list[int]:
    """Widths that were measured with a residual layer."""
    return sorted({sae["width"] for sae in saes if sae["residual"]})


def spread(saes: Sequence[Facts], k: int, value: Callable[[Facts], float]) -> str:
    """The least and the largest of a value over the widths at one k."""
    values = [value(sae) for sae in saes if sae["k"] == k]
    return f"{min(values):.1f} to {max(values):.1f}"


def untrained(saes: Sequence[Facts]) -> str:
    """What of the grid is not there, in words."""
    held = {(sae["width"], sae["k"]) for sae in saes}
    missing = {
        width: [str(k) for k in KS if k <= width // 2 and (width, k) not in held]
        for width in WIDTHS
        if any((width, k) not in held for k in KS if k <= width // 2)
    }
    each = [f"width {width} (k = {', '.join(ks)})" for width, ks in missing.items()]
    return f"Left out for time: {'; '.join(each)}." if each else ""


def envelope(facts: Facts, part: str) -> str:
    """From how many images on which SAE is the shortest description, decoder and tables counted."""
    steps = [f"{words(step['name'])} from {step['from_rows']:,.0f} on" for step in facts[part]["shortest_from_rows"]]
    return "; ".join(steps)


def claims(facts: Facts, saes: Sequence[Facts]) -> dict[str, bool]:
    """What the text says in words, and whether it is so."""
    plain, residual = facts["plain"]["verdicts"], facts["residual"]["verdicts"]
    at = {(sae["width"], sae["k"]): sae for sae in saes}

    def k_of(name: str) -> int:
        return int(name.split("_k")[1])

    def width_of(name: str) -> int:
        return int(name.removeprefix("mnist_").split("_k")[0])

    def bits(part: str, count: str, width: int, k: int) -> float:
        return float(at[width, k][part].get(count, float("inf"))) if (width, k) in at else float("inf")

    inks = {k: [sae["shape"]["ink"] for sae in saes if sae["k"] == k and sae["width"] >= 64] for k in KS}
    whole = {k: [sae["shape"]["whole"] for sae in saes if sae["k"] == k and sae["width"] >= 64] for k in KS}
    shared_at = facts["shared"]["saes"]
    narrow = [bits("residual", "data", 32, k) for k in (1, 2, 4, 8)]
    eight = [bits("plain", "bits", width, 8) for width in (256, 512, 1024)]
    return {
        "alone, no k below 8 reaches the target": all(sae["k"] >= 8 for sae in saes if "bits" in sae["plain"]),
        "the MDL-SAE has k = 8": k_of(plain["bits"]["best"]) == 8,
        "k = 32 takes more than k = 16 at every width that has both": all(
            bits("plain", "bits", width, 32) > bits("plain", "bits", width, 16) for width in (64, 128, 256, 512)
        ),
        "with a residual layer the best has k = 8, 4 to 16 otherwise": k_of(residual["bits"]["best"]) == 8
        and all(4 <= k_of(residual[count]["best"]) <= 16 for count in COUNTS),
        "basis out, k = 1 and k = 32 take more than k = 4 and k = 8 at every width from 64 on": all(
            min(bits("residual", "data", width, k) for k in (1, 32))
            > max(bits("residual", "data", width, k) for k in (4, 8))
            for width in residual_widths(saes)
            if width >= 64
        ),
        "basis out, width 32 is within three bits from k = 1 to k = 8": max(narrow) - min(narrow) < 3,
        "basis out, the best has k = 4": k_of(residual["data"]["best"]) == 4,
        "ink falls with k from 1 to 16": all(min(inks[a]) > max(inks[b]) for a, b in pairwise((1, 2, 4, 8, 16))),
        "a narrower SAE is the shortest with its decoder": width_of(plain["total_many"]["best"])
        < width_of(plain["bits"]["best"]),
        "at k = 8 widths from 256 on are within a bit here": max(eight) - min(eight) < 1,
        "and each step of width takes more in the shared ones": shared_at["mnist_256_k8"]["bits"]
        < shared_at["mnist_512_k8"]["bits"]
        < shared_at["mnist_1024_k8"]["bits"],
        "firings of whole digits fall with k at every width from 64 on": all(
            min(whole[a]) > max(whole[b]) for a, b in pairwise((1, 4, 8))
        ),
        "principal components take more than the MDL-SAE": facts["baselines"]["pca"]["bits_per_row"]
        > plain["bits"]["bits"],
    }
