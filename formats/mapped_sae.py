"""Any other SAE: weights in a `.safetensors`, `.pt` or `.npz`, and a JSON file in which the user says what is what.

The JSON file is given as the path, or lies in the folder as `saecodec.json`. docs/checkpoints.md has its keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saecodec.errors import CheckpointError, SaecodecError
from saecodec.formats.checkpoint import SUFFIXES, Checkpoint, Options, read_config
from saecodec.formats.linear_sae import Maps, made, with_unit_decoder

if TYPE_CHECKING:
    from torch import Tensor

    from saecodec.nonlinearity import Nonlinearity
    from saecodec.sae import SAE

MAPPING: Final = "saecodec.json"
KEYS: Final = frozenset(
    {
        "weights",
        "tensors",
        "nonlinearity",
        "k",
        "scaled",
        "apply_b_dec_to_input",
        "normalization",
        "architecture",
        "dtype",
        "unit_decoder",
    }
)
"""Of a mapping; docs/checkpoints.md explains each."""
_MATRICES: Final = ("w_enc", "w_dec", "w_glu")
_VECTORS: Final = ("b_enc", "b_dec", "b_glu", "threshold", "scale", "r_mag", "b_mag", "b_gate")


def mapping_of(path: Path) -> Path | None:
    """The mapping that a path stands for: itself, or the one in the folder; None without one."""
    if path.is_file() and path.suffix == ".json":
        return path
    return path / MAPPING if (path / MAPPING).is_file() else None


def load_mapped(path: Path, options: Options) -> SAE:
    """Load the SAE that a mapping describes; CheckpointError names the key that is wrong."""
    from saecodec.encoder import DTYPES

    raw = read_config(path)
    unknown = sorted(raw.keys() - KEYS)
    if unknown:
        raise CheckpointError(f"{path}: unknown keys {unknown}; a mapping has {', '.join(sorted(KEYS))}")
    checkpoint = Checkpoint(path, _weights(path, raw), options)
    tensors = _tensors(checkpoint, raw.get("tensors"))
    missing = {"w_enc", "w_dec"} - tensors.keys()
    if missing:
        raise CheckpointError(f"{path}: tensors {sorted(missing)} are not mapped")
    nonlinearity = _nonlinearity(checkpoint, raw, tensors)
    unused = tensors.keys() - {*Maps._fields, "w_glu", "b_glu"} - nonlinearity.tensors().keys()
    if unused:
        raise CheckpointError(f"{path}: tensors {sorted(unused)} have no place in nonlinearity {nonlinearity.kind!r}")
    if ("w_glu" in tensors) != ("b_glu" in tensors):
        raise CheckpointError(f"{path}: a gated linear unit needs both w_glu and b_glu")
    unit = _flag(path, raw, "unit_decoder", default=False)
    if unit and nonlinearity.kind != "relu":
        raise CheckpointError(
            f"{path}: unit_decoder goes with nonlinearity 'relu' alone: norms would change what {nonlinearity.kind!r} "
            "selects"
        )
    dtype = str(raw.get("dtype", "float32"))
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    sae = made(
        checkpoint,
        "mapped",
        str(raw.get("architecture", nonlinearity.kind)),
        Maps(tensors["w_enc"], tensors.get("b_enc"), tensors["w_dec"], tensors.get("b_dec")),
        nonlinearity=nonlinearity,
        subtract=_flag(path, raw, "apply_b_dec_to_input", default=False),
        normalization=str(raw.get("normalization", "none")),
        dtype=dtype,
        glu=(tensors["w_glu"], tensors["b_glu"]) if "w_glu" in tensors else None,
    )
    return with_unit_decoder(sae) if unit else sae


def _nonlinearity(checkpoint: Checkpoint, raw: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Nonlinearity:
    from saecodec.nonlinearity import Nonlinearity

    path, kind, k = checkpoint.path, raw.get("nonlinearity", "relu"), raw.get("k")
    described: dict[str, Any] = {"kind": kind, "scaled": _flag(path, raw, "scaled", default=True)}
    if "topk" in str(kind) or kind == "groupmax":
        described["k"] = checkpoint.k(k)
    elif k is not None or checkpoint.options.k is not None:
        raise CheckpointError(f"{path}: k is given, but nonlinearity {kind!r} has none")
    try:
        return Nonlinearity.from_config(described, _expanded(tensors))
    except SaecodecError as error:
        raise type(error)(f"{path}: {error}") from error


def _flag(path: Path, raw: Mapping[str, Any], key: str, *, default: bool) -> bool:
    found = raw.get(key, default)
    if not isinstance(found, bool):
        raise CheckpointError(f"{path}: {key} is {found!r}, expected true or false")
    return found


def _weights(path: Path, raw: Mapping[str, Any]) -> Path:
    name = raw.get("weights")
    if not isinstance(name, str):
        raise CheckpointError(f"{path}: weights is {name!r}, expected the name of a file beside the mapping")
    file = path.parent / name
    if file.suffix not in SUFFIXES or not file.is_file():
        raise CheckpointError(f"{path}: weights {name!r}: no such file, or none of {', '.join(SUFFIXES)}")
    return file


def _tensors(checkpoint: Checkpoint, wanted: object) -> dict[str, Tensor]:
    if not isinstance(wanted, dict):
        raise CheckpointError(f"{checkpoint.path}: tensors is {wanted!r}, expected a map such as w_enc: name")
    out = {}
    for key, told in wanted.items():
        name = told.get("name") if isinstance(told, dict) else told
        transpose = told.get("transpose", False) if isinstance(told, dict) else False
        if key not in (*_MATRICES, *_VECTORS) or not isinstance(name, str) or not isinstance(transpose, bool):
            known = ", ".join((*_MATRICES, *_VECTORS))
            raise CheckpointError(
                f"{checkpoint.path}: tensors has {key!r}: {told!r}, expected one of {known} with a name, or with "
                '{"name": ..., "transpose": true}'
            )
        (tensor,) = checkpoint.tensors(name)
        if transpose and tensor.ndim != 2:
            raise CheckpointError(f"{checkpoint.path}: {key} has shape {tuple(tensor.shape)}: nothing to transpose")
        out[key] = tensor.t() if transpose else tensor
    return out


def _expanded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A threshold that is one number holds for all latents."""
    out = dict(tensors)
    if "threshold" in out and out["threshold"].numel() == 1 and out["w_dec"].ndim:
        out["threshold"] = out["threshold"].reshape(1).expand(len(out["w_dec"])).contiguous()
    return out
