"""All measured points of a comparison as a CSV table."""

from __future__ import annotations

import csv
import io
import os
from typing import Any, Final

from saecodec.formats.atomic import atomic_output

_PLAIN: Final = ("step", "residual_step", "file_bytes", "bits_per_row", "nmse", "nmse_median", "cosine", "l0", "metric")
_INTERVALS: Final = ("bits", "nmse", "metric")


def write_csv(report: dict[str, Any], path: str | os.PathLike[str], *, force: bool = False) -> None:
    """One line for each file that was measured. Intervals are two columns, parts of the file add up to file_bytes."""
    parts = next((list(point["bytes"]) for sae in report["saes"] for point in sae["points"]), [])
    head = ["sae", *_PLAIN, *(f"{name}_{end}" for name in _INTERVALS for end in ("low", "high"))]
    head += [f"{name}_bytes" for name in parts] + ["l0_formula", "sum_entropy"]
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(head)
    for sae in report["saes"]:
        for point in sae["points"]:
            ends = [end for name in _INTERVALS for end in point[f"{name}_interval"] or (None, None)]
            estimates = [point["estimates"][name] for name in ("l0_formula", "sum_entropy")]
            table.writerow(
                [sae["name"], *(point[name] for name in _PLAIN), *ends, *(point["bytes"][p] for p in parts), *estimates]
            )
    with atomic_output(path, force=force) as file:
        file.write(text.getvalue().encode())
