"""Ways of counting the bits of an SAE, and who has the fewest: for docs/paper_mnist.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from saecodec.curves import enclosing
from saecodec.formats.two_part import shortest_by_rows

COUNTS = ("bits", "data", "total", "total_many")
IMAGES = 60_000  # that share a decoder where it is counted: the images that MNIST has for training


def parts_at(points: Sequence[dict[str, Any]], target: float) -> dict[str, float]:
    """Bytes by part at an NMSE, between the files that enclose it as the bits are; both may have other tables."""
    nmses = [point["nmse"] for point in points]
    pair = enclosing(nmses, target)
    if pair is None:
        raise ValueError(f"no two files enclose NMSE {target:g}")
    a, b = (points[i] for i in pair)
    if a["nmse"] == b["nmse"]:
        return dict(a["bytes"])
    share = math.log(target / a["nmse"]) / math.log(b["nmse"] / a["nmse"])
    return {part: (1 - share) * n + share * b["bytes"][part] for part, n in a["bytes"].items()}


def rates(at: dict[str, Any], parts: dict[str, float], decoder: int, n_rows: int) -> dict[str, Any]:
    """Bits per image of an SAE at the target, by what is counted, and by part.

    bits: the file. data: without its tables and the basis of its residual layer, which any number of images share.
    total: the file and the decoder. total_many: the same where `IMAGES` share decoder, tables and basis.
    """
    bits, tables = at["bits_per_row"], 8 * parts["tables"]
    data, shared = bits - tables / n_rows, tables + 8 * decoder
    return {
        "bits": bits,
        "interval": at["interval"],
        "data": data,
        "total": data + shared / n_rows,
        "total_many": data + shared / IMAGES,
        "shared": shared,
        "parts": {part: 8 * n / n_rows for part, n in parts.items() if n},
    }


def verdict(at: dict[str, Any], saes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The SAE with the fewest bits by each of `COUNTS`, those that tie with it, and what others take more.

    Decoders and tables are the same in every resample, so they move intervals of differences and do not widen them.
    """
    gaps = {}
    for pair in at["differences"]:  # an end that is None is unbounded
        low, high = pair["interval"]
        ends = [-math.inf if low is None else low, math.inf if high is None else high]
        gaps[pair["a"], pair["b"]] = [pair["bits"], *ends]
    gaps |= {(b, a): [-bits, -high, -low] for (a, b), (bits, low, high) in gaps.items()}
    out = {}
    for count in COUNTS:
        counted = {name: sae[count] for name, sae in saes.items() if count in sae}
        best = min(counted, key=lambda name: counted[name])
        above = {}
        for name, bits in counted.items():
            if name != best:
                gap, low, high = gaps[best, name]
                moved = bits - counted[best] - gap
                above[name] = [gap + moved, low + moved, high + moved]
        ties = sorted(name for name, (_, low, high) in above.items() if low <= 0 <= high)
        above = {name: [end if math.isfinite(end) else None for end in ends] for name, ends in above.items()}
        out[count] = {"best": best, "bits": counted[best], "ties": ties, "above": above}
    weights = {name: sae["shared"] for name, sae in saes.items() if "shared" in sae}
    return {
        "verdicts": out,
        "shortest_from_rows": shortest_by_rows(weights, {name: saes[name]["data"] for name in weights}),
    }
