"""FAISS: vector quantizers with codebooks of 256 entries, one byte each.

A residual quantizer (RQ) sums one entry of every codebook; a product quantizer (PQ) cuts the row into sub-vectors, each
with a codebook of its own. Both get the rows less the calibration mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError
from saecodec.peers.peer import PeerFamily, checked_rows, import_package, read_shape, write_shape

RQ_NAME: Final = "FAISS RQ"
PQ_NAME: Final = "FAISS PQ"
_CODE_BITS: Final = 8
_MIN_ROWS: Final = 1 << _CODE_BITS  # FAISS wants a row for every entry of a codebook
_RQ_ROWS: Final = 1 << 16  # 256 an entry, as many as FAISS's k-means looks at
_RQ_VALUES: Final = 1 << 26  # the beam's residuals are eight times as large: 2 GiB of float32
_PQ_ROWS: Final = 30_000  # k-means of short sub-vectors is slow, and needs fewer rows
_TRAINING_BEAM: Final = 4
_CODING_BEAM: Final = 16  # at 64 bytes on MiniLM rows 6 % less error than a beam of 4, for 2.4 times the time
_RQ_BYTES: Final = (8, 16, 24, 32, 40, 48, 64)
_PQ_BYTES: Final = (8, 16, 32, 64, 128)


@dataclass(frozen=True, eq=False)
class FaissPeer:
    """name: of the family. row_bytes: bytes a row. mean: float32 (d,). quantizer: FAISS's own, trained."""

    name: str
    row_bytes: int
    mean: NDArray[np.float32]
    quantizer: Any
    codebook_bytes: int

    @property
    def setting(self) -> str:
        """Bytes a row, which is the number of codebooks."""
        return f"{self.row_bytes} bytes"

    @property
    def model_bytes(self) -> int:
        """The codebooks, float32 as FAISS holds them, and the mean."""
        return self.codebook_bytes + self.mean.nbytes

    def encode(self, x: NDArray[np.float32]) -> bytes:
        """T, d, the codes row by row."""
        x = checked_rows(x, self.name, len(self.mean))
        return write_shape(x.shape) + np.asarray(self.quantizer.compute_codes(x - self.mean), np.uint8).tobytes()

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """The sum (RQ) or concatenation (PQ) of the entries, plus the mean, float32 (T, d)."""
        n_rows, _, reader = read_shape(data, self.name, len(self.mean))
        codes = np.frombuffer(reader.take(n_rows * self.row_bytes), np.uint8).reshape(n_rows, self.row_bytes)
        reader.end()
        return np.asarray(self.quantizer.decode(codes) + self.mean, np.float32)


def _fit_rq(rows: NDArray[np.float32], setting: float) -> FaissPeer:
    faiss, row_bytes = import_package("faiss"), int(setting)
    quantizer = faiss.ResidualQuantizer(rows.shape[1], row_bytes, _CODE_BITS)
    # On MiniLM rows at 16 bytes, Train_progressive_dim takes 2.6 % off the error for five times the time; 60,000 rows
    # instead of 30,000 take off 4 % for a fifth more.
    quantizer.train_type = faiss.ResidualQuantizer.Train_default
    quantizer.max_beam_size = _TRAINING_BEAM
    quantizer.use_beam_LUT = 1  # distances from tables: at 16 bytes the same error, coded twice as fast
    quantizer.cp.min_points_per_centroid = 1  # few rows are the caller's choice, no reason to print
    mean = _train(quantizer, rows, min(_RQ_ROWS, _RQ_VALUES // rows.shape[1]), RQ_NAME)
    quantizer.max_beam_size = _CODING_BEAM
    return FaissPeer(RQ_NAME, row_bytes, mean, quantizer, faiss.vector_to_array(quantizer.codebooks).nbytes)


def _fit_pq(rows: NDArray[np.float32], setting: float) -> FaissPeer:
    faiss, row_bytes = import_package("faiss"), int(setting)
    width = rows.shape[1]
    if width % row_bytes:
        raise InputError(f"{PQ_NAME}: {row_bytes} bytes do not divide the width {width}")
    quantizer = faiss.ProductQuantizer(width, row_bytes, _CODE_BITS)
    quantizer.cp.min_points_per_centroid = 1
    mean = _train(quantizer, rows, _PQ_ROWS, PQ_NAME)
    return FaissPeer(PQ_NAME, row_bytes, mean, quantizer, faiss.vector_to_array(quantizer.centroids).nbytes)


def _pq_settings(width: int) -> tuple[float, ...]:
    return tuple(row_bytes for row_bytes in _PQ_BYTES if width % row_bytes == 0)


def _train(quantizer: Any, rows: NDArray[np.float32], most: int, name: str) -> NDArray[np.float32]:
    """Train on at most `most` rows, spread evenly; returns the mean of all, float32 (d,)."""
    if len(rows) < _MIN_ROWS:
        raise InputError(f"{name}: {len(rows)} calibration rows, at least {_MIN_ROWS} are needed")
    mean = np.asarray(rows.mean(0, dtype=np.float64), np.float32)
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)
    quantizer.train(rows[chosen] - mean)
    return mean


RQ: Final = PeerFamily(RQ_NAME, lambda width: _RQ_BYTES, _fit_rq, "faiss", "faiss-cpu")
PQ: Final = PeerFamily(PQ_NAME, _pq_settings, _fit_pq, "faiss", "faiss-cpu")
