"""openai/sparse_autoencoder: a `.pt` state dict, `activation` told in it; and saerch's copies for text embeddings.

u = x - pre_bias, h = u E^T + latent_bias, x_hat = z D^T + pre_bias. ReLU; or TopK with `postact_fn` ReLU or Identity
(signed), whose rows are layer-normalized first and restored after. Equation: 4965b94, `model.py`. saerch
(Christine8888/saerch) has the same names, neither `activation` nor layer norm, and k in the file's name, `{k}_{n}.pth`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from saecodec.errors import CheckpointError, UnsupportedError
from saecodec.formats.checkpoint import Checkpoint, Family
from saecodec.formats.linear_sae import Maps, made

if TYPE_CHECKING:
    from saecodec.nonlinearity import Nonlinearity
    from saecodec.sae import SAE

_NAMES: Final = frozenset({"encoder.weight", "decoder.weight", "pre_bias", "latent_bias"})


def _load(checkpoint: Checkpoint) -> SAE:
    from saecodec.nonlinearity import ReLU, SignedTopK, TopK

    activation, state = checkpoint.values.get("activation"), checkpoint.values.get("activation_state_dict") or {}
    nonlinearity: Nonlinearity
    if activation == "ReLU":
        nonlinearity, architecture = ReLU(), "standard"
    elif activation == "TopK":
        after = state.get("postact_fn", "ReLU") if isinstance(state, Mapping) else None
        if after not in ("ReLU", "Identity"):
            raise UnsupportedError(f"{checkpoint.file}: postact_fn {after!r}; this version knows ReLU and Identity")
        k = checkpoint.k(state.get("k"))
        nonlinearity, architecture = (TopK(k) if after == "ReLU" else SignedTopK(k)), "topk"
    else:
        raise UnsupportedError(f"{checkpoint.file}: activation {activation!r}; this version knows ReLU and TopK")
    normalization = "layer_norm" if activation == "TopK" else "none"
    return _made(checkpoint, "openai/sparse_autoencoder", architecture, nonlinearity, normalization)


def _load_saerch(checkpoint: Checkpoint) -> SAE:
    from saecodec.nonlinearity import TopK

    told = re.fullmatch(r"(\d+)_(\d+)", checkpoint.file.stem)
    asked = checkpoint.options.k
    k = asked if asked is not None else int(told[1]) if told else None
    if told and asked is None and int(told[2]) != len(checkpoint.values["latent_bias"]):
        raise CheckpointError(
            f"{checkpoint.file}: the name says {told[2]} latents, there are {len(checkpoint.values['latent_bias'])}: "
            "give k (--sae-k K)"
        )
    return _made(checkpoint, "saerch", "topk", TopK(k if k is not None else checkpoint.k(None)), "none")


def _made(
    checkpoint: Checkpoint, family: str, architecture: str, nonlinearity: Nonlinearity, normalization: str
) -> SAE:
    encoder, decoder, b_dec, b_enc = checkpoint.tensors("encoder.weight", "decoder.weight", "pre_bias", "latent_bias")
    maps = Maps(encoder.t(), b_enc, decoder.t(), b_dec)
    return made(
        checkpoint,
        family,
        architecture,
        maps,
        nonlinearity=nonlinearity,
        subtract=True,
        normalization=normalization,
    )


OPENAI: Final = Family(
    "openai/sparse_autoencoder",
    "a .pt with pre_bias, latent_bias and activation",
    "relu, topk, topk with Identity (signed)",
    "mean and deviation of a row (topk)",
    "",
    lambda checkpoint: checkpoint.names >= _NAMES | {"activation"},
    _load,
)
SAERCH: Final = Family(
    "saerch",
    "{k}_{n}.pth with pre_bias, latent_bias and no activation",
    "topk (k from the name, or --sae-k)",
    "none",
    "",
    lambda checkpoint: checkpoint.names >= _NAMES and "activation" not in checkpoint.names,
    _load_saerch,
)
