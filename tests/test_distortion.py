"""Distortion equals its formulas, however the rows come in batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.distortion import Distortion


def rows(n: int, offset: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, 5)) + offset).astype(np.float32)
    return x, (x + 0.1 * rng.standard_normal((n, 5))).astype(np.float32)


def measured(x: np.ndarray, x_hat: np.ndarray, cuts: list[int]) -> Distortion:
    out = Distortion(x.shape[1])
    for a, b in zip([0, *cuts], [*cuts, len(x)], strict=True):
        out.add(x[a:b], x_hat[a:b])
    return out


@given(st.integers(2, 40), st.lists(st.integers(0, 40), max_size=4), st.sampled_from([0.0, 3.0, 1e5]))
def test_distortion_is_its_formula_in_any_batches(n: int, cuts: list[int], offset: float) -> None:
    x, x_hat = rows(n, offset)
    out = measured(x, x_hat, sorted(min(cut, n) for cut in cuts))
    a, b = x.astype(np.float64), x_hat.astype(np.float64)
    assert out.n_rows == n
    assert out.squared_error == pytest.approx(((a - b) ** 2).sum())
    assert out.variance == pytest.approx(((a - a.mean(0)) ** 2).sum(), rel=1e-9)
    assert out.nmse == pytest.approx(((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum(), rel=1e-9)
    assert out.max_error == np.abs(a - b).max()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert out.cosine == pytest.approx(cosine.mean())


def test_predicting_the_mean_has_an_nmse_of_one_and_the_rows_themselves_of_zero() -> None:
    x = np.array([[0, 0], [2, 4], [4, 8]], np.float32)
    assert measured(x, np.broadcast_to(x.mean(0), x.shape), []).nmse == pytest.approx(1)
    assert measured(x, x, [1]).nmse == 0


def test_no_rows_have_neither_nmse_nor_cosine() -> None:
    out = Distortion(3)
    out.add(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert (out.n_rows, out.nmse, out.cosine, out.variance) == (0, None, None, 0)


def test_rows_that_do_not_vary_have_no_nmse() -> None:
    x = np.full((4, 3), 7, np.float32)
    out = measured(x, x + 1, [2])
    assert out.nmse is None
    assert out.squared_error == 12


def test_the_cosine_of_two_zero_rows_is_one_and_of_one_zero_row_is_zero() -> None:
    x = np.array([[0, 0], [0, 0], [3, 4]], np.float32)
    x_hat = np.array([[0, 0], [1, 0], [0, 0]], np.float32)
    assert measured(x, x_hat, []).cosine == pytest.approx(1 / 3)


def test_huge_rows_do_not_overflow() -> None:
    x = np.array([[1e30, 0], [-1e30, 0]], np.float32)
    assert measured(x, x / 2, []).nmse == pytest.approx(0.25)
