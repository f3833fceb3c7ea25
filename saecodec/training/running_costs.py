"""What codes cost while a training runs: the factorized prior's bits, from running means.

A firing of latent f costs -log2 (p_f / (1 - p_f)): its place, less what a silent cell costs. Its level l = z / step
costs what a geometric distribution with the latent's mean level m charges, -log2 (1 - q) - (l - 1) log2 q with
q = 1 - 1/m: it is linear in l, so that it has a gradient in z. The codec's own tables are a little cheaper, for gaps
see bursts and level tables see more than a mean.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor

from saecodec.costs import COST_LEVELS, Costs
from saecodec.training.checked_state import tensor_like
from saecodec.training.sparse_products import Places

_KEEP: Final = 0.98  # of a running mean, at a step
_LEAST_RATE: Final = 1e-6
_DEAREST: Final = 17.0  # bits of a place; a latent that is never chosen would stay so at a higher price
_LEAST_LEVEL: Final = 1.2  # mean: below, a tenth of a level would cost more than a place
_PRIOR_FIRINGS: Final = 1e-4  # a row: as if so many of the mean size were among each latent's
_CLASSES: Final = 24  # of mean levels, four an octave


class RunningCosts:
    """Firing rates and mean activations of latents, float32 (F,) on the device."""

    def __init__(self, n_latents: int, device: torch.device) -> None:
        self._rate = torch.zeros(n_latents, device=device)
        self._sum = torch.zeros(n_latents, device=device)
        self._weight = 0.0

    def add(self, places: Places, values: Tensor) -> None:
        """Take note of the activations (K,) at places of a step."""
        share = 1 - _KEEP
        counts = torch.bincount(places.latents, minlength=places.n_latents).to(torch.float32)
        self._rate.mul_(_KEEP).add_(counts, alpha=share / places.n_rows)
        self._sum.mul_(_KEEP).add_(places.per_latent(values), alpha=share / places.n_rows)
        self._weight = _KEEP * self._weight + share

    @property
    def l0(self) -> float:
        """Firings a row."""
        return float(self._rate.sum()) / max(self._weight, 1e-9)

    @property
    def mean_activation(self) -> float:
        """Of firings."""
        return float(self._sum.sum() / self._rate.sum().clamp(min=1e-9)) or 1.0

    def support(self) -> Tensor:
        """Bits of a place: float32 (F,)."""
        rate = (self._rate / max(self._weight, 1e-9)).clamp(_LEAST_RATE, 0.999)
        return torch.log2((1 - rate) / rate).clamp(max=_DEAREST)

    def mean_levels(self, step: float) -> Tensor:
        """Mean level of each latent at a step, float32 (F,)."""
        mean = self._sum.sum() / self._rate.sum().clamp(min=1e-9)
        means = (self._sum + _PRIOR_FIRINGS * mean) / (self._rate + _PRIOR_FIRINGS)
        return (means / step).clamp(min=_LEAST_LEVEL)

    def bits_per_row(self, step: float) -> float:
        """Of the rows so far, with entropies in place of codes."""
        rate = (self._rate / max(self._weight, 1e-9)).clamp(max=1.0)
        places = torch.special.entr(rate) + torch.special.entr(1 - rate)
        q = 1 - 1 / self.mean_levels(step)
        levels = rate * (torch.special.entr(q) + torch.special.entr(1 - q)) / (1 - q)
        return float((places + levels).sum()) / math.log(2)

    def of_activations(self, places: Places, values: Tensor, step: float) -> Tensor:
        """Bits of activations (K,) at places, with gradients in the values."""
        q = 1 - 1 / self.mean_levels(step)
        first, more = -torch.log2(1 - q), -torch.log2(q)
        base = self.support() + first - more
        return (base[places.latents] + more[places.latents] * (values / step)).clamp(min=0)

    def costs(self, step: float) -> Costs:
        """What a search is to charge at a step."""
        levels = self.mean_levels(step)
        classes = (4 * torch.log2(levels)).round().clamp(0, _CLASSES - 1).to(torch.int64)
        q = 1 - 1 / np.maximum(2 ** (np.arange(_CLASSES) / 4), _LEAST_LEVEL)[:, None]
        table = np.zeros((_CLASSES, COST_LEVELS), np.float32)
        table[:, 1:] = -np.log2(1 - q) - np.arange(COST_LEVELS - 1) * np.log2(q)
        return Costs(self.support().cpu().numpy(), table, classes.cpu().numpy())

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint; `restore` is the inverse."""
        return {"rate": self._rate, "sum": self._sum, "weight": torch.tensor(self._weight, dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`; KeyError or ValueError when it is none."""
        held = {name: tensor_like(state, name, like, signed=False) for name, like in self.state().items()}
        self._rate.copy_(held["rate"])
        self._sum.copy_(held["sum"])
        self._weight = min(float(held["weight"]), 1.0)
