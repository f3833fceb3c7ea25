"""Rate-distortion plots of what `bench` measured (matplotlib, an extra)."""

from __future__ import annotations

import os
from typing import Any, Final

from saecodec.errors import OutputError
from saecodec.peers.peer import import_package

FORMATS: Final = (".png", ".svg")
_OURS: Final = ("o", "s", "D", "^", "v", "P", "X")
_THEIRS: Final = ("1", "2", "3", "4", "+", "x", ".")
_SHADES: Final = ("black", "dimgray", "saddlebrown", "darkslategray", "indigo", "olive", "gray")


def check_plot_path(path: str | os.PathLike[str]) -> None:
    """OutputError unless a plot can have this name; MissingPieceError without matplotlib."""
    if os.path.splitext(os.fspath(path))[1].lower() not in FORMATS:
        raise OutputError(f"{os.fspath(path)}: a plot is a {' or '.join(FORMATS)} file")
    import_package("matplotlib")


def plot_curves(report: dict[str, Any], title: str, path: str | os.PathLike[str]) -> None:
    """Draw the curves of `benchmark.report`: bits per row (logarithmic) over NMSE (logarithmic), finer to the right.

    Solid lines are this codec, dashed ones peers. Every mark is a file or byte string that was really decoded.
    """
    figure_module = import_package("matplotlib.figure")
    ticker = import_package("matplotlib.ticker")
    figure = figure_module.Figure(figsize=(10.5, 5.6), layout="constrained")
    axes = figure.add_subplot()
    ours = theirs = 0
    for curve in report["curves"]:
        points = sorted(curve["points"], key=lambda point: -point["nmse"])
        if not points:
            continue
        x, y = [point["nmse"] for point in points], [point["bits_per_row"] for point in points]
        if curve["ours"]:
            style = {"ls": "-", "lw": 2.0, "marker": _OURS[ours % len(_OURS)], "color": f"C{ours % 10}", "zorder": 3}
            ours += 1
        else:
            style = {
                "ls": "--",
                "lw": 1.2,
                "marker": _THEIRS[theirs % len(_THEIRS)],
                "color": _SHADES[theirs % len(_SHADES)],
            }
            theirs += 1
        axes.plot(x, y, label=curve["name"], markersize=5, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    targets = sorted(report["targets"])
    axes.set_xlim(min(0.95, 1.6 * targets[-1]), 0.7 * targets[0])
    axes.set_xticks(targets)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_yticks([], minor=True)
    axes.set_xlabel("NMSE (fraction of variance unexplained), falling to the right")
    axes.set_ylabel("rate (bits per row)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=7, loc="outside right upper", title="solid: this codec; dashed: peers", title_fontsize=7)
    figure.savefig(path, dpi=130, metadata={"Date": None} if os.fspath(path).endswith(".svg") else None)
