"""`ChunkCoder`: the layers of rows <-> frames of chunks, the part of a codec that codes.

It knows no SAE, so that processes that only code need none, nor torch unless the prior does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from saecodec.errors import FormatError, InputError
from saecodec.frames import frame, frames
from saecodec.latents import LatentCodec
from saecodec.layers import Layers
from saecodec.residual import ResidualLayer
from saecodec.wire import ByteReader, blob

CHUNK: Final = "CHNK"
RESIDUAL_CHUNK: Final = "RCHK"


@dataclass(frozen=True, eq=False)
class ChunkCoder:
    """Codes chunks. latents: of the base layer. residual: of the layer below it, or None."""

    latents: LatentCodec
    residual: ResidualLayer | None = None

    def pack(self, layers: Layers) -> list[bytes]:
        """The frames of a chunk: its codes, then its residual levels where the codec has that layer."""
        out = [frame(CHUNK, self.latents.pack(layers.codes))]
        if (layers.residual is None) != (self.residual is None):
            raise InputError("a chunk has residual levels exactly when its codec has a residual layer")
        if layers.residual is not None:
            if len(layers.residual) != layers.n_rows:
                raise InputError(f"{layers.n_rows} rows of codes, but {len(layers.residual)} of residual levels")
            # Ancillary: who wants the base layer alone may skip it; the header's `requires` tells the others.
            out.append(frame(RESIDUAL_CHUNK, self._residual().encode(layers.residual), critical=False))
        return out

    def unpack(self, chunk: bytes | memoryview, residual: bytes | memoryview | None, what: str) -> Layers:
        """The layers of a chunk from the payloads of its frames; without the residual's, the codes alone. FormatError
        when the bytes are not a chunk; `what` names it there."""
        codes = self.latents.unpack(chunk, what)
        if residual is None:
            return Layers(codes)
        return Layers(codes, self._residual().decode(residual, codes.n_rows, f"{what}, residual"))

    def chunks(self, data: bytes | memoryview, *, base_only: bool = False) -> Iterator[Layers]:
        """The layers of each chunk in a sequence of frames; base_only: without residual levels."""
        held: memoryview | None = None  # a chunk whose residual has not come yet
        for head, payload in frames(data, "encoded rows"):
            if (held is None) == (head.kind == RESIDUAL_CHUNK):
                found = f"a {head.kind} frame where {'a chunk begins' if held is None else 'its residual is due'}"
                raise FormatError(
                    f"encoded rows: {found}: every chunk of a codec with a residual layer, and no other, "
                    "is followed by its residual"
                )
            if head.kind == RESIDUAL_CHUNK and held is not None:
                yield self.unpack(held, None if base_only else payload, "encoded rows")
                held = None
            elif head.kind != CHUNK:
                head.unknown("encoded rows")
            elif self.residual is None:
                yield self.unpack(payload, None, "encoded rows")
            else:
                held = payload
        if held is not None:
            raise FormatError("encoded rows: the last chunk lacks its residual")

    def _residual(self) -> ResidualLayer:
        if self.residual is None:
            raise InputError("this codec has no residual layer")
        return self.residual

    def to_bytes(self) -> bytes:
        """For another process of the same version; no part of a file."""
        return blob(self.latents.to_bytes()) + (b"" if self.residual is None else self.residual.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> ChunkCoder:
        """The inverse of `to_bytes`."""
        reader = ByteReader(data, "chunk coder")
        latents = LatentCodec.from_bytes(reader.blob())
        rest = reader.take(reader.left)
        return cls(latents, ResidualLayer.from_bytes(rest, "chunk coder") if rest else None)
