"""The training loop: it learns, meets its aim, and goes on from a state as if it had not stopped."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saecodec.errors import InputError
from saecodec.sae import SAE
from saecodec.training import Aim, Settings, Trainer
from saecodec.training import trainer as loop
from saecodec.training.first_latents import first_latents
from saecodec.training.methods import BatchTopK, Jump
from saecodec.training.parameters import Batch
from saecodec.training.rate_method import Rate
from saecodec.training.scaling import Scaling
from saecodec.training.sparse_products import Products

F, D, B, TRUE_K = 24, 12, 64, 2.0
CPU = torch.device("cpu")
SPARSITY = ["batchtopk", "topk", "jumprelu", "gated", "standard"]


def rows(n: int, seed: int) -> Tensor:
    """Sums of few of F directions, with noise; their mean and their scale are far from 0 and 1."""
    fixed, generator = torch.Generator().manual_seed(99), torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(F, D, generator=fixed))
    mean = 300 * torch.randn(D, generator=fixed)
    fires = torch.rand(n, F, generator=generator) < TRUE_K / F
    z = fires * (1 + torch.rand(n, F, generator=generator))
    return mean + 50 * (z @ directions + 0.05 * torch.randn(n, D, generator=generator))


ALL, HELD_OUT = rows(8192, 0), rows(1024, 1)


def batches(first: int = 0, size: int = B) -> Iterator[Tensor]:
    n = first
    while True:
        at = n * size % (len(ALL) - size)
        yield ALL[at : at + size]
        n += 1


def settings(architecture: str = "batchtopk", n_steps: int = 60, aim: Aim | None = None, **more: Any) -> Settings:
    objective = "rate" if architecture == "rate" else "sparsity"
    architecture = "jumprelu" if architecture == "rate" else architecture
    aim = aim or (Aim("nmse", 0.1) if objective == "rate" else Aim("l0", 2))
    more = {"learning_rate": 1e-2} | more
    return Settings(F, architecture, objective, aim, n_steps * B, B, **more)


def trainer(of: Settings) -> Trainer:
    return Trainer(of, Scaling.of([ALL]), HELD_OUT, CPU)


def trained(of: Settings) -> Trainer:
    made = trainer(of)
    for _ in made.train(batches()):
        pass
    assert made.steps_done == of.n_steps
    return made


def quality(sae: SAE, x: Tensor = HELD_OUT) -> tuple[float, float]:
    """NMSE and L0."""
    features = sae.features(x.numpy())
    error = (sae.rows(features) - x).double().square().sum()
    return float(error / (x - x.mean(0)).double().square().sum()), features.nnz / len(x)


# -- the SAE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", ["1", "switch - 1", "switch", "40"])
@pytest.mark.parametrize("architecture", [*SPARSITY, "rate"])
def test_the_sae_in_units_of_the_data_is_the_one_that_is_trained(architecture: str, n_steps: str) -> None:
    """What a training begins with, and what it has just gone over to, is an SAE, too."""
    made = trainer(settings(architecture))
    steps, switch = made.train(batches()), made._methods[-1][0] or 15
    for _ in range({"1": 1, "switch - 1": switch - 1, "switch": switch, "40": 40}[n_steps]):
        next(steps)
    with torch.no_grad():
        for parameter in (made.parameters[name] for name in ("b_enc", "b_dec")):
            parameter += 0.1 * torch.randn(len(parameter))
    sae = made.sae()
    scale = made._scaling.scale
    batch = Batch(made._scaling.scaled(HELD_OUT), made.parameters, made._products)
    method = made.method
    if isinstance(method, Rate):  # the trainer's codes are searched, the SAE's are its encoder's own
        places, values = super(Rate, method).codes(batch)
    else:
        places, values = method.codes(batch)
    assert len(places) < len(HELD_OUT) * F / 2
    features = sae.features(HELD_OUT.numpy())
    ours = places.dense(values / scale, torch.float32)
    theirs = torch.zeros(len(HELD_OUT), F)
    theirs[np.repeat(np.arange(len(HELD_OUT)), np.diff(features.indptr)), features.latents] = torch.from_numpy(
        features.values
    )
    # On the edge of a threshold roundings decide; elsewhere the two are the same.
    differ = (ours > 0) != (theirs > 0)
    assert differ.float().mean() < 2e-4
    torch.testing.assert_close(ours[~differ], theirs[~differ], rtol=1e-3, atol=2e-3 / scale)
    assert sae.architecture == ("jumprelu" if architecture in ("batchtopk", "rate") else architecture)
    torch.testing.assert_close(sae.w_dec.norm(dim=1), torch.ones(F))


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", [*SPARSITY, "rate"])
def test_training_meets_an_nmse_with_sparse_codes(architecture: str) -> None:
    made = trained(settings(architecture, 400 if architecture in ("batchtopk", "jumprelu") else 300, Aim("nmse", 0.1)))
    nmse, l0 = quality(made.sae())
    assert nmse == pytest.approx(0.1, rel=0.2)
    assert made.meter().nmse == pytest.approx(nmse, rel=0.25)
    assert l0 < {"standard": 8, "topk": 5.5, "rate": 5.5}.get(architecture, 5), "a row is 12 numbers"
    assert made.meter().dead == 0


@pytest.mark.parametrize("architecture", ["batchtopk", "topk", "jumprelu"])
def test_training_meets_a_number_of_active_latents_and_learns(architecture: str) -> None:
    made = trained(settings(architecture, 600 if architecture == "jumprelu" else 300))
    nmse, l0 = quality(made.sae())
    assert l0 == pytest.approx(2, rel=0.15)
    assert nmse < 0.5 * best_of_rows(2), "better than the two best of as many fixed directions, and better than PCA"


def test_in_mixed_precision_it_learns_about_as_well() -> None:
    """As on cuda, where products are in bfloat16: of rows whose mean is a thousand times what they differ by."""
    of, held_out = settings("batchtopk", 300), HELD_OUT + 30_000
    made = Trainer(of, Scaling.of([ALL + 30_000]), held_out, CPU)
    made._products = Products(torch.bfloat16)
    for _ in made.train(x + 30_000 for x in batches()):
        pass
    assert quality(made.sae(), held_out)[0] == pytest.approx(quality(trained(of).sae())[0], rel=0.1)


def test_steering_looks_ahead_and_does_not_swing() -> None:
    made = trainer(settings("gated", 400, learning_rate=4e-3))
    l0 = [made.meter().l0 for _ in made.train(batches())][250:]
    assert max(l0) < 2 * 1.6
    assert min(l0) > 2 / 1.6


@pytest.mark.parametrize("architecture", ["jumprelu", "rate"])
def test_jumprelu_goes_on_with_the_threshold_of_batchtopk(architecture: str) -> None:
    made = trainer(settings(architecture))
    steps, switch = made.train(batches()), made._methods[1][0]
    for _ in range(switch - 1):
        next(steps)
    before = made.method
    assert isinstance(before, BatchTopK)
    next(steps)
    assert isinstance(made.method, Jump)
    torch.testing.assert_close(made.parameters["log_threshold"].exp(), torch.full((F,), before.threshold))
    assert made.meter().pressure == made.method.pressure
    if architecture == "jumprelu":
        assert made.method.pressure == pytest.approx(before.threshold**2)


def best_of_rows(k: int) -> float:
    """NMSE of the first k principal components."""
    spectrum = torch.linalg.svdvals((HELD_OUT - HELD_OUT.mean(0)).double()).square()
    return float(spectrum[k:].sum() / spectrum.sum())


def test_a_training_for_rate_meets_bits_and_pays_fewer_than_one_for_sparsity() -> None:
    aim = Aim("bits", 12)
    rate, sparse = (trained(settings(kind, 300, aim)).meter() for kind in ("rate", "batchtopk"))
    assert rate.bits == pytest.approx(12, rel=0.1)
    assert sparse.bits == pytest.approx(12, rel=0.15)
    assert rate.nmse < 0.9 * sparse.nmse


def test_every_prefix_of_a_nested_sae_learns() -> None:
    of = settings("batchtopk", 200, Aim("l0", 3), nested=(6, 12))
    nested, plain = trained(of).sae(), trained(settings("batchtopk", 200, Aim("l0", 3))).sae()
    errors = [quality(first_latents(nested, width))[0] for width in (6, 12, F)]
    assert errors[0] > errors[1] > errors[2]
    for width, error in zip((6, 12), errors, strict=False):
        assert error < 0.9 * quality(first_latents(plain, width))[0], "what was not nested is no good in part"


def test_dead_latents_come_to_life_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_DEAD_ROWS", 2000)
    dead = {}
    for weight in (0.0, 1.0):
        monkeypatch.setattr(loop, "_AUXILIARY", weight)
        made = trainer(settings("batchtopk", 250))
        with torch.no_grad():
            made.parameters["b_enc"][:8] = -3
        for _ in made.train(batches()):
            pass
        dead[weight] = made.meter().dead
    assert dead[0.0] >= 4 / F
    assert dead[1.0] < 2 / F


@pytest.mark.parametrize("architecture", [*SPARSITY, "rate"])
def test_a_training_that_diverges_says_so(architecture: str) -> None:
    with pytest.raises(InputError, match=r"diverged at step \d+: try a learning rate below 1e\+25"):
        trained(settings(architecture, learning_rate=1e25))


@pytest.mark.parametrize("name", ["w_enc", "w_dec"])
@pytest.mark.parametrize("architecture, step", [("batchtopk", 59), ("rate", 30), ("rate", 49), ("rate", 59)])
def test_weights_that_are_no_numbers_end_a_training_at_any_step(architecture: str, step: int, name: str) -> None:
    """30: before the first search. 49: before a look at held-out rows. 59: before the last step."""
    made = trainer(settings(architecture))
    steps = made.train(batches())
    for _ in range(step):
        next(steps)
    with torch.no_grad():
        made.parameters[name][3] = math.nan
    with pytest.raises(InputError, match=r"diverged at step \d+"):
        list(steps)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_nmse_that_is_aimed_at_is_the_one_that_is_told_of_held_out_rows(share: float) -> None:
    """Of rows that are much harder than the trained ones: of noise, as large as they are, and of half the size."""
    held_out = HELD_OUT.mean(0) + share * HELD_OUT.std(0) * torch.randn(512, D)
    of = settings("batchtopk", 400, Aim("l0", 4))
    made = Trainer(of, Scaling.of([ALL]), held_out, CPU)
    for _ in made.train(batches()):
        pass
    found = made.meter().nmse
    assert found == pytest.approx(quality(made.sae(), held_out)[0], rel=0.15)
    assert made._train_nmse is not None
    assert found > 2.5 * made._train_nmse


@pytest.mark.parametrize("gap", [0.7, 1.0, 2.0])
def test_the_first_search_meets_the_aim_on_held_out_rows(gap: float) -> None:
    made = trainer(settings("rate", aim=Aim("nmse", 0.2)))
    for _ in zip(range(30), made.train(batches()), strict=False):
        pass
    made._gap, method = gap, made.method
    assert isinstance(method, Rate)
    batch = Batch(made._scaling.scaled(ALL[:B]), made.parameters, made._products)
    method._calibrate(batch)
    missed = float(batch.error(batch.decoded(*method.codes(batch))).detach()) / D
    assert gap * missed == pytest.approx(0.2, rel=0.1)


def test_a_top_k_knows_how_many_latents_there_are() -> None:
    for architecture in ("batchtopk", "topk", "jumprelu"):
        made = trained(settings(architecture, 160, Aim("nmse", 1e-6)))
        assert made._methods[0][1].pressure <= F


# -- the same again ----------------------------------------------------------------------------------------------------


def weights(made: Trainer) -> dict[str, Tensor]:
    tensors, numbers = made.state()
    return {name: tensor.clone() for name, tensor in tensors.items()} | {"numbers": copy.deepcopy(numbers)}


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]) if isinstance(a[name], Tensor) else a[name] == b[name], name


@pytest.mark.parametrize(
    "architecture, aim",
    [(kind, Aim("nmse", 0.1)) for kind in (*SPARSITY, "rate")]
    + [("jumprelu", Aim("l0", 3)), ("gated", Aim("bits", 12)), ("rate", Aim("bits", 12))],
)
def test_a_training_that_goes_on_from_a_state_gives_the_same_bits(
    architecture: str, aim: Aim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped anywhere: before and after jumprelu and rate go on from batchtopk, and the first search. There are dead
    latents, for which lots are drawn, and held-out rows are looked at."""
    monkeypatch.setattr(loop, "_DEAD_ROWS", 150)
    monkeypatch.setattr(loop, "_MAX_REVIVED", 2)
    of = settings(architecture, 60, aim, nested=() if architecture in ("rate", "topk") else (7,))
    made, states, curve = trainer(of), {}, []
    switch = made._methods[-1][0]  # 0 where there is one method only
    stops = {switch - 1, switch, switch + 1, 50, 60} if switch else {1, 25, 60}
    for step in made.train(batches()):
        curve.append(made.meter())
        if step in stops:
            tensors, numbers = made.state()
            states[step] = {name: t.clone() for name, t in tensors.items()}, json.loads(json.dumps(numbers))
    end, sae = weights(made), made.sae()
    for stop, state in states.items():
        again = trainer(of)
        again.restore(*state)
        same(weights(again), state[0] | {"numbers": state[1]})
        assert [again.meter() for _ in again.train(batches(stop))] == curve[stop:]
        same(weights(again), end)
        assert again.sae().sae_id == sae.sae_id


def test_another_seed_gives_another_sae_and_the_same_one_the_same() -> None:
    one, same_one, other = (trained(settings(seed=seed)) for seed in (0, 0, 1))
    same(weights(one), weights(same_one))
    assert not torch.equal(one.parameters["w_dec"], other.parameters["w_dec"])


def test_a_training_asks_for_no_more_batches_than_it_takes() -> None:
    of = settings(n_steps=5)
    limited = itertools.islice(batches(), 5)
    made = trainer(of)
    assert list(made.train(itertools.chain(limited, never()))) == [1, 2, 3, 4, 5]
    assert list(made.train(never())) == []


def never() -> Iterator[Tensor]:
    pytest.fail("one batch too many was asked for")
    yield torch.zeros(0)


# -- states that cannot be ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"steps_done": -1},
        {"steps_done": 61},
        {"steps_done": 2.5},
        {"steps_done": "3"},
        {"steps_done": None},
        {"gap": math.nan},
        {"gap": "1"},
        {"gap": -1},
        {"train_nmse": None},
        {"train_nmse": math.inf},
        {"methods": []},
        {"methods": 5},
        {"methods": [{}, {}]},
        {"methods": [1, 2]},
        {"methods": None},
        {"methods": [{"pressure": math.nan, "threshold": 1.0}, {"pressure": 1.0}]},
        {"methods": [{"pressure": 1.0, "threshold": -1.0}, {"pressure": 1.0}]},
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    tensors, numbers = state_after_a_few()
    with pytest.raises((KeyError, RuntimeError, TypeError, ValueError)):
        trainer(settings("jumprelu")).restore(tensors, numbers | change)


def state_after_a_few() -> tuple[dict[str, Tensor], dict[str, Any]]:
    made = trainer(settings("jumprelu"))
    for _ in zip(range(20), made.train(batches()), strict=False):
        pass
    tensors, numbers = made.state()
    return {name: tensor.clone() for name, tensor in tensors.items()}, numbers


def test_tensors_that_cannot_be_are_refused() -> None:
    tensors, numbers = state_after_a_few()
    trainer(settings("jumprelu")).restore(tensors, numbers)
    for name, tensor in tensors.items():
        wrong = [torch.zeros(1, *tensor.shape, dtype=tensor.dtype), tensor.to(torch.complex64), tensor.reshape(-1)[:0]]
        if tensor.is_floating_point():
            wrong.append(torch.full_like(tensor, math.nan))
        for value in wrong:
            with pytest.raises((KeyError, RuntimeError, TypeError, ValueError)):
                trainer(settings("jumprelu")).restore(tensors | {name: value}, numbers)
        with pytest.raises((KeyError, RuntimeError, TypeError, ValueError)):
            trainer(settings("jumprelu")).restore({key: t for key, t in tensors.items() if key != name}, numbers)
