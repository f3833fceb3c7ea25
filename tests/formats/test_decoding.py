"""Decoding into array files, and verification."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch

from saecodec.codec import Codec
from saecodec.errors import FormatError, InputError, MissingPieceError, OutputError, SaecodecError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.arrays import open_array
from saecodec.formats.decoding import decode_file, verify_file
from saecodec.formats.encoding import encode_array
from saecodec.formats.saec import open_saec
from saecodec.formats.saec_writer import SaecWriter
from saecodec.layers import Layers
from saecodec.sae import SAE

FORMATS = [".npy", ".npz", ".safetensors", ".pt", ".pth"]
Rows = npt.NDArray[np.float32]
Make = Callable[..., Path]


def read(path: Path) -> npt.NDArray[np.float32]:
    source = open_array(path)
    flat = np.concatenate([np.zeros((0, source.width), np.float32), *source.batches(7)])
    return flat.reshape(source.shape)


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory, codec: Codec, x: Rows) -> Path:
    """`x` as (2, 4, 5, 8), in float16, embedding what decoding needs."""
    path = tmp_path_factory.mktemp("decoding") / "shaped.saec"
    encode_array(
        MemoryArray(x.reshape(2, 4, 5, 8).astype(np.float16)), path, codec=codec, embed="decoder", chunk_rows=7
    )
    return path


# -- decoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_every_format_holds_the_rows_in_the_shape_and_dtype_of_the_input(
    shaped: Path, tmp_path: Path, extension: str, dtype: str | None
) -> None:
    out = tmp_path / f"x{extension}"
    with open_saec(shaped) as file:
        assert decode_file(file, out, dtype=dtype) == (2, 4, 5, 8)
        expected = file.rows().reshape(2, 4, 5, 8)
    assert open_array(out).dtype == (dtype or "float16")
    np.testing.assert_array_equal(read(out), expected if dtype else expected.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("extension", [".safetensors", ".pt", ".pth"])
def test_bfloat16_goes_in_and_comes_out(codec: Codec, x: Rows, tmp_path: Path, extension: str) -> None:
    safetensors.torch.save_file({"x": torch.from_numpy(x).bfloat16()}, tmp_path / "in.safetensors")
    source = open_array(tmp_path / "in.safetensors")
    encode_array(source, tmp_path / "x.saec", codec=codec)
    with open_saec(tmp_path / "x.saec", codec=codec) as file:
        assert file.dtype == "bfloat16"
        decode_file(file, tmp_path / f"out{extension}")
        expected = torch.from_numpy(file.rows()).bfloat16().float().numpy()
        assert verify_file(file, against=source).distortion.nmse < 1  # type: ignore[union-attr, operator]
    assert open_array(tmp_path / f"out{extension}").dtype == "bfloat16"
    np.testing.assert_array_equal(read(tmp_path / f"out{extension}"), expected)


@pytest.mark.parametrize("extension", [".npy", ".npz"])
def test_a_format_without_bfloat16_says_what_to_do(codec: Codec, x: Rows, tmp_path: Path, extension: str) -> None:
    safetensors.torch.save_file({"x": torch.from_numpy(x).bfloat16()}, tmp_path / "in.safetensors")
    encode_array(open_array(tmp_path / "in.safetensors"), tmp_path / "x.saec", codec=codec)
    out = tmp_path / f"out{extension}"
    with open_saec(tmp_path / "x.saec", codec=codec) as file:
        with pytest.raises(OutputError, match=r"no bfloat16; write to .*--dtype float32"):
            decode_file(file, out)
        assert not out.exists()
        decode_file(file, out, dtype="float32")
        np.testing.assert_array_equal(read(out), file.rows())


@pytest.mark.parametrize("rows", [(0, 40), (0, 0), (3, 4), (5, 21), (39, 40), (40, 40)])
@pytest.mark.parametrize("extension", [".npy", ".pt"])
def test_a_range_of_rows_is_an_array_of_two_dimensions(
    shaped: Path, tmp_path: Path, rows: tuple[int, int], extension: str
) -> None:
    out = tmp_path / f"x{extension}"
    with open_saec(shaped) as file:
        assert decode_file(file, out, rows=rows, dtype="float32") == (rows[1] - rows[0], 8)
        np.testing.assert_allclose(read(out), file.rows()[slice(*rows)], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [(0, 41), (-1, 3), (100, 200)])
def test_rows_the_file_does_not_have_are_refused_and_nothing_is_left(
    shaped: Path, tmp_path: Path, rows: tuple[int, int]
) -> None:
    with open_saec(shaped) as file, pytest.raises(InputError, match=f"rows {rows[0]}:{rows[1]} .* it has 40"):
        decode_file(file, tmp_path / "x.npy", rows=rows)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_end_before_they_begin_are_refused_as_rows(shaped: Path, tmp_path: Path) -> None:
    with open_saec(shaped) as file, pytest.raises(InputError, match=r"rows 5:2 .* it has 40"):
        decode_file(file, tmp_path / "x.npy", rows=(5, 2))


def test_rows_far_beyond_the_file_take_no_memory(shaped: Path, tmp_path: Path) -> None:
    with open_saec(shaped) as file, pytest.raises(InputError, match="it has 40"):
        decode_file(file, tmp_path / "x.pt", rows=(0, 1 << 56))


@pytest.mark.parametrize("shape", [(8,), (0, 8), (2, 0, 3, 8), (1, 1, 1, 8)])
def test_unusual_shapes_are_restored(codec: Codec, tmp_path: Path, shape: tuple[int, ...]) -> None:
    encode_array(MemoryArray(np.ones(shape, np.float32)), tmp_path / "x.saec", codec=codec, embed="decoder")
    for extension in FORMATS:
        with open_saec(tmp_path / "x.saec") as file:
            assert decode_file(file, tmp_path / f"x{extension}") == shape
        assert open_array(tmp_path / f"x{extension}").shape == shape


def test_an_existing_file_is_overwritten_only_when_forced(shaped: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npy"
    out.write_bytes(b"mine")
    with open_saec(shaped) as file:
        with pytest.raises(OutputError, match="already exists; pass --force"):
            decode_file(file, out)
        assert out.read_bytes() == b"mine"
        decode_file(file, out, force=True)
    assert read(out).shape == (2, 4, 5, 8)


def test_progress_counts_the_rows(shaped: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with open_saec(shaped) as file:
        decode_file(file, tmp_path / "x.npy", rows=(5, 16), progress=lambda *event: seen.append(event))
    assert seen == [("decode", 2, 11), ("decode", 9, 11), ("decode", 11, 11)]


def test_without_an_sae_nothing_is_left(saec: Make, tmp_path: Path) -> None:
    path = saec("tables")
    with open_saec(path) as file, pytest.raises(MissingPieceError):
        decode_file(file, tmp_path / "x.npy")
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_chunk_leaves_nothing(saec: Make, tmp_path: Path) -> None:
    path = saec("decoder")
    data = bytearray(path.read_bytes())
    with open_saec(path) as file:
        data[int(file.index.offsets[-1]) + 25] ^= 1
    path.write_bytes(data)
    with open_saec(path) as file, pytest.raises(FormatError, match="frame CHNK is corrupted"):
        decode_file(file, tmp_path / "x.npy")
    assert list(tmp_path.iterdir()) == [path]


def test_an_index_that_lies_leaves_nothing(saec: Make, tmp_path: Path, rebuild: Any) -> None:
    path = saec("decoder")
    path.write_bytes(rebuild(path, index=lambda rows, offsets, lengths: ([8, 16, 16], offsets, lengths)))
    with (
        open_saec(path) as file,
        pytest.raises(FormatError, match=r"chunk 0 \(rows 0:8\): holds 16 rows, the index says 8"),
    ):
        decode_file(file, tmp_path / "x.npy")
    assert list(tmp_path.iterdir()) == [path]


# -- verification ------------------------------------------------------------------------------------------------------


def test_a_sound_file_is_verified(saec: Make, sae: SAE) -> None:
    with open_saec(saec(), sae=sae) as file:
        found = verify_file(file)
        assert (found.frames, found.chunks, found.rows, found.decoded, found.distortion) == (7, 3, 40, "rows", None)


@pytest.mark.parametrize("embed", ["none", "tables", "decoder"])
def test_checksums_and_structure_need_neither_sae_nor_codec(saec: Make, embed: str) -> None:
    with open_saec(saec(embed)) as file:
        found = verify_file(file, decode=False)
        assert (found.chunks, found.rows, found.decoded) == (3, 40, "nothing")


def test_levels_are_decoded_without_an_sae(saec: Make) -> None:
    with open_saec(saec("tables")) as file:
        assert verify_file(file).decoded == "levels"
    with open_saec(saec("none")) as file, pytest.raises(MissingPieceError, match="needs the codec"):
        verify_file(file)


@pytest.mark.parametrize("chunk_rows", [1, 7, 40, 4096])
def test_the_distortion_against_the_input_is_that_of_its_rows(
    saec: Make, codec: Codec, x: Rows, chunk_rows: int
) -> None:
    x_hat = codec.reconstruct(codec.quantize(x)).astype(np.float64)
    nmse = ((x - x_hat) ** 2).sum() / ((x - x.astype(np.float64).mean(0)) ** 2).sum()
    with open_saec(saec("decoder", chunk_rows=chunk_rows)) as file:
        found = verify_file(file, against=MemoryArray(x)).distortion
    assert found is not None
    assert found.n_rows == 40
    assert found.nmse == pytest.approx(nmse, rel=1e-6)
    assert found.max_error == pytest.approx(np.abs(x - x_hat).max(), rel=1e-6)


@pytest.mark.parametrize("shape", [(39, 8), (8, 40), (5, 8, 8), (1, 40, 8), (320,)])
def test_an_input_of_another_shape_is_refused_with_both_shapes(saec: Make, shape: tuple[int, ...]) -> None:
    other = MemoryArray(np.zeros(shape, np.float32), "other.npy")
    with open_saec(saec("decoder")) as file, pytest.raises(InputError) as wrong:
        verify_file(file, against=other)
    assert f"other.npy: shape {shape}, but" in str(wrong.value)
    assert "was made from shape (40, 8)" in str(wrong.value)


def test_a_file_without_rows_is_verified_against_its_input(sae: SAE, x: Rows, tmp_path: Path) -> None:
    encode_array(MemoryArray(x[:0]), tmp_path / "x.saec", sae=sae)
    with open_saec(tmp_path / "x.saec", sae=sae) as file:
        found = verify_file(file, against=MemoryArray(x[:0]))
    assert found.chunks == found.rows == 0
    assert found.distortion is not None
    assert found.distortion.nmse is None


@pytest.mark.parametrize("sizes", [[10, 20, 10], [0, 40], [40, 0], [10, 10, 20], [0, 0, 40]])
def test_chunks_of_any_sizes_are_decoded(codec: Codec, x: Rows, tmp_path: Path, sizes: list[int]) -> None:
    path = uneven(codec, x, tmp_path, sizes)
    with open_saec(path, codec=codec) as file:
        np.testing.assert_allclose(file.rows(), codec.reconstruct(codec.quantize(x)), rtol=0, atol=1e-5)
        np.testing.assert_array_equal(file.rows(5, 25), file.rows()[5:25])
        assert verify_file(file).rows == 40


@pytest.mark.parametrize(
    "sizes",
    [
        [10, 20, 10],
        [40, 0],
        *(pytest.param(sizes) for sizes in ([0, 40], [10, 10, 20], [0, 0, 40])),
    ],
)
def test_chunks_of_any_sizes_are_compared_or_refused(codec: Codec, x: Rows, tmp_path: Path, sizes: list[int]) -> None:
    with open_saec(uneven(codec, x, tmp_path, sizes), codec=codec) as file:
        try:
            found = verify_file(file, against=MemoryArray(x))
        except SaecodecError:
            return
        assert found.distortion is not None
        assert found.distortion.n_rows == 40


def uneven(codec: Codec, x: Rows, folder: Path, sizes: list[int]) -> Path:
    """A file whose chunks have these numbers of rows."""
    codes, start, path = codec.quantize(x), 0, folder / "uneven.saec"
    with open(path, "wb") as out:
        writer = SaecWriter(out, codec, shape=x.shape, dtype="float32", chunk_rows=40, embed="tables")
        for size in sizes:
            writer.add(Layers(codes[start : start + size]))
            start += size
        writer.finish()
    return path
