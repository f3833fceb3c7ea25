"""Rows of codes as the network of the context prior takes them: nonzeros by block, in the order of rows and of columns.

Columns are the latents in the order of their blocks. A block's context reaches later blocks of its own row and of the
rows before and after it, as far as these are of the same sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saecodec.codes import Codes
from saecodec.priors.layout import Layout
from saecodec.sequences import linked_rows


@dataclass(frozen=True, eq=False)
class Block:
    """The K nonzeros of a block, sorted by column, then row.

    column: inside the block, int64 (K,). row: int64 (K,). level: |level| - 1, at most 15, int64 (K,). gain: of the
    context, float32 (K,). column_starts: first nonzero of each column, int64 (F_g,). by_row: their order by row, int64
    (K,). column_by_row: column in that order. row_starts: first of each row in that order, int64 (T,).
    """

    column: Tensor
    row: Tensor
    level: Tensor
    gain: Tensor
    column_starts: Tensor
    by_row: Tensor
    column_by_row: Tensor
    row_starts: Tensor


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows in blocks. linked: whether row t + 1 continues row t, float32 (T - 1, 1)."""

    n_rows: int
    blocks: list[Block]
    linked: Tensor


def batch_of(
    codes: Codes, layout: Layout, gains: NDArray[np.float32], device: torch.device, keep: NDArray[Any] | None = None
) -> Batch:
    """A batch. gains: by min(|level|, 16) - 1. keep: factor of each nonzero's gain in the order of `codes`, or None."""
    t = codes.n_rows
    column = layout.column_of.take(codes.latents)
    order = np.argsort(column, kind="stable")
    column, row = column.take(order).astype(np.int64), codes.rows().take(order)
    level = np.minimum(np.abs(codes.levels.take(order)).astype(np.int64), len(gains)) - 1
    gain = gains.take(level)
    if keep is not None:
        gain = gain * keep.take(order)
    cuts = np.searchsorted(column, layout.class_start)
    linked = linked_rows(codes.columns, t)[1:].astype(np.float32)[:, None]

    def to(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    blocks = []
    for i, (a, b) in enumerate(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)):
        first, end = layout.class_start[i : i + 2]
        inside, rows = column[a:b] - first, row[a:b]
        by_row = np.argsort(rows.astype(np.uint16) if t <= 1 << 16 else rows, kind="stable")
        blocks.append(
            Block(
                to(inside),
                to(rows),
                to(level[a:b]),
                to(gain[a:b]),
                to(np.searchsorted(inside, np.arange(end - first))),
                to(by_row),
                to(inside[by_row]),
                to(np.searchsorted(rows[by_row], np.arange(t))),
            )
        )
    return Batch(t, blocks, to(linked))
