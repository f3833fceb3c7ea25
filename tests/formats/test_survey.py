"""`verify` of a damaged file: all damage is found, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged_files import N, break_chunk, extents, flip, lost_mask, write
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.errors import FormatError
from saecodec.formats.decoding import verify_file
from saecodec.formats.saec import open_saec
from saecodec.formats.survey import Survey, survey
from saecodec.frames import HEAD_BYTES, frame

Array = NDArray[Any]


@pytest.fixture(scope="module")
def rows() -> Array:
    return np.random.default_rng(1).normal(size=(N, 8)).astype(np.float32)


def surveyed(path: Path, *, decode: bool = True, codec: Codec | None = None) -> Survey:
    """The survey of a file that `verify_file` refuses."""
    with open_saec(path, codec=codec) as file:
        with pytest.raises(FormatError) as met:
            verify_file(file, decode=decode)
        return survey(file, met.value, decode=decode)


@pytest.fixture(scope="module", params=[False, True], ids=["encoded", "appended"])
def sound(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, layered: Codec, rows: Array
) -> Path:
    return write(tmp_path_factory.mktemp("sound") / "a.saec", rows, layered, appended=request.param)


@settings(max_examples=30)
@given(data=st.data())
def test_damage_is_found_wherever_it_is(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path, chunks = tmp_path_factory.mktemp("d") / "damaged.saec", extents(sound)
    content = bytearray(sound.read_bytes())
    with open_saec(sound) as file:
        last = int.from_bytes(content[-8:], "little")  # the index, which has to be whole
        tables = file.embedded_at["TABL"]
    spots = data.draw(
        st.lists(st.integers(tables + HEAD_BYTES, last - 1), min_size=1, max_size=5, unique=True).filter(
            lambda spots: all(not _in_head_of_preamble(spot, sound) for spot in spots)
        )
    )
    for spot in spots:
        content[spot] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    hit = {i for i, (start, end, *_) in enumerate(chunks) if any(start <= spot < end for spot in spots)}
    others = [spot for spot in spots if not any(start <= spot < end for start, end, *_ in chunks)]
    for decode in (True, False):
        found = surveyed(path, decode=decode)
        assert found.chunks.keys() == hit
        expected = lost_mask((a, b) for i, (*_, a, b) in enumerate(chunks) if i in hit)
        np.testing.assert_array_equal(lost_mask((lost.start, lost.stop) for lost in found.lost), expected)
        assert bool(found.elsewhere) == bool(others)
        for spot in others:
            assert any(damage.start <= spot < damage.stop for damage in found.elsewhere)
        if any(spot < chunks[0][0] for spot in spots):
            assert found.decoded == "nothing" or not decode or found.elsewhere[0].cost.startswith("every row")


def _in_head_of_preamble(spot: int, path: Path) -> bool:
    with open_saec(path) as file:
        return any(at <= spot < at + HEAD_BYTES for at in file.embedded_at.values())


def test_chunks_that_do_not_decode_are_lost_and_those_of_wrong_rows(
    layered: Codec, rows: Array, tmp_path: Path, rebuild: Any
) -> None:
    path = write(tmp_path / "a.saec", rows, layered)
    break_chunk(path, 1)
    break_chunk(path, 3)
    found = surveyed(path)
    assert (found.decoded, [*found.chunks]) == ("rows", [1, 3])
    assert all("(rows" in lost.reason(str(path)) for lost in found.chunks.values())
    with open_saec(path) as file:
        verify_file(file, decode=False)  # checksums are right
    write(path.with_name("b.saec"), rows, layered)
    lie = rebuild(path.with_name("b.saec"), index=lambda rows, *rest: ([6, 8, *rows[2:]], *rest))
    path.with_name("b.saec").write_bytes(lie)
    found = surveyed(path.with_name("b.saec"), decode=False)
    assert [(lost.start, lost.stop) for lost in found.lost] == [(0, 14)]


def test_damaged_tables_cost_every_row_unless_the_codec_is_given(layered: Codec, rows: Array, tmp_path: Path) -> None:
    path = write(tmp_path / "a.saec", rows, layered)
    with open_saec(path) as file:
        at, whole = file.embedded_at["TABL"], file.rows()
    flip(path, at + HEAD_BYTES + 5)
    found = surveyed(path)
    assert (found.decoded, found.chunks) == ("nothing", {})
    assert [damage.cost for damage in found.elsewhere] == ["every row, unless the codec is given (-c CODEC)"]
    found = surveyed(path, codec=layered)
    assert found.decoded == "rows"
    with open_saec(path) as file, pytest.raises(FormatError, match=r"TABL is corrupted.*will do instead \(-c\)"):
        file.rows()
    with open_saec(path, codec=layered) as file:
        np.testing.assert_array_equal(file.rows(), whole)


def test_frames_where_they_may_not_stand_are_told(layered: Codec, rows: Array, tmp_path: Path, rebuild: Any) -> None:
    path = write(tmp_path / "a.saec", rows, layered)
    for stray, told in ((("HEAD", True, b""), "may not stand here"), (("RCHK", False, b""), "may not stand here")):
        other = path.with_name("b.saec")
        other.write_bytes(rebuild(path, lambda parts, stray=stray: _before_chunk(parts, 1, stray)))
        found = surveyed(other)
        assert (found.chunks, len(found.elsewhere)) == ({}, 1)
        assert told in found.elsewhere[0].reason
    with open_saec(path) as file:
        chunk = path.read_bytes()[int(file.index.offsets[0]) :][: int(file.index.lengths[0])]
        end = extents(path)[-1][1]
    data = path.read_bytes()
    index, tail = data[end:-28], frame("TAIL", (end + len(chunk)).to_bytes(8, "little"))
    path.write_bytes(data[:end] + chunk + index + tail)
    assert "that the index does not list" in surveyed(path).elsewhere[0].reason


def _before_chunk(parts: list[Any], n: int, stray: Any) -> list[Any]:
    at = [i for i, (kind, *_) in enumerate(parts) if kind == "CHNK"][n]
    return [*parts[:at], stray, *parts[at:]]


def test_an_order_that_the_format_does_not_allow_is_told_when_all_frames_are_whole(
    codec: Codec, rows: Array, tmp_path: Path, take_apart: Callable[..., Any], put_together: Callable[..., bytes]
) -> None:
    path = write(tmp_path / "a.saec", rows, codec, appended=True)
    data = path.read_bytes()
    parts = take_apart(data)
    first_tail = next(i for i, (kind, *_) in enumerate(parts) if kind == "TAIL")
    parts[first_tail] = ("TAIL", True, (9).to_bytes(8, "little"))
    path.write_bytes(put_together(data[:8], parts))
    found = surveyed(path, decode=False)
    assert (found.chunks, len(found.elsewhere)) == ({}, 1)
    assert "a trailer that does not point to the index before it" in found.elsewhere[0].reason
