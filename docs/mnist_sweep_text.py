"""The section of docs/paper.md on the sweep over MNIST, from docs/mnist_sweep.json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from make_context import table
from paper_mnist_counts import IMAGES
from paper_mnist_page import filled

Facts = dict[str, Any]
SHOWN = "0.25"
"""The target at which the picture's SAE is the shortest."""
_ALONE, _MANY = ("mdl", "bits_per_row"), ("mdl_many", "total_many")
_COUNTS = (_ALONE, ("mdl_with_sae", "total_bits_per_row"), _MANY)


def name_of(sae: Facts) -> str:
    """width 128, k = 8."""
    return f"width {sae['width']}, k = {sae['k']:g}"


def best_shown(facts: Facts) -> str | None:
    """The shortest at the picture's target, its decoder shared by many images."""
    name: str | None = facts["at"][SHOWN]["mdl_many"]
    return name


def title_of(facts: Facts, name: str) -> str:
    """What stands above an SAE's decoder images: which it is, and what it takes."""
    sae = facts["saes"][name]
    at = sae["at"][SHOWN]
    bits = f"NMSE above {SHOWN}" if "missing" in at else f"{at['total_many']:.1f} bits"
    return f"{name_of(sae)}\n{'MDL-SAE, ' if name == best_shown(facts) else ''}{bits}"


def shown(facts: Facts) -> list[str]:
    """The SAEs of the picture, by width: the shortest with its decoder at the target, and the narrowest and the widest
    at its k. Where none reaches the target, those of the middle k."""
    saes, best = facts["saes"], best_shown(facts)
    ks = sorted({sae["k"] for sae in saes.values()})
    k = ks[len(ks) // 2] if best is None else saes[best]["k"]
    column = sorted((sae["width"], name) for name, sae in saes.items() if sae["k"] == k)
    names = {column[0][1], column[-1][1], column[len(column) // 2][1] if best is None else best}
    return [name for _, name in column if name in names]


def told(facts: Facts) -> str:
    """The section, without its heading."""
    return filled("\n\n".join([_how(facts), _verdicts(facts), _edges(facts), *_grids(facts), _picture(facts)])).strip()


def _how(facts: Facts) -> str:
    saes = list(facts["saes"].values())
    training, whole = facts["seconds"]["training"] / 60, facts["seconds"]["command"]
    altogether = "" if whole is None else f", {whole / 60:.0f} with the comparison"
    images = saes[0]["training"]["rows"]
    return (
        f"```\n{facts['command']}\n```\n\n"
        f"trains {len(saes)} BatchTopK SAEs, compares them, and names the MDL-SAE (`make mnist-sweep`, "
        f"docs/mnist_sweep.json). On {facts['machine']}, training took {training:.0f} minutes{altogether}. It is on "
        f"{images:,} images, those of the training set that are not held out; all figures here are of the "
        f"{facts['rows']:,} test images, with search {facts['search']}, decoders in {facts['weights']}, tables "
        f"counted, and intervals are 95 %, by resampling {facts['bootstrap']}. The "
        "SAEs are not those of the tables above, which were trained otherwise; the MDL-SAE is chosen on the images "
        "that it is judged by."
    )


def _verdicts(facts: Facts) -> str:
    rows = []
    for key, verdict in facts["at"].items():
        if verdict["mdl"] is None:
            rows.append([key, "no SAE reaches it", *[""] * 4])
            continue
        cells = [key]
        for which, bits in _COUNTS:
            sae = facts["saes"][verdict[which]]
            at = sae["at"][key]
            interval = f" ({' to '.join(map(_end, at['interval']))})" if bits == "bits_per_row" else ""
            cells += [name_of(sae), f"**{at[bits]:.1f}**{interval}"]
        ties = ["; ".join(name_of(facts["saes"][name]) for name in verdict[of]) for of in ("ties", "ties_with_sae")]
        for place, tied in zip((1, 3), ties, strict=True):
            cells[place] += f" (ties: {tied})" if tied else ""
        rows.append(cells)
    head = ["NMSE", "MDL-SAE, decoder out", "bits/image (95 %)"]
    for n_rows in (facts["rows"], IMAGES):
        head += [f"decoder and tables shared by {n_rows:,} images", "bits/image"]
    return table(head, [[*row, *[""] * (len(head) - len(row))] for row in rows])


def _end(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _edges(facts: Facts) -> str:
    """Where in the grid the shortest lie, and which it is by how many images share the decoder."""
    out = []
    for (which, _), what in ((_ALONE, "With the decoder out"), (_MANY, f"Shared by {IMAGES:,} images")):
        places: dict[str, list[str]] = {}
        for key, verdict in facts["at"].items():
            if verdict[which] is not None:
                sae = facts["saes"][verdict[which]]
                places.setdefault(_place(facts, sae), []).append(key)
        each = "; ".join(f"{place} at NMSE {_and(keys)}" for place, keys in places.items())
        if each:
            out.append(f"{what}, the shortest has {each}.")
    for key, verdict in facts["at"].items():
        steps = verdict["shortest_from_rows"]
        if len(steps) > 1:
            turns = "; ".join(f"{name_of(facts['saes'][s['name']])} from {s['from_rows']:,.0f} on" for s in steps[1:])
            first = name_of(facts["saes"][steps[0]["name"]])
            out.append(f"By the number of images that share decoder and tables, at {key}: {first} at first; {turns}.")
    return " ".join(out)


def _place(facts: Facts, sae: Facts) -> str:
    """Whether neighbours on both sides were tried, in width and in k."""
    words = []
    for what in ("width", "k"):
        values = sorted({other[what] for other in facts["saes"].values()})
        edges = {values[0]: f"the grid's least {what}", values[-1]: f"the grid's largest {what}"}
        words.append(edges.get(sae[what], f"a {what} inside the grid"))
    return " and ".join(words)


def _and(keys: list[str]) -> str:
    return " and ".join([", ".join(keys[:-1]), keys[-1]] if len(keys) > 1 else keys)


def _grids(facts: Facts) -> list[str]:
    out = []
    for key, verdict in facts["at"].items():
        if verdict["mdl"] is None:
            continue
        show = [_shown(facts, key, which, bits) for which, bits in (_ALONE, _MANY)]
        ks = sorted({sae["k"] for sae in facts["saes"].values()})
        by_place = {(sae["width"], sae["k"]): name for name, sae in facts["saes"].items()}
        rows = []
        for width in sorted({width for width, _ in by_place}):
            names = [by_place.get((width, k)) for k in ks]
            rows.append(
                [str(width), *("" if name is None else " / ".join(one(name) for one in show) for name in names)]
            )
        head = ["width", *(f"k = {k:g}" for k in ks)]
        out += [f"NMSE {key}, bits an image, decoder out / shared by {IMAGES:,} images:", table(head, rows)]
    return [*out, "A dash: the SAE's own error is above the target. Bold: the fewest."]


def _shown(facts: Facts, key: str, which: str, bits: str) -> Callable[[str], str]:
    def show(name: str) -> str:
        at = facts["saes"][name]["at"][key]
        if "missing" in at:
            return "–"
        return f"**{at[bits]:.1f}**" if name == facts["at"][key][which] else f"{at[bits]:.1f}"

    return show


def _picture(facts: Facts) -> str:
    names, best = shown(facts), best_shown(facts)
    each = "; ".join(name_of(facts["saes"][name]) for name in names)
    best_told = ""
    if best is not None:
        name, how = name_of(facts["saes"][best]), "as the bits above each sheet are counted"
        best_told = f" The shortest at NMSE {SHOWN} is {name}, its decoder shared by {IMAGES:,} images, {how}."
    return (
        "![Decoder images of three SAEs of the sweep](mnist_decoder.png)\n\n"
        "Decoder images of the 24 latents that fire most in test images, the most frequent first, of three SAEs: "
        f"{each}.{best_told} Red is ink, blue takes it away, each image by its own largest value."
    )
