"""Fitting the factorized prior: classes of latents by the shape of their histograms, then tables, then groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.classes import class_sums
from saecodec.codes import Codes
from saecodec.fit_tables import COARSE, class_histogram, coarse_symbols, fit_classes, fit_table_set
from saecodec.limits import check_limit
from saecodec.priors.factorized import FactorizedPrior
from saecodec.priors.gaps import gaps_of
from saecodec.priors.layout import Layout

# More classes save little (64 -> 128 support classes: 0.3 %) and cost time: every run of one class is a call.
_SUPPORT_CANDIDATES: Final = [1, 2, 4, 8, 16, 32, 64]
_LEVEL_CANDIDATES: Final = [1, 2, 4, 8, 16, 32]
_COUNT_BITS: Final = 12.0  # what a support class costs a chunk: its number of nonzeros
_MIN_GROUPS: Final = 16
_COARSE_GAP: Final = coarse_symbols(4)
_COARSE_LEVEL: Final = coarse_symbols(buckets.DIRECT)


class LatentStatistics:
    """Histograms of every latent's gaps and levels over the chunks added: what classes are fitted on."""

    def __init__(self, n_latents: int) -> None:
        check_limit("latents", n_latents, "the feature activations")
        self.n_latents = n_latents
        self.n_chunks = 0
        self.signed = False
        self.gaps = np.zeros((n_latents, COARSE))
        self.levels = np.zeros((n_latents, COARSE))
        identity = np.arange(n_latents)
        self._layout = Layout(identity, np.zeros_like(identity), (n_latents,))

    def add(self, codes: Codes) -> None:
        """Add a chunk."""
        self.n_chunks += 1
        cells = self._layout.cells(codes)
        gaps, _ = gaps_of(cells, codes.n_rows, self._layout.class_start)
        np.add.at(self.gaps.reshape(-1), cells.column * COARSE + _COARSE_GAP[buckets.bucket_of(gaps)], 1.0)
        level = np.abs(cells.level).astype(np.int64) - 1
        np.add.at(self.levels.reshape(-1), cells.column * COARSE + _COARSE_LEVEL[buckets.bucket_of(level)], 1.0)
        self.signed = self.signed or bool(codes.nnz and codes.levels.min() < 0)


def fit_factorized(chunks: Iterable[Codes], statistics: LatentStatistics, *, signed: bool) -> FactorizedPrior:
    """The factorized prior that describes `chunks`, itself included, in few bits.

    chunks: is iterated once; statistics: those of the same chunks; signed: code signs.
    """
    overhead = _COUNT_BITS * statistics.n_chunks
    support = _by_rate(fit_classes(statistics.gaps, _COARSE_GAP, _SUPPORT_CANDIDATES, overhead), statistics.gaps)
    levels = fit_classes(statistics.levels, _COARSE_LEVEL, _LEVEL_CANDIDATES, 0.0)
    n_support, n_levels = int(support.max()) + 1, int(levels.max()) + 1
    layout = Layout(support, levels, (n_support,))
    gap_counts = np.zeros((n_support, buckets.N_BUCKETS))
    level_counts = np.zeros((n_levels, buckets.N_BUCKETS))
    for codes in chunks:
        cells = layout.cells(codes)
        latent = layout.latent_of[cells.column]
        gaps, _ = gaps_of(cells, codes.n_rows, layout.class_start)
        gap_counts += class_histogram(support[latent], gaps, n_support)
        level_counts += class_histogram(levels[latent], np.abs(cells.level).astype(np.int64) - 1, n_levels)
    return FactorizedPrior(
        fit_table_set(support, gap_counts), fit_table_set(levels, level_counts), _groups(gap_counts.sum(1)), signed
    )


def _by_rate(classes: NDArray[np.int64], histograms: NDArray[np.float64]) -> NDArray[np.int64]:
    """`classes` renumbered by the falling number of nonzeros per latent, so that groups hold alike latents.

    Latents that never fired say nothing about their class: they go to the rarest, where a nonzero is dear.
    """
    rate = class_sums(histograms, classes, int(classes.max()) + 1).sum(1) / np.bincount(classes)
    rank = np.empty(len(rate), np.int64)
    rank[np.argsort(-rate, kind="stable")] = np.arange(len(rate))
    fired = histograms.any(axis=1)
    ranked = np.where(fired, rank[classes], rank[classes[fired]].max() if fired.any() else 0)
    return np.asarray(np.unique(ranked, return_inverse=True)[1].reshape(-1), np.int64)


def _groups(counts: NDArray[np.float64]) -> tuple[int, ...]:
    """Sizes of runs of classes with about equal numbers of nonzeros, 16 or more where there are as many classes."""
    n_groups = min(_MIN_GROUPS, len(counts))
    middle = np.cumsum(counts) - counts / 2
    share = np.minimum((middle * (n_groups / max(counts.sum(), 1))).astype(np.int64), n_groups - 1)
    # Every group needs a class: no class may lie more groups ahead than there are classes before it, nor fewer behind.
    index = np.arange(len(counts))
    share = np.maximum.accumulate(np.clip(share, n_groups - (len(counts) - index), index))
    starts = np.unique(np.searchsorted(share, np.arange(n_groups)))
    return tuple(np.diff([*starts.tolist(), len(counts)]).tolist())
