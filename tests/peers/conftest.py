"""Correlated rows, as activations are, small enough for every peer to be fitted in a moment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

Rows = NDArray[np.float32]


def _correlated_rows(n_rows: int, width: int = 32, *, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) * np.geomspace(2, 0.1, width)[:, None]
    return (rng.normal(size=(n_rows, width)) @ mixing + np.linspace(-3, 3, width)).astype(np.float32)


@pytest.fixture(scope="session")
def correlated_rows() -> Callable[..., Rows]:
    """(n_rows, width=32, *, seed) -> rows of one distribution per width."""
    return _correlated_rows


@pytest.fixture(scope="session")
def calibration() -> Rows:
    """Rows (600, 32) to fit peers on."""
    return _correlated_rows(600)


@pytest.fixture(scope="session")
def rows() -> Rows:
    """Other rows (601, 32) to code: an odd number, so that packed codes do not fill their last byte."""
    return _correlated_rows(601, seed=1)
