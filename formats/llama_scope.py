"""Llama Scope and OpenMOSS Language-Model-SAEs: both generations of checkpoints.

First generation (Llama Scope): `hyperparams.json` and `checkpoints/final.safetensors`, nn.Linear layout;
Llama-Scope-R1 has `config.json` with the same layout. Second (`llamascopium`): `config.json` and
`sae_weights.safetensors`, W_E, W_D.

h = f u W_E + b_E [times sigmoid(f u W_glu + b_glu)], z = act(h n) / n with n = |W_D| if
`sparsity_include_decoder_norm`, else act(h); x_hat = (z W_D + b_D) / f. f = sqrt(d) over the mean norm of the dataset
(`dataset-wise`), or 1 where rows are normalized one by one (`token-wise`, `batch-wise`) or not at all. So f is folded
into the weights on both sides, and z stays what the encoder makes of normalized rows. The first generation divides z
by f, or with a decoder norm multiplies it by n / f; reconstructions are the same. Equations: Language-Model-SAEs
95281ac, `models/sae.py`, `models/sparse_dictionary.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from saecodec.errors import CheckpointError, UnsupportedError
from saecodec.formats.checkpoint import Checkpoint, Family, transcoder
from saecodec.formats.linear_sae import Maps, made

if TYPE_CHECKING:
    from torch import Tensor

    from saecodec.nonlinearity import Nonlinearity
    from saecodec.sae import SAE

_NORMALIZATIONS: Final = {
    "dataset-wise": "none",
    "inference": "none",
    None: "none",
    "token-wise": "row_norm",
    "batch-wise": "sequence_norm",
}
_LOG_THRESHOLD: Final = "log_jumprelu_threshold"


def _is_first(checkpoint: Checkpoint) -> bool:
    config = checkpoint.config("hyperparams.json", "config.json") or {}
    return checkpoint.names >= {"encoder.weight", "decoder.weight"} and "d_model" in config


def _is_second(checkpoint: Checkpoint) -> bool:
    return checkpoint.names >= {"W_E", "b_E", "W_D"}


def _factors(checkpoint: Checkpoint, config: Mapping[str, Any], width: int) -> tuple[float, float]:
    """f of rows, which are multiplied by it, and of reconstructions, which are divided by it: the same for all rows.

    The norms of an autoencoder's input and output are those of one hook; should a config tell two, both are taken.
    """
    if config.get("norm_activation") != "dataset-wise":
        return 1.0, 1.0
    hooks = [config.get(f"hook_point_{side}") for side in ("in", "out")]
    told = config.get("dataset_average_activation_norm")
    norms: list[Any] = []
    for side, hook in zip(("in", "out"), hooks, strict=True):
        norm: Any = told.get(side, told.get(hook)) if isinstance(told, dict) else told
        if norm is None:
            norm = checkpoint.scalar(f"dataset_average_activation_norm.{hook}")
        norms.append(norms[0] if norm is None and norms else norm)
    return tuple(math.sqrt(width) / _positive(checkpoint, norm) for norm in norms)  # type: ignore[return-value]


def _positive(checkpoint: Checkpoint, norm: Any) -> float:
    """A mean norm; CheckpointError when it is no positive number."""
    if isinstance(norm, (int, float)) and 0 < norm < 1e30:
        return float(norm)
    raise CheckpointError(
        f"{checkpoint.path}: norm_activation is dataset-wise, but the mean norm of the dataset is {str(norm)[:40]}: "
        f"set it "
        'in the config ("dataset_average_activation_norm": {"in": ...})'
    )


def _refuse_transcoder(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    hooks = config.get("hook_point_in"), config.get("hook_point_out")
    if config.get("sae_type", "sae") != "sae":
        raise UnsupportedError(f"{checkpoint.path}: sae_type {config['sae_type']!r} is no autoencoder of rows")
    if None not in hooks and hooks[0] != hooks[1]:
        raise transcoder(checkpoint.path, f"from {hooks[0]} to {hooks[1]}")


def _normalization(checkpoint: Checkpoint, config: Mapping[str, Any]) -> str:
    found = config.get("norm_activation")
    if found not in _NORMALIZATIONS:
        known = ", ".join(str(name) for name in _NORMALIZATIONS)
        raise UnsupportedError(f"{checkpoint.path}: norm_activation {found!r}; this version knows {known}")
    return _NORMALIZATIONS[found]


def _activation(
    checkpoint: Checkpoint, config: Mapping[str, Any], norms: Tensor | None, threshold: Tensor | None, n_latents: int
) -> tuple[str, Nonlinearity]:
    """Architecture and nonlinearity of h. norms: n, where h n is what is compared. threshold: (F,) or one number."""
    import torch

    from saecodec.nonlinearity import JumpReLU, ReLU, TopK

    kind = str(config.get("act_fn", "relu")).lower()
    if kind in ("topk", "batchtopk") and threshold is not None:
        kind = "jumprelu"  # how a trained top-k is used
    if kind == "jumprelu":
        if threshold is None:
            raise CheckpointError(f"{checkpoint.path}: act_fn is jumprelu, but there is no threshold")
        each = threshold.expand(n_latents)
        return "jumprelu", JumpReLU((each if norms is None else each / torch.where(norms > 0, norms, 1)).contiguous())
    if kind == "topk":
        return "topk", TopK(checkpoint.k(config.get("top_k")), norms, scaled=False)
    if kind == "relu":
        return "standard", ReLU()
    if kind == "batchtopk":
        raise UnsupportedError(
            f"{checkpoint.path}: batchtopk keeps the k N largest of a batch of N rows, so what a row becomes depends "
            "on its neighbours, and no threshold is saved: convert it to jumprelu first (Language-Model-SAEs does at "
            "the end of a training)"
        )
    raise UnsupportedError(f"{checkpoint.path}: act_fn {kind!r}; this version knows relu, jumprelu, topk")


def _load_first(checkpoint: Checkpoint) -> SAE:
    import torch

    config = checkpoint.config("hyperparams.json", "config.json") or {}
    _refuse_transcoder(checkpoint, config)
    encoder, b_enc, decoder = checkpoint.tensors("encoder.weight", "encoder.bias", "decoder.weight")
    b_dec = checkpoint.tensors("decoder.bias")[0] if "decoder.bias" in checkpoint.names else None
    f, f_out = _factors(checkpoint, config, encoder.shape[1])
    norms = decoder.norm(dim=0) if config.get("sparsity_include_decoder_norm") else torch.ones(decoder.shape[1])
    norms = torch.where(norms > 0, norms, 1)
    threshold = None
    if _LOG_THRESHOLD in checkpoint.names:
        threshold = checkpoint.tensors(_LOG_THRESHOLD)[0].exp()
    elif isinstance(told := config.get("jump_relu_threshold"), (int, float)) and told > 0:
        if not told < 1e30:
            raise CheckpointError(f"{checkpoint.path}: jump_relu_threshold is {str(told)[:40]}")
        # It is told in units of h / f, or with decoder norms of h |W_D| / f_out.
        threshold = torch.tensor(float(told) * (f_out if config.get("sparsity_include_decoder_norm") else f))
    architecture, nonlinearity = _activation(checkpoint, config, None, threshold, decoder.shape[1])
    glu = None
    if config.get("use_glu_encoder"):
        w_glu, b_glu = checkpoint.tensors("encoder_glu.weight", "encoder_glu.bias")
        glu = (w_glu.t() * f, b_glu)
    return made(
        checkpoint,
        "Llama Scope",
        architecture,
        Maps(
            encoder.t() * f * norms,
            b_enc * norms,
            decoder.t() / f_out / norms[:, None],
            None if b_dec is None else b_dec / f_out,
        ),
        nonlinearity=nonlinearity,
        subtract=bool(config.get("apply_decoder_bias_to_pre_encoder", False)),
        normalization=_normalization(checkpoint, config),
        glu=glu,
        metadata={"hook_name": config.get("hook_point_in", "")},
    )


def _load_second(checkpoint: Checkpoint) -> SAE:
    config = checkpoint.config("config.json")
    if config is None:
        raise CheckpointError(
            f"{checkpoint.path}: the weights of a Language-Model-SAEs checkpoint need its config.json"
        )
    _refuse_transcoder(checkpoint, config)
    w_enc, b_enc, w_dec = checkpoint.tensors("W_E", "b_E", "W_D")
    b_dec = checkpoint.tensors("b_D")[0] if "b_D" in checkpoint.names else None
    f, f_out = _factors(checkpoint, config, w_enc.shape[0])
    norms = w_dec.norm(dim=1) if config.get("sparsity_include_decoder_norm", True) else None
    logged = f"activation_function.{_LOG_THRESHOLD}"
    threshold = checkpoint.tensors(logged)[0].exp() if logged in checkpoint.names else None
    architecture, nonlinearity = _activation(checkpoint, config, norms, threshold, w_dec.shape[0])
    glu = None
    if config.get("use_glu_encoder"):
        w_glu, b_glu = checkpoint.tensors("W_E_glu", "b_E_glu")
        glu = (w_glu * f, b_glu)
    return made(
        checkpoint,
        "Language-Model-SAEs",
        architecture,
        Maps(w_enc * f, b_enc, w_dec / f_out, None if b_dec is None else b_dec / f_out),
        nonlinearity=nonlinearity,
        subtract=False,
        normalization=_normalization(checkpoint, config),
        glu=glu,
        metadata={"hook_name": config.get("hook_point_in", "")},
    )


LLAMA_SCOPE: Final = Family(
    "Llama Scope, Llama-Scope-R1",
    "hyperparams.json and checkpoints/final.safetensors, or config.json and sae_weights.safetensors of encoder.*, "
    "decoder.*",
    "relu, jumprelu, topk, with GLU",
    "norm of a row (token-wise), mean norm of a sequence (batch-wise)",
    "transcoders; batchtopk without a threshold",
    _is_first,
    _load_first,
)
LANGUAGE_MODEL_SAES: Final = Family(
    "Language-Model-SAEs 2 (llamascopium)",
    "config.json and sae_weights.safetensors (or .pt) of W_E, W_D",
    "relu, jumprelu, topk, with GLU",
    "norm of a row (token-wise), mean norm of a sequence (batch-wise)",
    "transcoders, crosscoders; batchtopk without a threshold",
    _is_second,
    _load_second,
)
