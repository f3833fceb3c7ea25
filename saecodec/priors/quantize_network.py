"""From a trained network to the integers of the bitstream."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from saecodec.priors.context_rows import Batch
from saecodec.priors.network import MAX_BIAS, MAX_SHIFT, MAX_WEIGHT, Network
from saecodec.priors.soft_network import Parameters, hidden_units

GAIN_UNIT: Final = 4
"""Of integer gains, per real one."""
_HIDDEN_SHARE: Final = 0.9995  # of hidden activations that are not cut off above
_WEIGHT_SHARE: Final = 0.9999  # of output weights that are not cut off
BIN_NATS: Final = 0.25  # of a bin of logits
_LEAST_LOGIT, _MOST_LOGIT = -14.0, 10.0
_OUTSIDE: Final = (5e-3, 1e-3)  # shares of the nonzeros in the first bin, where most cells are, and in the last
_LEVEL_BINS: Final = 32


def quantize_network(p: Parameters, block: NDArray[np.int64], gains: NDArray[np.float32], sample: Batch) -> Network:
    """The integer network nearest to real parameters.

    block: of each latent, int64 (F,). sample: rows that show how large hidden units, logits and scores get.
    """
    r = p.shape.rank
    hidden, logits, scores = _ranges(p, sample)
    context = _numpy(p.context).reshape(-1, 3, r)
    scale = MAX_WEIGHT / np.maximum(np.abs(context).max((0, 1), initial=0), 1e-6)  # integer weights per real one
    unit = scale * GAIN_UNIT
    shifts = np.ceil(np.log2(np.maximum(hidden * unit / MAX_WEIGHT, 1))).astype(np.int64).clip(0, MAX_SHIFT)
    step = np.exp2(shifts) / unit  # what one unit of a hidden activation stands for
    half = np.where(shifts > 0, np.exp2(shifts - 1), 0)  # shifts round down
    low, high = logits
    n_bins = max(2, int(np.ceil((high - low) / BIN_NATS)) + 1)
    out, out_bias, shift = _quantized_head(_numpy(p.out) * step, _numpy(p.out_bias) - low, BIN_NATS)
    low, high = scores
    width = max(high - low, 1e-3) / (_LEVEL_BINS - 1)
    level_out, level_bias, level_shift = _quantized_head(_numpy(p.level_out) * step, _numpy(p.level_bias) - low, width)
    return Network(
        block,
        np.rint(gains * GAIN_UNIT).astype(np.int64),
        np.rint(context * scale).astype(np.int8).reshape(-1, 3 * r),
        _bias(_numpy(p.bias) * unit + half),
        shifts,
        out,
        out_bias,
        level_out,
        level_bias,
        shift,
        level_shift,
        n_bins,
        _LEVEL_BINS,
    )


def _quantized_head(
    weights: NDArray[np.float64], bias: NDArray[np.float64], width: float
) -> tuple[NDArray[np.int8], NDArray[np.int64], int]:
    """Integer weights and biases, and the shift after which one integer stands for `width`."""
    largest = max(float(np.quantile(np.abs(weights), _WEIGHT_SHARE)), 1e-12)
    by_weight = np.log2(MAX_WEIGHT * width / largest)
    by_bias = np.log2((MAX_BIAS - 1) * width / max(float(np.abs(bias).max()), 1e-12))
    shift = int(np.clip(np.floor(min(by_weight, by_bias)), 0, MAX_SHIFT))
    unit = 2**shift / width
    return np.rint(weights * unit).clip(-MAX_WEIGHT, MAX_WEIGHT).astype(np.int8), _bias(bias * unit), shift


def _bias(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(values).clip(1 - MAX_BIAS, MAX_BIAS - 1).astype(np.int64)


def _ranges(p: Parameters, sample: Batch) -> tuple[NDArray[np.float64], tuple[float, float], tuple[float, float]]:
    """How large the hidden units get, float64 (r,), and where the logits and scores of nonzeros lie."""
    tops, logits, scores = [], [np.zeros(1)], [np.zeros(1)]
    for i, (hidden, block) in enumerate(zip(hidden_units(p, sample), sample.blocks, strict=True)):
        tops.append(torch.quantile(hidden, _HIDDEN_SHARE, dim=0) if len(hidden) else hidden.sum(0))
        columns, seen = slice(*p.shape.starts[i : i + 2]), hidden[block.row]
        for found, out, bias in ((logits, p.out, p.out_bias), (scores, p.level_out, p.level_bias)):
            found.append(_numpy((seen * out[columns][block.column]).sum(1) + bias[columns][block.column]))
    spans = [np.quantile(np.concatenate(found), [_OUTSIDE[0], 1 - _OUTSIDE[1]]) for found in (logits, scores)]
    low, high = spans[0].clip(_LEAST_LOGIT, _MOST_LOGIT)
    return _numpy(torch.stack(tops).amax(0)), (float(low), float(high)), (float(spans[1][0]), float(spans[1][1]))


def _numpy(values: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(values.cpu().numpy(), np.float64)
