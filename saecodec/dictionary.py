"""The decoder as a dictionary: unit directions, and what a search needs to know of a few latents per row.

B rows of a batch, C candidates per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from saecodec.sae import SAE
from saecodec.sparse_csr import csr, quieten

MAX_GRAM_LATENTS: Final = 8192  # up to here the F x F Gram matrix is kept (268 MB at most)
_BATCH_FLOATS: Final = 1 << 22  # of the largest temporary array: 16 MB


@dataclass(frozen=True, eq=False)
class Candidates:
    """The latents that a search may use for each row.

    latents: int64 (B, C), 0 where there is none. there: bool (B, C). correlation: of x - b_dec with the unit direction
    of each, float32 (B, C), 0 where there is none. The inner product of the directions of candidates i and j of row b
    is gram[at[b, i] + column[b, j]].
    """

    latents: Tensor
    there: Tensor
    correlation: Tensor
    gram: Tensor
    at: Tensor
    column: Tensor


class Dictionary:
    """Unit decoder directions; a latent whose direction is zero has a zero direction here, and is of no use."""

    def __init__(self, sae: SAE) -> None:
        self._sae = sae
        self.norms = torch.from_numpy(sae.norms).to(sae.device, torch.float32)
        self.directions = sae.w_dec * torch.where(self.norms > 0, 1 / self.norms, 0)[:, None]
        """float32 (F, d)."""
        quieten()

    @cached_property
    def _gram(self) -> Tensor | None:
        if self._sae.n_latents > MAX_GRAM_LATENTS:
            return None
        return (self.directions @ self.directions.T).reshape(-1)

    def batch_rows(self, n_candidates: int) -> int:
        """Rows to be looked at together, so that the largest temporary array stays small."""
        row = n_candidates * n_candidates
        if self._gram is None:
            row = max(row, n_candidates * self._sae.width)
        return max(1, min(2048, _BATCH_FLOATS // max(row, self._sae.n_latents)))

    def candidates(self, x: Tensor, latents: Tensor) -> Candidates:
        """What is known of `latents`, int64 (B, C) with -1 for none, about the rows x, float32 (B, d)."""
        there = latents >= 0
        latents = latents.clamp(min=0)
        correlation = self._correlation(x - self._sae.b_dec, latents).masked_fill(~there, 0)
        n_rows, n = latents.shape
        if self._gram is not None:
            return Candidates(latents, there, correlation, self._gram, latents * self._sae.n_latents, latents)
        chosen = self.directions.index_select(0, latents.reshape(-1)).view(n_rows, n, x.shape[1])
        gram = torch.bmm(chosen, chosen.transpose(1, 2)).reshape(-1)
        column = torch.arange(n, device=x.device).expand(n_rows, n)
        at = torch.arange(n_rows * n, device=x.device).view(n_rows, n) * n
        return Candidates(latents, there, correlation, gram, at, column)

    def _correlation(self, u: Tensor, latents: Tensor) -> Tensor:
        """Inner products of rows u, float32 (B, d), with the unit directions of their latents (B, C)."""
        if u.device.type != "cpu":
            return (u @ self.directions.T).gather(1, latents)
        # Only the products that are asked for: a tenth of the time of all of them. The kernel goes through the places
        # one by one, in any order, which is why they need not be sorted here (torch 2.13: tests/test_dictionary.py).
        n_rows, n = latents.shape
        starts, values = torch.arange(n_rows + 1) * n, torch.zeros(n_rows * n)
        shape = (n_rows, self._sae.n_latents)
        wanted = csr(starts, latents.reshape(-1), values, shape)
        products: Tensor = torch.sparse.sampled_addmm(wanted, u, self.directions.T, beta=0.0).values()
        return products.view(n_rows, n)
