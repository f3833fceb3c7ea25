"""Running costs are those of the factorized prior: a Bernoulli variable a cell, a geometric one a level."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from saecodec.training.running_costs import RunningCosts
from saecodec.training.sparse_products import Places

F, ROWS, STEP = 6, 2000, 0.5
RATES = torch.tensor([0.4, 0.2, 0.1, 0.05, 0.02, 0.0])
MEANS = torch.tensor([1.5, 3.0, 6.0, 0.9, 2.0, 1.0])


def codes(generator: torch.Generator) -> tuple[Places, Tensor]:
    places = Places.where(torch.rand(ROWS, F, generator=generator) < RATES)
    return places, MEANS[places.latents] * (0.5 + torch.rand(len(places), generator=generator))


def settled(n_steps: int = 300) -> RunningCosts:
    costs, generator = RunningCosts(F, torch.device("cpu")), torch.Generator().manual_seed(0)
    for _ in range(n_steps):
        costs.add(*codes(generator))
    return costs


def test_running_means_come_to_the_rates_and_the_mean_levels() -> None:
    costs = settled()
    assert costs.l0 == pytest.approx(float(RATES.sum()), rel=0.02)
    assert costs.mean_activation == pytest.approx(float((RATES * MEANS).sum() / RATES.sum()), rel=0.02)
    expected = (MEANS / STEP)[:5]
    torch.testing.assert_close(costs.mean_levels(STEP)[:5], expected, rtol=0.03, atol=0)
    odds = torch.log2((1 - RATES) / RATES)[:5]
    torch.testing.assert_close(costs.support()[:5], odds, rtol=0.03, atol=0.05)
    assert 15 < float(costs.support()[5]) < 20, "a latent that never fires is dear, not out of reach"


def test_the_first_step_counts_in_full() -> None:
    costs, once = RunningCosts(F, torch.device("cpu")), codes(torch.Generator().manual_seed(0))
    costs.add(*once)
    assert costs.l0 == pytest.approx(len(once[0]) / ROWS, rel=1e-4)


def test_an_activation_costs_what_a_bernoulli_and_a_geometric_variable_do() -> None:
    costs = settled()
    rate, mean = 1 / (1 + 2 ** costs.support().double()), costs.mean_levels(STEP).double()
    places = Places.where(torch.ones(3, F) > 0)
    levels = torch.tensor([1.0, 2.0, 9.0]).repeat_interleave(F)
    values = (levels * STEP).requires_grad_()
    bits = costs.of_activations(places, values, STEP)
    stop = 1 / mean[places.latents]  # the chance that a level goes no further
    chance = (1 - stop) ** (levels.double() - 1) * stop
    p = rate[places.latents]
    expected = -torch.log2(p / (1 - p)) - torch.log2(chance)
    torch.testing.assert_close(bits.detach().double(), expected.clamp(min=0), rtol=1e-4, atol=1e-4)
    bits.sum().backward()  # type: ignore[no-untyped-call]
    slope = -torch.log2(1 - stop) / STEP
    assert values.grad is not None
    torch.testing.assert_close(values.grad.double(), torch.where(expected > 0, slope, 0.0), rtol=1e-4, atol=1e-5)


def test_bits_of_a_row_are_the_entropies_of_places_and_levels() -> None:
    costs = settled()
    total = 0.0
    for p, mean in zip((costs._rate / costs._weight).tolist(), costs.mean_levels(STEP).tolist(), strict=True):
        if p == 0:
            continue
        total += -p * math.log2(p) - (1 - p) * math.log2(1 - p)
        levels = np.arange(1, 3000)
        chances = (1 - 1 / mean) ** (levels - 1.0) / mean
        total += p * float(-(chances * np.log2(np.maximum(chances, 1e-300))).sum())
    assert costs.bits_per_row(STEP) == pytest.approx(total, rel=1e-4)


def test_the_table_of_a_search_charges_the_same_up_to_the_width_of_its_classes() -> None:
    costs = settled()
    table = costs.costs(STEP)
    np.testing.assert_allclose(table.support, costs.support().numpy(), rtol=1e-6)
    for level in (1, 2, 5, 12):
        places = Places.where(torch.ones(1, F) > 0)
        wanted = costs.of_activations(places, torch.full((F,), level * STEP), STEP).numpy()
        found = np.maximum(table.support + table.levels[table.level_class, level], 0)
        # a mean level off by an eighth of an octave changes the bits by an eighth, and by the slope of a level
        np.testing.assert_allclose(found[:5], wanted[:5], atol=0.13 + 0.13 * level)
    assert (table.levels[:, 0] == 0).all(), "silence costs nothing"
    assert (np.diff(table.levels[:, 1:], axis=1) > 0).all()


def test_costs_go_on_from_a_state() -> None:
    one, other = settled(5), RunningCosts(F, torch.device("cpu"))
    other.restore({name: tensor.clone() for name, tensor in one.state().items()})
    for generator in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)):
        again = codes(generator)
        one.add(*again)
        other.add(*again)
    assert one.bits_per_row(STEP) == other.bits_per_row(STEP)
    for name, tensor in one.state().items():
        assert torch.equal(tensor, other.state()[name])


@pytest.mark.parametrize("name", ["rate", "sum", "weight"])
@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_states_that_cannot_be_are_refused(name: str, value: float) -> None:
    state = {key: tensor.clone() for key, tensor in settled(2).state().items()}
    state[name].fill_(value)
    with pytest.raises(ValueError, match=name):
        RunningCosts(F, torch.device("cpu")).restore(state)
    with pytest.raises(KeyError):
        RunningCosts(F, torch.device("cpu")).restore({key: t for key, t in state.items() if key != name})


def test_a_latent_that_fires_in_most_rows_costs_less_than_nothing_for_its_place() -> None:
    costs = RunningCosts(1, torch.device("cpu"))
    costs.add(Places.where(torch.ones(10, 1) > 0), torch.full((10,), 0.5))
    assert float(costs.support()) < 0, "silence is what costs"
    assert float(costs.of_activations(Places.where(torch.ones(1, 1) > 0), torch.ones(1), 0.5)) == 0
