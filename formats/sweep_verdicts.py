"""What a sweep says of its SAEs: which is the MDL-SAE, and whether a grid that goes on may have a better one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def verdict_at(report: dict[str, Any], key: str, n_trained: int) -> dict[str, Any]:
    """The MDL-SAE at a target, and the SAE with the fewest bits when so many rows as were compared, and as there are in
    the input, share its decoder and its tables. None when no SAE reaches it."""
    reached = {sae["name"]: sae["at"][key] for sae in report["saes"] if "missing" not in sae["at"][key]}
    mdl, n = report["at"][key]["mdl"], report["rows"]
    widths = {sae["name"]: sae["n_latents"] for sae in report["saes"]}

    def total(name: str, n_rows: int) -> float:
        at = reached[name]
        shared = (at["tables_bits_per_row"] + at["sae_bits_per_row"]) * n
        return float(at["bits_per_row"] - at["tables_bits_per_row"] + shared / n_rows)

    with_sae = []
    for n_rows in sorted({n, n_trained}) if reached else ():
        best = min(reached, key=lambda name: total(name, n_rows))
        bits = {
            "mdl": best,
            "total_bits_per_row": total(best, n_rows),
            "edge": edge_of(widths[best], widths.values()),
        }
        with_sae.append({"rows": n_rows, **bits})
    return {
        "mdl": mdl,
        "bits_per_row": None if mdl is None else reached[mdl]["bits_per_row"],
        "ties": report["at"][key]["ties"],
        "edge": None if mdl is None else edge_of(widths[mdl], widths.values()),
        "with_sae": with_sae,
        "missing": [sae["name"] for sae in report["saes"] if sae["name"] not in reached],
    }


def edge_of(width: int, widths: Iterable[int]) -> str | None:
    """Which end of several widths it is, if any: a width beyond it may be better."""
    rising = sorted(set(widths))
    ends = {rising[0]: "narrowest", rising[-1]: "widest"} if len(rising) > 1 else {}
    return ends.get(width)
