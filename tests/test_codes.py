"""`Codes` hold what their description says, or are refused by the rule that is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.codes import MAX_LEVEL, Codes
from saecodec.errors import InputError

AnyCodes = Callable[..., st.SearchStrategy[Codes]]
SameCodes = Callable[[Codes, Codes], None]


def codes(indptr: list[int], latents: list[int], levels: list[int], n: int = 4, **columns: Any) -> Codes:
    return Codes(np.array(indptr, np.int64), np.array(latents, np.int32), np.array(levels, np.int32), n, columns)


@given(st.data())
def test_codes_come_back_from_their_dense_array(
    any_codes: AnyCodes, assert_same_codes: SameCodes, data: st.DataObject
) -> None:
    drawn = data.draw(any_codes())
    assert drawn.check() is drawn
    assert_same_codes(Codes.from_dense(drawn.to_dense(), drawn.columns), drawn)


@given(st.data(), st.integers(0, 20), st.integers(0, 20))
def test_slices_concatenate_to_the_whole(
    any_codes: AnyCodes, assert_same_codes: SameCodes, data: st.DataObject, a: int, b: int
) -> None:
    drawn = data.draw(any_codes())
    a, b = sorted((a, b))
    parts = [drawn[:a], drawn[a:b], drawn[b:]]
    for part in parts:
        part.check()
    assert_same_codes(Codes.concatenate(parts, drawn.n_latents), drawn)
    np.testing.assert_array_equal(drawn[a:b].to_dense(), drawn.to_dense()[a:b])


def test_nothing_concatenates_to_no_rows() -> None:
    empty = Codes.concatenate([], 7)
    assert (empty.n_rows, empty.nnz, empty.n_latents) == (0, 0, 7)
    empty.check()


def test_codes_count_their_rows_and_nonzeros() -> None:
    made = codes([0, 2, 2, 3], [1, 3, 0], [5, -1, 2])
    assert (made.n_rows, made.nnz) == (3, 3)
    assert made.rows().tolist() == [0, 0, 2]


def test_slices_in_larger_steps_are_refused() -> None:
    with pytest.raises(InputError, match="step of 2"):
        codes([0, 0, 0], [], [])[::2]


def test_a_backward_slice_is_empty() -> None:
    assert codes([0, 1, 2], [0, 1], [1, 1])[2:1].n_rows == 0


@pytest.mark.parametrize(
    "broken, rule",
    [
        (codes([], [], []), "start at 0"),
        (codes([1, 1], [0], [1]), "start at 0"),
        (codes([0, 2, 1, 2], [0, 1], [1, 1]), "never fall"),
        (codes([0, 1], [0, 1], [1, 1]), "there are 2 latents"),
        (codes([0, 2], [0, 1], [1]), "1 levels"),
        (codes([0, 1], [4], [1]), r"in \[0, 4\), found 4..4"),
        (codes([0, 1], [-1], [1]), "found -1"),
        (codes([0, 2], [1, 1], [1, 1]), "strictly ascending"),
        (codes([0, 0, 2, 2], [2, 1], [1, 1]), "strictly ascending"),
        (codes([0, 1], [1], [0]), "nonzero"),
        (codes([0, 1], [1], [MAX_LEVEL + 1]), "found 1048577"),
        (codes([0, 1], [1], [-MAX_LEVEL - 1]), "found 1048577"),
        (codes([0, 1], [1], [-(1 << 31)]), "found 2147483648"),
        (codes([0, 0], [], [], **{"": np.zeros(1, np.int64)}), "needs a name"),
        (
            codes([0, 0], [], [], seq=np.zeros(2, np.int64)),
            r"column 'seq' must be integers of shape \(1,\), got \(2,\)",
        ),
        (codes([0, 0], [], [], seq=np.zeros((1, 1), np.int64)), "column 'seq'"),
        (codes([0, 0], [], [], seq=np.zeros(1)), "column 'seq' must be integers"),
        (codes([0, 0], [], [], seq=np.array([1 << 38])), "magnitude 2\\^38"),
        (codes([0, 0], [], [], seq=np.array([-(1 << 38)])), "magnitude 2\\^38"),
        (codes([0, 0], [], [], seq=np.array([-(1 << 63)])), "magnitude 2\\^38"),
    ],
)
def test_broken_codes_are_refused_by_the_rule(broken: Codes, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        broken.check()


def test_rows_may_each_start_again_at_a_small_latent() -> None:
    codes(
        [0, 0, 2, 2, 3, 3],
        [2, 3, 0],
        [MAX_LEVEL, -MAX_LEVEL, 1],
        seq=np.array([0, 1, -1, (1 << 38) - 1, 1 - (1 << 38)]),
    ).check()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64])
def test_columns_of_any_integer_dtype_are_accepted(dtype: type) -> None:
    codes([0, 0, 0], [], [], seq=np.array([0, 200], np.uint8).astype(dtype)).check()
