"""The units of a training: rows whose mean squared distance from their mean is d."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from saecodec.errors import InputError


@dataclass(frozen=True, eq=False)
class Scaling:
    """scale: what rows are multiplied by. mean: the mean row, scaled, float32 (d,)."""

    scale: float
    mean: Tensor

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> Scaling:
        """From rows (n, d), summed in float64; InputError when there are none, or they do not vary."""
        n, total, squares = 0, torch.zeros(0, dtype=torch.float64), 0.0
        for x in batches:
            wide = x.to(torch.float64)
            total = wide.sum(0) if not n else total + wide.sum(0)
            squares += float(wide.square().sum())
            n += len(x)
        mean = total / max(n, 1)
        variance = squares / max(n, 1) - float(mean.square().sum())
        if not n or variance <= 1e-12 * squares / n:
            raise InputError(f"{n:,} rows that do not vary: there is nothing to train on")
        scale = math.sqrt(len(mean) / variance)
        return cls(scale, (mean * scale).to(torch.float32))

    def scaled(self, x: Tensor) -> Tensor:
        """Rows in these units."""
        return x * self.scale
