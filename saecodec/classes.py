"""Classes of latents that share a table: the assignment that makes tables plus data short.

Each latent has a histogram over symbols. A class codes the symbols of its latents under one table, so the best
assignment is a mixture of histograms fitted by hard expectation-maximisation (Lloyd's algorithm with code length as
the distance): assign each latent to the class whose table codes it in the fewest bits, name included; refit; repeat.
The number of classes is the one with the smallest total description length, tables included.

Everything here is the encoder's choice; the format stores the result. Code lengths are rounded to 2^-10 bit so that
the sums are exact in float64: the assignment then does not depend on the order of a matrix product's summation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_COST_UNIT = 1024.0  # code lengths are multiples of 1/1024 bit
_ROUNDS = 6  # two more save 0.01 % of a file

_BLOCK = 1 << 15  # latents that are looked at together

Tables = NDArray[np.float64]


def code_lengths(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bits of each symbol under tables of (unnormalised) weights (..., A), rounded to exact multiples of 2^-10."""
    p = weights / weights.sum(-1, keepdims=True)
    return np.asarray(np.rint(-np.log2(p) * _COST_UNIT) / _COST_UNIT)


def smoothed(counts: NDArray[np.float64], strength: float = 2.0) -> Tables:
    """Counts (C, A) backed off to the tables' common shape: every symbol keeps some probability.

    The common shape is the sum of the counts, blurred over neighbouring symbols so that it has no holes; it counts as
    `strength` observations in each class.
    """
    total = counts.sum(0)
    edges = np.concatenate([total[:1], total[:1], total, total[-1:], total[-1:]])
    blurred = np.convolve(edges, [0.1, 0.2, 0.4, 0.2, 0.1], mode="valid") + 0.05
    shape = total + blurred
    return np.asarray(counts + strength * shape / shape.sum())


def assign(
    histograms: NDArray[np.float64], n_classes: int, order: NDArray[np.int64], rounds: int = _ROUNDS
) -> NDArray[np.int64]:
    """Classes of latents, int64 (F,), numbered 0..C-1 without gaps (C <= n_classes).

    histograms: float64 (F, A) of whole numbers; order: the latents (F,) sorted so that neighbours are alike, which is
    where the first assignment comes from (equal shares of the square roots of the latents' counts).
    """
    weight = np.cumsum(np.sqrt(histograms.sum(1)[order]) + 1e-3)
    classes = np.empty(len(histograms), np.int64)
    classes[order] = np.minimum((weight * (n_classes / weight[-1])).astype(np.int64), n_classes - 1)
    return refine(histograms, classes, rounds)


def refine(histograms: NDArray[np.float64], classes: NDArray[np.int64], rounds: int) -> NDArray[np.int64]:
    """Better classes than `classes`, at most as many, numbered without gaps: some rounds of assigning and refitting."""
    for _ in range(rounds):
        n_classes = int(classes.max()) + 1
        lengths = code_lengths(smoothed(class_sums(histograms, classes, n_classes)))
        name = code_lengths(np.bincount(classes, minlength=n_classes).astype(np.float64) + 0.5)
        blocks = (histograms[i : i + _BLOCK] @ lengths.T + name for i in range(0, len(histograms), _BLOCK))
        new = np.concatenate([np.argmin(bits, axis=1) for bits in blocks])
        if np.array_equal(new, classes):
            break
        classes = new
    return np.asarray(np.unique(classes, return_inverse=True)[1].reshape(-1), dtype=np.int64)


def class_sums(values: NDArray[np.float64], classes: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """Sums of the latents' rows of `values` (F, A) by class: (C, A)."""
    width = values.shape[1]
    out = np.zeros(n_classes * width)
    for i in range(0, len(values), _BLOCK):
        cell = (classes[i : i + _BLOCK, None] * width + np.arange(width)).ravel()
        out += np.bincount(cell, weights=values[i : i + _BLOCK].ravel(), minlength=out.size)
    return out.reshape(n_classes, width)


def choose(
    candidates: list[int], fit: Callable[[int], NDArray[np.int64]], bits: Callable[[NDArray[np.int64]], float]
) -> NDArray[np.int64]:
    """The classes `fit(n)` with the smallest `bits`, over ascending `candidates`; stops after the first rise."""
    best = fit(candidates[0])
    least = bits(best)
    for n in candidates[1:]:
        classes = fit(n)
        total = bits(classes)
        if total >= least:
            break
        best, least = classes, total
    return best
