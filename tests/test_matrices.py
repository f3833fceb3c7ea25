"""Integer matrices come back, and streams that cannot hold them, or hold larger integers, are refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.errors import FormatError
from saecodec.matrices import check_room, decode_matrix, encode_matrix
from saecodec.table_set import TableSet

LIMIT = (1 << 30) - 1
integer = st.one_of(st.integers(-3, 3), st.integers(-LIMIT, LIMIT))


@given(st.data())
def test_a_matrix_comes_back(data: st.DataObject) -> None:
    n_classes, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    classes = data.draw(st.lists(st.integers(0, n_classes - 1), min_size=width, max_size=width))
    codes = data.draw(
        st.lists(st.lists(st.integers(0, 20), min_size=2, max_size=2), min_size=n_classes, max_size=n_classes)
    )
    tables = TableSet(np.array(classes), np.array(codes), 0)
    rows = data.draw(st.lists(st.lists(integer, min_size=width, max_size=width), max_size=6))
    values = np.array(rows, np.int64).reshape(-1, width)
    found = decode_matrix(encode_matrix(values, tables), len(values), tables, LIMIT, "test")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, values)


TABLES = TableSet(np.array([0, 1, 0]), np.array([[9, 9, 9, 9], [0, 0, 12, 12]]), 0)


def test_the_limit_is_of_magnitudes() -> None:
    values = np.array([[1, -7, 7]])
    data = encode_matrix(values, TABLES)
    assert decode_matrix(data, 1, TABLES, 7, "test").tolist() == values.tolist()
    with pytest.raises(FormatError, match="test: an integer exceeds 6 in magnitude"):
        decode_matrix(data, 1, TABLES, 6, "test")


def test_more_rows_than_a_stream_can_hold_are_refused_before_there_is_memory_for_them() -> None:
    check_room(4, 12, TABLES, "test")
    for n_rows in (40, 1 << 50):
        with pytest.raises(FormatError, match=f"test: {3 * n_rows} integers cannot come from 4 bytes"):
            decode_matrix(b"\0" * 4, n_rows, TABLES, 7, "test")
