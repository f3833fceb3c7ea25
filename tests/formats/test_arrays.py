"""Array files of other libraries read as their rows, and what cannot be read is refused by name."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from saecodec.errors import InputError
from saecodec.formats.arrays import ArraySource, MemoryArray, open_array

FORMATS = [".npy", ".npz", ".safetensors", ".pt", ".pth"]
SHAPES = [(7,), (0, 7), (5, 7), (2, 3, 7), (2, 0, 7), (2, 1, 3, 7)]


def values(shape: tuple[int, ...], dtype: str = "float32") -> torch.Tensor:
    """Values that every dtype holds exactly in float32."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    return tensor.to(torch.bfloat16).to(torch.float16).to(getattr(torch, dtype))


def as_rows(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return tensor.to(torch.float32).numpy().reshape(-1, tensor.shape[-1])


def read_all(source: ArraySource, batch_rows: int = 2) -> npt.NDArray[np.float32]:
    batches = list(source.batches(batch_rows))
    for batch in batches:
        assert type(batch) is np.ndarray
        assert batch.dtype == np.float32
        assert batch.flags.c_contiguous
        assert batch.flags.writeable
        assert 1 <= len(batch) <= batch_rows
    return np.concatenate([np.empty((0, source.width), np.float32), *batches])


def save_npy(path: Path, tensor: torch.Tensor) -> None:
    np.save(path, tensor.numpy())


def save_npz(path: Path, tensor: torch.Tensor) -> None:
    np.savez(path, activations=tensor.numpy())


def save_compressed_npz(path: Path, tensor: torch.Tensor) -> None:
    np.savez_compressed(path, activations=tensor.numpy())


def save_safetensors(path: Path, tensor: torch.Tensor) -> None:
    safetensors.torch.save_file({"activations": tensor}, path, {"layer": "3"})


def save_pt(path: Path, tensor: Any) -> None:
    torch.save(tensor, path)


def save_old_pt(path: Path, tensor: torch.Tensor) -> None:
    torch.save(tensor, path, _use_new_zipfile_serialization=False)


def save_pt_of_a_dict(path: Path, tensor: torch.Tensor) -> None:
    torch.save({"step": 3, "activations": tensor}, path)


def save_strided_pt(path: Path, tensor: torch.Tensor) -> None:
    torch.save(tensor.flip(0).t().contiguous().t().flip(0) if tensor.ndim == 2 else tensor, path)


def nested(tensor: torch.Tensor, fixed: bool = True) -> Any:
    """An Arrow column of the rows, in fixed-size lists or in lists of any length."""
    arrow = pytest.importorskip("pyarrow")
    column = arrow.array(tensor.numpy().reshape(-1))
    for axis in range(tensor.ndim - 1, 0, -1):
        size, count = tensor.shape[axis], math.prod(tensor.shape[:axis])
        if fixed:
            column = arrow.FixedSizeListArray.from_arrays(column, size)
        else:
            column = arrow.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * size, column)
    return column


def table(tensor: torch.Tensor, fixed: bool = True) -> Any:
    """A table of a column of rows named like a hook, and one of token ids."""
    arrow = pytest.importorskip("pyarrow")
    ids = arrow.array([[1, 2]] * len(tensor), arrow.list_(arrow.int32(), 2))
    return arrow.table({"blocks.0.hook_mlp_out": nested(tensor, fixed), "token_ids": ids})


def save_parquet(path: Path, tensor: torch.Tensor) -> None:
    pytest.importorskip("pyarrow.parquet").write_table(table(tensor), path, row_group_size=2)


def save_parquet_of_lists(path: Path, tensor: torch.Tensor) -> None:
    pytest.importorskip("pyarrow.parquet").write_table(table(tensor, fixed=not len(tensor)), path, row_group_size=2)


def save_arrow(path: Path, tensor: torch.Tensor) -> None:
    columns = table(tensor, fixed=not len(tensor))
    with pytest.importorskip("pyarrow").ipc.new_stream(path, columns.schema) as writer:
        writer.write_table(columns, max_chunksize=2)


def save_feather(path: Path, tensor: torch.Tensor) -> None:
    columns = table(tensor)
    with pytest.importorskip("pyarrow").ipc.new_file(path, columns.schema) as writer:
        writer.write_table(columns, max_chunksize=2)


def save_hdf5(path: Path, tensor: torch.Tensor) -> None:
    with pytest.importorskip("h5py").File(path, "w") as file:
        file.create_dataset("layer/3", data=tensor.numpy(), compression="gzip" if tensor.numel() > 1 else None)
        if tensor.ndim > 1:
            file["token_ids"] = np.arange(4)


def save_zarr(path: Path, tensor: torch.Tensor, version: int = 3, **more: Any) -> None:
    array = tensor.numpy()
    chunks = tuple(min(2, max(1, n)) for n in array.shape[:-1]) + (4,) * min(1, array.ndim)
    zarr = pytest.importorskip("zarr", exc_type=Exception)  # type: ignore[arg-type, unused-ignore]
    zarr.create_array(str(path), data=array, chunks=chunks, zarr_format=version, overwrite=True, **more)


def save_zarr_2(path: Path, tensor: torch.Tensor) -> None:
    save_zarr(path, tensor, 2, order="F")


def save_zarr_group(path: Path, tensor: torch.Tensor) -> None:
    zarr = pytest.importorskip("zarr", exc_type=Exception)  # type: ignore[arg-type, unused-ignore]
    group = zarr.create_group(str(path), overwrite=True)
    group.create_array("layer/3", data=tensor.numpy())


def save_shards(path: Path, tensor: torch.Tensor) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    (path / "metadata.json").write_text("{}")
    for number, start in enumerate(range(max(1, len(tensor))), start=9):
        shard = {"states": tensor[start : start + 1].clone(), "input_ids": torch.arange(3)}
        save_pt(path / f"shard_{number}.pt", shard)


def save_dataset(path: Path, tensor: torch.Tensor) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    halves = tensor[: len(tensor) // 2], tensor[len(tensor) // 2 :]
    for number, half in enumerate(halves):
        save_feather(path / f"data-{number}.arrow", half)
    state = {"_data_files": [{"filename": f"data-{number}.arrow"} for number in range(2)], "_fingerprint": "0"}
    (path / "state.json").write_text(json.dumps(state))
    (path / "dataset_info.json").write_text("{}")


NO_BFLOAT16 = (".npy", ".npz", ".parquet", ".arrow", ".feather", ".h5", ".zarr", ".dataset")
LISTS = (".parquet", ".arrow", ".feather", ".dataset")


def holds(extension: str, shape: tuple[int, ...]) -> bool:
    """Columns of lists, and shards, have two dimensions or more; lists of fixed size have at least one value."""
    if extension in LISTS:
        return len(shape) > 1 and 0 not in shape[1:]
    return extension != ".shards" or len(shape) > 1


FOLDER_SAVERS: list[tuple[Callable[[Path, Any], None], str]] = [
    (save_zarr, ".zarr"),
    (save_zarr_2, ".zarr"),
    (save_zarr_group, ".zarr"),
    (save_dataset, ".dataset"),
    (save_shards, ".shards"),
]
FILE_SAVERS: list[tuple[Callable[[Path, Any], None], str]] = [
    (save_parquet, ".parquet"),
    (save_parquet_of_lists, ".parquet"),
    (save_arrow, ".arrow"),
    (save_feather, ".feather"),
    (save_hdf5, ".h5"),
    (save_npy, ".npy"),
    (save_npz, ".npz"),
    (save_compressed_npz, ".npz"),
    (save_safetensors, ".safetensors"),
    (save_pt, ".pt"),
    (save_old_pt, ".pt"),
    (save_pt_of_a_dict, ".pth"),
    (save_strided_pt, ".pt"),
]
SAVERS = FILE_SAVERS + FOLDER_SAVERS


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("save, extension", SAVERS, ids=[saver.__name__ for saver, _ in SAVERS])
def test_a_file_of_another_library_reads_as_its_rows(
    tmp_path: Path, save: Callable[[Path, torch.Tensor], None], extension: str, shape: tuple[int, ...]
) -> None:
    if not holds(extension, shape):
        pytest.skip("no such column of lists, or no such shards")
    for dtype in ["float16", "float32", "float64"] + ["bfloat16"] * (extension not in NO_BFLOAT16):
        path, tensor = tmp_path / f"a{extension}", values(shape, dtype)
        save(path, tensor)
        source = open_array(path)
        assert (source.path, source.shape, source.dtype) == (str(path), shape, dtype)
        assert (source.n_rows, source.width) == (math.prod(shape[:-1]), 7)
        assert source.nbytes == tensor.numel() * tensor.element_size()
        np.testing.assert_array_equal(read_all(source), as_rows(tensor))


def test_a_pt_file_reads_on_after_it_was_mapped_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saecodec.formats.torch_arrays._BYTES_PER_MAP", 100)
    tensor = values((50, 7))
    save_pt(tmp_path / "a.pt", tensor)
    np.testing.assert_array_equal(read_all(open_array(tmp_path / "a.pt")), as_rows(tensor))


@pytest.mark.parametrize("batch_rows", [1, 4, 6, 100])
@pytest.mark.parametrize("save, extension", SAVERS, ids=[saver.__name__ for saver, _ in SAVERS])
def test_batches_start_again_with_every_call_and_have_the_size_asked_for(
    tmp_path: Path, save: Callable[[Path, torch.Tensor], None], extension: str, batch_rows: int
) -> None:
    path, tensor = tmp_path / f"a{extension}", values((2, 3, 7))
    save(path, tensor)
    source = open_array(path)
    next(source.batches(batch_rows))[:] = 0  # a batch is the caller's own: neither file nor later batches change
    for _ in range(2):
        assert [len(batch) for batch in source.batches(batch_rows)] == [
            min(batch_rows, 6 - start) for start in range(0, 6, batch_rows)
        ]
        np.testing.assert_array_equal(read_all(source, batch_rows), as_rows(tensor))


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["npy", "npz", "compressed npz", "memory"])
def test_any_byte_order_and_memory_order_reads_as_its_rows(tmp_path: Path, kind: str, order: Any, dtype: str) -> None:
    for shape in SHAPES:
        tensor = values(shape)
        array = np.asarray(tensor.numpy().astype(dtype), order=order)
        path = tmp_path / f"a.{kind[-3:]}"
        if kind == "npy":
            np.save(path, array)
        elif kind == "npz":
            np.savez(path, array)
        elif kind == "compressed npz":
            np.savez_compressed(path, array)
        source = MemoryArray(array) if kind == "memory" else open_array(path)
        assert source.dtype == np.dtype(dtype).name
        np.testing.assert_array_equal(read_all(source), as_rows(tensor))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_npy_header_is_read(tmp_path: Path, version: tuple[int, int]) -> None:
    tensor = values((3, 7))
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, tensor.numpy(), version)
    np.testing.assert_array_equal(read_all(open_array(tmp_path / "a.npy")), as_rows(tensor))


def test_a_strided_view_in_memory_reads_as_its_rows() -> None:
    array = np.arange(4 * 6 * 10, dtype=np.float32).reshape(4, 6, 10)
    view = array[::-1, 1::2, ::3]
    np.testing.assert_array_equal(read_all(MemoryArray(view)), view.reshape(-1, 4))


def test_a_batch_of_memory_is_a_copy() -> None:
    array = np.ones((3, 2), np.float32)
    next(MemoryArray(array).batches(3))[:] = 0
    assert array.all()


def test_float64_beyond_the_range_of_float32_becomes_infinite() -> None:
    batch = next(MemoryArray(np.array([[1e300, -1e300, 1e-300]])).batches(1))
    np.testing.assert_array_equal(batch, [[np.inf, -np.inf, 0]])


def test_one_of_several_arrays_is_chosen_by_key(tmp_path: Path) -> None:
    a, b = values((2, 7)), values((3, 7)) + 1
    np.savez(tmp_path / "m.npz", a=a.numpy(), b=b.numpy())
    safetensors.torch.save_file({"a": a, "b": b}, tmp_path / "m.safetensors")
    torch.save({"a": a, "b": b}, tmp_path / "m.pt")
    for name in ("m.npz", "m.safetensors", "m.pt"):
        np.testing.assert_array_equal(read_all(open_array(tmp_path / name, "a")), as_rows(a))
        np.testing.assert_array_equal(read_all(open_array(tmp_path / name, key="b")), as_rows(b))
        with pytest.raises(InputError, match=r"holds 2 arrays; choose one with key \(--key\): 'a' .*\(2, 7\), 'b' "):
            open_array(tmp_path / name)
        with pytest.raises(InputError, match=r"no array named 'c'; expected one of: 'a' .*\(2, 7\), 'b' .*\(3, 7\)"):
            open_array(tmp_path / name, "c")


def test_a_long_list_of_keys_is_cut(tmp_path: Path) -> None:
    torch.save({f"layer{n}": torch.zeros(1, 1) for n in range(50)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"'layer19' .* and 30 more$"):
        open_array(tmp_path / "m.pt")


@pytest.mark.parametrize("save, extension", [(save_npy, ".npy"), (save_pt, ".pt")], ids=["npy", "pt"])
def test_a_key_for_an_array_without_a_name_is_refused(
    tmp_path: Path, save: Callable[[Path, torch.Tensor], None], extension: str
) -> None:
    save(tmp_path / f"a{extension}", values((2, 7)))
    with pytest.raises(InputError, match="holds one array without a name, so the key 'a' fits nothing"):
        open_array(tmp_path / f"a{extension}", "a")


@pytest.mark.parametrize("name", ["empty.npz", "empty.safetensors", "empty.pt"])
def test_a_file_without_arrays_is_refused(tmp_path: Path, name: str) -> None:
    if name.endswith(".npz"):
        np.savez(tmp_path / name)
    elif name.endswith(".pt"):
        torch.save({"step": 3}, tmp_path / name)
    else:
        safetensors.numpy.save_file({}, tmp_path / name)
    with pytest.raises(InputError, match="holds no arrays"):
        open_array(tmp_path / name)


@pytest.mark.parametrize("extension", FORMATS)
def test_a_missing_file_is_named(tmp_path: Path, extension: str) -> None:
    with pytest.raises(InputError, match=rf"nowhere{extension}: no such file"):
        open_array(tmp_path / f"nowhere{extension}")


def test_an_empty_folder_is_not_an_array(tmp_path: Path) -> None:
    (tmp_path / "a.npy").mkdir()
    with pytest.raises(InputError, match="holds no array files"):
        open_array(tmp_path / "a.npy")


def test_an_unknown_extension_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'.csv'; expected one of .npy, .npz, .safetensors, .pt, .pth"):
        open_array(tmp_path / "a.csv")


def test_the_case_of_the_extension_does_not_matter(tmp_path: Path) -> None:
    with open(tmp_path / "A.NPY", "wb") as file:
        np.save(file, np.zeros((2, 3), np.float32))
    assert open_array(tmp_path / "A.NPY").shape == (2, 3)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64", "longdouble", "V2", "U3"])
def test_other_dtypes_are_refused(tmp_path: Path, dtype: str) -> None:
    array = np.zeros((2, 3), dtype)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", array)
    message = "has dtype .*; expected one of float16, bfloat16, float32, float64: convert the array first"
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match=message):
            open_array(tmp_path / name)
    with pytest.raises(InputError, match=message):
        MemoryArray(array)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_other_tensor_dtypes_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.zeros((2, 3), dtype=dtype)
    torch.save(tensor, tmp_path / "a.pt")
    safetensors.torch.save_file({"a": tensor}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(InputError, match=rf"{name}: has dtype .*; expected one of float16"):
            open_array(tmp_path / name)


class Bomb:
    """Unpickling it would create a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("unpickled", "w")


def test_no_pickle_is_ever_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    array = np.array([[Bomb()]], dtype=object)
    np.save("a.npy", array)
    np.savez("a.npz", array)
    torch.save(Bomb(), "a.pt")
    torch.save(Bomb(), "old.pt", _use_new_zipfile_serialization=False)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match="object \\(a pickle, which is never loaded\\)"):
            open_array(name)
    for name in ("a.pt", "old.pt"):
        with pytest.raises(InputError, match=f"{name}: cannot be loaded as tensors only"):
            open_array(name)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)], ids=str)
@pytest.mark.parametrize("save, extension", SAVERS, ids=[saver.__name__ for saver, _ in SAVERS])
def test_arrays_without_width_are_refused(
    tmp_path: Path, save: Callable[[Path, torch.Tensor], None], extension: str, shape: tuple[int, ...]
) -> None:
    if not holds(extension, shape):
        pytest.skip("no such column of lists, or no such shards")
    save(tmp_path / f"a{extension}", values(shape))
    with pytest.raises(InputError, match=r"has shape .*; expected rows of at least one value"):
        open_array(tmp_path / f"a{extension}")


@pytest.mark.parametrize("tensor", [torch.eye(3).to_sparse(), torch.empty(2, 3, device="meta")], ids=["sparse", "meta"])
def test_tensors_that_are_not_dense_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save(tensor, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"holds a sparse, nested or meta tensor|cannot be loaded"):
        open_array(tmp_path / "a.pt")


def test_a_parameter_is_a_tensor(tmp_path: Path) -> None:
    tensor = values((3, 7))
    torch.save(torch.nn.Parameter(tensor), tmp_path / "a.pt")
    np.testing.assert_array_equal(read_all(open_array(tmp_path / "a.pt")), as_rows(tensor))


def test_a_pt_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(InputError, match="holds a list; expected a tensor or a dict of tensors"):
        open_array(tmp_path / "a.pt")


@pytest.mark.parametrize("batch_rows", [0, -1])
def test_batches_without_rows_are_refused_at_once(batch_rows: int) -> None:
    with pytest.raises(InputError, match=f"batches of {batch_rows} rows were asked for"):
        MemoryArray(np.zeros((2, 3), np.float32)).batches(batch_rows)


def read_or_refuse(path: Path) -> str | None:
    """The message of the InputError that reading the file raises; another exception fails the test."""
    try:
        for _ in open_array(path).batches(100):
            pass
    except InputError as error:
        message = str(error)
    else:
        return None
    assert str(path) in message
    return message


@pytest.mark.parametrize("save, extension", FILE_SAVERS, ids=[saver.__name__ for saver, _ in FILE_SAVERS])
def test_a_truncated_file_is_refused_wherever_it_ends(
    tmp_path: Path, save: Callable[[Path, torch.Tensor], None], extension: str
) -> None:
    whole, cut = tmp_path / f"whole{extension}", tmp_path / f"cut{extension}"
    save(whole, values((50, 7)))
    content = whole.read_bytes()
    for end in [0, 1, 7, 8, 9, 60, 100, len(content) // 2, len(content) - 20, len(content) - 1]:
        cut.write_bytes(content[:end])
        assert read_or_refuse(cut) is not None, end


@pytest.mark.filterwarnings("ignore:.*created on Python 2", "ignore::SyntaxWarning")
@pytest.mark.parametrize("save, extension", FILE_SAVERS, ids=[saver.__name__ for saver, _ in FILE_SAVERS])
def test_a_corrupt_file_reads_or_is_refused_but_never_crashes(
    tmp_path: Path, save: Callable[[Path, torch.Tensor], None], extension: str
) -> None:
    path, chance = tmp_path / f"a{extension}", random.Random(5)
    save(path, values((5, 7)))
    content = path.read_bytes()
    for _ in range(60):
        corrupt = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            corrupt[chance.randrange(len(corrupt))] = chance.randrange(256)
        path.write_bytes(corrupt)
        read_or_refuse(path)


def test_a_flipped_bit_in_an_npz_is_found_by_its_checksum(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((50, 7), np.float32))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[500] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    assert "Bad CRC-32" in str(read_or_refuse(tmp_path / "a.npz"))


def test_an_npy_file_of_two_arrays_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "a.npy", "wb") as file:
        np.save(file, np.zeros((2, 3), np.float32))
        np.save(file, np.zeros((2, 3), np.float32))
    with pytest.raises(InputError, match=r"float32 \(2, 3\) needs .*truncated, or holds more than one array"):
        open_array(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", ["(-1, 4)", "(2, 1000000000000)", "'x'", "(1.5, 2)"])
def test_a_lying_npy_header_is_refused(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(32))
    assert read_or_refuse(tmp_path / "a.npy") is not None


def test_an_encrypted_npz_member_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3), np.float32))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match="'a' is encrypted or unusually compressed"):
        open_array(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b"[" * 100_000,
        json.dumps({"a": 3}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2, 3]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 48]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2, -3], "data_offsets": [0, 24]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2, 3.0], "data_offsets": [0, 24]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [True, 6], "data_offsets": [0, 24]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": "23", "data_offsets": [0, 24]}}).encode(),
    ],
    ids=range(11),
)
def test_a_lying_safetensors_header_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    assert "corrupt" in str(read_or_refuse(path))


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((50, 7), np.float32))
    source = open_array(tmp_path / "a.npy")
    with open(tmp_path / "a.npy", "r+b") as file:
        file.truncate(500)
    with pytest.raises(InputError, match=r"a\.npy: cannot be read \(it ends before its last row\)"):
        list(source.batches(10))


@pytest.mark.parametrize("kind", ["npy", "compressed npz", "column-major npz", "safetensors"])
def test_reading_holds_one_batch_not_the_array(tmp_path: Path, kind: str) -> None:
    array = np.zeros((50_000, 64), np.float32)  # 12.8 MB
    path = tmp_path / f"a.{kind.split()[-1]}"
    if kind == "npy":
        np.save(path, array)
    elif kind == "safetensors":
        safetensors.numpy.save_file({"a": array}, path)
    else:
        np.savez_compressed(path, np.asfortranarray(array) if "column" in kind else array)
    del array
    tracemalloc.start()
    try:
        rows = sum(len(batch) for batch in open_array(path).batches(500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 50_000
    assert peak < 6e6


def test_importing_the_modules_does_not_import_torch(tmp_path: Path) -> None:
    code = "import sys, saecodec.formats.arrays, saecodec.formats.array_sinks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
