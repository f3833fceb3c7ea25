"""Verdicts follow from the points: who is the MDL-SAE, who ties with it, and from how many rows on who is shortest."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.bootstrap import interval
from saecodec.curves import bits_at
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.point import Ground
from saecodec.formats.rate_curve import Measured
from saecodec.formats.verdicts import AtTarget, Curve, all_crossings, bd_rates, pareto
from saecodec.goal import Goal

N_ROWS, DRAWS = 1000, 201
TARGET = 0.2


def measured(bits: float, nmse: float, noise: Any = 0.0, tables: int = 100) -> Measured:
    """noise: of each draw, relative, in bits and NMSE alike."""
    draws = np.concatenate([[1.0], 1 + np.broadcast_to(noise, DRAWS - 1)])
    facts = {"bits_per_row": bits, "nmse": nmse, "step": bits / 100, "bytes": {"tables": tables}}
    facts |= {"file_bytes": int(bits * N_ROWS / 8), "nmse_median": 0.9 * nmse, "metric": None}
    return Measured(Goal.of(), bits * draws, nmse * draws, facts)


def curve(name: str, scale: float = 1.0, decoder: int = 5000, noise: Any = 0.0, tables: int = 100) -> Curve:
    """100 scale bits at NMSE 0.2, halved by each doubling of it."""
    nmses = (0.05, 0.1, 0.19, 0.3, 0.5)
    return Curve(name, [measured(scale * 20 / nmse, nmse, noise, tables) for nmse in nmses], decoder)


def at(*curves: Curve, target: float = TARGET) -> AtTarget:
    return AtTarget.of(curves, target, N_ROWS)


@pytest.fixture(scope="module")
def hard() -> np.ndarray[Any, Any]:
    """How much harder the rows of each draw are."""
    return np.random.default_rng(0).normal(scale=0.05, size=DRAWS - 1)


def test_the_fewest_bits_are_the_mdl_sae() -> None:
    found = at(curve("b", 1.5), curve("a"), curve("c", 1.2)).verdict()
    assert found["mdl"] == "a"
    assert [(pair["a"], pair["b"]) for pair in found["differences"]] == [("a", "c"), ("a", "b"), ("c", "b")]
    assert [pair["bits"] for pair in found["differences"]] == pytest.approx([20, 50, 30])
    assert found["ties"] == []


def test_an_sae_ties_with_itself_with_nothing_between(hard: Any) -> None:
    found = at(curve("first", noise=hard), curve("again", noise=hard)).verdict()
    (pair,) = found["differences"]
    assert (found["mdl"], found["ties"]) == ("first", ["again"])
    assert (pair["bits"], pair["interval"], pair["tie"], pair["rows_to_break_even"]) == (0, [0, 0], True, 0)
    assert (found["mdl_with_sae"], found["ties_with_sae"]) == ("first", ["again"])


def test_what_rows_share_cancels_in_the_paired_difference(hard: Any) -> None:
    """Intervals of the two overlap, and that of their difference does not hold 0."""
    a, b = curve("a", noise=hard), curve("b", 1.02, noise=hard)
    both = at(a, b)
    ends = [interval(both.bits[name][1:]) for name in "ab"]
    assert ends[1][0] < ends[0][1]
    (pair,) = both.verdict()["differences"]
    assert not pair["tie"]
    assert pair["interval"][0] > 0
    assert both.verdict()["ties"] == []


def test_a_difference_smaller_than_its_noise_is_a_tie(hard: Any) -> None:
    found = at(curve("a", noise=hard), curve("b", 1.02, noise=np.roll(hard, 7))).verdict()
    (pair,) = found["differences"]
    assert pair["interval"][0] < 0 < pair["interval"][1]
    assert (pair["tie"], found["ties"]) == (True, ["b"])


def test_a_tie_of_two_others_is_not_one_with_the_best(hard: Any) -> None:
    found = at(curve("a", 0.5), curve("b", noise=hard), curve("c", noise=hard)).verdict()
    assert found["ties"] == []
    assert found["differences"][-1]["tie"]


def test_nobody_at_a_target_out_of_reach(hard: Any) -> None:
    found = at(curve("a"), target=0.01).verdict()
    assert (found["mdl"], found["mdl_with_sae"]) == (None, None)
    assert [found[key] for key in ("ties", "ties_with_sae", "shortest_from_rows", "differences")] == [[]] * 4


@pytest.mark.parametrize(
    "target, points, floor, reason",
    [
        (0.01, None, None, "its finest file has NMSE 0.05"),
        (0.01, None, 0.009, "its finest file has NMSE 0.05"),
        (0.01, None, 0.04, "nothing quantized, its NMSE is 0.04; its best file has 0.05"),
        (0.9, None, None, "its coarsest file has less error"),
        (0.2, [], None, "no file was made"),
        (0.2, [], 0.3, "no file was made"),
    ],
)
def test_what_is_missing_is_told(
    target: float, points: list[Measured] | None, floor: float | None, reason: str
) -> None:
    missing = Curve("a", curve("a").points if points is None else points, 5000, floor)
    ground = Ground(MemoryArray(np.eye(3, dtype=np.float32)))
    assert at(missing, curve("b"), target=target).of_curve(missing, ground, None) == {"missing": reason}


# -- draws that do not reach a target ----------------------------------------------------------------------------------


def near(name: str, bits: float, hard: Any, decoder: int = 5000) -> Curve:
    """Its finest file has NMSE 0.195: the rows of a draw may be too hard for the target."""
    return Curve(name, [measured(bits, 0.195, hard), measured(bits / 3, 0.36, hard)], decoder)


def test_an_interval_of_draws_that_do_not_reach_the_target_has_no_upper_end(hard: Any) -> None:
    one = near("a", 100, hard)
    found = at(one)
    ground = Ground(MemoryArray(np.random.default_rng(0).normal(size=(N_ROWS, 48)).astype("float32")))
    facts = found.of_curve(one, ground, None)
    missed = 0.195 * (1 + hard) > TARGET
    assert np.isinf(found.bits["a"][1:]).tolist() == missed.tolist()
    assert facts["not_reached"] == pytest.approx(missed.mean())
    assert 0.2 < facts["not_reached"] < 0.4
    assert facts["interval"][0] < facts["bits_per_row"] < 100
    assert facts["interval"][1] is None
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert at(curve("b", noise=hard)).of_curve(curve("b", noise=hard), ground, None)["not_reached"] == 0


def test_each_draw_has_a_curve_through_its_own_points(hard: Any) -> None:
    """Two files beside the target whose errors change places in draws: a line through these two would run anywhere."""
    rng = np.random.default_rng(1)
    noises = rng.normal(scale=0.02, size=(4, DRAWS - 1))
    points = [measured(20 / n, n, noise) for n, noise in zip((0.1, 0.199, 0.201, 0.35), noises, strict=True)]
    found = at(Curve("a", points, 5000)).bits["a"]
    changed = points[1].nmses > points[2].nmses
    assert 0.2 < changed.mean() < 0.8
    assert found.min() > 85
    assert found.max() < 115


@pytest.mark.parametrize("bits, low, high", [(90.0, False, True), (160.0, True, False)])
def test_the_difference_to_an_sae_that_draws_do_not_reach_is_unbounded(
    hard: Any, bits: float, low: bool, high: bool
) -> None:
    """One that always reaches the target ties with one that has fewer bits where it gets there, and beats one that has
    more."""
    found = at(near("near", bits, hard), curve("far", noise=hard)).verdict()
    (pair,) = found["differences"]
    assert (pair["a"], pair["b"]) == (("near", "far") if high else ("far", "near"))
    assert (pair["interval"][0] is None, pair["interval"][1] is None) == (not low, not high)
    assert pair["tie"] is high
    assert found["ties"] == (["far"] if high else [])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_draws_that_neither_reaches_tell_nothing(hard: Any) -> None:
    found = at(near("a", 100, hard), near("b", 110, hard)).verdict()
    (pair,) = found["differences"]
    assert pair["interval"][0] == 0
    assert 0 < pair["interval"][1] < 11
    assert (pair["tie"], found["ties"], found["ties_with_sae"]) == (True, ["b"], ["b"])


def test_curves_that_no_draw_knows_tie() -> None:
    """Without an NMSE in any draw, the figures of all rows are all there is."""
    unknown = np.full(DRAWS - 1, np.nan)
    found = at(curve("a", noise=unknown), curve("b", 2, noise=unknown)).verdict()
    (pair,) = found["differences"]
    assert (pair["bits"], pair["interval"], pair["tie"]) == (pytest.approx(100), [None, None], True)
    assert found["ties_with_sae"] == ["b"]


@pytest.mark.parametrize("lighter, best, ties", [(0, "a", []), (500, "a", ["b"]), (700, "b", ["a"]), (4000, "b", [])])
def test_decoders_count_in_ties_with_the_sae(hard: Any, lighter: int, best: str, ties: list[str]) -> None:
    """b takes 5 bits a row more, and 8 for a thousand bytes of decoder less."""
    found = at(curve("a", decoder=5000, noise=hard / 10), curve("b", 1.05, 5000 - lighter, np.roll(hard, 7) / 10))
    verdict = found.verdict()
    assert (verdict["mdl"], verdict["ties"]) == ("a", [])
    assert (verdict["mdl_with_sae"], verdict["ties_with_sae"]) == (best, ties)


# -- totals ------------------------------------------------------------------------------------------------------------

sizes = st.tuples(st.floats(0.5, 3), st.integers(100, 200_000), st.integers(0, 3000))


@given(st.lists(sizes, min_size=1, max_size=5))
def test_totals_and_break_evens_are_those_of_the_descriptions(saes: list[tuple[float, int, int]]) -> None:
    curves = [curve(f"s{i}", scale, decoder, 0.0, tables) for i, (scale, decoder, tables) in enumerate(saes)]
    found = at(*curves).verdict()

    def length(i: int, rows: float) -> float:
        """Bits of so many rows with the decoder; tables are in the file's rate, and do not grow."""
        scale, decoder, tables = saes[i]
        return (100 * scale - 8 * tables / N_ROWS) * rows + 8 * (decoder + tables)

    everyone = range(len(saes))
    for rows in (1, 10, N_ROWS, 10**4, 10**6, 10**9):
        name = [step["name"] for step in found["shortest_from_rows"] if step["from_rows"] <= rows][-1]
        assert length(int(name[1:]), rows) == pytest.approx(min(length(i, rows) for i in everyone))
    best = int(found["mdl_with_sae"][1:])
    assert length(best, N_ROWS) == pytest.approx(min(length(i, N_ROWS) for i in everyone))
    for pair in found["differences"]:
        a, b = int(pair["a"][1:]), int(pair["b"][1:])
        even = pair["rows_to_break_even"]
        if even is None:  # a row more costs b no more than a
            grows = [length(i, 1e9) - length(i, 0) for i in (a, b)]
            assert grows[0] >= grows[1] * (1 - 1e-9)
        else:
            for rows in (2 * even + 1, 1e3 * even + 1):
                assert length(a, rows) <= length(b, rows) * (1 + 1e-9)
            if even > 0:
                assert length(a, even) == pytest.approx(length(b, even))
                assert length(a, even / 2) >= length(b, even / 2) * (1 - 1e-9)


@pytest.mark.parametrize("dtype, item", [("float16", 16), ("float32", 32)])
def test_what_a_curve_takes_at_a_target(hard: Any, dtype: str, item: int) -> None:
    one = curve("a", noise=hard)
    ground = Ground(MemoryArray(np.random.default_rng(0).normal(size=(N_ROWS, 48)).astype(dtype)))
    facts = at(one).of_curve(one, ground, {"pca": {"model_bytes": 700, "bits_per_row": 150.0}})
    assert facts["bits_per_row"] == pytest.approx(100)
    assert facts["interval"][0] < 100 < facts["interval"][1]
    assert facts["sae_bits_per_row"] == 40
    assert facts["tables_bits_per_row"] == pytest.approx(0.8)
    assert facts["total_bits_per_row"] == pytest.approx(140)
    for n, bits in zip(*facts["total_by_rows"].values(), strict=True):
        assert bits == pytest.approx(100 - 0.8 + 8 * 5100 / n)
    nearest = min(one.points, key=lambda point: abs(np.log(point.nmse / TARGET)))
    assert facts["file"]["file_bytes"] == nearest.facts["file_bytes"]
    for even, weight, rate in (
        (facts["rows_to_break_even_raw"], 0, item * 48),
        (facts["rows_to_break_even_pca"], 8 * 700, 150),
    ):
        assert 8 * 5100 + (100 - 0.8) * even == pytest.approx(weight + rate * even)
    assert "rows_to_break_even_pca" not in at(one).of_curve(one, ground, None)
    assert "rows_to_break_even_pca" not in at(one).of_curve(one, ground, {"pca": None})
    cheap = at(one).of_curve(one, ground, {"pca": {"model_bytes": 700, "bits_per_row": 90.0}})
    assert cheap["rows_to_break_even_pca"] is None


# -- all curves --------------------------------------------------------------------------------------------------------

points = st.lists(st.tuples(st.integers(1, 40).map(float), st.integers(1, 90).map(lambda n: n / 100)), max_size=6)


@given(st.lists(points, min_size=1, max_size=3))
def test_the_front_has_the_points_that_no_other_undercuts(curves: list[list[tuple[float, float]]]) -> None:
    found = pareto([Curve(f"s{i}", [measured(*p) for p in each], 0) for i, each in enumerate(curves)])
    every = [p for each in curves for p in each]
    kept = {(point["bits_per_row"], point["nmse"]) for point in found}
    for bits, nmse in every:
        beaten = any(b <= bits and n <= nmse and (b, n) != (bits, nmse) for b, n in every)
        assert ((bits, nmse) in kept) is not beaten
    assert [point["nmse"] for point in found] == sorted({nmse for _, nmse in kept})
    assert all((point["bits_per_row"], point["nmse"]) in curves[int(point["sae"][1:])] for point in found)


def test_bd_rates_are_against_the_first_curve() -> None:
    found = bd_rates([curve("a"), curve("b", 1.25), curve("c", 0.5), Curve("d", [], 0)])
    assert found["reference"] == "a"
    assert found["percent"] == {"b": pytest.approx(25), "c": pytest.approx(-50), "d": None}
    assert found["interval"] == {"b": pytest.approx([25, 25]), "c": pytest.approx([-50, -50])}
    assert bd_rates([curve("a")]) == {"reference": "a", "percent": {}, "interval": {}}


def test_the_interval_of_a_bd_rate_is_of_the_same_draws(hard: Any) -> None:
    paired = bd_rates([curve("a", noise=hard), curve("b", 1.02, noise=hard)])["interval"]["b"]
    low, high = bd_rates([curve("a", noise=hard), curve("b", 1.02, noise=np.roll(hard, 7))])["interval"]["b"]
    assert paired == pytest.approx([2, 2])
    assert low < -5 < 2 + 5 < high


def line(name: str, first: float, last: float, noise: Any = 0.0) -> Curve:
    middle = measured(np.sqrt(first * last), 0.2, noise)
    return Curve(name, [measured(first, 0.1, noise), middle, measured(last, 0.4, noise)], 0)


def test_nothing_is_told_across_a_gap() -> None:
    a, b = line("a", 200, 20), line("b", 100, 40)
    gapped = Curve("a", [a.points[0], a.points[-1]], 0)
    assert len(all_crossings([a, b])) == 1
    assert bd_rates([a, b])["percent"]["b"] is not None
    assert all_crossings([gapped, b]) == all_crossings([b, gapped]) == []
    assert bd_rates([gapped, b]) == {"reference": "a", "percent": {"b": None}, "interval": {}}


def test_crossings_are_told_and_whether_anyone_is_below() -> None:
    curves = [line("a", 200, 20), line("b", 100, 40), line("low", 60, 50)]
    found = all_crossings(curves)
    assert [(one["a"], one["b"]) for one in found] == [("a", "b"), ("a", "low"), ("b", "low")]
    rated = {one.name: one.rate_points() for one in curves}
    for one in found:
        each = {name: bits_at(rated[name], one["nmse"]) for name in rated}
        assert each[one["a"]] == pytest.approx(one["bits_per_row"])
        assert each[one["b"]] == pytest.approx(one["bits_per_row"])
        others = [bits for name, bits in each.items() if name not in (one["a"], one["b"])]
        assert one["lowest"] is all(bits >= one["bits_per_row"] for bits in others if bits is not None)
    assert {one["lowest"] for one in found} == {False, True}
    assert all_crossings([curve("a"), curve("b", 2)]) == []
    assert all_crossings([curve("a"), Curve("b", [], 0)]) == []


def test_verdicts_are_strict_json(hard: Any) -> None:
    some = [curve("a", noise=hard), curve("b", 1.1, 300, hard[::-1]), line("c", 150, 60), Curve("d", [], 9)]
    ground = Ground(MemoryArray(np.eye(3, dtype=np.float32)))
    found = at(*some)
    told = [found.verdict(), pareto(some), bd_rates(some), all_crossings(some)]
    told += [found.of_curve(one, ground, None) for one in some]
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert len(list(itertools.chain(found.verdict()["differences"]))) == 3


def test_files_that_are_worse_in_both_are_in_no_curve() -> None:
    """Of a curve that turns back: lines through its finer files would cross the other's."""
    other = Curve("b", [measured(60, 0.1), measured(25, 0.4)], 0)
    turning = Curve("a", [measured(90, 0.31), measured(80, 0.3), measured(30, 0.28), measured(20, 0.4)], 0)
    assert [(point.bits, point.nmse) for point in turning.rate_points()] == [(30, 0.28), (20, 0.4)]
    assert all_crossings([turning, other]) == []
    found = at(turning, other, target=0.305).verdict()
    assert found["mdl"] == "a"
