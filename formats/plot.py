"""Rate-distortion plots of what `bench` and `compare` measured (matplotlib, an extra)."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any, Final

from saecodec.errors import OutputError
from saecodec.formats.atomic import atomic_output
from saecodec.peers.peer import import_package

FORMATS: Final = (".png", ".svg")
_OURS: Final = ("o", "s", "D", "^", "v", "P", "X")
_THEIRS: Final = ("1", "2", "3", "4", "+", "x", ".")
_SHADES: Final = ("black", "dimgray", "saddlebrown", "darkslategray", "indigo", "olive", "gray")
_INTERVALS: Final = {"nmse": "nmse_interval", "bits_per_row": "bits_interval", "metric": "metric_interval"}


def check_plot_path(path: str | os.PathLike[str]) -> None:
    """OutputError unless a plot can have this name; MissingPieceError without matplotlib."""
    if os.path.splitext(os.fspath(path))[1].lower() not in FORMATS:
        raise OutputError(f"{os.fspath(path)}: a plot is a {' or '.join(FORMATS)} file")
    import_package("matplotlib", "plot")


def plot_curves(report: dict[str, Any], title: str, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Draw the curves of `benchmark.report`: bits per row (logarithmic) over NMSE (logarithmic), finer to the right.

    Solid lines are this codec, dashed ones peers. Every mark is a file or byte string that was really decoded.
    """
    figure = import_package("matplotlib.figure", "plot").Figure(figsize=(10.5, 5.6), layout="constrained")
    axes = figure.add_subplot()
    ours = theirs = 0
    for curve in report["curves"]:
        points = sorted(curve["points"], key=lambda point: -point["nmse"])
        if not points:
            continue
        x, y = [point["nmse"] for point in points], [point["bits_per_row"] for point in points]
        if curve["ours"]:
            style = _solid(ours)
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
    targets = sorted(report["targets"])
    _log_axes(axes, targets)
    axes.set_xlim(min(0.95, 1.6 * targets[-1]), 0.7 * targets[0])
    axes.set_title(title, fontsize=10)
    figure.legend(fontsize=7, loc="outside right upper", title="solid: this codec; dashed: peers", title_fontsize=7)
    _save(figure, path, force)


def plot_comparison(report: dict[str, Any], path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Draw the curves of a report (`page.write_page`) with their intervals: bits per row over NMSE, both logarithmic.

    Filled marks are on the Pareto front; crosses on a dashed line are PCA's bytes at the targets, where the report has
    baselines. With a metric, a second panel has it over bits per row.
    """
    metric = report.get("metric")
    figure = import_package("matplotlib.figure", "plot").Figure(
        figsize=(15.5 if metric else 10.5, 5.6), layout="constrained"
    )
    axes, *more = figure.subplots(1, 2 if metric else 1, squeeze=False)[0]
    front = {(best["sae"], best["bits_per_row"], best["nmse"]) for best in report.get("pareto") or ()}
    handles = []
    for i, sae in enumerate(report["saes"]):
        best = [not front or (sae["name"], p["bits_per_row"], p["nmse"]) in front for p in sae["points"]]
        handles.append(_intervals(axes, sae["points"], best, ("nmse", "bits_per_row"), ("log", "log"), i))
        for panel in more:
            _intervals(panel, sae["points"], best, ("bits_per_row", "metric"), ("log", "linear"), i)
    for target in report.get("targets") or ():
        axes.axvline(target, color="gray", lw=0.8, ls=":", zorder=0)
        place = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
        axes.annotate(f"{target:g}", (target, 1.005), fontsize=7, color="gray", **place)
    names = [sae["name"] for sae in report["saes"]]
    linear = _pca_points(report)
    if linear:
        (line,) = axes.plot(*zip(*linear, strict=True), ls="--", lw=1.2, marker="x", markersize=5, color="dimgray")
        handles.append(line)
        names.append("PCA (real bytes, without its model)")
    _log_axes(axes)
    axes.invert_xaxis()
    for panel in more:
        panel.set_xscale("log")
        _plain_ticks(panel.xaxis)
        panel.set_xlabel("rate (bits per row)")
        panel.set_ylabel(metric, parse_math=False)
        panel.grid(alpha=0.3)
    count = "1 SAE" if len(report["saes"]) == 1 else f"{len(report['saes'])} SAEs"
    rows = os.path.basename(str(report.get("input")).rstrip("/"))
    axes.set_title(f"{count} on {rows}", fontsize=10, pad=14, parse_math=False)
    title = "filled: on the Pareto front" if front else None
    # A label that begins with "_" would be left out of the legend.
    labels = [f" {name}" for name in names]
    legend = figure.legend(handles, labels, fontsize=7, loc="outside right upper", title=title, title_fontsize=7)
    for text in legend.get_texts():
        text.set_parse_math(False)
    _save(figure, path, force)


def _solid(i: int) -> dict[str, Any]:
    """The look of curve i of this codec."""
    return {"ls": "-", "lw": 2.0, "marker": _OURS[i % len(_OURS)], "color": f"C{i % 10}", "zorder": 3}


def _intervals(
    axes: Any,
    points: list[dict[str, Any]],
    filled: list[bool],
    keys: tuple[str, str],
    scales: tuple[str, str],
    i: int,
) -> Any:
    """Draw one curve with the intervals of both coordinates, without the points that an axis has no place for.

    Returns what stands for it in a legend.
    """
    held = [
        (point, full)
        for point, full in zip(points, filled, strict=True)
        if all(_has_place(point.get(key), scale) for key, scale in zip(keys, scales, strict=True))
    ]
    held.sort(key=lambda one: one[0][keys[0]])
    look = _solid(i)
    (line,) = axes.plot(*([point[key] for point, _ in held] for key in keys), markersize=5, **look)
    for point, full in held:
        error = [_reach(point, key) for key in keys]
        fill = {} if full else {"markerfacecolor": "white"}
        at = [point[key] for key in keys]
        axes.errorbar(*at, xerr=error[0], yerr=error[1], markersize=5, elinewidth=1, **(look | fill))
    return line


def _pca_points(report: dict[str, Any]) -> list[tuple[float, float]]:
    """NMSE and bits per row of PCA, by NMSE. A comparison has baselines by target, a measure those of its file."""
    baselines = report.get("baselines") or {}
    each = [baselines] if report.get("kind") == "measure" else baselines.values()
    held = [found["pca"] for found in each if found and found.get("pca")]
    points = [(pca.get("nmse"), pca.get("bits_per_row")) for pca in held]
    return sorted(point for point in points if all(_has_place(value, "log") for value in point))


def _has_place(value: Any, scale: str) -> bool:
    return isinstance(value, (int, float)) and (scale == "linear" or value > 0)


def _reach(point: dict[str, Any], key: str) -> list[list[float]] | None:
    """How far the interval of `key` reaches below and above its value, as `errorbar` takes it; None without one."""
    low, high = point.get(_INTERVALS[key]) or (None, None)
    if low is None or high is None:
        return None
    return [[max(0.0, point[key] - low)], [max(0.0, high - point[key])]]


def _log_axes(axes: Any, nmse_ticks: Sequence[float] = ()) -> None:
    """Logarithmic axes of NMSE and rate."""
    ticker = import_package("matplotlib.ticker", "plot")
    axes.set_xscale("log")
    axes.set_yscale("log")
    if nmse_ticks:
        axes.set_xticks(nmse_ticks)
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    else:
        _plain_ticks(axes.xaxis)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_yticks([], minor=True)
    axes.set_xlabel("NMSE (fraction of variance unexplained), falling to the right")
    axes.set_ylabel("rate (bits per row)")
    axes.grid(alpha=0.3)


def _plain_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis that may span less than an octave."""
    ticker = import_package("matplotlib.ticker", "plot")
    low, high = sorted(axis.get_view_interval())
    if low > 0 and high < 4 * low:
        axis.set_major_locator(ticker.MaxNLocator(nbins=7))
    else:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5, 7) if high < 30 * low else (1, 2, 5)))
    axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axis.set_minor_locator(ticker.NullLocator())


def _save(figure: Any, path: str | os.PathLike[str], force: bool) -> None:
    """The figure in the format of the name's suffix; the same report gives the same file."""
    name = os.fspath(path)
    kind = os.path.splitext(name)[1].lower().removeprefix(".")
    data = io.BytesIO()
    figure.savefig(data, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    with atomic_output(name, force=force) as file:
        file.write(data.getvalue())
