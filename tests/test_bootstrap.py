"""Blocks keep sequences together, draws are paired, and intervals cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.bootstrap import Blocks, bounds, interval


@given(st.lists(st.integers(1, 4), min_size=20, max_size=40).filter(lambda lengths: max(lengths) > 1))
def test_blocks_are_the_runs_of_equal_ids(lengths: list[int]) -> None:
    ids = np.repeat(np.arange(len(lengths)) % 2, lengths)
    blocks = Blocks.of(len(ids), ids)
    values = np.arange(len(ids), dtype=float)
    cuts = np.cumsum(lengths)[:-1]
    assert blocks.sums(values).tolist() == [part.sum() for part in np.split(values, cuts)]
    assert blocks.counts.tolist() == lengths
    assert blocks.unit == "sequences"


@pytest.mark.parametrize("n_sequences", [1, 2, 19])
def test_few_sequences_are_cut_into_runs_of_rows(n_sequences: int) -> None:
    blocks = Blocks.of(640, np.arange(640) * n_sequences // 640)
    assert blocks.unit == "runs of 10 rows"
    assert len(blocks) == 64


@pytest.mark.parametrize("n_rows, length", [(100_000, 128), (6400, 100), (64, 1), (3, 1)])
def test_rows_without_ids_are_cut_into_runs(n_rows: int, length: int) -> None:
    blocks = Blocks.of(n_rows)
    assert blocks.counts[0] == length
    assert blocks.counts.sum() == n_rows
    assert len(blocks) >= min(n_rows, 64)


def test_very_many_blocks_are_joined() -> None:
    blocks = Blocks.of(10_000, np.arange(10_000))
    assert len(blocks) == 2000
    assert blocks.unit == "single rows, 5 at a time"
    assert blocks.counts.tolist() == [5] * 2000


def test_no_rows_have_no_blocks() -> None:
    blocks = Blocks.of(0)
    assert len(blocks) == 0
    assert blocks.draws(10).shape == (11, 0)
    assert blocks.sums(np.zeros(0)).tolist() == []


def test_a_draw_has_as_many_blocks_as_there_are_and_the_same_seed_draws_the_same() -> None:
    blocks = Blocks.of(1280)
    draws = blocks.draws(50)
    assert (draws.sum(1) == len(blocks)).all()
    assert (draws[0] == 1).all()
    np.testing.assert_array_equal(draws, blocks.draws(50))


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(3), 0
    for i in range(200):
        shared = np.repeat(rng.normal(size=80), 25)  # neighbours share most: rows one by one would be overconfident
        values = 1.0 + shared + 0.2 * rng.normal(size=2000)
        blocks = Blocks.of(2000, np.repeat(np.arange(80), 25))
        draws = blocks.draws(300, seed=i)
        low, high = interval((draws @ blocks.sums(values) / (draws @ blocks.counts))[1:])
        covered += low <= 1.0 <= high
    assert 0.88 * 200 <= covered <= 0.99 * 200


def test_the_interval_is_the_middle() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx([25.0, 975.0])


def test_an_end_that_is_infinite_is_none_and_what_is_not_defined_is_left_out() -> None:
    values = np.concatenate([np.arange(1.0, 98.0), [np.inf] * 3, [np.nan] * 50])
    assert bounds(values) == (3.0, np.inf)
    assert interval(values) == [3.0, None]
    assert interval(np.full(5, np.nan)) == [None, None]
