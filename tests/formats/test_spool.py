"""The spool gives back what was appended, as often as it is asked, and leaves no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saecodec.features import Features
from saecodec.formats.spool import feature_spool


def features(n_rows: int, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, n_rows)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    latents = np.concatenate([np.zeros(0), *(np.sort(rng.choice(50, n, replace=False)) for n in counts)])
    return Features(indptr, latents.astype(np.int32), rng.normal(size=len(latents)).astype(np.float32))


def assert_same(found: Features, expected: Features) -> None:
    for name in ("indptr", "latents", "values"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


EMPTY = Features(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
SILENT = Features(np.zeros(6, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([], id="nothing"),
        pytest.param([EMPTY], id="no rows"),
        pytest.param([SILENT], id="no nonzeros"),
        pytest.param([features(1)], id="one row"),
        pytest.param([features(7, 1), EMPTY, features(30, 2), SILENT, features(1, 3)], id="many"),
    ],
)
def test_chunks_come_back_in_order_as_often_as_asked(chunks: list[Features]) -> None:
    with feature_spool() as spool:
        for chunk in chunks:
            spool.append(chunk)
        for _ in range(3):
            for found, expected in zip(spool, chunks, strict=True):
                assert_same(found, expected)


def test_an_iteration_that_was_left_early_does_not_disturb_the_next() -> None:
    chunks = [features(5, seed) for seed in range(4)]
    with feature_spool() as spool:
        for chunk in chunks:
            spool.append(chunk)
        next(iter(spool))
        for found, expected in zip(spool, chunks, strict=True):
            assert_same(found, expected)


def test_chunks_of_views_are_written_in_full() -> None:
    chunk = features(9)
    strided = Features(chunk.indptr, np.repeat(chunk.latents, 2)[::2], np.repeat(chunk.values, 2)[::2])
    with feature_spool() as spool:
        spool.append(strided)
        assert_same(next(iter(spool)), chunk)


def test_nothing_is_left_in_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with feature_spool() as spool:
        spool.append(features(100))
        list(spool)
    assert list(tmp_path.iterdir()) == []
