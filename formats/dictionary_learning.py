"""saprmarks/dictionary_learning: `ae.pt`, a state dict, and `config.json` with the class that it belongs to.

Classes are told by the names of their tensors, and where two classes have the same ones, by `config.json`. Equations:
dictionary_learning 0.1.0, `dictionary.py` and `trainers/`. As its `load_dictionary` does, `AutoEncoder` is given a
decoder of unit norms, so its activations are in those units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from saecodec.errors import CheckpointError, UnsupportedError
from saecodec.formats.checkpoint import Checkpoint, Family
from saecodec.formats.linear_sae import Maps, made, with_unit_decoder

if TYPE_CHECKING:
    from saecodec.nonlinearity import Nonlinearity
    from saecodec.sae import SAE

_NAME: Final = "dictionary_learning"
_BACKUP: Final = frozenset({"step", "ae", "optimizer"})
_LINEAR: Final = frozenset({"encoder.weight", "encoder.bias", "decoder.weight"})
_PARAMETERS: Final = frozenset({"W_enc", "b_enc", "W_dec", "b_dec"})


def _trainer(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config("config.json") or {}
    trainer = config.get("trainer")
    return trainer if isinstance(trainer, dict) else {}


def _class_of(checkpoint: Checkpoint) -> str | None:
    """The name of the class whose tensors these are; None when it is none of them."""
    names, told = checkpoint.names, _trainer(checkpoint).get("dict_class")
    if names >= _BACKUP:
        return "backup"
    if names == _LINEAR | {"bias"}:
        return "AutoEncoder"
    if names == _LINEAR | {"decoder.bias"}:
        return "AutoEncoderNew" if told is not None else None  # else it is anybody's
    if names == {"encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight", "decoder_bias"}:
        return "GatedAutoEncoder"
    if _LINEAR | {"b_dec", "k"} <= names <= _LINEAR | {"b_dec", "k", "threshold"}:
        if told in ("AutoEncoderTopK", "BatchTopKSAE"):
            return str(told)
        threshold = checkpoint.scalar("threshold")
        return "AutoEncoderTopK" if threshold is None or threshold < 0 else "BatchTopKSAE"
    if names >= _PARAMETERS | {"threshold", "group_sizes"}:
        return "MatryoshkaBatchTopKSAE"
    if names == _PARAMETERS | {"threshold"} and checkpoint.file.suffix not in (".npz", ".safetensors"):
        return "JumpReluAutoEncoder"
    return None


def _auto_encoder(checkpoint: Checkpoint) -> SAE:
    from saecodec.nonlinearity import ReLU

    encoder, b_enc, decoder, bias = checkpoint.tensors("encoder.weight", "encoder.bias", "decoder.weight", "bias")
    maps = Maps(encoder.t(), b_enc, decoder.t(), bias)
    return with_unit_decoder(made(checkpoint, _NAME, "standard", maps, nonlinearity=ReLU(), subtract=True))


def _auto_encoder_new(checkpoint: Checkpoint) -> SAE:
    from saecodec.nonlinearity import ReLU

    names = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
    encoder, b_enc, decoder, bias = checkpoint.tensors(*names)
    maps = Maps(encoder.t(), b_enc, decoder.t(), bias)
    return made(checkpoint, _NAME, "standard", maps, nonlinearity=ReLU(), subtract=False)


def _gated(checkpoint: Checkpoint) -> SAE:
    from saecodec.nonlinearity import Gated

    encoder, decoder, b_dec = checkpoint.tensors("encoder.weight", "decoder.weight", "decoder_bias")
    r_mag, b_mag, b_gate = checkpoint.tensors("r_mag", "mag_bias", "gate_bias")
    gate = Gated(r_mag, b_mag, b_gate)
    maps = Maps(encoder.t(), None, decoder.t(), b_dec)
    return made(checkpoint, _NAME, "gated", maps, nonlinearity=gate, subtract=True)


def _jump_relu(checkpoint: Checkpoint) -> SAE:
    from saecodec.nonlinearity import JumpReLU

    w_enc, b_enc, w_dec, b_dec, threshold = checkpoint.tensors("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    maps = Maps(w_enc, b_enc, w_dec, b_dec)
    return made(checkpoint, _NAME, "jumprelu", maps, nonlinearity=JumpReLU(threshold), subtract=False)


def _top_k(checkpoint: Checkpoint) -> SAE:
    from saecodec.nonlinearity import TopK

    chosen = TopK(checkpoint.k(checkpoint.scalar("k")))
    return _linear_with_b_dec(checkpoint, "topk", chosen)


def _batch_top_k(checkpoint: Checkpoint) -> SAE:
    return _linear_with_b_dec(checkpoint, "batchtopk", _thresholded(checkpoint, checkpoint.values["encoder.bias"]))


def _linear_with_b_dec(checkpoint: Checkpoint, architecture: str, nonlinearity: Nonlinearity) -> SAE:
    encoder, b_enc, decoder, b_dec = checkpoint.tensors("encoder.weight", "encoder.bias", "decoder.weight", "b_dec")
    maps = Maps(encoder.t(), b_enc, decoder.t(), b_dec)
    return made(checkpoint, _NAME, architecture, maps, nonlinearity=nonlinearity, subtract=True)


def _matryoshka(checkpoint: Checkpoint) -> SAE:
    w_enc, b_enc, w_dec, b_dec = checkpoint.tensors("W_enc", "b_enc", "W_dec", "b_dec")
    maps = Maps(w_enc, b_enc, w_dec, b_dec)
    nonlinearity = _thresholded(checkpoint, b_enc)
    return made(checkpoint, _NAME, "matryoshka_batchtopk", maps, nonlinearity=nonlinearity, subtract=True)


def _thresholded(checkpoint: Checkpoint, like: Any) -> Nonlinearity:
    """What batch top-k is outside of training: relu(h) where it exceeds the saved threshold; -1 is none."""
    import torch

    from saecodec.nonlinearity import JumpReLU, ReLU

    threshold = checkpoint.scalar("threshold")
    if threshold is None or threshold < 0:
        return ReLU()
    return JumpReLU(torch.full((len(like),), threshold))


def _backup(checkpoint: Checkpoint) -> SAE:
    raise UnsupportedError(
        f"{checkpoint.file}: is a backup from the middle of a training, whose biases are in the units of normalized "
        "activations; give the ae.pt of a finished training, or one of checkpoints/ae_<step>.pt"
    )


_LOADERS: Final[dict[str, Callable[[Checkpoint], SAE]]] = {
    "AutoEncoder": _auto_encoder,
    "AutoEncoderNew": _auto_encoder_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jump_relu,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "backup": _backup,
}


def _load(checkpoint: Checkpoint) -> SAE:
    kind = _class_of(checkpoint)
    assert kind is not None
    if checkpoint.options.k is not None and kind not in ("AutoEncoderTopK",):
        raise CheckpointError(f"{checkpoint.path}: k was given, but a {kind} has none")
    return _LOADERS[kind](checkpoint)


DICTIONARY_LEARNING: Final = Family(
    _NAME,
    "ae.pt and config.json",
    "AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder, AutoEncoderTopK, BatchTopKSAE, "
    "MatryoshkaBatchTopKSAE",
    "none",
    "backups from the middle of a training (their biases are not folded)",
    lambda checkpoint: checkpoint.file.suffix in (".pt", ".pth", ".bin") and _class_of(checkpoint) is not None,
    _load,
)
