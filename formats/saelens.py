"""SAELens checkpoints: a folder with `cfg.json` and `sae_weights.safetensors`.

Current configs (SAELens 6) and older ones, whose keys and defaults differ; architectures standard, gated, jumprelu and
topk. What needs something else is refused by name. Equations: SAELens 6.54, `sae_lens/saes/<architecture>_sae.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saecodec.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from saecodec.sae import SAE

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"
_RENAMED: Final = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_TENSORS: Final = {
    "standard": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "topk": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "jumprelu": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "gated": {"W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"},
}
_DTYPES: Final = ("float32", "float64", "float16", "bfloat16")


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
    metadata: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> SAELensConfig:
        """Parse and check `cfg.json`; UnsupportedError names what this version cannot do."""
        path = folder / CONFIG
        try:
            raw = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path}: expected a JSON object")
        inner = raw.get("metadata")
        metadata = inner if isinstance(inner, dict) else {}
        version = str(raw.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
        flat = raw if _major(version) >= 6 else _upgraded(raw)
        return cls._checked(flat, {**metadata, **{k: flat[k] for k in _FACTS if k in flat}}, path)

    @classmethod
    def _checked(cls, cfg: Mapping[str, Any], metadata: Mapping[str, Any], path: Path) -> SAELensConfig:
        architecture = str(cfg.get("architecture", "standard"))
        if architecture not in _TENSORS:
            raise UnsupportedError(f"{path}: architecture {architecture!r}; this version loads {', '.join(_TENSORS)}")
        normalization = cfg.get("normalize_activations") or "none"
        # SAELens folds expected_average_only_in only when it downloads an SAE; loaded from disk it does nothing.
        if normalization not in ("none", "expected_average_only_in"):
            raise UnsupportedError(
                f"{path}: normalize_activations {normalization!r} needs side information, not built yet"
            )
        if (cfg.get("reshape_activations") or "none") != "none":
            raise UnsupportedError(f"{path}: reshape_activations {cfg['reshape_activations']!r} is not built yet")
        activation = cfg.get("activation_fn", "relu")
        if activation not in ("relu", "topk"):
            raise UnsupportedError(f"{path}: activation_fn {activation!r}; this version knows relu and topk")
        dtype = str(cfg.get("dtype", "float32")).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise UnsupportedError(f"{path}: dtype {dtype!r}; this version knows {', '.join(_DTYPES)}")
        sizes = {key: cfg.get(key) for key in ("d_in", "d_sae")} | (
            {"k": cfg.get("k")} if architecture == "topk" else {}
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
            metadata,
        )


_FACTS: Final = ("model_name", "hook_name")


def _major(version: str) -> int:
    head = version.split(".")[0]
    return int(head) if head.isdigit() else 0


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


def load_saelens(folder: Path) -> SAE:
    """Load a SAELens checkpoint in canonical form; CheckpointError or UnsupportedError name what is wrong with it."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from saecodec.nonlinearity import Gated, JumpReLU, Nonlinearity, ReLU, TopK
    from saecodec.sae import SAE, Encoder

    config = SAELensConfig.read(folder)
    try:
        stored = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read as safetensors ({error})") from error
    tensors = _checked_tensors(stored, config, folder)
    # SAELens casts the stored tensors to the config's dtype before use.
    dtype = getattr(torch, config.dtype)
    w = {key: value.to(dtype).to(torch.float32) for key, value in tensors.items()}
    nonlinearity: Nonlinearity = ReLU()
    b_enc = w["b_enc"] if "b_enc" in w else torch.zeros(config.d_sae)  # a gated SAE has its biases in the gates
    if config.architecture == "jumprelu":
        nonlinearity = JumpReLU(w["threshold"])
    elif config.architecture == "gated":
        nonlinearity = Gated(w["r_mag"], w["b_mag"], w["b_gate"])
    elif config.architecture == "topk":
        nonlinearity = TopK(config.k, w["W_dec"].norm(dim=1) if config.rescale_acts_by_decoder_norm else None)
    product = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32
    w_enc, b_enc = w["W_enc"].contiguous().to(product), b_enc.to(product)
    encoder = Encoder(w_enc, b_enc, nonlinearity, config.apply_b_dec_to_input)
    facts = [str(config.metadata[key]) for key in _FACTS if config.metadata.get(key)]
    name, source = folder.resolve().name, " ".join(["SAELens", *facts])
    return SAE(w["W_dec"].contiguous(), w["b_dec"], encoder, config.architecture, name, source, config.metadata)


def _checked_tensors(stored: Mapping[str, Tensor], config: SAELensConfig, folder: Path) -> dict[str, Tensor]:
    """The tensors of the architecture, of the right shapes; all others must be known to change nothing."""
    path, needed = folder / WEIGHTS, _TENSORS[config.architecture]
    missing, extra = needed - stored.keys(), stored.keys() - needed
    if missing:
        raise CheckpointError(f"{path}: tensors {sorted(missing)} are missing for architecture {config.architecture!r}")
    if "scaling_factor" in extra and bool((stored["scaling_factor"] == 1).all()):
        extra.discard("scaling_factor")
    if extra:
        raise UnsupportedError(
            f"{path}: tensors {sorted(extra)} are no part of architecture {config.architecture!r}: not built yet"
        )
    shapes = {"W_enc": (config.d_in, config.d_sae), "W_dec": (config.d_sae, config.d_in), "b_dec": (config.d_in,)}
    for key in needed:
        expected = shapes.get(key, (config.d_sae,))
        if tuple(stored[key].shape) != expected:
            raise CheckpointError(f"{path}: {key} has shape {tuple(stored[key].shape)}, expected {expected}")
    return {key: stored[key] for key in needed}
