"""Where the bits of a file go: by row and by latent, adding up to the bytes that were really written.

A stream's bytes are shared out in proportion to the ideal code lengths of its symbols under the tables, which the range
coder meets within a word a stream. A gap is charged to the nonzero that ends it (`Prior.nonzero_bits`). What a chunk
holds beside its streams (counts, lengths, side information, columns, frame heads) is shared evenly by its rows. T rows,
F latents, K nonzeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.latents import ChunkBytes
from saecodec.layers import Layers

Bits = NDArray[np.float64]


class Attribution:
    """Bits of the chunks added so far. support, levels: by latent, float64 (F,). nnz: by latent, int64 (F,). ideal:
    ideal code lengths of support and levels, in bits."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        n_latents = codec.latents.prior.n_latents
        self.support, self.levels = np.zeros(n_latents), np.zeros(n_latents)
        self.nnz = np.zeros(n_latents, np.int64)
        self.ideal = (0.0, 0.0)

    def add(self, layers: Layers, parts: ChunkBytes, residual_bytes: int, frame_bytes: int) -> tuple[Bits, Bits, Bits]:
        """Add a chunk. parts: of its payload. residual_bytes: of the residual levels. frame_bytes: of all its frames,
        heads included.

        Returns bits by row, float64 (T,), which add up to 8 frame_bytes, and bits of each nonzero's place and level,
        float64 (K,), in the order of the codes.
        """
        codes, n = layers.codes, layers.n_rows
        ideal = self._codec.latents.prior.nonzero_bits(codes)
        self.ideal = (self.ideal[0] + float(ideal[0].sum()), self.ideal[1] + float(ideal[1].sum()))
        streams = (8.0 * parts.support, 8.0 * parts.levels)
        support, levels = (shared(total, bits) for total, bits in zip(streams, ideal, strict=True))
        self.support += np.bincount(codes.latents, support, len(self.support))
        self.levels += np.bincount(codes.latents, levels, len(self.levels))
        self.nnz += np.bincount(codes.latents, minlength=len(self.nnz))
        rows = np.bincount(codes.rows(), support + levels, n).astype(np.float64)  # integers where there is none
        if layers.residual is not None and self._codec.residual is not None:
            rows += shared(8.0 * residual_bytes, self._codec.residual.row_bits(layers.residual))
        if n:
            rows += (8.0 * frame_bytes - rows.sum()) / n
        return rows, support, levels


def shared(total: float, weights: Bits) -> Bits:
    """`total` in proportion to weights, float64 (n,); evenly where they are all zero."""
    mass = float(weights.sum())
    return weights * (total / mass) if mass > 0 else np.full(len(weights), total / max(len(weights), 1))
