"""Rows written as they come are those of one encode, and nothing that was written is lost."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import saecodec
from saecodec.codec import Codec
from saecodec.errors import FormatError, InputError, MissingPieceError, OutputError, SaecodecError, UnsupportedError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.decoding import verify_file
from saecodec.formats.encoding import encode_array, fit_array
from saecodec.formats.file_lock import locked
from saecodec.formats.frame_writer import FrameWriter
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.goal import Goal
from saecodec.sae import SAE

Array = NDArray[Any]

N = 60


@pytest.fixture(scope="module")
def rows() -> Array:
    return np.random.default_rng(1).normal(size=(N, 8)).astype(np.float32)


@pytest.fixture(scope="module", params=["plain", "residual", "row_norm", "layer_norm", "context"])
def any_codec(request: pytest.FixtureRequest, make_sae: Callable[..., SAE]) -> Codec:
    """Codecs with each layer and column that a chunk may have."""
    kind = request.param
    sae = make_sae("topk")
    if kind in ("row_norm", "layer_norm"):
        sae = SAE(sae.w_dec, sae.b_dec, sae.encoder, sae.architecture, kind, normalization=kind)
    goal = Goal.of(prior="context", fit_seconds=1.0) if kind == "context" else Goal.of(residual=kind == "residual")
    train = np.random.default_rng(2).normal(size=(60, 10, 8)).astype(np.float32)
    return fit_array(MemoryArray(train), sae, goal, chunk_rows=256)


def blocks_of(rows: Array, cuts: list[int]) -> list[Array]:
    return np.split(rows, sorted(cuts))


def opened(path: Path, codec: Codec) -> SaecFile:
    return open_saec(path, codec=codec)


def encoded(path: Path, rows: Array, codec: Codec, **options: Any) -> bytes:
    encode_array(MemoryArray(rows), path, codec=codec, chunk_rows=16, force=True, **options)
    return path.read_bytes()


@pytest.mark.parametrize("cuts", [[], [1, 2, 3, 16, 33], [15, 17, 40, 40], list(range(N))])
@pytest.mark.parametrize("with_ids", [False, True])
def test_blocks_of_any_size_are_the_bytes_of_one_encode(
    tmp_path: Path, any_codec: Codec, rows: Array, cuts: list[int], with_ids: bool
) -> None:
    ids = np.arange(N) // 7 if with_ids else None
    wanted = encoded(tmp_path / "a.saec", rows, any_codec, seq=ids)
    with saecodec.create(tmp_path / "b.saec", any_codec, chunk_rows=16) as store:
        for part in blocks_of(np.arange(N), cuts):
            store.append(rows[part], None if ids is None else ids[part])
        assert not (tmp_path / "b.saec").exists()
    assert (tmp_path / "b.saec").read_bytes() == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.saec", "b.saec"]


@given(data=st.data())
def test_sequences_that_blocks_cut_are_the_chunks_of_one_encode(
    codec: Codec, rows: Array, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("s")
    ids = np.repeat(np.arange(N), data.draw(st.lists(st.integers(1, 40), min_size=N, max_size=N)))[:N]
    cuts = data.draw(st.lists(st.integers(0, N), max_size=4))
    wanted = encoded(folder / "a.saec", rows, codec, seq=ids)
    with saecodec.create(folder / "b.saec", codec, chunk_rows=16) as store:
        for part in blocks_of(np.arange(N), cuts):
            store.append(rows[part], ids[part])
    assert (folder / "b.saec").read_bytes() == wanted


def test_blocks_with_positions_make_an_array_with_positions(tmp_path: Path, any_codec: Codec, rows: Array) -> None:
    x = rows.reshape(6, 10, 8)
    wanted = encoded(tmp_path / "a.saec", x, any_codec)
    with saecodec.create(tmp_path / "b.saec", any_codec, chunk_rows=16) as store:
        store.append(x[:1])
        store.append(torch.from_numpy(x[1:4]))
        store.append(x[4:])
        assert store.shape == (6, 10, 8)
    assert (tmp_path / "b.saec").read_bytes() == wanted


def test_bfloat16_tensors_and_single_rows_are_taken(tmp_path: Path, codec: Codec, rows: Array) -> None:
    x = torch.from_numpy(rows).bfloat16()
    with saecodec.create(tmp_path / "a.saec", codec, dtype="bfloat16") as store:
        for row in x[:3]:
            store.append(row)
    with opened(tmp_path / "a.saec", codec) as file:
        assert (file.shape, file.dtype) == ((3, 8), "bfloat16")
        np.testing.assert_array_equal(
            np.concatenate([c.to_dense() for c in file.codes()]), codec.quantize(x[:3].float().numpy()).to_dense()
        )


def test_a_block_that_does_not_go_with_those_before_it_is_refused_and_not_taken(
    tmp_path: Path, codec: Codec, rows: Array
) -> None:
    bad = rows[:3].copy()
    bad[1, 1] = np.nan
    with saecodec.create(tmp_path / "a.saec", codec, chunk_rows=16) as store:
        store.append(rows[:20].reshape(2, 10, 8))
        with pytest.raises(InputError, match=r"holds blocks \(n, 10, d\).*\(n, d\).*reshape"):
            store.append(rows[:3])
        with pytest.raises(InputError, match="row 21 holds NaN"):
            store.append(bad[None])
        with pytest.raises(InputError, match="no sequence ids: leave them out"):
            store.append(rows[:10][None], np.zeros((1, 10), int))
        with pytest.raises(InputError, match="rows of 8 values"):
            store.append(rows[:, :5])
        store.append(rows[20:30][None])
    with opened(tmp_path / "a.saec", codec) as file:
        assert file.shape == (3, 10, 8)
    with pytest.raises(InputError, match="is closed"):
        store.append(rows)


def test_rows_with_heads_are_kept_as_rows_with_heads(tmp_path: Path, codec: Codec, rows: Array) -> None:
    with saecodec.create(tmp_path / "a.saec", codec, row_shape=(2, 4)) as store:
        store.append(rows.reshape(N, 2, 4))
        with pytest.raises(InputError, match=r"rows of shape \(2, 4\)"):
            store.append(rows)
    with opened(tmp_path / "a.saec", codec) as file:
        assert file.shape == (N, 2, 4)
    assert codec.sae is not None
    heads = codec.with_sae(replace(codec.sae, row_dims=2))
    with (
        saecodec.create(tmp_path / "b.saec", heads) as store,
        pytest.raises(InputError, match=r"row_shape=\(2, 4\)"),
    ):
        store.append(rows.reshape(N, 2, 4))
    with pytest.raises(InputError, match="are not the 8 values"):
        saecodec.create(tmp_path / "b.saec", codec, row_shape=(2, 5))


def test_flush_puts_what_waits_on_the_disk(tmp_path: Path, codec: Codec, rows: Array) -> None:
    with saecodec.create(tmp_path / "a.saec", codec, chunk_rows=16) as store:
        store.append(rows[:16])
        store.append(rows[16:20])
        size = (tmp_path / "a.saec.partial").stat().st_size
        store.flush()
        assert (tmp_path / "a.saec.partial").stat().st_size > size
        store.append(rows[20:])
    with opened(tmp_path / "a.saec", codec) as file:
        assert file.index.rows.tolist() == [16, 4, 16, 16, 8]
        verify_file(file)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_an_exception_leaves_all_rows_under_the_partial_name(tmp_path: Path, codec: Codec, rows: Array) -> None:
    def fail() -> None:
        with saecodec.create(tmp_path / "a.saec", codec, chunk_rows=16) as store:
            store.append(rows[:21])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        fail()
    assert not (tmp_path / "a.saec").exists()
    if hasattr(caught.value, "__notes__"):
        assert "a.saec.partial has the 21 rows" in caught.value.__notes__[0]
    with opened(tmp_path / "a.saec.partial", codec) as file:
        assert file.shape == (21, 8)
        verify_file(file)


def test_a_writer_that_nobody_closes_leaves_its_rows(tmp_path: Path, codec: Codec, rows: Array) -> None:
    store = saecodec.create(tmp_path / "a.saec", codec, chunk_rows=16)
    store.append(rows[:21])
    del store
    gc.collect()
    with opened(tmp_path / "a.saec.partial", codec) as file:
        assert file.n_rows == 21


def test_the_copy_in_a_forked_process_writes_nothing_when_it_ends(
    tmp_path: Path, codec: Codec, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = saecodec.create(tmp_path / "a.saec", codec, chunk_rows=16)
    store.append(rows[:21])
    before = (tmp_path / "a.saec.partial").read_bytes()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    del store
    gc.collect()
    assert (tmp_path / "a.saec.partial").read_bytes() == before


def test_a_full_disk_is_told_and_costs_no_rows(tmp_path: Path, codec: Codec, rows: Array) -> None:
    resource = pytest.importorskip("resource")
    encoded(tmp_path / "whole.saec", rows, codec)
    with opened(tmp_path / "whole.saec", codec) as file:
        room = int(file.index.offsets[-1]) + 30
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with saecodec.create(tmp_path / "a.saec", codec, chunk_rows=16) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
            try:
                store.append(rows)
                store.flush()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(OutputError, match=r"complete are in .*a\.saec\.partial"):
        fill()
    with opened(tmp_path / "a.saec.partial", codec) as file:
        assert file.n_rows == N  # what had failed is written once there is room
        verify_file(file)


@pytest.mark.parametrize("with_ids", [False, True])
def test_after_an_error_nothing_is_taken_twice(
    tmp_path: Path, codec: Codec, rows: Array, monkeypatch: pytest.MonkeyPatch, with_ids: bool
) -> None:
    ids = np.arange(N) // 7 if with_ids else None
    store, add, calls = saecodec.create(tmp_path / "a.saec", codec, chunk_rows=16), FrameWriter.add, []

    def failing(frames: FrameWriter, n_rows: int, parts: list[bytes]) -> None:
        calls.append(n_rows)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        add(frames, n_rows, parts)

    monkeypatch.setattr(FrameWriter, "add", failing)
    with pytest.raises(OutputError, match="No space left"):
        store.append(rows, ids)
    for again in (lambda: store.append(rows, ids), store.flush, lambda: store.append_array(MemoryArray(rows), ids)):
        with pytest.raises(InputError, match="no rows can follow: close"):
            again()
    store.close()
    with opened(tmp_path / "a.saec", codec) as file:
        assert 16 < file.n_rows == store.n_rows < 48
        kept = file.n_rows
        verify_file(file)
    part = None if ids is None else ids[:kept]
    assert (tmp_path / "a.saec").read_bytes() == encoded(tmp_path / "b.saec", rows[:kept], codec, seq=part)


def test_a_row_that_cannot_be_coded_costs_the_rows_of_its_chunk(tmp_path: Path, codec: Codec, rows: Array) -> None:
    bad = rows.copy()
    bad[20] = 1e7  # beyond the largest level
    store = saecodec.create(tmp_path / "a.saec", codec, chunk_rows=16)
    with pytest.raises(SaecodecError):
        store.append(bad)
    store.close()
    with opened(tmp_path / "a.saec", codec) as file:
        assert file.n_rows == store.n_rows == 16
        verify_file(file)


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path: Path, codec: Codec, rows: Array) -> None:
    store = saecodec.create(tmp_path / "a.saec", codec, chunk_rows=16)
    store.append(rows)
    (tmp_path / "a.saec").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="already exists"):
        store.close()
    assert (tmp_path / "a.saec").read_bytes() == b"theirs"
    assert (tmp_path / "a.saec.partial").read_bytes() == encoded(tmp_path / "b.saec", rows, codec)


def test_discard_leaves_nothing(tmp_path: Path, codec: Codec, rows: Array) -> None:
    with saecodec.create(tmp_path / "a.saec", codec) as store:
        store.append(rows)
        store.discard()
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_taken_are_refused(tmp_path: Path, codec: Codec, rows: Array) -> None:
    path = tmp_path / "a.saec"
    with saecodec.create(path, codec) as store:
        store.append(rows)
        with pytest.raises(OutputError, match="is being written by another process"):
            saecodec.create(path, codec, force=True)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        saecodec.create(path, codec)
    (tmp_path / "b.saec.partial").write_bytes(b"rows of a killed run")
    with pytest.raises(OutputError, match=r"saecodec recover .*b\.saec\.partial -o"):
        saecodec.create(tmp_path / "b.saec", codec)
    saecodec.create(tmp_path / "b.saec", codec, force=True).discard()
    assert not (tmp_path / "b.saec.partial").exists()
    with saecodec.create(path, codec, force=True) as store:
        store.append(rows[:5])
        assert path.read_bytes() == before
    with opened(path, codec) as file:
        assert file.n_rows == 5


@pytest.mark.parametrize(
    "options, error",
    [
        ({"embed": "sae"}, "expected one of"),
        ({"user": {"a": 1}}, "metadata is text"),
        ({"chunk_rows": 1 << 21}, "a chunk holds"),
        ({"weights": "int8"}, "embed it"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"search": "best"}, "search is 'best'"),
        ({"row_shape": (8,) + (1,) * 8}, "rows of 9 dimensions"),
        ({"chunk_rows": 0}, "got 0"),
    ],
)
def test_options_are_checked_before_any_file_is_there(
    tmp_path: Path, codec: Codec, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(InputError, match=error):
        saecodec.create(tmp_path / "a.saec", codec, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_code_is_refused(tmp_path: Path, codec: Codec, make_sae: Callable[..., SAE]) -> None:
    sae = codec.sae
    assert sae is not None
    with pytest.raises(InputError, match="needs a codec"):
        saecodec.create(tmp_path / "a.saec")
    with pytest.raises(MissingPieceError, match="whole SAE"):
        saecodec.create(tmp_path / "a.saec", codec, sae=SAE(sae.w_dec, sae.b_dec, None, "standard", "decoder"))
    scaled = SAE(sae.w_dec, sae.b_dec, sae.encoder, "standard", "s", normalization="sequence_norm")
    x = np.random.default_rng(0).normal(size=(4, 10, 8)).astype(np.float32)
    with pytest.raises(UnsupportedError, match="whole sequence"):
        saecodec.create(tmp_path / "a.saec", fit_array(MemoryArray(x), scaled))


# -- appending ---------------------------------------------------------------------------------------------------------


def test_an_append_adds_a_generation_and_every_generation_is_a_file(
    tmp_path: Path, any_codec: Codec, rows: Array
) -> None:
    path, x = tmp_path / "a.saec", rows.reshape(6, 10, 8)
    first = encoded(path, x[:2], any_codec, embed="tables")
    sae = any_codec.sae
    for part in (x[2:3], x[3:]):
        with saecodec.create(path, append=True, sae=sae) as store:
            store.append(part)
    data = path.read_bytes()
    assert data.startswith(first)
    with open_saec(path, sae=sae) as file:
        assert (file.shape, file.index.rows.sum()) == ((6, 10, 8), N)
        assert verify_file(file).decoded == "rows"
        codes = np.concatenate([c.to_dense() for c in file.codes()])
        columns = {name: np.concatenate([c.columns[name] for c in file.codes()]) for name in next(file.codes()).columns}
    encoded(tmp_path / "b.saec", x, any_codec, embed="tables")
    with open_saec(tmp_path / "b.saec", sae=sae) as file:
        np.testing.assert_array_equal(codes, np.concatenate([c.to_dense() for c in file.codes()]))
        for name, values in columns.items():
            np.testing.assert_array_equal(values, np.concatenate([c.columns[name] for c in file.codes()]))
    (tmp_path / "prefix.saec").write_bytes(first)
    with open_saec(tmp_path / "prefix.saec", sae=sae) as file:
        verify_file(file)


def test_an_append_without_rows_changes_nothing(tmp_path: Path, codec: Codec, rows: Array) -> None:
    before = encoded(tmp_path / "a.saec", rows, codec)
    with saecodec.create(tmp_path / "a.saec", codec, append=True) as store:
        assert store.n_rows == N
    assert (tmp_path / "a.saec").read_bytes() == before


def test_an_append_to_an_empty_file_decides_its_shape(tmp_path: Path, codec: Codec, rows: Array) -> None:
    with saecodec.create(tmp_path / "a.saec", codec):
        pass
    with saecodec.create(tmp_path / "a.saec", codec, append=True) as store:
        store.append(rows.reshape(3, 20, 8))
    with opened(tmp_path / "a.saec", codec) as file:
        assert file.shape == (3, 20, 8)
        verify_file(file)


def test_a_failed_append_keeps_its_rows_and_discard_takes_them_back(tmp_path: Path, codec: Codec, rows: Array) -> None:
    path = tmp_path / "a.saec"
    before = encoded(path, rows, codec)

    def fail(error: BaseException) -> None:
        with saecodec.create(path, codec, append=True) as store:
            store.append(rows[:21])
            if isinstance(error, ValueError):
                store.discard()
            raise error

    with pytest.raises(ValueError, match="taken back"):
        fail(ValueError("taken back"))
    assert path.read_bytes() == before
    with pytest.raises(KeyError):
        fail(KeyError())
    with opened(path, codec) as file:
        assert file.n_rows == N + 21
        verify_file(file)


def test_two_appends_at_a_time_are_refused(tmp_path: Path, codec: Codec, rows: Array) -> None:
    encoded(tmp_path / "a.saec", rows, codec)
    with (
        saecodec.create(tmp_path / "a.saec", codec, append=True),
        pytest.raises(OutputError, match=r"a\.saec: is being written by another process"),
    ):
        saecodec.create(tmp_path / "a.saec", codec, append=True)


def test_a_file_that_is_appended_to_is_not_replaced(tmp_path: Path, codec: Codec, rows: Array) -> None:
    path = tmp_path / "a.saec"
    encoded(path, rows, codec)
    late = saecodec.create(path, codec, force=True)
    late.append(rows[:3])
    with saecodec.create(path, codec, append=True) as store:
        store.append(rows)
        for replace_it in (late.close, lambda: saecodec.create(path, codec, force=True)):
            with pytest.raises(OutputError, match=r"a\.saec: is being written by another process"):
                replace_it()
    with opened(path, codec) as file:
        assert file.n_rows == 2 * N
    with opened(tmp_path / "a.saec.partial", codec) as file:
        assert file.n_rows == 3


def test_an_append_to_a_file_that_went_away_is_told(tmp_path: Path, codec: Codec, rows: Array) -> None:
    path = tmp_path / "a.saec"
    encoded(path, rows, codec)
    store = saecodec.create(path, codec, append=True)
    store.append(rows)
    (tmp_path / "b.saec").write_bytes(path.read_bytes())
    os.replace(tmp_path / "b.saec", path)
    with pytest.raises(OutputError, match="removed or replaced while rows were appended"):
        store.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_descriptor_that_a_forked_process_keeps_is_no_lock(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "a"
    path.write_bytes(b"")
    with locked(str(path), path):
        # What a fork's copy shares with its parent is the open file description, and so does a duplicate.
        mine = max(int(fd) for fd in os.listdir("/dev/fd") if _names(int(fd), path))
        kept = os.dup(mine)
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(kept)


def _names(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def test_an_append_refuses_what_the_file_decides_or_lacks(
    tmp_path: Path, codec: Codec, other_codec: Codec, rows: Array
) -> None:
    path = tmp_path / "a.saec"
    before = encoded(path, rows, codec, seq=np.arange(N))
    for options, error in (
        ({"dtype": "float16", "user": {}}, "the file decides dtype, user"),
        ({"force": True}, "the file decides force"),
    ):
        with pytest.raises(InputError, match=error):
            saecodec.create(path, codec, append=True, **options)
    with pytest.raises(SaecodecError, match="encoded with the codec"):
        saecodec.create(path, other_codec, append=True)
    with pytest.raises(MissingPieceError, match="needs the codec"):
        saecodec.create(path, append=True, sae=codec.sae)
    with pytest.raises(OutputError, match="no such file to append to"):
        saecodec.create(tmp_path / "none.saec", codec, append=True)
    with (
        saecodec.create(path, codec, append=True) as store,
        pytest.raises(InputError, match="have sequence ids: give them for these too"),
    ):
        store.append(rows)
    assert path.read_bytes() == before
    path.write_bytes(before[:-1])
    with pytest.raises(FormatError, match=r"saecodec recover .*a\.saec -o"):
        saecodec.create(path, codec, append=True)
    assert path.read_bytes() == before[:-1]
    assert os.listdir(tmp_path) == ["a.saec"]


def test_an_array_file_is_appended_in_pieces(tmp_path: Path, any_codec: Codec, rows: Array) -> None:
    x = rows.reshape(6, 10, 8)
    wanted = encoded(tmp_path / "a.saec", x, any_codec)
    with saecodec.create(tmp_path / "b.saec", any_codec, chunk_rows=16) as store:
        store.append_array(MemoryArray(x[:3]))
        store.append_array(MemoryArray(x[3:]))
    assert (tmp_path / "b.saec").read_bytes() == wanted
    bad = x.copy()
    bad[4, 4, 4] = np.inf
    with (
        saecodec.create(tmp_path / "c.saec", any_codec) as store,
        pytest.raises(InputError, match="<memory>: row 44 holds NaN or infinity"),
    ):
        store.append_array(MemoryArray(bad))


def test_a_first_block_that_is_refused_leaves_nothing_in_the_way(tmp_path: Path, codec: Codec) -> None:
    with pytest.raises(InputError), saecodec.create(tmp_path / "a.saec", codec) as store:
        store.append(np.zeros((3, 5), np.float32))
    assert list(tmp_path.iterdir()) == []
    with saecodec.create(tmp_path / "a.saec", codec) as store:
        store.append(np.ones((3, 8), np.float32))
    assert (tmp_path / "a.saec").exists()
