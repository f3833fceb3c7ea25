"""Whatever happened to a file, its whole chunks come back bit by bit."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import saecodec
from saecodec.codec import Codec
from saecodec.errors import FormatError, InputError, OutputError
from saecodec.formats import frame_scan
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.codecfile import save_codec
from saecodec.formats.decoding import verify_file
from saecodec.formats.encoding import encode_array
from saecodec.formats.recovering import Recovery, recover_file
from saecodec.formats.saec import open_saec
from saecodec.formats.survey import survey
from saecodec.frames import HEAD_BYTES, frame, frames

Array = NDArray[Any]
N = 60


@pytest.fixture(scope="module")
def rows() -> Array:
    return np.random.default_rng(1).normal(size=(N, 8)).astype(np.float32)


def chunks_of(path: Path) -> list[bytes]:
    """The frames of each chunk."""
    out: list[bytes] = []
    for head, payload in frames(path.read_bytes()[8:], "test"):
        data = frame(head.kind, bytes(payload), critical=head.critical)
        if head.kind == "CHNK":
            out.append(data)
        elif head.kind == "RCHK":
            out[-1] += data
    return out


def boundaries(path: Path) -> tuple[int, list[int]]:
    """Where the header and tables end, and where each chunk does, its residual included."""
    at, start, ends, before = 8, 0, [], ""
    for head, _ in frames(path.read_bytes()[8:], "test"):
        if head.kind in ("CHNK", "INDX") and not start:
            start = at
        at += 20 + head.length
        if head.kind == "RCHK":
            ends[-1] = at
        elif head.kind == "CHNK":
            ends.append(at)
        before = head.kind
    assert before == "TAIL"
    return start, ends


def recovered(folder: Path, data: bytes, codec: Codec) -> tuple[Recovery, list[bytes]]:
    """What comes back of the bytes, which opens and verifies."""
    (folder / "torn").write_bytes(data)
    result = recover_file(folder / "torn", folder / "out.saec", force=True)
    assert (folder / "torn").read_bytes() == data
    with open_saec(folder / "out.saec", codec=codec) as file:
        verify_file(file, decode=False)
        assert (file.n_rows, file.shape) == (result.rows, result.shape)
    assert result.chunks == len(chunks_of(folder / "out.saec"))
    return result, chunks_of(folder / "out.saec")


@pytest.mark.parametrize("embed", ["none", "tables"])
def test_a_file_cut_at_any_byte_gives_exactly_the_chunks_before(
    tmp_path: Path, layered: Codec, rows: Array, embed: str
) -> None:
    path = tmp_path / "a.saec"
    encode_array(MemoryArray(rows[:12]), path, codec=layered, chunk_rows=5, embed=embed)
    data, chunks, (start, ends) = path.read_bytes(), chunks_of(path), boundaries(path)
    for size in range(len(data) + 1):
        (tmp_path / "torn").write_bytes(data[:size])
        if size < start:
            with pytest.raises(FormatError, match=r"nothing can be recovered|not a \.saec file"):
                recover_file(tmp_path / "torn", tmp_path / "out.saec", force=True)
            continue
        result = recover_file(tmp_path / "torn", tmp_path / "out.saec", force=True)
        n = sum(end <= size for end in ends)
        assert chunks_of(tmp_path / "out.saec") == chunks[:n]
        assert (result.chunks, result.rows, result.kept_bytes) == (n, [0, 5, 10, 12][n], ([start, *ends])[n])
        assert result.complete == (size == len(data))
        torn = [end for end in (start, *ends) if end <= size][-1]
        assert all(a >= torn and b == size for a, b in result.skipped)
    assert (tmp_path / "out.saec").read_bytes() == data


@given(data=st.data())
def test_damage_costs_the_chunks_that_it_hits_and_no_others(
    layered: Codec, rows: Array, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("d")
    path = folder / "a.saec"
    encode_array(MemoryArray(rows), path, codec=layered, chunk_rows=7)
    whole, chunks, (start, ends) = bytearray(path.read_bytes()), chunks_of(path), boundaries(path)
    spots = data.draw(st.lists(st.integers(start, len(whole) - 1), min_size=1, max_size=4, unique=True))
    for spot in spots:
        whole[spot] ^= data.draw(st.integers(1, 255))
    kept = [
        chunk
        for chunk, a, b in zip(chunks, [start, *ends], ends, strict=False)
        if not any(a <= spot < b for spot in spots)
    ]
    result, found = recovered(folder, bytes(whole), layered)
    assert found == kept
    assert not result.complete
    assert all(any(a <= spot < b for a, b in result.skipped) for spot in spots)


def test_bytes_put_in_or_left_out_are_skipped(tmp_path: Path, layered: Codec, rows: Array) -> None:
    path = tmp_path / "a.saec"
    encode_array(MemoryArray(rows.reshape(6, 10, 8)), path, codec=layered, chunk_rows=16)
    data, chunks, (start, ends) = path.read_bytes(), chunks_of(path), boundaries(path)
    noise = b"CHNK\1\0\0\0INDX" + bytes(5)
    result, found = recovered(tmp_path, data[: ends[0]] + noise + data[ends[0] :], layered)
    assert (found, result.skipped) == (chunks, ((ends[0], ends[0] + len(noise)),))
    assert result.shape == (N, 8)  # no index told where these chunks are
    result, found = recovered(tmp_path, data[: start + 10] + data[ends[1] - 10 :], layered)
    assert found == chunks[2:]
    result, found = recovered(tmp_path, data, layered)
    assert (result.complete, result.shape, result.skipped) == (True, (6, 10, 8), ())


def test_frames_are_found_again_across_the_border_of_what_is_read_at_once(
    tmp_path: Path, layered: Codec, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.saec"
    encode_array(MemoryArray(rows), path, codec=layered, chunk_rows=16)
    data, chunks, (start, _) = path.read_bytes(), chunks_of(path), boundaries(path)
    monkeypatch.setattr(frame_scan, "_PIECE", 64)
    for n in range(130):
        assert recovered(tmp_path, data[:start] + bytes(n) + data[start:], layered)[1] == chunks


def test_a_length_that_lies_costs_no_memory_and_no_chunk(tmp_path: Path, layered: Codec, rows: Array) -> None:
    path = tmp_path / "a.saec"
    encode_array(MemoryArray(rows), path, codec=layered, chunk_rows=16)
    data, chunks, (start, _) = path.read_bytes(), chunks_of(path), boundaries(path)
    for length in (len(data) - start - 40, 1 << 62):
        lie = b"CHNK\1\0\0\0" + length.to_bytes(8, "little") + bytes(4)
        assert recovered(tmp_path, data[:start] + lie + data[start:], layered)[1] == chunks


def test_heads_that_each_claim_the_rest_of_the_file_do_not_take_for_ever(
    tmp_path: Path, codec: Codec, rows: Array
) -> None:
    encode_array(MemoryArray(rows), tmp_path / "a.saec", codec=codec, chunk_rows=16)
    data = (tmp_path / "a.saec").read_bytes()
    claim = frame("CHNK", bytes(20 * 1000))[:16] + b"none"
    (tmp_path / "b.saec").write_bytes(data + claim * 2000)
    with pytest.raises(FormatError, match=r"b\.saec: is too damaged.* 64 times"):
        recover_file(tmp_path / "b.saec", tmp_path / "out.saec")
    assert [path.name for path in tmp_path.glob("*out*")] == []
    (tmp_path / "b.saec").write_bytes(data + claim * 50 + bytes(20 * 1000))
    assert recover_file(tmp_path / "b.saec", tmp_path / "out.saec").rows == N


def test_a_torn_append_gives_the_older_generations_and_the_new_chunks(
    tmp_path: Path, layered: Codec, rows: Array
) -> None:
    path, x = tmp_path / "a.saec", rows.reshape(6, 10, 8)
    encode_array(MemoryArray(x[:2]), path, codec=layered, chunk_rows=10)
    first = path.stat().st_size
    for part in (x[2:3], x[3:]):
        with saecodec.create(path, layered, append=True) as store:
            store.append(part)
    data, chunks, (_, ends) = path.read_bytes(), chunks_of(path), boundaries(path)
    for size in (*range(first, len(data), 5), len(data)):
        result, found = recovered(tmp_path, data[:size], layered)
        n = sum(end <= size for end in ends)
        assert found == chunks[:n]
        assert result.shape == (n, 10, 8)
    assert result.complete
    assert (tmp_path / "out.saec").stat().st_size < len(data)  # one index


def test_what_lost_a_chunk_before_others_has_no_positions(tmp_path: Path, layered: Codec, rows: Array) -> None:
    path = tmp_path / "a.saec"
    encode_array(MemoryArray(rows.reshape(6, 10, 8)), path, codec=layered, chunk_rows=15)
    data, (start, _) = bytearray(path.read_bytes()), boundaries(path)
    data[start + 30] ^= 1
    assert recovered(tmp_path, bytes(data), layered)[0].shape == (N - 15, 8)


@given(data=st.data())
def test_the_rows_that_are_lost_are_told_where_an_index_lists_them(
    layered: Codec, rows: Array, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("d")
    path, sizes = folder / "a.saec", [7, 7, 7, 7, 7, 7, 7, 7, 4]
    encode_array(MemoryArray(rows), path, codec=layered, chunk_rows=7)
    whole, (start, ends) = bytearray(path.read_bytes()), boundaries(path)
    spots = data.draw(st.lists(st.integers(start, len(whole) - 1), min_size=1, max_size=6, unique=True))
    for spot in spots:
        whole[spot] ^= data.draw(st.integers(1, 255))
    hit = [any(a <= spot < b for spot in spots) for a, b in zip([start, *ends], ends, strict=False)]
    result, _ = recovered(folder, bytes(whole), layered)
    if any(ends[-1] <= spot < len(whole) - 28 for spot in spots):  # the index itself
        assert (result.lost, result.lost_known) == ((), False)
        return
    assert result.lost_known
    lost = np.zeros(N, bool)
    for a, b in result.lost:
        assert not lost[max(a - 1, 0) : b].any()  # in order, and merged
        lost[a:b] = True
    np.testing.assert_array_equal(lost, np.repeat(hit, sizes))


def test_rows_of_an_append_that_no_index_lists_may_be_lost_unseen(tmp_path: Path, layered: Codec, rows: Array) -> None:
    path = tmp_path / "a.saec"
    encode_array(MemoryArray(rows[:30]), path, codec=layered, chunk_rows=10)
    first = path.stat().st_size
    with saecodec.create(path, layered, append=True) as store:
        store.append(rows[30:])
    data, (start, ends) = path.read_bytes(), boundaries(path)
    torn = bytearray(data[: ends[5] - 3])
    torn[start + 30] ^= 1
    result, _ = recovered(tmp_path, bytes(torn), layered)
    assert (result.lost, result.lost_known, result.rows) == (((0, 10),), False, 40)
    torn = torn[: ends[4]]  # behind a whole chunk: nothing is half there
    assert recovered(tmp_path, bytes(torn), layered)[0].lost_known
    moved = data[:start] + b"noise" + data[start:first]
    result, _ = recovered(tmp_path, moved, layered)
    assert (result.lost, result.lost_known, result.rows) == ((), False, 30)
    result, _ = recovered(tmp_path, data, layered)
    assert (result.lost, result.lost_known, result.complete) == ((), True, True)


def test_a_place_that_the_disk_cannot_read_is_named(
    tmp_path: Path, codec: Codec, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_array(MemoryArray(rows), tmp_path / "a.saec", codec=codec, chunk_rows=16)
    pread, bad = os.pread, (tmp_path / "a.saec").stat().st_size // 2

    def broken(descriptor: int, n: int, at: int) -> bytes:
        if at <= bad < at + n:
            raise OSError(errno.EIO, "Input/output error")
        return pread(descriptor, n, at)

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(InputError, match=r"a\.saec: cannot be read at offset .*ddrescue"):
        recover_file(tmp_path / "a.saec", tmp_path / "out.saec")
    assert not (tmp_path / "out.saec").exists()


def test_nothing_is_written_where_nothing_can_be_recovered(tmp_path: Path, codec: Codec, rows: Array) -> None:
    path, out = tmp_path / "a.saec", tmp_path / "out.saec"
    encode_array(MemoryArray(rows), path, codec=codec, embed="tables")
    data = bytearray(path.read_bytes())
    data[boundaries(path)[0] - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match="of TABL only nothing is whole"):
        recover_file(path, out)
    with pytest.raises(OutputError, match="already exists"):
        recover_file(path, path)
    with pytest.raises(OutputError, match="is the input"):
        recover_file(path, path, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.saec"]
    assert path.read_bytes() == data


def test_frames_of_later_versions_are_kept(tmp_path: Path, codec: Codec, rows: Array) -> None:
    path = tmp_path / "a.saec"
    encode_array(MemoryArray(rows), path, codec=codec, chunk_rows=16)
    data, (_, ends) = path.read_bytes(), boundaries(path)
    later = frame("note", b"from later", critical=False)
    _, found = recovered(tmp_path, data[: ends[0]] + later + data[ends[0] : ends[1] + 3], codec)
    assert len(found) == 2
    assert later in (tmp_path / "out.saec").read_bytes()


def test_a_damaged_frame_of_a_later_version_costs_nothing(
    tmp_path: Path, layered: Codec, rows: Array, rebuild: Any
) -> None:
    path = tmp_path / "a.saec"
    encode_array(MemoryArray(rows), path, codec=layered, chunk_rows=16, embed="decoder")
    chunks, note = chunks_of(path), b"from later"
    kinds = [head.kind for head, _ in frames(path.read_bytes()[8:], "test")]
    with open_saec(path) as file:
        whole = file.rows()
    for place in range(1, kinds.index("CHNK") + 1):  # behind the header, between the tables, before the chunks
        later = rebuild(path, lambda parts: [*parts[:place], ("note", False, note), *parts[place:]])  # noqa: B023
        at = later.index(note)
        damaged = later.replace(note, b"from_later")
        path.with_name("b.saec").write_bytes(damaged)
        with open_saec(path.with_name("b.saec")) as file:
            np.testing.assert_array_equal(file.rows(), whole)
            with pytest.raises(FormatError, match="frame note is corrupted") as met:
                verify_file(file, decode=False)
            found = survey(file, met.value)
            assert (found.decoded, found.chunks) == ("rows", {})
            assert [(each.start, each.stop, each.cost) for each in found.elsewhere] == [
                (at - HEAD_BYTES, at + len(note), "no rows")
            ]
        result, kept = recovered(tmp_path, damaged, layered)
        assert kept == chunks
        assert result.skipped == ((at - HEAD_BYTES, at + len(note)),)
        assert (tmp_path / "out.saec").read_bytes() == path.read_bytes()


def test_damage_that_may_be_a_frame_which_is_needed_is_not_stepped_over(
    tmp_path: Path, codec: Codec, rows: Array, rebuild: Any
) -> None:
    path = tmp_path / "a.saec"
    encode_array(MemoryArray(rows), path, codec=codec, embed="tables")
    later = rebuild(path, lambda parts: [parts[0], ("NEXT", True, b"from later"), *parts[1:]])
    path.write_bytes(later.replace(b"from later", b"from_later"))
    with pytest.raises(FormatError, match="frame NEXT is corrupted"):
        open_saec(path)
    with pytest.raises(FormatError, match="of TABL only nothing is whole"):
        recover_file(path, tmp_path / "out.saec")


def test_frames_that_may_not_stand_where_they_do_are_skipped(tmp_path: Path, codec: Codec, rows: Array) -> None:
    path = tmp_path / "a.saec"
    encode_array(MemoryArray(rows), path, codec=codec, chunk_rows=16, embed="tables")
    data, chunks, (start, ends) = path.read_bytes(), chunks_of(path), boundaries(path)
    for kind in ("RCHK", "TAIL", "HEAD", "SAEW", "NEXT"):
        stray = frame(kind, b"", critical=kind != "RCHK")
        for at in (ends[0], start) if kind in ("RCHK", "TAIL") else (ends[0],):
            result, found = recovered(tmp_path, data[:at] + stray + data[at:], codec)
            assert found == chunks
            assert result.skipped == (() if kind == "TAIL" else ((at, at + len(stray)),))


# -- processes that are killed -----------------------------------------------------------------------------------------

SCRIPT = """
import sys
import numpy as np
import saecodec
codec = saecodec.load_codec(sys.argv[1], "cpu")
rows = np.load(sys.argv[2])
append = sys.argv[4] == "append"
options = {"append": True} if append else {"chunk_rows": 8}
with saecodec.create(sys.argv[3], codec, **options) as store:
    print("begun", flush=True)
    while True:
        store.append(rows)
"""


@pytest.mark.parametrize("how", ["create", "append"])
def test_a_process_that_is_killed_loses_no_complete_chunk(tmp_path: Path, codec: Codec, rows: Array, how: str) -> None:
    save_codec(codec, tmp_path / "c.saecodec", embed_sae=True)
    np.save(tmp_path / "rows.npy", rows[:40])
    path = tmp_path / "a.saec"
    encode_array(
        MemoryArray(np.concatenate([rows[:40]] * 20)), tmp_path / "undisturbed.saec", codec=codec, chunk_rows=8
    )
    wanted = chunks_of(tmp_path / "undisturbed.saec")
    left = path if how == "append" else tmp_path / "a.saec.partial"
    if how == "append":
        encode_array(MemoryArray(rows[:40]), path, codec=codec, chunk_rows=8)
    for delay in (0.0, 0.02) if how == "append" else (0.01, 0.04):
        before = path.read_bytes() if how == "append" else b""
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, tmp_path / "c.saecodec", tmp_path / "rows.npy", path, how],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        with pytest.raises(OutputError, match="is being written by another process"):
            saecodec.create(path, codec, append=how == "append")
        while left.stat().st_size < len(before) + 1000:
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert left.read_bytes().startswith(before)
        result = recover_file(left, tmp_path / "out.saec", force=True)
        found = chunks_of(tmp_path / "out.saec")
        assert found == (wanted * (1 + len(found) // len(wanted)))[: len(found)]
        assert result.rows == 8 * len(found) > (40 if how == "append" else 0)
        with open_saec(tmp_path / "out.saec", codec=codec) as file:
            verify_file(file)
        if how == "append":
            path.write_bytes((tmp_path / "out.saec").read_bytes())
            with saecodec.create(path, codec, append=True) as store:  # and it goes on
                store.append(rows[: -result.rows % 40 or 40])
            encode_array(MemoryArray(rows[:40]), path, codec=codec, chunk_rows=8, force=True)
        else:
            left.unlink()


def test_what_an_encode_has_done_can_be_recovered_at_any_moment(tmp_path: Path, layered: Codec, rows: Array) -> None:
    seen: list[int] = []

    def progress(stage: str, done: int, total: int, note: str = "", /) -> None:
        if stage == "encode":
            result = recover_file(tmp_path / "a.saec.partial", tmp_path / "out.saec", force=True)
            assert (result.rows, result.skipped, result.complete) == (done, (), False)
            seen.append(done)

    encode_array(MemoryArray(rows), tmp_path / "a.saec", codec=layered, chunk_rows=16, progress=progress)
    assert seen == [16, 32, 48, 60]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.saec", "out.saec"]
