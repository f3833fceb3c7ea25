"""Rows are linked inside sequences only, and chunks prefer to end where a sequence does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.codes import MAX_COLUMN, Codes
from saecodec.errors import InputError
from saecodec.sequences import SEQUENCE, Chunking, linked_rows


@st.composite
def sequences(draw: st.DrawFn) -> np.ndarray:
    lengths = draw(st.lists(st.integers(1, 30), max_size=30))
    return np.repeat(np.arange(len(lengths)), lengths).astype(draw(st.sampled_from([np.uint8, np.int32, np.int64])))


def test_a_row_is_linked_to_the_row_before_it_of_the_same_sequence() -> None:
    ids = np.array([4, 4, 2, 2, 2, 4])
    assert linked_rows({SEQUENCE: ids}, 6).tolist() == [False, True, False, True, True, False]


def test_without_ids_all_rows_of_a_chunk_are_one_sequence() -> None:
    assert linked_rows({}, 3).tolist() == [False, True, True]
    assert linked_rows({"token": np.arange(3)}, 3).tolist() == [False, True, True]
    assert linked_rows({}, 0).tolist() == []


@given(sequences(), st.integers(1, 40))
def test_chunks_hold_all_rows_and_end_at_the_last_boundary_of_their_second_half(
    ids: np.ndarray, chunk_rows: int
) -> None:
    chunking = Chunking.of(len(ids), chunk_rows, ids)
    assert sum(chunking.sizes) == len(ids)
    assert all(0 < size <= chunk_rows for size in chunking.sizes)
    ends = np.cumsum(chunking.sizes)[:-1]
    for start, end in zip(np.concatenate([[0], ends]), ends, strict=False):
        boundaries = [t for t in range(start + (chunk_rows + 1) // 2, start + chunk_rows + 1) if ids[t - 1] != ids[t]]
        assert end == (boundaries[-1] if boundaries else start + chunk_rows)


@given(st.integers(0, 100), st.integers(1, 40))
def test_without_ids_chunks_are_full(n_rows: int, chunk_rows: int) -> None:
    sizes = Chunking.of(n_rows, chunk_rows).sizes
    assert sum(sizes) == n_rows
    assert all(size == chunk_rows for size in sizes[:-1])


def test_codes_are_labelled_with_the_ids_of_their_rows() -> None:
    ids = np.array([0, 0, 1, 1, 1], np.uint8)
    codes = Codes.from_dense(np.eye(5, dtype=np.int64), {"token": np.arange(5)})
    chunking = Chunking.of(5, 3, ids)
    assert chunking.sizes == (2, 3)
    parts = list(chunking.labels(iter([codes[:2], codes[2:]])))
    assert [part.columns[SEQUENCE].tolist() for part in parts] == [[0, 0], [1, 1, 1]]
    assert [part.columns["token"].tolist() for part in parts] == [[0, 1], [2, 3, 4]]
    assert all(part.columns[SEQUENCE].dtype == np.int64 for part in parts)
    assert Chunking.of(5, 3).label(codes, 0) is codes


@pytest.mark.parametrize("ids", [np.zeros(4, np.int64), np.zeros((5, 1), np.int64), np.zeros(5)], ids=str)
def test_ids_that_are_not_one_integer_a_row_are_refused(ids: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"one integer a row: expected shape \(5,\)"):
        Chunking.of(5, 2, ids)


@pytest.mark.parametrize("worst", [MAX_COLUMN, -MAX_COLUMN])
def test_ids_that_a_column_cannot_hold_are_refused(worst: int) -> None:
    with pytest.raises(InputError, match="number the sequences anew"):
        Chunking.of(2, 2, np.array([0, worst]))
