"""Derivatives of a jump, in spite of it: what moves a threshold that few activations are near.

Rajamanoharan et al. 2024 (arXiv 2407.14435), equations 11 and 12, with a rectangle of width `width` x threshold as the
kernel. h, threshold: float32 (K,), thresholds positive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def jump(h: Tensor, threshold: Tensor, width: float) -> Tensor:
    """h 1[h > threshold]."""
    out: Tensor = _Jump.apply(h, threshold, width)  # type: ignore[no-untyped-call]
    return out


def step_up(h: Tensor, threshold: Tensor, width: float) -> Tensor:
    """1[h > threshold], which has no gradient in h."""
    out: Tensor = _StepUp.apply(h, threshold, width)  # type: ignore[no-untyped-call]
    return out


def _kernel(h: Tensor, threshold: Tensor, width: float) -> Tensor:
    """The kernel's density at h: 1 / (width x threshold) near the threshold."""
    half = threshold * (width / 2)
    return torch.where((h - threshold).abs() < half, 0.5 / half, 0.0)


class _Jump(Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(h, threshold)
        ctx.width = width
        return torch.where(h > threshold, h, 0.0)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        h, threshold = ctx.saved_tensors
        return torch.where(h > threshold, slope, 0.0), -threshold * _kernel(h, threshold, ctx.width) * slope, None


class _StepUp(Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(h, threshold)
        ctx.width = width
        return (h > threshold).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        h, threshold = ctx.saved_tensors
        return None, -_kernel(h, threshold, ctx.width) * slope, None
