"""Integers per channel: the error is at most half a step, and what does not vary is exact."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from saecodec.peers.uniform import UniformPeer

Rows = NDArray[np.float32]


@pytest.mark.parametrize("bits", range(1, 9))
def test_no_value_is_further_off_than_half_a_step(rows: Rows, bits: int) -> None:
    peer = UniformPeer(bits)
    step = (rows.max(0) - rows.min(0)) / (2**bits - 1)
    error = np.abs(peer.decode(peer.encode(rows)) - rows)
    assert (error <= 0.5001 * step).all()
    assert error.max() > 0.4 * step.max()


def test_constant_channels_and_ends_of_ranges_are_exact(rows: Rows) -> None:
    x = rows.copy()
    x[:, 3], x[:, 5] = 1.7, 0
    decoded = UniformPeer(2).decode(UniformPeer(2).encode(x))
    np.testing.assert_array_equal(decoded[:, [3, 5]], x[:, [3, 5]])
    np.testing.assert_array_equal(decoded.min(0), x.min(0))
    np.testing.assert_allclose(decoded.max(0), x.max(0), rtol=1e-6)


def test_ranges_may_be_as_wide_as_float32() -> None:
    x = np.array([[-3e38, 1e-38], [3e38, -1e-38]], np.float32)
    np.testing.assert_allclose(UniformPeer(8).decode(UniformPeer(8).encode(x)), x, rtol=1e-6)


def test_there_is_no_model() -> None:
    assert UniformPeer(4).model_bytes == 0
    assert UniformPeer(4).setting == "4 bits"
