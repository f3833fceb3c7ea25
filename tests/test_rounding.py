"""Closed-loop rounding: levels of a triangular least-squares problem."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saecodec.errors import InputError
from saecodec.pursuit import LevelPrices, Selection
from saecodec.rounding import round_levels


def selection(factor: Tensor, target: Tensor) -> Selection:
    """All places chosen in order. factor: R' (B, K, K); target: (B, K)."""
    return Selection(torch.arange(target.shape[1]).expand(target.shape).clone(), factor, target)


def orthogonal(values: Tensor) -> Selection:
    """Orthogonal unit directions with these coefficients (B, K)."""
    return selection(torch.eye(values.shape[1]).expand(len(values), -1, -1), values)


def coupled(n_rows: int, n: int, seed: int) -> tuple[Selection, Tensor]:
    """A problem of directions that overlap, and its real solution (B, K), positive."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n_rows, n, 12, generator=generator), dim=2)
    factor = torch.linalg.cholesky(directions @ directions.transpose(1, 2))
    exact = 0.5 + 9 * torch.rand(n_rows, n, generator=generator)
    return selection(factor, (factor.transpose(1, 2) @ exact[:, :, None])[:, :, 0]), exact


def free(shape: torch.Size, levels: Tensor | None = None, support: float = 0.0) -> LevelPrices:
    levels = torch.zeros(8) if levels is None else levels
    return LevelPrices(torch.full(shape, support), levels, torch.zeros(shape, dtype=torch.int64), len(levels))


def flat(shape: torch.Size, *values: float) -> Tensor:
    """The same offsets for every candidate."""
    return torch.tensor([0.0, *values, 0.0]).expand(*shape, -1)


def rounded(problem: Selection, step: float = 1.0, *, signed: bool = True) -> Tensor:
    shape = problem.chosen.shape
    return round_levels(problem, free(shape), step, flat(shape), signed=signed)[0]


def error(problem: Selection, levels: Tensor, step: float = 1.0) -> Tensor:
    """Squared error of each row, (B,)."""
    value = levels.float() * step
    return ((problem.factor.transpose(1, 2) @ value[:, :, None])[:, :, 0] - problem.target).square().sum(1)


@given(st.lists(st.floats(-500, 500, width=32), min_size=1, max_size=8), st.sampled_from([0.125, 1.0, 3.0]))
def test_orthogonal_directions_are_rounded_each_for_itself(values: list[float], step: float) -> None:
    coefficients = torch.tensor([values])
    levels = rounded(orthogonal(coefficients), step)
    off = (levels - coefficients / step).abs()
    assert off.max() <= 0.5 + 1e-4
    clear = ((coefficients / step).abs() % 1 - 0.5).abs() > 1e-4  # not halfway between two levels
    assert (levels[clear] == (coefficients / step).round()[clear]).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_error_is_within_half_a_step_of_every_orthogonal_direction(seed: int) -> None:
    problem, _ = coupled(50, 6, seed)
    diagonal = problem.factor.diagonal(dim1=1, dim2=2)
    levels = rounded(problem, 0.7)
    assert (error(problem, levels, 0.7) <= (0.35**2) * diagonal.square().sum(1) + 1e-4).all()


@pytest.mark.parametrize("seed", range(5))
def test_feedback_errs_less_than_rounding_each_for_itself(seed: int) -> None:
    problem, exact = coupled(200, 6, seed)
    assert error(problem, rounded(problem)).mean() < 0.95 * error(problem, exact.round()).mean()


def test_few_latents_are_rounded_nearly_as_well_as_by_brute_force() -> None:
    problem, exact = coupled(30, 3, 1)
    levels = rounded(problem)
    near = torch.tensor(list(itertools.product(range(-2, 3), repeat=3)))
    best = torch.stack([error(problem, exact.round() + shift) for shift in near]).min(0).values
    assert (error(problem, levels) >= best - 1e-3).all()
    assert error(problem, levels).mean() < 1.3 * best.mean() + 1e-3


def test_negative_coefficients_need_signs() -> None:
    values = torch.tensor([[3.2, -2.1, -0.2, 0.6]])
    assert rounded(orthogonal(values)).tolist() == [[3, -2, 0, 1]]
    assert rounded(orthogonal(values), signed=False).tolist() == [[3, 0, 0, 1]]


def test_without_signs_no_level_is_negative() -> None:
    problem, _ = coupled(200, 8, 3)
    problem.target.neg_()
    assert rounded(problem, signed=False).min() >= 0
    assert rounded(problem, signed=True).min() < 0


@given(st.floats(0, 30, width=32), st.floats(-0.5, 0.49), st.floats(-0.5, 0.49))
def test_a_level_is_taken_for_what_it_will_be_decoded_to(value: float, first: float, second: float) -> None:
    problem = orthogonal(torch.tensor([[value]]))
    level, _ = round_levels(
        problem, free(torch.Size([1, 1])), 1.0, flat(torch.Size([1, 1]), first, second), signed=True
    )
    decoded = np.arange(40.0) + np.array([0, first, second, *[0] * 37])
    options = {0, int(value), int(value) + 1}
    errors = {option: abs(value - decoded[option]) for option in options}
    assert errors[int(level)] == pytest.approx(min(errors.values()), abs=1e-5)


def test_a_price_is_weighed_against_the_error() -> None:
    shape = torch.Size([1, 1])
    bits = torch.tensor([0.0, 1.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    for value in np.linspace(0, 6, 61):
        for slope, support in ((0.0, 0.0), (0.1, 0.2), (0.5, 1.0), (0.1, 50.0)):
            prices = free(shape, slope * bits, support)
            found, _ = round_levels(orthogonal(torch.tensor([[value]]).float()), prices, 1.0, flat(shape), signed=True)
            options = sorted({0, int(value), int(value) + 1})
            cost = {n: (value - n) ** 2 + (slope * float(bits[n]) + support if n else 0.0) for n in options}
            assert cost[int(found)] == pytest.approx(min(cost.values()), abs=1e-5)


def test_levels_beyond_the_table_cost_as_much_as_its_last() -> None:
    problem, shape = orthogonal(torch.tensor([[1000.2]])), torch.Size([1, 1])
    found, _ = round_levels(problem, free(shape, torch.linspace(0, 1, 8)), 1.0, flat(shape), signed=True)
    assert found.tolist() == [[1000]]


def test_a_latent_that_is_dropped_leaves_its_share_to_the_others() -> None:
    factor = torch.tensor([[[1.0, 0.0], [0.9, 0.19**0.5]]])  # two directions with an inner product of 0.9
    problem = selection(factor, (factor[0].T @ torch.tensor([5.0, 1.0]))[None])
    prices = LevelPrices(torch.tensor([[0.0, 100.0]]), torch.zeros(8), torch.zeros(1, 2, dtype=torch.int64), 8)
    levels, _ = round_levels(problem, prices, 1.0, flat(torch.Size([1, 2])), signed=True)
    assert levels.tolist() == [[6, 0]]


@pytest.mark.parametrize("signed", [False, True])
def test_padding_gets_level_zero(signed: bool) -> None:
    chosen = torch.tensor([[0, 1, -1, -1], [-1, -1, -1, -1]])
    factor, target = torch.eye(4).repeat(2, 1, 1), torch.full((2, 4), 7.0)
    problem = Selection(chosen, factor, target)
    levels, _ = round_levels(problem, free(chosen.shape), 1.0, flat(chosen.shape), signed=signed)
    assert levels.tolist() == [[7, 7, 0, 0], [0, 0, 0, 0]]


def test_what_a_level_stood_for_comes_along() -> None:
    values = torch.tensor([[3.2, -2.1], [0.4, 0.9]])
    levels, exact = round_levels(orthogonal(values), free(values.shape), 0.5, flat(values.shape), signed=True)
    torch.testing.assert_close(exact, values.abs() / 0.5)
    assert levels.tolist() == [[6, -4], [1, 2]]


def test_a_level_above_the_limit_names_the_way_out() -> None:
    values = torch.tensor([[2.0**20]])
    assert rounded(orthogonal(values)).tolist() == [[1 << 20]]
    for value in (2.0**20 + 1, 1e18):
        with pytest.raises(InputError, match=r"step 1 is too small.*use a larger step"):
            rounded(orthogonal(torch.tensor([[value]])))


def test_nothing_is_rounded_to_nothing() -> None:
    for shape in ((0, 3), (4, 0)):
        assert rounded(orthogonal(torch.zeros(shape))).shape == shape
