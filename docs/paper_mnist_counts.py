"""Ways of counting the bits of an SAE, and who has the fewest: for docs/paper_mnist.py."""

from __future__ import annotations

from typing import Any

IMAGES = 60_000  # that share a decoder where it is counted: the images that MNIST has for training


def rates(at: dict[str, Any], parts: dict[str, int], decoder: int, n_rows: int) -> dict[str, Any]:
    """Bits per image of an SAE at the target: alone, with its decoder, and by part of the file nearest to the target.

    Where `IMAGES` share the decoder they share the tables, too, which `bits` has to the charge of `n_rows`.
    """
    bits, shared = at["bits_per_row"], 8 * parts["tables"]
    return {
        "bits": bits,
        "interval": at["interval"],
        "total": at["total_bits_per_row"],
        "total_many": bits - shared / n_rows + (shared + 8 * decoder) / IMAGES,
        "parts": {part: 8 * n / n_rows for part, n in parts.items() if n},
    }


def verdict(at: dict[str, Any], saes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The SAE with the fewest bits by each way of counting, those that tie with it, and what others take more.

    Decoders and tables are the same in every resample, so they move intervals of differences and do not widen them.
    """
    gaps = {(pair["a"], pair["b"]): [pair["bits"], *pair["interval"]] for pair in at["differences"]}
    gaps |= {(b, a): [-bits, -high, -low] for (a, b), (bits, low, high) in gaps.items()}
    out = {}
    for count in ("bits", "total", "total_many"):
        counted = {name: sae[count] for name, sae in saes.items() if count in sae}
        best = min(counted, key=lambda name: counted[name])
        above = {}
        for name, bits in counted.items():
            if name != best:
                gap, low, high = gaps[best, name]
                moved = bits - counted[best] - gap
                above[name] = [gap + moved, low + moved, high + moved]
        ties = sorted(name for name, (_, low, high) in above.items() if low <= 0 <= high)
        out[count] = {"best": best, "bits": counted[best], "ties": ties, "above": above}
    return {"verdicts": out, "shortest_from_rows": at["shortest_from_rows"]}
