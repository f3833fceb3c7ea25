"""SAEs from their parts in canonical orientation, and the families that are two linear maps with a ReLU between them.

Goodfire: `encoder_linear.*`, `decoder_linear.*`. DeepSeek-R1 (qresearch) and others who save two `nn.Linear`:
`encoder.*`, `decoder.*`, biases included. z = relu(x E^T + b), x_hat = z D^T + b_dec: b_dec is not subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from saecodec.errors import CheckpointError
from saecodec.formats.checkpoint import Checkpoint, Family

if TYPE_CHECKING:
    from torch import Tensor

    from saecodec.nonlinearity import Nonlinearity
    from saecodec.sae import SAE


PLACE: Final = ("model_name", "hook_name")
"""What metadata says of the place in a model."""


class Maps(NamedTuple):
    """The linear maps of an SAE: w_enc (d, F), b_enc (F,) or none, w_dec (F, d), b_dec (d,) or none, float32."""

    w_enc: Tensor
    b_enc: Tensor | None
    w_dec: Tensor
    b_dec: Tensor | None


def made(
    checkpoint: Checkpoint,
    family: str,
    architecture: str,
    maps: Maps,
    *,
    nonlinearity: Nonlinearity,
    subtract: bool,
    normalization: str = "none",
    dtype: str = "float32",
    glu: tuple[Tensor, Tensor] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> SAE:
    """An SAE in canonical form.

    subtract: whether b_dec is taken from x first. dtype: of the encoder's product. glu: w_glu, b_glu of `Encoder`.
    CheckpointError when shapes contradict each other.
    """
    import torch

    from saecodec.encoder import DTYPES, Encoder
    from saecodec.nonlinearity import GroupMax
    from saecodec.sae import SAE

    w_enc, w_dec = maps.w_enc, maps.w_dec
    if w_dec.ndim != 2:
        raise CheckpointError(f"{checkpoint.file}: the decoder has shape {tuple(w_dec.shape)}, expected two dimensions")
    n_latents, width = w_dec.shape
    k = nonlinearity.config().get("k", 0)
    if k > n_latents:
        raise CheckpointError(f"{checkpoint.path}: k is {k}, but the SAE has {n_latents} latents")
    if isinstance(nonlinearity, GroupMax) and n_latents % nonlinearity.k:
        raise CheckpointError(f"{checkpoint.path}: groupmax of {nonlinearity.k} groups, but {n_latents} latents")
    b_enc = torch.zeros(n_latents) if maps.b_enc is None else maps.b_enc
    b_dec = torch.zeros(width) if maps.b_dec is None else maps.b_dec
    product = DTYPES.get(dtype, torch.float32)
    encoder = Encoder(w_enc.contiguous().to(product), b_enc.to(product), nonlinearity, subtract)
    if glu is not None:
        encoder = replace(encoder, w_glu=glu[0].contiguous().to(product), b_glu=glu[1].to(product))
    facts = metadata or {}
    name, source = checkpoint.name, source_of(family, facts)
    return SAE(w_dec.contiguous(), b_dec, encoder, architecture, name, source, facts, normalization=normalization)


def source_of(family: str, metadata: Mapping[str, Any]) -> str:
    """Where an SAE comes from, for people: its library, and the place in a model that its file tells."""
    return " ".join([family, *(str(metadata[key]) for key in PLACE if metadata.get(key))])


def with_unit_decoder(sae: SAE) -> SAE:
    """The same reconstructions of an SAE with a ReLU, with decoder directions of norm 1: z and the encoder are
    multiplied by their norms."""
    import torch

    from saecodec.encoder import Encoder

    assert isinstance(sae.encoder, Encoder)
    norms = sae.w_dec.norm(dim=1)
    norms = torch.where(norms > 0, norms, 1)
    encoder = replace(sae.encoder, w_enc=sae.encoder.w_enc * norms, b_enc=sae.encoder.b_enc * norms)
    return replace(sae, w_dec=sae.w_dec / norms[:, None], encoder=encoder)


_GOODFIRE: Final = frozenset(f"{part}_linear.{kind}" for part in ("encoder", "decoder") for kind in ("weight", "bias"))
_LINEAR: Final = frozenset(f"{part}.{kind}" for part in ("encoder", "decoder") for kind in ("weight", "bias"))


def _load(checkpoint: Checkpoint, family: str, infix: str) -> SAE:
    from saecodec.nonlinearity import ReLU

    names = (f"encoder{infix}.weight", f"encoder{infix}.bias", f"decoder{infix}.weight", f"decoder{infix}.bias")
    encoder, b_enc, decoder, b_dec = checkpoint.tensors(*names)
    maps = Maps(encoder.t(), b_enc, decoder.t(), b_dec)
    return made(checkpoint, family, "standard", maps, nonlinearity=ReLU(), subtract=False)


GOODFIRE: Final = Family(
    "Goodfire",
    "a .pt or .pth with encoder_linear.*, decoder_linear.*",
    "relu",
    "none",
    "",
    lambda checkpoint: checkpoint.names == _GOODFIRE,
    lambda checkpoint: _load(checkpoint, "Goodfire", "_linear"),
)
LINEAR: Final = Family(
    "DeepSeek-R1 (qresearch), and two nn.Linear in general",
    "a .pt or .safetensors with encoder.*, decoder.* and both biases",
    "relu",
    "none",
    "",
    lambda checkpoint: checkpoint.names == _LINEAR and checkpoint.config("config.json", "hyperparams.json") is None,
    lambda checkpoint: _load(checkpoint, "linear", ""),
)
