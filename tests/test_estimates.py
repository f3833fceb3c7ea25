"""Published estimates equal their formulas."""

from __future__ import annotations

from collections.abc import Callable
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.codes import MAX_LEVEL, Codes
from saecodec.estimates import CodeStatistics

AnyCodes = Callable[..., st.SearchStrategy[Codes]]


def statistics(*chunks: Codes) -> CodeStatistics:
    out = CodeStatistics(chunks[0].n_latents)
    for codes in chunks:
        out.add(codes)
    return out


def test_a_worked_example() -> None:
    made = statistics(Codes.from_dense(np.array([[1, 0], [1, 2], [0, 0], [0, 2]])))
    assert made.l0 == 1
    assert made.l0_formula == 2  # one nonzero a row, two levels, two latents
    assert made.sum_entropy == 2  # each latent is on half the time


def test_without_rows_or_nonzeros_there_is_no_estimate() -> None:
    empty = statistics(Codes.from_dense(np.zeros((0, 3), int)))
    assert (empty.l0, empty.l0_formula, empty.sum_entropy) == (None, None, None)
    dead = statistics(Codes.from_dense(np.zeros((5, 3), int)))
    assert (dead.l0, dead.l0_formula, dead.sum_entropy) == (0, None, None)


@given(st.data(), st.integers(0, 20))
def test_estimates_are_their_formulas_in_any_chunks(any_codes: AnyCodes, data: st.DataObject, cut: int) -> None:
    codes = data.draw(any_codes(columns=False).filter(lambda drawn: drawn.nnz > 0))
    made = statistics(codes[:cut], codes[cut:])
    dense = codes.to_dense()
    n_levels = len(np.unique(dense[dense != 0]))
    assert made.n_rows == codes.n_rows
    assert made.l0 == pytest.approx((dense != 0).sum() / len(dense))
    assert made.l0_formula == pytest.approx((dense != 0).sum() / len(dense) * (log2(n_levels) + log2(dense.shape[1])))
    p = [np.unique(column, return_counts=True)[1] / len(dense) for column in dense.T]
    assert made.sum_entropy == pytest.approx(sum(-(q * np.log2(q)).sum() for q in p))


def test_the_largest_levels_of_both_signs_stay_apart() -> None:
    made = statistics(Codes.from_dense(np.array([[MAX_LEVEL, 0], [-MAX_LEVEL, 0], [0, -MAX_LEVEL], [0, MAX_LEVEL]])))
    assert made.l0_formula == 2
    assert made.sum_entropy == 3
