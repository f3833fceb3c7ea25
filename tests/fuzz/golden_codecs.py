"""The codecs and SAEs of the golden files, which inputs are read with."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final, NamedTuple

import make_golden

from saecodec.codec import Codec
from saecodec.formats.codecfile import load_codec
from saecodec.formats.saec import open_saec
from saecodec.frames import frames
from saecodec.latents import LatentCodec
from saecodec.sae import SAE

GOLDEN: Final = Path(make_golden.__file__).parent


@functools.cache
def pieces() -> tuple[dict[str, SAE], dict[str, Codec]]:
    """What golden files do not embed: SAEs by decoder id, codecs by codec id."""
    saes = {sae.decoder_id: sae for sae in (case.sae() for case in make_golden.FILES.values())}
    codecs = {codec.codec_id: codec for codec in map(load_codec, sorted(GOLDEN.glob("*.saecodec")))}
    return saes, codecs


class ChunkCodec(NamedTuple):
    """A codec whose chunks are inputs, the golden file that it is from, and the rows of the first chunk there."""

    name: str
    codec: Codec | LatentCodec
    rows: int = 0


@functools.cache
def chunk_codecs() -> list[ChunkCodec]:
    """Codecs of every prior and layer."""
    out: list[ChunkCodec] = []
    for name in ("signed.frames", "columns.frames", "context_signed.frames"):
        (_, tables), *_ = frames((GOLDEN / name).read_bytes(), name)
        out.append(ChunkCodec(name, LatentCodec.from_bytes(tables)))
    saes, codecs = pieces()
    for name in ("none.saec", "context.saec", "residual.saec", "row_norm.saec", "layer_norm.saec"):
        with open_saec(GOLDEN / name) as file:
            header, rows = file.header, int(file.index.rows[0])
            found = codecs.get(header.codec_id) or file.codec
        out.append(ChunkCodec(name, found.with_sae(saes[header.decoder_id]), rows))
    return out


@functools.cache
def zarr_codecs() -> list[Codec]:
    """A codec without a residual layer and one with it, each with its SAE."""
    return [load_codec(GOLDEN / f"{name}.saecodec", "cpu") for name in ("none", "residual_none")]
