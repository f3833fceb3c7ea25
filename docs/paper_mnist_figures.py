"""The figures of docs/paper_mnist.md, from what docs/paper_mnist.py measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from paper_mnist_shapes import SIDE

PANELS = (
    ("plain", "bits", "SAE alone"),
    ("residual", "bits", "with a residual layer"),
    ("residual", "data", "the same, tables and basis out"),
    ("residual", "total_many", "all, decoder too, over 60,000 images"),
)
_COLUMNS = 4  # of the features of one SAE


def plot_rates(saes: Sequence[dict[str, Any]], path: Path) -> None:
    """Bits per image against k, a line for each width, and against width, a line for each k."""
    matplotlib.rcParams["svg.hashsalt"] = "paper"  # the same facts give the same file
    figure = Figure(figsize=(13.5, 6.2), layout="constrained")
    axes = figure.subplots(2, len(PANELS))
    for row, (x, line) in zip(axes, (("k", "width"), ("width", "k")), strict=True):
        for place, (panel, (part, count, title)) in enumerate(zip(row, PANELS, strict=True)):
            for i, value in enumerate(sorted({sae[line] for sae in saes})):
                points = sorted((sae[x], sae[part][count]) for sae in saes if sae[line] == value and count in sae[part])
                look = {"color": matplotlib.colormaps["viridis"](i / 6), "marker": "o", "ms": 4, "lw": 1.5}
                panel.plot(*zip(*points, strict=True) if points else ([], []), label=f"{line} {value}", **look)
            panel.set_xscale("log", base=2)
            ticks = sorted({sae[x] for sae in saes})
            panel.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
            panel.set_xlim(ticks[0] / 1.2, ticks[-1] * 1.2)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
            panel.set_xlabel(x)
            panel.set_title(title, fontsize=9)
            if not place:
                panel.set_ylabel("bits per image")
        row[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, metadata={"Date": None})


def plot_features(shown: Sequence[tuple[str, NDArray[np.float32]]], path: Path) -> None:
    """Decoder images (N, 784) of SAEs side by side under their titles: red is ink, blue takes it away, each image by
    its own largest value."""
    rows = -(-len(shown[0][1]) // _COLUMNS)
    lines = max(title.count("\n") for title, _ in shown)
    figure = Figure(figsize=(2.625 * len(shown), 4.3 + 0.35 * lines), layout="constrained")
    axes = figure.subplots(1, len(shown))
    for panel, (title, images) in zip(axes, shown, strict=True):
        scaled = images / np.abs(images).max(1, keepdims=True)
        tiles = np.full((rows * _COLUMNS, SIDE + 2, SIDE + 2), np.nan, np.float32)
        tiles[: len(images), 1:-1, 1:-1] = scaled.reshape(-1, SIDE, SIDE)
        sheet = tiles.reshape(rows, _COLUMNS, SIDE + 2, SIDE + 2).transpose(0, 2, 1, 3)
        sheet = sheet.reshape(rows * (SIDE + 2), -1)
        panel.imshow(sheet, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        panel.set_title(title, fontsize=9)
        panel.set_axis_off()
    figure.savefig(path, dpi=100)
