"""The context prior's network in floating point, as it is trained: its loss and the gradient of it.

`network` describes what it computes; here thresholds are soft, weights are real. The gradient is written out, not
left to autograd: all memory is taken once, and of the largest array, the logits of a block, only one block is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saecodec.priors.context_rows import Batch, Block

LEVELS: Final = 16
"""Levels told apart by the loss of levels: the last stands for itself and all above."""


@dataclass(frozen=True)
class Shape:
    """Sizes. starts: first column of each block, and F at the end (G + 1,). rank: r, hidden units."""

    starts: tuple[int, ...]
    rank: int

    @property
    def n_blocks(self) -> int:
        """G."""
        return len(self.starts) - 1

    @property
    def n_columns(self) -> int:
        """F."""
        return self.starts[-1]

    @property
    def n_inputs(self) -> int:
        """Columns that are context of a later block: all but the last block's."""
        return self.starts[-2]

    def parts(self) -> dict[str, tuple[int, ...]]:
        """The arrays that make up the parameters, and their shapes."""
        f, r = self.n_columns, self.rank
        return {
            "context": (self.n_inputs, 3 * r),
            "bias": (self.n_blocks, r),
            "out": (f, r),
            "out_bias": (f,),
            "level_out": (f, r),
            "level_bias": (f,),
            "stops": (LEVELS,),
        }

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(shape)) for shape in self.parts().values())


class Parameters:
    """All parameters in one vector `flat`, float32, and views of its parts (see `Shape.parts`).

    context: of each column, what a nonzero in the same row adds to the hidden units, then one in the row before, then
    one in the row after. bias: of the hidden units in each block. out, out_bias: of the logits of columns. level_out,
    level_bias: of the scores of levels. stops: of each level, how likely a level stops there.
    """

    def __init__(self, shape: Shape, flat: Tensor) -> None:
        self.shape, self.flat = shape, flat
        sizes = [int(np.prod(part)) for part in shape.parts().values()]
        views = [view.view(part) for view, part in zip(torch.split(flat, sizes), shape.parts().values(), strict=True)]
        self.context, self.bias, self.out, self.out_bias, self.level_out, self.level_bias, self.stops = views

    def to(self, device: torch.device) -> Parameters:
        """On a device."""
        return Parameters(self.shape, self.flat.to(device))

    @classmethod
    def initial(cls, shape: Shape, rates: NDArray[np.float64], active: float, generator: torch.Generator) -> Parameters:
        """Before training: columns fire at their `rates`, whatever the context. active: nonzeros of a row."""
        p = cls(shape, torch.zeros(shape.size))
        p.context.normal_(0, 1 / (6 * max(active, 1.0)) ** 0.5, generator=generator)
        p.bias.uniform_(0, 0.5, generator=generator)
        p.out.normal_(0, 0.03, generator=generator)
        p.out_bias.copy_(torch.from_numpy(np.log(rates / (1 - rates)).astype(np.float32)))
        return p


class Workspace:
    """Memory for the gradients of batches of up to `n_rows` rows, used again for every batch."""

    def __init__(self, shape: Shape, n_rows: int, device: torch.device) -> None:
        widest = int(np.diff(shape.starts).max())
        self.shape = shape
        self.gradient = Parameters(shape, torch.zeros(shape.size, device=device))
        self.hidden = torch.empty(shape.n_blocks, n_rows, shape.rank, device=device)
        self.sum = torch.empty(n_rows, shape.rank, device=device)
        self.toward = torch.empty(n_rows, shape.rank, device=device)
        self.spread = torch.empty(n_rows, 3 * shape.rank, device=device)
        self.logits = torch.empty(n_rows * widest, device=device)


def gradient(p: Parameters, batch: Batch, work: Workspace, *, with_loss: bool) -> Tensor | None:
    """The gradient of the code length of a batch, in nats, left in `work.gradient`.

    with_loss: also return the code lengths of support and levels, (2,).
    """
    starts, t = p.shape.starts, batch.n_rows
    total, toward, g = work.sum[:t].zero_(), work.toward[:t], work.gradient
    loss = torch.zeros(2, device=total.device)
    g.stops.zero_()
    for i, block in enumerate(batch.blocks):
        columns = slice(starts[i], starts[i + 1])
        hidden = torch.add(total, p.bias[i], out=work.hidden[i, :t]).relu_()
        _block_gradient(p, g, columns, hidden, block, toward, work.logits, loss if with_loss else None)
        if i < len(batch.blocks) - 1:
            total += spread(block, p.context[columns], batch.linked)
        torch.mul(toward, hidden > 0, out=hidden)  # from here on, the gradient of the sum in front of the threshold
        torch.sum(hidden, 0, out=g.bias[i])
    toward.zero_()
    for i in range(len(batch.blocks) - 2, -1, -1):
        toward += work.hidden[i + 1, :t]
        gathered = _gather(toward, batch.linked, work.spread[:t])
        block = batch.blocks[i]
        g.context[starts[i] : starts[i + 1]] = torch.nn.functional.embedding_bag(
            block.row, gathered, block.column_starts, mode="sum", per_sample_weights=block.gain
        )
    return loss if with_loss else None


def hidden_units(p: Parameters, batch: Batch) -> Iterator[Tensor]:
    """The hidden units that each block is told from, float32 (T, r)."""
    starts = p.shape.starts
    total = torch.zeros(batch.n_rows, p.shape.rank, device=p.flat.device)
    for i, block in enumerate(batch.blocks):
        yield (total + p.bias[i]).relu_()
        if i < len(batch.blocks) - 1:
            total += spread(block, p.context[starts[i] : starts[i + 1]], batch.linked)


def spread(block: Block, context: Tensor, linked: Tensor) -> Tensor:
    """What a block's nonzeros add to the hidden units of their own and neighbouring rows, (T, r).

    context: (F_g, 3 r), see `Parameters`. linked: whether row t + 1 continues row t, float (T - 1, 1).
    """
    gain = block.gain[block.by_row]
    own = torch.nn.functional.embedding_bag(
        block.column_by_row, context, block.row_starts, mode="sum", per_sample_weights=gain
    )
    r = context.shape[1] // 3
    out = own[:, :r].clone()
    out[1:].addcmul_(own[:-1, r : 2 * r], linked)
    out[:-1].addcmul_(own[1:, 2 * r :], linked)
    return out


def _gather(toward: Tensor, linked: Tensor, out: Tensor) -> Tensor:
    """The transpose of what `spread` does behind its bags: from (T, r) to (T, 3 r)."""
    r = toward.shape[1]
    out[:, :r] = toward
    out[-1:, r : 2 * r] = 0
    torch.mul(toward[1:], linked, out=out[:-1, r : 2 * r])
    out[:1, 2 * r :] = 0
    torch.mul(toward[:-1], linked, out=out[1:, 2 * r :])
    return out


def _block_gradient(
    p: Parameters,
    g: Parameters,
    columns: slice,
    hidden: Tensor,
    block: Block,
    toward: Tensor,
    memory: Tensor,
    loss: Tensor | None,
) -> None:
    """A block's part of the gradient; `toward` takes that of the hidden units."""
    out, level_out = p.out[columns], p.level_out[columns]
    logits = memory[: len(hidden) * len(out)].view(len(hidden), len(out))
    torch.addmm(p.out_bias[columns], hidden, out.T, out=logits)
    if loss is not None:
        loss[0] += torch.nn.functional.softplus(logits).sum() - logits[block.row, block.column].sum()
    error = logits.sigmoid_()
    error[block.row, block.column] -= 1
    torch.mm(error.T, hidden, out=g.out[columns])
    torch.sum(error, 0, out=g.out_bias[columns])
    torch.mm(error, out, out=toward)

    score = (hidden[block.row] * level_out[block.column]).sum(1) + p.level_bias[columns][block.column]
    from_score, of_stops = _level_gradient(score, p.stops, block.level, loss)
    g.stops += of_stops
    bag = torch.nn.functional.embedding_bag
    g.level_out[columns] = bag(block.row, hidden, block.column_starts, mode="sum", per_sample_weights=from_score)
    g.level_bias[columns] = torch.zeros_like(p.level_bias[columns]).index_add_(0, block.column, from_score)
    toward += bag(
        block.column_by_row, level_out, block.row_starts, mode="sum", per_sample_weights=from_score[block.by_row]
    )


def _level_gradient(score: Tensor, stops: Tensor, level: Tensor, loss: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of the code length of levels, towards scores (K,) and stops (16,).

    A level climbs from 1, and stops at l with the probability sigmoid(stops[l] - score); level: int64 (K,), from 0 on.
    """
    z = stops - score[:, None]
    steps = torch.arange(LEVELS, device=z.device)
    stopped = steps == level[:, None]
    stopped[:, -1] = False  # nothing is above
    passed = steps < level[:, None]
    if loss is not None:
        softplus = torch.nn.functional.softplus
        loss[1] += (softplus(z) * passed).sum() + (softplus(-z) * stopped).sum()
    toward = z.sigmoid_() * (passed | stopped) - stopped.to(z.dtype)
    return -toward.sum(1), toward.sum(0)
