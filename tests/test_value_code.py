"""Exact values: 16-bit floats as levels and back, bit by bit."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.errors import FormatError, InputError
from saecodec.stored_floats import STORED, as_float, narrowed
from saecodec.value_code import ExactStatistics, ValueCode

EVERY_PATTERN = np.arange(1 << 16, dtype=np.uint16)


def stored(bits: np.ndarray, dtype: str) -> np.ndarray:
    """16-bit patterns in numpy's form of the dtype."""
    return bits if dtype == "bfloat16" else bits.view(np.float16)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_pattern_comes_back_infinities_nans_and_both_zeros_included(dtype):
    values = stored(EVERY_PATTERN, dtype)
    statistics = ExactStatistics(dtype)
    statistics.add(values)
    code = statistics.value_code()
    assert (code.kind, code.base) == (dtype, -1)
    levels = code.levels(values)
    assert levels.dtype == np.int32
    assert (levels != 0).all()
    assert np.abs(levels).max() == 1 << 15
    assert code.values(levels, dtype, "test").tobytes() == values.tobytes()


@given(st.lists(st.integers(0, (1 << 16) - 1), min_size=1), st.sampled_from(["float16", "bfloat16"]))
def test_the_smallest_level_is_one_and_values_come_back(bits, dtype):
    values = stored(np.array(bits, np.uint16), dtype)
    statistics = ExactStatistics(dtype)
    statistics.add(values)
    code = statistics.value_code()
    levels = code.levels(values)
    assert np.abs(levels).min() == 1
    assert code.values(levels, dtype, "test").tobytes() == values.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_wide_values_that_are_halves_or_bfloats_are_kept_in_their_own_dtype(dtype, kind):
    finite = EVERY_PATTERN[np.isfinite(as_float(stored(EVERY_PATTERN, kind), np.dtype(np.float32)))]
    values = as_float(stored(finite, kind), np.dtype(STORED[dtype]))
    statistics = ExactStatistics(dtype)
    for part in np.array_split(values, 7):
        statistics.add(part)
    code = statistics.value_code()
    assert code.kind == kind
    found = code.values(code.levels(values), dtype, "test")
    assert (found.dtype, found.tobytes()) == (np.dtype(STORED[dtype]), values.tobytes())


@pytest.mark.parametrize("value", [1 + 2.0**-20, 1e-30, 65519.0])
def test_a_value_that_no_16_bit_float_holds_is_named(value):
    statistics = ExactStatistics("float32")
    statistics.add(np.array([1.0, value, 1 + 2.0**-10, 2.0**-100], np.float32))
    with pytest.raises(InputError, match=r"neither a float16 nor a bfloat16: give a step such as --step 0\.4rms"):
        statistics.value_code()


def test_a_level_that_stands_for_no_pattern_is_refused():
    code = ValueCode("float16", 0x7FFE)
    assert np.isnan(code.values(np.array([1], np.int32), "float16", "x")).all()
    with pytest.raises(FormatError, match=re.escape("x: a level stands for the pattern 0x8000, which no float16 has")):
        code.values(np.array([2], np.int32), "float16", "x")


def test_narrowing_to_bfloat16_rounds_to_nearest_even_and_keeps_nan():
    values = np.array([1.0, 1 + 2.0**-8, 1 + 3 * 2.0**-8, np.nan, np.inf, -3.4e38], np.float32)
    found = narrowed(values, "bfloat16")
    assert found.tolist()[:3] == [0x3F80, 0x3F80, 0x3F82]
    assert np.isnan(as_float(found[3:4], np.dtype(np.float32))).all()
    assert found.tolist()[4:] == [0x7F80, 0xFF7F]  # what is finite stays so
