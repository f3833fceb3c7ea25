"""Latents that are alike share a class, and the classes do not depend on how sums are ordered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.classes import assign, choose, class_sums, code_lengths, smoothed


def two_kinds(n_each: int) -> np.ndarray:
    """Histograms of latents of two very different shapes, in turns."""
    rng = np.random.default_rng(0)
    early = rng.multinomial(500, [0.7, 0.2, 0.1, 0, 0, 0], n_each)
    late = rng.multinomial(500, [0, 0, 0, 0.1, 0.2, 0.7], n_each)
    return np.stack([early, late], 1).reshape(2 * n_each, 6).astype(float)


def test_latents_of_two_shapes_fall_into_two_classes() -> None:
    histograms = two_kinds(20)
    order = np.argsort(histograms @ np.arange(6), kind="stable")
    classes = assign(histograms, 2, order)
    assert len(set(classes[::2])) == len(set(classes[1::2])) == 1
    assert classes[0] != classes[1]


@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_classes_are_numbered_without_gaps(n_classes: int, n_latents: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    histograms = rng.poisson(rng.gamma(0.3, 5, (n_latents, 8))).astype(float)
    classes = assign(histograms, n_classes, rng.permutation(n_latents))
    assert classes.dtype == np.int64
    assert classes.shape == (n_latents,)
    assert np.unique(classes).tolist() == list(range(int(classes.max()) + 1))
    assert classes.max() < n_classes


def test_latents_that_are_never_active_get_a_class_too() -> None:
    assert assign(np.zeros((5, 8)), 4, np.arange(5)).shape == (5,)


def test_code_lengths_are_whole_multiples_of_1_1024_bit() -> None:
    lengths = code_lengths(np.random.default_rng(0).gamma(1, 1, (4, 9)))
    np.testing.assert_array_equal(lengths * 1024, np.rint(lengths * 1024))
    np.testing.assert_array_equal(code_lengths(np.array([4.0, 2.0, 1.0, 1.0])), [1, 2, 3, 3])


def test_smoothing_leaves_no_symbol_impossible_and_keeps_the_counts() -> None:
    counts = np.array([[100.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    tables = smoothed(counts, strength=2)
    assert (tables > 0).all()
    np.testing.assert_allclose((tables - counts).sum(1), 2)


def test_class_sums_add_up_the_rows_of_each_class() -> None:
    values = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(
        class_sums(values, np.array([1, 0, 1, 1]), 3), [values[1], values[[0, 2, 3]].sum(0), [0, 0, 0]]
    )


@pytest.mark.parametrize("costs, chosen", [([5, 4, 3], 2), ([5, 4, 6, 1], 1), ([5, 5], 0), ([3], 0)])
def test_the_number_of_classes_is_the_last_before_the_description_grows(costs: list[float], chosen: int) -> None:
    best = choose(list(range(len(costs))), lambda n: np.array([n]), lambda classes: costs[int(classes[0])])
    assert best.tolist() == [chosen]
