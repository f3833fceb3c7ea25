"""docs/determinism.md, from docs/determinism.json and determinism.template.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from make_context import table

_CODECS = {
    "batchtopk": "BatchTopK 3072, k = 32",
    "topk": "the same as TopK",
    "gated": "gated 3072",
    "relu": "ReLU 3072",
    "layer_norm": "TopK, rows layer-normalized",
    "residual": "BatchTopK and a residual layer",
}
_SAME = "same"


def page(found: dict[str, Any]) -> str:
    """The text."""
    runs = found["runs"]
    parts = {
        "rows": f"{found['rows']:,}",
        "many_rows": f"{found['many_rows']:,}",
        "activations": _activations(runs),
        "levels_seen": _levels_seen(runs),
        "kernels": _kernels(runs),
        "environments": _environments(runs),
        "integers": _integers(runs),
        "moved": _moved(runs),
        "deterministic": _deterministic(runs),
        "modes": _modes(runs),
        "fits": _fits(runs),
        "speed": _speed(found["speed"]),
    }
    return (Path(__file__).parent / "determinism.template.md").read_text().format(**parts)


def _reference(runs: dict[str, Any]) -> dict[str, Any]:
    reference: dict[str, Any] = runs["reference"]
    return reference


def _environments(runs: dict[str, Any]) -> str:
    keys = ("python", "numpy", "torch", "constriction", "zstandard", "torch_vectors", "numpy_vectors", "threads")
    rows = [[name, *(str(run["environment"][key]) for key in keys)] for name, run in runs.items()]
    head = ["run", "Python", "numpy", "torch", "constriction", "zstandard", "torch on", "numpy on", "threads"]
    return table(head, rows)


def _integers(runs: dict[str, Any]) -> str:
    """Of all files, how many have the reference's levels and bytes."""
    wanted, rows = _reference(runs)["integers"], []
    for name, run in runs.items():
        if "integers" not in run:
            continue
        ours = run["integers"]
        cells = [name]
        for small in (True, False):
            files = [file for file in wanted["files"] if file.startswith("large_") is not small]
            levels = sum(ours["files"][file]["levels"] == wanted["files"][file]["levels"] for file in files)
            coded = sum(ours["files"][file]["bytes"] == ours["files"][file]["own"] for file in files)
            cells += [f"{levels} of {len(files)}", f"{coded} of {len(files)}"]
        rows.append([*cells, _SAME if ours["tables"] == wanted["tables"] else "others"])
    head = ["run", "golden files: levels", "bytes", "larger files: levels", "bytes", "tables fitted on levels"]
    return table(head, rows)


def _per_million(facts: dict[str, int], kind: str = "") -> str:
    count, of = facts[f"{kind}moved"], facts[f"{kind}nonzeros"]
    return f"{count} ({1e6 * count / max(of, 1):.1f})" if count else "0"


def _activations(runs: dict[str, Any]) -> str:
    rows = []
    for name, run in runs.items():
        if name == "reference" or "activations" not in run:
            continue
        cells = [name]
        for facts in run["activations"].values():
            cells += [f"{facts['moved']} ({facts['support']})", f"{facts['expected']:.2f}"]
        share = max(facts["values_differ"] for facts in run["activations"].values())
        rows.append([*cells, f"{100 * share:.0f} %"])
    names = list(_reference(runs)["activations"])
    head = [text for codec in names for text in (f"{_CODECS[codec]}: moved", "expected per million")]
    return table(["run", *head, "activations with other bits"], rows)


def _levels_seen(runs: dict[str, Any]) -> str:
    seen = [facts["nonzeros"] for facts in _reference(runs)["activations"].values()]
    return ", ".join(f"{count:,}" for count in seen)


def _kernels(runs: dict[str, Any]) -> str:
    """What moved by default where activations have other bits."""
    parts = []
    for name, run in runs.items():
        facts = [] if name == "deterministic" else list(run.get("activations", {}).values())
        if any(of["values_differ"] for of in facts):
            moved, levels = (sum(of[key] for of in facts) for key in ("moved", "nonzeros"))
            parts.append(f"{moved} of {levels:,}, {1e6 * moved / levels:.1f} of a million ({name})")
    return "; ".join(parts) or "nothing, there is no such run"


def _moved(runs: dict[str, Any]) -> str:
    rows = []
    for name, run in runs.items():
        if "moved" not in run:
            continue
        facts = run["moved"]["default"]
        if name == "reference":
            first = [f"{facts[codec]['nonzeros']:,} levels" for codec in _CODECS]
            rows.append(["reference", *first, f"{facts['residual']['residual_nonzeros']:,}", ""])
            continue
        cells = [_per_million(facts[codec]) for codec in _CODECS]
        support = sum(facts[codec]["support"] for codec in _CODECS)
        rows.append([name, *cells, _per_million(facts["residual"], "residual_"), str(support)])
    return table(["run", *_CODECS.values(), "residual levels", "0 in one of the two"], rows)


def _deterministic(runs: dict[str, Any]) -> str:
    wanted, rows = _reference(runs)["levels"], []
    for name, run in runs.items():
        if name == "reference" or "integers" not in run:
            continue
        modes = [(run["levels"][codec]["deterministic"], wanted[codec]["deterministic"]) for codec in _CODECS]
        facts = run["moved"]["deterministic"]
        moved = sum(facts[codec]["moved"] + facts[codec]["columns"] for codec in _CODECS)
        levels = sum(facts[codec]["nonzeros"] for codec in _CODECS)
        levels += facts["residual"]["residual_nonzeros"]
        moved += facts["residual"]["residual_moved"]
        same = sum(ours["file"] == theirs["file"] for ours, theirs in modes)
        files = "other chunks" if name.startswith("chunks") else f"{same} of {len(_CODECS)}"
        rows.append([name, f"{moved} of {levels:,}", files])
    return table(["run", "levels moved", "files of the same bytes"], rows)


def _modes(runs: dict[str, Any]) -> str:
    reference, rows = _reference(runs), []
    for codec, words in _CODECS.items():
        facts, levels = reference["moved"]["modes"][codec], reference["levels"][codec]
        residual = _per_million(facts, "residual_") if "residual_moved" in facts else "-"
        nmse = [f"{levels[mode]['nmse']:.9f}" for mode in ("default", "deterministic")]
        rows.append([words, _per_million(facts), str(facts["support"]), residual, *nmse])
    head = ["codec", "levels that differ (per million)", "0 in one of the two", "residual levels", "NMSE, default"]
    return table([*head, "NMSE, deterministic"], rows)


def _fits(runs: dict[str, Any]) -> str:
    wanted, rows = _reference(runs)["fits"], []
    for name, run in runs.items():
        if name != "reference" and "fits" in run:
            ours = run["fits"]
            rows.append([name, *(_SAME if ours[key] == wanted[key] else "another" for key in wanted)])
    return table(["run", "default", "--deterministic", "with a residual layer"], rows)


def _speed(speed: dict[str, Any]) -> str:
    rows = [
        [_CODECS[codec], *(f"{facts[part]:.1f}" for part in ("sae", "encode"))]
        for codec, facts in speed["slower"].items()
    ]
    return table(["codec", "times as slow: the SAE", "encoding, to bytes"], rows)
