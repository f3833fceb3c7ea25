"""After a training for rate: thresholds and step, chosen on held-out rows with the real coder.

All thresholds are multiplied by one factor. For each, the step is found that meets the aim, by bisection; the factor
that comes out best there is taken. What is measured is a fitted codec's chunk with its tables, not an estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes
from saecodec.distortion import Distortion
from saecodec.encoder import Encoder
from saecodec.errors import InputError
from saecodec.features import Features
from saecodec.fitting import fit_features
from saecodec.layers import Layers
from saecodec.nonlinearity import JumpReLU
from saecodec.quantizer import Step
from saecodec.sae import SAE
from saecodec.training.settings import Aim

_FACTORS: Final = tuple(2 ** (k / 4) for k in range(-3, 5))
_BISECTIONS: Final = 7
_FINEST: Final = 0.05  # of the activations' rms
_COARSEST: Final = 2.5


@dataclass(frozen=True, eq=False)
class Coded:
    """Held-out rows, coded. factor: of thresholds. step: absolute. bits: a row, tables included. nmse: of what decodes.
    l0: a row, after rounding."""

    factor: float
    step: float
    bits: float
    nmse: float
    l0: float


def code(sae: SAE, x: NDArray[np.float32], step: Step, factor: float = 1.0) -> Coded:
    """What the SAE's own activations of rows cost at a step, and what they leave; InputError without rows."""
    return _code(sae, x, sae.features(x), step, factor)


def tune(sae: SAE, x: NDArray[np.float32], aim: Aim) -> tuple[SAE, Coded]:
    """The SAE with its thresholds multiplied by the best factor, and the point that meets the aim with it.

    x: float32 (H, d). aim: of kind "nmse" or "bits". Where it is out of reach of all factors, what comes nearest.
    """
    encoder = sae.encoder
    assert isinstance(encoder, Encoder)
    jumprelu = encoder.nonlinearity
    assert isinstance(jumprelu, JumpReLU)

    def with_factor(factor: float) -> SAE:
        return replace(sae, encoder=replace(encoder, nonlinearity=JumpReLU(jumprelu.threshold * factor)))

    found = []
    for factor in _FACTORS:
        features = with_factor(factor).features(x)
        found.append(_meeting(lambda s, f=features, k=factor: _code(sae, x, f, Step(s, True), k), aim))  # type: ignore[misc]
    best = min(found, key=lambda coded: _order(coded, aim))
    return with_factor(best.factor), best


def _order(coded: Coded, aim: Aim) -> tuple[float, float]:
    """Those that miss the aim come last, the nearest first; then the fewest bits, or the least error."""
    reached, other = (coded.nmse, coded.bits) if aim.kind == "nmse" else (coded.bits, coded.nmse)
    return max(0.0, reached / aim.value - 1.02), other


def _meeting(at_step: Callable[[float], Coded], aim: Aim) -> Coded:
    """The point whose step, relative to the rms, meets the aim; at an end of the range where none does."""
    low, high = math.log(_FINEST), math.log(_COARSEST)
    best = at_step(math.exp(low if aim.kind == "nmse" else high))
    if (best.nmse if aim.kind == "nmse" else best.bits) > aim.value:
        return best
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        coded = at_step(math.exp(middle))
        met = (coded.nmse if aim.kind == "nmse" else coded.bits) <= aim.value
        if met:
            best = coded
        if met == (aim.kind == "nmse"):
            low = middle  # coarser still meets an NMSE
        else:
            high = middle
    return best


def _code(sae: SAE, x: NDArray[np.float32], features: Features, step: Step, factor: float) -> Coded:
    if not len(x):
        raise InputError("there are no held-out rows to code")
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
        math.inf if nmse is None else nmse,
        len(codes.latents) / len(x),
    )
