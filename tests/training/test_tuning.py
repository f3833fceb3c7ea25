"""Thresholds and step after a training for rate: chosen by what a real codec's chunks take."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saecodec.encoder import Encoder
from saecodec.errors import InputError
from saecodec.fitting import fit_features
from saecodec.layers import Layers
from saecodec.nonlinearity import JumpReLU
from saecodec.quantizer import Step
from saecodec.sae import SAE
from saecodec.training import Aim, tuning
from saecodec.training.tuning import Coded, code, tune

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


@pytest.mark.parametrize("aim", [Aim("nmse", 0.35), Aim("nmse", 0.5), Aim("bits", 9), Aim("bits", 20)], ids=str)
def test_the_aim_is_met_and_no_factor_of_a_grid_is_better(aim: Aim) -> None:
    sae, found = tune(SAE_, X, aim)
    reached, other = (found.nmse, found.bits) if aim.kind == "nmse" else (found.bits, found.nmse)
    assert 0.9 * aim.value < reached <= 1.02 * aim.value
    torch.testing.assert_close(sae.encoder.nonlinearity.threshold, torch.full((F,), 0.3 * found.factor))  # type: ignore[union-attr]
    again = code(sae, X, Step(found.step, False))
    assert (again.bits, again.nmse) == pytest.approx((found.bits, found.nmse), rel=1e-6)
    for factor, step in itertools.product(tuning._FACTORS, np.geomspace(0.05, 2.5, 12)):
        there = code(with_factor(factor), X, Step(float(step), True))
        one, two = (there.nmse, there.bits) if aim.kind == "nmse" else (there.bits, there.nmse)
        assert one > aim.value or two > 0.97 * other, (factor, step)


@pytest.mark.parametrize("aim", [Aim("nmse", 1e-6), Aim("bits", 0.01)], ids=str)
def test_an_aim_that_is_out_of_reach_is_come_as_near_to_as_can_be(aim: Aim) -> None:
    _, found = tune(SAE_, X, aim)
    ends = [code(with_factor(factor), X, Step(0.05 if aim.kind == "nmse" else 2.5, True)) for factor in tuning._FACTORS]
    nearest = min(of.nmse if aim.kind == "nmse" else of.bits for of in ends)
    assert (found.nmse if aim.kind == "nmse" else found.bits) == pytest.approx(nearest)


def test_factors_that_miss_come_last_and_the_nearest_of_them_first() -> None:
    aim = Aim("nmse", 0.2)
    points = [Coded(1, 1, bits, nmse, 1) for bits, nmse in [(10, 0.19), (12, 0.2), (5, 0.3), (1, 0.5), (9, math.inf)]]
    assert [point.bits for point in sorted(points, key=lambda point: tuning._order(point, aim))] == [10, 12, 5, 1, 9]


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
