"""Each nonlinearity selects and values the active latents as its equation says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saecodec.errors import CheckpointError, SaecodecError, UnsupportedError
from saecodec.nonlinearity import (
    NONLINEARITIES as KINDS,
)
from saecodec.nonlinearity import (
    AbsTopK,
    Gated,
    GroupMax,
    JumpReLU,
    Nonlinearity,
    ReLU,
    SignedTopK,
    SignedTopKWithTies,
    TanhReLU,
    TopK,
)

NAN, INF = float("nan"), float("inf")


def dense(nonlinearity: Nonlinearity, h: torch.Tensor) -> torch.Tensor:
    """z, from `active`; which must be ascending, without repetition and nonzero."""
    index, values = nonlinearity.active(h)
    assert (index.dtype, values.dtype) == (torch.int64, torch.float32)
    assert (index.diff() > 0).all()
    assert (values != 0).all() if nonlinearity.signed else (values > 0).all()
    z = torch.zeros(h.numel())
    z[index] = values
    return z.reshape(h.shape)


def rows(n: int = 7, f: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, f, generator=torch.Generator().manual_seed(seed))


def expected(nonlinearity: Nonlinearity, h: torch.Tensor) -> torch.Tensor:
    """The equations of SAELens 6, on dense arrays."""
    if isinstance(nonlinearity, TanhReLU):
        return torch.tanh(torch.relu(h))
    if isinstance(nonlinearity, ReLU):
        return torch.relu(h)
    if isinstance(nonlinearity, GroupMax):
        groups = h.reshape(len(h), nonlinearity.k, -1)
        return torch.where(groups == groups.amax(2, keepdim=True), groups.relu(), 0).reshape(h.shape)
    if isinstance(nonlinearity, JumpReLU):
        return torch.relu(h) * (h > nonlinearity.threshold)
    if isinstance(nonlinearity, TopK):
        ranked = h if nonlinearity.rank is None else h * nonlinearity.rank
        order = ranked.abs() if isinstance(nonlinearity, AbsTopK) else ranked
        rank = order.argsort(dim=1, descending=True).argsort(dim=1)
        return torch.where((rank < nonlinearity.k) & (nonlinearity.signed | (ranked > 0)), h, 0)
    assert isinstance(nonlinearity, Gated)
    magnitude = h * nonlinearity.r_mag.exp() + nonlinearity.b_mag
    return (h + nonlinearity.b_gate > 0) * torch.relu(magnitude)


NONLINEARITIES: dict[str, Nonlinearity] = {
    "relu": ReLU(),
    "jumprelu": JumpReLU(rows(1, seed=1)[0].abs()),
    "jumprelu with negative thresholds": JumpReLU(rows(1, seed=1)[0]),
    "topk": TopK(3),
    "topk of one": TopK(1),
    "topk of all": TopK(12),
    "topk beyond all": TopK(1000),
    "topk with a scale, zero for half of the latents": TopK(3, torch.arange(12.0) % 2 * rows(1, seed=3)[0].abs()),
    "topk with a rank that is no scale": TopK(3, rows(1, seed=3)[0].abs(), scaled=False),
    "tanh of relu": TanhReLU(),
    "signed topk": SignedTopK(9),
    "signed topk of all": SignedTopK(12),
    "signed topk beyond all": SignedTopK(1000),
    "signed topk with ties": SignedTopKWithTies(9),
    "abstopk": AbsTopK(3),
    "abstopk with a scale": AbsTopK(3, rows(1, seed=3)[0].abs()),
    "groupmax": GroupMax(4),
    "groupmax of all": GroupMax(12),
    "groupmax of one group": GroupMax(1),
    "gated": Gated(*rows(3, seed=2)),
}
every = pytest.mark.parametrize("nonlinearity", NONLINEARITIES.values(), ids=NONLINEARITIES.keys())


@every
def test_active_latents_are_those_of_the_equation(nonlinearity: Nonlinearity) -> None:
    for seed in range(5):
        h = rows(seed=seed)
        torch.testing.assert_close(dense(nonlinearity, h), expected(nonlinearity, h), rtol=1e-6, atol=0)


@every
def test_magnitudes_of_active_latents_are_their_activations(nonlinearity: Nonlinearity) -> None:
    h = rows()
    z = dense(nonlinearity, h)
    torch.testing.assert_close(nonlinearity.magnitudes(h)[z != 0], z[z != 0], rtol=1e-6, atol=0)


def test_every_kind_is_tested() -> None:
    assert {type(nonlinearity) for nonlinearity in NONLINEARITIES.values()} == set(KINDS)


@every
def test_no_rows_have_no_active_latents(nonlinearity: Nonlinearity) -> None:
    assert dense(nonlinearity, torch.zeros(0, 12)).shape == (0, 12)


@every
def test_config_and_tensors_make_it_again(nonlinearity: Nonlinearity) -> None:
    again = Nonlinearity.from_config(nonlinearity.config(), nonlinearity.tensors())
    assert type(again) is type(nonlinearity)
    assert again.config() == nonlinearity.config()
    torch.testing.assert_close(dense(again, rows()), dense(nonlinearity, rows()), rtol=0, atol=0)
    torch.testing.assert_close(dense(nonlinearity.to("cpu"), rows()), dense(nonlinearity, rows()), rtol=0, atol=0)


def test_comparisons_are_strict() -> None:
    h = torch.tensor([[0.0, 0.5, 0.5000001]])
    assert dense(ReLU(), h).tolist()[0][0] == 0
    assert dense(JumpReLU(torch.full((3,), 0.5)), h).tolist() == [[0, 0, h[0, 2].item()]]
    zero = torch.zeros(3)
    assert dense(Gated(zero, zero + 1, zero), torch.tensor([[0.0, -1e-9, 1.0]])).tolist() == [[0, 0, 2]]


def test_a_negative_threshold_lets_no_negative_activation_through() -> None:
    h = torch.tensor([[-0.5, 0.0, 0.25]])
    assert dense(JumpReLU(torch.full((3,), -1.0)), h).tolist() == [[0, 0, 0.25]]


def test_fewer_than_k_positive_preactivations_are_fewer_than_k_active_latents() -> None:
    h = torch.tensor([[-1.0, 2.0, -3.0, 0.0], [-1.0, -1.0, -1.0, -1.0]])
    assert dense(TopK(3), h).tolist() == [[0, 2, 0, 0], [0, 0, 0, 0]]


def test_of_equal_preactivations_topk_keeps_k() -> None:
    assert (dense(TopK(2), torch.ones(3, 5)) > 0).sum(1).tolist() == [2, 2, 2]


def test_ties_with_the_kth_largest_are_all_kept_where_the_library_does() -> None:
    h = torch.tensor([[3.0, -1.0, -1.0, -1.0, -2.0], [0.0, 0.0, 1.0, -1.0, -1.0]])
    assert dense(SignedTopKWithTies(2), h).tolist() == [[3, -1, -1, -1, 0], [0, 0, 1, 0, 0]]


def test_signs_are_kept() -> None:
    h = torch.tensor([[-5.0, 1.0, -0.5, 0.0]])
    assert dense(AbsTopK(2), h).tolist() == [[-5, 1, 0, 0]]
    assert dense(SignedTopK(3), h).tolist() == [[0, 1, -0.5, 0]]
    assert dense(SignedTopK(4), h).tolist() == [[-5, 1, -0.5, 0]]


def test_a_group_without_a_positive_preactivation_has_no_winner() -> None:
    h = torch.tensor([[-1.0, -2.0, 3.0, 4.0]])
    assert dense(GroupMax(2), h).tolist() == [[0, 0, 0, 4]]


def test_an_open_gate_with_a_negative_magnitude_is_not_active() -> None:
    zero = torch.zeros(2)
    assert dense(Gated(zero, torch.tensor([-5.0, 0.0]), zero), torch.ones(1, 2)).tolist() == [[0, 1]]


def test_preactivations_that_are_nan_are_not_active() -> None:
    h = torch.tensor([[NAN, 1.0, -INF, INF]])
    assert dense(ReLU(), h).tolist() == [[0, 1, 0, INF]]


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**31))
def test_topk_of_any_shape(n: int, f: int, k: int, seed: int) -> None:
    h = rows(n, f, seed)
    torch.testing.assert_close(dense(TopK(k), h), expected(TopK(k), h), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["batchtopk", None, 3])
def test_an_unknown_kind_is_refused_by_name(kind: Any) -> None:
    with pytest.raises(UnsupportedError, match=f"{kind!r}.*relu, .*jumprelu, topk, .*gated"):
        Nonlinearity.from_config({"kind": kind}, {})


@pytest.mark.parametrize(
    "kind, missing", [("jumprelu", "threshold"), ("topk", "k"), ("abstopk", "k"), ("groupmax", "k"), ("gated", "r_mag")]
)
def test_a_missing_parameter_is_refused_by_name(kind: str, missing: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{kind}' needs '{missing}'"):
        Nonlinearity.from_config({"kind": kind}, {})


@pytest.mark.parametrize("k", [0, -1, "x", None])
def test_a_k_that_is_no_positive_number_is_refused(k: Any) -> None:
    with pytest.raises(SaecodecError):
        Nonlinearity.from_config({"kind": "topk", "k": k}, {})


def test_numpy_and_torch_find_the_same_cells() -> None:
    h = rows(50, 30)
    index, _ = ReLU().active(h)
    np.testing.assert_array_equal(index.numpy(), (h > 0).reshape(-1).nonzero().reshape(-1).numpy())
