"""After a training for rate: thresholds and step, chosen on held-out rows with the real coder.

All thresholds are multiplied by one factor. Factor and step are looked for by coordinates, factors, steps, then factors
again, for the least distortion + price x bits, where the price of a bit is the training's last.
What is measured is a fitted codec's chunk with its tables, not an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes
from saecodec.costs import DEFAULT_SLOPE
from saecodec.distortion import Distortion
from saecodec.encoder import Encoder
from saecodec.errors import InputError
from saecodec.features import Features
from saecodec.fitting import fit_features
from saecodec.layers import Layers
from saecodec.nonlinearity import JumpReLU
from saecodec.quantizer import Step
from saecodec.sae import SAE

_FACTORS: Final = tuple(2 ** (k / 4) for k in range(-3, 5))
_STEPS: Final = tuple(2 ** (k / 2) for k in range(-4, 3))
"""Of the step that a search would have at the price; the SAE's own activations like finer ones."""


@dataclass(frozen=True, eq=False)
class Coded:
    """Held-out rows, coded. factor: of thresholds. step: absolute. bits: a row, tables included. error: squared, a row.
    nmse: of what decodes. l0: a row, after rounding."""

    factor: float
    step: float
    bits: float
    error: float
    nmse: float
    l0: float


def tune(sae: SAE, x: NDArray[np.float32], price: float) -> tuple[SAE, Coded]:
    """The SAE with its thresholds multiplied by the best factor, and x coded with it at the best step.

    x: float32 (H, d), H > 0. price: squared error that a bit may cost, positive. Factors are tried at the step of a
    search, then steps at the best factor, then factors at the best step.
    """
    encoder = sae.encoder
    assert isinstance(encoder, Encoder)
    jumprelu = encoder.nonlinearity
    assert isinstance(jumprelu, JumpReLU)

    def with_factor(factor: float) -> SAE:
        return replace(sae, encoder=replace(encoder, nonlinearity=JumpReLU(jumprelu.threshold * factor)))

    features = {factor: with_factor(factor).features(x) for factor in _FACTORS}
    searched = math.sqrt(price / DEFAULT_SLOPE)

    def at(factor: float, step: float) -> Coded:
        return code(sae, x, Step(step, False), features[factor], factor)

    def best(found: Iterable[Coded]) -> Coded:
        return min(found, key=lambda coded: coded.error + price * coded.bits)

    chosen = best(at(factor, searched) for factor in _FACTORS)
    chosen = best(at(chosen.factor, searched * share) for share in _STEPS)
    chosen = best(at(factor, chosen.step) for factor in _FACTORS)
    return with_factor(chosen.factor), chosen


def code(sae: SAE, x: NDArray[np.float32], step: Step, features: Features | None = None, factor: float = 1.0) -> Coded:
    """What the SAE's own activations of rows cost at a step, and what they leave; InputError without rows.

    features: of the rows, where they are at hand. factor: of the thresholds that they are of, which is only told.
    """
    if not len(x):
        raise InputError("there are no held-out rows to code")
    features = sae.features(x) if features is None else features
    store: list[Codes] = []
    codec = fit_features(sae, [features], step, store)
    (codes,) = store
    distortion = Distortion(sae.width)
    distortion.add(x, codec.reconstruct(codes))
    n_bytes = sum(map(len, codec.pack(Layers(codes)))) + len(codec.table_frames())
    nmse = distortion.nmse
    return Coded(
        factor,
        codec.quantizer.step,
        8 * n_bytes / len(x),
        distortion.squared_error / len(x),
        math.inf if nmse is None else nmse,
        len(codes.latents) / len(x),
    )
