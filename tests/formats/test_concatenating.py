"""Files of one codec become one file, whose chunks are theirs byte by byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import saecodec
from saecodec.codec import Codec
from saecodec.errors import FormatError, InputError, OutputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.concatenating import concatenate_files
from saecodec.formats.decoding import verify_file
from saecodec.formats.encoding import encode_array
from saecodec.formats.encoding_latents import encode_latents
from saecodec.formats.frame_file import TRAILER
from saecodec.formats.frame_writer import FrameWriter
from saecodec.formats.index import Index
from saecodec.formats.latent_source import MemoryLatents
from saecodec.formats.saec import open_saec
from saecodec.frames import frame

Array = NDArray[Any]
N = 60


@pytest.fixture(scope="module")
def rows() -> Array:
    return np.random.default_rng(1).normal(size=(N, 8)).astype(np.float32)


def encoded(path: Path, rows: Array, codec: Codec, **options: Any) -> Path:
    encode_array(MemoryArray(rows), path, codec=codec, chunk_rows=options.pop("chunk_rows", 16), **options)
    return path


@pytest.mark.parametrize("embed", ["none", "tables", "decoder"])
def test_shards_become_the_bytes_of_one_encode(tmp_path: Path, layered: Codec, rows: Array, embed: str) -> None:
    parts = [rows[:16], rows[16:48], rows[48:]]
    paths = [encoded(tmp_path / f"{i}.saec", part, layered, embed=embed) for i, part in enumerate(parts)]
    before = [path.read_bytes() for path in paths]
    done = concatenate_files(paths, tmp_path / "out.saec")
    whole = encoded(tmp_path / "whole.saec", rows, layered, embed=embed)
    assert (tmp_path / "out.saec").read_bytes() == whole.read_bytes()
    assert (done.chunks, done.rows, done.shape, done.warnings) == (4, N, (N, 8), ())
    assert [path.read_bytes() for path in paths] == before
    with open_saec(tmp_path / "out.saec", codec=layered) as file:
        verify_file(file)


@pytest.mark.parametrize(
    "shapes, shape",
    [
        ([(2, 10), (4, 10)], (6, 10)),
        ([(2, 10), (5, 8)], (60,)),
        ([(20,), (4, 10)], (60,)),
        ([(0, 10), (6, 10), (0,)], (6, 10)),
        ([(2, 3, 10)], (2, 3, 10)),
        ([(), (59,)], (60,)),
    ],
)
def test_equal_inner_dimensions_stay(
    tmp_path: Path, codec: Codec, rows: Array, shapes: list[tuple[int, ...]], shape: tuple[int, ...]
) -> None:
    paths, at = [], 0
    for i, leading in enumerate(shapes):
        n = int(np.prod(leading))
        paths.append(encoded(tmp_path / f"{i}.saec", rows[at : at + n].reshape(*leading, 8), codec))
        at += n
    assert concatenate_files(paths, tmp_path / "out.saec").shape == (*shape, 8)
    with open_saec(tmp_path / "out.saec", codec=codec) as file:
        assert file.shape == (*shape, 8)
        verify_file(file)
        np.testing.assert_array_equal(
            np.concatenate([codes.to_dense() for codes in file.codes()]), codec.quantize(rows).to_dense()
        )


def test_one_file_loses_its_older_indices(tmp_path: Path, layered: Codec, rows: Array) -> None:
    path = encoded(tmp_path / "a.saec", rows[:32], layered)
    with saecodec.create(path, layered, append=True) as store:
        store.append(rows[32:])
    concatenate_files([path], tmp_path / "out.saec")
    assert (tmp_path / "out.saec").read_bytes() == encoded(tmp_path / "b.saec", rows, layered).read_bytes()


def test_the_first_file_says_what_is_embedded_and_metadata_is_gathered(
    tmp_path: Path, codec: Codec, rows: Array
) -> None:
    a = encoded(tmp_path / "a.saec", rows[:20], codec, embed="decoder", user={"layer": "3", "day": "1"})
    b = encoded(tmp_path / "b.saec", rows[20:], codec, chunk_rows=32, user={"layer": "3", "day": "2", "by": "me"})
    done = concatenate_files([a, b], tmp_path / "out.saec")
    assert done.warnings == (f"{b}: its 'day' '2' is left out: '1' came first",)
    with open_saec(tmp_path / "out.saec") as file:
        assert file.header.user == {"layer": "3", "day": "1", "by": "me"}
        assert (file.header.embed, file.header.chunk_rows) == ("decoder", 32)
        assert verify_file(file).decoded == "rows"
    concatenate_files([b, a], tmp_path / "out.saec", force=True)
    with open_saec(tmp_path / "out.saec") as file:
        assert file.header.embed == "none"


def test_files_that_do_not_go_together_are_refused_by_what_differs(
    tmp_path: Path, codec: Codec, other_codec: Codec, rows: Array
) -> None:
    a = encoded(tmp_path / "a.saec", rows, codec)
    others = {
        "codec_id": encoded(tmp_path / "b.saec", rows, other_codec),
        "dtype": encoded(tmp_path / "c.saec", rows.astype(np.float16), codec),
        "columns": encoded(tmp_path / "d.saec", rows, codec, seq=np.arange(N)),
    }
    indptr = np.arange(N + 1)
    latents = MemoryLatents(indptr, np.zeros(N, np.int32), np.ones(N, np.float32), (N, 8), dtype="float32", columns={})
    encode_latents(latents, tmp_path / "e.saec", step="0.4rms")
    others["decoder_id"] = tmp_path / "e.saec"
    for fact, path in others.items():
        with pytest.raises(InputError, match=rf"{path.name}: {fact} is .* that of .*a\.saec is"):
            concatenate_files([a, path], tmp_path / "out.saec")
    assert not (tmp_path / "out.saec").exists()
    sae = codec.sae
    assert sae is not None
    heads = encoded(tmp_path / "h.saec", rows.reshape(N, 2, 4), codec.with_sae(replace(sae, row_dims=2)))
    with pytest.raises(InputError, match=r"row_shape is \(2, 4\)"):
        concatenate_files([a, heads], tmp_path / "out.saec")


def test_outputs_are_safe(tmp_path: Path, codec: Codec, rows: Array) -> None:
    a, b = (encoded(tmp_path / f"{name}.saec", rows, codec) for name in "ab")
    before = a.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        concatenate_files([a, a], b)
    with pytest.raises(OutputError, match="is an input"):
        concatenate_files([b, a], a, force=True)
    damaged = bytearray(before)
    damaged[-100] ^= 1
    b.write_bytes(damaged)
    with pytest.raises(FormatError):
        concatenate_files([a, b], tmp_path / "out.saec")
    with pytest.raises(InputError, match="cannot be opened"):
        concatenate_files([a, tmp_path / "none.saec"], tmp_path / "out.saec")
    with pytest.raises(InputError, match="no files"):
        concatenate_files([], tmp_path / "out.saec")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.saec", "b.saec"]
    assert a.read_bytes() == before


def older(index: bytes, trailer: bytes) -> bytes:
    return frame("INDX", index) + frame("TAIL", trailer)


@pytest.mark.parametrize(
    "generation, error",
    [
        (lambda at, index: older(index((2, 16)), TRAILER.pack(at)), None),
        (lambda at, index: older(index((32,))[:-1], TRAILER.pack(at)), "index"),
        (lambda at, index: older(index((33,)), TRAILER.pack(at)), "contradict each other"),
        (lambda at, index: older(index((16,), 1), TRAILER.pack(at)), "lists 1 chunks, the file has 2; chunk 1 differs"),
        (lambda at, index: older(index((32,)), TRAILER.pack(8)), "does not point to the index before it"),
        (lambda at, index: frame("TAIL", TRAILER.pack(at)), "does not point to the index before it"),
        (lambda at, index: frame("INDX", index((32,))), "CHNK frame stands between an index and its trailer"),
        (lambda at, index: older(index((32,)), TRAILER.pack(at)) + frame("TABL", b""), "stands behind the first chunk"),
    ],
)
def test_an_older_generation_that_is_no_file_is_refused(
    tmp_path: Path,
    codec: Codec,
    rows: Array,
    generation: Callable[[int, Callable[..., bytes]], bytes],
    error: str | None,
) -> None:
    path = encoded(tmp_path / "a.saec", rows, codec)
    with open_saec(path, codec=codec) as file:
        index, data = file.index, path.read_bytes()
    ends = index.offsets + index.lengths

    def old_index(leading: tuple[int, ...], n: int = 2) -> bytes:
        return Index(leading, index.rows[:n], index.offsets[:n], index.lengths[:n]).to_bytes()

    with open(tmp_path / "b.saec", "wb") as out:
        writer = FrameWriter(out)
        writer.write(data[: index.offsets[0]])
        for i, n_rows in enumerate(index.rows.tolist()):
            if i == 2:
                writer.write(generation(writer.at, old_index))
            writer.add(n_rows, [data[index.offsets[i] : ends[i]]])
        writer.finish((N,))
    if error is None:
        concatenate_files([tmp_path / "b.saec"], tmp_path / "out.saec")
        assert (tmp_path / "out.saec").read_bytes() == data
        return
    with pytest.raises(FormatError, match=error):
        concatenate_files([tmp_path / "b.saec"], tmp_path / "out.saec")
    with open_saec(tmp_path / "b.saec", codec=codec) as file, pytest.raises(FormatError, match=error):
        verify_file(file, decode=False)
    assert not (tmp_path / "out.saec").exists()


def test_an_input_that_grows_meanwhile_is_refused(
    tmp_path: Path, layered: Codec, rows: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [encoded(tmp_path / f"{i}.saec", rows[:48].reshape(4, 12, 8), layered) for i in range(2)]

    def growing(self: FrameWriter, *_: Any) -> None:
        monkeypatch.undo()
        FrameWriter.__init__(self, *_)
        with saecodec.create(paths[1], layered, append=True) as store:
            store.append(rows[:24].reshape(2, 12, 8))

    monkeypatch.setattr(FrameWriter, "__init__", growing)
    with pytest.raises(FormatError, match=r"1\.saec: changed while it was read"):
        concatenate_files(paths, tmp_path / "out.saec")
    assert not (tmp_path / "out.saec").exists()
