"""`.saec` files: reading. What a file holds, chunk by chunk, with the codec and the SAE that it takes.

Normative: docs/format.md, "The .saec file".
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.decoder_precision import FLOAT32, with_precision
from saecodec.errors import FormatError, IdentityError, InputError, MissingPieceError, named
from saecodec.formats.byte_source import open_bytes
from saecodec.formats.chunk_block import ChunkBlock, salvaged
from saecodec.formats.chunk_pool import jobs_for, map_chunks
from saecodec.formats.damage import Lost, converted, intact
from saecodec.formats.frame_file import FrameFile
from saecodec.formats.processes import usable_cores
from saecodec.layers import Layers, batches_of
from saecodec.limits import check_limit

if TYPE_CHECKING:
    from saecodec.codec import Codec
    from saecodec.codes import Codes
    from saecodec.sae import SAE

_MOST_TIMES: Final = 1 << 20
"""How many times larger than their file rows may be, whatever they take: so much larger are only rows of zeros."""


class SaecFile(FrameFile):
    """An open `.saec` file; make it with `open_saec`. Rows count from 0 over the flattened leading dimensions."""

    def __init__(self, path: str | os.PathLike[str], codec: Codec | None, sae: SAE | None, device: str) -> None:
        for given, loader in ((sae, "load_sae"), (codec, "load_codec")):
            if isinstance(given, (str, os.PathLike)):
                raise InputError(f"{os.fspath(path)}: a path was given, {given!r}: give saecodec.{loader}({given!r})")
        source = open_bytes(path)
        try:
            super().__init__(source)
        except BaseException:
            source.close()
            raise
        self._codec, self._sae, self._device = codec, sae, device

    # -- codec and SAE -------------------------------------------------------------------------------------------------

    @cached_property
    def codec(self) -> Codec:
        """The codec, from the file or as given; MissingPieceError or IdentityError when there is none, or another."""
        from saecodec.codec import Codec

        found = self._codec
        if self.header.embed != "none":
            try:
                info, tables = {"sae": self.header.sae["name"]}, self.embedded("TABL")
                layer = self.embedded("RTAB") if self.header.residual else None
                side = self.embedded("SIDE") if self.header.side else None
                found = Codec.from_tables(tables, self.header.decoder_id, info, f"{self.path}, tables", layer, side)
            except FormatError as error:
                if found is None:
                    raise FormatError(f"{error}; the codec that it was encoded with will do instead (-c)") from error
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
                    + (": it holds its own tables, leave the codec out" if self.header.embed != "none" else "")
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

            n_latents, weights = self.codec.latents.prior.n_latents, self.embedded("SAEW")
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
        if sae.width != self.header.width:
            raise FormatError(f"{self.path}: rows of {self.header.width}, but the SAE has rows of {sae.width}")
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

    def check_size(self, start: int = 0, stop: int | None = None) -> None:
        """LimitError when rows start:stop are more than an array in memory may be, from next to nothing: reading them
        would not end."""
        n_bytes = 4 * ((self.n_rows if stop is None else stop) - start) * self.header.width
        if n_bytes > _MOST_TIMES * self.size:
            check_limit("array_bytes", n_bytes, self.path)

    def codes(self, start: int = 0, stop: int | None = None, *, jobs: int | None = 1) -> Iterator[Codes]:
        """The codes of rows start:stop, chunk by chunk; only the chunks that hold them are read. jobs: see `layers`."""
        for layers in self.layers(start, stop, base_only=True, jobs=jobs):
            yield layers.codes

    def layers(
        self, start: int = 0, stop: int | None = None, *, base_only: bool = False, jobs: int | None = 1
    ) -> Iterator[Layers]:
        """Codes and residual levels of rows start:stop, chunk by chunk, empty chunks left out.

        base_only: the codes alone. jobs: processes that decode, see `map_chunks`; None: as many as pays. FormatError
        when a chunk is damaged, which names its rows.
        """
        return intact(self.salvaged_layers(start, stop, base_only=base_only, jobs=jobs))

    def salvaged_layers(
        self, start: int = 0, stop: int | None = None, *, base_only: bool = False, jobs: int | None = 1
    ) -> Iterator[Layers | Lost]:
        """As `layers`; of a chunk that is damaged, which rows are lost with it."""
        parts = list(self._parts(start, stop))
        chunks = self.salvaged_chunks([i for i, _ in parts], base_only=base_only, jobs=jobs)
        for (i, part), layers in zip(parts, chunks, strict=True):
            if isinstance(layers, Layers):
                yield layers[part]
            else:
                first = int(self.index.first_row[i])
                yield Lost(first + part.start, first + part.stop, layers)

    def _parts(self, start: int, stop: int | None) -> Iterator[tuple[int, slice]]:
        """The chunks that hold rows start:stop, and which of their rows these are."""
        stop = self.n_rows if stop is None else stop
        self.check_range(start, stop)
        first = self.index.first_row
        begin = int(np.searchsorted(first, start, side="right")) - 1
        for i in range(begin, len(self.index.rows)):
            if first[i] >= stop or start == stop:
                break
            if first[i] == first[i + 1]:
                continue
            yield i, slice(max(start - int(first[i]), 0), min(stop - int(first[i]), int(self.index.rows[i])))

    def chunk(self, i: int) -> Codes:
        """The codes of chunk i; FormatError when it is damaged, or lacks side information that the codec has."""
        (layers,) = self.chunk_layers([i], base_only=True)
        return layers.codes

    def chunk_layers(self, chunks: Sequence[int], *, base_only: bool = False, jobs: int | None = 1) -> Iterator[Layers]:
        """The codes of some chunks, numbers in ascending order, and their residual levels where the file has them;
        base_only: the codes alone."""
        for layers in self.salvaged_chunks(chunks, base_only=base_only, jobs=jobs):
            if isinstance(layers, FormatError):
                raise layers
            yield layers

    def salvaged_chunks(
        self, chunks: Sequence[int], *, base_only: bool = False, jobs: int | None = 1
    ) -> Iterator[Layers | FormatError]:
        """As `chunk_layers`; of a chunk that is damaged, what is wrong with it."""
        coder, side = self.codec.coder, self.codec.side
        blocks = self.chunk_blocks(chunks, base_only=base_only)
        found = map_chunks(salvaged, coder, blocks, jobs_for(jobs, coder, len(chunks)))
        for i, layers in zip(chunks, found, strict=True):
            if side is not None and isinstance(layers, Layers):
                try:
                    side.side(layers.codes.columns, self.chunk_name(i))
                except FormatError as error:
                    layers = error
            yield layers

    def chunk_blocks(self, chunks: Iterable[int], *, base_only: bool = False) -> Iterator[ChunkBlock]:
        """Some chunks as they lie in the file, numbers in ascending order; base_only: without their residuals."""
        offsets, lengths, rows = (self.index.offsets, self.index.lengths, self.index.rows)
        residual = self.header.residual and not base_only
        for i, data in self.blocks(chunks, base_only=base_only):
            numbers = int(offsets[i]), int(lengths[i]), int(rows[i])
            yield ChunkBlock(data, self.chunk_name(i), *numbers, residual)

    def chunk_name(self, i: int) -> str:
        """What chunk i is in errors."""
        first, stop = self.index.first_row[i : i + 2].tolist()
        return f"{self.path}, chunk {i} (rows {first}:{stop})"

    def batches(
        self, start: int = 0, stop: int | None = None, *, base_only: bool = False, jobs: int | None = 1
    ) -> Iterator[NDArray[np.float32]]:
        """The reconstructed rows start:stop, float32 (n, d), chunk by chunk, large chunks in parts; base_only: without
        the residual layer. jobs: see `layers`."""
        return intact(self.salvaged_batches(start, stop, base_only=base_only, jobs=jobs))

    def salvaged_batches(
        self, start: int = 0, stop: int | None = None, *, base_only: bool = False, jobs: int | None = 1
    ) -> Iterator[NDArray[np.float32] | Lost]:
        """As `batches`; of a chunk that is damaged, or a part of it, which rows are lost with it."""
        from saecodec.batches import threads

        self.check_size(start, stop)
        jobs = jobs_for(jobs, self.codec.coder, len(list(self._parts(start, stop))))

        def reconstruct(layers: Layers) -> NDArray[np.float32]:
            if jobs == 1:
                return self.reconstruct(layers)
            with threads(max(1, usable_cores() - jobs)):  # more would wait for cores that decode
                return self.reconstruct(layers)

        def in_parts() -> Iterator[Layers | Lost]:
            for layers in self.salvaged_layers(start, stop, base_only=base_only, jobs=jobs):
                yield from [layers] if isinstance(layers, Lost) else layers.batches(self.header.width)

        return converted(in_parts(), reconstruct, start, self.path)

    @property
    def batch_rows(self) -> list[int]:
        """Rows of each of the `batches` of the whole file."""
        return [part.stop - part.start for n in self.index.filled_rows for part in batches_of(n, self.header.width)]

    def reconstruct(self, layers: Layers) -> NDArray[np.float32]:
        """The rows, float32 (n, d), of what was decoded."""
        with named(self.path):
            return self.decoder.reconstruct(layers.codes, layers.residual)

    def rows(self, start: int = 0, stop: int | None = None, *, base_only: bool = False) -> NDArray[np.float32]:
        """The reconstructed rows start:stop, float32 (stop - start, d); base_only: without the residual layer."""
        n_rows = (self.n_rows if stop is None else stop) - start
        check_limit("array_bytes", 4 * n_rows * self.header.width, self.path)
        parts = self.batches(start, stop, base_only=base_only)
        return np.concatenate([np.zeros((0, self.header.width), np.float32), *parts])

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
    """Open a `.saec` file, of a path or URL, for reading chunk by chunk; `saecodec.open` makes an array of it.

    sae, codec: what the file does not embed; they are asked for only when something needs them. device: where a decoder
    that the file embeds goes ("auto" is cuda where there is one). FormatError when the file is damaged, InputError when
    it cannot be opened.
    """
    return SaecFile(path, codec, sae, device)
