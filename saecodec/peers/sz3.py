"""SZ3: a scientific-data compressor that bounds the error of every value (Liang et al., arXiv 2111.02925).

Prediction, linear quantization, Huffman code, zstd. Channels are not smooth in time, so that its default predictor
does worse on activations than none (MiniLM, tolerance 0.5 deviations: 913 and 823 bits per row at the same error);
which is best is tried on the calibration rows. The table of values goes in channel by channel, which is never larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import FormatError
from saecodec.peers.peer import PeerFamily, checked_rows, import_package, read_shape, write_shape
from saecodec.peers.tolerance import absolute_tolerance
from saecodec.wire import blob

NAME: Final = "SZ3"
_ALGORITHMS: Final = ("NOPRED", "LORENZO_REG", "INTERP_LORENZO")
_TRIAL_ROWS: Final = 8192
_TOLERANCES: Final = (2.0, 1.5, 1.0, 0.7, 0.5, 0.35, 0.25, 0.125)


@dataclass(frozen=True)
class SZ3Peer:
    """relative: tolerance in deviations. tolerance: the same, absolute. algorithm: pysz's name of the predictor."""

    name: ClassVar[str] = NAME
    model_bytes: ClassVar[int] = 0
    relative: float
    tolerance: float
    algorithm: str

    @classmethod
    def fit(cls, rows: NDArray[np.float32], relative: float) -> SZ3Peer:
        """Takes the predictor that makes the least of the first calibration rows, float32 (N, d)."""
        tolerance = absolute_tolerance(rows, relative, NAME)
        peers = [cls(relative, tolerance, algorithm) for algorithm in _ALGORITHMS]
        return min(peers, key=lambda peer: len(peer.encode(rows[:_TRIAL_ROWS])))

    @property
    def setting(self) -> str:
        """The error that no value exceeds, in rms channel deviations."""
        return f"tolerance {self.relative:g}"

    def encode(self, x: NDArray[np.float32]) -> bytes:
        """T, d, the SZ3 stream."""
        x = checked_rows(x, NAME)
        pysz = import_package("pysz")
        config = pysz.szConfig(x.shape[::-1])
        config.errorBoundMode = pysz.szErrorBoundMode.ABS
        config.absErrorBound = self.tolerance
        config.cmprAlgo = getattr(pysz.szAlgorithm, self.algorithm)
        compressed, _ = pysz.sz.compress(np.ascontiguousarray(x.T), config)
        return write_shape(x.shape) + blob(compressed.tobytes())

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """Float32 (T, d), every value within the tolerance."""
        n_rows, width, reader = read_shape(data, NAME)
        compressed = np.frombuffer(reader.blob(), np.uint8)
        reader.end()
        return np.ascontiguousarray(_decompress(compressed, (width, n_rows)).T)


def _decompress(compressed: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.float32]:
    pysz: Any = import_package("pysz")
    try:
        values, config = pysz.sz.decompress(compressed, np.float32, shape)
    except (ValueError, IndexError, RuntimeError) as error:  # what its own checks raise
        raise FormatError(f"{NAME} bytes: not {shape[0]} x {shape[1]} values ({error})") from error
    # pysz only compares the numbers of values. A stream does not keep sides of length 1.
    if [side for side in config.dims if side != 1] != [side for side in shape if side != 1]:
        raise FormatError(f"{NAME} bytes: not {shape[0]} x {shape[1]} values (the stream holds {config.dims})")
    return np.asarray(values, np.float32)


SZ3: Final = PeerFamily(NAME, lambda width: _TOLERANCES, SZ3Peer.fit, "pysz", "pysz")
