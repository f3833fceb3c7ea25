"""`load_sae`: SAE checkpoints of every family that is known, told apart by their content."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from saecodec.errors import CheckpointError, InputError, UnsupportedError
from saecodec.formats.checkpoint import Checkpoint, Family, Options, candidates
from saecodec.formats.dictionary_learning import DICTIONARY_LEARNING
from saecodec.formats.gemma_scope import GEMMA_SCOPE, GEMMA_SCOPE_2
from saecodec.formats.hub import Found, locate
from saecodec.formats.linear_sae import GOODFIRE, LINEAR
from saecodec.formats.llama_scope import LANGUAGE_MODEL_SAES, LLAMA_SCOPE
from saecodec.formats.mapped_sae import load_mapped, mapping_of
from saecodec.formats.mutual_features import MUTUAL_FEATURES
from saecodec.formats.openai_sae import OPENAI, SAERCH
from saecodec.formats.qwen_scope import QWEN_SCOPE
from saecodec.formats.saelens import SAELENS
from saecodec.formats.sparsify import SPARSIFY

if TYPE_CHECKING:
    from saecodec.sae import SAE

FAMILIES: Final[tuple[Family, ...]] = (
    SAELENS,
    DICTIONARY_LEARNING,
    GEMMA_SCOPE,
    GEMMA_SCOPE_2,
    LLAMA_SCOPE,
    LANGUAGE_MODEL_SAES,
    SPARSIFY,
    OPENAI,
    SAERCH,
    GOODFIRE,
    LINEAR,
    QWEN_SCOPE,
    MUTUAL_FEATURES,
)
"""Every family; a new one joins here. The first that matches is taken."""


CONFIGS: Final = ("cfg.json", "config.json", "hyperparams.json")
"""What libraries call their configs."""


def load_sae(
    path: str | os.PathLike[str], device: str = "auto", *, k: int | None = None, input_scale: float | None = None
) -> SAE:
    """Load a trained SAE from a checkpoint folder or file.

    path: of a folder or a weights file, `hf://owner/repo/path@revision`, or SAELens' `release/sae_id`; `path#i` picks
    one of several SAEs in a file; a JSON file maps the tensors of any other SAE (docs/checkpoints.md). device: where
    its weights go; "auto" is cuda where there is one. k: of a top-k whose checkpoint does not say it. input_scale:
    rows are multiplied by it before the SAE, and divided after: SAELens' `norm_scaling_factor`, which lies outside the
    weights (a `release/sae_id` brings its own). Raises CheckpointError when the checkpoint is incomplete,
    UnsupportedError when it is of a kind that cannot be coded or is not known.
    """
    found, part = _located(os.fspath(path))
    sae = _load(found.path, Options(k, part))
    scale = found.input_scale if input_scale is None else input_scale
    return (sae if scale is None else with_input_scale(sae, scale)).to(device)


def _located(path: str) -> tuple[Found, str | None]:
    """Where an SAE lies, downloaded if need be, and which part of the file it is."""
    name, _, part = path.rpartition("#") if "#" in path and not Path(path).exists() else (path, "", "")
    found = Found(Path(name)) if Path(name).exists() else locate(name)
    if found is None:
        raise UnsupportedError(
            f"{path}: no such path; expected an SAE checkpoint (a folder or a file), hf://owner/repo/path, or, where "
            "SAELens is installed, its release/sae_id"
        )
    return found, part or None


def _load(path: Path, options: Options) -> SAE:
    if path.name in CONFIGS:  # of a library: its folder is meant
        path = path.parent
    mapping = mapping_of(path)
    try:
        if mapping is not None:
            return load_mapped(mapping, options)
        family, checkpoint = find(path, options)
        return family.load(checkpoint)
    except (IndexError, RuntimeError, TypeError) as error:  # torch's, about tensors of shapes that no SAE has
        raise CheckpointError(f"{path}: its tensors do not fit together ({error})") from error


def find(path: Path, options: Options | None = None) -> tuple[Family, Checkpoint]:
    """The family of a checkpoint, and its weights. UnsupportedError when it is of none; CheckpointError when a folder
    holds several."""
    seen: list[Checkpoint] = []
    for level in candidates(path, options or Options()):
        found, damaged = [], []
        for checkpoint in level:
            try:
                family = next((family for family in FAMILIES if family.matches(checkpoint)), None)
            except (CheckpointError, UnsupportedError) as error:
                damaged.append(error)
                continue
            if family is not None:
                found.append((family, checkpoint))
        if len(found) > 1:
            names = ", ".join(str(checkpoint.file.relative_to(path)) for _, checkpoint in found[:20])
            raise CheckpointError(f"{path}: holds {len(found)} checkpoints: give the path of one of them ({names})")
        if found:
            return found[0]
        if damaged:
            raise damaged[0]
        seen += level
    known = "; ".join(family.name for family in FAMILIES)
    told = f"{seen[0].file} has {', '.join(sorted(map(str, seen[0].names))[:12])}" if seen else "there are no weights"
    raise UnsupportedError(
        f"{path}: no SAE checkpoint that is known ({told}). Known are: {known}. For any other, write a JSON file "
        "that maps its tensors (docs/checkpoints.md)"
    )


def with_input_scale(sae: SAE, factor: float) -> SAE:
    """The SAE of rows that are multiplied by `factor` first, and divided by it after: W_enc f, W_dec / f, b_dec / f.

    As in SAELens, `fold_activation_norm_scaling_factor`. InputError when the factor is not positive, or rows are
    normalized by figures of their own.
    """
    from saecodec.encoder import Encoder, MatchingPursuit

    if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise InputError(f"an input scale is a positive number, got {factor!r}")
    if sae.normalization != "none":
        raise InputError(
            f"the SAE {sae.name!r} normalizes rows ({sae.normalization}), so an input scale changes nothing: leave it "
            "out"
        )
    encoder = sae.encoder
    if isinstance(encoder, Encoder):
        scaled = encoder.w_glu if encoder.w_glu is None else encoder.w_glu * factor
        encoder = replace(encoder, w_enc=encoder.w_enc * factor, w_glu=scaled)
    elif isinstance(encoder, MatchingPursuit):
        raise UnsupportedError(
            f"{sae.name}: matching pursuit has no weights of its own to scale: scale the rows instead"
        )
    source = f"{sae.source}, input scale {factor:g}".removeprefix(", ")
    try:
        return replace(sae, w_dec=sae.w_dec / factor, b_dec=sae.b_dec / factor, encoder=encoder, source=source)
    except CheckpointError as error:
        raise InputError(f"an input scale of {factor:g} leaves weights that float32 cannot hold") from error
