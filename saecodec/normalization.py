"""Normalization of rows by figures of their own, which an SAE does before encoding and undoes after decoding.

Those figures are the row's *side information*: a decoder needs them beside the feature activations, so they are coded
(`side.py`). SAEs whose normalization is one number for all rows have it folded into their weights, and are of kind
"none".
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saecodec import exact
from saecodec.features import Side

KINDS: Final = ("none", "layer_norm", "row_norm", "sequence_norm")
"""none: x itself. layer_norm: (x - mean) / (std + 1e-5), std with ddof 1, undone by mean and std alone (SAELens
`layer_norm`, openai/sparse_autoencoder `LN`). row_norm: x sqrt(d) / |x| (SAELens `constant_norm_rescale`,
Language-Model-SAEs `token-wise`). sequence_norm: x sqrt(d) / mean |x| over the row's sequence (Language-Model-SAEs
`batch-wise`)."""
_EPSILON: Final = 1e-5  # of layer_norm, on the way in alone: so both libraries


def has_mean(kind: str) -> bool:
    """Whether side information of this kind has means."""
    return kind == "layer_norm"


def side_of(kind: str, x: Tensor) -> Side | None:
    """The side information of rows x, float32 (T, d), of all kinds but sequence_norm, which `sequence_scales` is for.

    None for kind "none". Summed in float64, where the square of no float32 vanishes.
    """
    if kind == "none":
        return None
    if kind == "layer_norm":
        mean = x.mean(1, dtype=torch.float64).float()  # so exact in rows of equal values
        scale = _norms(x - mean[:, None]) / math.sqrt(max(x.shape[1] - 1, 1))
        return Side(scale.float().cpu().numpy(), mean.cpu().numpy())
    return Side((_norms(x) / math.sqrt(x.shape[1])).float().cpu().numpy())


def _norms(x: Tensor) -> Tensor:
    found: Tensor = x.norm(dim=1, dtype=torch.float64)
    return found


def exact_side_of(kind: str, x: NDArray[np.float32]) -> Side | None:
    """As `side_of`, of rows (T, d) in a numpy array, with the same result on every machine."""
    if kind == "none":
        return None
    if kind == "layer_norm":
        mean = exact.means(x).astype(np.float32)
        squares = exact.squares(x.astype(np.float64) - mean[:, None])
        return Side(np.sqrt(squares / max(x.shape[1] - 1, 1)).astype(np.float32), mean)
    return Side(np.sqrt(exact.squares(x) / x.shape[1]).astype(np.float32))


def sequence_scales(norms: NDArray[np.floating], ids: NDArray[np.integer], width: int) -> NDArray[np.float32]:
    """The scale of each row's sequence: mean |x| over the rows of the run of equal ids, over sqrt(d). norms: |x| (T,).

    >>> sequence_scales(np.array([1.0, 3, 5]), np.array([7, 7, 8]), 4)
    array([1. , 1. , 2.5], dtype=float32)
    """
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if len(ids) else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=len(ids))
    # fsum: the right one of all sums, whatever the order
    sums = np.array([math.fsum(norms[start : start + n]) for start, n in zip(starts, lengths, strict=True)])
    return np.repeat(sums / lengths / math.sqrt(width), lengths).astype(np.float32)


def normalized(kind: str, x: Tensor, side: Side | None) -> Tensor:
    """What the encoder sees of rows x, float32 (T, d), whose side information is `side`; of rows of scale 0, zeros."""
    if side is None:
        return x
    return _divided(x, side, _EPSILON if kind == "layer_norm" else 0.0)


def unrestored(x: Tensor, side: Side | None) -> Tensor:
    """The inverse of `restored`: what a decoder would have to reconstruct for rows x, float32 (T, d)."""
    return x if side is None else _divided(x, side, 0.0)


def restored(y: Tensor, side: Side | None) -> Tensor:
    """Rows in the input's own space, from reconstructions y, float32 (T, d), which may be overwritten."""
    if side is None:
        return y
    y = y.mul_(_column(side.scale, y))
    return y if side.mean is None else y.add_(_column(side.mean, y))


def _divided(x: Tensor, side: Side, epsilon: float) -> Tensor:
    centred = x if side.mean is None else x - _column(side.mean, x)
    scale = _column(side.scale, x) + epsilon
    return centred / torch.where(scale > 0, scale, 1) * (scale > 0)


def _column(values: NDArray[np.float32], like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.device)[:, None]
