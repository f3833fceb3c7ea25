"""`.saec` files: writing. Chunks as they come, then the index and the trailer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import saecodec
from saecodec.codec import Codec
from saecodec.decoder_precision import FLOAT32, with_precision
from saecodec.errors import InputError
from saecodec.formats.chunk_block import packed
from saecodec.formats.chunk_pool import jobs_for, map_chunks
from saecodec.formats.frame_file import MAGIC
from saecodec.formats.frame_writer import FrameWriter
from saecodec.formats.header import EMBED, MAX_ROW_DIMENSIONS, Header
from saecodec.formats.index import MAX_DIMENSIONS
from saecodec.formats.weights import pack_weights
from saecodec.frames import frame
from saecodec.layers import Layers
from saecodec.sae import SAE
from saecodec.value_code import ValueCode


@dataclass(frozen=True)
class LatentsFacts:
    """What a file of latents says beside its codec. values: what levels stand for. sae: name, source, architecture and
    n_latents, see `Header`."""

    values: ValueCode
    sae: Mapping[str, Any]


class SaecWriter:
    """Writes a `.saec` file to `file`, which is at its beginning; `finish` completes it.

    codec: with its SAE. embed: "none", "tables" or "decoder". user: free text by key. row_shape:
    of a row of the input, where that is not (d,). latents: of a file whose rows are feature activations; its codec has
    no SAE, and embed is "tables". weights: precision of the decoder that is embedded, which the codec's SAE must have:
    see `with_precision`.
    """

    def __init__(
        self,
        file: BinaryIO,
        codec: Codec,
        *,
        shape: tuple[int, ...],
        dtype: str,
        chunk_rows: int,
        embed: str,
        user: dict[str, str] | None = None,
        row_shape: tuple[int, ...] = (),
        latents: LatentsFacts | None = None,
        weights: str = FLOAT32,
    ) -> None:
        if embed not in EMBED:
            raise InputError(f"embed is {embed!r}, expected one of {', '.join(EMBED)}")
        if codec.sae is None and latents is None:
            raise InputError("writing a .saec file needs a codec with its SAE")
        check_embedded(weights, embed)
        if weights != FLOAT32 and codec.sae is not None:
            check_rounded(codec, with_precision(codec.sae, weights), weights)
        if len(shape) > MAX_DIMENSIONS:
            raise InputError(f"an array of {len(shape)} dimensions; a .saec file holds at most {MAX_DIMENSIONS}")
        if len(row_shape) > MAX_ROW_DIMENSIONS:
            raise InputError(f"rows of {len(row_shape)} dimensions; a .saec file has at most {MAX_ROW_DIMENSIONS}")
        self._leading = tuple(shape[:-1])
        self.header = Header(
            shape[-1],
            dtype,
            chunk_rows,
            embed,
            codec.decoder_id,
            codec.codec_id,
            _sae_facts(codec.sae) if latents is None else latents.sae,
            codec.quantizer.step,
            codec.latents.prior.name,
            f"saecodec {saecodec.__version__}",
            codec.residual is not None,
            codec.side is not None,
            user or {},
            row_shape if len(row_shape) > 1 else (),
            None if latents is None else latents.values,
            weights,
        )
        self._codec, self.frames = codec, FrameWriter(file)
        self.frames.write(MAGIC)
        self.frames.write(frame("HEAD", self.header.to_bytes()))
        if embed != "none":
            self.frames.write(codec.table_frames())
        if embed == "decoder":
            assert codec.sae is not None
            self.frames.write(frame("SAEW", pack_weights(codec.sae, decoder_only=True, precision=weights)))

    def add(self, layers: Layers) -> None:
        """Write the next chunk."""
        self._add(layers.n_rows, self._codec.pack(layers))

    def add_all(self, chunks: Iterable[Layers], n_chunks: int, jobs: int | None = 1) -> Iterator[int]:
        """Write the next chunks, about `n_chunks`; yields the rows of each. jobs: processes that pack them, see
        `jobs_for`."""
        coder = self._codec.coder
        for n_rows, parts in map_chunks(packed, coder, chunks, jobs_for(jobs, coder, n_chunks)):
            self._add(n_rows, parts)
            yield n_rows

    def _add(self, n_rows: int, parts: list[bytes]) -> None:
        self.frames.add(n_rows, parts)

    def finish(self) -> None:
        """Write the index and the trailer. InputError when the rows written are not those of the shape."""
        if self.frames.n_rows != math.prod(self._leading):
            raise InputError(f"{self.frames.n_rows} rows were written, but the leading dimensions are {self._leading}")
        self.frames.finish(self._leading)


def check_embedded(weights: str, embed: str) -> None:
    """InputError when weights are rounded that the file does not hold."""
    if weights != FLOAT32 and embed != "decoder":
        raise InputError(
            f"weights in {weights} are of a decoder in the file: embed it (--embed decoder), or leave --weights out"
        )


def check_rounded(codec: Codec, rounded: SAE, weights: str) -> None:
    """InputError unless a codec goes by the rounded decoder that its file is to hold."""
    if rounded.decoder_id != codec.decoder_id:
        raise InputError(
            f"the codec was fitted on another decoder than the one in {weights}: fit it on the rounded SAE "
            f"(saecodec.with_precision(sae, {weights!r})), leave the codec out, or leave --weights out"
        )


def _sae_facts(sae: SAE | None) -> dict[str, Any]:
    assert sae is not None
    return {"name": sae.name, "source": sae.source, "architecture": sae.architecture, "n_latents": sae.n_latents}
