"""The quantizer: feature activations <-> integer levels.

Latent f contributes z_f d_f to the reconstruction, so what is quantized is its length |z_f| |d_f|, with one step for
all latents: level = floor(|z_f| |d_f| / step + 1/2), 0 meaning inactive. On the way back a level q stands for the
length (q + c / 256) step, where the centroid c is the mean rounding error of the level class and level, an integer.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import MAX_LEVEL, Codes
from saecodec.errors import FormatError, InputError
from saecodec.features import Features
from saecodec.integers import pack_ints, unpack_ints, unzigzag, zigzag
from saecodec.wire import ByteReader

CENTROID_UNIT: Final = 256
CENTROID_LEVELS: Final = 16  # larger levels are so fine that their mean error is nothing
_MIN_COUNT: Final = 4  # a centroid of fewer activations is noise


@dataclass(frozen=True)
class Step:
    """A quantization step: absolute, or relative to the rms of |z_f| |d_f| over the nonzeros of the fitted rows.

    >>> Step.parse("0.4rms"), Step.parse("0.05")
    (Step(value=0.4, relative=True), Step(value=0.05, relative=False))
    """

    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str | float | Step) -> Step:
        """From a number (absolute) or a string such as "0.4rms"; InputError when it is neither, or not positive."""
        if isinstance(text, Step):
            return text
        match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(rms)?\s*", str(text))
        try:
            value = float(match[1]) if match else math.nan
        except ValueError:
            value = math.nan
        if not (match and 0 < value < math.inf):
            raise InputError(f"a step is a positive number, or one followed by 'rms' such as 0.4rms; got {text!r}")
        return cls(value, bool(match[2]))

    def resolve(self, rms: float) -> float:
        """The absolute step. `rms`: of |z_f| |d_f| over the nonzeros; 0 (nothing is active) makes any step do."""
        return self.value * (rms or 1.0) if self.relative else self.value


@dataclass(frozen=True, eq=False)
class Quantizer:
    """step: > 0. centroids: int64 (C, 16), in 1/256 step, of levels 1..16. latent_class: int64 (F,) in [0, C)."""

    step: float
    centroids: NDArray[np.int64]
    latent_class: NDArray[np.int64]

    @cached_property
    def offsets(self) -> NDArray[np.float32]:
        """What is added to a level, in steps, float32 (C, 18): columns 0 and 17 (larger levels) are zero."""
        return np.asarray(np.pad(self.centroids, ((0, 0), (1, 1))) / CENTROID_UNIT, np.float32)

    def dequantize(self, codes: Codes, norms: NDArray[np.float64]) -> Features:
        """The feature activations that levels stand for. norms: |d_f|, float64 (F,), nonzero for every coded latent."""
        with np.errstate(divide="ignore", over="ignore"):
            scale = (self.step / norms).astype(np.float32)
        magnitude = np.abs(codes.levels)
        latents = codes.latents.astype(np.intp)  # numpy would convert them at every use
        cell = self.latent_class[latents] * (CENTROID_LEVELS + 2) + np.minimum(magnitude, CENTROID_LEVELS + 1)
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.asarray((magnitude + self.offsets.reshape(-1)[cell]) * scale[latents], np.float32)
        if not np.isfinite(values).all():
            raise FormatError("a level stands for no float32: its latent's direction is zero, or the step is too large")
        if len(values) and codes.levels.min() < 0:
            values = np.copysign(values, codes.levels.astype(np.float32))
        return Features(codes.indptr, codes.latents, values)

    def to_bytes(self) -> bytes:
        """Step and centroids; the class of each latent is the prior's level class."""
        return struct.pack("<d", self.step) + pack_ints(zigzag(self.centroids.ravel()))

    @classmethod
    def read(cls, reader: ByteReader, latent_class: NDArray[np.int64], n_classes: int) -> Quantizer:
        """Read what `to_bytes` wrote for the level classes of a prior, int64 (F,) in [0, n_classes)."""
        (step,) = struct.unpack("<d", reader.take(8))
        if not 0 < step < math.inf:
            raise FormatError(f"{reader.what}: the step is {step}")
        packed = unpack_ints(reader, n_classes * CENTROID_LEVELS, below=CENTROID_UNIT)
        return cls(step, unzigzag(packed).reshape(n_classes, CENTROID_LEVELS), latent_class)


def quantize(
    features: Features, norms: NDArray[np.float64], step: float, statistics: CentroidStatistics | None = None
) -> Codes:
    """The codes of feature activations: level = floor(|z_f| |d_f| / step + 1/2).

    norms: |d_f|, float64 (F,); a latent of norm 0 is never coded. statistics: takes the rounding errors. InputError
    when a level would exceed 2^20.
    """
    magnitude, steps = _levels(features, norms, step)
    if statistics is not None:
        statistics.add(features.latents, magnitude, steps - magnitude)
    levels = magnitude.astype(np.int32)
    if len(levels) and features.values.min() < 0:
        levels = np.where(features.values < 0, -levels, levels)
    indptr, latents = features.indptr, features.latents
    if not levels.all():
        kept = np.flatnonzero(levels)
        indptr, latents, levels = np.searchsorted(kept, indptr).astype(np.int64), latents[kept], levels[kept]
    return Codes(indptr, latents, levels, len(norms))


def _levels(
    features: Features, norms: NDArray[np.float64], step: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """|level| of each activation and the length it stands for in steps, float64 (K,) each."""
    length = np.abs(features.values) * norms.take(features.latents)
    with np.errstate(over="ignore"):
        steps = length / step
    magnitude = np.floor(steps + 0.5)
    if len(magnitude) and not magnitude.max() <= MAX_LEVEL:
        largest = float(length.max())
        raise InputError(
            f"step {step:g} is too small: an activation of length {largest:g} would need a level above 2^20; "
            f"use a step of at least {1.01 * largest / MAX_LEVEL:.3g}"
        )
    return magnitude, steps


class CentroidStatistics:
    """Sums of rounding errors by latent and level, from which centroids are made once the level classes are known."""

    def __init__(self, n_latents: int) -> None:
        self._shape = (n_latents, CENTROID_LEVELS + 1)
        self._error = np.zeros(n_latents * (CENTROID_LEVELS + 1))
        self._count = np.zeros(n_latents * (CENTROID_LEVELS + 1))

    def add(self, latents: NDArray[np.int32], magnitude: NDArray[np.float64], error: NDArray[np.float64]) -> None:
        """Add activations: latent, |level| and rounding error in steps of each."""
        level = np.where(magnitude <= CENTROID_LEVELS, magnitude, 0).astype(np.int64)  # level 0 is not looked at
        cell = latents.astype(np.int64) * (CENTROID_LEVELS + 1) + level
        np.add.at(self._error, cell, error)
        np.add.at(self._count, cell, 1.0)

    def centroids(self, latent_class: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
        """Centroids of the level classes in 1/256 step, int64 (C, 16)."""
        error, count = np.zeros((n_classes, self._shape[1])), np.zeros((n_classes, self._shape[1]))
        np.add.at(error, latent_class, self._error.reshape(self._shape))
        np.add.at(count, latent_class, self._count.reshape(self._shape))
        mean = np.where(count >= _MIN_COUNT, error / np.maximum(count, 1), 0)
        units = np.clip(np.rint(mean[:, 1:] * CENTROID_UNIT), -CENTROID_UNIT // 2, CENTROID_UNIT // 2 - 1)
        return np.asarray(units, np.int64)
