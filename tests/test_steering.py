"""Steering: the sample that a point is found on, and coding of all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.errors import InputError, TargetError
from saecodec.goal import Goal
from saecodec.sae import SAE
from saecodec.sequences import Chunking
from saecodec.steering import Coded, Steering, draw_sample
from saecodec.store import MemoryStores

Rows = NDArray[np.float32]
RealData = tuple[SAE, NDArray[np.float16]]


def chunks_of(x: Rows, chunk_rows: int) -> Callable[[], Iterator[Rows]]:
    return lambda: (x[i : i + chunk_rows] for i in range(0, len(x), chunk_rows))


def steering(sae: SAE, x: Any, chunk_rows: int = 500, **goal: Any) -> Steering:
    rows = np.asarray(x, np.float32)
    wanted = Goal.of(**goal)
    chunking = Chunking.of(len(rows), chunk_rows)
    return Steering(sae, chunks_of(rows, chunk_rows), wanted, chunking=chunking, stores=MemoryStores())


# -- the sample --------------------------------------------------------------------------------------------------------


def numbered(n_rows: int) -> Rows:
    """Rows that say which they are."""
    return np.stack([np.arange(n_rows), np.random.default_rng(0).normal(5, 2, n_rows)], 1).astype(np.float32)


@pytest.mark.parametrize("n_rows", [1, 100, 4096])
@pytest.mark.parametrize("chunk_rows", [7, 4096])
def test_few_rows_are_their_own_sample(n_rows: int, chunk_rows: int) -> None:
    x = numbered(n_rows)
    np.testing.assert_array_equal(draw_sample(chunks_of(x, chunk_rows), n_rows).x, x)


@pytest.mark.parametrize("n_rows", [5000, 40_000, 200_003])
@pytest.mark.parametrize("chunk_rows", [1000, 4096, 1 << 16])
def test_a_sample_comes_from_all_over_the_array_in_blocks(n_rows: int, chunk_rows: int) -> None:
    x = numbered(n_rows)
    places = draw_sample(chunks_of(x, chunk_rows), n_rows).x[:, 0].astype(np.int64)
    assert len(places) >= 0.8 * wanted_rows(n_rows)
    assert (np.diff(places) > 0).all(), "rows keep their order, and none is drawn twice"
    tenths = np.bincount(places * 10 // n_rows, minlength=10)
    assert tenths.min() > 0.4 * len(places) / 10
    assert (np.diff(places) == 1).mean() > 0.9, "neighbours are drawn together"


def wanted_rows(n_rows: int) -> int:
    return min(n_rows, max(4096, min(16384, n_rows // 8)))


@pytest.mark.parametrize(
    "n_rows, chunk_rows",
    [(60_000, 4096), (200_003, 1 << 16), (60_000, 16), (60_000, 100), (60_000, 300), (200_003, 1000)],
)
def test_a_sample_stays_small_whatever_the_size_of_the_chunks(n_rows: int, chunk_rows: int) -> None:
    assert len(draw_sample(chunks_of(numbered(n_rows), chunk_rows), n_rows).x) <= 1.3 * wanted_rows(n_rows)


@pytest.mark.parametrize("chunk_rows", [100, 4096])
def test_the_variance_of_a_sample_is_that_of_all_rows(chunk_rows: int) -> None:
    x = 100 + numbered(20_000)[:, ::-1] * [1, 1e-4]
    drawn = draw_sample(chunks_of(x.astype(np.float32), chunk_rows), 20_000)
    assert drawn.variance == pytest.approx(x.astype(np.float32).astype(np.float64).var(0).sum(), rel=1e-9)


def test_rows_that_do_not_vary_have_their_energy_instead() -> None:
    x = np.full((50, 3), 2.0, np.float32)
    assert draw_sample(chunks_of(x, 20), 50).variance == pytest.approx(12)
    assert draw_sample(chunks_of(0 * x, 20), 50).variance == 0


def test_without_rows_there_is_no_target() -> None:
    with pytest.raises(TargetError, match="there are no rows, so no target can be met: give a step"):
        draw_sample(chunks_of(numbered(0), 5), 0)


# -- coding all rows ---------------------------------------------------------------------------------------------------


def decoded(coded: Coded) -> Rows:
    return np.concatenate([coded.codec.reconstruct(part.codes, part.residual) for part in coded.layers()])


@pytest.mark.parametrize("goal", [{}, {"search": "refit"}, {"search": "pursuit"}, {"residual": True}])
def test_a_step_codes_all_rows(mnist: RealData, goal: dict[str, Any]) -> None:
    sae, x = mnist
    coded = steering(sae, x, step="1rms", **goal).fit()
    assert coded.reached is None
    assert [part.n_rows for part in coded.layers()] == [500, 500, 24]
    for part in coded.layers():
        part.codes.check()
        assert (part.residual is not None) == bool(goal.get("residual"))
    assert coded.codec.quantizer.step == pytest.approx(Codec.fit(sae, x, "1rms").quantizer.step)
    error = np.square(x - decoded(coded)).sum() / np.square(x - x.mean(0, dtype=np.float32)).sum()
    assert error < 0.4


def test_a_sample_stands_for_many_rows(mnist: RealData, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = mnist
    monkeypatch.setattr("saecodec.steering._SAMPLE", (300, 300, 8))
    monkeypatch.setattr("saecodec.steering._BLOCK", 20)
    for goal in ({"nmse": 0.35, "search": "refit"}, {"bits": 30.0, "search": "none"}):
        coded = steering(sae, x, **goal).fit()
        (kind,) = {"nmse", "bits"} & goal.keys()
        assert coded.reached == pytest.approx(goal[kind], rel=0.01)


def test_a_codec_that_is_there_already_is_steered_by_the_slope_alone(mnist: RealData) -> None:
    sae, x = mnist
    codec = Codec.fit(sae, x[:500], "0.8rms", search="refit")
    slopes = []
    for nmse in (0.34, 0.37, 0.4):
        coded = steering(sae, x[:500], nmse=nmse, search="refit").code(codec)
        assert coded.codec is codec
        assert coded.reached == pytest.approx(nmse, rel=0.01)
        slopes.append(coded.slope)
    assert slopes == sorted(slopes)


def test_what_no_slope_reaches_says_what_is_near(mnist: RealData) -> None:
    sae, x = mnist
    codec = Codec.fit(sae, x[:500], "1.5rms")
    for goal in ({"nmse": 0.05}, {"bits": 5000}):
        with pytest.raises(
            TargetError, match=r"(out of reach|not met on these rows): .* NMSE [\d.]+ at [\d.]+ bits per row"
        ):
            steering(sae, x, **goal).code(codec)


@pytest.mark.parametrize(
    "goal", [{"nmse": 0.4}, {"bits": 40.0}, {"step": "1rms", "search": "refit"}, {"residual": True}]
)
def test_a_row_that_is_not_finite_is_named_by_its_place_in_the_array(mnist: RealData, goal: dict[str, Any]) -> None:
    sae, x = mnist
    bad = x.copy()
    bad[717, 3] = np.nan
    with pytest.raises(InputError, match="row 717 holds NaN"):
        steering(sae, bad, **goal).fit()


@pytest.mark.parametrize("goal", [{"search": "refit"}, {"search": "pursuit"}, {"residual": True}])
def test_no_rows_are_coded_at_a_step(mnist: RealData, goal: dict[str, Any]) -> None:
    sae, x = mnist
    coded = steering(sae, x[:0], step="1rms", **goal).fit()
    assert sum(part.n_rows for part in coded.layers()) == 0
