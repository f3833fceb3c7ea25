"""The measured part of docs/training.md, from docs/training.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from make_context import table

BEGIN, END = "<!-- tables: docs/training_text.py -->", "<!-- end of tables -->"
_NAMES = {
    "rate_nmse0.2": "rate, aimed at NMSE 0.2",
    "rate_nmse0.15": "rate, aimed at NMSE 0.15",
    "batchtopk_k32_long": "BatchTopK, k 32, as many tokens as the shared one",
    "shared": "the shared BatchTopK, k 32, of 8 times as many rows",
}
_AT = ("0.2 none", "0.2 pursuit", "0.15 none", "0.15 pursuit")


def filled(docs: Path) -> str:
    """docs/training.md with what was measured between its marks."""
    page = (docs / "training.md").read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{section(json.loads((docs / 'training.json').read_text()))}\n\n{END}{after}"


def section(figures: dict[str, Any]) -> str:
    """The text."""
    machine = figures["machine"]
    told = (
        f"Rows: `minilm_l3_train.npz` (151,200, of which 8,192 held out), d = 384, F = 3072; one thread for each "
        f"training on 2 {machine['machine']} cores that were busy with others, so that seconds are no more than a "
        f"rough guide; torch {machine['torch']}. Bits per row are those of whole files of the 32,768 test rows "
        "(factorized prior, tables in the file), each decoded again, at the NMSE of the column; *none*: the SAE's own "
        "activations; *pursuit*: the codec's search. `-`: not reached; a target is met within 1 %."
    )
    parts = [told, _saes(figures["saes"]), _verdict(figures["saes"])]
    if "context" in figures:
        parts.append(_context(figures["context"]))
    if "earlier" in figures:
        parts.append(_earlier(figures["earlier"], figures["saes"]))
    if "memory" in figures:
        parts.append(_memory(figures["memory"]))
    return "\n\n".join(parts)


def _order(name: str) -> tuple[bool, bool, int, str]:
    family, _, of = name.partition("_k")
    k = int(of.removesuffix("_long")) if family == "batchtopk" else 0
    return name.endswith("_long") or family == "shared", family.startswith("rate"), k, name


def name_of(name: str) -> str:
    """For people."""
    return _NAMES.get(name, f"BatchTopK, k {name.removeprefix('batchtopk_k')}")


def _saes(saes: dict[str, Any]) -> str:
    rows = []
    for name in sorted(saes, key=_order):
        facts = saes[name]
        settings = facts["settings"]
        tokens = "13.5 M" if settings is None else f"{settings['tokens'] / 1e6:.1f} M"
        cells = ["-" if facts["at"][key] is None else f"{facts['at'][key]['bits_per_row']:.1f}" for key in _AT]
        rows.append(
            [name_of(name), tokens, f"{facts['seconds']:.0f}", f"{facts['nmse']:.4f}", f"{facts['l0']:.1f}", *cells]
        )
    head = [
        "trained for",
        "tokens",
        "seconds",
        "own NMSE",
        "own L0",
        *(f"bits at {key.replace(' ', ', ')}" for key in _AT),
    ]
    return table(head, rows)


def _least(saes: dict[str, Any], family: str, key: str) -> tuple[float, str] | None:
    found = [
        (facts["at"][key]["bits_per_row"], name)
        for name, facts in saes.items()
        if name.startswith(family) and not name.endswith("_long") and facts["at"][key] is not None
    ]
    return min(found) if found else None


def _verdict(saes: dict[str, Any]) -> str:
    lines = []
    for key in _AT:
        theirs, ours = _least(saes, "batchtopk", key), _least(saes, "rate", key)
        target, search = key.split()
        if theirs and ours:
            change = f"**{100 * (ours[0] / theirs[0] - 1):+.1f} %**"
            lines.append(
                f"- NMSE {target}, {search}: {ours[0]:.1f} bits/row ({name_of(ours[1])}) against {theirs[0]:.1f} "
                f"({name_of(theirs[1])}): {change}."
            )
    text = (
        "The gain is the search's: under its own activations, an SAE that was trained for rate is no better, for its "
        "decoder was fitted to codes that a linear encoder does not find; for an NMSE without a search it should be "
        "trained towards a lower one. A step with a search in it takes several times as long as one without, so at "
        "equal time BatchTopK sees more tokens: that was not compared."
    )
    return "The best SAE of each kind, at equal numbers of tokens:\n\n" + "\n".join(lines) + "\n\n" + text


def _context(context: dict[str, Any]) -> str:
    rows = []
    for key, found in context.items():
        target, _family = key.split()
        cells = [f"{found[prior]['bits_per_row']:.1f}" for prior in ("factorized", "context")]
        rows.append([target, name_of(found["sae"]), *cells])
    lines = []
    for target in dict.fromkeys(key.split()[0] for key in context):
        pair = [context.get(f"{target} {family}") for family in ("rate", "batchtopk")]
        if all(pair):
            shares = [
                100 * (pair[0][prior]["bits_per_row"] / pair[1][prior]["bits_per_row"] - 1)  # type: ignore[index]
                for prior in ("factorized", "context")
            ]
            lines.append(
                f"at NMSE {target} {shares[0]:+.1f} % with the factorized prior, {shares[1]:+.1f} % with context"
            )
    text = (
        "What is left of it with the context prior (codecs fitted on the train rows, pursuit; the codec's file is not "
    )
    text += "counted): " + "; ".join(lines) + "."
    return text + "\n\n" + table(["NMSE", "trained for", "factorized", "context"], rows)


def _earlier(earlier: dict[str, Any], saes: dict[str, Any]) -> str:
    pairs = [
        (bits, saes[name]["at"][key]["bits_per_row"]) for name, found in earlier.items() for key, bits in found.items()
    ]
    then, now = (" and ".join(f"{pair[i]:.1f}" for pair in pairs) for i in (0, 1))
    return (
        "The SAEs for rate of this table are of a slightly earlier trainer: before thresholds paid for activations just"
        " above them as they should, and before the NMSE that is steered was the one that is told: they took "
        f"{then} bits where those of the table above take {now}. So much changes with the path of a training."
    )


def _memory(memory: dict[str, Any]) -> str:
    parts = [f"{name} {found['peak_bytes'] / 1e9:.2f} GB" for name, found in memory.items()]
    return f"Peak memory of a training with F = 16,384, d = 768, batches of 1,024 rows: {', '.join(parts)}."
