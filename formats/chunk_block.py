"""The bytes of a chunk as they lie in a `.saec` file, and what is in them: what `map_chunks` has processes do.

They import this module, so it must not take torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saecodec.chunk_coder import CHUNK, RESIDUAL_CHUNK, ChunkCoder
from saecodec.codes import Codes
from saecodec.errors import FormatError
from saecodec.frames import HEAD_BYTES, FrameHead
from saecodec.latents import LatentCodec
from saecodec.layers import Layers


@dataclass(frozen=True, eq=False)
class ChunkBlock:
    """A chunk that has been read and not yet looked at.

    data: its frame, and, if its residual is wanted, what follows it. what: names it in errors. offset, length, rows: of
    its frame, as the index says. residual: whether its residual is wanted.
    """

    data: bytes
    what: str
    offset: int
    length: int
    rows: int
    residual: bool

    def codes(self) -> memoryview:
        """The checked payload of the chunk's frame; FormatError when it is damaged or not what the index says."""
        head, payload = self._frame(0, f"{self.what}, offset {self.offset}")
        if head.kind != CHUNK or HEAD_BYTES + head.length != self.length:
            raise FormatError(f"{self.what}: the index is wrong about the frame at offset {self.offset}")
        return payload

    def payloads(self) -> tuple[memoryview, memoryview | None]:
        """The checked payloads of the chunk's frame and, where it is wanted, of its residual's."""
        codes = self.codes()
        if not self.residual:
            return codes, None
        found = "missing"
        if self.length < len(self.data):
            head, behind = self._frame(self.length, f"{self.what}, residual")
            if head.kind == RESIDUAL_CHUNK:
                return codes, behind
            found = head.kind
        raise FormatError(f"{self.what}: the frame behind it is {found}, expected its residual, RCHK")

    def layers(self, coder: ChunkCoder) -> Layers:
        """What is coded: the codes, and the residual levels where they are wanted."""
        layers = coder.unpack(*self.payloads(), self.what)
        self.check_rows(layers.n_rows)
        return layers

    def codes_of(self, latents: NDArray[np.int64], codec: LatentCodec) -> Codes:
        """The codes of some latents alone, int64 (n,)."""
        codes = codec.unpack_some(self.codes(), latents, self.what)
        self.check_rows(codes.n_rows)
        return codes

    def check_rows(self, n_rows: int) -> None:
        """FormatError when these are not as many rows as the index says."""
        if n_rows != self.rows:
            raise FormatError(f"{self.what}: holds {n_rows} rows, the index says {self.rows}")

    def _frame(self, at: int, what: str) -> tuple[FrameHead, memoryview]:
        view = memoryview(self.data)[at:]
        head = FrameHead.parse(view[:HEAD_BYTES], len(view) - HEAD_BYTES, what)
        payload = view[HEAD_BYTES : HEAD_BYTES + head.length]
        head.check(payload, what)
        return head, payload


def packed(coder: ChunkCoder, layers: Layers) -> tuple[int, list[bytes]]:
    """Rows of a chunk, and its frames."""
    return layers.n_rows, coder.pack(layers)


def salvaged(coder: ChunkCoder, block: ChunkBlock) -> Layers | FormatError:
    """The layers of a chunk, or what is wrong with it."""
    try:
        return block.layers(coder)
    except FormatError as error:
        return error
