"""`Codec`: rows of activations <-> bytes, by an SAE, a quantizer and a latent codec."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import MAX_CHUNK_ROWS, Codes
from saecodec.errors import FormatError, IdentityError, InputError, MissingPieceError
from saecodec.features import Features
from saecodec.frames import field as record_field
from saecodec.frames import frame, frames, known_frames, pack_record, unpack_record
from saecodec.identity import content_hash
from saecodec.latents import LatentCodec
from saecodec.priors.fit_factorized import LatentStatistics, fit_factorized
from saecodec.quantizer import CentroidStatistics, Quantizer, Step, quantize
from saecodec.sae import SAE
from saecodec.version import check_version, versioned
from saecodec.wire import ByteReader

DEFAULT_STEP: Final = "0.4rms"
DEFAULT_CHUNK_ROWS: Final = 4096


@dataclass(frozen=True, eq=False)
class Codec:
    """A fitted codec.

    quantizer, latents: how codes are made and coded. decoder_id: identity of the SAE's decoder it was fitted with.
    sae: the SAE, or None; what needs it then raises MissingPieceError. info: what it was fitted on, for people.

    >>> codec = Codec.fit(sae, x, step="0.4rms")        # doctest: +SKIP
    >>> data = codec.encode(x)                          # doctest: +SKIP
    >>> x_hat = codec.decode(data)                      # doctest: +SKIP
    """

    quantizer: Quantizer
    latents: LatentCodec
    decoder_id: str
    sae: SAE | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        sae: SAE,
        x: NDArray[np.floating[Any]],
        step: str | float | Step = DEFAULT_STEP,
        *,
        chunk_rows: int = DEFAULT_CHUNK_ROWS,
    ) -> Codec:
        """Fit step, centroids and tables on rows x (..., d); see `formats.encoding.fit_array` for more than memory."""
        rows = _rows(x, sae.width)
        check_chunk_rows(chunk_rows)
        parts = [sae.features(rows[i : i + chunk_rows], i) for i in range(0, len(rows), chunk_rows)]
        return fit_features(sae, parts, Step.parse(step), [])

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
        return replace(self, sae=sae)

    def _sae(self) -> SAE:
        if self.sae is None:
            name = self.info.get("sae", "?")
            raise MissingPieceError(f"needs SAE {name!r} (decoder id {self.decoder_id[:16]}...): give it (-s SAE)")
        return self.sae

    def quantize(self, x: NDArray[np.floating[Any]]) -> Codes:
        """The codes of rows x (..., d)."""
        sae = self._sae()
        return self.quantize_features(sae.features(_rows(x, sae.width)))

    def quantize_features(self, features: Features) -> Codes:
        """The codes of feature activations."""
        return quantize(features, self._sae().norms, self.quantizer.step)

    def reconstruct(self, codes: Codes) -> NDArray[np.float32]:
        """x_hat of codes, float32 (T, d)."""
        sae = self._sae()
        return np.asarray(sae.rows(self.quantizer.dequantize(codes, sae.norms)).cpu().numpy())

    def encode(self, x: NDArray[np.floating[Any]], *, chunk_rows: int = DEFAULT_CHUNK_ROWS) -> bytes:
        """Rows x (..., d) as a sequence of chunk frames, each of which decodes on its own."""
        check_chunk_rows(chunk_rows)
        sae = self._sae()
        rows = _rows(x, sae.width)
        parts = (sae.features(rows[i : i + chunk_rows], i) for i in range(0, len(rows), chunk_rows))
        return b"".join(frame("CHNK", self.latents.pack(self.quantize_features(part))) for part in parts)

    def decode(self, data: bytes | memoryview) -> NDArray[np.float32]:
        """The rows of `encode`'s bytes, float32 (T, d). FormatError when they are not chunk frames."""
        sae = self._sae()
        parts = [self.reconstruct(codes) for codes in self.codes(data)]
        return np.concatenate([np.zeros((0, sae.width), np.float32), *parts])

    def codes(self, data: bytes | memoryview) -> Iterator[Codes]:
        """The codes of each chunk frame in `data`."""
        for head, payload in frames(data, "encoded rows"):
            if head.kind == "CHNK":
                yield self.latents.unpack(payload)
            else:
                head.unknown("encoded rows")

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
        return content_hash(facts, {**prior.content(), "centroids": self.quantizer.centroids})

    @classmethod
    def from_tables(cls, tables: bytes | memoryview, decoder_id: str, info: Mapping[str, Any], what: str) -> Codec:
        """The codec of `tables()`, without its SAE."""
        reader = ByteReader(tables, what)
        latents = LatentCodec.read(reader)
        quantizer = Quantizer.read(reader, latents.prior.level_class, latents.prior.n_level_classes)
        reader.end()
        return cls(quantizer, latents, decoder_id, None, dict(info))

    def to_bytes(self, *, embed: str = "none") -> bytes:
        """The codec without its SAE, as frames. embed: "sae" when the caller puts a weights frame behind them."""
        head = versioned([f"prior:{self.latents.prior.name}"]) | {
            "decoder_id": bytes.fromhex(self.decoder_id),
            "codec_id": bytes.fromhex(self.codec_id),
            "prior": self.latents.prior.name,
            "step": self.quantizer.step,
            "embed": embed,
            "info": dict(self.info),
        }
        return frame("CHED", pack_record(head)) + frame("TABL", self.tables())

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, what: str = "codec") -> Codec:
        """The inverse of `to_bytes`; `with_sae` adds the SAE."""
        return cls.from_frames(list(known_frames(data, ("CHED", "TABL"), what)), what)

    @classmethod
    def from_frames(cls, parts: list[tuple[str, memoryview]], what: str) -> Codec:
        """The codec of the frames of `to_bytes`, given as types and payloads."""
        kinds, payloads = [kind for kind, _ in parts], [payload for _, payload in parts]
        if kinds != ["CHED", "TABL"]:
            raise FormatError(f"{what}: a codec is a frame CHED and a frame TABL, found {kinds}")
        record = unpack_record(payloads[0], what)
        check_version(record, what)
        decoder_id, info = record_field(record, "decoder_id", bytes, what), record_field(record, "info", dict, what)
        if len(decoder_id) != 32:
            raise FormatError(f"{what}: a decoder id has 32 bytes, found {len(decoder_id)}")
        codec = cls.from_tables(payloads[1], decoder_id.hex(), info, what)
        if record_field(record, "codec_id", bytes, what).hex() != codec.codec_id:
            raise FormatError(f"{what}: the tables are not those of the codec id in its header")
        return codec


class CodeStore(Protocol):
    """Where `fit_features` puts codes: a list, or a file."""

    def append(self, codes: Codes, /) -> None:
        """Take the next chunk."""

    def __iter__(self) -> Iterator[Codes]:
        """All chunks, from the first."""


def fit_features(sae: SAE, chunks: Iterable[Features], step: Step, store: CodeStore) -> Codec:
    """Fit a codec on feature activations, and leave their codes in `store`, which is empty before.

    chunks: is iterated twice, and `store` once, so that both may lie in files.
    """
    n_rows, square, nnz = 0, 0.0, 0
    for features in chunks:
        length = features.values * sae.norms[features.latents]
        n_rows, square, nnz = n_rows + features.n_rows, square + float(length @ length), nnz + features.nnz
    absolute = step.resolve((square / max(nnz, 1)) ** 0.5)
    statistics, centroids = LatentStatistics(sae.n_latents), CentroidStatistics(sae.n_latents)
    for features in chunks:
        codes = quantize(features, sae.norms, absolute, centroids)
        statistics.add(codes)
        store.append(codes)
    prior = fit_factorized(store, statistics, signed=sae.signed)
    quantizer = Quantizer(absolute, centroids.centroids(prior.level_class, prior.n_level_classes), prior.level_class)
    facts = {"sae": sae.name, "architecture": sae.architecture, "fit_rows": n_rows, "sae_id": sae.sae_id or ""}
    return Codec(quantizer, LatentCodec(prior), sae.decoder_id, sae, facts)


def check_chunk_rows(chunk_rows: int) -> None:
    """InputError unless a chunk can have so many rows."""
    if not 1 <= chunk_rows <= MAX_CHUNK_ROWS:
        raise InputError(f"a chunk holds 1 to {MAX_CHUNK_ROWS} rows, got {chunk_rows}")


def _rows(x: NDArray[np.floating[Any]], width: int) -> NDArray[np.float32]:
    if hasattr(x, "detach"):  # a torch tensor, of which numpy knows no bfloat16
        x = x.detach().float().cpu().numpy()
    array = np.asarray(x)
    if array.dtype.kind not in "fiu":
        raise InputError(f"rows are real numbers, got {array.dtype}")
    if array.ndim < 1 or array.shape[-1] != width:
        raise InputError(f"the SAE codes rows of {width} values, got an array of shape {array.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which the SAE refuses by row
        return np.ascontiguousarray(array.reshape(-1, width), np.float32)
