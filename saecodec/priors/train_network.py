"""Training of the context prior's network: Adam on batches of sequences, held-out rows as the judge.

The same rows on the same machine with the same number of threads give the same parameters, unless the time limit binds:
seeds are fixed, a batch is cut into a fixed number of parts, and their gradients are added in a fixed order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saecodec.batches import map_batches
from saecodec.codes import Codes
from saecodec.priors.context_rows import Batch, batch_of
from saecodec.priors.layout import Layout
from saecodec.priors.soft_network import Parameters, Shape, Workspace, gradient
from saecodec.sequences import SEQUENCE, linked_rows

_SEED: Final = 20241015
_PARTS: Final = 2  # of a batch, side by side
_WINDOW: Final = 128  # rows that stay together; longer sequences are cut
_TIMED: Final = 50  # steps after which the time of a step is known
_ALLOWED: Final = 0.85  # of the time that is left, for the steps between checks
_WARM_UP: Final = 100  # steps
_HOLD: Final = 0.3  # of the schedule at the full learning rate, before it falls to zero
_STEPS: Final = (300, 3000)  # at least, and at most: many rows need not all be seen
_CHECKS: Final = 20  # on held-out rows, over the schedule
_PATIENCE: Final = 5  # checks without a gain
_NAT: Final = math.log2(math.e)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. rank: hidden units. n_blocks: blocks of latents. batch_rows: rows of a step, about.
    rate: of learning. passes: over the rows. drop: share of the context's nonzeros left out, at random, in a step.
    decay: of the weights, per unit of learning. averaging: of the parameters over steps. gain_power: of a level, which
    weighs it as context."""

    rank: int = 128
    n_blocks: int = 24
    batch_rows: int = 1024
    rate: float = 4e-3
    passes: float = 16.0
    drop: float = 0.15
    decay: float = 0.3
    averaging: float = 0.998
    gain_power: float = 0.5


Report = Callable[[int, int, float], None]
"""Called with rows seen, rows to be seen, and bits per held-out row, support and levels."""


def windows(codes: Codes) -> NDArray[np.int64]:
    """Where rows may be cut: every boundary of sequences, and longer ones in windows; first rows and T, int64 (W + 1,).

    Without sequence ids all rows are one sequence.
    """
    begins = np.flatnonzero(~linked_rows(codes.columns, codes.n_rows)).tolist()
    inside = [np.arange(a, b, _WINDOW) for a, b in pairwise([*begins, codes.n_rows])]
    return np.concatenate([*inside, [codes.n_rows]]).astype(np.int64)


def train(
    codes: Codes,
    heldout: Codes,
    layout: Layout,
    gains: NDArray[np.float32],
    recipe: Recipe,
    device: torch.device,
    seconds: float,
    report: Report,
) -> Parameters:
    """The parameters with the fewest bits on held-out rows.

    codes, heldout: rows with their sequence ids. layout: of the blocks. gains: see `batch_of`. seconds: after which
    training has ended: the schedule is shortened to it.
    """
    cuts = windows(codes)
    codes = replace(codes, columns={SEQUENCE: np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))})
    shape = Shape(tuple(layout.class_start.tolist()), recipe.rank)
    generator = torch.Generator().manual_seed(_SEED)
    rates = (np.bincount(codes.latents, minlength=codes.n_latents) + 0.5) / (codes.n_rows + 1)
    p = Parameters.initial(shape, rates[layout.latent_of], codes.nnz / max(codes.n_rows, 1), generator).to(device)
    schedule = _Schedule(cuts, recipe, np.random.default_rng(_SEED))
    works = [Workspace(shape, schedule.part_rows, device) for _ in range(_PARTS)]
    judge = _Judge(heldout, layout, gains, works)
    started = time.perf_counter()
    adam = torch.optim.Adam([p.flat], lr=recipe.rate, betas=(0.9, 0.99), fused=True)
    average, best = p.flat.clone(), p.flat.clone()
    least, next_check, in_vain = math.inf, 0, 0

    def part(job: tuple[int, NDArray[np.int64], int]) -> int:
        i, rows, seed = job
        chosen = codes.take(rows)
        kept = np.random.default_rng(seed).random(chosen.nnz, np.float32) >= recipe.drop
        batch = batch_of(chosen, layout, gains, device, kept.astype(np.float32) / np.float32(1 - recipe.drop))
        gradient(p, batch, works[i], with_loss=False)
        return batch.n_rows

    n_steps, first = schedule.n_steps, 0.0
    for step, jobs in enumerate(schedule):
        elapsed = time.perf_counter() - started
        if step == 1:
            first = elapsed  # what comes before, a check of held-out rows, is no step
        elif step == _TIMED:  # as many as the time allows; only where it allows fewer does the clock decide anything
            pace_of_steps = (elapsed - first) / (step - 1)
            n_steps = min(n_steps, step + max(1, int(_ALLOWED * (seconds - elapsed) / pace_of_steps)))
        done = 1.0 if elapsed >= seconds else step / n_steps
        if done * _CHECKS >= next_check or done >= 1:
            next_check = int(done * _CHECKS) + 1
            bits = judge(Parameters(shape, average))
            report(int(done * n_steps) * recipe.batch_rows, n_steps * recipe.batch_rows, bits)
            if bits < least:
                least, in_vain = bits, 0
                best.copy_(average)
            else:
                in_vain += 1
            if done >= 1 or in_vain >= _PATIENCE:
                break
        n_rows = sum(map_batches(part, jobs, device))
        total = works[0].gradient.flat
        for work in works[1:]:
            total += work.gradient.flat
        p.flat.grad = total.div_(n_rows)
        pace = min(1.0, (step + 1) / _WARM_UP) * min(1.0, (1 - done) / (1 - _HOLD))
        adam.param_groups[0]["lr"] = recipe.rate * pace
        adam.step()
        for weights in (p.context, p.out, p.level_out):
            weights.mul_(1 - recipe.decay * recipe.rate * pace)
        average.lerp_(p.flat, 1 - min(recipe.averaging, (step + 1) / (step + 10)))
    return Parameters(shape, best)


class _Schedule:
    """The rows of each step, windows in random order, cut into parts: jobs of (part, rows, seed)."""

    def __init__(self, cuts: NDArray[np.int64], recipe: Recipe, random: np.random.Generator) -> None:
        self._first, self._length = cuts[:-1], np.diff(cuts)
        self._random = random
        self._wanted = max(1, recipe.batch_rows // _PARTS)
        self.part_rows = self._wanted + _WINDOW  # at most
        steps = round(recipe.passes * int(self._length.sum()) / (self._wanted * _PARTS))
        self.n_steps = min(max(steps, _STEPS[0]), _STEPS[1])

    def __iter__(self) -> Iterator[list[tuple[int, NDArray[np.int64], int]]]:
        queue = np.zeros(0, np.int64)
        while True:
            jobs = []
            for i in range(_PARTS):
                while self._length[queue].sum() < self._wanted:
                    queue = np.concatenate([queue, self._random.permutation(len(self._first))])
                n = int(np.searchsorted(np.cumsum(self._length[queue]), self._wanted)) + 1
                taken, queue = queue[:n], queue[n:]
                jobs.append((i, self._rows(taken), int(self._random.integers(1 << 60))))
            yield jobs

    def _rows(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        length = self._length[windows]
        return np.repeat(self._first[windows] - (np.cumsum(length) - length), length) + np.arange(int(length.sum()))


class _Judge:
    """Bits per held-out row."""

    def __init__(self, codes: Codes, layout: Layout, gains: NDArray[np.float32], works: list[Workspace]) -> None:
        rows, device = len(works[0].sum), works[0].sum.device
        starts = range(0, codes.n_rows, rows)
        self._batches = [batch_of(codes[i : i + rows], layout, gains, device) for i in starts]
        self._works, self._n_rows, self._device = works, max(codes.n_rows, 1), device

    def __call__(self, p: Parameters) -> float:
        def nats(job: tuple[int, list[Batch]]) -> Tensor:
            losses = [gradient(p, batch, self._works[job[0]], with_loss=True) for batch in job[1]]
            return sum((loss for loss in losses if loss is not None), torch.zeros(2, device=self._device))

        jobs = [(i, self._batches[i :: len(self._works)]) for i in range(len(self._works))]
        return float(sum(float(loss.sum()) for loss in map_batches(nats, jobs, self._device))) * _NAT / self._n_rows
