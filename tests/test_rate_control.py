"""Rate control: solving for a step, and targets that are met or refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.distortion import Distortion
from saecodec.errors import InputError, TargetError
from saecodec.goal import Goal
from saecodec.rate_control import Target, solve
from saecodec.sae import SAE

RealData = tuple[SAE, NDArray[np.float16]]
Measure = Callable[[float], float]


def found(measure: Measure, wanted: float, *, rising: bool, start: float = 1.0) -> tuple[float, float, bool, int]:
    """Place, value, whether it was met, and the number of trials."""
    seen: list[float] = []

    def counted(at: float) -> tuple[float, float]:
        assert 1e-3 * 0.999 <= at <= 1e3 * 1.001
        seen.append(at)
        return measure(at), at

    solution = solve(counted, wanted, start, (1e-3, 1e3), rising=rising)
    assert solution.result == pytest.approx(solution.at), "what is kept is that of the place"
    return solution.at, measure(solution.at), solution.met, len(seen)


# -- solving -----------------------------------------------------------------------------------------------------------

RISING: dict[str, Measure] = {
    "a power": lambda x: 0.3 * x**1.7,
    "a slow power": lambda x: 5 * x**0.4,
    "with a floor": lambda x: 0.1 + 0.05 * x**2,
    "with a ceiling": lambda x: x / (1 + x),
    "bent": lambda x: x**0.3 if x < 1 else x**3,
}


@pytest.mark.parametrize("name", RISING)
@pytest.mark.parametrize("at", [0.2, 0.5, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("start", [0.1, 1.0, 10.0])
def test_a_rising_measure_takes_its_value(name: str, at: float, start: float) -> None:
    wanted = RISING[name](at)
    _, value, met, trials = found(RISING[name], wanted, rising=True, start=start)
    assert met
    assert value == pytest.approx(wanted, rel=0.0101)
    assert trials <= 14


@given(st.floats(0.3, 4), st.floats(0.03, 30), st.floats(0.1, 10))
def test_a_falling_power_takes_its_value(power: float, at: float, start: float) -> None:
    wanted = 7 * at**-power
    _, value, met, trials = found(lambda x: 7 * x**-power, wanted, rising=False, start=start)
    assert met
    assert value == pytest.approx(wanted, rel=0.0101)
    assert trials <= 14


@given(st.integers(0, 1000), st.floats(0.05, 20))
def test_a_somewhat_noisy_measure_takes_its_value(seed: int, at: float) -> None:
    rng = np.random.default_rng(seed)
    wanted = at**1.3
    values: dict[float, float] = {}

    def measure(x: float) -> float:
        return values.setdefault(x, x**1.3 * math.exp(0.002 * rng.normal()))

    solution = solve(lambda x: (measure(x), x), wanted, 1.0, (1e-3, 1e3), rising=True)
    assert solution.met
    assert values[solution.result] == pytest.approx(wanted, rel=0.0101)


@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize("wanted", [1e-9, 1e9])
def test_what_is_out_of_reach_is_not_met_and_the_nearest_is_kept(rising: bool, wanted: float) -> None:
    power = 1 if rising else -1
    at, _, met, trials = found(lambda x: x**power, wanted, rising=rising)
    assert not met
    assert at == pytest.approx(1e3 if (wanted > 1) == rising else 1e-3)
    assert trials <= 14


def test_a_measure_that_never_changes_is_given_up() -> None:
    assert not found(lambda x: 2.0, 1.0, rising=True)[2]
    assert found(lambda x: 2.0, 2.0, rising=True)[2:] == (True, 1)


def test_a_jump_over_the_target_is_not_met() -> None:
    _, value, met, _ = found(lambda x: 1.0 if x < 3 else 2.0, 1.5, rising=True)
    assert not met
    assert value in (1.0, 2.0)


def test_a_start_beyond_the_bounds_is_moved_to_them() -> None:
    assert found(lambda x: x, 500.0, rising=True, start=1e9)[2]


def test_a_measure_of_zero_is_possible() -> None:
    assert found(lambda x: max(x - 1, 0.0), 4.0, rising=True, start=0.5)[2]


# -- targets and goals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, -0.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["nmse", "bits"])
def test_a_target_is_a_positive_number(kind: str, value: float) -> None:
    with pytest.raises(TargetError, match=f"a target is a positive number, got {kind} "):
        Goal.of(**{kind: value})


@pytest.mark.parametrize(
    "given, named",
    [
        ({"step": "0.4rms", "nmse": 0.1}, "step and nmse"),
        ({"step": 1.0, "bits": 9}, "step and bits"),
        ({"nmse": 0.1, "bits": 9}, "nmse and bits"),
        ({"step": "0.4rms", "nmse": 0.1, "bits": 9}, "step and nmse and bits"),
    ],
)
def test_goals_that_contradict_each_other_are_named(given: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=f"{named} exclude each other: give one of"):
        Goal.of(**given)  # type: ignore[arg-type]


def test_a_search_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="search is 'best', expected one of none, refit, pursuit"):
        Goal.of(search="best")


def test_what_is_not_said_has_a_default() -> None:
    plain, targeted = Goal.of(), Goal.of(nmse=0.1)
    assert (str(plain.step), plain.search, plain.residual, plain.plain) == (
        str(Goal.of("0.4rms").step),
        "none",
        False,
        True,
    )
    assert (plain.step_given, Goal.of("0.4rms").step_given) == (False, True)
    assert (targeted.search, targeted.target, targeted.plain) == ("pursuit", Target("nmse", 0.1), False)
    assert Goal.of(bits=9, search="none").search == "none"
    assert not Goal.of(residual=True).plain
    assert not Goal.of(search="refit").plain


def test_a_target_says_how_far_it_was_missed() -> None:
    assert Target("nmse", 0.2).missed_by(0.21) == pytest.approx(0.05)
    assert Target("bits", 100).missed_by(95) == pytest.approx(0.05)
    assert (str(Target("nmse", 0.15)), str(Target("bits", 100))) == ("NMSE 0.15", "100 bits per row")


# -- fitting in memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["none", "refit"])
def test_fitting_in_memory_meets_a_target_on_its_rows(minilm: RealData, search: str) -> None:
    sae, x = minilm[0], minilm[1][:400]
    codec = Codec.fit(sae, x, nmse=0.2, search=search)  # type: ignore[arg-type]
    told = codec.info["target"]
    assert told["nmse"] == 0.2
    assert told["reached"] == pytest.approx(0.2, rel=0.01)
    assert codec.info.get("search", "none") == search
    distortion = Distortion(sae.width)
    distortion.add(x.astype(np.float32), codec.decode(codec.encode(x, search=search)))  # type: ignore[arg-type]
    assert distortion.nmse == pytest.approx(0.2, rel=0.03)  # codes are chosen again, by other tables


def test_the_bits_of_fitting_in_memory_are_those_of_the_chunks(minilm: RealData) -> None:
    sae, x = minilm[0], minilm[1][:400]
    codec = Codec.fit(sae, x, bits=90, search="none")
    assert 8 * len(codec.encode(x)) / 400 == pytest.approx(codec.info["target"]["reached"])
    assert 8 * len(codec.encode(x)) / 400 == pytest.approx(90, rel=0.01)


def test_a_target_that_the_sae_cannot_reach_says_its_floor(minilm: RealData) -> None:
    with pytest.raises(
        TargetError, match=r"NMSE 0\.001 is out of reach: the finest step tried gives NMSE 0\.1"
    ) as error:
        Codec.fit(minilm[0], minilm[1][:500], nmse=0.001, search="refit")
    assert "--residual" in str(error.value)


def test_codec_info_of_a_target_comes_back_from_bytes(mnist: RealData) -> None:
    codec = Codec.fit(*mnist, nmse=0.35, search="refit")
    assert Codec.from_bytes(codec.to_bytes()).info == codec.info
