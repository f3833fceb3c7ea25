"""Encoders: matching pursuit is its plain loop, gated linear units and half precision are as the libraries compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.encoder import Encoder, MatchingPursuit, encoder_of
from saecodec.errors import CheckpointError, InputError
from saecodec.nonlinearity import ReLU, TopK
from saecodec.sae import SAE

D, F = 5, 12
Array = NDArray[np.float64]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def directions(seed: int, n: int = F) -> torch.Tensor:
    return torch.nn.functional.normalize(normal(n, D, seed=seed), dim=1)


def dense(found: tuple[torch.Tensor, torch.Tensor], n_rows: int, n_latents: int = F) -> torch.Tensor:
    index, values = found
    assert (index.dtype, values.dtype) == (torch.int64, torch.float32)
    assert (index.diff() > 0).all()
    z = torch.zeros(n_rows * n_latents)
    z[index] = values
    return z.reshape(n_rows, n_latents)


# -- matching pursuit --------------------------------------------------------------------------------------------------


def pursued(x: Array, w: Array, pursuit: MatchingPursuit) -> Array:
    """SAELens' loop of a row, written plainly."""
    z, left = np.zeros(len(w)), x.copy()
    for _ in range(pursuit.max_iterations):
        products = np.maximum(w @ left, 0)
        latent = int(products.argmax())
        known = z[latent] != 0
        z[latent] += products[latent]
        left = left - products[latent] * w[latent]
        if pursuit.stop_on_duplicate_support and (known or products[latent] == 0):
            break
        if np.linalg.norm(left) < pursuit.residual_threshold:
            break
    return z


@given(
    st.integers(1, 9),
    st.sampled_from([0.0, 0.01, 0.5, 1.5, 100.0]),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_matching_pursuit_is_the_plain_loop(
    steps: int, threshold: float, stop: bool, subtract: bool, seed: int
) -> None:
    pursuit = MatchingPursuit(steps, threshold, stop, subtract)
    w, x, b = directions(seed), normal(20, D, seed=seed + 1), normal(D, seed=seed + 2)
    z = dense(pursuit.active(x, w, b), 20)
    u = (x - b if subtract else x).double().numpy()
    expected = np.stack([pursued(row, w.double().numpy(), pursuit) for row in u])
    np.testing.assert_allclose(z, expected, atol=1e-4)


def test_at_most_max_iterations_latents_are_active() -> None:
    for steps in (1, 3):
        z = dense(
            MatchingPursuit(steps, 0.0, False, False).active(normal(50, D, seed=1), directions(2), torch.zeros(D)), 50
        )
        assert int((z > 0).sum(1).max()) == steps


def test_what_is_left_is_below_the_threshold_or_all_steps_are_done() -> None:
    x, w = normal(50, D, seed=3), directions(4, 40)
    z = dense(MatchingPursuit(200, 0.05, False, False).active(x, w, torch.zeros(D)), 50, 40)
    assert float((x - z @ w).norm(dim=1).max()) < 0.05


def test_a_row_stops_after_the_step_that_adds_no_latent() -> None:
    """A direction of norm 1/2 takes a quarter of what is left away, so it is chosen again and again."""
    w, x, b = torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.zeros(2)
    assert dense(MatchingPursuit(100, 0.0, True, False).active(x, w, b), 1, 1).item() == 0.5 + 0.5 * 0.75
    assert dense(MatchingPursuit(100, 0.0, False, False).active(x, w, b), 1, 1).item() == pytest.approx(2)
    assert dense(MatchingPursuit(100, 0.7, False, False).active(x, w, b), 1, 1).item() == 0.5 + 0.5 * 0.75


def test_steps_without_end_end_where_nothing_changes() -> None:
    z = dense(MatchingPursuit(1 << 40, 0.0, False, False).active(torch.ones(2, 3), torch.eye(3), torch.zeros(3)), 2, 3)
    assert z.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_rows_do_not_change_and_nothing_correlates_with_what_points_away() -> None:
    x = -directions(5)[:1]
    before = x.clone()
    z = dense(MatchingPursuit(9, 0.0, True, False).active(x, -x, torch.zeros(D)), 1, 1)
    assert not z.any()
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_matching_pursuit_in_half_precision_is_close_and_says_when_it_overflows(dtype: str) -> None:
    x, w, b = normal(20, D, seed=6), directions(7), torch.zeros(D)
    exact = dense(MatchingPursuit(3, 0.0, False, False).active(x, w, b), 20)
    half = dense(MatchingPursuit(3, 0.0, False, False, dtype).active(x, w, b), 20)
    assert float((exact @ w - half @ w).abs().max()) < 0.1
    if dtype == "float16":
        with pytest.raises(InputError, match="row 0 of a batch overflows"):
            MatchingPursuit(3, 0.0, False, False, dtype).active(x * 1e5, w, b)


def test_what_a_search_considers_are_the_products_with_all_directions() -> None:
    x, w, b = normal(6, D, seed=8), directions(9), normal(D, seed=10)
    pursuit = MatchingPursuit(3, 0.0, True, True)
    torch.testing.assert_close(pursuit.magnitudes(x, w, b), (x - b) @ w.T)


# -- one linear map ----------------------------------------------------------------------------------------------------

GLU = Encoder(
    normal(D, F, seed=11), normal(F, seed=12), ReLU(), True, w_glu=normal(D, F, seed=13), b_glu=normal(F, seed=14)
)
B_DEC = normal(D, seed=15)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 1e-2), (torch.bfloat16, 1e-1)])
@pytest.mark.parametrize("subtract", [True, False])
def test_a_gated_linear_unit_multiplies_preactivations(dtype: torch.dtype, tolerance: float, subtract: bool) -> None:
    assert GLU.w_glu is not None
    assert GLU.b_glu is not None
    x = normal(30, D, seed=16)
    u = (x - B_DEC if subtract else x).double()
    h = (u @ GLU.w_enc.double() + GLU.b_enc) * torch.sigmoid(u @ GLU.w_glu.double() + GLU.b_glu)
    held = {name: getattr(GLU, name).to(dtype) for name in ("w_enc", "b_enc", "w_glu", "b_glu")}
    encoder = replace(GLU, apply_b_dec_to_input=subtract, **held)
    z = dense(encoder.active(x, directions(17), B_DEC), 30)
    torch.testing.assert_close(z, h.relu().float(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(encoder.magnitudes(x, directions(17), B_DEC), h.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_multiplies_and_adds_in_it(dtype: torch.dtype) -> None:
    encoder = Encoder(GLU.w_enc.to(dtype), GLU.b_enc.to(dtype), TopK(4), True)
    x = normal(30, D, seed=18)
    h = ((x.to(dtype) - B_DEC.to(dtype)) @ GLU.w_enc.to(dtype) + GLU.b_enc.to(dtype)).float()
    chosen = h.topk(4, dim=1)
    expected = torch.zeros_like(h).scatter(1, chosen.indices, chosen.values.relu())
    torch.testing.assert_close(dense(encoder.active(x, directions(17), B_DEC), 30), expected, rtol=0, atol=0)


def test_a_row_that_half_precision_cannot_hold_is_named() -> None:
    encoder = Encoder(GLU.w_enc.half(), GLU.b_enc.half(), ReLU(), False)
    x = normal(4, D, seed=19)
    x[2] *= 1e5
    with pytest.raises(InputError, match=r"row 2 of a batch overflows torch\.float16.*scale the rows down"):
        encoder.active(x, directions(17), B_DEC)


# -- again from config and tensors -------------------------------------------------------------------------------------

PURSUIT = MatchingPursuit(7, 0.25, True, False, "bfloat16")


@pytest.mark.parametrize(
    "encoder",
    [GLU, replace(GLU, w_enc=GLU.w_enc.half(), b_enc=GLU.b_enc.half(), w_glu=None, b_glu=None), PURSUIT],
    ids=["glu", "float16", "pursuit"],
)
def test_config_and_tensors_make_an_encoder_again(encoder: Any) -> None:
    held = {name: value.float() for name, value in encoder.tensors().items()}
    again = encoder_of(encoder.config(), held, "tiny")
    assert again is not None
    assert again.config() == encoder.config()
    x = normal(9, D, seed=20)
    for one, other in zip(
        again.active(x, directions(21), B_DEC), encoder.active(x, directions(21), B_DEC), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert encoder.to(torch.device("cpu")).config() == encoder.config()


def test_the_decoder_alone_makes_no_encoder() -> None:
    assert encoder_of({}, {"w_dec": directions(0)}, "tiny") is None


@pytest.mark.parametrize(
    "change, told",
    [
        ({"max_iterations": 0}, "matching pursuit of 0 steps"),
        ({"max_iterations": True}, "matching pursuit of True steps"),
        ({"max_iterations": 2.0}, "matching pursuit of 2.0 steps"),
        ({"residual_threshold": -1.0}, "threshold -1.0"),
        ({"residual_threshold": float("nan")}, "threshold nan"),
        ({"stop_on_duplicate_support": 1}, "stop 1"),
    ],
)
def test_a_pursuit_that_could_not_run_is_refused(change: dict[str, Any], told: str) -> None:
    config = PURSUIT.config()
    with pytest.raises(CheckpointError, match=f"tiny: .*{told}"):
        encoder_of(config | {"nonlinearity": config["nonlinearity"] | change}, {}, "tiny")


@pytest.mark.parametrize("missing", ["w_glu", "b_glu"])
def test_half_a_gated_linear_unit_is_refused(missing: str) -> None:
    held = {name: value for name, value in GLU.tensors().items() if name != missing}
    with pytest.raises(CheckpointError, match="tiny: a gated linear unit needs both w_glu and b_glu"):
        encoder_of(GLU.config(), held, "tiny")


@pytest.mark.parametrize("change", [{"dtype": "int8"}, {"dtype": None}, {"apply_b_dec_to_input": "yes"}])
def test_an_encoder_of_an_unknown_dtype_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"needs a dtype \(float32, float16, bfloat16\) and apply_b_dec_to_input"):
        encoder_of(GLU.config() | change, GLU.tensors(), "tiny")


def test_an_sae_of_matching_pursuit_has_an_identity_of_its_steps() -> None:
    sae = SAE(directions(22), B_DEC, PURSUIT, "matching_pursuit")
    other = replace(sae, encoder=replace(PURSUIT, max_iterations=8))
    assert sae.decoder_id == other.decoder_id
    assert sae.sae_id != other.sae_id
    assert SAE.from_tensors(sae.config(), sae.tensors(), "again").sae_id == sae.sae_id
