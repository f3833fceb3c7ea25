"""Fitting a codec on feature activations that are there already, without an SAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.errors import InputError
from saecodec.latent_rows import LatentRows, as_features
from saecodec.latents import LatentCodec
from saecodec.priors.fit_factorized import LatentStatistics, fit_factorized
from saecodec.quantizer import CENTROID_LEVELS, CentroidStatistics, Quantizer, Step, quantize
from saecodec.store import Store
from saecodec.value_code import NO_DECODER, ExactStatistics, ValueCode

EXACT_STEP: Final = "0"
"""The step that keeps values as they are."""
_UNUSED_STEP: Final = 1.0  # what a file of exact values says

LatentChunks = Callable[[], Iterator[LatentRows]]
"""Gives the rows chunk by chunk; every call starts again."""


@dataclass(frozen=True)
class LatentGoal:
    """step: of the quantizer, relative to the rms of the nonzero values or absolute; None keeps values exactly."""

    step: Step | None

    @classmethod
    def of(cls, step: str | float | Step) -> LatentGoal:
        """From what a user gives: "0" or 0 is exact, others are steps (`Step.parse`)."""
        if not isinstance(step, Step):
            try:
                if float(step) == 0:
                    return cls(None)
            except ValueError:
                pass
        return cls(Step.parse(step))


def fit_latents(
    chunks: LatentChunks, n_latents: int, dtype: str, goal: LatentGoal, store: Store[Codes]
) -> tuple[Codec, ValueCode]:
    """Fit a codec on rows, and leave their codes, columns included, in `store`, which is empty before.

    The norms of the missing directions count as 1. chunks: is iterated twice. dtype: of the values. InputError names
    the first row that holds NaN or infinity when values are quantized, and says what cannot be kept exactly.
    """
    statistics, centroids = LatentStatistics(n_latents), CentroidStatistics(n_latents)
    norms = np.ones(n_latents)
    values, step = ValueCode(), _UNUSED_STEP
    if goal.step is None:
        exact = ExactStatistics(dtype)
        for rows in chunks():
            exact.add(rows.values)
        values = exact.value_code()
    else:
        step = goal.step.resolve(_rms(chunks()))
    for rows in chunks():
        if values.exact:
            codes = Codes(rows.indptr, rows.latents, values.levels(rows.values), n_latents)
        else:
            codes = quantize(as_features(rows), norms, step, centroids)
        codes = replace(codes, columns=rows.columns)
        statistics.add(codes)
        store.append(codes)
    prior = fit_factorized(store, statistics, signed=statistics.signed)
    classes = prior.level_class, prior.n_level_classes
    middle = np.zeros((classes[1], CENTROID_LEVELS), np.int64) if values.exact else centroids.centroids(*classes)
    return Codec(Quantizer(step, middle, prior.level_class), LatentCodec(prior), NO_DECODER), values


def _rms(chunks: Iterator[LatentRows]) -> float:
    """Root mean square of the nonzero values."""
    square, nnz, first = 0.0, 0, 0
    for rows in chunks:
        found = as_features(rows).values
        if not np.isfinite(found).all():
            bad = first + int(rows.rows()[np.flatnonzero(~np.isfinite(found))[0]])
            raise InputError(
                f"row {bad} holds NaN, infinity or a value beyond float32: a step cannot code it; --step 0 keeps "
                "16-bit values as they are, whatever they are"
            )
        exact = found.astype(np.float64)
        square, nnz, first = square + float(exact @ exact), nnz + int(np.count_nonzero(found)), first + rows.n_rows
    return float((square / max(nnz, 1)) ** 0.5)
