"""What a file is, from its headers alone: no torch, no hashing, no decoding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from saecodec.errors import UnsupportedError
from saecodec.formats import frame_file, saec
from saecodec.formats.byte_source import is_url
from saecodec.formats.checkpoint import SUFFIXES
from saecodec.formats.codecfile import MAGIC as CODEC_MAGIC
from saecodec.formats.codecfile import codec_facts
from saecodec.formats.equations import equation
from saecodec.formats.file_sizes import residual_bytes
from saecodec.formats.header import Header
from saecodec.formats.saelens import WEIGHTS, SAELensConfig, is_saelens
from saecodec.value_code import ValueCode

_OUTSIDE: Final = (
    "rows were scaled in training; SAELens folds the factor (norm_scaling_factor) only into SAEs that it downloads: "
    "if yours has none folded, give it with --input-scale"
)


def describe(name: str | os.PathLike[str], k: int | None = None) -> dict[str, Any]:
    """Facts about a `.saec` file, by path or URL, a codec file or an SAE checkpoint; UnsupportedError when it is none.

    k: of a top-k SAE whose checkpoint does not say it.
    """
    path = Path(name)
    if is_url(os.fspath(name)) and path.suffix == ".saec":
        return _saec(name)
    if path.is_file():
        with open(path, "rb") as file:
            magic = file.read(len(frame_file.MAGIC))
        if magic == frame_file.MAGIC:
            return _saec(path)
        if magic == CODEC_MAGIC:
            return _codec(path)
    if path.is_dir() and is_saelens(path):
        return _saelens(path)
    if path.is_dir() or path.suffix in (*SUFFIXES, ".json") or "#" in path.name or not path.exists():
        return _sae(name, k)
    raise UnsupportedError(f"{path}: neither a .saec nor a .saecodec file, nor an SAE")


def _sae(path: str | os.PathLike[str], k: int | None) -> dict[str, Any]:
    """An SAE that has to be loaded to be known."""
    from saecodec.formats.checkpoints import load_sae

    sae = load_sae(path, "cpu", k=k)
    config = sae.config()
    ranked, glu = "scale" in sae.tensors(), "w_glu" in sae.tensors()
    return {
        "kind": f"SAE ({sae.source.split(' (')[0]})",
        "architecture": sae.architecture,
        "equation": equation(config, ranked=ranked, glu=glu),
        "d_in": sae.width,
        "d_sae": sae.n_latents,
        "k": config["nonlinearity"].get("k"),
        "dtype": config["dtype"],
        "side_information": "" if sae.normalization == "none" else sae.normalization,
        "weight_bytes": sae.nbytes,
    }


def _saec(path: str | os.PathLike[str]) -> dict[str, Any]:
    with saec.open_saec(path) as file:
        header = file.header
        bits = 8 * file.size / file.n_rows if file.n_rows else None
        return {
            "kind": "saec" if header.values is None else "saec of latents",
            "file_bytes": file.size,
            "shape": list(file.shape),
            "dtype": header.dtype,
            "rows": file.n_rows,
            "bits_per_row": bits,
            "chunks": len(file.index.rows),
            "chunk_rows": header.chunk_rows,
            "step": header.step,
            "embed": header.embed,
            "weights": header.weights if header.embed == "decoder" else None,
            "needs": _needs(header),
            "values": None if header.values is None else _value_text(header.values),
            "sae": dict(header.sae),
            "decoder_id": header.decoder_id,
            "codec_id": header.codec_id,
            "prior": header.prior,
            "side_information": header.side,
            "residual": _residual(file) if header.residual else None,
            "made_by": header.made_by,
            "user": dict(header.user),
        }


def _needs(header: Header) -> list[str]:
    """What decoding takes beside the file."""
    if header.values is not None:
        return []
    return {"none": ["codec", "SAE decoder"], "tables": ["SAE decoder"], "decoder": []}[header.embed]


def _value_text(values: ValueCode) -> str:
    return f"exact ({values.kind})" if values.exact else "quantized"


def _residual(file: saec.SaecFile) -> dict[str, float | None]:
    """Bits per row of each layer's chunks."""
    base = int(file.index.lengths.sum())
    layer = sum(residual_bytes(file, i) for i in range(len(file.index.rows)))
    return {
        f"{name}_bits_per_row": 8 * n / file.n_rows if file.n_rows else None
        for name, n in (("base", base), ("residual", layer))
    }


def _codec(path: Path) -> dict[str, Any]:
    known = {"kind": "codec", "file_bytes": os.path.getsize(path)}
    return known | codec_facts(path) | known


def _saelens(path: Path) -> dict[str, Any]:
    config = SAELensConfig.read(path)
    pursuit = {"max_iterations": config.pursuit[0]} if config.architecture == "matching_pursuit" else {}
    described = {
        "nonlinearity": {"kind": config.nonlinearity, "k": config.k, **pursuit},
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalization": config.normalization,
    }
    return {
        "kind": "SAE (SAELens)",
        "architecture": config.architecture,
        "equation": equation(described, ranked=config.rescale_acts_by_decoder_norm),
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "k": config.k or None,
        "dtype": config.dtype,
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "rescale_acts_by_decoder_norm": config.rescale_acts_by_decoder_norm,
        "normalize_activations": config.normalize_activations,
        "rows": "(heads, d_head)" if config.reshape_activations == "hook_z" else "(d_in,)",
        "side_information": "" if config.normalization == "none" else config.normalization,
        "hint": _OUTSIDE if config.normalize_activations == "expected_average_only_in" else "",
        "weight_bytes": os.path.getsize(path / WEIGHTS),
        "metadata": {key: value for key, value in config.metadata.items() if isinstance(value, (str, int, float))},
    }
