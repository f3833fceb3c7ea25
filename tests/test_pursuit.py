"""Selection of latents: greedy, by least squares, at a price; checked against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from saecodec.dictionary import Candidates, Dictionary
from saecodec.pursuit import LevelPrices, Selection, factorize, select
from saecodec.sae import SAE

FINE = 1e-4  # a step that stops nothing


def dictionary(n_latents: int, width: int, seed: int = 0) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    return Dictionary(SAE(torch.randn(n_latents, width, generator=generator), torch.zeros(width), None, "decoder"))


def problem(n_latents: int, width: int, n_rows: int, seed: int = 0) -> tuple[Tensor, NDArray[np.float32], Candidates]:
    """Rows, unit directions (F, d), and all latents as candidates of every row."""
    directions = dictionary(n_latents, width, seed)
    x = torch.randn(n_rows, width, generator=torch.Generator().manual_seed(seed + 1))
    latents = torch.arange(n_latents).expand(n_rows, n_latents)
    return x, directions.directions.numpy(), directions.candidates(x, latents)


def prices(candidates: Candidates, support: float | Tensor = 0.0) -> LevelPrices:
    """Levels are free; a nonzero costs `support`."""
    shape = candidates.latents.shape
    each = torch.as_tensor(support, dtype=torch.float32).expand(shape)
    return LevelPrices(each, torch.zeros(4), torch.zeros(shape, dtype=torch.int64), 4)


def chosen_of(selection: Selection, row: int) -> NDArray[np.int64]:
    places = selection.chosen[row].numpy()
    n = int((places >= 0).sum())
    assert (places[:n] >= 0).all(), "those that are not there come last"
    assert len(set(places[:n])) == n, "nothing is chosen twice"
    return places[:n]


@given(seed=st.integers(0, 10_000), n_latents=st.integers(1, 12), width=st.integers(2, 9), signed=st.booleans())
def test_the_triangular_form_is_least_squares_on_the_chosen_support(
    seed: int, n_latents: int, width: int, signed: bool
) -> None:
    x, directions, candidates = problem(n_latents, width, 5, seed)
    found = select(candidates, prices(candidates, 0.01), 0.05, signed=signed)
    for row in range(5):
        places = chosen_of(found, row)
        n, u = len(places), x[row].numpy().astype(np.float64)
        basis = directions[places].astype(np.float64)
        factor, target = found.factor[row, :n, :n].numpy().astype(np.float64), found.target[row, :n].numpy()
        assert np.abs(np.triu(factor, 1)).max(initial=0) < 1e-4, "factor is lower triangular"
        np.testing.assert_allclose(factor @ factor.T, basis @ basis.T, atol=1e-4)  # R'R is the Gram matrix
        best = np.linalg.lstsq(basis.T, u, rcond=None)[0]
        np.testing.assert_allclose(u @ u - target @ target, ((u - best @ basis) ** 2).sum(), atol=2e-3)
        np.testing.assert_allclose(factor.T @ best, target, atol=1e-3)  # R a = target
        assert (found.target[row, n:] == 0).all()


@pytest.mark.parametrize("signed", [False, True])
def test_the_first_latent_is_the_best_one_alone(signed: bool) -> None:
    x, directions, candidates = problem(40, 10, 30)
    found = select(candidates, prices(candidates), FINE, signed=signed)
    for row in range(30):
        value = directions @ x[row].numpy()
        if not signed:
            value = value.clip(min=0)
        errors = ((x[row].numpy() - value[:, None] * directions) ** 2).sum(1)  # by brute force
        assert found.chosen[row, 0] == errors.argmin()


def test_every_further_latent_is_the_best_one_beside_those_before() -> None:
    x, directions, candidates = problem(10, 6, 8)
    found = select(candidates, prices(candidates), FINE, signed=True)
    for row in range(8):
        places = chosen_of(found, row)[:3].tolist()
        for k in range(len(places)):
            errors = np.full(10, np.inf)
            for f in set(range(10)) - set(places[:k]):
                basis = directions[[*places[:k], f]]
                fit = np.linalg.lstsq(basis.T, x[row].numpy(), rcond=None)[0]
                errors[f] = ((x[row].numpy() - fit @ basis) ** 2).sum()
            assert errors[places[k]] == pytest.approx(errors.min(), rel=1e-4)


def test_selection_goes_on_while_a_latent_saves_more_than_it_costs() -> None:
    _, _, candidates = problem(40, 10, 30)
    counts = []
    for price in (0.01, 0.1, 1.0, 10.0, 1e6):
        found = select(candidates, prices(candidates, price), FINE, signed=True)
        counts.append(sum(len(chosen_of(found, row)) for row in range(30)))
        # Greedy values of the chosen: what each removed from the squared error when it came.
        removed = found.target.square()[found.chosen >= 0]
        assert (removed > price).all()
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 30
    assert counts[-1] == 0


def test_a_latent_that_costs_too_much_is_passed_over() -> None:
    _, _, candidates = problem(20, 6, 10)
    first = select(candidates, prices(candidates), FINE, signed=True).chosen[:, 0]
    dear = torch.zeros(10, 20).scatter_(1, first[:, None], torch.inf)
    found = select(candidates, prices(candidates, dear), FINE, signed=True)
    assert not (found.chosen == first[:, None]).any()
    assert (found.chosen[:, 0] >= 0).all()


def test_the_price_of_the_level_counts_too() -> None:
    _, _, candidates = problem(20, 6, 10)
    free = prices(candidates)
    dear = LevelPrices(free.support, torch.full((4,), 1e6), free.row, 4)
    assert (select(candidates, dear, FINE, signed=True).chosen == -1).all()


def test_what_would_be_rounded_to_zero_is_not_chosen() -> None:
    x, _, candidates = problem(20, 6, 10)
    step = 4 * float(x.norm(dim=1).max())
    assert select(candidates, prices(candidates), step, signed=True).chosen.shape == (10, 0)


def test_without_signs_the_first_choice_is_positive_or_none() -> None:
    direction = dictionary(1, 4).directions
    candidates = dictionary(1, 4).candidates(torch.cat([direction, -direction]), torch.zeros(2, 1, dtype=torch.int64))
    assert select(candidates, prices(candidates), FINE, signed=False).chosen.tolist() == [[0], [-1]]
    assert select(candidates, prices(candidates), FINE, signed=True).chosen.tolist() == [[0], [0]]


def test_two_latents_of_one_direction_are_never_both_chosen() -> None:
    w = torch.randn(6, 8)
    w[3] = w[1] * 2
    x = torch.randn(50, 8)
    candidates = Dictionary(SAE(w, torch.zeros(8), None, "decoder")).candidates(x, torch.arange(6).expand(50, 6))
    found = select(candidates, prices(candidates), FINE, signed=True).chosen
    assert not ((found == 1).any(1) & (found == 3).any(1)).any()
    assert torch.isfinite(select(candidates, prices(candidates), FINE, signed=True).factor).all()


def test_candidates_that_are_not_there_are_not_chosen() -> None:
    d, x = dictionary(8, 5), torch.randn(20, 5)
    latents = torch.arange(8).expand(20, 8).clone()
    latents[:, ::2] = -1
    latents[7] = -1
    candidates = d.candidates(x, latents)
    found = select(candidates, prices(candidates), FINE, signed=True).chosen
    assert set(found[found >= 0].tolist()) == {1, 3, 5, 7}
    assert (found[7] == -1).all()


def test_no_rows_select_nothing() -> None:
    candidates = dictionary(8, 5).candidates(torch.zeros(0, 5), torch.zeros(0, 3, dtype=torch.int64))
    assert select(candidates, prices(candidates), FINE, signed=True).chosen.shape == (0, 0)


def test_a_given_support_is_solved_by_least_squares() -> None:
    d, x = dictionary(30, 20), torch.randn(15, 20)
    latents = torch.stack([torch.randperm(30)[:6] for _ in range(15)])
    latents[4, 2:] = -1
    latents[9] = -1
    found = factorize(d.candidates(x, latents))
    for row in range(15):
        n = int((latents[row] >= 0).sum())
        assert found.chosen[row].tolist() == [*range(n), *[-1] * (6 - n)]
        basis, u = d.directions[latents[row, :n]].numpy(), x[row].numpy()
        best = np.linalg.lstsq(basis.T, u, rcond=None)[0]
        factor, target = found.factor[row, :n, :n].numpy(), found.target[row, :n].numpy()
        np.testing.assert_allclose(np.linalg.solve(factor.T, target), best, rtol=5e-3, atol=5e-3)
        assert (found.target[row, n:] == 0).all()


def test_a_given_support_of_dependent_directions_has_a_finite_solution() -> None:
    w = torch.randn(1, 5).repeat(4, 1) * torch.arange(1, 5)[:, None]
    candidates = Dictionary(SAE(w, torch.zeros(5), None, "decoder")).candidates(w, torch.arange(4).expand(4, 4))
    found = factorize(candidates)
    solved = torch.linalg.solve_triangular(found.factor.transpose(1, 2), found.target[:, :, None], upper=True)
    assert torch.isfinite(solved).all()
    torch.testing.assert_close(solved[:, :, 0].sum(1), w.norm(dim=1), rtol=1e-3, atol=0.0)
