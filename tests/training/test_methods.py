"""Methods choose the activations that their papers say, and their losses are the papers', with gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from saecodec.training.methods import BatchTopK, GatedSAE, Jump, Method, RowTopK, Standard, reconstruction
from saecodec.training.parameters import Batch, Parameters, initial, stay_on_sphere, to_unit_rows, with_gradients
from saecodec.training.sparse_products import Places, Products

F, D, B = 24, 7, 16


def parameters(method: Method | None = None) -> Parameters:
    values = initial(F, D, torch.Generator().manual_seed(3), torch.device("cpu"))
    values["b_dec"] = torch.randn(D) * 0.1
    values["b_enc"] = torch.randn(F) * 0.1
    values["w_enc"] += 0.1 * torch.randn(F, D)
    if method is not None:
        values |= {name: 0.2 * torch.randn(F) for name in method.added(F, torch.device("cpu"))}
    return with_gradients(values)


def batch(p: Parameters) -> Batch:
    return Batch(torch.randn(B, D), p, Products())


def preactivations(x: Tensor, p: Parameters) -> Tensor:
    return (x - p["b_dec"]) @ p["w_enc"].t() + p["b_enc"]


def cells(places: Places) -> Tensor:
    return places.dense(torch.ones(len(places)), torch.float32).bool()


def check_gradients(loss: Tensor, wanted: Tensor, p: Parameters) -> None:
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(of, list(p.values()), allow_unused=True) for of in (loss, wanted))
    for name, a, b in zip(p, ours, theirs, strict=True):
        a, b = (torch.zeros_like(p[name]) if g is None else g for g in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def squared_error(x: Tensor, z: Tensor, p: Parameters) -> Tensor:
    return (z @ p["w_dec"] + p["b_dec"] - x).square().sum(1).mean()


# -- which latents are active ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.1, 1, 2.5, 7, 10])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 5.0])
def test_batchtopk_keeps_the_largest_of_a_batch(k: float, threshold: float) -> None:
    method, of = BatchTopK(k), batch(parameters())
    method.threshold = threshold
    flat = of.h.reshape(-1)
    wanted = min(max(1, round(k * B)), int((flat > 0).sum()))
    found = cells(method.places(of)).reshape(-1)
    assert int(found.sum()) == wanted
    assert flat[found].min() > flat[~found].max()


def test_batchtopk_remembers_the_least_activation_that_stays() -> None:
    method = BatchTopK(3)
    least = []
    for _ in range(3):
        least.append(float(method.step(batch(parameters()), ()).values.min()))
    expected = 0.99 * (0.99 * least[0] + 0.01 * least[1]) + 0.01 * least[2]
    assert method.threshold == pytest.approx(expected)
    of = batch(parameters())
    assert torch.equal(cells(method.codes(of)[0]), of.h > method.threshold)


@pytest.mark.parametrize("k", [0.6, 1.0, 4.4, 30.0])
def test_topk_keeps_the_largest_of_a_row(k: float) -> None:
    method, of = RowTopK(k), batch(parameters())
    kept = min(max(1, round(k)), F)
    top = torch.topk(of.h, kept, dim=1)
    wanted = torch.zeros(B, F).scatter_(1, top.indices, top.values) > 0
    assert torch.equal(cells(method.places(of)), wanted)


def test_no_batch_needs_to_have_an_active_latent() -> None:
    for method in (BatchTopK(2), RowTopK(2), Standard(0.1), GatedSAE(0.1), Jump(0.1)):
        p = parameters(method)
        with torch.no_grad():
            p["b_enc"].fill_(-100)
        of = batch(p)
        outcome = method.step(of, ())
        outcome.loss.backward()  # type: ignore[no-untyped-call]
        assert len(outcome.places) == len(outcome.values) == 0
        torch.testing.assert_close(outcome.missed, (p["b_dec"] - of.x).detach())


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [BatchTopK(3), RowTopK(3), Standard(0.7)], ids=lambda method: method.kind)
def test_the_loss_is_the_error_and_the_penalty(method: Method) -> None:
    p = parameters()
    of = batch(p)
    outcome = method.step(of, ())
    z = preactivations(of.x, p) * cells(outcome.places)
    wanted = squared_error(of.x, z, p)
    if isinstance(method, Standard):
        torch.testing.assert_close(z, preactivations(of.x, p).relu())
        wanted = wanted + 0.7 * z.sum(1).mean()
    check_gradients(outcome.loss, wanted, p)
    torch.testing.assert_close(outcome.values, z.reshape(-1)[outcome.places.flat].detach())
    torch.testing.assert_close(outcome.missed, (z @ p["w_dec"] + p["b_dec"] - of.x).detach())


def test_the_loss_of_a_gated_sae_is_that_of_the_paper() -> None:
    """Rajamanoharan et al. 2024 (arXiv 2404.16014), equations 3 to 8, tied weights as in equation 9."""
    method = GatedSAE(0.3)
    p = parameters(method)
    of = batch(p)
    x = of.x
    pi_gate = (x - p["b_dec"]) @ p["w_enc"].t() + p["b_enc"]
    w_mag = p["r_mag"].exp()[:, None] * p["w_enc"]
    magnitudes = ((x - p["b_dec"]) @ w_mag.t() + p["b_mag"]).relu()
    z = (pi_gate > 0).float() * magnitudes
    sparsity = 0.3 * pi_gate.relu().sum(1).mean()
    frozen = {name: tensor.detach() for name, tensor in p.items()}
    auxiliary = squared_error(x, pi_gate.relu(), frozen)
    outcome = method.step(of, ())
    check_gradients(outcome.loss, squared_error(x, z, p) + sparsity + auxiliary, p)
    places, values = method.codes(of)
    torch.testing.assert_close(places.dense(values, torch.float32), z.detach())


class _Rectangle(torch.autograd.Function):
    """JumpReLU (arXiv 2407.14435), figure 11's pseudo-code: both functions, one row each."""

    @staticmethod
    def forward(ctx: object, h: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(h, theta)  # type: ignore[attr-defined]
        return h * (h > theta), (h > theta).float()

    @staticmethod
    def backward(ctx: object, of_jump: Tensor, of_step: Tensor) -> tuple[Tensor, Tensor]:
        h, theta = ctx.saved_tensors  # type: ignore[attr-defined]
        width = 0.3 * theta
        kernel = ((h - theta).abs() < width / 2).float() / width
        of_theta = (-theta * kernel * of_jump - kernel * of_step).sum(0)
        return of_jump * (h > theta), of_theta


def test_the_loss_of_a_jumprelu_sae_is_that_of_the_paper() -> None:
    method = Jump(0.4)
    p = parameters(method)
    with torch.no_grad():
        p["log_threshold"] -= 0.5
    of = batch(p)
    z, fires = _Rectangle.apply(preactivations(of.x, p), p["log_threshold"].exp())  # type: ignore[no-untyped-call]
    wanted = squared_error(of.x, z, p) + 0.4 * fires.sum(1).mean()
    (of_threshold,) = torch.autograd.grad(wanted, p["log_threshold"], retain_graph=True)
    assert (of_threshold != 0).sum() > F / 2, "some activations are near"
    outcome = method.step(of, ())
    check_gradients(outcome.loss, wanted, p)
    assert torch.equal(cells(outcome.places), fires > 0)
    assert torch.equal(cells(method.codes(of)[0]), fires > 0)


class Priced(Jump):
    """An active latent costs the more the larger it is, as one that is coded does."""

    def prices(self, near: Places, h: Tensor) -> Tensor | float:
        return 0.3 + 0.2 * h


def test_what_an_active_latent_costs_is_a_step_at_the_threshold_too() -> None:
    """The penalty of a latent is price(h) 1[h > threshold], whose kernel sees the price at h on both sides."""
    method = Priced(1.0)
    p = parameters(method)
    with torch.no_grad():
        p["log_threshold"] -= 0.5
    of = batch(p)
    h = preactivations(of.x, p)
    z, fires = _Rectangle.apply(h, p["log_threshold"].exp())  # type: ignore[no-untyped-call]
    wanted = squared_error(of.x, z, p) + ((0.3 + 0.2 * h) * fires).sum(1).mean()
    check_gradients(method.step(of, ()).loss, wanted, p)


@pytest.mark.parametrize("nested", [(), (6,), (2, 9, 23)])
@pytest.mark.parametrize("learn", [True, False])
def test_the_nested_error_is_the_mean_over_the_saes_of_the_first_latents(nested: tuple[int, ...], learn: bool) -> None:
    p = parameters()
    of = batch(p)
    places = Places.where(of.h > 0.2)
    loss, missed = reconstruction(of, places, of.encoded(places), nested, learn=learn)
    z = preactivations(of.x, p) * cells(places)
    decoder = p if learn else {name: tensor.detach() for name, tensor in p.items()}
    errors = [squared_error(of.x, z * (torch.arange(F) < width), decoder) for width in (*nested, F)]
    check_gradients(loss, torch.stack(errors).mean(), p)
    torch.testing.assert_close(missed, (z @ p["w_dec"] + p["b_dec"] - of.x).detach())


# -- steering ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [BatchTopK(3, F), RowTopK(3, F), Standard(0.7), GatedSAE(0.7), Jump(0.7)])
def test_what_is_too_much_turns_the_dial_to_less(method: Method) -> None:
    before = method.pressure
    method.steer(0.05)
    fewer = method.pressure < before if isinstance(method, (BatchTopK, RowTopK)) else method.pressure > before
    assert fewer
    for _ in range(5000):
        method.steer(-1.0 if method.sense > 0 else 1.0)
    assert method.pressure == method.least
    for _ in range(5000):
        method.steer(1.0 if method.sense > 0 else -1.0)
    assert method.pressure == method.most == (F if isinstance(method, (BatchTopK, RowTopK)) else 1e12)
    assert math.isfinite(method.pressure)
    with pytest.raises(ValueError, match="pressure"):
        method.restore(method.state() | {"pressure": 1.001 * method.most})


def test_states_that_cannot_be_are_refused() -> None:
    method = BatchTopK(3)
    method.restore({"pressure": 2, "threshold": 0.5, "places": 7})
    assert (method.pressure, method.threshold) == (2, 0.5)
    assert callable(method.places), "a state names nothing but numbers"
    for state in ({}, {"pressure": 1.0}, {"pressure": math.nan, "threshold": 1}, {"pressure": "1", "threshold": 1}):
        with pytest.raises((KeyError, ValueError)):
            method.restore(state)


# -- the sphere --------------------------------------------------------------------------------------------------------


def test_decoder_rows_stay_unit_and_gradients_along_them_vanish() -> None:
    w = torch.nn.functional.normalize(torch.randn(F, D)).requires_grad_()
    w.grad = torch.randn(F, D)
    before = w.grad.clone()
    stay_on_sphere(w)
    torch.testing.assert_close((w.grad * w).sum(1), torch.zeros(F), rtol=0, atol=1e-6)
    across = before - (before * w.detach()).sum(1, keepdim=True) * w.detach()
    torch.testing.assert_close(w.grad, across)
    with torch.no_grad():
        w.mul_(torch.rand(F, 1) + 0.5)
    to_unit_rows(w)
    torch.testing.assert_close(w.detach().norm(dim=1), torch.ones(F))
