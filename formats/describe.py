"""What a file is, from its headers alone: no torch, no hashing, no decoding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from saecodec.errors import UnsupportedError
from saecodec.formats import saec
from saecodec.formats.codecfile import MAGIC as CODEC_MAGIC
from saecodec.formats.codecfile import codec_facts
from saecodec.formats.header import Header
from saecodec.formats.saelens import WEIGHTS, SAELensConfig, is_saelens
from saecodec.value_code import ValueCode


def describe(path: Path) -> dict[str, Any]:
    """Facts about a `.saec` file, a codec file or an SAE folder; UnsupportedError when it is none of them."""
    if path.is_dir() and is_saelens(path):
        return _saelens(path)
    if path.is_file():
        with open(path, "rb") as file:
            magic = file.read(len(saec.MAGIC))
        if magic == saec.MAGIC:
            return _saec(path)
        if magic == CODEC_MAGIC:
            return _codec(path)
    found = "neither a .saec nor a .saecodec file, nor an SAE folder" if path.exists() else "no such file or folder"
    raise UnsupportedError(f"{path}: {found}")


def _saec(path: Path) -> dict[str, Any]:
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
            "needs": _needs(header),
            "values": None if header.values is None else _value_text(header.values),
            "sae": dict(header.sae),
            "decoder_id": header.decoder_id,
            "codec_id": header.codec_id,
            "prior": header.prior,
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
    layer = sum(file.residual_bytes(i) for i in range(len(file.index.rows)))
    return {
        f"{name}_bits_per_row": 8 * n / file.n_rows if file.n_rows else None
        for name, n in (("base", base), ("residual", layer))
    }


def _codec(path: Path) -> dict[str, Any]:
    return {"kind": "codec", "file_bytes": os.path.getsize(path), **codec_facts(path)}


def _saelens(path: Path) -> dict[str, Any]:
    config = SAELensConfig.read(path)
    return {
        "kind": "SAE (SAELens)",
        "architecture": config.architecture,
        "d_in": config.d_in,
        "d_sae": config.d_sae,
        "k": config.k or None,
        "dtype": config.dtype,
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "rescale_acts_by_decoder_norm": config.rescale_acts_by_decoder_norm,
        "weight_bytes": os.path.getsize(path / WEIGHTS),
        "metadata": {key: value for key, value in config.metadata.items() if isinstance(value, (str, int, float))},
    }
