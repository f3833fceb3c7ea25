"""Rows of a training: mixed, held out, and the same from any batch on."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.errors import InputError
from saecodec.formats import training_rows
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.training_rows import TrainingRows

WIDTH, BATCH = 3, 16


def numbered(n: int, dtype: str = "float32") -> NDArray[Any]:
    """Rows that say which they are."""
    return np.stack([np.arange(n), np.random.default_rng(0).normal(size=n), np.ones(n)], 1).astype(dtype)


def rows_of(n: int, blocks: int = 1, batch: int = BATCH, seed: int = 0, dtype: str = "float32") -> TrainingRows:
    size = -(-n // blocks) * WIDTH * (2 if dtype == "float16" else 4)
    return TrainingRows(MemoryArray(numbered(n, dtype)), batch, seed, memory=size)


def numbers(rows: TrainingRows, n: int, first: int = 0) -> list[list[int]]:
    return [x[:, 0].int().tolist() for x in itertools.islice(rows.batches(first), n)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("blocks", [1, 2, 5])
@pytest.mark.parametrize("n", [333, 2000])
def test_an_epoch_has_every_row_once_but_those_held_out_and_remainders(n: int, blocks: int, dtype: str) -> None:
    rows = rows_of(n, blocks, dtype=dtype)
    held = rows.held_out[:, 0].int().tolist()
    assert n / 16 / blocks - 9 <= len(held) <= n / 16
    assert rows.held_out.dtype == torch.float32
    per_epoch = rows._per_epoch()
    assert rows.n_rows == n - len(held)
    assert rows.n_rows - blocks * BATCH < per_epoch * BATCH <= rows.n_rows
    epochs = [numbers(rows, per_epoch, epoch * per_epoch) for epoch in range(2)]
    for epoch in epochs:
        seen = list(itertools.chain(*epoch))
        assert len(set(seen)) == len(seen) == per_epoch * BATCH
        assert not set(seen) & set(held)
        assert all(len(batch) == BATCH for batch in epoch)
        assert seen != sorted(seen), "mixed"
    assert epochs[0] != epochs[1], "and mixed again"
    kept = np.setdiff1d(np.arange(n), held)
    x = numbered(n, dtype).astype(np.float64)[kept if blocks == 1 else kept[kept < len(rows._held)]]
    np.testing.assert_allclose(rows.scaling.mean, x.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocks", [1, 3])
def test_batches_begin_anywhere(blocks: int) -> None:
    rows = rows_of(500, blocks)
    all_batches = numbers(rows, 100)
    for first in (0, 1, rows._per_epoch() - 1, rows._per_epoch(), 2 * rows._per_epoch() + 5):
        assert numbers(rows_of(500, blocks), 12, first) == all_batches[first : first + 12]


def test_batches_depend_on_the_seed_and_on_nothing_else() -> None:
    assert numbers(rows_of(500), 5) == numbers(rows_of(500), 5)
    assert numbers(rows_of(500), 5) != numbers(rows_of(500, seed=1), 5)
    plenty = TrainingRows(MemoryArray(numbered(500)), BATCH, 0)
    assert numbers(plenty, 5) == numbers(rows_of(500), 5), "memory that is not needed changes nothing"


def test_held_out_rows_lie_together_and_all_over() -> None:
    held = rows_of(16 * 80).held_out[:, 0].int().numpy()
    assert len(held) == 80
    assert (np.diff(held) == 1).sum() == 80 - 8
    assert held.min() < 16 * 80 / 8
    assert held.max() > 16 * 80 * 7 / 8


def test_a_block_has_several_batches_however_little_memory_there_is() -> None:
    rows = TrainingRows(MemoryArray(numbered(100)), 30, 0, memory=1)
    assert rows._per_epoch() == 3
    assert len(set(itertools.chain(*numbers(rows, 3)))) == 90


@pytest.mark.parametrize("n", [0, 1, 15])
def test_fewer_rows_than_a_batch_are_refused(n: int) -> None:
    with pytest.raises(InputError, match=rf"<memory>: {n} rows.*fewer than a batch of 16"):
        rows_of(n)
    if n:
        assert rows_of(16).n_rows == 16


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 77, 299])
def test_a_row_that_is_not_finite_is_named(row: int, value: float) -> None:
    x = numbered(300)
    x[row, 1] = value
    x[299, 2] = np.nan
    for memory in (1 << 20, 1):
        with pytest.raises(InputError, match=f"<memory>: row {row} holds NaN or infinity"):
            list(itertools.islice(TrainingRows(MemoryArray(x), BATCH, 0, memory=memory).batches(), 30))


def test_rows_that_do_not_vary_are_refused() -> None:
    with pytest.raises(InputError, match="do not vary"):
        TrainingRows(MemoryArray(np.ones((100, 3), np.float32)), BATCH, 0)


def test_progress_counts_rows() -> None:
    told = []
    TrainingRows(MemoryArray(numbered(20_000)), 16, 0, progress=lambda *words: told.append(words))
    assert [words[1] for words in told] == [8192, 16384, 20_000]
    assert told[0][0] == "read"


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 7))
def test_what_is_held_out_is_taken_out_in_place(held: list[bool], read: int) -> None:
    block = torch.arange(2 * len(held)).view(-1, 2)
    wanted, where = block[~torch.tensor(held, dtype=torch.bool)], block.data_ptr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_rows, "_READ", read)
        kept = training_rows._without(block, torch.tensor(held, dtype=torch.bool))
    assert torch.equal(kept, wanted)
    assert not len(kept) or kept.data_ptr() == where
