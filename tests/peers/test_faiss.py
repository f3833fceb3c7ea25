"""FAISS peers: a row costs its bytes, the model is the codebooks, and impossible settings say why."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from saecodec.errors import InputError
from saecodec.peers.faiss import PQ, RQ
from saecodec.peers.peer import PeerFamily

Rows = NDArray[np.float32]

pytestmark = pytest.mark.skipif(not RQ.available(), reason=RQ.missing())


@pytest.mark.parametrize("family", [RQ, PQ], ids=lambda family: family.name)
def test_a_row_costs_its_bytes(family: PeerFamily, calibration: Rows, rows: Rows) -> None:
    peer = family.fit(calibration, 2)
    assert peer.setting == "2 bytes"
    assert len(peer.encode(rows[:600])) == 3 + 600 * 2  # T is two bytes, d one


@pytest.mark.parametrize("row_bytes", [1, 2, 4])
def test_the_model_is_the_codebooks_and_the_mean(calibration: Rows, row_bytes: int) -> None:
    entry = 4 * 32
    assert RQ.fit(calibration, row_bytes).model_bytes == row_bytes * 256 * entry + entry
    assert PQ.fit(calibration, row_bytes).model_bytes == 256 * entry + entry


@pytest.mark.parametrize("family", [RQ, PQ], ids=lambda family: family.name)
def test_as_many_rows_as_entries_are_exact(family: PeerFamily, calibration: Rows) -> None:
    peer = family.fit(calibration[:256], 1)
    np.testing.assert_allclose(peer.decode(peer.encode(calibration[:256])), calibration[:256], atol=1e-4)


@pytest.mark.parametrize("family", [RQ, PQ], ids=lambda family: family.name)
def test_too_few_rows_are_refused(family: PeerFamily, calibration: Rows) -> None:
    with pytest.raises(InputError, match="255 calibration rows, at least 256"):
        family.fit(calibration[:255], 2)


def test_few_rows_are_fitted_in_silence(calibration: Rows, capfd: pytest.CaptureFixture[str]) -> None:
    RQ.fit(calibration[:256], 2)
    PQ.fit(calibration[:256], 2)
    assert capfd.readouterr() == ("", "")


def test_product_codes_divide_the_width(calibration: Rows) -> None:
    assert PQ.settings(384) == (8, 16, 32, 64, 128)
    assert PQ.settings(40) == (8,)
    with pytest.raises(InputError, match="5 bytes do not divide the width 32"):
        PQ.fit(calibration, 5)
