"""The layout sorts columns by support class and latent, and levels by class; cells go there and back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.codes import Codes
from saecodec.priors.layout import Layout, narrow

AnyCodes = Callable[..., st.SearchStrategy[Codes]]
SameCodes = Callable[[Codes, Codes], None]


def layout(n_latents: int, seed: int) -> Layout:
    """Random classes, one to three of them in a group."""
    rng = np.random.default_rng(seed)
    support = np.unique(rng.integers(0, 6, n_latents), return_inverse=True)[1].reshape(-1).astype(np.int64)
    cuts = np.unique(np.append(rng.integers(0, support.max() + 1, 3), [0, support.max() + 1]))
    return Layout(support, rng.integers(0, 3, n_latents), tuple(np.diff(cuts).tolist()))


def test_columns_are_sorted_by_support_class_then_latent() -> None:
    made = Layout(np.array([1, 0, 2, 0, 1]), np.array([1, 0, 0, 2, 1]), (2, 1))
    assert made.latent_of.tolist() == [1, 3, 0, 4, 2]
    assert made.column_of.tolist() == [2, 0, 4, 1, 3]
    assert made.class_start.tolist() == [0, 2, 4, 5]
    assert made.class_bounds == [0, 2, 3]


def test_levels_are_in_runs_of_one_level_class_inside_a_group() -> None:
    made = Layout(np.array([0, 0, 0, 1, 1, 1]), np.array([1, 0, 1, 2, 2, 0]), (1, 1))
    column = np.array([0, 0, 1, 2, 4, 4, 5])  # of nonzeros, by position; the columns are the latents here
    order, run = made.level_order(column)
    assert made.run_class.tolist() == [0, 1, 0, 2]
    assert made.run_bounds == [0, 2, 4]
    assert column[order].tolist() == [1, 0, 0, 2, 5, 4, 4]
    assert run.tolist() == [0, 1, 4, 5, 7]


@given(st.data(), st.integers(1, 30), st.integers(0, 1000))
def test_the_order_of_levels_is_by_group_then_level_class_then_position(
    any_codes: AnyCodes, data: st.DataObject, n_latents: int, seed: int
) -> None:
    made = layout(n_latents, seed)
    codes = data.draw(any_codes(n_latents, columns=False))
    column = made.cells(codes).column
    order, run = made.level_order(column)
    group = np.repeat(np.arange(len(made.group_sizes)), made.group_sizes)[made.support_class]
    latent = made.latent_of[column]
    expected = sorted(range(len(column)), key=lambda i: (group[latent[i]], made.level_class[latent[i]], i))
    assert order.tolist() == expected
    runs = np.repeat(made.run_class, np.diff(run))
    np.testing.assert_array_equal(runs, made.level_class[latent[order]])
    groups = [group[latent[order[run[a] : run[b]]]] for a, b in pairwise(made.run_bounds)]
    assert all((found == g).all() for g, found in enumerate(groups))
    assert sum(map(len, groups)) == len(column)


@given(st.integers(1, 30), st.integers(0, 1000))
def test_classes_partition_the_columns(n_latents: int, seed: int) -> None:
    made = layout(n_latents, seed)
    assert sorted(made.latent_of.tolist()) == list(range(n_latents))
    np.testing.assert_array_equal(made.column_of[made.latent_of], np.arange(n_latents))
    assert made.class_start[0] == 0
    assert made.class_start[-1] == n_latents
    assert (np.diff(made.class_start) > 0).all()


@given(st.data(), st.integers(1, 30), st.integers(0, 1000))
def test_codes_come_back_from_their_cells(
    any_codes: AnyCodes, assert_same_codes: SameCodes, data: st.DataObject, n_latents: int, seed: int
) -> None:
    codes = data.draw(any_codes(n_latents, columns=False))
    made = layout(n_latents, seed)
    cells = made.cells(codes)
    position = cells.column * codes.n_rows + cells.row
    assert (np.diff(position) > 0).all()
    assert_same_codes(made.codes(cells, codes.n_rows), codes)


@pytest.mark.parametrize("n_latents, n_rows", [(65_536, 3), (65_537, 3), (70_000, 40), (3, 65_536), (3, 65_537)])
def test_more_than_65536_latents_or_rows_go_the_wide_way_to_the_same_end(
    assert_same_codes: SameCodes, n_latents: int, n_rows: int
) -> None:
    rng = np.random.default_rng(0)
    cells = np.unique(np.append(rng.integers(0, n_latents * n_rows, 500), [0, n_latents * n_rows - 1]))
    rows, latents = np.divmod(cells, n_latents)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])
    codes = Codes(indptr, latents.astype(np.int32), np.arange(1, len(cells) + 1, dtype=np.int32), n_latents).check()
    made = layout(n_latents, 0)
    assert_same_codes(made.codes(made.cells(codes), n_rows), codes)


def test_narrow_keeps_what_does_not_fit_16_bits() -> None:
    assert narrow(np.array([65_535]), 65_536).dtype == np.uint16
    assert narrow(np.array([65_536]), 65_537).tolist() == [65_536]
