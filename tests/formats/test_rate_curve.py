"""Curves are of real files, enclose the targets in reach, and say at a target what a file made for it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from coded_rows import identity_sae
from hypothesis import given
from hypothesis import strategies as st

from saecodec.curves import enclosing
from saecodec.decoder_precision import with_precision
from saecodec.encoder import Encoder, MatchingPursuit
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.measuring import measure_array
from saecodec.formats.metric import Metric
from saecodec.formats.point import Ground
from saecodec.formats.rate_curve import CurveMaker, Measured, Setting, at_target, efficient, nearest
from saecodec.formats.two_part import floor_of
from saecodec.goal import Goal
from saecodec.nonlinearity import AbsTopK, ReLU
from saecodec.sae import SAE

Rows = npt.NDArray[Any]
MakeSAE = Callable[..., SAE]
RealData = tuple[SAE, npt.NDArray[np.float16]]


class Made:
    """A curve on rows, and the log of making it."""

    def __init__(
        self,
        sae: SAE,
        x: Rows,
        targets: list[float],
        setting: Setting | None = None,
        ids: npt.NDArray[np.int64] | None = None,
        metric: Metric | None = None,
    ) -> None:
        setting = setting or Setting(chunk_rows=128)
        self.log: list[str] = []
        self.ground = Ground(MemoryArray(x), ids)
        self.floor = floor_of(sae, self.ground.source, ids).nmse[setting.weights] or 0.0
        decoder = with_precision(sae, setting.weights)
        with CurveMaker("s", decoder, self.ground, setting, self.log.append, metric) as maker:
            self.points = maker.curve(targets, self.floor)
            self.detail = maker.detail(nearest(self.points, targets[0]), None)
        self.nmses = [point.nmse for point in self.points]


@pytest.fixture(scope="module")
def rows(sae: SAE) -> Rows:
    return np.random.default_rng(0).normal(size=(300, sae.width)).astype(np.float32)


@pytest.fixture(scope="module")
def real(minilm: RealData) -> tuple[SAE, Rows, Made]:
    """512 rows of MiniLM, and their curve for 0.16 and 0.25."""
    sae, x = minilm
    return sae, x[:512], Made(sae, x[:512], [0.16, 0.25], Setting(chunk_rows=256))


def check_points(made: Made) -> None:
    """Every point is a file whose parts add up, in order; bits and NMSE are those of the first draw."""
    assert made.nmses == sorted(made.nmses)
    n_rows = made.ground.source.n_rows
    for point in made.points:
        facts = point.facts
        assert sum(facts["bytes"].values()) == facts["file_bytes"]
        assert point.rate == facts["bits_per_row"] == 8 * facts["file_bytes"] / n_rows
        assert point.bits[0] == pytest.approx(point.rate)
        assert point.nmses[0] == pytest.approx(point.nmse)
        assert facts["bits_interval"][0] <= point.rate <= facts["bits_interval"][1]
        assert facts["nmse_interval"][0] <= point.nmse <= facts["nmse_interval"][1]
    assert len(made.log) >= len(made.points)


def test_targets_are_enclosed_by_real_files_one_of_them_near(real: tuple[SAE, Rows, Made]) -> None:
    _, _, made = real
    check_points(made)
    assert made.nmses[0] < 0.16
    assert made.nmses[-1] >= 0.4  # so that curves share a range
    assert len(made.points) < 14
    for target in (0.16, 0.25):
        assert enclosing(made.nmses, target) is not None
        assert min(abs(nmse / target - 1) for nmse in made.nmses) <= 0.005


@pytest.mark.parametrize("target", [0.16, 0.25])
def test_bits_at_a_target_are_those_of_a_file_made_for_it(real: tuple[SAE, Rows, Made], target: float) -> None:
    sae, x, made = real
    goal = Goal.of(nmse=target, search="none")
    report = measure_array(MemoryArray(x), sae=sae, goal=goal, chunk_rows=256)
    bits = at_target(made.points, report["nmse"])
    assert bits is not None
    assert bits[0] == pytest.approx(report["bits_per_row"], rel=0.02)
    assert abs(report["nmse"] / target - 1) < 0.01


def test_a_point_is_what_measure_says_of_its_step(real: tuple[SAE, Rows, Made]) -> None:
    sae, x, made = real
    point = made.points[2]
    report = measure_array(MemoryArray(x), sae=sae, goal=Goal.of(point.facts["step"]), chunk_rows=256)
    for key in ("file_bytes", "bytes", "nmse", "nmse_median", "cosine", "l0", "estimates", "nmse_interval"):
        assert report[key] == point.facts[key], key


def test_draws_that_differ_give_an_interval_of_about_the_nearest_points_width(real: tuple[SAE, Rows, Made]) -> None:
    """The line between two files that are near each other does not go astray in a draw."""
    _, _, made = real
    for target in (0.16, 0.25):
        bits, without = at_target(made.points, target), [p for p in made.points if abs(p.nmse / target - 1) > 0.02]
        wide = at_target(without, target)
        assert bits is not None
        assert wide is not None
        assert bits[1:].std() == pytest.approx(wide[1:].std(), rel=0.35)


def test_a_floor_above_the_target_leaves_it_without_files(real: tuple[SAE, Rows, Made]) -> None:
    sae, x, _ = real
    made = Made(sae, x[:256], [0.05, 0.3])
    assert made.floor > 0.05
    assert at_target(made.points, 0.05) is None
    assert at_target(made.points, 0.3) is not None


@pytest.mark.parametrize("target", [0.97, 0.8])
def test_the_ladder_goes_on_to_coarse_targets(sae: SAE, rows: Rows, target: float) -> None:
    made = Made(sae, rows, [target])
    assert made.nmses[-1] > target
    assert at_target(made.points, target) is not None


def test_a_target_just_above_the_floor_takes_finer_steps(rows: Rows) -> None:
    sae = identity_sae()  # its floor is 0 on rows that are positive
    made = Made(sae, np.abs(rows), [0.001])
    assert made.floor < 1e-9
    assert at_target(made.points, 0.001) is not None
    assert min(point.facts["step"] for point in made.points) < 0.25


def test_a_search_goes_below_the_floor_and_takes_finer_steps_for_it(rows: Rows) -> None:
    """An encoder that shrinks every activation by 0.3, which a search does not."""
    encoder = Encoder(torch.eye(8), torch.full((8,), -0.3), ReLU(), True)
    sae = SAE(torch.eye(8), torch.zeros(8), encoder, "relu", "shrinks")
    made = Made(sae, np.abs(rows[:100]), [0.022], Setting("refit", chunk_rows=128))
    check_points(made)
    assert made.floor > 0.1
    assert at_target(made.points, 0.022) is not None
    assert min(point.facts["step"] for point in made.points) < 0.25


def test_a_residual_layer_reaches_any_target(sae: SAE, rows: Rows) -> None:
    made = Made(sae, rows[:100], [0.1], Setting(residual=True, chunk_rows=128))
    check_points(made)
    assert made.floor > 0.1
    pair = enclosing(made.nmses, 0.1)
    assert pair is not None
    assert made.nmses[pair[1]] < 1.1 * made.nmses[pair[0]]
    assert made.points[0].facts["residual_step"] is not None


def test_a_residual_goal_out_of_reach_is_told_and_passed_over(sae: SAE, rows: Rows) -> None:
    made = Made(sae, rows[:20], [1e-12, 0.2], Setting(residual=True, chunk_rows=128))
    assert any("out of reach" in line or "is not met" in line for line in made.log)
    assert at_target(made.points, 1e-12) is None
    assert at_target(made.points, 0.2) is not None


def kinds_of_sae(make_sae: MakeSAE) -> dict[str, SAE]:
    plain = make_sae("topk")
    encoder = Encoder(plain.w_dec.T.contiguous(), torch.zeros(plain.n_latents), AbsTopK(1), True)
    return {
        "layer_norm": replace(plain, normalization="layer_norm"),
        "row_norm": replace(plain, normalization="row_norm"),
        "sequence_norm": replace(plain, normalization="sequence_norm"),
        "signed": replace(plain, encoder=encoder),
        "matching_pursuit": replace(plain, encoder=MatchingPursuit(5, 0.0, True, True)),
        "gated": make_sae("gated"),
    }


@pytest.mark.parametrize("kind", ["layer_norm", "row_norm", "sequence_norm", "signed", "matching_pursuit", "gated"])
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_saes_of_every_kind(make_sae: MakeSAE, rows: Rows, kind: str, weights: str) -> None:
    sae, ids = kinds_of_sae(make_sae)[kind], np.repeat(np.arange(15), 20)
    made = Made(sae, rows, [0.6], Setting(weights=weights, chunk_rows=128), ids)
    check_points(made)
    assert at_target(made.points, 0.6) is not None
    has_side = kind.endswith("norm")
    assert all((point.facts["bytes"]["side"] > 0) == has_side for point in made.points)
    assert all((point.facts["bytes"]["columns"] > 20) == (kind == "sequence_norm") for point in made.points)


def test_rows_in_which_nothing_fires_have_points_and_no_target(sae: SAE) -> None:
    x = np.repeat(sae.b_dec.numpy()[None], 90, 0) + np.linspace(0, 1e-3, 90, dtype=np.float32)[:, None]
    made = Made(sae, x, [0.3])
    assert made.points
    assert all(point.facts["l0"] == 0 for point in made.points)
    assert at_target(made.points, 0.3) is None


def test_a_metric_is_in_every_point(sae: SAE, rows: Rows) -> None:
    metric = Metric("m", lambda x, y: np.square(x - y).sum(1))
    made = Made(sae, rows, [0.5], metric=metric)
    spread = made.ground.spread.mean()
    for point in made.points:
        assert point.facts["metric"] == pytest.approx(point.nmse * spread, rel=1e-4)
        assert point.facts["metric_interval"][0] < point.facts["metric"] < point.facts["metric_interval"][1]
    bare = Made(sae, rows[:60], [0.5]).points[0].facts
    assert (bare["metric"], bare["metric_interval"]) == (None, None)


def test_the_detail_is_of_the_same_file(sae: SAE, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = Made(sae, rows, [0.5])
    point = nearest(made.points, 0.5)
    detail = made.detail
    assert detail["step"] == point.facts["step"]
    streams = 8 * (point.facts["bytes"]["support"] + point.facts["bytes"]["levels"]) / 300
    assert sum(detail["latents"]["columns"]["bits"]) + detail["latents"]["rest_bits"] == pytest.approx(
        streams, rel=1e-4
    )
    assert sum(detail["histograms"]["row_bits"]["counts"]) == 300
    assert list(tmp_path.iterdir()) == []


# -- bits at a target, from points -------------------------------------------------------------------------------------

positive = st.floats(0.5, 400)
nmse_values = st.floats(0.01, 0.9)


def point(bits: list[float], nmses: list[float]) -> Measured:
    facts = {"bits_per_row": bits[0], "nmse": nmses[0]}
    return Measured(Goal.of(), np.array(bits), np.array(nmses), facts)


@given(st.lists(st.tuples(positive, nmse_values), min_size=2, max_size=6, unique_by=lambda pair: pair[1]), nmse_values)
def test_bits_at_a_target_lie_on_lines_in_logarithms(pairs: list[tuple[float, float]], target: float) -> None:
    points = [point([bits], [nmse]) for bits, nmse in pairs]
    found = at_target(points, target)
    kept = {(b, n) for b, n in pairs if not any(c <= b and m <= n and (c, m) != (b, n) for c, m in pairs)}
    order = sorted(kept, key=lambda pair: pair[1])
    if len(order) < 2 or not order[0][1] <= target <= order[-1][1]:
        assert found is None
        return
    log_bits, log_nmses = np.log([bits for bits, _ in order]), np.log([nmse for _, nmse in order])
    assert found is not None
    assert found[0] == pytest.approx(np.exp(np.interp(np.log(target), log_nmses, log_bits)), rel=1e-6)


def test_each_draw_has_the_line_of_its_own_figures() -> None:
    points = [
        point([100, 110, 90], [0.1, 0.11, 0.09]),
        point([50, 51, 52], [0.4, 0.4, 0.38]),
        point([9, 9, 9], [0.9] * 3),
    ]
    found = at_target(points, 0.2)
    assert found is not None
    for draw in range(3):
        alone = at_target([point([p.bits[draw]], [p.nmses[draw]]) for p in points], 0.2)
        assert alone is not None
        assert found[draw] == pytest.approx(alone[0])


def test_a_draw_without_variance_or_error_is_not_a_number_and_no_warning() -> None:
    found = at_target([point([100, 90, 90], [0.1, np.nan, 0.0]), point([50, 40, 40], [0.4, np.nan, 0.4])], 0.2)
    assert found is not None
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


def test_nothing_encloses_without_points() -> None:
    assert at_target([], 0.2) is None
    assert at_target([point([10], [0.2])], 0.2) is None


def test_the_nearest_point_is_so_in_logarithms() -> None:
    points = [point([2], [0.1]), point([1], [0.3]), point([3], [0.0])]
    assert nearest(points, 0.16) is points[0]
    assert nearest(points, 0.19) is points[1]


def test_files_that_are_worse_in_both_do_not_count() -> None:
    """Steps 0.2 to 1: finer ones are no better, since coarse steps leave out activations that do harm."""
    points = [point([50], [0.31]), point([40], [0.3]), point([30], [0.28]), point([20], [0.32]), point([5], [0.6])]
    assert [p.rate for p in efficient(points)] == [30, 20, 5]
    found = at_target(points, 0.31)
    assert found is not None
    assert 20 < found[0] < 30
    assert nearest(points, 0.305) is points[3]


def test_a_curve_that_turns_back_is_followed_where_it_is_cheap(make_sae: MakeSAE, rows: Rows) -> None:
    made = Made(make_sae("topk", 4, 8, 48), rows, [0.466])
    assert made.nmses[0] < 0.466 < made.floor
    found = at_target(made.points, 0.466)
    assert found is not None
    assert min(abs(nmse / 0.466 - 1) for nmse in made.nmses if nmse != made.floor) <= 0.005
    assert found[0] < min(p.rate for p in made.points if p.facts["step"] < 1)
