"""zfp: a compressor of floating-point arrays that bounds the error of every value (Lindstrom, TVCG 2014).

A fixed transform of 4 x 4 blocks, then bit planes down to the tolerance. Fixed-accuracy mode rounds the tolerance down
to a power of two, and the error stays well below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import FormatError
from saecodec.peers.peer import PeerFamily, checked_rows, import_package, read_shape, write_shape
from saecodec.peers.tolerance import absolute_tolerance
from saecodec.wire import blob

NAME: Final = "zfp"
_TOLERANCES: Final = (16.0, 8.0, 4.0, 2.0, 1.0, 0.5)  # an octave apart: zfp would not tell closer ones apart


@dataclass(frozen=True)
class ZfpPeer:
    """relative: tolerance in deviations. tolerance: the same, absolute."""

    name: ClassVar[str] = NAME
    model_bytes: ClassVar[int] = 0
    relative: float
    tolerance: float

    @classmethod
    def fit(cls, rows: NDArray[np.float32], relative: float) -> ZfpPeer:
        """The absolute tolerance for rows like these, float32 (N, d)."""
        return cls(relative, absolute_tolerance(rows, relative, NAME))

    @property
    def setting(self) -> str:
        """The error that no value exceeds, in rms channel deviations."""
        return f"tolerance {self.relative:g}"

    def encode(self, x: NDArray[np.float32]) -> bytes:
        """T, d, the zfp stream with its header."""
        x = checked_rows(x, NAME)
        return write_shape(x.shape) + blob(import_package("zfpy").compress_numpy(x, tolerance=self.tolerance))

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """Float32 (T, d), every value within the tolerance."""
        n_rows, width, reader = read_shape(data, NAME)
        compressed = bytes(reader.blob())
        reader.end()
        values = _decompress(compressed)
        if values.shape != (n_rows, width) or values.dtype != np.float32:
            raise FormatError(f"{NAME} bytes: {values.dtype} of shape {values.shape}, not {n_rows} x {width} float32")
        return values


def _decompress(compressed: bytes) -> NDArray[np.float32]:
    try:
        return np.asarray(import_package("zfpy").decompress_numpy(compressed))
    except (ValueError, IndexError) as error:  # not a header; no bytes at all
        raise FormatError(f"{NAME} bytes: not a zfp stream ({error})") from error


ZFP: Final = PeerFamily(NAME, lambda width: _TOLERANCES, ZfpPeer.fit, "zfpy", "zfpy")
