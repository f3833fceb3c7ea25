"""Rows of coded files, read as arrays are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.codec import Codec
from saecodec.errors import FormatError, IdentityError, InputError, MissingPieceError
from saecodec.formats.array_source import ArraySource, MemoryArray, rows_for
from saecodec.formats.arrays import open_array
from saecodec.formats.encoding import encode_array
from saecodec.formats.encoding_latents import encode_latents
from saecodec.formats.latent_source import MemoryLatents
from saecodec.formats.saec import open_saec
from saecodec.formats.saec_source import SaecRows, open_rows
from saecodec.sae import SAE

Rows = npt.NDArray[np.float32]
Make = Callable[..., Path]


def read(source: ArraySource, rows: int = 7) -> Rows:
    return np.concatenate(list(source.batches(rows)))


def decoded(path: Path, sae: SAE | None = None) -> Rows:
    with open_saec(path, sae=sae) as file:
        return file.rows()


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory, sae: SAE, x: Rows) -> Path:
    path = tmp_path_factory.mktemp("coded") / "x.saec"
    encode_array(MemoryArray(x.reshape(4, 10, 8).astype(np.float16)), path, sae=sae, chunk_rows=16)
    return path


@given(st.lists(st.integers(0, 40), max_size=6))
def test_batches_of_any_size_are_the_decoded_rows(coded: Path, sae: SAE, cuts: list[int]) -> None:
    source = open_rows(coded, sae=sae)
    assert (source.shape, source.dtype, source.n_rows, source.row_shape) == ((4, 10, 8), "float16", 40, (8,))
    sizes = np.diff([0, *sorted(cuts), 40]).tolist()
    batches = list(source.batches(sizes))
    assert [batch.shape for batch in batches] == [(n, 8) for n in sizes]
    assert all(batch.dtype == np.float32 and batch.flags.c_contiguous for batch in batches)
    np.testing.assert_array_equal(np.concatenate(batches), decoded(coded, sae))


def test_every_pass_begins_anew_and_a_batch_is_the_callers_own(coded: Path, sae: SAE) -> None:
    source, whole = SaecRows(coded, sae=sae), decoded(coded, sae)
    passes = [source.batches(16), source.batches(16)]
    for start in (0, 16, 32):
        for batches in passes:
            batch = next(batches)
            np.testing.assert_array_equal(batch, whole[start : start + 16])
            batch += 1


@pytest.mark.parametrize("embed, given", [("decoder", ""), ("tables", "sae"), ("none", "sae codec"), ("none", "codec")])
def test_what_the_file_does_not_embed_is_given(saec: Make, sae: SAE, codec: Codec, embed: str, given: str) -> None:
    path = saec(embed)
    pieces: dict[str, Any] = {name: piece for name, piece in (("sae", sae), ("codec", codec)) if name in given.split()}
    with open_saec(path, **pieces) as file:
        np.testing.assert_array_equal(read(open_rows(path, **pieces)), file.rows())


def test_what_is_missing_or_another_is_said_on_opening(
    saec: Make, sae: SAE, other_sae: SAE, other_codec: Codec
) -> None:
    with pytest.raises(MissingPieceError, match=r"tables.*\.saec: needs SAE 'tiny-standard-0'"):
        open_rows(saec("tables"))
    with pytest.raises(MissingPieceError, match=r"needs the codec"):
        open_rows(saec("none"), sae=sae)
    with pytest.raises(IdentityError, match="the SAE given"):
        open_rows(saec("tables"), sae=other_sae)
    with pytest.raises(IdentityError, match="the codec given"):
        open_rows(saec("none"), codec=other_codec)
    with pytest.raises(InputError, match=r"nothing\.saec: cannot be opened"):
        open_rows("nothing.saec")
    with pytest.raises(InputError, match=r"has no key; 'x' was given"):
        open_rows(saec("decoder"), "x")


def test_a_file_of_latents_is_refused_by_its_own_message(tmp_path: Path) -> None:
    latents = MemoryLatents(np.arange(7), np.arange(6), np.ones(6, np.float16), (6, 6))
    encode_latents(latents, tmp_path / "z.saec")
    with pytest.raises(InputError, match=r"z\.saec: holds feature activations, not rows"):
        open_rows(tmp_path / "z.saec")


def test_damage_is_named_where_it_is_and_the_rows_before_it_are_read(saec: Make) -> None:
    path = saec("decoder")
    source, whole = open_rows(path), decoded(path)
    with open_saec(path) as file:
        at = int(file.index.offsets[1] + file.index.lengths[1]) - 3
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)
    batches = source.batches(16)
    np.testing.assert_array_equal(next(batches), whole[:16])
    with pytest.raises(FormatError, match=r"chunk 1 \(rows 16:32\)"):
        next(batches)
    path.write_bytes(b"no file of ours")
    with pytest.raises(FormatError, match=r"not a \.saec file"):
        read(source)


def test_a_file_that_changes_before_it_is_read_is_named(saec: Make, x: Rows) -> None:
    path = saec("decoder")
    source = open_rows(path)
    path.write_bytes(saec("decoder", rows=x[:9]).read_bytes())
    with pytest.raises(InputError, match=r"\.saec: has changed since it was opened"):
        read(source)


@pytest.mark.parametrize("shape", [(8,), (0, 8), (3, 0, 8)])
def test_one_row_or_none(tmp_path: Path, sae: SAE, shape: tuple[int, ...]) -> None:
    encode_array(MemoryArray(np.ones(shape, np.float32)), tmp_path / "x.saec", sae=sae)
    source = open_rows(tmp_path / "x.saec", sae=sae)
    assert source.shape == shape
    assert sum(map(len, source.batches(5))) == source.n_rows == int(np.prod(shape[:-1]))


def test_rows_of_several_heads_are_joined_as_those_of_any_array(tmp_path: Path, sae: SAE, x: Rows) -> None:
    attention = replace(sae, row_dims=2)
    encode_array(MemoryArray(x.reshape(40, 2, 4)), tmp_path / "x.saec", sae=attention, chunk_rows=16)
    source, whole = open_rows(tmp_path / "x.saec", sae=attention), decoded(tmp_path / "x.saec", attention)
    assert source.shape == (40, 2, 4)
    np.testing.assert_array_equal(read(source), whole.reshape(80, 4))
    np.testing.assert_array_equal(read(rows_for(source, 8, 2)), whole)


def test_a_file_is_read_by_its_url(saec: Make) -> None:
    fsspec = pytest.importorskip("fsspec")
    path = saec("decoder")
    with fsspec.open("memory://rows/x.saec", "wb") as file:
        file.write(path.read_bytes())
    source = open_rows("memory://rows/x.saec")
    np.testing.assert_array_equal(read(source), decoded(path))
    assert not source.lies_in(path)


def test_shards_in_a_folder_or_of_a_pattern_are_one_array(tmp_path: Path, sae: SAE, codec: Codec, x: Rows) -> None:
    folder = tmp_path / "shards"
    (folder / "more").mkdir(parents=True)
    for number in range(11):  # in the order of the alphabet 10 comes before 2
        part = MemoryArray(x[3 * number : 3 * number + 3])
        encode_array(part, folder / f"s{number}.saec", codec=codec, embed="tables", chunk_rows=2)
    (folder / "summary.json").write_text("{}")
    encode_array(MemoryArray(x[33:]), folder / "more" / "t.saec", codec=codec, embed="tables")
    rows = np.concatenate([decoded(folder / f"s{number}.saec", sae) for number in range(11)])
    for path in (folder, folder / "*.saec", folder / "s*.saec"):
        source = open_rows(path, sae=sae)
        assert (source.path, source.shape) == (str(path), (33, 8))
        assert source.lies_in(folder / "s3.saec")
        np.testing.assert_array_equal(read(source), rows)
    assert open_rows(folder / "**" / "*.saec", sae=sae).shape == x.shape
    with pytest.raises(MissingPieceError, match=r"s0\.saec: needs SAE"):
        open_rows(folder)
    with pytest.raises(InputError, match="holds no array files"):
        open_rows(tmp_path / "*.saec")


def test_every_other_input_is_an_array_and_a_coded_file_is_none_to_other_commands(
    saec: Make, tmp_path: Path, sae: SAE, x: Rows
) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "a.npy", x)
    np.savez(tmp_path / "two.npz", a=x, b=x + 1)
    coded = saec("decoder")
    (folder / "a.saec").write_bytes(coded.read_bytes())  # beside the array that it was made from
    for path in (folder / "a.npy", folder, folder / "*.npy"):
        np.testing.assert_array_equal(read(open_rows(path, sae=sae)), x)
    np.testing.assert_array_equal(read(open_rows(tmp_path / "two.npz", "b")), x + 1)
    with pytest.raises(InputError, match=r"has the extension '\.saec'"):
        open_array(coded)


def test_memory_holds_a_part_of_the_rows(tmp_path: Path, sae: SAE) -> None:
    x = np.random.default_rng(0).normal(size=(40_000, 8)).astype(np.float32)
    encode_array(MemoryArray(x), tmp_path / "x.saec", sae=sae, chunk_rows=512)
    source = open_rows(tmp_path / "x.saec", sae=sae)
    tracemalloc.start()
    try:
        n_rows = sum(len(batch) for batch in source.batches(512))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert n_rows == 40_000
    assert peak < x.nbytes / 2
