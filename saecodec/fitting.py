"""Fitting a codec on rows: step, tables and centroids of the base layer, then the residual layer on what is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.costs import DEFAULT_SLOPE
from saecodec.features import Features
from saecodec.fit_residual import RESIDUAL_SLOPE, fit_layer
from saecodec.latents import LatentCodec
from saecodec.layers import Layers
from saecodec.priors.fit_factorized import LatentStatistics, fit_factorized
from saecodec.quantizer import CentroidStatistics, Quantizer, Step, quantize
from saecodec.sae import SAE
from saecodec.search import Search
from saecodec.side import SideQuantizer, side_at, targets, with_side
from saecodec.store import Store

Rows = Callable[[], Iterator[NDArray[np.float32]]]
"""Gives the rows of an array, chunk by chunk, float32 (n, d); every call starts again."""

SideAtStep = Callable[[float], SideQuantizer | None]


@dataclass(frozen=True)
class Point:
    """A point on the rate-distortion curve. step: of the base layer, absolute. slope: see `RowCoder`. residual_step: of
    the residual layer, absolute; None is without that layer."""

    step: float
    slope: float = DEFAULT_SLOPE
    residual_step: float | None = None


def fit_features(
    sae: SAE, chunks: Iterable[Features], step: Step, store: Store[Codes], side_at_step: SideAtStep = lambda step: None
) -> Codec:
    """Fit a codec on the SAE's own activations, and leave their codes in `store`, which is empty before.

    chunks: is iterated twice, and `store` once, so that both may lie in files. side_at_step: how side
    information is coded at an absolute step, by an SAE that normalizes rows.
    """
    rms, _ = activity(sae, chunks)
    absolute = step.resolve(rms)
    side = side_at_step(absolute)
    base = _BaseFit(sae, absolute, store, side)
    for features in chunks:
        base.add(with_side(quantize(features, sae.norms, absolute, base.centroids), features, side))
    return base.codec({})


def fit_searched(
    search: Search,
    rows: Rows,
    start: Codec,
    point: Point,
    store: Store[Codes],
    scales: NDArray[np.float32] | None = None,
) -> Codec:
    """Fit the base layer on searched codes of rows, and leave the codes in `store`, which is empty before.

    start: the codec whose costs and centroids the search goes by; its step is that of `point`. rows and `store` are
    iterated once. scales: see `side_at`.
    """
    base = _BaseFit(search.sae, point.step, store, start.side)
    costs, first = start.latents.prior.costs(), 0
    for x in rows():
        wanted, columns = targets(search.sae, start.side, x, first, side_at(scales, first, len(x)))
        found = search(wanted, start.quantizer, costs, point.slope, first)
        size = np.abs(found.codes.levels).astype(np.float64)
        base.centroids.add(found.codes.latents, size, found.exact - size)
        base.add(replace(found.codes, columns=columns))
        first += len(x)
    return base.codec({"search": search.mode, "active": float(search.active)})


def fit_residual(
    codec: Codec, rows: Rows, point: Point, codes: Iterable[Codes], store: Store[NDArray[np.int32]]
) -> Codec:
    """`codec` with a residual layer fitted on what its base layer leaves of rows; levels go to `store`.

    codes: those of the rows, chunk by chunk. rows and codes are iterated several times.
    """
    assert point.residual_step is not None
    assert codec.sae is not None

    def residuals() -> Iterator[NDArray[np.float32]]:
        for x, part in zip(rows(), codes, strict=True):
            yield x - codec.reconstruct(part)

    layer = fit_layer(residuals, codec.sae.width, point.residual_step, RESIDUAL_SLOPE * point.slope, store)
    return replace(codec, residual=layer, info={**codec.info, "residual_step": point.residual_step})


def activity(sae: SAE, chunks: Iterable[Features]) -> tuple[float, float]:
    """Rms of |z_f| |d_f| over the nonzeros, and nonzeros per row."""
    square, nnz, n_rows = 0.0, 0, 0
    for features in chunks:
        length = features.values * sae.norms[features.latents]
        added = math.fsum(length * length) if sae.deterministic else float(length @ length)
        square, nnz, n_rows = square + added, nnz + features.nnz, n_rows + features.n_rows
    return math.sqrt(square / max(nnz, 1)), nnz / max(n_rows, 1)


def joined(codes: Iterable[Codes], levels: Iterable[NDArray[np.int32]] | None) -> Iterator[Layers]:
    """The layers of each chunk. levels: of the residual, None without that layer."""
    if levels is None:
        return (Layers(part) for part in codes)
    return (Layers(part, residual) for part, residual in zip(codes, levels, strict=True))


class _BaseFit:
    """Statistics of coded chunks, and the codec that they make."""

    def __init__(self, sae: SAE, step: float, store: Store[Codes], side: SideQuantizer | None) -> None:
        self._sae, self._step, self._store, self._side = sae, step, store, side
        self._statistics, self._n_rows = LatentStatistics(sae.n_latents), 0
        self.centroids = CentroidStatistics(sae.n_latents)

    def add(self, codes: Codes) -> None:
        """Add a chunk, whose rounding errors `centroids` has taken."""
        self._statistics.add(codes)
        self._store.append(codes)
        self._n_rows += codes.n_rows

    def codec(self, told: dict[str, Any]) -> Codec:
        """The codec of all chunks; `told` goes into its info."""
        sae = self._sae
        prior = fit_factorized(self._store, self._statistics, signed=sae.signed)
        centroids = self.centroids.centroids(prior.level_class, prior.n_level_classes)
        facts = {"sae": sae.name, "architecture": sae.architecture, "fit_rows": self._n_rows}
        facts |= {"sae_id": sae.sae_id or ""} | told
        quantizer = Quantizer(self._step, centroids, prior.level_class)
        return Codec(quantizer, LatentCodec(prior), sae.decoder_id, sae, facts, side=self._side)
