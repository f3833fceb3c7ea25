"""`.saec` files: reading. Magic, typed frames (HEAD, TABL, SAEW, CHNK...), an index and a trailer at the end.

Normative: docs/format.md, "The .saec file".
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.decoder_precision import FLOAT32, with_precision
from saecodec.errors import FormatError, IdentityError, InputError, MissingPieceError
from saecodec.formats.header import Header
from saecodec.formats.index import Index
from saecodec.frames import HEAD_BYTES, FrameHead

if TYPE_CHECKING:
    from saecodec.codec import Codec
    from saecodec.codes import Codes
    from saecodec.latents import ChunkBytes
    from saecodec.layers import Layers
    from saecodec.sae import SAE

MAGIC: Final = b"\x89SAEC\r\n\x1a"
TRAILER: Final = struct.Struct("<Q")
_TRAILER_FRAME: Final = HEAD_BYTES + TRAILER.size
_KNOWN: Final = ("HEAD", "TABL", "SIDE", "RTAB", "SAEW", "CHNK", "RCHK", "INDX", "TAIL")


@dataclass(frozen=True)
class ChunkSizes:
    """Bytes of a chunk. parts: of its codes, which add up to `codes`. residual: of the residual levels. frames: of both
    with the heads of their frames."""

    parts: ChunkBytes
    codes: int
    residual: int
    frames: int


class SaecFile:
    """An open `.saec` file; make it with `open_saec`. Rows count from 0 over the flattened leading dimensions."""

    def __init__(self, path: str, file: BinaryIO, codec: Codec | None, sae: SAE | None, device: str) -> None:
        self.path = path
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        if self._read(0, min(len(MAGIC), self.size)) != MAGIC:
            raise FormatError(f"{path}: not a .saec file (it does not begin with the magic {MAGIC!r})")
        self.header, self._embedded_at = self._read_preamble()
        self.index = self._read_index()
        self._codec, self._sae, self._device = codec, sae, device

    # -- structure -----------------------------------------------------------------------------------------------------

    def frames(self, *, start: int = len(MAGIC)) -> Iterator[tuple[int, FrameHead, bytes]]:
        """Offset, head and checked payload of every frame from `start` to the end of the file."""
        while start < self.size:
            head, payload = self._frame(start)
            yield start, head, payload
            start += HEAD_BYTES + head.length

    def _head(self, offset: int) -> FrameHead:
        left, what = self.size - offset, f"{self.path}, offset {offset}"
        head = FrameHead.parse(self._read(offset, min(HEAD_BYTES, left)), left - HEAD_BYTES, what)
        if head.kind not in _KNOWN:
            head.check(self._read(offset + HEAD_BYTES, head.length), what)  # damage is not a frame of the future
            head.unknown(what)
        return head

    def _frame(self, offset: int) -> tuple[FrameHead, bytes]:
        head = self._head(offset)
        payload = self._read(offset + HEAD_BYTES, head.length)
        head.check(payload, f"{self.path}, offset {offset}")
        return head, payload

    def _read(self, offset: int, n: int) -> bytes:
        data = os.pread(self._file.fileno(), n, offset)
        if len(data) != n:
            raise FormatError(f"{self.path}: truncated: {n} bytes needed at offset {offset}, {len(data)} read")
        return data

    def _read_index(self) -> Index:
        at = self.size - _TRAILER_FRAME
        try:
            head, payload = self._frame(max(at, 0))
            if head.kind != "TAIL" or head.length != TRAILER.size:
                raise FormatError(f"the last frame is {head.kind}, expected TAIL")
        except FormatError as error:
            raise FormatError(
                f"{self.path}: no valid trailer at its end: truncated or damaged ({error}); "
                f"saecodec recover {self.path} -o OUT.saec keeps its complete chunks"
            ) from error
        (offset,) = TRAILER.unpack(payload)
        if not len(MAGIC) <= offset < at:
            raise FormatError(f"{self.path}: the trailer points to offset {offset}, outside the file")
        head, payload = self._frame(offset)
        if head.kind != "INDX":
            raise FormatError(f"{self.path}: the trailer points to a {head.kind} frame, expected INDX")
        return Index.from_bytes(payload, self.size, f"{self.path}, index")

    def _read_preamble(self) -> tuple[Header, dict[str, int]]:
        """The header, and the offsets of the frames that stand between it and the chunks."""
        head, payload = self._frame(len(MAGIC))
        if head.kind != "HEAD":
            raise FormatError(f"{self.path}: the first frame is {head.kind}, expected HEAD")
        header = Header.from_bytes(payload, self.path)
        at, found = len(MAGIC) + HEAD_BYTES + head.length, []
        while at < self.size and (head := self._head(at)).kind not in ("CHNK", "INDX"):
            if head.kind in _KNOWN:
                found.append((head.kind, at))
            at += HEAD_BYTES + head.length
        kinds = [kind for kind, _ in found]
        if tuple(kinds) != header.embedded:
            raise FormatError(f"{self.path}: the header says embed {header.embed!r}, but frames {kinds} follow it")
        return header, dict(found)

    def _embedded(self, kind: str) -> bytes:
        return self._frame(self._embedded_at[kind])[1]

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of the file by what they are for; they add up to its size.

        support, levels, side, columns, residual: of the chunks. tables: the embedded codec. decoder: embedded weights.
        headers: header, frame heads, chunk heads, index, trailer, magic, and frames this version does not know.
        """
        from saecodec.side import side_columns

        names = ("support", "levels", "side", "columns", "residual", "tables", "decoder", "headers")
        parts = dict.fromkeys(names, 0)
        named = {"TABL": "tables", "SIDE": "tables", "RTAB": "tables", "SAEW": "decoder", "RCHK": "residual"}
        side = side_columns(self.codec.side.kind) if self.codec.side is not None else ()
        for offset, head, payload in self.frames():
            if head.kind in named:
                parts[named[head.kind]] += head.length
            elif head.kind == "CHNK":
                split = self.codec.latents.chunk_bytes(payload, f"{self.path}, offset {offset}")
                parts["support"] += split.support
                parts["levels"] += split.levels
                for name, n_bytes in split.columns.items():
                    parts["side" if name in side else "columns"] += n_bytes
        parts["headers"] = self.size - sum(parts.values())
        return parts

    # -- codec and SAE -------------------------------------------------------------------------------------------------

    @cached_property
    def codec(self) -> Codec:
        """The codec, from the file or as given; MissingPieceError or IdentityError when there is none, or another."""
        from saecodec.codec import Codec

        found = self._codec
        if self.header.embed != "none":
            info, tables = {"sae": self.header.sae["name"]}, self._embedded("TABL")
            layer = self._embedded("RTAB") if self.header.residual else None
            side = self._embedded("SIDE") if self.header.side else None
            found = Codec.from_tables(tables, self.header.decoder_id, info, f"{self.path}, tables", layer, side)
        if found is None:
            raise MissingPieceError(
                f"{self.path}: needs the codec it was encoded with (id {self.header.codec_id}): give the .saecodec "
                "file (-c CODEC); --embed tables makes a file that needs only the SAE"
            )
        for codec in (found, self._codec or found):
            if codec.codec_id != self.header.codec_id:
                raise IdentityError(
                    f"{self.path}: encoded with the codec {self.header.codec_id}, but the codec given is "
                    f"{codec.codec_id}"
                )
        told = (self.header.prior, self.header.step, self.header.residual, self.header.side)
        held = (found.latents.prior.name, found.quantizer.step, found.residual is not None, found.side is not None)
        if told != held:
            raise FormatError(
                f"{self.path}: the header contradicts the tables about prior, step, residual layer or side information"
            )
        if found.residual is not None and found.residual.width != self.header.width:
            raise FormatError(
                f"{self.path}: rows of {self.header.width}, but a residual layer for rows of {found.residual.width}"
            )
        if self.holds_latents and found.latents.prior.n_latents != self.header.width:
            raise FormatError(
                f"{self.path}: rows of {self.header.width} latents, but tables of {found.latents.prior.n_latents}"
            )
        return found

    @property
    def holds_latents(self) -> bool:
        """Whether the rows are feature activations themselves, which no SAE turns into others."""
        return self.header.values is not None

    def check_rows(self) -> None:
        """InputError when the file holds latents, which are no rows of an SAE's input."""
        if self.holds_latents:
            raise InputError(
                f"{self.path}: holds feature activations, not rows that an SAE gives back: decode them as such "
                "(saecodec decode --latents)"
            )

    @property
    def has_sae(self) -> bool:
        """Whether an SAE is at hand: in the file, in the codec, or as given."""
        return self.header.embed == "decoder" or bool(self._sae or (self._codec and self._codec.sae))

    @cached_property
    def decoder(self) -> Codec:
        """The codec with an SAE that decodes, wherever that comes from: as given, the codec, or the file."""
        self.check_rows()
        name, wanted = self.header.sae["name"], self.header.decoder_id
        sae = self._sae or (self._codec.sae if self._codec else None)
        if sae is None and self.header.embed == "decoder":
            from saecodec.formats.weights import unpack_weights

            n_latents, weights = self.codec.latents.prior.n_latents, self._embedded("SAEW")
            width, precision = self.header.width, self.header.weights
            what = f"{self.path}, weights"
            sae = unpack_weights(weights, what, n_latents=n_latents, width=width, precision=precision)
            sae = sae.to(self._device)
        if sae is None:
            raise MissingPieceError(
                f"{self.path}: needs SAE {name!r} (decoder id {wanted[:16]}...) to decode: give it (-s SAE); "
                "--embed decoder makes a file that needs nothing"
            )
        if sae.decoder_id != wanted and self.header.weights != FLOAT32:
            sae = with_precision(sae, self.header.weights)  # the SAE is given as it was before it was rounded
        if sae.decoder_id != wanted:
            raise IdentityError(
                f"{self.path}: encoded with SAE {name!r}, decoder id {wanted}, but the SAE given, {sae.name!r}, has "
                f"decoder id {sae.decoder_id}: give that SAE, with the --input-scale that it was encoded with, if any"
            )
        return self.codec.with_sae(sae)

    # -- rows ----------------------------------------------------------------------------------------------------------

    @property
    def n_rows(self) -> int:
        """T."""
        return int(self.index.first_row[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that was encoded."""
        return (*self.index.leading, *self.row_shape)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of a row of the array that was encoded."""
        return self.header.row_shape or (self.header.width,)

    @property
    def dtype(self) -> str:
        """Of the array that was encoded."""
        return self.header.dtype

    def check_range(self, start: int, stop: int) -> None:
        """InputError unless the file has rows start:stop."""
        if not 0 <= start <= stop <= self.n_rows:
            raise InputError(
                f"{self.path}: rows {start}:{stop} were asked for, it has {self.n_rows}: give 0 <= start <= stop <= "
                f"{self.n_rows}"
            )

    def codes(self, start: int = 0, stop: int | None = None) -> Iterator[Codes]:
        """The codes of rows start:stop, chunk by chunk; only the chunks that hold them are read."""
        for layers in self.layers(start, stop, base_only=True):
            yield layers.codes

    def layers(self, start: int = 0, stop: int | None = None, *, base_only: bool = False) -> Iterator[Layers]:
        """Codes and residual levels of rows start:stop, chunk by chunk, empty chunks left out.

        base_only: the codes alone.
        """
        from saecodec.batches import stream_batches

        def read(wanted: tuple[int, slice]) -> Layers:
            i, part = wanted
            return self.chunk_layers(i, base_only=base_only)[part]

        _ = self.codec  # read once, not by every core
        return stream_batches(read, self._parts(start, stop))

    def _parts(self, start: int, stop: int | None) -> Iterator[tuple[int, slice]]:
        """The chunks that hold rows start:stop, and which of their rows these are."""
        stop = self.n_rows if stop is None else stop
        self.check_range(start, stop)
        first = self.index.first_row
        begin = int(np.searchsorted(first, start, side="right")) - 1
        for i in range(begin, len(self.index.rows)):
            if first[i] >= stop:
                break
            if first[i] == first[i + 1]:
                continue
            yield i, slice(max(start - int(first[i]), 0), stop - int(first[i]))

    def chunk(self, i: int) -> Codes:
        """The codes of chunk i; FormatError when it is damaged, or lacks side information that the codec has."""
        offset = int(self.index.offsets[i])
        what = f"{self.path}, chunk {i}"
        head, payload = self._frame(offset)
        if head.kind != "CHNK" or HEAD_BYTES + head.length != self.index.lengths[i]:
            raise FormatError(f"{what}: the index is wrong about the frame at offset {offset}")
        codes = self.codec.latents.unpack(payload, what)
        if codes.n_rows != self.index.rows[i]:
            raise FormatError(f"{what}: holds {codes.n_rows} rows, the index says {self.index.rows[i]}")
        if self.codec.side is not None:
            self.codec.side.side(codes.columns, what)
        return codes

    def chunk_sizes(self, i: int) -> ChunkSizes:
        """Bytes of chunk i by what they are for."""
        _, payload = self._frame(int(self.index.offsets[i]))
        parts = self.codec.latents.chunk_bytes(payload, f"{self.path}, chunk {i}")
        if self.codec.residual is None:
            return ChunkSizes(parts, len(payload), 0, HEAD_BYTES + len(payload))
        behind = self.residual_bytes(i)
        return ChunkSizes(parts, len(payload), behind - HEAD_BYTES, HEAD_BYTES + len(payload) + behind)

    def residual_bytes(self, i: int) -> int:
        """Size of the residual frame behind chunk i, by its head alone."""
        return HEAD_BYTES + self._head(int(self.index.offsets[i] + self.index.lengths[i])).length

    def chunk_layers(self, i: int, *, base_only: bool = False) -> Layers:
        """The codes of chunk i, and its residual levels where the file has them; base_only: the codes alone."""
        from saecodec.layers import Layers

        codes, layer = self.chunk(i), self.codec.residual
        if layer is None or base_only:
            return Layers(codes)
        offset, what = int(self.index.offsets[i] + self.index.lengths[i]), f"{self.path}, chunk {i}"
        head, payload = self._frame(offset)
        if head.kind != "RCHK":
            raise FormatError(f"{what}: the frame behind it is {head.kind}, expected its residual, RCHK")
        return Layers(codes, layer.decode(payload, codes.n_rows, f"{what}, residual"))

    def batches(
        self, start: int = 0, stop: int | None = None, *, base_only: bool = False
    ) -> Iterator[NDArray[np.float32]]:
        """The reconstructed rows start:stop, float32 (n, d), chunk by chunk; base_only: without the residual layer."""
        decoder = self.decoder
        if decoder.sae is not None and decoder.sae.width != self.header.width:
            raise FormatError(f"{self.path}: rows of {self.header.width}, but the SAE has rows of {decoder.sae.width}")
        for layers in self.layers(start, stop, base_only=base_only):
            yield decoder.reconstruct(layers.codes, layers.residual)

    def rows(self, start: int = 0, stop: int | None = None, *, base_only: bool = False) -> NDArray[np.float32]:
        """The reconstructed rows start:stop, float32 (stop - start, d); base_only: without the residual layer."""
        parts = self.batches(start, stop, base_only=base_only)
        return np.concatenate([np.zeros((0, self.header.width), np.float32), *parts])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> SaecFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SaecFile({self.path!r}, shape={self.shape}, dtype={self.dtype}, chunks={len(self.index.rows)})"


def open_saec(
    path: str | os.PathLike[str], *, sae: SAE | None = None, codec: Codec | None = None, device: str = "auto"
) -> SaecFile:
    """Open a `.saec` file for reading.

    sae, codec: what the file does not embed; they are asked for only when something needs them. device: where a decoder
    that the file embeds goes ("auto" is cuda where there is one). FormatError when the
    file is damaged, InputError when it cannot be opened.

    >>> with saecodec.open("acts.saec", sae=sae) as file:        # doctest: +SKIP
    ...     x_hat = file.rows(1000, 2000)
    """
    name = os.fspath(path)
    try:
        file = open(path, "rb")  # noqa: SIM115 (the SaecFile closes it)
    except OSError as error:
        raise InputError(f"{name}: cannot be opened ({error.strerror})") from error
    try:
        return SaecFile(name, file, codec, sae, device)
    except BaseException:
        file.close()
        raise
