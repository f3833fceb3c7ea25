"""All measured points of a comparison as a CSV table."""

from __future__ import annotations

import csv
import io
import os
from typing import Any, Final

from saecodec.formats.atomic import atomic_output

_PLAIN: Final = ("step", "residual_step", "file_bytes", "bits_per_row", "nmse", "nmse_median", "cosine", "l0", "metric")
_INTERVALS: Final = ("bits", "nmse", "metric")
_AT_TARGET: Final = ("total_bits_per_row", "above_mdl", "above_mdl_low", "above_mdl_high")


def write_csv(report: dict[str, Any], path: str | os.PathLike[str], *, force: bool = False) -> None:
    """One line for each file that was measured, in which parts add up to file_bytes, and one for each target that an
    SAE reaches. Intervals are two columns."""
    parts = next((list(point["bytes"]) for sae in report["saes"] for point in sae["points"]), [])
    head = ["kind", "sae", *_PLAIN, *(f"{name}_{end}" for name in _INTERVALS for end in ("low", "high"))]
    head += [f"{name}_bytes" for name in parts] + ["l0_formula", "sum_entropy", *_AT_TARGET]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, head, lineterminator="\n")
    table.writeheader()
    for sae in report["saes"]:
        for point in sae["points"]:
            row = {"kind": "file", "sae": sae["name"]} | {name: point[name] for name in _PLAIN}
            for name in _INTERVALS:
                row |= _ends(name, point[f"{name}_interval"])
            row |= {f"{name}_bytes": point["bytes"][name] for name in parts} | point["estimates"]
            table.writerow(row)
        for key, at in sae["at"].items():
            if "missing" not in at:
                table.writerow(
                    {"kind": "target", "sae": sae["name"]} | _at_target(report["at"][key], sae["name"], key, at)
                )
    with atomic_output(path, force=force) as file:
        file.write(text.getvalue().encode())


def _at_target(verdict: dict[str, Any], name: str, key: str, at: dict[str, Any]) -> dict[str, Any]:
    row = {"nmse": float(key), "bits_per_row": at["bits_per_row"], "total_bits_per_row": at["total_bits_per_row"]}
    row |= _ends("bits", at["interval"]) | {"above_mdl": 0.0 if name == verdict["mdl"] else None}
    for pair in verdict["differences"]:
        if (pair["a"], pair["b"]) == (verdict["mdl"], name):
            row |= {"above_mdl": pair["bits"]} | _ends("above_mdl", pair["interval"])
    return row


def _ends(name: str, interval: list[float | None] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
