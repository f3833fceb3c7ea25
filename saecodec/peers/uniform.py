"""Integers per channel: every channel rounded to 2^b levels between its smallest and largest value, then zstd.

What people reach for first (int8, int4). The 2d float32 ranges come from the rows at hand and are inside the bytes, so
no model is needed. Codes are laid channel by channel, as many whole ones as fit into a byte: on MiniLM rows zstd makes
6 % less of nibbles than of a byte for each 4-bit code, and 20 % less than of bit planes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from saecodec.errors import FormatError
from saecodec.peers.peer import PeerFamily, checked_rows, read_shape, write_shape

NAME: Final = "int + zstd"
_ZSTD_LEVEL: Final = 19


@dataclass(frozen=True)
class UniformPeer:
    """bits: 1..8 a value."""

    name: ClassVar[str] = NAME
    model_bytes: ClassVar[int] = 0
    bits: int

    @property
    def setting(self) -> str:
        """Bits a value, before zstd."""
        return f"{self.bits} bits"

    def encode(self, x: NDArray[np.float32]) -> bytes:
        """T, d, the smallest and the largest value of each channel, zstd of the packed codes."""
        x = checked_rows(x, NAME)
        low, high = x.min(0), x.max(0)
        step = self._step(low, high)
        codes = np.rint((x - low.astype(np.float64)) / np.where(step > 0, step, 1)).astype(np.uint8)
        packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(self._pack(codes.T.ravel()))
        ranges = np.stack([low, high]).astype("<f4").tobytes()
        return write_shape(x.shape) + ranges + bytes(packed)

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """low + code step, float32 (T, d)."""
        n_rows, width, reader = read_shape(data, NAME)
        low, high = np.frombuffer(reader.take(8 * width), "<f4").reshape(2, width)
        codes = self._unpack(_inflate(reader.take(reader.left), -(-n_rows * width // self._per_byte)))
        table = codes[: n_rows * width].reshape(width, n_rows).T
        return np.ascontiguousarray(low + table * self._step(low, high), np.float32)

    def _step(self, low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray((high.astype(np.float64) - low) / (2**self.bits - 1))

    @property
    def _per_byte(self) -> int:
        return 8 // self.bits

    @property
    def _shifts(self) -> NDArray[np.uint8]:
        return np.arange(0, 8 - self.bits + 1, self.bits, dtype=np.uint8)

    def _pack(self, codes: NDArray[np.uint8]) -> bytes:
        padded = np.pad(codes, (0, -len(codes) % self._per_byte)).reshape(-1, self._per_byte)
        return bytes(np.bitwise_or.reduce(padded << self._shifts, axis=1))

    def _unpack(self, packed: bytes) -> NDArray[np.uint8]:
        codes = np.frombuffer(packed, np.uint8)[:, None] >> self._shifts
        return np.asarray(codes & np.uint8(2**self.bits - 1)).ravel()


def _inflate(compressed: memoryview, size: int) -> bytes:
    """The `size` bytes that zstd packed."""
    try:
        # The size that zstd would allocate is written in its own header: it must be the one that the shape gives.
        fits = zstandard.frame_content_size(compressed) == size
        data = zstandard.ZstdDecompressor().decompress(compressed, allow_extra_data=False) if fits else b""
    except zstandard.ZstdError as error:
        raise FormatError(f"{NAME} bytes: not valid zstd data ({error})") from error
    if not fits:
        raise FormatError(f"{NAME} bytes: the codes do not unpack to {size} bytes")
    return data


UNIFORM: Final = PeerFamily(NAME, lambda width: (2, 3, 4, 8), lambda rows, bits: UniformPeer(int(bits)))
