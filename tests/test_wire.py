"""Varints and blobs: the shortest form, and every read bounded by the bytes that are left."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.errors import FormatError, SaecodecError
from saecodec.wire import ByteReader, blob, varint, varints

MAX = (1 << 63) - 1


def reader(data: bytes) -> ByteReader:
    return ByteReader(data, "the input")


@given(st.one_of(st.integers(0, 300), st.integers(0, MAX)))
def test_a_varint_is_read_back(value: int) -> None:
    source = reader(varint(value))
    assert source.varint() == value
    source.end()


@pytest.mark.parametrize("exponent", range(7, 64, 7))
def test_a_varint_takes_a_byte_for_each_seven_bits(exponent: int) -> None:
    last = (1 << exponent) - 1
    assert len(varint(last)) == exponent // 7
    assert reader(varint(last)).varint() == last
    if last < MAX:
        assert len(varint(last + 1)) == exponent // 7 + 1
        assert reader(varint(last + 1)).varint() == last + 1


@pytest.mark.parametrize(
    "value, expected", [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (MAX, "ff" * 8 + "7f")]
)
def test_pinned_varints(value: int, expected: str) -> None:
    assert varint(value).hex() == expected


@pytest.mark.parametrize("value", [-1, MAX + 1])
def test_a_varint_outside_63_bits_cannot_be_written(value: int) -> None:
    with pytest.raises(ValueError, match="2\\^63"):
        varint(value)


@pytest.mark.parametrize("data", ["8000", "808000", "ff00", "ffffffffffffffff00"])
def test_a_varint_that_is_not_in_its_shortest_form_is_refused(data: str) -> None:
    with pytest.raises(FormatError, match="shortest form"):
        reader(bytes.fromhex(data)).varint()


def test_a_varint_of_ten_bytes_is_refused() -> None:
    with pytest.raises(FormatError, match="longer than 9 bytes"):
        reader(b"\xff" * 9 + b"\x01").varint()


def test_a_varint_above_its_limit_is_refused_and_at_its_limit_is_not() -> None:
    assert reader(varint(1000)).varint(1000) == 1000
    with pytest.raises(FormatError, match="found 1001 where at most 1000"):
        reader(varint(1001)).varint(1000)


@given(st.lists(st.integers(0, MAX), max_size=20))
def test_varints_are_read_back_one_after_the_other(values: list[int]) -> None:
    source = reader(varints(values))
    assert source.varints(len(values)) == values
    assert source.left == 0


def test_a_count_that_lies_is_refused_before_anything_is_read() -> None:
    source = reader(b"\1\2\3")
    with pytest.raises(FormatError, match="1000000000000 varints announced, 3 bytes left"):
        source.varints(10**12)
    assert source.left == 3


@given(st.binary(max_size=300), st.binary(max_size=5))
def test_a_blob_is_read_back_and_leaves_what_follows(data: bytes, rest: bytes) -> None:
    source = reader(blob(data) + rest)
    assert bytes(source.blob()) == data
    assert source.left == len(rest)


@pytest.mark.parametrize("length", [4, 100, MAX])
def test_a_blob_longer_than_the_input_is_refused(length: int) -> None:
    with pytest.raises(FormatError, match="the input"):
        reader(varint(length) + b"abc").blob()


def test_taking_more_than_is_left_says_where_and_how_much() -> None:
    source = reader(b"abcd")
    source.take(1)
    with pytest.raises(FormatError, match="truncated: 5 bytes needed at offset 1, 3 left"):
        source.take(5)


def test_bytes_left_over_are_refused() -> None:
    with pytest.raises(FormatError, match="2 bytes left over"):
        reader(b"ab").end()


@given(st.binary(max_size=20))
def test_any_bytes_read_as_a_varint_or_raise_a_format_error(data: bytes) -> None:
    source = reader(data)
    try:
        value = source.varint()
    except SaecodecError:
        return
    assert varint(value) == data[: len(data) - source.left]


@given(st.lists(st.integers(0, 1 << 30) | st.integers(0, 200), min_size=10, max_size=60), st.data())
def test_many_varints_are_read_as_one_by_one(values: list[int], data: st.DataObject) -> None:
    packed = bytearray(varints(values) + b"rest")
    for _ in range(data.draw(st.integers(0, 2))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    limit = data.draw(st.sampled_from([255, 1 << 20, (1 << 63) - 1]))
    one, many = ByteReader(bytes(packed), "x"), ByteReader(bytes(packed), "x")
    try:
        expected = [one.varint(limit) for _ in values]
    except FormatError as error:
        with pytest.raises(FormatError, match=re.escape(str(error))):
            many.varints(len(values), limit)
        return
    assert many.varints(len(values), limit) == expected
    assert many.left == one.left
