"""The SAE of the first latents of another."""

from __future__ import annotations

from dataclasses import replace

from saecodec.encoder import Encoder
from saecodec.nonlinearity import Nonlinearity, TopK
from saecodec.sae import SAE


def first_latents(sae: SAE, n: int) -> SAE:
    """`sae` with its first n latents alone; a top-k keeps at most n."""
    encoder = sae.encoder
    assert isinstance(encoder, Encoder)
    config, tensors = encoder.nonlinearity.config(), encoder.nonlinearity.tensors()
    if isinstance(encoder.nonlinearity, TopK):
        config = config | {"k": min(encoder.nonlinearity.k, n)}
    nonlinearity = Nonlinearity.from_config(config, {key: tensor[:n].clone() for key, tensor in tensors.items()})
    part = replace(
        encoder,
        w_enc=encoder.w_enc[:, :n].contiguous(),
        b_enc=encoder.b_enc[:n].clone(),
        nonlinearity=nonlinearity,
    )
    return replace(sae, w_dec=sae.w_dec[:n].clone(), encoder=part)
