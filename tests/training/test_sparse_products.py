"""Products at the few places where latents are active, and their gradients, are those of dense matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saecodec.training.sparse_products import Places, Products, decode_at, encode_at

Case = tuple[Places, Tensor, dict[str, Tensor]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Places of all densities, some rows and latents without any; rows and weights."""
    n_rows, n_latents, width = (draw(st.integers(1, 7)) for _ in range(3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 20)))
    chosen = torch.rand(n_rows, n_latents, generator=generator) < draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    if draw(st.booleans()):
        chosen[draw(st.integers(0, n_rows - 1))] = False
    if draw(st.booleans()):
        chosen[torch.arange(n_rows) != draw(st.integers(0, n_rows - 1))] = False
    shapes = {"w_enc": (n_latents, width), "b_enc": (n_latents,), "w_dec": (n_latents, width), "b_dec": (width,)}
    weights = {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}
    return Places.where(chosen), torch.randn(n_rows, width, generator=generator), weights


def dense(places: Places, values: Tensor) -> Tensor:
    """(B, F) that takes gradients."""
    flat = torch.zeros(places.n_rows * places.n_latents, dtype=values.dtype)
    return flat.index_put((places.flat,), values).view(places.n_rows, places.n_latents)


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [torch.zeros_like(a) if g is None else g for g, a in zip(found, inputs, strict=True)]


PRODUCTS = [(Products(None), 1e-4), (Products(torch.float32), 1e-4), (Products(torch.bfloat16), 0.15)]


@pytest.mark.parametrize("products, tolerance", PRODUCTS, ids=["sparse", "float32", "bfloat16"])
@given(case=cases())
def test_products_at_places_and_their_gradients_are_those_of_dense_ones(
    products: Products, tolerance: float, case: Case
) -> None:
    places, x, w = case
    h = (x - w["b_dec"]) @ w["w_enc"].t() + w["b_enc"]
    slope = torch.randn(len(places))
    ours = encode_at(places, h.detach(), x, w["w_enc"], w["b_enc"], w["b_dec"], products)
    torch.testing.assert_close(ours, h.reshape(-1)[places.flat], rtol=0, atol=0)
    inputs = [w["w_enc"], w["b_enc"], w["b_dec"]]
    wanted = gradients((h.reshape(-1)[places.flat] * slope).sum(), inputs)
    near(gradients((ours * slope).sum(), inputs), wanted, tolerance)

    values = torch.randn(len(places), requires_grad=True)
    slope, inputs = torch.randn(places.n_rows, x.shape[1]), [values, w["w_dec"], w["b_dec"]]
    theirs = dense(places, values) @ w["w_dec"] + w["b_dec"]
    ours = decode_at(places, values, w["w_dec"], w["b_dec"], products)
    near([ours.detach()], [theirs.detach()], tolerance)
    near(gradients((ours * slope).sum(), inputs), gradients((theirs * slope).sum(), inputs), tolerance)


def near(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_gradients_agree_with_differences_of_both_products_one_after_the_other() -> None:
    places = Places.where(torch.rand(4, 5) < 0.5)
    x = torch.randn(4, 3, dtype=torch.float64)
    shapes = [(5, 3), (5,), (5, 3), (3,)]
    weights = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]

    def there_and_back(w_enc: Tensor, b_enc: Tensor, w_dec: Tensor, b_dec: Tensor) -> Tensor:
        h = ((x - b_dec) @ w_enc.t() + b_enc).detach()
        z = encode_at(places, h, x, w_enc, b_enc, b_dec, Products(torch.float64))
        return decode_at(places, z.square(), w_dec, b_dec, Products(torch.float64))

    with pytest.MonkeyPatch.context() as patch:  # float32 is what training computes in
        patch.setattr(torch, "float32", torch.float64)
        assert torch.autograd.gradcheck(there_and_back, weights)


def test_a_decoder_that_is_not_to_learn_takes_no_gradients_and_passes_them_on() -> None:
    places, values = Places.where(torch.eye(3) > 0), torch.ones(3, requires_grad=True)
    w_dec, b_dec = torch.randn(3, 2, requires_grad=True), torch.zeros(2, requires_grad=True)
    decode_at(places, values, w_dec.detach(), b_dec.detach(), Products()).sum().backward()  # type: ignore[no-untyped-call]
    assert w_dec.grad is None
    assert b_dec.grad is None
    torch.testing.assert_close(values.grad, w_dec.detach().sum(1))


@pytest.mark.parametrize("share, dense", [(0.0, False), (0.1, False), (0.4, True), (1.0, True)])
def test_many_places_are_multiplied_densely(share: float, dense: bool) -> None:
    places = Places.where(torch.arange(200).view(10, 20) < 200 * share)
    values = torch.rand(len(places))
    found = Products().dense_codes(places, values)
    assert (found is not None) == dense
    if found is not None:
        torch.testing.assert_close(found, places.dense(values, torch.float32))
    assert Products(torch.bfloat16).dense_codes(places, values) is not None


@given(cases(), st.integers(0, 1 << 20))
def test_places_know_their_rows_latents_and_sums(case: Case, seed: int) -> None:
    places = case[0]
    chosen = dense(places, torch.ones(len(places))).bool()
    rows, latents = chosen.nonzero(as_tuple=True)
    torch.testing.assert_close(places.rows, rows)
    torch.testing.assert_close(places.latents, latents)
    torch.testing.assert_close(places.indptr.diff(), chosen.sum(1))
    values = torch.rand(len(places))
    torch.testing.assert_close(places.per_latent(values), dense(places, values).sum(0))
    torch.testing.assert_close(places.matrix(values).to_dense(), dense(places, values))
    torch.testing.assert_close(places.transposed(values).to_dense(), dense(places, values).t())
    torch.testing.assert_close(places.dense(values, torch.float32), dense(places, values))
    keep = torch.rand(len(places), generator=torch.Generator().manual_seed(seed)) < 0.5
    torch.testing.assert_close(places.kept(keep).flat, places.flat[keep])
