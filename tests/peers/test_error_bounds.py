"""SZ3 and zfp: no value is further off than the tolerance, and nothing but the bytes is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from saecodec.errors import InputError
from saecodec.peers.peer import PeerFamily
from saecodec.peers.sz3 import SZ3, SZ3Peer
from saecodec.peers.tolerance import absolute_tolerance
from saecodec.peers.zfp import ZFP, ZfpPeer

Rows = NDArray[np.float32]


@pytest.fixture(params=[SZ3, ZFP], ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> PeerFamily:
    found: PeerFamily = request.param
    if not found.available():
        pytest.skip(found.missing())
    return found


@pytest.mark.parametrize("relative", [4.0, 1.0, 0.25, 0.01])
def test_no_value_is_further_off_than_the_tolerance(
    family: PeerFamily, calibration: Rows, rows: Rows, relative: float
) -> None:
    peer = family.fit(calibration, relative)
    assert isinstance(peer, (SZ3Peer, ZfpPeer))
    assert peer.tolerance == pytest.approx(relative * np.sqrt(calibration.var(0).mean()))
    error = np.abs(peer.decode(peer.encode(rows)) - rows).max()
    assert 0 < error <= peer.tolerance * (1 + 1e-6)


def test_any_peer_of_the_family_reads_the_bytes(
    family: PeerFamily, calibration: Rows, correlated_rows: Callable[..., Rows]
) -> None:
    writer, reader = family.fit(calibration, 0.5), family.fit(10 * correlated_rows(50, 8), 2)
    assert writer.model_bytes == 0
    assert writer.setting == "tolerance 0.5"
    data = writer.encode(calibration)
    np.testing.assert_array_equal(reader.decode(data), writer.decode(data))


def test_rows_that_do_not_vary_give_no_tolerance(family: PeerFamily) -> None:
    with pytest.raises(InputError, match=f"{family.name}: the calibration rows do not vary"):
        family.fit(np.ones((10, 4), np.float32), 1)


def test_the_tolerance_is_relative_to_the_deviation_of_channels() -> None:
    rows = np.array([[1, 10], [-1, 24]], np.float32)  # deviations 1 and 7
    assert absolute_tolerance(rows, 0.5, "a peer") == pytest.approx(0.5 * 5)


@pytest.mark.skipif(not SZ3.available(), reason=SZ3.missing())
def test_sz3_takes_the_predictor_that_makes_the_least_of_the_rows(correlated_rows: Callable[..., Rows]) -> None:
    smooth = np.sin(np.linspace(0, 8, 600)[:, None] + np.linspace(0, 1, 32)).astype(np.float32)
    chosen = set()
    for rows, relative in ((correlated_rows(600), 2.0), (smooth, 0.1), (smooth, 0.01)):
        peer = SZ3Peer.fit(rows, relative)
        others = [SZ3Peer(relative, peer.tolerance, name) for name in ("NOPRED", "LORENZO_REG", "INTERP_LORENZO")]
        assert len(peer.encode(rows)) == min(len(other.encode(rows)) for other in others)
        chosen.add(peer.algorithm)
    assert chosen == {"NOPRED", "LORENZO_REG", "INTERP_LORENZO"}
