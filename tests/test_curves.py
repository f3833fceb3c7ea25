"""Curves: lines in logarithms, crossings, fronts, and the BD-rate against scipy's interpolant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from saecodec.curves import (
    RatePoint,
    _hermite,
    bd_rate,
    bits_at,
    bits_in_draws,
    crossings,
    enclosing,
    front,
)

NMSES = (0.05, 0.1, 0.2, 0.4)


def curve(scale: float, power: float = -1.0) -> list[RatePoint]:
    return [RatePoint(scale * nmse**power, nmse) for nmse in NMSES]


def test_between_points_bits_are_a_line_in_logarithms() -> None:
    assert bits_at(curve(10), 0.15) == pytest.approx(10 / 0.15)
    assert bits_at(curve(10)[::-1], 0.2) == pytest.approx(50)
    assert bits_at(curve(10), 0.04) is None
    assert bits_at([], 0.1) is None
    assert bits_at([RatePoint(5, 0.1)], 0.1) is None


def test_points_that_enclose_a_target_are_named() -> None:
    assert enclosing([0.4, 0.1, 0.2], 0.15) == (1, 2)
    assert enclosing([0.4, 0.1, 0.2], 0.1) == (1, 2)
    assert enclosing([0.4, 0.1], 0.5) is None


@given(st.floats(0.5, 2), st.floats(1, 100))
def test_the_bd_rate_of_a_scaled_curve_is_the_scale(factor: float, scale: float) -> None:
    assert bd_rate(curve(scale), curve(factor * scale)) == pytest.approx(100 * (factor - 1), abs=1e-6)


def test_the_bd_rate_is_over_the_common_range_alone() -> None:
    assert bd_rate(curve(10)[:2], curve(20)[1:]) is None
    assert bd_rate(curve(10)[:3], curve(20)[1:]) == pytest.approx(100)
    assert bd_rate(curve(10), curve(10)[:1]) is None
    assert bd_rate(curve(10), []) is None


def test_the_bd_rate_of_curves_that_are_no_functions_goes_by_their_fronts() -> None:
    worse = [*curve(10), RatePoint(1000, 0.2)]
    assert bd_rate(worse, curve(10)) == pytest.approx(0)


@given(st.lists(st.tuples(st.floats(0.1, 3), st.floats(-5, 5)), min_size=2, max_size=8))
def test_the_interpolant_is_that_of_fritsch_and_carlson(steps: list[tuple[float, float]]) -> None:
    x, y = np.cumsum(np.array(steps), axis=0).T
    at = np.linspace(x[0], x[-1], 50)
    np.testing.assert_allclose(_hermite(x, y, at), PchipInterpolator(x, y)(at), rtol=1e-9, atol=1e-9)


def test_crossings_are_where_curves_change_places() -> None:
    (point,) = crossings(curve(10), curve(1.5, -2.0))
    assert point.nmse == pytest.approx(0.15)
    assert point.bits == pytest.approx(10 / 0.15)
    assert crossings(curve(10), curve(11)) == []
    assert crossings(curve(10), []) == []


def test_the_front_has_no_point_that_another_undercuts() -> None:
    points = [RatePoint(100, 0.1), RatePoint(90, 0.2), RatePoint(95, 0.3), RatePoint(100, 0.05), RatePoint(10, 0.9)]
    assert front(points) == [3, 1, 4]


@given(st.lists(st.tuples(st.floats(1, 1000), st.floats(0.01, 0.9)), min_size=1, max_size=6), st.floats(0.02, 0.8))
def test_each_draw_has_a_curve_of_its_own(points: list[tuple[float, float]], target: float) -> None:
    bits, nmses = np.array(points).T
    shifts = np.array([0.5, 1.0, 1.7])
    found = bits_in_draws(bits[:, None] * np.ones(3), nmses[:, None] * shifts, target)
    for shift, value in zip(shifts, found, strict=True):
        each = [RatePoint(b, n * shift) for b, n in points]
        best = [each[i] for i in front(each)]
        expected = bits_at(best, target)
        if expected is None:
            expected = np.inf if target < best[0].nmse else best[-1].bits
        assert value == pytest.approx(expected, rel=1e-9)


def test_a_draw_without_an_nmse_has_no_bits() -> None:
    assert np.isnan(bits_in_draws(np.ones((2, 1)), np.array([[0.1], [np.nan]]), 0.2)).all()


def test_nothing_is_said_across_a_gap() -> None:
    apart = [RatePoint(400, 0.02), RatePoint(50, 0.2), RatePoint(45, 0.22)]
    other = [RatePoint(500, 0.02), RatePoint(300, 0.035), RatePoint(150, 0.06), RatePoint(80, 0.1), RatePoint(30, 0.19)]
    assert bd_rate(apart, other) is None
    assert crossings(apart, other) == []
    assert bd_rate(apart[1:], [RatePoint(60, 0.19), RatePoint(40, 0.23)]) is not None


@pytest.mark.parametrize("last", [50, 99])
def test_a_crossing_may_be_at_a_shared_point(last: float) -> None:
    a, b = (
        [RatePoint(x, n) for x, n in zip(bits, (0.1, 0.15, 0.2), strict=True)]
        for bits in ((400, 200, 100), (800, 200, last))
    )
    assert crossings(a, b) == crossings(b, a) == [(pytest.approx(200), 0.15)]
    touching = [*b[:2], RatePoint(110, 0.2)]
    assert crossings(a, touching) == []


def test_curves_that_run_together_cross_where_they_meet() -> None:
    a, b = (
        [RatePoint(x, n) for x, n in zip(bits, (0.1, 0.15, 0.2, 0.3), strict=True)]
        for bits in ((400, 200, 100, 60), (800, 200, 100, 50))
    )
    assert crossings(a, b) == [(pytest.approx(200), 0.15)]
