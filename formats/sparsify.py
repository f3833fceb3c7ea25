"""EleutherAI sparsify: `cfg.json` and `sae.safetensors` of encoder.* (nn.Linear), W_dec (F, d), b_dec.

h = (x - b_dec) E^T + b; topk: the k largest, then relu; groupmax: the largest of each of k groups, then relu; configs
with `signed`: the k largest |h|, with their signs. x_hat = z W_dec + b_dec. It computes in the dtype of its first
tensor. Equation: sparsify 1.3.3, `sparse_coder.py`, `fused_encoder.py`; signed: its history, a48257e.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from saecodec.errors import UnsupportedError
from saecodec.formats.checkpoint import Checkpoint, Family, skip_connection, transcoder
from saecodec.formats.linear_sae import Maps, made

if TYPE_CHECKING:
    from saecodec.nonlinearity import Nonlinearity
    from saecodec.sae import SAE

_NAMES: Final = frozenset({"encoder.weight", "encoder.bias", "W_dec", "b_dec"})


def _load(checkpoint: Checkpoint) -> SAE:
    from saecodec.nonlinearity import AbsTopK, GroupMax, TopK

    config = checkpoint.config("cfg.json") or {}
    if config.get("transcode"):
        raise transcoder(checkpoint.path, "transcode")
    if config.get("skip_connection") or "W_skip" in checkpoint.names:
        raise skip_connection(checkpoint.path, "skip_connection")
    encoder, b_enc, w_dec, b_dec = checkpoint.tensors("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    k, activation = checkpoint.k(config.get("k")), config.get("activation", "topk")
    nonlinearity: Nonlinearity
    if activation == "groupmax":
        nonlinearity = GroupMax(k)
    elif activation == "topk":
        nonlinearity, activation = (AbsTopK(k), "abstopk") if config.get("signed") else (TopK(k), "topk")
    else:
        raise UnsupportedError(f"{checkpoint.path}: activation {activation!r}; this version knows topk, groupmax")
    dtype = str(next(iter(checkpoint.values.values())).dtype).removeprefix("torch.")
    maps = Maps(encoder.t(), b_enc, w_dec, b_dec)
    return made(checkpoint, "sparsify", activation, maps, nonlinearity=nonlinearity, subtract=True, dtype=dtype)


SPARSIFY: Final = Family(
    "EleutherAI sparsify",
    "cfg.json and sae.safetensors",
    "topk, groupmax, signed topk",
    "none",
    "transcoders, skip connections",
    lambda checkpoint: checkpoint.names >= _NAMES,
    _load,
)
