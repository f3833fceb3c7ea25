"""SAEBench's `mdl`, on the same activations, to stand beside the size of a real file.

Re-derived from SAEBench (Karvonen et al. 2025, arXiv 2503.09532), `sae_bench/evals/mdl/main.py`. Of each latent f, bins
of equal width over [0, max(100, largest activation)] make a histogram, and

    DL = sum_f H2(p_f) + p_f H(histogram of z_f, zeros included),    p_f = P(z_f > 0),

bits per row. Of several numbers of bins its `pick_minimum_viable` takes the smallest DL whose reconstruction from the
midpoints of bins has sqrt(MSE) / d below a threshold; its command reports them all. T rows, d values, F latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from saecodec.distortion import Distortion
from saecodec.errors import InputError
from saecodec.features import Features
from saecodec.sae import SAE

NUM_BINS: Final = (8, 16, 32, 64)
"""What its command tries."""
MSE_THRESHOLD: Final = 0.2
"""What its command lets sqrt(MSE) / d reach."""
_LEAST_MAX: Final = 100.0

Chunks = Callable[[], Iterable[tuple[NDArray[np.float32], Features]]]
"""Gives rows, float32 (n, d), and their feature activations, chunk by chunk; every call starts again."""


@dataclass(frozen=True)
class BinnedCode:
    """One number of bins. mdl_bits: DL, bits per row. nmse: of rows decoded from midpoints; None when the rows do not
    vary. rmse_over_width: sqrt(MSE) / d. within_threshold: whether SAEBench accepts that. first_bin: share of the
    positive activations that lie in the first bin, with the zeros."""

    num_bins: int
    mdl_bits: float
    nmse: float | None
    rmse_over_width: float
    within_threshold: bool
    first_bin: float


@dataclass(frozen=True)
class SAEBenchMDL:
    """chosen: the code with the least mdl_bits of those within the threshold, or of all where none is. codes: all, by
    number of bins. distortions: what the number does not count or gets wrong, a sentence each."""

    chosen: BinnedCode
    codes: tuple[BinnedCode, ...]
    n_rows: int
    distortions: tuple[str, ...]


def saebench_mdl(
    sae: SAE, chunks: Chunks, num_bins: Sequence[int] = NUM_BINS, threshold: float = MSE_THRESHOLD
) -> SAEBenchMDL:
    """SAEBench's `mdl` of an SAE's feature activations, and its distortion.

    chunks: is called twice, for the maxima and for the histograms. Memory is a chunk, and a count for each latent and
    bin. InputError without rows, or when a number of bins is below 1.
    """
    if not num_bins or min(num_bins) < 1:
        raise InputError(f"numbers of bins are at least 1, got {list(num_bins)}")
    units, top = _units(sae), np.full(sae.n_latents, _LEAST_MAX, np.float32)
    for _, features in chunks():
        np.maximum.at(top, features.latents, features.values * units[features.latents])
    binned, activity = [_Binned(sae, n, top, units) for n in sorted(set(num_bins))], _Activity(sae.n_latents)
    for x, features in chunks():
        z = features.values * units[features.latents]
        activity.add(features, z)
        for code in binned:
            code.add(x, features, z)
    if not activity.n_rows:
        raise InputError("there are no rows, so they have no description length")
    codes = tuple(code.result(activity, threshold) for code in binned)
    viable = [code for code in codes if code.within_threshold] or list(codes)
    chosen = min(viable, key=lambda code: code.mdl_bits)
    return SAEBenchMDL(chosen, codes, activity.n_rows, _distortions(sae, chosen, threshold, activity))


class _Activity:
    """How often each latent is positive, and how often negative, int64 (F,)."""

    def __init__(self, n_latents: int) -> None:
        self.n_rows = 0
        self.positive, self.negative = np.zeros(n_latents, np.int64), np.zeros(n_latents, np.int64)

    def add(self, features: Features, z: NDArray[np.float32]) -> None:
        self.n_rows += features.n_rows
        for counts, which in ((self.positive, z > 0), (self.negative, z < 0)):
            counts += np.bincount(features.latents[which], minlength=len(counts))


class _Binned:
    """Histograms of positive activations, and the rows that midpoints decode to."""

    def __init__(self, sae: SAE, num_bins: int, top: NDArray[np.float32], units: NDArray[np.float32]) -> None:
        self._num_bins, self._top = num_bins, top.astype(np.float64)
        self._counts = np.zeros((sae.n_latents, num_bins), np.int64)
        self._distortion = Distortion(sae.width)
        # A latent that is not active decodes to the first midpoint. All of them together are one constant row, and an
        # active latent adds what its own midpoint has more, so that z never has to be dense.
        self._first = self._midpoints(np.zeros(sae.n_latents, np.int64), np.arange(sae.n_latents))
        self._decoded_units = np.where(units > 0, units, np.float32(1))
        inactive = torch.from_numpy(self._first / self._decoded_units).to(sae.device)
        with torch.no_grad():
            self._decoder = replace(sae, b_dec=inactive @ sae.w_dec + sae.b_dec)

    def add(self, x: NDArray[np.float32], features: Features, z: NDArray[np.float32]) -> None:
        """Add rows and their activations z, float32 (K,), in the library's units."""
        latents = features.latents
        index = np.clip((z.astype(np.float64) * self._num_bins / self._top[latents]).astype(np.int64), 0, None)
        index -= z < self._edges(index, latents)
        index += z >= self._edges(index + 1, latents)
        index = np.clip(index, 0, self._num_bins - 1)
        positive = z > 0
        cells = latents[positive].astype(np.int64) * self._num_bins + index[positive]
        self._counts += np.bincount(cells, minlength=self._counts.size).reshape(self._counts.shape)
        # An edge belongs to the bin above it in the histogram, and to the bin below it in the reconstruction.
        below = np.maximum(index - (z == self._edges(index, latents)), 0)
        values = (self._midpoints(below, latents) - self._first[latents]) / self._decoded_units[latents]
        x_hat = self._decoder.rows(replace(features, values=values.astype(np.float32)))
        self._distortion.add(x, x_hat.cpu().numpy())

    def result(self, activity: _Activity, threshold: float) -> BinnedCode:
        """The description length and the distortion of what was added."""
        n_rows, first = activity.n_rows, int(self._counts[:, 0].sum())
        counts = self._counts.copy()
        counts[:, 0] += n_rows - activity.positive - activity.negative
        p = activity.positive / n_rows
        active = _entropy(np.stack([p, 1 - p], axis=1))
        values = _entropy(counts / np.maximum(counts.sum(1, keepdims=True), 1))
        width = self._decoder.width
        rmse = float(np.sqrt(self._distortion.squared_error / (n_rows * width))) / width
        share = first / max(int(activity.positive.sum()), 1)
        bits = float((active + p * values).sum())
        return BinnedCode(self._num_bins, bits, self._distortion.nmse, rmse, rmse < threshold, share)

    def _edges(self, index: NDArray[np.int64], latents: NDArray[np.integer]) -> NDArray[np.float32]:
        """Lower edges of bins, rounded to float32, in which values are compared with them."""
        return np.asarray(self._top[latents] * index / self._num_bins, np.float32)

    def _midpoints(self, index: NDArray[np.int64], latents: NDArray[np.integer]) -> NDArray[np.float32]:
        lower, upper = self._edges(index, latents), self._edges(index + 1, latents)
        return np.asarray(np.float32(0.5) * (lower + upper), np.float32)


def _units(sae: SAE) -> NDArray[np.float32]:
    """What multiplies feature activations into the units of the SAE's library (`SAE.encode`), float32 (F,)."""
    scale = None if sae.encoder is None else sae.encoder.scale
    return np.ones(sae.n_latents, np.float32) if scale is None else np.asarray(scale.cpu().numpy(), np.float32)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of each row of probabilities (F, n), bits, float64 (F,)."""
    return np.asarray((-p * np.log2(np.where(p > 0, p, 1))).sum(1))


def _distortions(sae: SAE, chosen: BinnedCode, threshold: float, activity: _Activity) -> tuple[str, ...]:
    nmse = "undefined" if chosen.nmse is None else f"{chosen.nmse:.4g}"
    passed = "passes" if chosen.within_threshold else "does not pass"
    said = [
        "It is a sum of entropies: no bytes are made, and neither the SAE nor the histograms and maxima that a decoder "
        "would need are counted.",
        f"The bins of every latent reach to {_LEAST_MAX:g} or further, whatever the scale of the activations: "
        f"{chosen.first_bin:.1%} of the positive ones lie in the first of {chosen.num_bins} bins, together with zero.",
        "The histogram of a latent has its zeros in it, and its entropy is still weighted by how often the latent is "
        "active: the values of a rarely active latent cost next to nothing.",
        "A bin decodes to its midpoint, the bin of zero too: every inactive latent decodes to the end of "
        f"its bins / {2 * chosen.num_bins}, and the NMSE of what is decoded is {nmse}.",
        "The limit on the distortion is on sqrt(MSE) / d, which depends on the scale and the width of the rows: an "
        f"NMSE of {nmse} {passed} at {threshold:g}.",
        "Latents are taken as independent of each other and of the rows before.",
        "SAEBench takes maxima, error and description length from different rows; here all three are of the same.",
    ]
    if sae.normalization != "none":
        said.append(f"The SAE normalizes rows ({sae.normalization}); what undoes that is not counted.")
    if activity.negative.any():
        said.append("Negative activations count as inactive, are left out of histograms and decode as zero does.")
    return tuple(said)
