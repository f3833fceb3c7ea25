"""What a checkpoint holds, checked: whoever made it, a training goes on from possible states alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def tensor_like(tensors: Mapping[str, Tensor], name: str, like: Tensor, *, signed: bool = True) -> Tensor:
    """The tensor of a name, of the shape and dtype of another; KeyError without it, ValueError when it is of others,
    not finite, or negative where it is not to be signed."""
    found = tensors[name]
    if found.shape != like.shape or found.dtype != like.dtype:
        raise ValueError(f"{name} is {found.dtype} {tuple(found.shape)}, expected {like.dtype} {tuple(like.shape)}")
    if not torch.isfinite(found).all() or not (signed or (found >= 0).all()):
        raise ValueError(f"{name} holds values that are impossible")
    return found


def number(numbers: Mapping[str, Any], name: str, most: float = math.inf) -> float:
    """The number of a name, from 0 to `most`; KeyError without it, ValueError when it is none or another."""
    found = numbers[name]
    if type(found) not in (int, float) or not 0 <= found <= most or not math.isfinite(found):
        raise ValueError(f"{name} is {found!r}, expected a number from 0 to {most:g}")
    return float(found)
