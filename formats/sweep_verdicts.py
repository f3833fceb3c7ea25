"""What a sweep says of its SAEs: which is the MDL-SAE, and whether a grid that goes on may have a better one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_WIDTHS: Final = ("narrowest", "widest")
_KS: Final = ("least", "largest")


def total_bits(at: Mapping[str, Any], n_compared: int, n_rows: int) -> float:
    """Bits a row of an SAE at a target, with decoder and tables shared by `n_rows` rows, where so many as were compared
    share them in `at`."""
    shared = (at["tables_bits_per_row"] + at["sae_bits_per_row"]) * n_compared
    return float(at["bits_per_row"] - at["tables_bits_per_row"] + shared / n_rows)


def verdict_at(report: dict[str, Any], key: str, n_trained: int, ks: Mapping[str, float]) -> dict[str, Any]:
    """The MDL-SAE at a target, and the SAE with the fewest bits when so many rows as were compared, and as there are in
    the input, share its decoder and its tables. None when no SAE reaches it. ks: by name, of SAEs that aim at a k."""
    reached = {sae["name"]: sae["at"][key] for sae in report["saes"] if "missing" not in sae["at"][key]}
    mdl, n = report["at"][key]["mdl"], report["rows"]
    widths = {sae["name"]: sae["n_latents"] for sae in report["saes"]}

    def total(name: str, n_rows: int) -> float:
        return total_bits(reached[name], n, n_rows)

    def ends(name: str | None) -> dict[str, str | None]:
        """Whether an SAE is at an end of the grid: beyond it may be a better one."""
        return {"edge": end_of(name, widths, _WIDTHS), "k_edge": end_of(name, ks, _KS)}

    with_sae = []
    for n_rows in sorted({n, n_trained}) if reached else ():
        best = min(reached, key=lambda name: total(name, n_rows))
        bits = {"mdl": best, "total_bits_per_row": total(best, n_rows)}
        with_sae.append({"rows": n_rows, **bits, **ends(best)})
    return {
        "mdl": mdl,
        "bits_per_row": None if mdl is None else reached[mdl]["bits_per_row"],
        "ties": report["at"][key]["ties"],
        **ends(mdl),
        "with_sae": with_sae,
        "missing": [sae["name"] for sae in report["saes"] if sae["name"] not in reached],
    }


def end_of(name: str | None, values: Mapping[str, float], called: tuple[str, str]) -> str | None:
    """Which end of several values, by name, the one of a name is, if any. called: the lowest, the highest."""
    rising = sorted(set(values.values()))
    ends = dict(zip((rising[0], rising[-1]), called, strict=True)) if len(rising) > 1 else {}
    return ends.get(values[name]) if name is not None and name in values else None
