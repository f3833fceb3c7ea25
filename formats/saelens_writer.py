"""Writing SAELens checkpoints: `cfg.json` and `sae_weights.safetensors`, as SAELens 6 itself saves and loads them.

The mirror of `saelens.py`. Keys and tensors: SAELens 6.54, `SAEConfig.to_dict`, `SAE.save_model` and
`SAE.load_from_disk` in `sae_lens/saes/sae.py`, and the parameters of each `sae_lens/saes/<architecture>_sae.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saecodec.errors import InputError, MissingPieceError, UnsupportedError
from saecodec.formats.saelens import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

    from saecodec.sae import SAE

LAYOUT: Final = "6.54.12"
"""The version of SAELens whose layout this is; from one before 6 it would take the config for one of other keys."""
_VERSION: Final = "sae_lens_version"
_TRAINED: Final = "sae_lens_training_version"
_METHODS: Final = frozenset({"self", "to_dict", "from_dict", "keys", "values", "items", "get"})
"""Names that SAELens' `SAEMetadata`, whose attributes the metadata become, needs for itself."""
_WRITTEN: Final = "relu (standard), jumprelu, topk and gated"


def write_saelens(sae: SAE, folder: str | os.PathLike[str], *, metadata: Mapping[str, Any]) -> None:
    """Write an SAE into a folder, which is there and holds no checkpoint yet, as SAELens loads it from the disk.

    What is read back (`load_sae`) is the same SAE: its `decoder_id`, its feature activations, and its `sae_id` too
    where its `architecture` is the one of the config, which is that of its nonlinearity: an SAE of "batchtopk" with a
    threshold is "jumprelu" in SAELens. metadata: of the config; names with JSON values, `model_name` and `hook_name`
    among them where they are known. Its version is the layout's; that of the training is None unless it is given.

    The folder is that of an `atomic_folder`: it sees to it that both files appear at once, and reports an OSError, such
    as that of a file that is there already, under the name that the folder is to have.

    Raises:
        UnsupportedError: SAELens has no such SAE, or this does not write it; the message names what is in the way.
        MissingPieceError: only the decoder is at hand.
        InputError: metadata are not JSON, or have a name that SAELens cannot hold.
    """
    from safetensors.torch import save

    config, tensors = _described(sae, _checked_metadata(metadata))
    # Not save_file: what that makes only its owner can read.
    for name, data in ((WEIGHTS, save(tensors)), (CONFIG, json.dumps(config).encode())):
        with open(Path(folder) / name, "xb") as file:
            file.write(data)


def _checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as the config has them; InputError when it cannot."""
    for name in metadata:
        if not isinstance(name, str) or name in _METHODS or name.startswith("__"):
            raise InputError(f"metadata of an SAE: {name!r} cannot be the name of a value in SAELens: choose another")
    try:
        json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"metadata of an SAE must be JSON: {error}") from error
    return {**metadata, _VERSION: LAYOUT, _TRAINED: metadata.get(_TRAINED)}


def _described(sae: SAE, metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of an SAE, in SAELens' own order, and its tensors in the dtype of the config."""
    from saecodec.encoder import Encoder

    encoder, what = sae.encoder, f"the SAE {sae.name!r}"
    if encoder is None:
        raise MissingPieceError(f"{what}: a checkpoint needs the whole SAE; only its decoder is at hand")
    if not isinstance(encoder, Encoder):
        raise UnsupportedError(f"{what} picks its latents by {encoder.kind}: written are {_WRITTEN}")
    if encoder.w_glu is not None:
        raise UnsupportedError(f"{what} has a gated linear unit (w_glu), which SAELens does not know")
    if sae.normalization != "none":
        raise UnsupportedError(f"{what} normalizes rows ({sae.normalization}): written are SAEs that do not")
    architecture, options, own = _architecture(sae, encoder)
    dtype = encoder.w_enc.dtype
    tensors = {"W_enc": encoder.w_enc, "W_dec": sae.w_dec, "b_dec": sae.b_dec, **own}
    config = {
        "d_in": sae.width,
        "d_sae": sae.n_latents,
        "dtype": str(dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": encoder.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if sae.row_dims == 2 else "none",
        "metadata": metadata,
        **options,
        "architecture": architecture,
    }
    return config, {key: _stored(tensor, dtype, f"{what}: {key}") for key, tensor in tensors.items()}


def _architecture(sae: SAE, encoder: Any) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """What SAELens calls an SAE with this encoder, its keys in the config, and its tensors beside the linear maps."""
    from saecodec.nonlinearity import Gated, JumpReLU, ReLU, TopK

    what, kind = f"the SAE {sae.name!r}", encoder.nonlinearity
    # Not isinstance: some that SAELens does not know are made of one that it does.
    if type(kind) is ReLU:
        return "standard", {}, {"b_enc": encoder.b_enc}
    if type(kind) is JumpReLU:
        return "jumprelu", {}, {"b_enc": encoder.b_enc, "threshold": kind.threshold}
    if type(kind) is TopK:
        if kind.rank is not None:
            raise UnsupportedError(f"{what} ranks the latents of its topk by other scales than their activations")
        if kind.k > sae.n_latents:
            raise UnsupportedError(f"{what} has k = {kind.k}, but {sae.n_latents} latents: SAELens cannot run that")
        return "topk", {"k": kind.k, "rescale_acts_by_decoder_norm": False}, {"b_enc": encoder.b_enc}
    if type(kind) is Gated:
        if bool(encoder.b_enc.any()):
            raise UnsupportedError(f"{what} is gated and has b_enc: in SAELens gate and magnitude have biases alone")
        return "gated", {}, {"b_gate": kind.b_gate, "b_mag": kind.b_mag, "r_mag": kind.r_mag}
    raise UnsupportedError(f"{what} has the nonlinearity {kind.kind!r}: written are {_WRITTEN}")


def _stored(tensor: Tensor, dtype: Any, what: str) -> Tensor:
    """A copy in the dtype that SAELens gives all tensors of an SAE; UnsupportedError when that changes a value, or one
    is NaN."""
    import torch

    held = tensor.detach().cpu()
    out = held.to(dtype).clone(memory_format=torch.contiguous_format)  # files cannot hold views of one tensor
    if bool(torch.isnan(held).any()):
        raise UnsupportedError(f"{what} holds NaN: such an SAE codes no row")
    if not torch.equal(out.float(), held.float()):
        raise UnsupportedError(
            f"{what} has values that {dtype} cannot hold, in which this SAE multiplies: SAELens has one dtype for all"
        )
    return out
