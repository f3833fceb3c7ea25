"""The rows of a training: a source's, mixed, in batches that depend on a seed, the memory and their number alone.

Rows are mixed within blocks of as many as the memory holds; one block, if it is all, is read once and kept. Some
stretches of the first block are held out: no weight learns from them, and a training is judged by them. They choose a
few numbers, too: docs/training.md, "The loop".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from torch import Tensor

from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource
from saecodec.progress import Progress, no_progress
from saecodec.training.scaling import Scaling

MEMORY: Final = 1 << 30
"""Bytes of a block of rows, by default."""
_HELD_OUT: Final = 8192  # rows, at most
_HELD_OUT_SHARE: Final = 16  # and one in so many
_STRETCHES: Final = 8  # neighbouring rows are alike: they are held out together
_READ: Final = 8192  # rows at a time


class TrainingRows:
    """Batches of a source's rows, float16 where the source has that, else float32.

    batch: rows of each. memory: bytes that a block may take, which is four batches at least; where there are several
    blocks, two are held while one of them is read. held_out: float32 (H, d). scaling: of the first block's.
    InputError when a row is not finite, when there are fewer rows than a batch, or when they do not vary.
    """

    def __init__(
        self,
        source: ArraySource,
        batch: int,
        seed: int,
        *,
        memory: int = MEMORY,
        progress: Progress = no_progress,
    ) -> None:
        self._source, self._batch, self._seed, self._progress = source, batch, seed, progress
        self._half = source.dtype == "float16"
        most = max(4 * batch, memory // (source.width * (2 if self._half else 4)))
        n_blocks = max(1, math.ceil(source.n_rows / most))
        edges = [source.n_rows * k // n_blocks for k in range(n_blocks + 1)]
        self._sizes = [b - a for a, b in itertools.pairwise(edges)]
        first = next(self._read())
        n_held = min(_HELD_OUT, len(first) // _HELD_OUT_SHARE)
        self._held = _stretches(len(first), n_held)
        self.held_out = first[self._held].to(torch.float32)
        kept = _without(first, self._held)
        self._rows_of = [len(kept), *self._sizes[1:]]
        if self._per_epoch() < 1:
            raise InputError(
                f"{source.path}: {source.n_rows:,} rows, {int(self._held.sum()):,} of them held out, are fewer than a "
                f"batch of {batch:,}: give more rows, or a smaller batch"
            )
        self.scaling = Scaling.of(torch.split(kept, _READ))
        self._kept = kept if n_blocks == 1 else None

    @property
    def n_rows(self) -> int:
        """Rows that are trained on."""
        return sum(self._rows_of)

    def serve(self, source: ArraySource, batch: int, seed: int) -> bool:
        """Whether these are the rows of a source in such batches."""
        return self._source is source and (self._batch, self._seed) == (batch, seed)

    def batches(self, first: int = 0) -> Iterator[Tensor]:
        """Batches without end, from number `first` on."""
        first_epoch, skipped = divmod(first, self._per_epoch())
        for epoch in itertools.count(first_epoch):
            blocks = self._blocks()
            for number, n_rows in enumerate(self._rows_of):
                rows = next(blocks)
                n = n_rows // self._batch
                if skipped >= n:
                    skipped -= n
                    continue
                order = torch.from_numpy(np.random.default_rng([self._seed, epoch, number]).permutation(n_rows))
                for k in range(skipped, n):
                    yield rows[order[k * self._batch : (k + 1) * self._batch]]
                skipped = 0

    def _per_epoch(self) -> int:
        return sum(n // self._batch for n in self._rows_of)

    def _blocks(self) -> Iterator[Tensor]:
        if self._kept is not None:
            yield self._kept
            return
        for number, rows in enumerate(self._read()):
            yield _without(rows, self._held) if number == 0 else rows

    def _read(self) -> Iterator[Tensor]:
        """The source's rows, block by block."""
        sizes = [min(_READ, size - at) for size in self._sizes for at in range(0, size, _READ)]
        parts, done = self._source.batches(sizes), 0
        for size in self._sizes:
            block = torch.empty(size, self._source.width, dtype=torch.float16 if self._half else torch.float32)
            for at in range(0, size, _READ):
                x = next(parts)
                finite = np.isfinite(x).all(1)
                if not finite.all():
                    raise InputError(f"{self._source.path}: row {done + int(np.argmin(finite))} holds NaN or infinity")
                block[at : at + len(x)] = torch.from_numpy(x)
                done += len(x)
                self._progress("read", done, self._source.n_rows)
            yield block


def _stretches(n_rows: int, n_held: int) -> Tensor:
    """Which of the rows are held out, bool (T,): stretches of equal length at equal distances."""
    held, length = torch.zeros(n_rows, dtype=torch.bool), n_held // _STRETCHES
    for k in range(_STRETCHES):
        start = n_rows * (2 * k + 1) // (2 * _STRETCHES)
        held[start : start + length] = True
    return held


def _without(block: Tensor, held: Tensor) -> Tensor:
    """The rows of a block that are not held out, moved to its front: a copy would take as much memory again."""
    kept = torch.nonzero(~held).view(-1)
    for at in range(0, len(kept), _READ):
        part = block[kept[at : at + _READ]]  # a copy; what is overwritten has been moved before
        block[at : at + len(part)] = part
    return block[: len(kept)]
