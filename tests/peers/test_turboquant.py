"""TurboQuant-style: the levels are the published ones, and the distortion is what they promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from saecodec.peers.turboquant import TurboQuantPeer, lloyd_max, random_rotation

Rows = NDArray[np.float32]

# Max (1960), table I: positive levels and mean squared error.
PUBLISHED = {
    1: ([0.7980], 0.3634),
    2: ([0.4528, 1.510], 0.1175),
    3: ([0.2451, 0.7560, 1.344, 2.152], 0.03454),
    4: ([0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733], 0.009497),
}


@pytest.mark.parametrize("bits", PUBLISHED)
def test_levels_are_the_published_ones(bits: int) -> None:
    levels = lloyd_max(bits)
    np.testing.assert_allclose(levels[2 ** (bits - 1) :], PUBLISHED[bits][0], rtol=1e-3)
    np.testing.assert_allclose(levels, -levels[::-1], atol=1e-5)


@pytest.mark.parametrize("bits", PUBLISHED)
def test_distortion_is_that_of_the_levels(correlated_rows: Callable[..., Rows], bits: int) -> None:
    calibration, rows = correlated_rows(400, 256), correlated_rows(400, 256, seed=1)
    peer = TurboQuantPeer.fit(calibration, bits)
    error = np.square(peer.decode(peer.encode(rows)) - rows).sum()
    expected = PUBLISHED[bits][1] * np.square(rows - calibration.mean(0)).sum()
    assert error == pytest.approx(expected, rel=0.03)


def test_the_rotation_is_orthogonal_and_always_the_same() -> None:
    rotation = random_rotation(48)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(48), atol=1e-5)
    np.testing.assert_array_equal(rotation, random_rotation(48))
    assert np.trace(rotation) < 10  # nothing like the identity


def test_a_row_costs_its_bits_and_its_norm(calibration: Rows, rows: Rows) -> None:
    data = TurboQuantPeer.fit(calibration, 3).encode(rows[:600])
    assert len(data) == 3 + 600 * (2 + 3 * 32 // 8)  # T is two bytes, d one


def test_the_model_is_the_mean_and_a_scale(calibration: Rows) -> None:
    assert TurboQuantPeer.fit(calibration, 3).model_bytes == 4 * 32 + 4
    assert TurboQuantPeer.fit(calibration, 3).setting == "3 bits"


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_the_unit_of_the_activations_does_not_matter(calibration: Rows, rows: Rows, unit: float) -> None:
    peer = TurboQuantPeer.fit(calibration * np.float32(unit), 4)
    x = rows * np.float32(unit)
    error = np.square((peer.decode(peer.encode(x)) - x) / unit).sum()
    assert error < 0.02 * np.square(rows - rows.mean(0)).sum()


def test_a_row_at_the_mean_is_exact(calibration: Rows) -> None:
    peer = TurboQuantPeer.fit(calibration, 2)
    np.testing.assert_array_equal(peer.decode(peer.encode(peer.mean[None])), peer.mean[None])


def test_rows_that_do_not_vary_can_be_fitted() -> None:
    x = np.ones((5, 8), np.float32)
    peer = TurboQuantPeer.fit(x, 1)
    np.testing.assert_array_equal(peer.decode(peer.encode(x)), x)
