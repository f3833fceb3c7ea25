"""SAELens checkpoints: a folder with `cfg.json` and `sae_weights.safetensors`.

Current configs (SAELens 6) and older ones, whose keys and defaults differ; raw training checkpoints of top-k kinds with
their saved threshold. What cannot be coded is refused by name. Equations: SAELens 6.54,
`sae_lens/saes/<architecture>_sae.py`, and 5.11 for `finetuning_scaling_factor` and tanh-relu, which version 6 does not
know any more.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saecodec.errors import CheckpointError, UnsupportedError
from saecodec.formats.checkpoint import Checkpoint, Family, read_config, transcoder
from saecodec.formats.linear_sae import PLACE, Maps, made, source_of

if TYPE_CHECKING:
    from torch import Tensor

    from saecodec.nonlinearity import Nonlinearity
    from saecodec.sae import SAE

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"
_RENAMED: Final = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_LINEAR: Final = frozenset({"W_enc", "b_enc", "W_dec", "b_dec"})
_TENSORS: Final = {
    "standard": _LINEAR,
    "topk": _LINEAR,
    "abstopk": _LINEAR,
    "jumprelu": _LINEAR | {"threshold"},
    "gated": frozenset({"W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"}),
    "batchtopk": _LINEAR | {"topk_threshold"},
    "matryoshka_batchtopk": _LINEAR | {"topk_threshold"},
    "matching_pursuit": frozenset({"W_dec", "b_dec"}),
}
_WITH_K: Final = ("topk", "abstopk")
_DTYPES: Final = ("float32", "float64", "float16", "bfloat16")
_NORMALIZATIONS: Final = {
    "none": "none",
    # Folded only when SAELens downloads an SAE: loaded from disk it does nothing, and neither does whitening.
    "expected_average_only_in": "none",
    "covariance_whitening": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "row_norm",
}


@dataclass(frozen=True)
class SAELensConfig:
    """What a config says about the arithmetic, whichever version wrote it."""

    architecture: str
    d_in: int
    d_sae: int
    dtype: str
    apply_b_dec_to_input: bool
    k: int
    rescale_acts_by_decoder_norm: bool
    activation_fn: str
    normalize_activations: str
    reshape_activations: str
    pursuit: tuple[int, float, bool]
    metadata: Mapping[str, Any]

    @property
    def normalization(self) -> str:
        """Of `normalization.KINDS`."""
        return _NORMALIZATIONS[self.normalize_activations]

    @property
    def nonlinearity(self) -> str:
        """Kind of its nonlinearity, or of its encoder."""
        if self.architecture == "standard":
            return "tanh_relu" if self.activation_fn == "tanh-relu" else "relu"
        return "jumprelu" if "batchtopk" in self.architecture else self.architecture

    @classmethod
    def read(cls, folder: Path) -> SAELensConfig:
        """Parse and check `cfg.json`; UnsupportedError names what cannot be coded."""
        path = folder / CONFIG
        raw = read_config(path)
        inner = raw.get("metadata")
        metadata = inner if isinstance(inner, dict) else {}
        version = str(raw.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
        flat = raw if _major(version) >= 6 else _upgraded(raw)
        return cls._checked(flat, {**metadata, **{k: flat[k] for k in PLACE if k in flat}}, path)

    @classmethod
    def _checked(cls, cfg: Mapping[str, Any], metadata: Mapping[str, Any], path: Path) -> SAELensConfig:
        architecture = str(cfg.get("architecture", "standard"))
        _refuse(architecture, path)
        normalization, reshape = cfg.get("normalize_activations") or "none", cfg.get("reshape_activations") or "none"
        activation = cfg.get("activation_fn", "relu")
        dtype = str(cfg.get("dtype", "float32")).removeprefix("torch.")
        known: dict[str, tuple[Any, tuple[str, ...]]] = {
            "normalize_activations": (normalization, tuple(_NORMALIZATIONS)),
            "reshape_activations": (reshape, ("none", "hook_z")),
            "activation_fn": (activation, ("relu", "topk", "tanh-relu")),
            "dtype": (dtype, _DTYPES),
        }
        for key, (found, allowed) in known.items():
            if found not in allowed:
                raise UnsupportedError(f"{path}: {key} {found!r}; this version knows {', '.join(allowed)}")
        sizes = {key: cfg.get(key) for key in ("d_in", "d_sae")} | (
            {"k": cfg.get("k")} if architecture in _WITH_K else {}
        )
        for key, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"{path}: {key} is {value!r}, expected a positive integer")
        return cls(
            architecture,
            cfg["d_in"],
            cfg["d_sae"],
            dtype,
            bool(cfg.get("apply_b_dec_to_input", True)),
            int(sizes.get("k") or 0),
            bool(cfg.get("rescale_acts_by_decoder_norm", False)),
            activation,
            normalization,
            reshape,
            _pursuit(cfg, path) if architecture == "matching_pursuit" else (0, 0.0, False),
            metadata,
        )


def _refuse(architecture: str, path: Path) -> None:
    if "transcoder" in architecture:
        raise transcoder(path, f"architecture {architecture!r}")
    if architecture == "temporal":
        raise UnsupportedError(
            f"{path}: architecture 'temporal': what its latents say is added to a prediction from the rows before, "
            "which a decoder does not have; the latents can be coded on their own (encode --latents)"
        )
    if architecture not in _TENSORS:
        raise UnsupportedError(f"{path}: architecture {architecture!r}; this version loads {', '.join(_TENSORS)}")


def _pursuit(cfg: Mapping[str, Any], path: Path) -> tuple[int, float, bool]:
    """Steps, threshold and whether to stop when the support stays, of matching pursuit."""
    from saecodec.encoder import MOST_STEPS

    steps, threshold = cfg.get("max_iterations"), cfg.get("residual_threshold", 1e-2)
    steps = cfg.get("d_in") if steps is None else steps
    fine = type(threshold) in (int, float) and abs(threshold) <= sys.float_info.max
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS or not fine:
        raise CheckpointError(f"{path}: max_iterations {steps!r}, residual_threshold {threshold!r}: not possible")
    return steps, max(float(threshold), 0.0), bool(cfg.get("stop_on_duplicate_support", True))


def _major(version: str) -> int:
    head = version.split(".")[0]
    return int(head) if re.fullmatch(r"[0-9]{1,6}", head) else 0


def _upgraded(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config from before SAELens 6 in today's terms (`sae_lens/loading/pretrained_sae_loaders.py`)."""
    cfg = {_RENAMED.get(key, key): value for key, value in raw.items()}
    if isinstance(cfg.get("normalize_activations"), bool):
        cfg["normalize_activations"] = "expected_average_only_in" if cfg["normalize_activations"] else "none"
    if cfg.get("activation_fn") == "topk" or cfg.get("architecture") == "topk":
        cfg["architecture"] = "topk"
        options = cfg.get("activation_fn_kwargs")
        cfg.setdefault("k", options.get("k") if isinstance(options, dict) else None)
    if "reshape_activations" not in cfg and "hook_z" in str(cfg.get("hook_name", "")):
        cfg["reshape_activations"] = "hook_z"
    return cfg


def is_saelens(folder: Path) -> bool:
    """Whether a path is a folder with a SAELens checkpoint."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def _load(checkpoint: Checkpoint) -> SAE:
    import torch

    folder = checkpoint.file.parent
    config = SAELensConfig.read(folder)
    if checkpoint.options.k not in (None, config.k or None):
        told = f"the config says {config.k}" if config.k else f"architecture {config.architecture!r} has none"
        raise CheckpointError(f"{folder / CONFIG}: k = {checkpoint.options.k} was given, but {told}")
    tensors = _checked_tensors(checkpoint.values, config, folder)
    # SAELens casts the stored tensors to the config's dtype before use.
    dtype = getattr(torch, config.dtype)
    w = {key: value.to(dtype).to(torch.float32) for key, value in tensors.items()}
    if config.architecture == "matching_pursuit":
        return _matching_pursuit(checkpoint, config, w)
    if config.architecture in ("batchtopk", "matryoshka_batchtopk"):
        w = _as_saved_for_inference(w, tensors["topk_threshold"], config)
    w_dec = w["W_dec"]
    if "scaling_factor" in w:
        w_dec = w_dec * w["scaling_factor"][:, None]  # x_hat = (z scaling_factor) W_dec + b_dec
    metadata = {**config.metadata, "normalize_activations": config.normalize_activations}
    sae = made(
        checkpoint,
        "SAELens",
        config.architecture,
        Maps(w["W_enc"], w.get("b_enc"), w_dec, w["b_dec"]),
        nonlinearity=_nonlinearity(config, w),
        subtract=config.apply_b_dec_to_input,
        normalization=config.normalization,
        dtype=config.dtype,
        metadata=metadata,
    )
    return _finished(sae, config, folder)


def _finished(sae: SAE, config: SAELensConfig, folder: Path) -> SAE:
    from dataclasses import replace

    row_dims = 2 if config.reshape_activations == "hook_z" else 1
    return replace(sae, name=folder.resolve().name, row_dims=row_dims)


def _nonlinearity(config: SAELensConfig, w: Mapping[str, Tensor]) -> Nonlinearity:
    from saecodec.nonlinearity import AbsTopK, Gated, JumpReLU, ReLU, TanhReLU, TopK

    rank = w["W_dec"].norm(dim=1) if config.rescale_acts_by_decoder_norm and config.architecture in _WITH_K else None
    if "threshold" in w:
        return JumpReLU(w["threshold"])
    if config.architecture == "gated":
        return Gated(w["r_mag"], w["b_mag"], w["b_gate"])
    if config.architecture == "topk":
        return TopK(config.k, rank)
    if config.architecture == "abstopk":
        return AbsTopK(config.k, rank)
    return TanhReLU() if config.activation_fn == "tanh-relu" else ReLU()


def _as_saved_for_inference(w: Mapping[str, Tensor], threshold: Tensor, config: SAELensConfig) -> dict[str, Tensor]:
    """A training checkpoint as `save_inference_model` would have written it: jumprelu, decoder norms folded."""
    import torch

    out = dict(w)
    if config.rescale_acts_by_decoder_norm:
        norms = w["W_dec"].norm(dim=1)
        norms = torch.where(norms > 0, norms, 1)
        out |= {"W_enc": w["W_enc"] * norms, "b_enc": w["b_enc"] * norms, "W_dec": w["W_dec"] / norms[:, None]}
    return out | {"threshold": torch.full_like(w["b_enc"], float(threshold))}


def _matching_pursuit(checkpoint: Checkpoint, config: SAELensConfig, w: Mapping[str, Tensor]) -> SAE:
    from saecodec.encoder import MatchingPursuit
    from saecodec.sae import SAE

    steps, threshold, stop = config.pursuit
    dtype = config.dtype if config.dtype in ("float16", "bfloat16") else "float32"
    encoder = MatchingPursuit(steps, threshold, stop, config.apply_b_dec_to_input, dtype)
    b_dec = w["b_dec"] if config.apply_b_dec_to_input else w["b_dec"] * 0  # added back only where it was taken away
    sae = SAE(
        w["W_dec"].contiguous(),
        b_dec,
        encoder,
        config.architecture,
        source=source_of("SAELens", config.metadata),
        metadata=config.metadata,
        normalization=config.normalization,
    )
    return _finished(sae, config, checkpoint.file.parent)


def _checked_tensors(stored: Mapping[str, Tensor], config: SAELensConfig, folder: Path) -> dict[str, Tensor]:
    """The tensors of the architecture, of the right shapes; all others must be known to change nothing."""
    path, needed = folder / WEIGHTS, _TENSORS[config.architecture]
    missing, extra = needed - stored.keys(), set(stored.keys() - needed)
    if missing:
        raise CheckpointError(f"{path}: tensors {sorted(missing)} are missing for architecture {config.architecture!r}")
    if "scaling_factor" in extra and config.architecture == "standard":
        extra.discard("scaling_factor")
        needed |= {"scaling_factor"}
    elif "scaling_factor" in extra and bool((stored["scaling_factor"] == 1).all()):
        extra.discard("scaling_factor")
    if extra:
        raise UnsupportedError(
            f"{path}: tensors {sorted(extra)} are no part of architecture {config.architecture!r}: what they do is not "
            "known"
        )
    shapes = {"W_enc": (config.d_in, config.d_sae), "W_dec": (config.d_sae, config.d_in), "b_dec": (config.d_in,)}
    shapes["topk_threshold"] = ()
    for key in needed:
        expected = shapes.get(key, (config.d_sae,))
        if tuple(stored[key].shape) != expected:
            raise CheckpointError(f"{path}: {key} has shape {tuple(stored[key].shape)}, expected {expected}")
    return {key: stored[key] for key in needed}


SAELENS: Final = Family(
    "SAELens",
    "cfg.json and sae_weights.safetensors, versions 3 to 6",
    "standard (relu, tanh-relu), gated, jumprelu, topk, abstopk, batchtopk and matryoshka_batchtopk (saved threshold), "
    "matching_pursuit",
    "mean and deviation of a row (layer_norm), norm of a row (constant_norm_rescale)",
    "transcoders, temporal",
    lambda checkpoint: checkpoint.file.name == WEIGHTS and is_saelens(checkpoint.file.parent),
    _load,
)
