"""The units of a training: rows around zero, whose mean square is d."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from saecodec.errors import InputError


@dataclass(frozen=True, eq=False)
class Scaling:
    """mean: the mean row, in the units of the data, float32 (d,). scale: what rows, less it, are multiplied by."""

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
        return cls(scale, mean.to(torch.float32))

    def scaled(self, x: Tensor) -> Tensor:
        """Rows in these units. They are centred here, once and in float32: a mean that is large beside what rows differ
        by would take the digits of products in bfloat16, and of sums that it cancels from."""
        return (x - self.mean.to(x.device)) * self.scale
