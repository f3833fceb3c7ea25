"""Thresholds and step after a training for rate: chosen by what a real codec's chunks take."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saecodec.costs import DEFAULT_SLOPE
from saecodec.encoder import Encoder
from saecodec.errors import InputError
from saecodec.fitting import fit_features
from saecodec.layers import Layers
from saecodec.nonlinearity import JumpReLU
from saecodec.quantizer import Step
from saecodec.sae import SAE
from saecodec.training import tuning
from saecodec.training.tuning import code, tune

F, D = 16, 40


def problem(n: int = 600) -> tuple[SAE, NDArray[np.float32]]:
    """Rows of few directions, and an SAE that has them, with thresholds that are too low."""
    draw = np.random.default_rng(0)
    w = np.linalg.qr(draw.normal(size=(D, F)))[0].T
    z = (draw.random((n, F)) < 0.12) * draw.uniform(0.2, 2, (n, F))
    x = (z @ w + 0.15 * draw.normal(size=(n, D))).astype(np.float32)
    w_dec = torch.from_numpy(w.astype(np.float32))
    encoder = Encoder(w_dec.t().contiguous(), torch.zeros(F), JumpReLU(torch.full((F,), 0.3)), True)
    return SAE(w_dec, torch.zeros(D), encoder, "jumprelu"), x


SAE_, X = problem()


def with_factor(factor: float) -> SAE:
    encoder = Encoder(SAE_.encoder.w_enc, SAE_.encoder.b_enc, JumpReLU(torch.full((F,), 0.3 * factor)), True)  # type: ignore[union-attr]
    return SAE(SAE_.w_dec, SAE_.b_dec, encoder, "jumprelu")


@pytest.mark.parametrize("step", [Step(0.3, False), Step(0.4, True), Step(2.0, True)])
def test_bits_and_error_are_those_of_a_packed_chunk_that_decodes(step: Step) -> None:
    found = code(SAE_, X, step)
    store: list = []  # type: ignore[type-arg]
    codec = fit_features(SAE_, [SAE_.features(X)], step, store)
    layers = Layers(store[0])
    packed = codec.pack(layers)  # without loss: tests/test_codec.py
    assert found.bits == 8 * (sum(map(len, packed)) + len(codec.table_frames())) / len(X)
    rows = codec.reconstruct(store[0])
    nmse = ((rows - X).astype(np.float64) ** 2).sum() / ((X - X.mean(0)).astype(np.float64) ** 2).sum()
    assert found.nmse == pytest.approx(nmse, rel=1e-5)
    assert found.step == codec.quantizer.step
    assert found.l0 == len(store[0].latents) / len(X)


@pytest.mark.parametrize("price", [0.002, 0.02, 0.2])
def test_no_factor_and_no_step_beside_the_chosen_ones_are_better(price: float) -> None:
    sae, found = tune(SAE_, X, price)
    torch.testing.assert_close(sae.encoder.nonlinearity.threshold, torch.full((F,), 0.3 * found.factor))  # type: ignore[union-attr]
    again = code(sae, X, Step(found.step, False))
    assert (again.bits, again.nmse) == pytest.approx((found.bits, found.nmse), rel=1e-6)
    assert found.error == pytest.approx(found.nmse * (X - X.mean(0)).astype(np.float64).var(0).sum(), rel=1e-5)
    least = found.error + price * found.bits
    for factor in tuning._FACTORS:
        there = code(with_factor(factor), X, Step(found.step, False))
        assert there.error + price * there.bits > 0.9999 * least, factor
    base = math.sqrt(price / DEFAULT_SLOPE)
    everywhere = [
        code(with_factor(factor), X, Step(base * share, False))
        for factor, share in itertools.product(tuning._FACTORS, tuning._STEPS)
    ]
    assert least < 1.03 * min(there.error + price * there.bits for there in everywhere)


def test_a_dearer_bit_leaves_fewer() -> None:
    points = [tune(SAE_, X, price)[1] for price in (0.002, 0.02, 0.2)]
    assert points[0].bits > points[1].bits > points[2].bits
    assert points[0].nmse < points[1].nmse < points[2].nmse


def test_there_have_to_be_rows() -> None:
    with pytest.raises(InputError, match="no held-out rows"):
        code(SAE_, X[:0], Step(0.3, False))


def test_an_sae_that_never_fires_is_coded_or_refused_in_words() -> None:
    silent = with_factor(1e6)
    try:
        found = code(silent, X, Step(0.3, False))
    except InputError:
        return
    assert found.l0 == 0
    assert found.nmse >= 1
