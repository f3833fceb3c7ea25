"""The network of the context prior: which latents are likely where, computed in integers.

Latents are in blocks. For a block g and a row t, hidden units see the nonzeros of all blocks before g in the rows
t - 1, t and t + 1 of the same sequence; from them come a logit of every latent of the block, and a score of its level.
Both are only ever used as *bins*, small integers that tables are kept for.

Every step is exact: sums of integers below 2^24, floor shifts, clamps. So any arithmetic that holds 24-bit integers
(float32 products in any order of summation, float64, int32; any processor) gives the same bins. Normative:
docs/format.md, "Context network".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saecodec.priors.layout import Layout, narrow

EXACT: Final = 1 << 24  # integers up to here are exact in float32
MAX_BIAS: Final = 1 << 22  # exclusive
MAX_WEIGHT: Final = 127  # of context, out and level_out; also the largest hidden activation
MAX_RANK: Final = (EXACT - MAX_BIAS) // MAX_WEIGHT**2
MAX_GAIN: Final = 127
ROW_GAIN: Final = 1 << 15  # of the nonzeros of a row that are still context
GAINS: Final = 16  # levels told apart as context
MAX_SHIFT: Final = 23
MAX_BINS: Final = 128
_SLAB_CELLS: Final = 1 << 19  # looked at together
_TILE: Final = 64  # columns whose logits are made together: few enough to stay in a core's cache
_TILE_NONZEROS: Final = 1024  # whose scores are made together

assert 3 * ROW_GAIN * MAX_WEIGHT + MAX_BIAS <= EXACT

Int8 = NDArray[np.int8]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Network:
    """Integer weights. F latents in G blocks, r hidden units; columns are the latents by block, then index.

    block: of each latent, int64 (F,). gains: of a context nonzero by min(|level|, 16) - 1, int64 (16,). context: what a
    nonzero adds to the hidden units of its own row, of the next and of the one before, int8 (F', 3 r); F' is the number
    of columns before the last block. bias: of the hidden units, int64 (G, r). shifts: of the hidden units, int64 (r,).
    out, out_bias: of the logits, int8 (F, r) and int64 (F,). level_out, level_bias: of the scores of levels. shift,
    level_shift: from logits and scores to bins. n_bins, n_level_bins: how many of these.
    """

    block: Integers
    gains: Integers
    context: Int8
    bias: Integers
    shifts: Integers
    out: Int8
    out_bias: Integers
    level_out: Int8
    level_bias: Integers
    shift: int
    level_shift: int
    n_bins: int
    n_level_bins: int

    @property
    def rank(self) -> int:
        """r."""
        return int(self.bias.shape[1])

    @property
    def n_blocks(self) -> int:
        """G."""
        return len(self.bias)

    @cached_property
    def layout(self) -> Layout:
        """The order of the columns."""
        return Layout(self.block, np.zeros_like(self.block), (self.n_blocks,))

    @cached_property
    def starts(self) -> list[int]:
        """First column of each block, and F at the end."""
        return list(self.layout.class_start.tolist())

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """In float32 on the CPU."""
        return Arithmetic(self)

    def content(self) -> dict[str, NDArray[Any]]:
        """Everything that decides a bin, as integer arrays."""
        names = ("block", "gains", "context", "bias", "shifts", "out", "out_bias", "level_out", "level_bias")
        scalars = np.array([self.shift, self.level_shift, self.n_bins, self.n_level_bins])
        return {"scalars": scalars} | {name: getattr(self, name) for name in names}


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keeps autocast, which the caller may be under, from rounding products to fewer bits; without gradients."""
    with torch.autocast(device.type, enabled=False), torch.no_grad():
        yield


class Arithmetic:
    """A network's weights in a dtype on a device, ready to be run.

    dtype: torch.float32 or float64, which torch multiplies fast, or int32 or int64. The weights are scaled by the
    shifts beforehand where that is exact.
    """

    def __init__(self, network: Network, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.network, self.dtype, self.device = network, dtype, torch.device(device)
        self.floating = dtype.is_floating_point

        def scaled(array: Int8 | Integers, shift: int | Integers) -> Tensor:
            values = torch.from_numpy(array).to(self.device, self.dtype)
            factor = torch.from_numpy(np.asarray(np.exp2(-np.asarray(shift, np.float64))))
            return values * factor.to(self.device, self.dtype) if self.floating else values

        n = network
        self.gains = torch.from_numpy(n.gains).to(self.device, dtype)
        self.context = [scaled(table, n.shifts) for table in np.split(n.context, 3, axis=1)]
        self.bias = scaled(n.bias, n.shifts)
        self.out, self.out_bias = scaled(n.out, n.shift), scaled(n.out_bias, n.shift)
        self.level_out, self.level_bias = scaled(n.level_out, n.level_shift), scaled(n.level_bias, n.level_shift)
        self.shifts = torch.from_numpy(n.shifts).to(self.device)

    def floor(self, values: Tensor, shift: int | Tensor, top: int) -> Tensor:
        """clamp(values >> shift, 0, top); floating values have been shifted, and are cut where they are stored."""
        return values.clamp_(0, top) if self.floating else values.bitwise_right_shift_(shift).clamp_(0, top)


class Walk:
    """Goes through the blocks of a chunk of T rows: `slabs` and `level_bins` of a block, then `enter` its nonzeros.

    linked: whether each row continues the one before, bool (T,).
    """

    def __init__(self, arithmetic: Arithmetic, linked: NDArray[np.bool_]) -> None:
        self._a, self._n_rows = arithmetic, len(linked)
        dtype, device = arithmetic.dtype, arithmetic.device
        self._linked = torch.from_numpy(linked[1:]).to(device, dtype)[:, None]
        self._sum = torch.zeros((len(linked), arithmetic.network.rank), dtype=dtype, device=device)
        self._gain = np.zeros(len(linked), np.int64)  # of each row's nonzeros so far
        self._block = -1
        self._hidden = torch.empty_like(self._sum)
        self._logits = torch.empty((_TILE, len(linked)), dtype=dtype, device=device)
        self._next()

    def _next(self) -> None:
        self._block += 1
        if self._block < self._a.network.n_blocks:
            torch.add(self._sum, self._a.bias[self._block], out=self._hidden)
            self._a.floor(self._hidden, self._a.shifts, MAX_WEIGHT)
            if self._a.floating:
                self._hidden.floor_()

    def slabs(self) -> list[tuple[int, int]]:
        """The block's columns in slices of few enough cells to be looked at together: first column and end of each."""
        start, end = self._a.network.starts[self._block : self._block + 2]
        width = max(1, _SLAB_CELLS // max(self._n_rows, 1))
        return [(c, min(c + width, end)) for c in range(start, end, width)]

    def bins(self, start: int, end: int) -> NDArray[np.uint8]:
        """Bins of the cells of some columns of the block, column by column: uint8 ((end - start) T,)."""
        a, n = self._a, self._a.network
        out = torch.empty((end - start, self._n_rows), dtype=torch.uint8, device=a.device)
        for c in range(start, end, _TILE):
            last = min(c + _TILE, end)
            out[c - start : last - start] = a.floor(self.logits(c, last), n.shift, n.n_bins - 1)
        return out.reshape(-1).cpu().numpy()

    def logits(self, start: int, end: int) -> Tensor:
        """Logits of a few columns of the block, (end - start, T), in memory that the next call takes again.

        Floating ones are in widths of a bin, integers have not been shifted.
        """
        a, some = self._a, slice(start, end)
        out = self._logits[: end - start]
        if a.floating:
            return torch.addmm(a.out_bias[some, None], a.out[some], self._hidden.T, out=out)
        return torch.mm(a.out[some], self._hidden.T, out=out).add_(a.out_bias[some, None])

    def level_bins(self, column: Integers, row: Integers) -> NDArray[np.uint8]:
        """Bins of the levels of the block's nonzeros, uint8 (K,)."""
        a, n = self._a, self._a.network
        out = torch.empty(len(column), dtype=torch.uint8, device=a.device)
        for i in range(0, len(column), _TILE_NONZEROS):
            some = slice(i, i + _TILE_NONZEROS)
            c, t = (torch.from_numpy(where[some]).to(a.device) for where in (column, row))
            score = a.level_out.index_select(0, c).mul_(self._hidden.index_select(0, t)).sum(1, dtype=a.dtype)
            out[some] = a.floor(score.add_(a.level_bias[c]), n.level_shift, n.n_level_bins - 1)
        return out.cpu().numpy()

    def enter(self, column: Integers, row: Integers, level: NDArray[np.int32]) -> None:
        """Make the block's nonzeros context, and go on to the next block.

        A row whose gains sum to more than 2^15 stops being context there: so all sums are below 2^24 for any input.
        """
        n = self._a.network
        if self._block < n.n_blocks - 1 and len(column):
            cell = np.minimum(np.abs(level), GAINS) - 1
            self._gain += np.bincount(row, n.gains[cell], self._n_rows).astype(np.int64)
            order = np.argsort(narrow(row, self._n_rows), kind="stable")
            if self._gain.max() > ROW_GAIN:
                order = order[self._gain[row[order]] <= ROW_GAIN]
            self._add(column[order], row[order], cell[order])
        self._next()

    def _add(self, column: Integers, row: Integers, cell: NDArray[np.int32]) -> None:
        """Add nonzeros, sorted by row, to the sums of their rows and the rows beside these."""
        a = self._a
        c, gain = torch.from_numpy(column).to(a.device), a.gains[torch.from_numpy(cell).to(a.device, torch.int64)]
        starts = torch.from_numpy(np.searchsorted(row, np.arange(self._n_rows))).to(a.device)
        t = torch.from_numpy(row).to(a.device)

        def summed(table: Tensor) -> Tensor:
            if a.floating:
                return torch.nn.functional.embedding_bag(c, table, starts, mode="sum", per_sample_weights=gain)
            return torch.zeros_like(self._sum).index_add_(0, t, table[c] * gain[:, None])

        own, after, before = a.context
        self._sum += summed(own)
        self._sum[1:].addcmul_(summed(after)[:-1], self._linked)
        self._sum[:-1].addcmul_(summed(before)[1:], self._linked)
