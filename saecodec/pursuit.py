"""Selection of latents for rows: the encoder's search for a support, given candidates.

`select` is greedy and rate-aware: it adds the latent with the largest (squared error saved - slope x bits), all
coefficients being refitted by least squares, until none pays. It is order-recursive least squares (Chen, Billings & Luo
1989, "orthogonal least squares"): the chosen directions are orthogonalised one by one as in Gram-Schmidt, but only
their inner products with the candidates are kept, so a step costs B C k. `factorize` does the same for a given support.
Both end in a triangular system, which `rounding` solves in integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from saecodec.dictionary import Candidates

_NEAR: Final = 0.02  # a direction with less than this of its square outside the chosen ones adds noise, not accuracy
_RIDGE: Final = 1e-4  # keeps a support of dependent directions solvable in float32


@dataclass(frozen=True, eq=False)
class LevelPrices:
    """What levels cost a batch of rows, in squared error: slope x bits. float32.

    support: (B, C), of each candidate. levels: (n_classes * n_levels), rows of levels laid end to end. row: start of
    each candidate's row, int64 (B, C). n_levels: of a row.
    """

    support: Tensor
    levels: Tensor
    row: Tensor
    n_levels: int

    def of(self, row: Tensor, level: Tensor) -> Tensor:
        """Price of float levels >= 0 under the rows that start at `row`."""
        return self.levels.take(row + level.clamp(max=self.n_levels - 1).long())


@dataclass(frozen=True, eq=False)
class Selection:
    """A support of up to K candidates per row, as a least-squares problem in triangular form.

    chosen: places among the candidates in the order of choice, int64 (B, K), -1 behind the last. With D the chosen
    directions and D' = Q' R by Gram-Schmidt in this order: factor = R' (lower triangular, float32 (B, K, K)) and
    target = Q u (float32 (B, K)), so that coefficients a have squared error |R a - target|^2 + what no a can remove.
    """

    chosen: Tensor
    factor: Tensor
    target: Tensor


def select(candidates: Candidates, prices: LevelPrices, step: float, *, signed: bool) -> Selection:
    """The support that greedy selection finds; signed: coefficients may be negative."""
    n_rows, n = candidates.latents.shape
    device = candidates.latents.device
    chosen = torch.full((n_rows, n), -1, dtype=torch.int64, device=device)
    basis = torch.zeros(n_rows, n, n, device=device)  # [b, k]: inner products of the k-th orthogonal direction
    target = torch.zeros(n_rows, n, device=device)
    rows: Tensor | None = None  # those still growing; None is all
    left = candidates.correlation.clone()  # of the residual with each candidate
    square = torch.ones_like(left)  # of what of each candidate lies outside the chosen directions
    price = prices.support.masked_fill(~candidates.there, torch.inf)
    level_row, at, column = prices.row, candidates.at, candidates.column
    depth = 0
    while depth < n:
        value = left / square
        size = value.abs() if signed else value
        bins = (size / step + 0.5).clamp_(0, prices.n_levels - 1).long()
        gain = (left * value).sub_(price).sub_(prices.levels.take(bins.add_(level_row)))
        best, place = gain.masked_fill_(size < step / 2, -1.0).max(1)
        growing = best > 0
        if not bool(growing.any()):
            break
        if not bool(growing.all()):
            kept = growing.nonzero()[:, 0]
            rows = kept if rows is None else rows[kept]
            left, square, price, level_row, at, column, place = (
                part[kept] for part in (left, square, price, level_row, at, column, place)
            )
        where = slice(None) if rows is None else rows
        chosen[where, depth] = place
        here = place[:, None]
        inner = candidates.gram.take(at.gather(1, here) + column)
        if depth:
            before = basis[:, :depth] if rows is None else basis[:, :depth].index_select(0, rows)
            mine = before.gather(2, here[:, None, :].expand(-1, depth, 1))
            inner = torch.baddbmm(inner[:, None], mine.transpose(1, 2), before, alpha=-1)[:, 0]
        scale = square.gather(1, here).rsqrt_()
        inner *= scale
        projection = left.gather(1, here) * scale
        basis[where, depth] = inner
        target[where, depth] = projection[:, 0]
        left = torch.addcmul(left, projection, inner, value=-1)
        square = torch.addcmul(square, inner, inner, value=-1)
        out = (square < _NEAR).scatter_(1, here, True)
        square.masked_fill_(out, 1.0)
        price.masked_fill_(out, torch.inf)
        depth += 1
    chosen, basis, target = chosen[:, :depth], basis[:, :depth], target[:, :depth]
    factor = basis.gather(2, chosen.clamp(min=0)[:, None, :].expand(-1, depth, -1))
    return Selection(chosen, factor.transpose(1, 2), target)


def factorize(candidates: Candidates) -> Selection:
    """The support of all candidates, in their order: those that are there come first in each row."""
    n_rows, n = candidates.latents.shape
    place = torch.arange(n, device=candidates.latents.device).expand(n_rows, n)
    there = candidates.there
    row, column = torch.tril_indices(n, n, -1, device=place.device)  # all that Cholesky looks at, and the diagonal
    below = candidates.gram.take(candidates.at.index_select(1, row).add_(candidates.column.index_select(1, column)))
    gram = torch.zeros(n_rows, n * n, device=place.device)
    gram.index_copy_(1, row * n + column, below.mul_(there.index_select(1, row)))
    gram = gram.view(n_rows, n, n)
    gram.diagonal(dim1=1, dim2=2).fill_(1 + _RIDGE)
    factor = torch.linalg.cholesky(gram)
    target = torch.linalg.solve_triangular(factor, candidates.correlation[:, :, None], upper=False)[:, :, 0]
    return Selection(torch.where(there, place, -1), factor, target)
