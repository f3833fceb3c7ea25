"""Fitting table sets: classes by the shape of their members' histograms, and tables at the resolution that pays.

The members of a family are latents, or components of a transform.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.classes import assign, choose, class_sums, code_lengths, refine, smoothed
from saecodec.integers import pack_ints
from saecodec.rangecoder import TOTAL
from saecodec.table_set import TableSet
from saecodec.tables import expand, quantize

COARSE: Final = 32
"""Symbols of the histograms that classes are fitted on."""
_MORE_ROUNDS: Final = 5
_ENTRY_BITS: Final = 3.3  # an entry of a table, as measured on tables of real gaps
_RESOLUTIONS: Final = (0, 1, 2)
_CLASS_CANDIDATES: Final = [1, 2, 4, 8, 16, 32, 64, 128, 256]


def coarse_symbols(n_direct: int) -> NDArray[np.int64]:
    """Bucket -> coarse symbol, int64 (304,): two an octave from `n_direct` on."""
    exact = np.minimum(np.arange(buckets.DIRECT), n_direct)
    base = np.maximum(buckets.BASE, 1).astype(np.float64)
    halves = np.floor(2 * np.log2(base / n_direct)).astype(np.int64)
    out = np.where(
        np.arange(buckets.N_BUCKETS) < n_direct, np.pad(exact, (0, buckets.N_BUCKETS - 16)), n_direct + halves
    )
    return np.minimum(out, COARSE - 1)


def fit_classes(
    histograms: NDArray[np.float64], coarse: NDArray[np.int64], candidates: list[int], overhead: float
) -> NDArray[np.int64]:
    """Classes of F members (F,) with the shortest description, from histograms over coarse symbols (F, 32).

    coarse: bucket -> coarse symbol. overhead: bits that a class costs beside its table.
    """
    width = np.bincount(coarse, minlength=COARSE)  # no more buckets than these, or than counts, are in a table
    count = histograms.sum(1)
    mean = histograms @ np.arange(histograms.shape[1]) / np.maximum(count, 1)
    order = np.lexsort((count, mean))

    def bits(classes: NDArray[np.int64]) -> float:
        n_classes = int(classes.max()) + 1
        counts = class_sums(histograms, classes, n_classes)
        members = np.bincount(classes, minlength=n_classes)
        entries = np.minimum(counts, width).sum()
        names = (code_lengths(members.astype(np.float64)) * members).sum()
        data = (code_lengths(smoothed(counts)) * counts).sum()
        return float(data + names + _ENTRY_BITS * entries + overhead * n_classes)

    # Two rounds tell which number of classes is best; only that one is worth more.
    return refine(histograms, choose(candidates, lambda n: assign(histograms, n, order, 2), bits), _MORE_ROUNDS)


def class_histogram(classes: NDArray[np.int64], values: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """How often each bucket occurs among the values of each class, int64 (C, 304)."""
    flat = np.bincount(classes * buckets.N_BUCKETS + buckets.bucket_of(values), minlength=n_classes * buckets.N_BUCKETS)
    return flat.reshape(n_classes, buckets.N_BUCKETS)


def fit_table_set(classes: NDArray[np.int64], counts: NDArray[np.float64]) -> TableSet:
    """Tables of counts (C, A), at the resolution that makes tables plus data shortest."""
    used = max(2, int(np.flatnonzero(counts.sum(0))[-1]) + 1) if counts.any() else 2
    kept = counts[:, :used]
    shapes = smoothed(kept)
    best, least = None, float("inf")
    for resolution in _RESOLUTIONS:
        codes = quantize(shapes, resolution)
        bits = -(kept * np.log2(expand(codes, resolution) / TOTAL)).sum()
        bits += 8 * len(pack_ints(np.abs(np.diff(codes, axis=1, prepend=0)).ravel()))
        if bits < least:
            best, least = TableSet(classes, codes, resolution), bits
    assert best is not None
    return best


def fit_matrix(counts: NDArray[np.float64]) -> TableSet:
    """Classes of the columns of integer matrices, and tables, from the counts of each column's buckets, (M, 304)."""
    symbols, coarse = coarse_symbols(buckets.DIRECT), np.zeros((len(counts), COARSE))
    np.add.at(coarse.T, symbols, counts.T)
    classes = fit_classes(coarse, symbols, _CLASS_CANDIDATES, 0.0)
    of_classes = np.zeros((int(classes.max()) + 1, buckets.N_BUCKETS))
    np.add.at(of_classes, classes, counts)
    return fit_table_set(classes, of_classes)
