"""`Codec`: rows of activations <-> bytes, by an SAE, a quantizer and a latent codec."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.chunk_coder import ChunkCoder
from saecodec.codes import Codes
from saecodec.costs import DEFAULT_SLOPE
from saecodec.errors import FormatError, IdentityError, InputError, MissingPieceError
from saecodec.features import Features
from saecodec.frames import field as record_field
from saecodec.frames import frame, known_frames, pack_record, unpack_record
from saecodec.identity import content_hash
from saecodec.latents import LatentCodec
from saecodec.layers import Layers
from saecodec.limits import check_limit
from saecodec.quantizer import Quantizer, Step, quantize
from saecodec.residual import ResidualLayer
from saecodec.rows import given_rows
from saecodec.sae import SAE
from saecodec.search import Mode
from saecodec.sequences import Chunking
from saecodec.side import SideQuantizer, scales_of, side_at, with_side
from saecodec.version import INTEGER_WEIGHTS, LATENTS, check_prior, check_version, required, table_kinds, versioned
from saecodec.wire import ByteReader

DEFAULT_CHUNK_ROWS: Final = 4096
CODEC_FRAMES: Final = ("CHED", "TABL", "SIDE", "RTAB")


@dataclass(frozen=True, eq=False)
class Codec:
    """A fitted codec.

    quantizer, latents: how codes are made and coded. decoder_id: identity of the SAE's decoder it was fitted with.
    sae: the SAE, or None; what needs it then raises MissingPieceError. info: what it was fitted on, for people.
    residual: how what the SAE leaves is coded, or None. side: how side information is, or None.

    >>> codec = Codec.fit(sae, x, step="0.4rms")        # doctest: +SKIP
    >>> data = codec.encode(x)                          # doctest: +SKIP
    >>> x_hat = codec.decode(data)                      # doctest: +SKIP
    """

    quantizer: Quantizer
    latents: LatentCodec
    decoder_id: str
    sae: SAE | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    residual: ResidualLayer | None = None
    side: SideQuantizer | None = None

    @classmethod
    def fit(
        cls,
        sae: SAE,
        x: NDArray[np.floating[Any]],
        step: str | float | Step | None = None,
        *,
        nmse: float | None = None,
        bits: float | None = None,
        search: Mode | None = None,
        residual: bool = False,
        prior: str = "factorized",
        fit_seconds: float | None = None,
        seq: NDArray[np.integer[Any]] | None = None,
        chunk_rows: int = DEFAULT_CHUNK_ROWS,
    ) -> Codec:
        """Fit step, centroids and tables on rows x (..., d); see `formats.encoding.fit_array` for more than memory.

        step, nmse, bits, search, residual: see `Goal.of`; nmse and bits (per row, of the chunks alone) are reached on x
        within 1 %. prior: "factorized", or "context", which trains a network for up to `fit_seconds` and looks at the
        rows beside a row in the same sequence. seq: sequence id of each row, integers (T,). Raises InputError;
        TargetError when a target is out of reach.
        """
        from saecodec.goal import Goal
        from saecodec.steering import Steering
        from saecodec.store import MemoryStores

        rows, ids = given_rows(x, sae, prior, seq)
        chunking = Chunking.of(len(rows), chunk_rows, ids)
        goal = Goal.of(step, nmse, bits, search, residual, prior, fit_seconds)

        def chunks() -> Iterator[NDArray[np.float32]]:
            return (rows[a:b] for a, b in chunking.spans())

        return Steering(sae, chunks, goal, chunking=chunking, stores=MemoryStores()).fit(recode=True).codec

    def __repr__(self) -> str:
        sae = self.sae if self.sae is not None else f"SAE {self.info.get('sae', '?')!r}, not at hand"
        return f"Codec({self.codec_id[:16]}..., step={self.quantizer.step:.6g}, {self.latents}, {sae})"

    def with_sae(self, sae: SAE) -> Codec:
        """This codec with its SAE; IdentityError when it is another one."""
        if sae.decoder_id != self.decoder_id:
            name = self.info.get("sae", "?")
            raise IdentityError(
                f"the SAE {sae.name!r} has decoder id {sae.decoder_id}, but the codec was fitted with {name!r}, "
                f"decoder id {self.decoder_id}: give that SAE"
            )
        if sae.n_latents != self.latents.prior.n_latents:
            raise FormatError(f"the codec codes {self.latents.prior.n_latents} latents, its SAE has {sae.n_latents}")
        if self.residual is not None and self.residual.width != sae.width:
            raise FormatError(f"the residual layer is for rows of {self.residual.width}, the SAE for {sae.width}")
        kind = "none" if self.side is None else self.side.kind
        if kind != sae.normalization:
            raise FormatError(
                f"the codec's side information is of kind {kind!r}, the SAE normalizes {sae.normalization!r}"
            )
        return replace(self, sae=sae)

    def _sae(self) -> SAE:
        if self.sae is None:
            name = self.info.get("sae", "?")
            raise MissingPieceError(f"needs SAE {name!r} (decoder id {self.decoder_id[:16]}...): give it (-s SAE)")
        return self.sae

    def quantize(self, x: NDArray[np.floating[Any]]) -> Codes:
        """The codes of rows x (..., d) that stand for the SAE's own activations."""
        sae = self._sae()
        rows, ids = given_rows(x, sae, self.latents.prior.name)
        scales = scales_of(sae, [rows], ids)
        return self.quantize_features(sae.features(rows, side=side_at(scales, 0, len(rows))))

    def quantize_features(self, features: Features) -> Codes:
        """The codes of feature activations."""
        return with_side(quantize(features, self._sae().norms, self.quantizer.step), features, self.side)

    def reconstruct(self, codes: Codes, residual: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """x_hat of codes and, where they are given, of residual levels (T, M): float32 (T, d)."""
        rows = np.asarray(self._sae().rows(self.features(codes)).cpu().numpy())
        if residual is None:
            return rows
        if self.residual is None:
            raise InputError("this codec has no residual layer")
        return rows + self.residual.rows(residual)

    def features(self, codes: Codes) -> Features:
        """The feature activations, and side information, that codes stand for."""
        features = self.quantizer.dequantize(codes, self._sae().norms)
        return features if self.side is None else replace(features, side=self.side.side(codes.columns))

    def encode(
        self,
        x: NDArray[np.floating[Any]],
        *,
        chunk_rows: int = DEFAULT_CHUNK_ROWS,
        search: Mode = "none",
        slope: float = DEFAULT_SLOPE,
        seq: NDArray[np.integer[Any]] | None = None,
    ) -> bytes:
        """Rows x (..., d) as a sequence of frames; each chunk decodes on its own. search, slope: see `RowCoder`.

        seq: sequence id of each row, integers (T,), which is coded too; the context prior takes those of rows
        (..., position, d) from their shape.
        """
        from saecodec.batches import stream_batches

        parts = self.layers(x, chunk_rows=chunk_rows, search=search, slope=slope, seq=seq)
        return b"".join(data for chunk in stream_batches(self.pack, parts) for data in chunk)

    def layers(
        self,
        x: NDArray[np.floating[Any]],
        *,
        chunk_rows: int = DEFAULT_CHUNK_ROWS,
        search: Mode = "none",
        slope: float = DEFAULT_SLOPE,
        seq: NDArray[np.integer[Any]] | None = None,
    ) -> Iterator[Layers]:
        """What `encode` packs, chunk by chunk."""
        from saecodec.row_coder import RowCoder

        sae = self._sae()
        rows, ids = given_rows(x, sae, self.latents.prior.name, seq)
        chunking = Chunking.of(len(rows), chunk_rows, ids)
        coder = RowCoder(self, search, slope, scales=scales_of(sae, [rows], chunking.ids))
        return (coder(rows[a:b], a).labelled(chunking, a) for a, b in chunking.spans())

    @cached_property
    def coder(self) -> ChunkCoder:
        """What codes chunks."""
        return ChunkCoder(self.latents, self.residual)

    def pack(self, layers: Layers) -> list[bytes]:
        """The frames of a chunk: see `ChunkCoder.pack`."""
        return self.coder.pack(layers)

    def decode(self, data: bytes | memoryview, *, base_only: bool = False) -> NDArray[np.float32]:
        """The rows of `encode`'s bytes, float32 (T, d), of the base layer alone where that is wanted.

        FormatError when they are not frames of chunks.
        """
        sae = self._sae()
        parts, n_rows = [np.zeros((0, sae.width), np.float32)], 0
        for part in self.chunks(data, base_only=base_only):
            n_rows += part.n_rows
            check_limit("array_bytes", 4 * n_rows * sae.width, "the rows")
            parts.append(self.reconstruct(part.codes, part.residual))
        return np.concatenate(parts)

    def codes(self, data: bytes | memoryview) -> Iterator[Codes]:
        """The codes of each chunk in `data`."""
        return (part.codes for part in self.chunks(data, base_only=True))

    def chunks(self, data: bytes | memoryview, *, base_only: bool = False) -> Iterator[Layers]:
        """The layers of each chunk in `data`; base_only: without residual levels."""
        return self.coder.chunks(data, base_only=base_only)

    # -- storage -------------------------------------------------------------------------------------------------------

    def tables(self) -> bytes:
        """Latent codec and quantizer: what decoding codes and feature activations takes (docs/format.md, "Tables")."""
        return self.latents.to_bytes() + self.quantizer.to_bytes()

    @cached_property
    def codec_id(self) -> str:
        """sha256 over the decoder's identity, the step, and the tables' content (docs/format.md, "Identity")."""
        prior = self.latents.prior
        facts = {
            "kind": "codec",
            "decoder_id": self.decoder_id,
            "step": struct.pack("<d", self.quantizer.step).hex(),
            "prior": prior.name,
        }
        content = {**prior.content(), "centroids": self.quantizer.centroids}
        if self.side is not None:
            facts["side"] = self.side.to_bytes().hex()
        if self.residual is not None:
            facts["residual"] = self.residual.scales().hex()
            content |= self.residual.content()
        return content_hash(facts, content)

    @property
    def requires(self) -> list[str]:
        """What a reader must know."""
        return required(self.latents.prior.name, residual=self.residual is not None, side=self.side is not None)

    @classmethod
    def from_tables(
        cls,
        tables: bytes | memoryview,
        decoder_id: str,
        info: Mapping[str, Any],
        what: str,
        residual: bytes | memoryview | None = None,
        side: bytes | memoryview | None = None,
    ) -> Codec:
        """The codec of the payloads of `table_frames`, without its SAE."""
        reader = ByteReader(tables, what)
        latents = LatentCodec.read(reader)
        quantizer = Quantizer.read(reader, latents.prior.level_class, latents.prior.n_level_classes)
        reader.end()
        layer = None if residual is None else ResidualLayer.from_bytes(residual, what)
        of_rows = None if side is None else SideQuantizer.from_bytes(side, what)
        return cls(quantizer, latents, decoder_id, None, dict(info), layer, of_rows)

    def to_bytes(self, *, embed: str = "none") -> bytes:
        """The codec without its SAE, as frames. embed: "sae" when the caller puts a weights frame behind them."""
        head = versioned(self.requires) | {
            "decoder_id": bytes.fromhex(self.decoder_id),
            "codec_id": bytes.fromhex(self.codec_id),
            "prior": self.latents.prior.name,
            "step": self.quantizer.step,
            "embed": embed,
            "info": dict(self.info),
        }
        return frame("CHED", pack_record(head)) + self.table_frames()

    def table_frames(self) -> bytes:
        """What decoding takes beside the SAE, as frames: the tables, and side information and the residual layer where
        there are any."""
        side = b"" if self.side is None else frame("SIDE", self.side.to_bytes())
        layer = b"" if self.residual is None else frame("RTAB", self.residual.to_bytes())
        return frame("TABL", self.tables()) + side + layer

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, what: str = "codec") -> Codec:
        """The inverse of `to_bytes`; `with_sae` adds the SAE."""
        return cls.from_frames(list(known_frames(data, CODEC_FRAMES, what)), what)

    @classmethod
    def from_frames(cls, parts: list[tuple[str, memoryview]], what: str) -> Codec:
        """The codec of the frames of `to_bytes`, given as types and payloads."""
        kinds, payloads = [kind for kind, _ in parts], [payload for _, payload in parts]
        if kinds[:1] != ["CHED"]:
            raise FormatError(f"{what}: a codec is a frame CHED and a frame TABL, found {kinds}")
        record = unpack_record(payloads[0], what)
        check_version(record, what)
        for feature in (LATENTS, INTEGER_WEIGHTS):
            if feature in record["requires"]:
                raise FormatError(f"{what}: requires {feature!r}, which is for .saec files")
        expected = ["CHED", *table_kinds(record["requires"])]
        if kinds != expected:
            raise FormatError(f"{what}: a codec that requires {record['requires']} is frames {expected}, found {kinds}")
        decoder_id, info = record_field(record, "decoder_id", bytes, what), record_field(record, "info", dict, what)
        if len(decoder_id) != 32:
            raise FormatError(f"{what}: a decoder id has 32 bytes, found {len(decoder_id)}")
        held = dict(zip(kinds, payloads, strict=True))
        codec = cls.from_tables(held["TABL"], decoder_id.hex(), info, what, held.get("RTAB"), held.get("SIDE"))
        check_prior(record, codec.latents.prior.name, what)
        if record_field(record, "codec_id", bytes, what).hex() != codec.codec_id:
            raise FormatError(f"{what}: the tables are not those of the codec id in its header")
        return codec
