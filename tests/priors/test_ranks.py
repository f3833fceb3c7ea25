"""A cell's rank in its bin is what sorting all cells by bin would give, and leads back to the cell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.priors.ranks import BinnedCells


@st.composite
def binned(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    n_bins = draw(st.integers(1, 255))
    n = draw(st.integers(0, 700))
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    used = random.integers(0, n_bins, draw(st.integers(1, 5)))  # few, so that bins are long too
    return random.choice(used, n).astype(np.uint8), n_bins


def ranks_by_counting(bins: np.ndarray) -> np.ndarray:
    return np.array([int((bins[:i] == b).sum()) for i, b in enumerate(bins)], np.int64)


@given(binned(), st.data())
def test_ranks_count_the_cells_of_the_bin_before_a_cell(case: tuple[np.ndarray, int], data: st.DataObject) -> None:
    bins, n_bins = case
    cells = BinnedCells(bins, n_bins)
    np.testing.assert_array_equal(cells.counts, np.bincount(bins, minlength=n_bins))
    asked = np.array(sorted(data.draw(st.sets(st.integers(0, len(bins) - 1)))) if len(bins) else [], np.int64)
    ranks = cells.ranks(asked)
    np.testing.assert_array_equal(ranks, ranks_by_counting(bins)[asked])
    by_bin = np.lexsort((ranks, bins[asked]))
    found = cells.cells(ranks[by_bin], bins[asked][by_bin].astype(np.int64))
    np.testing.assert_array_equal(found, asked[by_bin])


@pytest.mark.parametrize("n", [127, 128, 129, 128 * 300])
def test_every_cell_of_one_long_bin_is_found(n: int) -> None:
    cells, all_of_them = BinnedCells(np.full(n, 7, np.uint8), 9), np.arange(n)
    np.testing.assert_array_equal(cells.ranks(all_of_them), all_of_them)
    np.testing.assert_array_equal(cells.cells(all_of_them, np.full(n, 7)), all_of_them)
