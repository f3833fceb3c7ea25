"""PCA + dead zone + centroids + range coding: the strongest linear peer.

It is the residual layer of this codec without a base layer: principal components fitted on the calibration rows, one
step for all of them, rate-distortion optimised levels, integer tables by class of component, centroids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.costs import DEFAULT_SLOPE
from saecodec.errors import FormatError
from saecodec.fit_residual import RESIDUAL_SLOPE, choose_levels, fit_layer
from saecodec.peers.peer import PeerFamily, checked_rows, read_shape, write_shape
from saecodec.peers.tolerance import absolute_tolerance
from saecodec.residual import ResidualLayer
from saecodec.wire import blob, varint

_NAME: Final = "PCA + range coder"
_SLOPE: Final = RESIDUAL_SLOPE * DEFAULT_SLOPE
_CHUNK: Final = 4096
_STEPS: Final = (5.0, 3.5, 2.5, 1.8, 1.3, 0.9, 0.6, 0.4)  # rms deviations of a channel


@dataclass(frozen=True, eq=False)
class PCA:
    """layer: fitted. relative: its step, in rms deviations of a channel."""

    name: ClassVar[str] = _NAME

    layer: ResidualLayer
    relative: float

    @property
    def setting(self) -> str:
        """The step."""
        return f"step {self.relative:g} rms"

    @property
    def model_bytes(self) -> int:
        """Basis, mean, tables and centroids, as the residual layer stores them."""
        return len(self.layer.to_bytes())

    def encode(self, x: NDArray[np.float32]) -> bytes:
        """Chunks of rows, a stream each."""
        rows = checked_rows(x, _NAME, self.layer.width)
        chunks = (rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK))
        levels = (choose_levels(self.layer, self.layer.coordinates(chunk), _SLOPE) for chunk in chunks)
        return write_shape(rows.shape) + b"".join(varint(len(part)) + blob(self.layer.encode(part)) for part in levels)

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """The rows of `encode`."""
        n_rows, width, reader = read_shape(data, _NAME, self.layer.width)
        parts = [np.zeros((0, width), np.float32)]
        for i in range(0, n_rows, _CHUNK):
            if (found := reader.varint(_CHUNK)) != min(_CHUNK, n_rows - i):
                raise FormatError(f"{reader.what}: a chunk of {found} rows of {n_rows}, from row {i} on")
            levels = self.layer.decode(reader.blob(), found, reader.what)
            parts.append(self.layer.rows(levels))
        reader.end()
        return np.concatenate(parts)


def _fit(rows: NDArray[np.float32], relative: float) -> PCA:
    def chunks() -> Iterator[NDArray[np.float32]]:
        return (rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK))

    step = absolute_tolerance(rows, relative, _NAME)
    return PCA(fit_layer(chunks, rows.shape[1], step, _SLOPE, []), relative)


PCA_FAMILY: Final = PeerFamily(_NAME, lambda width: _STEPS, _fit)
