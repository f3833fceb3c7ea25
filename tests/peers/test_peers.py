"""What holds for every peer: rows come back in shape, a finer setting costs bytes and buys accuracy."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from saecodec.errors import FormatError, InputError, MissingPieceError
from saecodec.peers.peer import Peer, PeerFamily, import_package
from saecodec.peers.registry import families

Rows = NDArray[np.float32]

SMALL = {"FAISS RQ": (1, 2, 4), "FAISS PQ": (2, 4, 8)}
"""Settings of families whose own would take too long on small rows."""


@pytest.fixture(scope="module", params=families(), ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> PeerFamily:
    found: PeerFamily = request.param
    if not found.available():
        pytest.skip(found.missing())
    return found


@pytest.fixture(scope="module")
def peers(family: PeerFamily, calibration: Rows) -> list[Peer]:
    """The family's peers from coarse to fine."""
    return [family.fit(calibration, setting) for setting in SMALL.get(family.name, family.settings(32))]


def squared_error(peer: Peer, rows: Rows) -> float:
    return float(np.square(peer.decode(peer.encode(rows)).astype(np.float64) - rows).sum())


@pytest.mark.parametrize("n_rows", [1, 2, 601])
def test_rows_come_back_in_shape(peers: list[Peer], rows: Rows, n_rows: int) -> None:
    for peer in peers:
        decoded = peer.decode(peer.encode(rows[:n_rows]))
        assert decoded.shape == (n_rows, 32)
        assert decoded.dtype == np.float32
        assert decoded.flags.c_contiguous
        assert np.isfinite(decoded).all()


def test_a_finer_setting_has_less_error(peers: list[Peer], rows: Rows) -> None:
    errors = [squared_error(peer, rows) for peer in peers]
    assert all(fine < coarse for coarse, fine in pairwise(errors)), errors


def test_a_coarser_setting_has_fewer_bytes(peers: list[Peer], rows: Rows) -> None:
    sizes = [len(peer.encode(rows)) for peer in peers]
    assert all(coarse < fine for coarse, fine in pairwise(sizes)), sizes
    assert sizes[-1] < rows.nbytes


def test_the_finest_setting_explains_the_rows(peers: list[Peer], rows: Rows) -> None:
    variance = float(np.square(rows - rows.mean(0)).sum())
    assert squared_error(peers[-1], rows) < 0.3 * variance


def test_the_same_rows_make_the_same_bytes(
    family: PeerFamily, peers: list[Peer], calibration: Rows, rows: Rows
) -> None:
    data = peers[0].encode(rows)
    assert data == peers[0].encode(np.asfortranarray(rows))
    again = family.fit(calibration, SMALL.get(family.name, family.settings(32))[0])
    assert data == again.encode(rows)
    np.testing.assert_array_equal(again.decode(data), peers[0].decode(data))


def test_fitting_and_coding_leave_the_rows_alone(family: PeerFamily, calibration: Rows, rows: Rows) -> None:
    before = calibration.copy(), rows.copy()
    peer = family.fit(calibration, SMALL.get(family.name, family.settings(32))[0])
    peer.decode(peer.encode(rows))
    np.testing.assert_array_equal(calibration, before[0])
    np.testing.assert_array_equal(rows, before[1])


def test_a_peer_says_what_it_is(family: PeerFamily, peers: list[Peer]) -> None:
    assert {peer.name for peer in peers} == {family.name}
    assert len({peer.setting for peer in peers}) == len(peers)
    assert all(peer.model_bytes >= 0 for peer in peers)


def test_bytes_that_do_not_fit_are_refused(peers: list[Peer], rows: Rows) -> None:
    peer = peers[0]
    data = peer.encode(rows)
    for wrong in (*(data[:n] for n in (0, 1, 3, 4, len(data) // 2, len(data) - 1)), data + b"\0", b"\0" * 100):
        with pytest.raises(FormatError, match=re.escape(f"{peer.name} bytes: ")):
            peer.decode(wrong)


def test_another_shape_is_refused(peers: list[Peer], rows: Rows) -> None:
    peer = peers[0]
    data = peer.encode(rows[:100])
    assert data[:2] == bytes([100, 32])
    for shape in ([101, 32], [100, 33], [50, 64], [0, 32], [100, 0]):
        with pytest.raises(FormatError, match=re.escape(f"{peer.name} bytes: ")):
            peer.decode(bytes(shape) + data[2:])


def test_rows_that_are_none_are_refused(family: PeerFamily, peers: list[Peer], rows: Rows) -> None:
    nan = rows.copy()
    nan[3, 4] = np.nan
    for wrong in (rows[:0], rows[0], rows[None], rows[:, :0], nan):
        with pytest.raises(InputError, match=re.escape(family.name)):
            peers[0].encode(wrong)
        with pytest.raises(InputError, match=re.escape(family.name)):
            family.fit(wrong, 1)


@pytest.mark.parametrize("width", [1, 384, 1000])
def test_settings_go_from_coarse_to_fine(width: int) -> None:
    for family in families():
        settings = family.settings(width)
        falls = family.name in ("PCA + range coder", "SZ3", "zfp")  # steps and tolerances
        assert list(settings) == sorted(set(settings), reverse=falls), family.name


def test_names_differ() -> None:
    names = [family.name for family in families()]
    assert len(set(names)) == len(names)


def test_a_missing_package_is_named_with_its_remedy(calibration: Rows) -> None:
    def fit(rows: Rows, setting: float) -> Peer:
        raise AssertionError("fitted without its package")

    family = PeerFamily("a peer", lambda width: (1.0,), fit, "no_such_package", "no-such-package")
    assert not family.available()
    with pytest.raises(MissingPieceError, match=r"a peer .*no-such-package.* pip install 'saecodec\[bench\]'"):
        family.fit(calibration, 1)
    with pytest.raises(MissingPieceError, match=r"no_such_package .* pip install 'saecodec\[bench\]'"):
        import_package("no_such_package")


def test_listing_the_families_imports_nothing_heavy() -> None:
    heavy = ("torch", "faiss", "pysz", "zfpy")
    code = "import sys; from saecodec.peers.registry import families\nfor family in families(): family.available()\n"
    code += f"print([m for m in {heavy!r} if m in sys.modules])"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


def test_only_a_peer_without_a_model_takes_another_width(
    peers: list[Peer], correlated_rows: Callable[..., Rows]
) -> None:
    narrow = correlated_rows(5, 16)
    if peers[0].model_bytes:
        with pytest.raises(InputError, match=r"\(T, 32\)"):
            peers[0].encode(narrow)
    else:
        assert peers[0].decode(peers[0].encode(narrow)).shape == (5, 16)
