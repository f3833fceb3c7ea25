"""Coded integer arrays are read back, and a length or a table that lies is refused."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.errors import FormatError, SaecodecError
from saecodec.integers import pack_ints, unpack_ints, unzigzag, zigzag
from saecodec.wire import ByteReader, blob, varint, varints

LIMIT = 1 << 40


def unpacked(data: bytes, size: int, below: int = LIMIT) -> NDArray[np.int64]:
    reader = ByteReader(data, "the array")
    out = unpack_ints(reader, size, below=below)
    reader.end()
    return out


def test_zigzag_alternates_around_zero() -> None:
    np.testing.assert_array_equal(zigzag(np.array([0, -1, 1, -2, 2])), np.arange(5))


@given(st.lists(st.integers(-(1 << 62), (1 << 62) - 1), max_size=20))
def test_unzigzag_inverts_zigzag(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert (zigzag(array) >= 0).all()
    np.testing.assert_array_equal(unzigzag(zigzag(array)), array)


integers = st.one_of(st.just(0), st.integers(0, 40), st.integers(0, LIMIT - 1), st.integers(LIMIT - 3, LIMIT - 1))


@given(st.lists(integers, max_size=60), st.binary(max_size=4))
def test_an_array_is_read_back_and_leaves_what_follows(values: list[int], rest: bytes) -> None:
    array = np.array(values, np.int64)
    reader = ByteReader(pack_ints(array) + rest, "the array")
    out = unpack_ints(reader, len(values))
    assert out.dtype == np.int64
    np.testing.assert_array_equal(out, array)
    assert reader.left == len(rest)


@pytest.mark.parametrize(
    "values",
    [[], [0], [0] * 1000, [5] * 1000, [LIMIT - 1], [0, LIMIT - 1] * 10, list(range(3000))],
    ids=lambda v: f"{len(v)}",
)
def test_arrays_of_one_value_and_of_extremes_are_read_back(values: list[int]) -> None:
    np.testing.assert_array_equal(unpacked(pack_ints(np.array(values, np.int64)), len(values)), values)


@pytest.mark.parametrize("value", [0, 7, 15])
def test_an_array_of_one_small_value_takes_five_bytes(value: int) -> None:
    assert pack_ints(np.full(10_000, value)) == varints([10_000, value, 1]) + blob(b"")


def test_pinned_arrays() -> None:
    assert pack_ints(np.zeros(0, np.int64)).hex() == "00"
    assert pack_ints(np.array([16])).hex() == "01100104" + "00000000"
    assert pack_ints(np.array([3, 3, 4, 3, 18])).hex() == "05030fcf0000000000000c0470a92440"


def test_skewed_integers_take_little_more_than_their_entropy() -> None:
    values = np.random.default_rng(0).geometric(0.6, 20_000) - 1
    p = np.bincount(values) / len(values)
    entropy = -(p[p > 0] * np.log2(p[p > 0])).sum() * len(values)
    assert entropy <= 8 * len(pack_ints(values)) < 1.03 * entropy


@pytest.mark.parametrize("values", [[-1], [LIMIT], [0, 1, -(1 << 50)]], ids=str)
def test_integers_outside_40_bits_cannot_be_packed(values: list[int]) -> None:
    with pytest.raises(ValueError, match="2\\^40"):
        pack_ints(np.array(values))


@pytest.mark.parametrize("size", [0, 2, 4, 1 << 24])
def test_a_length_other_than_the_expected_is_refused(size: int) -> None:
    with pytest.raises(FormatError, match="the array"):
        unpacked(pack_ints(np.array([1, 2, 3])), size)


def test_a_value_at_the_bound_is_refused_and_one_below_it_is_not() -> None:
    data = pack_ints(np.array([3, 9, 0]))
    assert unpacked(data, 3, below=10).tolist() == [3, 9, 0]
    with pytest.raises(FormatError, match="found 9 where values below 9"):
        unpacked(data, 3, below=9)


HOSTILE = {
    "no symbols": varints([3, 0, 0]),
    "a first bucket beyond the last": varints([3, 304, 1]),
    "more symbols than buckets": varints([3, 0, 305]),
    "more symbols than buckets from the first on": varints([3, 300, 5]),
    "a table that is cut off": varints([3, 0, 304]) + b"\1",
    "a table of zeros": varints([3, 0, 2]) + b"\0" + blob(b"\0" * 4),
    "a table that begins before its first symbol": varints([3, 0, 3]) + b"\x10\x01" + blob(b"\0" * 4),
    "a table that ends before its last symbol": varints([3, 0, 4]) + b"\x11\x01" + blob(b"\0" * 4),
    "padding that is not zero": varints([3, 0, 3]) + b"\x11\x11" + blob(b"\0" * 4),
    "no stream": varints([3, 0, 2]) + b"\x11",
    "a stream without words": varints([3, 0, 2]) + b"\x11" + blob(b""),
    "a stream longer than the input": varints([3, 0, 2]) + b"\x11" + varint(1 << 40),
    "a stream of three bytes": varints([3, 0, 2]) + b"\x11" + blob(b"\0" * 3),
    "a stream with words left over": varints([3, 0, 2]) + b"\x11" + blob(b"\1" * 40),
    "a stream where nothing is left to say": varints([3, 7, 1]) + blob(b"\0" * 4),
    "a wide bucket without its offsets": varints([3, 16, 1]) + blob(b""),
    "a length not in its shortest form": b"\x83\x00" + varints([0, 1]),
    "a length of ten bytes": b"\xff" * 10,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_array_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="the array"):
        unpacked(data, 3)


def test_every_truncation_and_every_changed_byte_decodes_or_raises_a_format_error() -> None:
    values = np.array([0, 1, 1, 0, 5, 17, 0, 2])
    data = pack_ints(values)
    cases = [data[:cut] for cut in range(len(data))]
    cases += [data[:i] + bytes([byte]) + data[i + 1 :] for i in range(len(data)) for byte in range(256)]
    for case in cases:
        start = time.perf_counter()
        try:
            out = unpacked(case, len(values))
        except SaecodecError:
            pass
        else:
            assert ((out >= 0) & (out < LIMIT)).all()
        assert time.perf_counter() - start < 1
    for case in cases[: len(data)]:
        with pytest.raises(SaecodecError):
            unpacked(case, len(values))
