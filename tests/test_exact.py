"""Exact sums: one result whatever the order, and a library that errs in its last bits changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saecodec import exact

Array = npt.NDArray[Any]

LONG = Context(prec=400)
float32 = st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=True)


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """Rows (T, d), a matrix (d, F), and an order of the d."""
    n_rows, width, n_columns = draw(st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 4)))
    x = draw(hnp.arrays(np.float32, (n_rows, width), elements=float32))
    w = draw(hnp.arrays(np.float32, (width, n_columns), elements=float32))
    return x, w, np.array(draw(st.permutations(range(width))))


@given(matrices())
def test_a_product_does_not_depend_on_the_order_of_its_sums_nor_on_other_rows(
    given_: tuple[Array, Array, Array],
) -> None:
    x, w, order = given_
    rows, factor = x.astype(np.float64), exact.factor(w)
    found = exact.product(rows, factor)
    np.testing.assert_array_equal(exact.product(rows[:, order], factor[order]), found)
    np.testing.assert_array_equal(exact.product(rows[::-1].copy(), factor), found[::-1])
    for i in range(len(x)):
        np.testing.assert_array_equal(exact.product(rows[i : i + 1], factor), found[i : i + 1])


@given(matrices())
def test_a_product_is_what_float32_would_be_with_exact_sums(given_: tuple[Array, Array, Array]) -> None:
    x, w, _ = given_
    found = exact.product(x.astype(np.float64), exact.factor(w))
    for row, values in zip(found, x.astype(np.float64), strict=True):
        for value, column in zip(row, w.T.astype(np.float64), strict=True):
            bound = 2.0**-23 * float(np.abs(column).max()) * math.fsum(np.abs(values))
            assert abs(value - math.fsum(values * column)) <= bound


def test_products_of_wide_rows_are_exact_where_a_float64_product_is_not() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_cauchy((20, 5000)), rng.random((5000, 8)).astype(np.float32)
    factor, order = exact.factor(w), rng.permutation(5000)
    np.testing.assert_array_equal(exact.product(x[:, order], factor[order]), exact.product(x, factor))
    assert not np.array_equal(x[:, order] @ w[order], x @ w)


def test_sums_of_squares_and_means_have_no_order_where_other_sums_have_one() -> None:
    x = (np.random.default_rng(0).standard_cauchy((20, 5000)) ** 3).astype(np.float32)
    orders = [np.random.default_rng(i).permutation(5000) for i in range(4)]
    for exactly, otherwise in (
        (exact.squares, lambda x: np.square(x, dtype=np.float64).sum(1)),
        (exact.means, lambda x: x.mean(1, dtype=np.float64)),
    ):
        found, other = ([of(np.ascontiguousarray(x[:, order])) for order in orders] for of in (exactly, otherwise))
        assert all(np.array_equal(one, found[0]) for one in found)
        assert not all(np.array_equal(one, other[0]) for one in other)


@given(matrices())
def test_sums_of_squares_and_means_are_the_same_in_any_order(given_: tuple[Array, Array, Array]) -> None:
    x, _, order = given_
    for found, again, right in (
        (exact.squares(x), exact.squares(x[:, order]), [math.fsum(row.astype(np.float64) ** 2) for row in x]),
        (exact.means(x), exact.means(x[:, order]), [math.fsum(row) / len(row) for row in x]),
    ):
        np.testing.assert_array_equal(found, again)
        largest = np.abs(x).max(1).astype(np.float64)
        np.testing.assert_allclose(found / np.maximum(largest, 1e-300), right / np.maximum(largest, 1e-300), 1e-9, 1e-9)


def test_a_weighted_sum_of_a_row_does_not_depend_on_other_rows() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([3, 0, 7, 1, 7])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    columns, values = rng.integers(0, 30, 18).astype(np.int32), rng.random(18).astype(np.float32)
    w = rng.random((30, 4)).astype(np.float32)
    found = exact.weighted_sums(indptr, columns, values, w)
    for i, (start, stop) in enumerate(pairwise(indptr)):
        alone = exact.weighted_sums(np.array([0, stop - start]), columns[start:stop], values[start:stop], w)
        np.testing.assert_array_equal(alone[0], found[i])
        np.testing.assert_allclose(found[i], values[start:stop] @ w[columns[start:stop]], 1e-6)


NEAR_TIES = {
    "exp": [0.24169892072677612, 0.8584334850311279, 1.2643588781356812, 1.8003417253494263, 2.8252055644989014],
    "tanh": [0.4648849368095398, 0.481810986995697, 0.6277846693992615, 1.1873711347579956, 3.31144118309021],
}
"""Whose float64 is within 2^-47 of a tie of two float32s."""


@pytest.mark.parametrize("name", ["exp", "tanh"])
def test_another_librarys_function_gives_the_same_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, right = np.random.default_rng(0), getattr(np, name)
    x = np.concatenate([rng.normal(0, 5, 1 << 19), [0, 1e-30, 1e-45, 88.8, 1e30, -1e30, -104], NEAR_TIES[name]])
    x = x.astype(np.float32)
    found = getattr(exact, name)(x)
    with np.errstate(over="ignore"):
        assert np.mean(found != right(x.astype(np.float64)).astype(np.float32)) < 1e-5
    for sign in (-1, 1):
        monkeypatch.setattr(np, name, lambda y, sign=sign: right(y) * (1 + sign * 2.0**-46))
        np.testing.assert_array_equal(getattr(exact, name)(x), found)
    near = np.array(NEAR_TIES[name])
    low, high = ((right(near) * (1 + sign * 2.0**-46)).astype(np.float32) for sign in (-1, 1))
    assert (low != high).all()


@given(st.floats(0, 1.5 * 2.0**127, width=32), st.integers(2, 40), st.sampled_from([-1, 0, 1]))
def test_a_decimal_is_rounded_once(x: float, place: int, side: int) -> None:
    """A tie of two float32s, and what is nearer to it than any other float64 is."""
    low = np.float32(x)
    high = np.nextafter(low, np.float32(np.inf))
    tie = (float(low) + float(high)) / 2
    wanted = {-1: low, 1: high, 0: high if high.view(np.int32) % 2 == 0 else low}[side]
    decimal = LONG.add(Decimal(tie), LONG.multiply(Decimal(tie), Decimal(side).scaleb(-16 - place)))
    np.testing.assert_array_equal(exact.nearest(np.array([tie]), lambda i: decimal), wanted)


def test_what_is_beyond_float32_is_infinite_without_a_warning() -> None:
    tie, largest = 2.0**128 - 2.0**103, np.finfo(np.float32).max
    for decimal, wanted in ((Decimal(tie), np.inf), (LONG.subtract(Decimal(tie), Decimal(1)), largest)):
        assert exact.nearest(np.array([tie]), lambda i, of=decimal: of)[0] == wanted


@pytest.mark.parametrize("error", [-(2.0**-24), 2.0**-24])
def test_a_logarithm_that_errs_is_rounded_to_the_same_integer(error: float) -> None:
    resolution, centre = 97, 0.7
    halves = centre * 2.0 ** ((np.arange(-150, 150) + 0.5) / resolution)  # as near to a tie as floats come
    levels = np.log2(halves / centre) * resolution
    found = exact.nearest_integer(levels, lambda i: exact.log2(float(halves[i]), centre, resolution))
    again = exact.nearest_integer(levels + error, lambda i: exact.log2(float(halves[i]), centre, resolution))
    np.testing.assert_array_equal(again, found)
    assert not np.array_equal(np.rint(levels + error), np.rint(levels - error))


def test_the_pseudo_inverse_of_nearly_orthonormal_rows() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((60, 60)))[0][:40] + rng.normal(0, 0.002, (40, 60))
    basis[7] = 0
    found = exact.pseudo_inverse(basis)
    assert found is not None
    np.testing.assert_allclose(found, np.linalg.pinv(basis), atol=1e-6)


@pytest.mark.parametrize("spoil", [lambda basis: 3 * basis, lambda basis: basis[[0, 0, 1]], lambda basis: basis + 1])
def test_rows_that_are_far_from_orthonormal_have_none(spoil: Callable[[Array], Array]) -> None:
    assert exact.pseudo_inverse(spoil(np.eye(10))) is None
