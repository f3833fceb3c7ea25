"""Fitting the residual layer: principal components of residuals, then classes, tables and centroids of their levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.codes import MAX_LEVEL
from saecodec.costs import value_bits
from saecodec.errors import InputError
from saecodec.fit_tables import fit_matrix
from saecodec.integers import zigzag
from saecodec.quantizer import CENTROID_LEVELS, CentroidStatistics
from saecodec.residual import MAX_BASIS, MAX_ENTRY, MEAN_UNIT, Block, ResidualLayer
from saecodec.store import Store
from saecodec.table_set import TableSet

MAX_BLOCK: Final = 2048
"""Wider rows are cut into blocks with bases of their own: a basis of d x d would outgrow memory, time, and its use."""
RESIDUAL_SLOPE: Final = 2.0
"""The slope of the residual layer, in its own squared steps, for each unit of the base layer's in its own. The optimum
is flat (docs/results.md)."""
_TABLE_ROWS: Final = 1 << 14
_BASIS_STEPS: Final = 16  # units of the basis in the rms of an entry: adds 1 / (12 * 16^2) of the residual's energy
_DEAD: Final = 0.15  # a component whose deviation is less than this many steps is never coded
_ROUNDING: Final = 0.36  # of levels before there are tables: a dead zone, as for Laplacian coordinates
_COST_VALUES: Final = 512


class ResidualMoments:
    """Sums over residuals from which their principal components come, by block of neighbouring values."""

    def __init__(self, width: int) -> None:
        n_blocks = -(-width // max(1, min(MAX_BLOCK, MAX_BASIS // width)))
        edges = [width * i // n_blocks for i in range(n_blocks + 1)]
        self._blocks = [slice(a, b) for a, b in pairwise(edges)]
        self._outer = [np.zeros((b.stop - b.start,) * 2) for b in self._blocks]
        self._sum = np.zeros(width)
        self._pivot: NDArray[np.float32] | None = None
        self.n_rows = 0

    def add(self, residual: NDArray[np.float32]) -> None:
        """Add residuals, float32 (T, d)."""
        if not len(residual):
            return
        if self._pivot is None:
            self._pivot = residual.mean(0)
        residual = residual - self._pivot  # near the mean, so that the products do not cancel
        self.n_rows += len(residual)
        self._sum += residual.sum(0, dtype=np.float64)
        for block, outer in zip(self._blocks, self._outer, strict=True):
            part = residual[:, block]
            outer += part.T @ part  # float32 products of a chunk: a basis needs no more

    @cached_property
    def _components(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Variances, falling, and components in rows, of each block, once all residuals were added."""
        mean, out = self._sum / max(self.n_rows, 1), []
        for block, outer in zip(self._blocks, self._outer, strict=True):
            variance, vectors = np.linalg.eigh(outer / max(self.n_rows, 1) - np.outer(mean[block], mean[block]))
            out.append((variance[::-1], vectors.T[::-1]))
        return out

    def layer(self, step: float) -> ResidualLayer:
        """The layer of these residuals at `step`, its tables still uniform: components by falling variance."""
        unit = 1 / (_BASIS_STEPS * np.sqrt(max(outer.shape[0] for outer in self._outer)))
        blocks = []
        for variance, vectors in self._components:
            live = variance > (_DEAD * step) ** 2
            entries = np.clip(np.rint(vectors[live] / unit), -MAX_ENTRY, MAX_ENTRY)
            blocks.append(Block(entries.astype(np.int64)))
        if not sum(len(block.vectors) for block in blocks):  # a layer has a component, if only to say zero
            blocks[0] = Block(np.zeros((1, blocks[0].vectors.shape[1]), np.int64))
        n_components = sum(len(block.vectors) for block in blocks)
        mean = self._sum / max(self.n_rows, 1) + (0 if self._pivot is None else self._pivot)
        centre = np.clip(np.rint(mean / step * MEAN_UNIT), -MAX_LEVEL, MAX_LEVEL).astype(np.int64)
        tables = TableSet(np.zeros(n_components, np.int64), np.zeros((1, 2), np.int64), 0)
        return ResidualLayer(step, unit, tuple(blocks), centre, tables, np.zeros((1, CENTROID_LEVELS), np.int64))


class ResidualStatistics:
    """Histograms of levels by component, from which classes, tables and centroids come."""

    def __init__(self, layer: ResidualLayer) -> None:
        self._layer = layer
        self._counts = np.zeros((layer.n_components, buckets.N_BUCKETS))
        self._centroids = CentroidStatistics(layer.n_components)

    def add(self, levels: NDArray[np.int32], coordinates: NDArray[np.float32]) -> None:
        """Add levels and the coordinates that they stand for, in steps: (T, M) each."""
        component = np.broadcast_to(np.arange(levels.shape[1]), levels.shape)
        bucket = buckets.bucket_of(zigzag(levels.ravel().astype(np.int64)))
        flat = np.bincount(component.ravel() * buckets.N_BUCKETS + bucket, minlength=self._counts.size)
        self._counts += flat.reshape(self._counts.shape)
        at = np.nonzero(levels)
        size = np.abs(levels[at])
        self._centroids.add(at[1].astype(np.int32), size.astype(np.float64), np.abs(coordinates[at]) - size)

    def layer(self) -> ResidualLayer:
        """The layer with classes, tables and centroids of what was added."""
        tables = fit_matrix(self._counts)
        centroids = self._centroids.centroids(tables.classes, len(tables.codes))
        return replace(self._layer, tables=tables, centroids=centroids)


def moments_of(residuals: Iterator[NDArray[np.float32]], width: int) -> ResidualMoments:
    """The moments of residuals, float32 (n, d) a chunk."""
    moments = ResidualMoments(width)
    for residual in residuals:
        moments.add(residual)
    return moments


def dead_zone_levels(coordinates: NDArray[np.float32]) -> NDArray[np.int32]:
    """Levels of coordinates (T, M), in steps, with a fixed dead zone: for a layer without tables."""
    return _checked(np.copysign(np.floor(np.abs(coordinates) + _ROUNDING), coordinates))


def choose_levels(layer: ResidualLayer, coordinates: NDArray[np.float32], slope: float) -> NDArray[np.int32]:
    """Levels of coordinates (T, M), in steps, with the least (squared error + slope x bits), both in squared steps.

    Of each coordinate the nearest level, the next one towards zero and zero are weighed (rate-distortion optimised
    quantization).
    """
    price = slope * value_bits(layer.tables.weights, _COST_VALUES)
    flat, row = price.ravel(), layer.tables.classes * _COST_VALUES
    size = np.abs(coordinates)
    nearest = np.floor(size + np.float32(0.5))
    best = np.full(size.shape, np.inf, np.float32)
    level = np.zeros(size.shape, np.float32)
    for option in (nearest, np.maximum(nearest - 1, 0), np.zeros_like(nearest)):
        # The symbol of the positive level: signs cost about alike.
        symbol = np.minimum(2 * option, _COST_VALUES - 1).astype(np.int64)
        cost = (size - option) ** 2 + flat[row + symbol]
        better = cost < best
        best, level = np.where(better, cost, best), np.where(better, option, level)
    return _checked(np.copysign(level, coordinates))


def fit_layer(
    residuals: Callable[[], Iterator[NDArray[np.float32]]],
    width: int,
    step: float,
    slope: float,
    store: Store[NDArray[np.int32]],
    moments: ResidualMoments | None = None,
) -> ResidualLayer:
    """The layer of residuals, float32 (n, d) a chunk; their levels go to `store`, chunk by chunk.

    residuals: every call gives them from the start; it is called up to four times. slope: see `choose_levels`. moments:
    of the residuals, where they are at hand.
    """
    if moments is None:
        moments = moments_of(residuals(), width)
    layer = moments.layer(step)
    # Levels go by tables and tables by levels: first tables come from a dead zone, on some of the rows.
    for searched in (False, True):
        statistics, n_rows = ResidualStatistics(layer), 0
        for residual in residuals():
            coordinates = layer.coordinates(residual)
            levels = choose_levels(layer, coordinates, slope) if searched else dead_zone_levels(coordinates)
            statistics.add(levels, coordinates)
            n_rows += len(residual)
            if n_rows >= _TABLE_ROWS:
                break
        layer = statistics.layer()
    statistics = ResidualStatistics(layer)
    for residual in residuals():
        coordinates = layer.coordinates(residual)
        levels = choose_levels(layer, coordinates, slope)
        statistics.add(levels, coordinates)
        store.append(levels)
    return statistics.layer()


def _checked(levels: NDArray[np.float32]) -> NDArray[np.int32]:
    if levels.size and not float(np.abs(levels).max()) <= MAX_LEVEL:
        raise InputError("the step of the residual layer is too small: a level above 2^20 would be needed")
    return levels.astype(np.int32)
