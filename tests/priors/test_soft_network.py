"""The gradient of the network in training is that of its loss, as autograd finds it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from saecodec.codes import Codes
from saecodec.priors.context_rows import Batch, batch_of
from saecodec.priors.layout import Layout
from saecodec.priors.soft_network import LEVELS, Parameters, Shape, Workspace, gradient, hidden_units

CPU = torch.device("cpu")
SEQ = "seq"
GAINS = np.sqrt(np.arange(1, LEVELS + 1))
BLOCK = np.array([2, 0, 1, 1, 0, 2, 2, 1, 0, 2, 2])
LAYOUT = Layout(BLOCK, np.zeros_like(BLOCK), (3,))
SHAPE = Shape(tuple(LAYOUT.class_start.tolist()), 6)


@pytest.fixture
def _float64() -> Iterator[None]:
    """What is float32 in training is float64 here, so that gradients can be compared closely."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def codes_of(seed: int, n_rows: int, rate: float = 0.3) -> Codes:
    rng = np.random.default_rng(seed)
    levels = rng.geometric(0.15, (n_rows, len(BLOCK))) * (rng.random((n_rows, len(BLOCK))) < rate)
    levels *= rng.choice([-1, 1], levels.shape)
    return Codes.from_dense(levels, {SEQ: np.cumsum(rng.random(n_rows) < 0.25)})


def batch(codes: Codes, keep: np.ndarray | None = None) -> Batch:
    made = batch_of(codes, LAYOUT, GAINS, CPU, keep)
    return replace(made, linked=made.linked.to(torch.get_default_dtype()))


def parameters(seed: int) -> Parameters:
    made = torch.randn(SHAPE.size, generator=torch.Generator().manual_seed(seed)) / 2
    return Parameters(SHAPE, made)


def dense_loss(p: Parameters, codes: Codes, keep: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """Nats of support and levels, written for autograd: dense rows, one loop over blocks, probabilities as such."""
    levels = torch.from_numpy(codes.to_dense()[:, LAYOUT.latent_of]).abs()
    gain = torch.from_numpy(GAINS)[levels.clamp(1, LEVELS) - 1] * (levels > 0)
    if keep is not None:
        factor = np.zeros(codes.to_dense().shape)
        factor[codes.rows(), codes.latents] = keep
        gain = gain * torch.from_numpy(factor[:, LAYOUT.latent_of])
    ids, r, t = codes.columns[SEQ], SHAPE.rank, codes.n_rows
    total = torch.zeros(t, r)
    support, level_nats = torch.zeros(()), torch.zeros(())
    for g in range(SHAPE.n_blocks):
        some = slice(SHAPE.starts[g], SHAPE.starts[g + 1])
        hidden = (total + p.bias[g]).clamp(min=0)
        fires = (hidden @ p.out[some].T + p.out_bias[some]).sigmoid()
        support = support - torch.where(levels[:, some] > 0, fires, 1 - fires).log().sum()
        score = hidden @ p.level_out[some].T + p.level_bias[some]
        for row, j in (levels[:, some] > 0).nonzero().tolist():
            level = int(levels[row, some.start + j])
            stop = (p.stops - score[row, j]).sigmoid()
            chance = (1 - stop[: min(level, LEVELS) - 1]).prod()
            level_nats = level_nats - (chance * stop[level - 1] if level < LEVELS else chance).log()
        if g == SHAPE.n_blocks - 1:
            break
        steps = []
        for row in range(t):
            own, behind, ahead = p.context[some].split(r, 1)
            step = gain[row, some] @ own
            if row > 0 and ids[row] == ids[row - 1]:
                step = step + gain[row - 1, some] @ behind
            if row + 1 < t and ids[row] == ids[row + 1]:
                step = step + gain[row + 1, some] @ ahead
            steps.append(step)
        total = total + torch.stack(steps)
    return support, level_nats


def assert_gradient(p: Parameters, codes: Codes, keep: np.ndarray | None = None, rows: int | None = None) -> Tensor:
    work = Workspace(SHAPE, rows or codes.n_rows, CPU)
    for part in (work.gradient.flat, work.hidden, work.sum, work.toward, work.spread, work.logits):
        part.fill_(float("nan"))  # what a batch before left there
    loss = gradient(p, batch(codes, keep), work, with_loss=True)
    assert loss is not None
    real = Parameters(SHAPE, p.flat.clone().requires_grad_())
    support, levels = dense_loss(real, codes, keep)
    (support + levels).backward()
    torch.testing.assert_close(loss, torch.stack([support, levels]).detach(), rtol=1e-10, atol=1e-10)
    assert real.flat.grad is not None
    expected = Parameters(SHAPE, real.flat.grad)
    for name in SHAPE.parts():
        found, wanted = getattr(work.gradient, name), getattr(expected, name)
        assert wanted.abs().max() > 0, name
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    return work.gradient.flat.clone()


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_and_the_loss_are_autograds(seed: int) -> None:
    codes = codes_of(seed, 15)
    assert np.abs(codes.levels).max() > LEVELS
    assert_gradient(parameters(seed), codes)


@pytest.mark.usefixtures("_float64")
def test_context_left_out_is_left_out_of_the_gradient_but_coded_all_the_same() -> None:
    codes = codes_of(5, 20)
    keep = (np.random.default_rng(5).random(codes.nnz) < 0.7) / 0.7
    assert_gradient(parameters(5), codes, keep)


@pytest.mark.usefixtures("_float64")
def test_a_workspace_for_more_rows_gives_the_same_gradient() -> None:
    codes = codes_of(6, 10)
    torch.testing.assert_close(assert_gradient(parameters(6), codes, rows=33), assert_gradient(parameters(6), codes))


@pytest.mark.usefixtures("_float64")
def test_the_gradient_of_a_batch_is_the_sum_of_its_parts() -> None:
    """Where the parts are sequences of their own."""
    codes, p = replace(codes_of(7, 30), columns={SEQ: np.repeat([0, 1, 2], [4, 1, 25])}), parameters(7)
    work, total = Workspace(SHAPE, 30, CPU), torch.zeros(SHAPE.size)
    losses = torch.zeros(2)
    for a, b in ((0, 4), (4, 5), (5, 30)):
        loss = gradient(p, batch(codes[a:b]), work, with_loss=True)
        assert loss is not None
        losses += loss
        total += work.gradient.flat
    whole = gradient(p, batch(codes), work, with_loss=True)
    torch.testing.assert_close(work.gradient.flat, total)
    torch.testing.assert_close(whole, losses)


def test_in_float32_the_gradient_is_close_with_or_without_the_loss() -> None:
    codes, p = codes_of(8, 40), parameters(8)
    made = batch_of(codes, LAYOUT, GAINS.astype(np.float32), CPU)
    work = Workspace(SHAPE, 40, CPU)
    assert gradient(p, made, work, with_loss=False) is None
    without = work.gradient.flat.clone()
    assert without.dtype is torch.float32
    gradient(p, made, work, with_loss=True)
    torch.testing.assert_close(work.gradient.flat, without, rtol=0, atol=0)
    real = Parameters(SHAPE, p.flat.double().requires_grad_())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    sum(dense_loss(real, codes)).backward()
    torch.set_default_dtype(before)
    assert real.flat.grad is not None
    torch.testing.assert_close(without.double(), real.flat.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_float64")
def test_rows_without_nonzeros_have_a_gradient() -> None:
    """All are zeros that the biases foretell."""
    p, work = parameters(9), Workspace(SHAPE, 5, CPU)
    codes = Codes.from_dense(np.zeros((5, len(BLOCK)), int), {SEQ: np.zeros(5, np.int64)})
    loss = gradient(p, batch(codes), work, with_loss=True)
    assert loss is not None
    assert loss[1] == 0
    real = Parameters(SHAPE, p.flat.clone().requires_grad_())
    dense_loss(real, codes)[0].backward()
    torch.testing.assert_close(work.gradient.flat, real.flat.grad)


def test_hidden_units_are_those_that_the_gradient_goes_by() -> None:
    codes, p = codes_of(10, 20), parameters(10)
    made = batch_of(codes, LAYOUT, GAINS.astype(np.float32), CPU)
    total = torch.zeros(20, SHAPE.rank)
    for g, hidden in enumerate(hidden_units(p, made)):
        torch.testing.assert_close(hidden, (total + p.bias[g]).relu(), rtol=1e-5, atol=1e-5)
        if g == SHAPE.n_blocks - 1:
            break
        for row, latent, level in zip(codes.rows().tolist(), codes.latents, np.abs(codes.levels), strict=True):
            if BLOCK[latent] != g:
                continue
            added = float(GAINS[min(level, LEVELS) - 1]) * p.context[LAYOUT.column_of[latent]].view(3, -1)
            for other, part in zip((row, row + 1, row - 1), added, strict=True):
                if 0 <= other < 20 and codes.columns[SEQ][other] == codes.columns[SEQ][row]:
                    total[other] += part


def test_parameters_begin_at_the_rates_of_the_columns() -> None:
    rates = np.linspace(0.01, 0.5, SHAPE.n_columns)
    p = Parameters.initial(SHAPE, rates, 3.0, torch.Generator().manual_seed(0))
    assert p.flat.shape == (SHAPE.size,)
    torch.testing.assert_close(p.out_bias.sigmoid(), torch.from_numpy(rates).float())
    assert not p.level_out.any()
    again = Parameters.initial(SHAPE, rates, 3.0, torch.Generator().manual_seed(0))
    assert torch.equal(again.flat, p.flat)
    p.out[3, 2] = 77  # the parts are views of one vector
    assert 77 in p.flat
