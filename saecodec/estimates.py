"""What others estimate a code to cost, on the same codes, to stand beside the size of a real file.

Ayonrinde, Pearce & Sharkey 2024, "Interpretability as Compression: MDL-SAEs" (arXiv 2410.11179): the fixed-length code
L0 (B + log2 F), and the sum over latents of the entropy of the quantized activation, zero included.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import MAX_LEVEL, Codes


class CodeStatistics:
    """Counts of (latent, level) pairs over the codes added so far. Memory grows with the number of distinct pairs."""

    def __init__(self, n_latents: int) -> None:
        self.n_latents = n_latents
        self.n_rows = 0
        self.nnz = 0
        self._pairs = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)

    def add(self, codes: Codes) -> None:
        """Add codes."""
        self.n_rows += codes.n_rows
        self.nnz += codes.nnz
        pairs, counts = np.unique(
            codes.latents.astype(np.int64) * (4 * MAX_LEVEL) + codes.levels + MAX_LEVEL, return_counts=True
        )
        merged, where = np.unique(np.concatenate([self._pairs, pairs]), return_inverse=True)
        total = np.bincount(where.reshape(-1), weights=np.concatenate([self._counts, counts]), minlength=len(merged))
        self._pairs, self._counts = merged, total.astype(np.int64)

    @property
    def l0(self) -> float | None:
        """Nonzeros per row; None without rows."""
        return self.nnz / self.n_rows if self.n_rows else None

    @property
    def l0_formula(self) -> float | None:
        """L0 (B + log2 F) bits per row, B = log2 of the number of distinct levels; None without nonzeros."""
        if not self.nnz:
            return None
        n_levels = len(np.unique(self._pairs % (4 * MAX_LEVEL)))
        return self.nnz / self.n_rows * float(np.log2(n_levels) + np.log2(self.n_latents))

    @property
    def sum_entropy(self) -> float | None:
        """Sum over latents of the entropy of the level, zero included, in bits per row; None without nonzeros."""
        if not self.nnz:
            return None
        latent = self._pairs // (4 * MAX_LEVEL)
        zeros = self.n_rows - np.bincount(latent, weights=self._counts, minlength=self.n_latents)
        return float(_self_information(self._counts, self.n_rows).sum() + _self_information(zeros, self.n_rows).sum())


def _self_information(counts: NDArray[np.floating] | NDArray[np.int64], total: int) -> NDArray[np.float64]:
    """-p log2 p of p = counts / total, 0 where p is 0."""
    p = np.asarray(counts, np.float64) / total
    return -p * np.log2(np.where(p > 0, p, 1))
