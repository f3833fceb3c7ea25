"""What is written reads back, with this project and with the library of the format; a half-written array is none."""

from __future__ import annotations

import importlib
import io
import sys
import tracemalloc
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from saecodec.errors import InputError, OutputError
from saecodec.formats.array_sinks import ArraySink, check_array_output, create_array, resolve_output_format
from saecodec.formats.arrays import ArraySource, open_array
from saecodec.stored_floats import float32_to_bfloat16


def imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # not installed, or zarr beside zfpy, where it cannot be imported
        return False
    return True


EXTRAS = [extension for extension, library in ((".parquet", "pyarrow"), (".zarr", "zarr")) if imports(library)]
FORMATS = [".npy", ".npz", ".safetensors", ".pt", ".pth", *EXTRAS]
DTYPES = ["float16", "bfloat16", "float32", "float64"]
CODED = [
    (extension, dtype)
    for extension in FORMATS
    for dtype in DTYPES
    if dtype != "bfloat16" or extension in (".safetensors", ".pt", ".pth")
]
SHAPES = [(7,), (0, 7), (5, 7), (2, 3, 7), (2, 0, 7), (2, 1, 3, 7)]


def values(shape: tuple[int, ...], dtype: str = "float32") -> torch.Tensor:
    """Values that every dtype holds exactly in float32."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    return tensor.to(torch.bfloat16).to(torch.float16).to(getattr(torch, dtype))


def as_rows(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return tensor.to(torch.float32).numpy().reshape(-1, tensor.shape[-1])


def rows_of(source: ArraySource) -> npt.NDArray[np.float32]:
    return np.concatenate([np.empty((0, source.width), np.float32), *source.batches(2)])


def write(path: Path, tensor: torch.Tensor, dtype: str = "float32", batch_rows: int = 2, **options: Any) -> None:
    rows = as_rows(tensor)
    with create_array(path, tuple(tensor.shape), dtype, **options) as sink:
        for start in range(0, len(rows), batch_rows):
            sink.write(rows[start : start + batch_rows])


def write_blocks(array: AbstractContextManager[ArraySink], *blocks: npt.NDArray[Any]) -> None:
    with array as sink:
        for block in blocks:
            sink.write(block)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("extension, dtype", CODED)
def test_what_is_written_reads_back_here_and_with_the_library_of_the_format(
    tmp_path: Path, extension: str, dtype: str, shape: tuple[int, ...]
) -> None:
    path, tensor = tmp_path / f"a{extension}", values(shape)
    write(path, tensor, dtype, key="acts")
    source = open_array(path)
    assert (source.shape, source.dtype) == (shape, dtype)
    np.testing.assert_array_equal(rows_of(source), as_rows(tensor))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    if extension == ".npy":
        loaded = torch.from_numpy(np.load(path))
    elif extension == ".npz":
        with np.load(path) as archive:
            assert archive.files == ["acts"]
            loaded = torch.from_numpy(archive["acts"])
    elif extension == ".safetensors":
        loaded = safetensors.torch.load_file(path)["acts"]
    elif extension == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        assert str(table.schema.field("acts").type).startswith("fixed_size_list<")
        lists = table.column("acts").combine_chunks()
        loaded = torch.from_numpy(lists.flatten().to_numpy(zero_copy_only=False).copy()).reshape(shape)
    elif extension == ".zarr":
        loaded = torch.from_numpy(pytest.importorskip("zarr").open_array(str(path), mode="r")[...])
    else:
        loaded = torch.load(path, weights_only=True)
    assert loaded.dtype == getattr(torch, dtype)
    assert torch.equal(loaded, tensor.to(loaded.dtype))


def test_npy_and_safetensors_bytes_are_those_of_their_libraries(tmp_path: Path) -> None:
    tensor = values((2, 3, 7))
    write(tmp_path / "a.npy", tensor)
    expected = io.BytesIO()
    np.save(expected, tensor.numpy())
    assert (tmp_path / "a.npy").read_bytes() == expected.getvalue()
    write(tmp_path / "a.safetensors", tensor, "bfloat16")
    assert (tmp_path / "a.safetensors").read_bytes() == safetensors.torch.save({"x": tensor.to(torch.bfloat16)})


def test_the_same_array_makes_the_same_npz_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.npz", values((5, 7)))
    write(tmp_path / "b.npz", values((5, 7)), batch_rows=5)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None


@given(hnp.arrays(np.uint32, hnp.array_shapes(max_side=20)))
def test_bfloat16_rounds_as_torch_does(bits: npt.NDArray[np.uint32]) -> None:
    floats = bits.view(np.float32)
    ours = float32_to_bfloat16(floats)
    theirs = torch.from_numpy(floats.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    nan = np.isnan(floats)
    np.testing.assert_array_equal(ours[~nan], theirs[~nan])
    assert np.isnan((ours[nan].astype(np.uint32) << np.uint32(16)).view(np.float32)).all()


@given(st.integers(0, 0xFFFF), st.sampled_from([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF]))
def test_bfloat16_rounds_ties_to_even(upper: int, lower: int) -> None:
    floats = np.array([upper << 16 | lower], np.uint32).view(np.float32)
    theirs = torch.from_numpy(floats).to(torch.bfloat16)
    ours = torch.from_numpy(float32_to_bfloat16(floats).view(np.int16)).view(torch.bfloat16)
    assert torch.equal(ours, theirs) or bool(ours.isnan() and theirs.isnan())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_finite_values_stay_finite_and_others_stay_what_they_are(tmp_path: Path, dtype: str) -> None:
    big = np.finfo(np.float32).max
    row = np.array([[big, -big, 65520, np.inf, -np.inf, np.nan, -0.0]], np.float32)
    with create_array(tmp_path / "a.safetensors", (1, 7), dtype) as sink:
        sink.write(row)
    largest = {"float16": 65504.0, "bfloat16": torch.finfo(torch.bfloat16).max}.get(dtype, float(big))
    third = {"float16": 65504.0, "bfloat16": 65536.0}.get(dtype, 65520.0)
    (back,) = rows_of(open_array(tmp_path / "a.safetensors"))
    np.testing.assert_array_equal(back, np.array([largest, -largest, third, np.inf, -np.inf, np.nan, 0], np.float32))
    assert np.signbit(back[-1])


def test_rows_of_any_layout_are_written(tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    with create_array(tmp_path / "a.npy", (6, 2), "float32") as sink:
        sink.write(np.asfortranarray(rows[:, :2]))
        sink.write(rows[::-1, ::3].astype(">f4").astype("<f4")[::-1])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.concatenate([rows[:, :2], rows[:, ::3]]))


@pytest.mark.parametrize("extension", FORMATS)
def test_too_few_or_too_many_rows_leave_nothing_behind(tmp_path: Path, extension: str) -> None:
    path, two = tmp_path / f"a{extension}", np.zeros((2, 3), np.float32)
    with pytest.raises(OutputError, match=r"got 4 rows, but the shape \(5, 3\) has 5"):
        write_blocks(create_array(path, (5, 3), "float32"), two, two)
    with pytest.raises(OutputError, match=r"got row 4; the shape \(3, 3\) has 3 rows"):
        write_blocks(create_array(path, (3, 3), "float32"), two, two)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extension", FORMATS)
def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, extension: str) -> None:
    def interrupted() -> None:
        with create_array(tmp_path / f"a{extension}", (5, 3), "float32") as sink:
            sink.write(np.zeros((2, 3), np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "rows", [np.zeros((2, 4), np.float32), np.zeros((2, 3)), np.zeros(3, np.float32)], ids=["width", "dtype", "1-D"]
)
def test_rows_of_another_width_or_dtype_are_refused(tmp_path: Path, rows: npt.NDArray[Any]) -> None:
    with pytest.raises(OutputError, match=r"expected float32 rows \(n, 3\)"):
        write_blocks(create_array(tmp_path / "a.npy", (2, 3), "float32"), rows)


@pytest.mark.parametrize("extension", [".npy", ".npz", *EXTRAS])
def test_bfloat16_is_refused_where_the_format_has_none(tmp_path: Path, extension: str) -> None:
    with pytest.raises(OutputError, match=r"no bfloat16; write to .safetensors or .pt.* --dtype float32"):
        resolve_output_format(f"a{extension}", "bfloat16")


def test_unknown_formats_and_dtypes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    assert resolve_output_format("folder/A.NPZ", "float16") == ".npz"
    for name, dtype, message in [
        ("a.csv", "float32", r"'.csv'; expected one of .npy, .npz"),
        ("a", "float32", "has the extension ''"),
        ("a.npy", "int8", "dtype 'int8' was asked for; expected one of float16"),
    ]:
        with pytest.raises(OutputError, match=message):
            write_blocks(create_array(tmp_path / name, (2, 3), dtype))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (-1, 3)], ids=str)
def test_shapes_without_rows_of_values_are_not_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(OutputError, match=r"has shape .*; expected rows of at least one value"):
        write_blocks(create_array(tmp_path / "a.npy", shape, "float32"))


def test_the_reserved_name_of_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="'__metadata__' is reserved"):
        write_blocks(create_array(tmp_path / "a.safetensors", (1, 2), "float32", key="__metadata__"))


def test_an_existing_file_is_replaced_only_with_force(tmp_path: Path) -> None:
    write(tmp_path / "a.npy", values((1, 7)))
    with pytest.raises(OutputError, match="already exists; pass --force"):
        write(tmp_path / "a.npy", values((2, 7)))
    write(tmp_path / "a.npy", values((2, 7)), force=True)
    assert open_array(tmp_path / "a.npy").shape == (2, 7)


@pytest.mark.skipif(".zarr" not in EXTRAS, reason="needs zarr")
@pytest.mark.parametrize(
    "shape, chunk", [((9000, 3), (4096, 3)), ((3, 4500, 2), (1, 4096, 2)), ((9, 1000, 2), (4, 1000, 2))], ids=str
)
def test_a_zarr_array_is_written_chunk_by_chunk(tmp_path: Path, shape: tuple[int, ...], chunk: tuple[int, ...]) -> None:
    zarr = importlib.import_module("zarr")
    path, tensor = tmp_path / "a.zarr", values(shape)
    tensor[0] = 0
    write(path, tensor, batch_rows=999)
    array = zarr.open_array(str(path), mode="r")
    assert array.chunks == chunk
    np.testing.assert_array_equal(array[...], tensor.numpy())
    n_chunks = np.prod([-(-n // c) for n, c in zip(shape, chunk, strict=True)])
    assert len(list(path.iterdir())) == 1 + n_chunks  # those of zeros, too
    assert all(part.is_file() for part in path.iterdir())


@pytest.mark.skipif(".zarr" not in EXTRAS, reason="needs zarr")
def test_a_zarr_array_is_replaced_with_force_and_another_folder_never(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write(path, values((1, 7)))
    for check in (lambda: check_array_output(path, "float32"), lambda: write(path, values((2, 7)))):
        with pytest.raises(OutputError, match="already exists; pass --force"):
            check()
    write(path, values((2, 7)), force=True)
    assert open_array(path).shape == (2, 7)
    (path / "notes.txt").touch()
    for check in (
        lambda: check_array_output(path, "float32", force=True),
        lambda: write(path, values((3, 7)), force=True),
    ):
        with pytest.raises(OutputError, match=r"is not replaced, because it holds 'notes\.txt'"):
            check()
    assert open_array(path).shape == (2, 7)


@pytest.mark.skipif(".parquet" not in EXTRAS, reason="needs pyarrow")
def test_a_parquet_file_has_a_row_group_for_each_batch_and_says_its_shape(tmp_path: Path) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    write(tmp_path / "a.parquet", values((5, 7)), batch_rows=2)
    write(tmp_path / "b.parquet", values((2, 3, 7)), batch_rows=4)
    with parquet.ParquetFile(tmp_path / "a.parquet") as file:
        assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2, 1]
        assert file.schema_arrow.metadata is None
    with parquet.ParquetFile(tmp_path / "b.parquet") as file:
        assert file.schema_arrow.metadata == {b"saecodec.shape": b"[2, 3, 7]"}
        table = file.read()
    for said in ("[3, 2, 7]", "[6, 7, 1]", "[2, 3]", "[-2, -3, 7]", "{", "3", "[[2], 3, 7]"):
        parquet.write_table(table.replace_schema_metadata({"saecodec.shape": said}), tmp_path / "c.parquet")
        assert open_array(tmp_path / "c.parquet").shape == ((3, 2, 7) if said == "[3, 2, 7]" else (6, 7))


@pytest.mark.parametrize("extension", EXTRAS)
def test_memory_stays_flat_while_an_array_is_written(tmp_path: Path, extension: str) -> None:
    rows = np.random.default_rng(0).normal(size=(4096, 64)).astype(np.float32)
    write(tmp_path / f"first{extension}", values((2, 7)))  # imports what it takes
    tracemalloc.start()
    try:
        with create_array(tmp_path / f"a{extension}", (30 * 4096, 64), "float32") as sink:
            for _ in range(30):
                sink.write(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * rows.nbytes


@pytest.mark.parametrize("extension, library", [(".parquet", "pyarrow"), (".zarr", "zarr")])
def test_a_library_that_is_missing_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str, library: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"a{extension}: needs {library}, .*pip install 'saecodec\["):
        check_array_output(tmp_path / f"a{extension}", "float32")
