"""Arrays whose chunks a codec codes: written, grown, cut, read in another process, and refused when damaged."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.errors import FormatError, IdentityError, InputError, MissingPieceError
from saecodec.filled_rows import FilledRows
from saecodec.formats import codec_lookup
from saecodec.formats.codecfile import save_codec
from saecodec.frames import HEAD_BYTES, FrameHead, frame
from saecodec.sae import SAE

try:
    importlib.metadata.version("zfpy")
except importlib.metadata.PackageNotFoundError:
    zarr = pytest.importorskip("zarr", minversion="3")
    from saecodec.formats.zarr import SaeCodec
else:
    pytest.skip("zarr cannot be imported where zfpy is installed", allow_module_level=True)

WIDTH = 8
Rows = Callable[..., NDArray[np.float32]]


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts like a new process: no codec is known."""
    monkeypatch.setattr(codec_lookup, "_known", {})
    monkeypatch.delenv(codec_lookup.PATH_VARIABLE, raising=False)


@pytest.fixture(scope="module")
def codec(sae: SAE, exact_rows: Rows) -> Codec:
    return Codec.fit(sae, exact_rows(400), step=0.25)


@pytest.fixture(scope="module")
def file(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codec") / "tiny.saecodec"
    save_codec(codec, path, embed_sae=True)
    return path


def through(codec: Codec, x: NDArray[Any]) -> NDArray[Any]:
    """Rows as the codec gives them back, in any grouping: its arithmetic on them is exact."""
    return codec.decode(codec.encode(x)).reshape(x.shape)


def pack_filled(codec: Codec, x: NDArray[Any], fill: float) -> bytes:
    return FilledRows.of(codec, x, fill, np.ones(x.size // x.shape[-1], bool)).to_bytes(codec)


def unpack_filled(codec: Codec, data: bytes, shape: tuple[int, ...], dtype: str, fill: float) -> NDArray[Any]:
    return FilledRows.read(codec, data, int(np.prod(shape[:-1]))).values(codec, shape, dtype, fill)


def create(path: Path, file: Path, shape: tuple[int, ...], chunks: tuple[int, ...], **options: Any) -> Any:
    options = {"dtype": "float32", "compressors": None, "serializer": SaeCodec.of(file)} | options
    return zarr.create_array(str(path), shape=shape, chunks=chunks, **options)


# -- arrays ------------------------------------------------------------------------------------------------------------


def test_rows_come_back_as_the_codec_gives_them_across_chunks_and_from_the_edge(
    tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows
) -> None:
    x = exact_rows(150)
    array = create(tmp_path / "x", file, x.shape, (64, WIDTH))
    array[:] = x
    again = zarr.open_array(str(tmp_path / "x"))
    np.testing.assert_array_equal(again[:], through(codec, x))
    np.testing.assert_array_equal(again[60:131], through(codec, x)[60:131])
    np.testing.assert_array_equal(again[149, 3:5], through(codec, x)[149, 3:5])
    assert len(list((tmp_path / "x" / "c").rglob("0"))) > 0
    stored = sum(path.stat().st_size for path in (tmp_path / "x").rglob("*") if path.is_file())
    assert stored < x.nbytes


def test_an_array_grows_by_whole_chunks_and_shrinks(tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows) -> None:
    x = exact_rows(96)
    array = create(tmp_path / "x", file, (0, WIDTH), (32, WIDTH))
    array.append(x[:32])
    array.append(x[32:])
    np.testing.assert_array_equal(array[:], through(codec, x))
    array.resize((40, WIDTH))
    np.testing.assert_array_equal(array[:], through(codec, x)[:40])
    array.resize((96, WIDTH))
    np.testing.assert_array_equal(array[:40], through(codec, x)[:40])
    np.testing.assert_array_equal(array[64:], 0)


@pytest.mark.parametrize("options", [{}, {"shards": (64, WIDTH)}], ids=["chunks", "shards"])
def test_rows_keep_their_codes_while_others_come_to_their_chunk(
    tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows, options: dict[str, Any]
) -> None:
    x = exact_rows(150)
    array = create(tmp_path / "x", file, (0, WIDTH), (32, WIDTH), **options)
    for start in range(0, len(x), 7):
        array.append(x[start : start + 7])
    np.testing.assert_array_equal(array[:], through(codec, x))
    assert (through(codec, through(codec, x)) != through(codec, x)).any()  # what coding them again would do


@pytest.mark.parametrize("options", [{}, {"shards": (64, WIDTH)}], ids=["chunks", "shards"])
def test_rows_are_written_into_a_part_of_a_chunk(
    tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows, options: dict[str, Any]
) -> None:
    x, new = exact_rows(100), exact_rows(100, seed=1)
    array = create(tmp_path / "x", file, x.shape, (32, WIDTH), **options)
    array[:] = x
    expected, again = through(codec, x), through(codec, new)
    array[40] = new[0]
    array[3:90:9] = new[:10]
    array[50:60] = 0
    array[71:73] = 1.5
    expected[40], expected[3:90:9], expected[50:60] = again[0], again[:10], 0
    expected[71:73] = through(codec, np.full((2, WIDTH), 1.5, np.float32))
    np.testing.assert_array_equal(array[:], expected)
    array[30, 2:4] = 0.5  # a part of a row: all of it is coded again
    changed = expected[30].copy()
    changed[2:4] = 0.5
    expected[30] = through(codec, changed[None])[0]
    np.testing.assert_array_equal(array[:], expected)


def test_rows_are_written_by_lists_and_masks(tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows) -> None:
    # In shards not even zarr's own codecs can do that (3.1.6).
    x, new = exact_rows(100), exact_rows(100, seed=1)
    array = create(tmp_path / "x", file, x.shape, (32, WIDTH))
    array[:] = x
    expected, again, mask = through(codec, x), through(codec, new), np.zeros(x.shape, bool)
    mask[[20, 80]] = True
    array.oindex[[95, 1, 99]] = new[:3]
    array.oindex[70, :] = new[3]
    array.vindex[mask] = new[4:6].ravel()
    expected[[95, 1, 99]], expected[70], expected[[20, 80]] = again[:3], again[3], again[4:6]
    np.testing.assert_array_equal(array[:], expected)


def test_a_chunk_that_holds_nothing_but_fill_is_not_stored(tmp_path: Path, file: Path, exact_rows: Rows) -> None:
    array = create(tmp_path / "x", file, (64, WIDTH), (32, WIDTH))
    array[:] = exact_rows(64)
    assert array.nchunks_initialized == 2
    array[:32] = 0
    assert array.nchunks_initialized == 1
    array = create(tmp_path / "y", file, (64, WIDTH), (32, WIDTH), config={"write_empty_chunks": True})
    array[:] = 0
    assert array.nchunks_initialized == 2
    np.testing.assert_array_equal(array[:], 0)


@pytest.mark.parametrize(
    "options", [{"compressors": "auto"}, {"filters": [{"name": "transpose", "configuration": {"order": [0, 1]}}]}]
)
def test_it_is_the_only_codec_of_an_array(
    tmp_path: Path, file: Path, exact_rows: Rows, options: dict[str, Any]
) -> None:
    array = create(tmp_path / "x", file, (64, WIDTH), (32, WIDTH), **options)
    with pytest.raises(InputError, match=r"only codec .*compressors=None"):
        array[:] = exact_rows(64)


def test_shards_hold_chunks_that_are_coded_alone(tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows) -> None:
    x = exact_rows(200)
    array = create(tmp_path / "x", file, x.shape, (16, WIDTH), shards=(64, WIDTH))
    array[:] = x
    array[16:32] = x[:16]  # one chunk of a shard; the others are not touched
    expected = through(codec, x)
    expected[16:32] = expected[:16]
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "x"))[:], expected)
    assert len([path for path in (tmp_path / "x" / "c").rglob("*") if path.is_file()]) == 4


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_values_have_the_dtype_of_the_array(
    tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows, dtype: str
) -> None:
    x = exact_rows(40).astype(dtype)
    array = create(tmp_path / "x", file, x.shape, (32, WIDTH), dtype=dtype)
    array[:] = x
    assert array[:].dtype == dtype
    np.testing.assert_array_equal(array[:], through(codec, x).astype(dtype))


def test_sequences_are_blocks_of_an_array_of_three_dimensions(
    tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows
) -> None:
    x = exact_rows(5 * 12).reshape(5, 12, WIDTH)
    array = create(tmp_path / "x", file, x.shape, (2, 5, WIDTH))
    array[:] = x
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "x"))[:], through(codec, x))


def test_the_context_prior_gets_the_sequences_of_a_block(sae: SAE, exact_rows: Rows) -> None:
    x = exact_rows(520).reshape(13, 40, WIDTH)
    codec, x = Codec.fit(sae, x, step=0.25, prior="context", fit_seconds=0.5), x[:4]
    x[1, 3:9] = np.nan
    data = pack_filled(codec, x, np.nan)
    end = HEAD_BYTES + FrameHead.parse(data[:HEAD_BYTES], len(data), "").length
    (part,) = codec.chunks(data[end:])
    assert part.codes.columns["seq"].tolist() == [0] * 40 + [1] * 34 + [2] * 40 + [3] * 40
    found = unpack_filled(codec, data, x.shape, "float32", np.nan)
    assert np.isnan(found[1, 3:9]).all()
    np.testing.assert_array_equal(found[2:], through(codec, x[2:]))


def test_rows_that_were_not_written_are_the_fill_value(
    tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows
) -> None:
    x = exact_rows(40)
    array = create(tmp_path / "x", file, (100, WIDTH), (64, WIDTH), fill_value=np.nan)
    array[10:50] = x
    found = zarr.open_array(str(tmp_path / "x"))[:]
    assert np.isnan(found[:10]).all()
    assert np.isnan(found[50:]).all()
    np.testing.assert_array_equal(found[10:50], through(codec, x))


def test_nan_that_is_not_a_whole_row_of_fill_is_refused_by_row(tmp_path: Path, file: Path, exact_rows: Rows) -> None:
    x = exact_rows(40)
    x[37, 2] = np.nan
    for fill in (0, np.nan):
        array = create(tmp_path / f"x{fill}", file, x.shape, (32, WIDTH), fill_value=fill)
        with pytest.raises(InputError, match=r"row 5 of a block of shape \(32, 8\) holds NaN or infinity"):
            array[:] = x


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shape": (64, 9), "chunks": (32, 9)}, r"rows of 8 values.*whole last dimension.*got \(64, 9\)"),
        ({"shape": (64, 8), "chunks": (32, 4)}, r"got \(32, 4\)"),
        ({"shape": (64, 8), "chunks": (32, 4), "shards": (64, 8)}, r"got \(32, 4\)"),
        ({"shape": (64, 8), "chunks": (32, 8), "dtype": "int32"}, "codes float16, float32, float64.*int32"),
    ],
    ids=["array", "chunks", "chunks of shards", "dtype"],
)
def test_what_does_not_consist_of_its_rows_is_refused(
    tmp_path: Path, file: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        create(tmp_path / "x", file, **options)


def test_an_array_goes_through_xarray_and_dask(tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows) -> None:
    xarray, _ = pytest.importorskip("xarray"), pytest.importorskip("dask.array")
    x = exact_rows(100)
    data = xarray.Dataset({"acts": (("row", "value"), x)})
    encoding = {"acts": {"serializer": SaeCodec.of(file), "compressors": None, "chunks": (32, WIDTH)}}
    data.to_zarr(tmp_path / "x", zarr_format=3, consolidated=False, encoding=encoding)
    found = xarray.open_zarr(tmp_path / "x", consolidated=False)["acts"]
    assert found.chunks[0] == (32, 32, 32, 4)
    np.testing.assert_array_equal(found[30:70].compute(), through(codec, x)[30:70])
    expected = through(codec, x).mean(0)
    np.testing.assert_allclose(found.mean("row").compute(scheduler="threads"), expected, atol=1e-5)


# -- where the codec is ------------------------------------------------------------------------------------------------


def child(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment)


def test_a_new_process_that_imports_zarr_alone_reads_the_array(tmp_path: Path, codec: Codec, exact_rows: Rows) -> None:
    save_codec(codec, tmp_path / "tiny.saecodec", embed_sae=True)
    array = create(tmp_path / "x", tmp_path / "tiny.saecodec", (40, WIDTH), (32, WIDTH))
    array[:] = exact_rows(40)
    code = "import sys, zarr; a = zarr.open_array('x'); light = 'torch' not in sys.modules; print(light, a[:].sum())"
    done = child(code, tmp_path)
    assert done.stdout.split() == ["True", str(array[:].sum())], done.stderr


def test_the_file_may_move_to_a_folder_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Codec, exact_rows: Rows
) -> None:
    x, (here, there) = exact_rows(40), (tmp_path / "here", tmp_path / "there")
    here.mkdir(), there.mkdir()
    save_codec(codec, here / "tiny.saecodec", embed_sae=True)
    create(tmp_path / "x", here / "tiny.saecodec", x.shape, (32, WIDTH))[:] = x
    (here / "tiny.saecodec").rename(there / "moved.saecodec")
    (there / "a.saecodec").write_bytes(b"no codec")
    monkeypatch.setattr(codec_lookup, "_known", {})
    with pytest.raises(MissingPieceError, match=rf"{codec.codec_id} .*tiny.saecodec.*SAECODEC_PATH.*register_codec"):
        zarr.open_array(str(tmp_path / "x"))[:]
    monkeypatch.setenv(codec_lookup.PATH_VARIABLE, f"{here}:{there}")
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "x"))[:], through(codec, x))


def test_another_codec_under_the_name_is_refused_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sae: SAE, codec: Codec, exact_rows: Rows
) -> None:
    path, x = tmp_path / "tiny.saecodec", exact_rows(40)
    save_codec(codec, path, embed_sae=True)
    create(tmp_path / "x", path, x.shape, (32, WIDTH))[:] = x
    other = Codec.fit(sae, x, step=0.5)
    save_codec(other, path, embed_sae=True, force=True)
    monkeypatch.setattr(codec_lookup, "_known", {})
    with pytest.raises(IdentityError, match=f"tiny.saecodec: has codec id {other.codec_id}, .*{codec.codec_id}"):
        zarr.open_array(str(tmp_path / "x"))[:]


def test_a_codec_in_memory_needs_no_file_and_stays_the_only_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: Codec, exact_rows: Rows
) -> None:
    x = exact_rows(40)
    serializer = SaeCodec.of(codec)
    assert serializer.to_dict()["configuration"] == {"codec_id": codec.codec_id, "width": WIDTH}
    zarr.create_array(str(tmp_path / "x"), data=x, chunks=(8, WIDTH), serializer=serializer, compressors=None)
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "x"))[:], through(codec, x))
    assert codec_lookup.find_codec(codec.codec_id) is codec
    monkeypatch.setattr(codec_lookup, "_known", {})
    with pytest.raises(MissingPieceError, match="names no file of it"):
        zarr.open_array(str(tmp_path / "x"))[:]


def test_a_codec_without_its_sae_names_where_that_is(tmp_path: Path, minilm: tuple[SAE, NDArray[Any]]) -> None:
    from importlib.resources import files

    sae, x = minilm
    codec = Codec.fit(sae, x[:256])
    save_codec(codec, tmp_path / "l3.saecodec")
    with pytest.raises(MissingPieceError, match=r"lacks its SAE .*--embed-sae.*sae=PATH.*with_sae"):
        SaeCodec.of(tmp_path / "l3.saecodec")
    path = str(files("saecodec") / "bundled" / "minilm_l3_sae")
    serializer = SaeCodec.of(tmp_path / "l3.saecodec", path)
    assert serializer.to_dict()["configuration"]["sae"] == path
    codec_lookup._known.clear()
    array = zarr.create_array(
        {}, shape=(64, 384), chunks=(32, 384), dtype="f4", serializer=serializer, compressors=None
    )
    array[:] = x[:64]
    assert np.isfinite(array[:]).all()
    assert list(codec_lookup._known) == [codec.codec_id]


def test_a_codec_is_read_from_a_url(tmp_path: Path, codec: Codec, file: Path, exact_rows: Rows) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.pipe("codecs/tiny.saecodec", file.read_bytes())
    array = create(
        tmp_path / "x", file, (32, WIDTH), (32, WIDTH), serializer=SaeCodec.of("memory://codecs/tiny.saecodec")
    )
    array[:] = exact_rows(32)
    memory.rm("codecs/tiny.saecodec")
    codec_lookup._known.clear()
    with pytest.raises(MissingPieceError, match=r"memory://codecs/tiny\.saecodec: cannot be opened"):
        array[:]


def test_damaged_metadata_are_refused(tmp_path: Path, file: Path) -> None:
    create(tmp_path / "x", file, (32, WIDTH), (32, WIDTH))
    path = tmp_path / "x" / "zarr.json"
    good = json.loads(path.read_text())
    for changes in ({"codec_id": 3}, {"width": "8"}, {"codec": 1}, {"sae": []}):
        (serializer,) = good["codecs"]
        bad = {**serializer, "configuration": serializer["configuration"] | changes}
        path.write_text(json.dumps(good | {"codecs": [bad]}))
        with pytest.raises(FormatError, match=r"configuration of saecodec\.sae"):
            zarr.open_array(str(tmp_path / "x"))


# -- the bytes of a chunk ----------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from([0.0, 2.5, np.nan]), st.integers(0, 99))
def test_bytes_are_read_back_whatever_rows_are_left_out(
    codec: Codec, exact_rows: Rows, left_out: list[bool], fill: float, seed: int
) -> None:
    x = exact_rows(len(left_out), seed=seed)
    x[:, 0] = 1.75  # so that no row is of the fill value by chance
    x[left_out] = fill
    found = unpack_filled(codec, pack_filled(codec, x, fill), x.shape, "float64", fill)
    expected = np.where(np.array(left_out)[:, None], fill, through(codec, np.nan_to_num(x)))
    np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def codec_with_residual(sae: SAE, exact_rows: Rows) -> Codec:
    return Codec.fit(sae, exact_rows(400), step=0.25, residual=True, search="refit")


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30), st.integers(0, 99))
def test_rows_laid_over_others_are_those_of_both(
    codec_with_residual: Codec, exact_rows: Rows, rows: list[tuple[bool, bool, bool]], seed: int
) -> None:
    codec, (first, second, where) = codec_with_residual, np.array(rows, bool).T
    x, y = (exact_rows(len(rows), seed=number) for number in (seed, seed + 1))
    for block, filled in ((x, first), (y, second)):
        block[:, 0] = 1.75
        block[filled] = np.nan
    old = FilledRows.read(codec, pack_filled(codec, x, np.nan), len(rows))
    both = old.overlaid(FilledRows.of(codec, y, np.nan, where), where).to_bytes(codec)
    found = unpack_filled(codec, both, x.shape, "float32", np.nan)
    expected = np.where(
        where[:, None],
        unpack_filled(codec, pack_filled(codec, y, np.nan), x.shape, "float32", np.nan),
        unpack_filled(codec, pack_filled(codec, x, np.nan), x.shape, "float32", np.nan),
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_every_byte_of_a_chunk_counts(codec: Codec, exact_rows: Rows) -> None:
    x = exact_rows(12)
    x[3:6] = 0
    data = pack_filled(codec, x, 0)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(FormatError):
            unpack_filled(codec, damaged, x.shape, "float32", 0)
        with pytest.raises(FormatError):
            unpack_filled(codec, data[:at], x.shape, "float32", 0)
    coded = data[HEAD_BYTES + FrameHead.parse(data[:HEAD_BYTES], len(data), "").length :]
    with pytest.raises(FormatError, match="9 coded rows are announced, and it holds more"):
        unpack_filled(codec, data + coded, x.shape, "float32", 0)


@pytest.mark.parametrize(
    "runs",
    ["", "0c", "0c 00", "0c 01 0b", "0c 01 0d", "0c 02 0c 00", "0c 02 0a 02", "0d 01 0d", "0c 01 0c 00", "0c 7f 0c"],
)
def test_runs_that_are_not_those_of_the_block_are_refused(codec: Codec, exact_rows: Rows, runs: str) -> None:
    with pytest.raises(FormatError):
        unpack_filled(codec, frame("ROWS", bytes.fromhex(runs)) + codec.encode(exact_rows(12)), (12, 8), "float32", 0)


def test_a_chunk_of_another_shape_is_refused(codec: Codec, exact_rows: Rows) -> None:
    data = pack_filled(codec, exact_rows(12), 0)
    assert unpack_filled(codec, data, (3, 4, 8), "float32", 0).shape == (3, 4, 8)
    with pytest.raises(FormatError, match="holds 12 rows where 11 are expected"):
        unpack_filled(codec, data, (11, 8), "float32", 0)


# -- the document ------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_document_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xarray"), pytest.importorskip("dask.array")
    text = (Path(__file__).parents[2] / "docs" / "zarr.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in text.split("```python\n")[1:]:
        exec(block.partition("```")[0], names)
    rows = names["rows"].astype(np.float32)
    expected = names["codec"].decode(names["codec"].encode(rows, chunk_rows=1024))
    for array in (names["again"], names["sharded"], names["acts"]):
        np.testing.assert_allclose(np.asarray(array[:], np.float32), expected, atol=2e-3, rtol=1e-3)
