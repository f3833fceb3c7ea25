"""Frames: what is written is read back, unknown frames are skipped or refused by name, and damage is noticed."""

from __future__ import annotations

import struct
import time
import zlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.errors import FormatError, SaecodecError, UnsupportedError
from saecodec.frames import HEAD_BYTES, FrameHead, field, frame, frames, pack_record, unpack_record

kinds = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabc", min_size=4, max_size=4)


@given(st.lists(st.tuples(kinds, st.binary(max_size=40), st.booleans()), max_size=5))
def test_frames_are_read_back_in_order(parts: list[tuple[str, bytes, bool]]) -> None:
    data = b"".join(frame(kind, payload, critical=critical) for kind, payload, critical in parts)
    assert [(head.kind, bytes(payload), head.critical) for head, payload in frames(data, "file")] == parts


def test_the_layout_of_a_frame_is_pinned() -> None:
    data = frame("CHNK", b"payload")
    head = b"CHNK" + struct.pack("<IQ", 1, 7)
    assert data == head + struct.pack("<I", zlib.crc32(head + b"payload")) + b"payload"
    assert len(data) == HEAD_BYTES + 7 == 27
    assert frame("META", b"", critical=False)[4:8] == b"\0\0\0\0"


DATA = frame("CHNK", b"some payload") + frame("META", b"x", critical=False)


def test_every_changed_bit_is_noticed() -> None:
    for i in range(len(DATA)):
        for bit in range(8):
            damaged = bytearray(DATA)
            damaged[i] ^= 1 << bit
            with pytest.raises(FormatError, match="file"):
                list(frames(bytes(damaged), "file"))


def test_every_truncation_is_noticed_except_between_frames() -> None:
    between = {0, HEAD_BYTES + 12, len(DATA)}
    for cut in range(len(DATA)):
        if cut not in between:
            with pytest.raises(FormatError, match="truncated"):
                list(frames(DATA[:cut], "file"))
    assert [head.kind for head, _ in frames(DATA[: HEAD_BYTES + 12], "file")] == ["CHNK"]


@pytest.mark.parametrize("length", [13, 1 << 32, (1 << 64) - 1])
def test_a_length_that_lies_is_refused_by_the_bytes_that_are_left(length: int) -> None:
    head = b"CHNK" + struct.pack("<IQI", 1, length, 0)
    with pytest.raises(FormatError, match=f"frame CHNK has {length} bytes, 12 are left"):
        list(frames(head + b"x" * 12, "file"))


@pytest.mark.parametrize(
    "kind, flags", [(b"CHN1", 1), (b"\0\0\0\0", 1), (b"CH K", 0), (b"\xc3\xa9AB", 1), (b"CHNK", 2), (b"CHNK", 1 << 31)]
)
def test_a_head_of_another_kind_is_not_a_frame(kind: bytes, flags: int) -> None:
    with pytest.raises(FormatError, match="not a frame"):
        list(frames(kind + struct.pack("<IQI", flags, 0, 0), "file"))


@given(st.binary(max_size=80))
def test_any_bytes_are_frames_or_raise_a_format_error(data: bytes) -> None:
    try:
        list(frames(data, "file"))
    except SaecodecError:
        assert data
    else:
        assert not data


def test_an_unknown_critical_frame_is_refused_by_name_and_an_ancillary_one_is_not() -> None:
    FrameHead("XTRA", False, 0, 0).unknown("file")
    with pytest.raises(UnsupportedError, match="file: frame 'XTRA' is needed"):
        FrameHead("XTRA", True, 0, 0).unknown("file")


# -- records -----------------------------------------------------------------------------------------------------------

text = st.text("aZ 0é☃", max_size=5)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | text
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(text, values, max_size=4))
def test_a_record_is_read_back(record: dict[str, object]) -> None:
    assert unpack_record(pack_record(record), "header") == record


def test_a_text_that_utf8_cannot_hold_is_packed_with_a_mark_in_its_place() -> None:
    name = b"sae-\xff".decode("utf-8", "surrogateescape")  # as Python has the name of such a folder
    assert unpack_record(pack_record({"name": name, "of": {"\ud800": "é"}}), "test") == {
        "name": "sae-?",
        "of": {"?": "é"},
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        pack_record({"a": 1})[:-1],
        pack_record({"a": 1}) + b"\0",
        msgpack.packb([1, 2]),
        msgpack.packb({1: 2}),
        msgpack.packb({b"key": 2}, use_bin_type=True),
        b"\x81\xa1\xff\x01",  # a key that is not UTF-8
        b"\xdf\xff\xff\xff\xff",  # a map of 2^32 - 1 entries
        b"\xc6\xff\xff\xff\xff",  # 2^32 - 1 bytes
        b"\x81\xa1a" + b"\x91" * 100_000,  # nesting
        b"\x81\xa1a" + b"\xdd\x7f\xff\xff\xff" * 1000,
        b"\x82\xa1a\x01\x91\x01\x02",  # a list as a key
    ],
    ids=lambda data: data[:8].hex() or "empty",
)
def test_what_is_not_a_record_is_refused(data: bytes) -> None:
    start = time.perf_counter()
    with pytest.raises(FormatError, match="the file: a header is not"):
        unpack_record(data, "the file")
    assert time.perf_counter() - start < 1


def test_a_record_of_more_than_16_mib_is_refused() -> None:
    with pytest.raises(FormatError, match="limit 16777216"):
        unpack_record(bytes((1 << 24) + 1), "file")


@given(st.binary(max_size=30))
def test_any_bytes_are_a_record_or_raise_a_format_error(data: bytes) -> None:
    try:
        record = unpack_record(data, "file")
    except SaecodecError:
        return
    assert isinstance(record, dict)


def test_a_field_of_the_wrong_type_is_refused_by_name() -> None:
    record = {"rows": 3, "name": "x", "flag": True}
    assert field(record, "rows", int, "file") == 3
    assert field(record, "flag", bool, "file") is True
    for key, kind in (("rows", str), ("flag", int), ("missing", int), ("name", (int, bytes))):
        with pytest.raises(FormatError, match=f"file: header field '{key}'"):
            field(record, key, kind, "file")


def test_what_an_error_quotes_of_a_record_is_short() -> None:
    value: object = ["x" * 1000] * 9
    for _ in range(6):
        value = [value] * 6
    with pytest.raises(FormatError) as error:
        field({"version": value}, "version", int, "a.saec")
    assert len(str(error.value)) < 400
