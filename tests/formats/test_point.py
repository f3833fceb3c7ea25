"""A point is a file that decodes: its figures are those of the rows, of each draw, and of the bytes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from coded_rows import coded
from hypothesis import given
from hypothesis import strategies as st

from saecodec.bootstrap import interval
from saecodec.distortion import Distortion
from saecodec.errors import InputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.measuring import measure_array
from saecodec.formats.point import Ground, Point, read_point
from saecodec.formats.read_back import Decoded, spread_of
from saecodec.goal import Goal
from saecodec.sae import SAE

Rows = npt.NDArray[Any]


def spread(x: Rows) -> npt.NDArray[np.float64]:
    return np.square(x - x.mean(0, dtype=np.float64)).sum(1)


def point_of(
    x: Rows, sae: SAE, ids: npt.NDArray[np.int64] | None = None, **options: Any
) -> tuple[Point, list[Decoded]]:
    seen: list[Decoded] = []
    with coded(x, sae, **options) as file:
        return read_point(file, Ground(MemoryArray(x), ids), [seen.append]), seen


# -- the ground --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows, batch", [(0, 5), (1, 5), (40, 7), (40, 100)])
def test_the_spread_is_about_the_mean_of_all_rows(n_rows: int, batch: int) -> None:
    x = (100 + np.random.default_rng(0).normal(size=(n_rows, 5))).astype(np.float16)
    found = spread_of(MemoryArray(x), batch)
    assert found.shape == (n_rows,)
    np.testing.assert_allclose(found, spread(x.astype(np.float64)) if n_rows else np.zeros(0), rtol=1e-9)


def test_rows_that_vary_by_rounding_do_not_vary_as_the_distortion_has_it() -> None:
    for factor, varies in ((1, False), (1.0000001, False), (1.001, True)):
        x = np.full((50, 8), 0.1, np.float32)
        x[3, 0] *= factor
        assert bool(x[3, 0] != x[0, 0]) is (factor > 1)
        distortion = Distortion(8)
        distortion.add(x, x)
        assert Ground(MemoryArray(x)).varies is varies
        assert (distortion.nmse is not None) is varies


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e60])
def test_a_row_that_is_not_finite_is_named(bad: float) -> None:
    x = np.zeros((5000, 3))
    x[4321, 1] = x[4500, 0] = bad
    with pytest.raises(InputError, match=r"a\.npy: row 4321 holds NaN or infinity"):
        Ground(MemoryArray(x, "a.npy"))


@given(st.lists(st.integers(1, 9), min_size=20, max_size=25), st.integers(0, 99))
def test_means_and_nmses_of_a_draw_are_those_of_its_rows(lengths: list[int], seed: int) -> None:
    """Against rows that are really drawn, sequence by sequence."""
    ids = np.repeat(np.arange(len(lengths)), lengths)
    rng = np.random.default_rng(seed)
    x, error = rng.normal(size=(len(ids), 2)).astype(np.float32), rng.random(len(ids))
    ground = Ground(MemoryArray(x), ids)
    means, nmses, spreads = ground.means(error), ground.nmses(error), spread(x)
    assert ground.draws.shape == (1001, len(lengths))
    for draw in (0, 1, 2, 500):
        times = ground.draws[draw].astype(int)
        rows = np.concatenate([np.flatnonzero(ids == i) for i, n in enumerate(times) for _ in range(n)])
        assert means[draw] == pytest.approx(error[rows].mean())
        assert nmses[draw] == pytest.approx(error[rows].sum() / spreads[rows].sum(), rel=1e-6)
    assert (ground.draws[0] == 1).all()


def test_rows_have_their_places_as_numbers_and_positions_of_their_ids() -> None:
    x, ids = np.eye(5, dtype=np.float32), np.array([4, 4, 9, 9, 9])
    plain, of_ids = Ground(MemoryArray(x)), Ground(MemoryArray(x), ids)
    assert (plain.numbers.tolist(), plain.positions) == ([0, 1, 2, 3, 4], None)
    assert of_ids.positions is not None
    assert of_ids.positions.tolist() == [0, 1, 0, 1, 2]


def test_what_is_resampled_is_told() -> None:
    x = np.eye(40, dtype=np.float32)
    resampling = {"resamples": 1000, "level": 0.95}
    for ids, unit, blocks in (
        (np.arange(40) // 2, "sequences", 20),
        (np.arange(40) // 4, "runs of 1 row", 40),  # too few sequences
        (np.arange(40), "single rows", 40),
        (None, "runs of 1 row", 40),
    ):
        assert Ground(MemoryArray(x), ids).told() == {"unit": unit, "blocks": blocks} | resampling


# -- points ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
def test_chunks_are_seen_as_the_file_decodes(sae: SAE, x: Rows, residual: bool) -> None:
    point, seen = point_of(x, sae, goal=Goal.of(residual=residual), chunk_rows=16)
    with coded(x, sae, goal=Goal.of(residual=residual), chunk_rows=16) as file:
        x_hat = file.rows()
    assert [chunk.first_row for chunk in seen] == [0, 16, 32]
    np.testing.assert_array_equal(np.concatenate([chunk.x for chunk in seen]), x)
    np.testing.assert_allclose(np.concatenate([chunk.x_hat for chunk in seen]), x_hat, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(point.rows.squared_error, np.square(x.astype(np.float64) - x_hat).sum(1), rtol=1e-4)
    np.testing.assert_array_equal(np.concatenate([chunk.bits for chunk in seen]), point.rows.bits)
    assert all(chunk.seconds > 0 for chunk in seen)
    assert (point.residual_step is not None) is residual


def test_the_facts_of_a_point(sae: SAE, x: Rows) -> None:
    ids = np.repeat(np.arange(20), 2)
    point, seen = point_of(x, sae, ids, chunk_rows=16)
    facts, error = point.facts(), point.rows.squared_error
    x_hat = np.concatenate([chunk.x_hat for chunk in seen]).astype(np.float64)
    assert facts["nmse"] == pytest.approx(error.sum() / spread(x).sum(), rel=1e-6)
    assert facts["nmse_median"] == pytest.approx(np.median(error / spread(x)), rel=1e-6)
    nonzero = x.any(1)
    cosine = (x * x_hat).sum(1)[nonzero] / np.sqrt((x**2).sum(1) * (x_hat**2).sum(1))[nonzero]
    assert facts["cosine"] == pytest.approx(cosine.sum() / 40, rel=1e-5)
    assert facts["l0"] == sum(chunk.layers.codes.nnz for chunk in seen) / 40
    assert sum(facts["bytes"].values()) == facts["file_bytes"]
    bits = np.array([point.rows.bits[ids == i].sum() for i in range(20)])
    drawn = (point.ground.draws @ bits) / 40 + point.rows.shared / 40  # sequences of one length
    assert facts["bits_interval"] == pytest.approx(interval(drawn[1:]))
    assert facts["bits_per_row"] == pytest.approx(drawn[0])


@pytest.mark.parametrize("n_rows", [0, 1])
def test_what_is_not_defined_is_none(sae: SAE, x: Rows, n_rows: int) -> None:
    facts = point_of(x[:n_rows], sae)[0].facts()
    assert (facts["nmse"], facts["nmse_interval"], facts["nmse_median"]) == (None, None, None)
    assert (facts["bits_per_row"] is None) == (facts["bits_interval"] is None) == (n_rows == 0)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_draws_without_variance_are_left_out_of_intervals(sae: SAE) -> None:
    """One row in 27 draws of three is the mean, thrice."""
    row = np.arange(1, 9, dtype=np.float32)
    x = np.stack([-row, 0 * row, row])
    report = measure_array(MemoryArray(x), sae=sae)
    ground = Ground(MemoryArray(x))
    assert np.isnan(ground.nmses(np.ones(3))).sum() > 10
    assert np.isfinite(report["nmse_interval"]).all()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
