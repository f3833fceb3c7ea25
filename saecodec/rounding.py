"""Closed-loop rounding: real coefficients of a support to integer levels, each rounding error fed back.

In the triangular form of `Selection` the coefficient chosen last depends on no other once those before it may still
adapt. So it is rounded first, and what it missed goes into the target of the others, back to the first and largest:
Babai's nearest plane (1986), here with the price of each level beside its squared error, and dropping a latent among
the choices. What no longer pays is pruned by this.
"""

from __future__ import annotations

import torch
from torch import Tensor

from saecodec.codes import MAX_LEVEL
from saecodec.errors import InputError
from saecodec.pursuit import LevelPrices, Selection


def round_levels(
    selection: Selection, prices: LevelPrices, step: float, offsets: Tensor, *, signed: bool
) -> tuple[Tensor, Tensor]:
    """Levels of the chosen candidates, and what each stood for before it was rounded, in steps.

    offsets: what a level's centroid adds to it, in steps, float32 (B, C, n): of levels 0..n - 2, and column n - 1 for
    all larger ones. Returns int64 (B, K) and float32 (B, K); levels of -1 in `chosen` are 0. InputError when a level
    would exceed 2^20.
    """
    chosen = selection.chosen
    places = chosen.clamp(min=0)
    row, support = prices.row.gather(1, places), prices.support.gather(1, places)
    n_offsets = offsets.shape[2]
    offset_at = (torch.arange(len(chosen), device=chosen.device)[:, None] * offsets.shape[1] + places) * n_offsets
    flat = offsets.reshape(-1)
    target = selection.target.clone()
    levels = torch.zeros_like(target)
    exact = torch.zeros_like(target)
    scale = selection.factor.diagonal(dim1=1, dim2=2) * step
    for k in range(chosen.shape[1] - 1, -1, -1):
        aim, unit = target[:, k], scale[:, k].clamp(min=torch.finfo(torch.float32).tiny)
        size = aim.abs() / unit if signed else aim / unit
        low = size.floor().clamp_(min=0)
        best, level, value = aim * aim, torch.zeros_like(aim), torch.zeros_like(aim)
        for option in (low, low + 1):
            held = option + flat.take(offset_at[:, k] + option.clamp(max=n_offsets - 1).long())
            cost = (size - held).mul_(unit).square_().add_(prices.of(row[:, k], option)).add_(support[:, k])
            better = (cost < best) & (option > 0)
            best, level = torch.where(better, cost, best), torch.where(better, option, level)
            value = torch.where(better, held, value)
        none = chosen[:, k] < 0
        level.masked_fill_(none, 0)
        value.masked_fill_(none, 0)
        if signed:
            sign = torch.where(aim < 0, -1.0, 1.0)
            level, value = level * sign, value * sign
        levels[:, k], exact[:, k] = level, size
        if k:
            target[:, :k].addcmul_(selection.factor[:, k, :k], (value * step)[:, None], value=-1)
    if levels.numel() and not float(levels.abs().max()) <= MAX_LEVEL:
        raise InputError(f"step {step:g} is too small: a level above 2^20 would be needed; use a larger step")
    return levels.long(), exact
