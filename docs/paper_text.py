"""docs/paper.md from docs/paper.json, docs/paper_mnist.md, docs/mnist_sweep.json and docs/paper.template.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from make_context import table
from mnist_sweep_text import told

DOCS = Path(__file__).parent
NAMES = {
    "minilm_l3_batchtopk_3072_k16": "BatchTopK 3072, k = 16",
    "minilm_l3_batchtopk_3072_k32": "BatchTopK 3072, k = 32",
    "minilm_l3_batchtopk_3072_k64": "BatchTopK 3072, k = 64",
    "minilm_l3_batchtopk_1536_k32": "BatchTopK 1536, k = 32",
    "minilm_l3_batchtopk_6144_k32": "BatchTopK 6144, k = 32",
}


def write(held: dict[str, Any]) -> None:
    """Write docs/paper.md."""
    (DOCS / "paper.md").write_text(page(held))


def page(held: dict[str, Any]) -> str:
    """The text; parts that were not measured yet are named as missing."""
    sections = {"b": _table, "c": _splitting, "d": _hierarchy}
    fields = {part: text(held[part]) if part in held else "(not measured yet)" for part, text in sections.items()}
    mnist = DOCS / "paper_mnist.md"
    # Its own title goes: the section has one.
    fields["a"] = mnist.read_text().partition("\n")[2].strip() if mnist.exists() else "(not measured yet)"
    sweep = DOCS / "mnist_sweep.json"
    fields["sweep"] = told(json.loads(sweep.read_text())) if sweep.exists() else "(not measured yet)"
    text = (DOCS / "paper.template.md").read_text()
    for name, value in fields.items():
        text = text.replace("{" + name + "}", value)
    return text


def _table(facts: dict[str, Any]) -> str:
    saes = {name: found for name, found in facts.items() if name in NAMES}
    context = json.loads((DOCS / "context.json").read_text())["rates"]

    def line(label: str, values: list[str], kind: str) -> list[str]:
        return [label, kind, *values]

    def row(label: str, kind: str, bits: Any, real: bool = False) -> list[str]:
        cells = []
        for name, found in saes.items():
            value = bits(name, found)
            if value is None:
                cells.append("-")
                continue
            share = "" if real else f" ({found['bits_per_row'] / value:.2f})"
            cells.append(f"**{value:,.1f}**" if real else f"{value:,.1f}{share}")
        return line(label, cells, kind)

    exemplars = {name: found["baselines"]["exemplars"][-1] for name, found in saes.items()}
    chosen = {name: found["baselines"]["saebench"]["chosen"] for name, found in saes.items()}
    rows = [
        line("NMSE of the file", [f"{found['nmse']:.4f}" for found in saes.values()], ""),
        row("SAE, factorized prior", "real file", lambda _, found: found["bits_per_row"], real=True),
        row("SAE, context prior", "real file, codec outside", lambda name, _: _context(context, name)),
        row("PCA", "real, model outside", lambda _, found: found["baselines"]["pca"]["bits_per_row"]),
        row("sum of entropies", "estimate", lambda _, found: found["estimates"]["sum_entropy"]),
        row("L0 (B + log2 F)", "estimate", lambda _, found: found["estimates"]["l0_formula"]),
        row("dense code, B bits a scalar", "estimate", lambda _, found: found["baselines"]["dense"]["bits_per_row"]),
        row("dense code, entropy", "estimate", lambda _, found: found["baselines"]["dense"]["entropy_per_row"]),
        row(
            "one-hot, each row an exemplar", "estimate", lambda _, found: found["baselines"]["one_hot"]["bits_per_row"]
        ),
        row("SAEBench mdl", "estimate", lambda name, _: chosen[name]["mdl_bits"]),
        line("its NMSE, decoded from its bins", [f"{found['nmse']:,.0f}" for found in chosen.values()], ""),
    ]
    first = next(iter(exemplars.values()))
    told = (
        f"The nearest of {first['n_exemplars']:,} exemplars leaves an NMSE of "
        + ", ".join(f"{found['nmse']:.2f}" for found in exemplars.values())
        + f" on rows that are not among them, for {first['index_bits']:.0f} bits a row and a dictionary of "
        f"{first['dictionary_bits'] / 8e3:,.0f} kB and more: a one-hot code gets nowhere near these NMSEs."
    )
    sae = table(
        ["", "decoder", "bytes", "bits/row over 32,768 rows", "total", "shorter than raw from", "than PCA from"],
        [
            [
                NAMES[name],
                precision,
                f"{part['sae_bytes']:,}",
                f"{part['sae_bits_per_row']:.1f}",
                f"{part['total_bits_per_row']:.1f}",
                _rows(part["rows_to_break_even_raw"]),
                _rows(part["rows_to_break_even_pca"]),
            ]
            for name, found in saes.items()
            for precision, part in found["two_part"]["with_sae"].items()
        ],
    )
    return "\n\n".join([table(["bits per row", "", *(NAMES[name] for name in saes)], rows), told, sae])


def _context(rates: list[dict[str, Any]], name: str) -> float | None:
    found = [case["bits_per_row"] for case in rates if case["sae"] == name and case["prior"] == "context"]
    return found[0] if found else None


def _rows(rows: float | None) -> str:
    return "never" if rows is None else f"{rows:,.0f} rows"


def _splitting(facts: dict[str, Any]) -> str:
    report = facts["compare"]
    lines = []
    for key, verdict in report["at"].items():
        pairs = {pair["b"]: pair for pair in verdict["differences"] if pair["a"] == verdict["mdl"]}
        for sae in report["saes"]:
            at, pair = sae["at"][key], pairs.get(sae["name"])
            more = (
                "MDL-SAE"
                if pair is None
                else f"+{pair['bits']:.1f} ({pair['interval'][0]:.1f} to {pair['interval'][1]:.1f})"
            )
            low, high = at["interval"]
            lines.append(
                [
                    key,
                    NAMES[sae["name"]],
                    f"**{at['bits_per_row']:.1f}** ({low:.1f} to {high:.1f})",
                    more + (", tie" if pair and pair["tie"] else ""),
                    f"{at['total_bits_per_row']:.1f}",
                ]
            )
    first = table(["NMSE", "SAE", "bits/row (95 %)", "above the MDL-SAE (95 %)", "decoder (float32) counted"], lines)
    rows = []
    for name, found in facts["context"].items():
        plain, context = found["factorized"], found["context"]
        saved = plain["bits_per_row"] - context["bits_per_row"]
        rows.append(
            [
                NAMES[name],
                f"{context['nmse']:.4f}",
                f"{plain['bits_per_row']:.1f}",
                f"**{context['bits_per_row']:.1f}**",
                f"{saved:.1f} ({100 * saved / plain['bits_per_row']:.1f} %)",
                f"{context['codec_bytes']:,}",
            ]
        )
    head = ["SAE", "NMSE", "factorized prior", "context prior", "saved", "bytes of the context prior's codec"]
    return "\n\n".join([first, _context_told(facts["context"]), table(head, rows)])


def _context_told(found: dict[str, Any]) -> str:
    def gap(prior: str, wide: str, narrow: str) -> str:
        bits = (found[f"minilm_l3_batchtopk_{width}_k32"][prior]["bits_per_row"] for width in (wide, narrow))
        more, less = bits
        return f"{more - less:+.1f}"

    return (
        "Going from 3072 to 6144 latents changes the rate by "
        f"{gap('factorized', '6144', '3072')} bits a row under the factorized prior and by "
        f"{gap('context', '6144', '3072')} under the context prior; from 1536 to 3072 by "
        f"{gap('factorized', '3072', '1536')} and {gap('context', '3072', '1536')}."
    )


def _hierarchy(facts: dict[str, Any]) -> str:
    rows, told = [], []
    kinds = {
        "containment": "children that fire only with their parent",
        "strongest": "every latent given its strongest more frequent one",
        "coded": "the same, each only where it really pays",
    }
    for name, found in facts.items():
        if name not in NAMES:
            continue
        told.append(
            f"{NAMES[name]}: {found['pairs']} parent-child pairs share {found['pairs_saved']:.1f} bits a row; "
            f"{found['twins']} pairs fire in nearly the same rows (Jaccard index of a half or more), with a median "
            f"cosine of {found['twins_cosine']:.2f} between their directions."
        )
        for kind, label in kinds.items():
            code = found["forests"][kind]
            before, after = code["independent"], code["joint"]
            rows.append(
                [
                    NAMES[name],
                    label,
                    f"{code['n_children']:,}",
                    f"{before:,}",
                    f"**{after:,}**",
                    f"{code['forest']:,}",
                    f"{8 * (before - after) / found['rows']:.2f}",
                    f"{100 * (1 - after / before):.1f} %",
                ]
            )
    head = [
        "SAE",
        "joint code",
        "children",
        "bytes, independent",
        "bytes, joint",
        "of them the forest",
        "bits/row saved",
    ]
    return "\n\n".join(["\n".join(f"- {line}" for line in told), table([*head, "share"], rows)])
