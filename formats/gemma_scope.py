"""Gemma Scope: `params.npz` of W_enc (d, F), W_dec (F, d), b_enc, b_dec and threshold (F). Gemma Scope 2: `config.json`
and `params.safetensors` of the same in lower case.

h = x W_enc + b_enc, z = relu(h) 1[h > threshold], x_hat = z W_dec + b_dec: b_dec is not subtracted. The scale of the
activations is folded in already, but for SAEs of embeddings (`embedding/...`), whose W_enc is divided and W_dec
multiplied by sqrt(d). Equation: SAELens 6.54, `pretrained_sae_loaders.py`, and the report (arXiv
2408.05147).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from saecodec.formats.checkpoint import Checkpoint, Family, skip_connection, transcoder
from saecodec.formats.linear_sae import Maps, made

if TYPE_CHECKING:
    from saecodec.sae import SAE

_NAMES: Final = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
_LOWER: Final = tuple(name.lower() for name in _NAMES)
_SKIP: Final = "affine_skip_connection"
_EMBEDDING: Final = "embedding"
"""Folder of the SAEs of embeddings; only it tells them from others."""


def _is_npz(checkpoint: Checkpoint) -> bool:
    return checkpoint.file.suffix == ".npz" and {name.lower() for name in checkpoint.names} >= set(_LOWER)


def _load_npz(checkpoint: Checkpoint) -> SAE:
    lower = {name.lower(): name for name in checkpoint.names}
    return _load(checkpoint, "Gemma Scope", tuple(lower[name] for name in _LOWER))


def _load(checkpoint: Checkpoint, family: str, names: tuple[str, ...]) -> SAE:
    from saecodec.nonlinearity import JumpReLU

    w_enc, b_enc, w_dec, b_dec, threshold = checkpoint.tensors(*names)
    if _EMBEDDING in checkpoint.file.absolute().parts:
        # Trained on embeddings that were sqrt(d) times smaller than what the model makes of them.
        w_enc, w_dec = w_enc / math.sqrt(len(w_enc)), w_dec * math.sqrt(len(w_enc))
    maps = Maps(w_enc, b_enc, w_dec, b_dec)
    return made(checkpoint, family, "jumprelu", maps, nonlinearity=JumpReLU(threshold), subtract=False)


def _load_second(checkpoint: Checkpoint) -> SAE:
    config = checkpoint.config("config.json") or {}
    hooks = [config.get(key) for key in ("hf_hook_point_in", "hf_hook_point_out")]
    if _SKIP in checkpoint.names or config.get("affine_connection"):
        raise skip_connection(checkpoint.path, "affine_connection")
    if None not in hooks and hooks[0] != hooks[1]:
        raise transcoder(checkpoint.path, f"from {hooks[0]} to {hooks[1]}")
    return _load(checkpoint, "Gemma Scope 2", _LOWER)


GEMMA_SCOPE: Final = Family(
    "Gemma Scope", "params.npz", "jumprelu", "none", "", lambda checkpoint: _is_npz(checkpoint), _load_npz
)
GEMMA_SCOPE_2: Final = Family(
    "Gemma Scope 2",
    "config.json and params.safetensors",
    "jumprelu",
    "none",
    "transcoders, with and without affine skip",
    lambda checkpoint: checkpoint.file.suffix == ".safetensors" and checkpoint.names >= set(_LOWER),
    _load_second,
)
