"""A level is floor(|z| |d| / step + 1/2), and it stands for a length within half a step of the activation's."""

from __future__ import annotations

import math
import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.codes import MAX_LEVEL, Codes
from saecodec.errors import FormatError, InputError, SaecodecError
from saecodec.features import Features
from saecodec.integers import pack_ints, zigzag
from saecodec.quantizer import CentroidStatistics, Quantizer, Step, quantize
from saecodec.wire import ByteReader

ONE = np.ones(1)


def features(values: list[float] | NDArray[np.floating], latents: list[int] | None = None) -> Features:
    """One activation a row, of latent 0 unless `latents` says."""
    z = np.asarray(values, np.float32)
    latent = np.zeros(len(z), np.int32) if latents is None else np.array(latents, np.int32)
    return Features(np.arange(len(z) + 1), latent, z)


def levels(values: list[float], step: float = 1.0, norm: float = 1.0) -> list[int]:
    return quantize(features(values), np.array([norm]), step).to_dense()[:, 0].tolist()


def plain(step: float, n_latents: int = 1) -> Quantizer:
    """No centroids."""
    return Quantizer(step, np.zeros((1, 16), np.int64), np.zeros(n_latents, np.int64))


# -- steps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value, relative",
    [
        ("0.4rms", 0.4, True),
        ("0.05", 0.05, False),
        (" 2 rms ", 2.0, True),
        ("1e-3", 1e-3, False),
        ("1E+2rms", 100.0, True),
        (".5", 0.5, False),
        (3, 3.0, False),
        (0.25, 0.25, False),
        (np.float32(0.5), 0.5, False),
        (Step(0.1, True), 0.1, True),
    ],
    ids=str,
)
def test_a_step_is_a_number_or_a_multiple_of_the_rms(text: str | float | Step, value: float, relative: bool) -> None:
    assert Step.parse(text) == Step(value, relative)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rms",
        "0",
        "-1",
        "0rms",
        "nan",
        "inf",
        "1e999",
        "1e-999",
        "abc",
        "0.4 RMS",
        "0.4rmsx",
        "1_0",
        "--",
        "1 2",
        "٣",
        None,
        True,
        math.nan,
        -0.5,
    ],
    ids=str,
)
def test_what_is_no_positive_number_is_no_step(text: str) -> None:
    with pytest.raises(InputError, match=f"got {re.escape(repr(text))}"):
        Step.parse(text)


def test_a_relative_step_is_a_multiple_of_the_rms_and_of_one_when_nothing_is_active() -> None:
    assert Step(0.4, True).resolve(10.0) == 4.0
    assert Step(0.4, True).resolve(0.0) == 0.4
    assert Step(0.4, False).resolve(10.0) == 0.4


# -- levels ------------------------------------------------------------------------------------------------------------


def test_levels_on_the_edges() -> None:
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    assert levels([0.5, below, 1.5, 1.4999999, 2.5, 1.0, 0.0]) == [1, 0, 2, 1, 3, 1, 0]
    assert levels([-0.5, -below, -1.5, -2.49]) == [-1, 0, -2, -2]


def test_an_activation_counts_by_its_length() -> None:
    assert levels([1.0], step=0.5, norm=3.0) == [6]
    assert levels([3.0], step=0.5, norm=1.0) == [6]


@given(st.lists(st.floats(-1000, 1000, width=32), max_size=30), st.floats(0.01, 10), st.floats(0.01, 10))
def test_a_level_is_its_formula(values: list[float], step: float, norm: float) -> None:
    z = np.array(values, np.float32).astype(np.float64)
    expected = np.sign(z) * np.floor(np.abs(z) * norm / step + 0.5)
    assert levels(values, step, norm) == expected.astype(int).tolist()


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), st.integers(-20, 20))
def test_rescaling_directions_and_activations_inversely_changes_no_code(values: list[float], exponent: int) -> None:
    z, scale = np.array(values, np.float32), 2.0**exponent
    latents = [i % 3 for i in range(len(values))]
    norms = np.array([0.5, 1.0, 3.0])
    np.testing.assert_array_equal(
        quantize(features(z * np.float32(scale), latents), norms / scale, 0.1).to_dense(),
        quantize(features(z, latents), norms, 0.1).to_dense(),
    )


def test_a_latent_whose_direction_is_zero_is_never_coded() -> None:
    codes = quantize(features([1e30, 5.0, 1e30], [0, 1, 0]), np.array([0.0, 1.0]), 1.0)
    assert codes.to_dense().tolist() == [[0, 0], [0, 5], [0, 0]]


def test_activations_in_the_dead_zone_leave_their_rows_empty() -> None:
    mixed = Features(np.array([0, 2, 2, 4]), np.array([0, 2, 1, 2], np.int32), np.array([0.1, 1, 2, 0.2], np.float32))
    codes = quantize(mixed, np.ones(3), 1.0).check()
    assert codes.to_dense().tolist() == [[0, 0, 1], [0, 0, 0], [0, 2, 0]]


def test_no_rows_and_no_activations_have_codes() -> None:
    assert quantize(features([]), ONE, 1.0).check().n_rows == 0
    empty = quantize(Features(np.zeros(4, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)), ONE, 1.0).check()
    assert (empty.n_rows, empty.nnz) == (3, 0)


def test_the_largest_level_is_2_to_the_20() -> None:
    assert levels([MAX_LEVEL, -MAX_LEVEL]) == [MAX_LEVEL, -MAX_LEVEL]
    with pytest.raises(InputError, match=r"step 1 is too small: an activation of length 1.04858e\+06"):
        levels([MAX_LEVEL + 1])


def usable_step(z: float, step: float) -> float:
    """The step that the error for a step that is too small names."""
    with pytest.raises(InputError, match="is too small") as caught:
        levels([z], step)
    found = re.search(r"at least (\S+)$", str(caught.value))
    assert found
    return float(found[1])


def test_the_error_for_a_step_that_is_too_small_names_a_usable_one() -> None:
    assert levels([1e30], usable_step(1e30, 1.0))[0] > MAX_LEVEL // 2


def test_every_step_that_is_named_is_usable() -> None:
    for z in np.geomspace(1e3, 2e3, 20):
        assert levels([z], usable_step(z, 1e-6))[0] > 0.98 * MAX_LEVEL


@pytest.mark.parametrize("z", [math.inf, math.nan])
def test_an_activation_that_is_not_finite_is_refused(z: float) -> None:
    with pytest.raises(InputError, match="too small"):
        levels([1.0, z])


def test_a_step_so_small_that_the_level_overflows_is_refused_too() -> None:
    assert levels([1e30], usable_step(1e30, 1e-300))[0] > 0


# -- and back ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1000, 1000, width=32), max_size=30), st.floats(0.01, 10), st.floats(0.01, 10))
def test_without_centroids_the_error_is_at_most_half_a_step(values: list[float], step: float, norm: float) -> None:
    z, norms = np.array(values, np.float32), np.array([norm])
    codes = quantize(features(z), norms, step)
    back = np.zeros(len(z))
    made = plain(step).dequantize(codes, norms)
    assert made.values.dtype == np.float32
    back[codes.rows()] = made.values
    assert (np.abs(back - z) * norm <= step / 2 * (1 + 1e-6) + 1e-6 * np.abs(z) * norm).all()


def test_levels_stand_for_multiples_of_the_step_plus_their_centroid() -> None:
    centroids = np.arange(32).reshape(2, 16) - 16
    quantizer = Quantizer(0.5, centroids, np.array([0, 1]))
    codes = Codes.from_dense(np.array([[1, 1], [16, -16], [17, -17], [-1, MAX_LEVEL]]))
    expected = 0.5 * np.array([1 - 16 / 256, 1, 16 - 1 / 256, -(16 + 15 / 256), 17, -17, -(1 - 16 / 256), MAX_LEVEL])
    np.testing.assert_allclose(quantizer.dequantize(codes, np.ones(2)).values, expected, rtol=1e-7)
    np.testing.assert_allclose(quantizer.dequantize(codes, np.array([2.0, 2.0])).values, expected / 2, rtol=1e-7)


def test_no_codes_stand_for_no_features() -> None:
    made = plain(1.0, 3).dequantize(Codes.from_dense(np.zeros((2, 3), int)), np.array([0.0, 1, 1]))
    assert (made.n_rows, made.nnz) == (2, 0)


def test_a_level_of_a_latent_whose_direction_is_zero_is_refused() -> None:
    with pytest.raises(FormatError, match="direction is zero"):
        plain(1.0).dequantize(Codes.from_dense(np.array([[1]])), np.zeros(1))


def test_a_step_beyond_float32_is_refused() -> None:
    for step in (1e39, 1e300):
        with pytest.raises(FormatError, match="the step is too large"):
            plain(step).dequantize(Codes.from_dense(np.array([[1]])), ONE)


def test_a_level_beyond_float32_is_refused() -> None:
    with pytest.raises(FormatError, match="the step is too large"):
        plain(1e35).dequantize(Codes.from_dense(np.array([[MAX_LEVEL]])), ONE)


# -- centroids ---------------------------------------------------------------------------------------------------------


def centroids_of(
    z: NDArray[np.floating], latents: list[int], classes: list[int], step: float, parts: int = 1
) -> Quantizer:
    statistics = CentroidStatistics(len(classes))
    for part in np.array_split(np.arange(len(z)), parts):
        quantize(features(z[part], [latents[i] for i in part]), np.ones(len(classes)), step, statistics)
    latent_class = np.array(classes)
    return Quantizer(step, statistics.centroids(latent_class, max(classes) + 1), latent_class)


def test_a_centroid_is_the_mean_rounding_error_in_1_256_step() -> None:
    z = np.array([0.6, 0.7, 0.8, 0.9, 2.25, 2.25, 2.25, 2.25])
    made = centroids_of(z, [0] * 8, [0], 1.0)
    assert made.centroids[0, :3].tolist() == [-64, 64, 0]


def test_centroids_are_shared_by_class_and_do_not_depend_on_the_chunks() -> None:
    rng = np.random.default_rng(0)
    z, latents = rng.exponential(3, 400), rng.integers(0, 3, 400).tolist()
    made = centroids_of(z, latents, [1, 0, 1], 1.0)
    np.testing.assert_array_equal(made.centroids, centroids_of(z, latents, [1, 0, 1], 1.0, parts=7).centroids)
    merged = centroids_of(z, [latent % 2 for latent in latents], [1, 0], 1.0)
    np.testing.assert_array_equal(made.centroids, merged.centroids)


def test_centroids_of_fewer_than_four_activations_are_zero() -> None:
    assert not centroids_of(np.array([0.6] * 3), [0] * 3, [0], 1.0).centroids.any()
    assert centroids_of(np.array([0.6] * 4), [0] * 4, [0], 1.0).centroids[0, 0] == round(-0.4 * 256)


def test_centroids_of_negative_activations_are_those_of_their_magnitudes() -> None:
    z = np.random.default_rng(0).exponential(2, 200)
    np.testing.assert_array_equal(
        centroids_of(z, [0] * 200, [0], 1.0).centroids, centroids_of(-z, [0] * 200, [0], 1.0).centroids
    )


def test_a_class_without_latents_has_centroids_of_zero() -> None:
    statistics = CentroidStatistics(2)
    quantize(features([0.6] * 9, [0, 1] * 4 + [0]), np.ones(2), 1.0, statistics)
    assert statistics.centroids(np.array([0, 2]), 3)[:, 0].tolist() == [-102, 0, -102]


def test_centroids_lie_within_half_a_step() -> None:
    edges = np.repeat(np.arange(1, 17), 8)
    for z in (edges - 0.5, edges + 0.4999):
        made = centroids_of(z, [0] * len(z), [0], 1.0).centroids
        assert -128 <= made.min() <= made.max() <= 127


def test_centroids_reduce_the_squared_error() -> None:
    z = np.random.default_rng(0).exponential(1.0, 5000).astype(np.float32)
    fitted = centroids_of(z, [0] * len(z), [0], 1.0)
    codes = quantize(features(z), ONE, 1.0)
    coded = z[codes.rows()]
    error = np.square(fitted.dequantize(codes, ONE).values - coded).sum()
    assert error < 0.97 * np.square(plain(1.0).dequantize(codes, ONE).values - coded).sum()


# -- storage -----------------------------------------------------------------------------------------------------------


def read(data: bytes, latent_class: list[int], n_classes: int = 1) -> Quantizer:
    reader = ByteReader(data, "the quantizer")
    out = Quantizer.read(reader, np.array(latent_class), n_classes)
    reader.end()
    return out


@given(
    st.floats(1e-30, 1e30), st.lists(st.lists(st.integers(-128, 127), min_size=16, max_size=16), min_size=1, max_size=4)
)
def test_a_quantizer_is_read_back(step: float, rows: list[list[int]]) -> None:
    latent_class = [i % len(rows) for i in range(7)]
    quantizer = Quantizer(step, np.array(rows), np.array(latent_class))
    back = read(quantizer.to_bytes(), latent_class, len(rows))
    assert back.step == step
    np.testing.assert_array_equal(back.centroids, rows)


def stored(step: float, centroids: list[int]) -> bytes:
    return struct.pack("<d", step) + pack_ints(zigzag(np.array(centroids, np.int64)))


@pytest.mark.parametrize(
    "data",
    [
        *(stored(step, [0] * 16) for step in (0.0, -0.0, -1.0, math.nan, math.inf, -math.inf)),
        stored(1.0, [0] * 16)[:-1],
        stored(1.0, [0] * 16)[:5],
        stored(1.0, [0] * 15),
        stored(1.0, [0] * 17),
        stored(1.0, []),
        stored(1.0, [0] * 15 + [128]),
        stored(1.0, [0] * 15 + [-129]),
        stored(1.0, [1 << 38] * 16),
        stored(1.0, [0] * 16) + b"\0",
        b"",
    ],
    ids=lambda data: data[:12].hex(),
)
def test_a_hostile_quantizer_is_refused(data: bytes) -> None:
    assert read(stored(1.0, [0] * 16), [0, 0]).step == 1
    with pytest.raises(FormatError, match="the quantizer"):
        read(data, [0, 0])


def test_a_quantizer_with_the_centroids_of_too_few_classes_is_refused() -> None:
    with pytest.raises(FormatError, match="an array of 48 integers was expected, found 16"):
        read(stored(1.0, [0] * 16), [0, 2], 3)


def test_every_truncation_and_every_changed_byte_of_a_quantizer_reads_or_is_refused() -> None:
    data = stored(0.25, [-20, -3, 0, 1, -5, 2] + [0] * 10)
    for cut in range(len(data)):
        with pytest.raises(SaecodecError):
            read(data[:cut], [0])
    for i in range(len(data)):
        for byte in range(256):
            try:
                made = read(data[:i] + bytes([byte]) + data[i + 1 :], [0])
            except SaecodecError:
                continue
            assert 0 < made.step < math.inf
            assert -128 <= made.centroids.min() <= made.centroids.max() <= 127
