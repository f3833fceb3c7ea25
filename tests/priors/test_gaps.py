"""Gaps and positions are inverse to each other, and gaps that lead out of the chunk are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.errors import FormatError
from saecodec.priors.gaps import gaps_of, positions_of
from saecodec.priors.layout import Cells


@st.composite
def supports(draw: st.DrawFn) -> tuple[Cells, int, np.ndarray]:
    """Sorted cells of a chunk, its number of rows, and the first column of each class."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    n_rows = draw(st.integers(0, 12))
    n_columns = sum(sizes)
    on = np.array(draw(st.lists(st.booleans(), min_size=n_rows * n_columns, max_size=n_rows * n_columns)), bool)
    column, row = np.nonzero(on.reshape(n_columns, n_rows))
    return Cells(column, row, np.ones(len(row), np.int32)), n_rows, np.concatenate([[0], np.cumsum(sizes)])


@given(supports())
def test_positions_come_back_from_gaps(support: tuple[Cells, int, np.ndarray]) -> None:
    cells, n_rows, class_start = support
    gaps, first = gaps_of(cells, n_rows, class_start)
    assert (gaps >= 0).all()
    column, row = positions_of(gaps, np.diff(first), n_rows, class_start, "chunk")
    np.testing.assert_array_equal(column, cells.column)
    np.testing.assert_array_equal(row, cells.row)


@given(supports())
def test_a_gap_is_the_number_of_zeros_before_a_one_in_its_class(support: tuple[Cells, int, np.ndarray]) -> None:
    cells, n_rows, class_start = support
    gaps, first = gaps_of(cells, n_rows, class_start)
    on = np.zeros((class_start[-1], n_rows), bool)
    on[cells.column, cells.row] = True
    for c in range(len(class_start) - 1):
        sequence = on[class_start[c] : class_start[c + 1]].ravel()
        text = "".join("1" if bit else "0" for bit in sequence)
        assert gaps[first[c] : first[c + 1]].tolist() == [len(zeros) for zeros in text.split("1")[:-1]]


def test_a_latent_that_is_always_on_has_gaps_of_zero() -> None:
    gaps, _ = gaps_of(Cells(np.zeros(5, np.int64), np.arange(5), np.ones(5, np.int32)), 5, np.array([0, 1]))
    assert gaps.tolist() == [0] * 5


@pytest.mark.parametrize(
    "gaps, counts",
    [
        ([6], [1, 0]),  # one past the first class, though inside the chunk
        ([5, 0], [2, 0]),
        ([6], [0, 1]),
        ([12], [1, 0]),
        ([1 << 40] * 3, [3, 0]),
        ([(1 << 40) - 1] * 5000, [2500, 2500]),  # where sums in 64 bits would overflow with more
    ],
    ids=lambda value: str(value)[:20],
)
def test_gaps_that_lead_past_their_class_are_refused(gaps: list[int], counts: list[int]) -> None:
    with pytest.raises(FormatError, match="chunk 7: the gaps of the support lead past"):
        positions_of(np.array(gaps), np.array(counts), 3, np.array([0, 2, 4]), "chunk 7")


def test_the_last_cell_of_a_class_is_reachable() -> None:
    column, row = positions_of(np.array([5, 5]), np.array([1, 1]), 3, np.array([0, 2, 4]), "chunk")
    assert (column.tolist(), row.tolist()) == ([1, 3], [2, 2])


def test_sums_that_would_overflow_64_bits_are_refused() -> None:
    gaps = np.full((1 << 23) + 1, (1 << 40) - 1)
    with pytest.raises(FormatError, match="past the end of the chunk"):
        positions_of(gaps, np.array([len(gaps)]), 1 << 20, np.array([0, 1 << 24]), "chunk")
