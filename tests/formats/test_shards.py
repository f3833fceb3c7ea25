"""Folders and patterns of array files as one array, and the choice among the tensors of a shard."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saecodec.errors import InputError, OutputError
from saecodec.formats.array_source import ArraySource
from saecodec.formats.arrays import open_array
from saecodec.formats.encoding import encode_array

X = np.arange(24 * 3 * 4, dtype=np.float32).reshape(24, 3, 4)


def save(path: Path, x: Any) -> None:
    if path.suffix == ".npz":
        np.savez(path, x=x, ids=np.arange(3))
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(x.copy()), path)
    else:
        np.save(path, x)


def rows_of(source: ArraySource, batch: int = 5) -> Any:
    return np.concatenate(list(source.batches(batch)))


@pytest.mark.parametrize("extension", ["npy", "npz", "pt"])
def test_shards_follow_each_other_in_natural_order(tmp_path: Path, extension: str) -> None:
    for number in range(12):  # in the order of the alphabet 10 and 11 come before 2
        save(tmp_path / f"shard_{number}.{extension}", X[2 * number : 2 * number + 2])
    for name in ("metadata.json", "notes.txt", "README.md", "acts.saec", ".hidden.npy", "_SUCCESS"):
        (tmp_path / name).write_text("{}")
    for path in (tmp_path, tmp_path / f"shard_*.{extension}", tmp_path / "*"):
        source = open_array(path)
        assert (source.path, source.shape, source.dtype) == (str(path), X.shape, "float32")
        np.testing.assert_array_equal(rows_of(source), X.reshape(-1, 4))
    part = open_array(tmp_path / f"shard_1[01].{extension}")
    np.testing.assert_array_equal(rows_of(part), X[20:].reshape(-1, 4))


@pytest.mark.parametrize("sizes", [[72], [1] * 72, [0, 7, 0, 60, 5], [3, 69]], ids=lambda sizes: str(sizes)[:12])
def test_batches_cross_shards_and_are_of_any_size(tmp_path: Path, sizes: list[int]) -> None:
    for number, (start, stop) in enumerate([(0, 1), (1, 1), (1, 20), (20, 24)]):
        save(tmp_path / f"{number}.npy", X[start:stop])
    batches = list(open_array(tmp_path).batches(sizes))
    assert [len(batch) for batch in batches] == sizes
    np.testing.assert_array_equal(np.concatenate(batches), X.reshape(-1, 4))


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    save(tmp_path / "layer[3].npy", X)
    save(tmp_path / "layer3.npy", X + 1)
    np.testing.assert_array_equal(rows_of(open_array(tmp_path / "layer[3].npy")), X.reshape(-1, 4))


def test_stores_of_a_folder_are_shards_too(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr", exc_type=Exception)  # type: ignore[arg-type, unused-ignore]
    for number in range(2):
        zarr.create_array(str(tmp_path / f"{number}.zarr"), data=X[12 * number :][:12])
    np.testing.assert_array_equal(rows_of(open_array(tmp_path / "*.zarr")), X.reshape(-1, 4))
    np.testing.assert_array_equal(rows_of(open_array(tmp_path)), X.reshape(-1, 4))


@pytest.mark.parametrize(
    "odd",
    [X[:2].astype(np.float16), X[:2, :2], X[:2, :, :3], X[:2, 0]],
    ids=["dtype", "context", "width", "dimensions"],
)
def test_the_first_shard_that_differs_is_named(tmp_path: Path, odd: Any) -> None:
    for number in range(12):
        save(tmp_path / f"{number}.npy", odd if number in (2, 10) else X)
    with pytest.raises(
        InputError, match=rf"{tmp_path}: {tmp_path}/2.npy holds .*, but {tmp_path}/0.npy float32 \(24, 3, 4\)"
    ):
        open_array(tmp_path)


def test_shards_of_one_dimension_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "0.npy", np.zeros(4, np.float32))
    with pytest.raises(InputError, match=r"0.npy has shape \(4,\); expected shards \(n, ..., width\)"):
        open_array(tmp_path)


def test_kinds_are_not_mixed(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", X)
    save(tmp_path / "b.pt", X)
    with pytest.raises(InputError, match=r"holds npy: a.npy, torch: b.pt; expected array files of one kind"):
        open_array(tmp_path)
    assert open_array(tmp_path / "*.npy").shape == X.shape


@pytest.mark.parametrize("name", ["x.csv", "sub/"])
def test_what_is_no_array_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a.npy", X)
    (tmp_path / "sub").mkdir() if name == "sub/" else (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=rf"holds .*: {name.strip('/')}"):
        open_array(tmp_path)


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    for path in (tmp_path / "*.npy", tmp_path, tmp_path / "*.json"):
        with pytest.raises(InputError, match="holds no array files"):
            open_array(path)


def test_a_shard_that_changes_or_breaks_while_it_is_read_is_named(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"{number}.npy", X)
    source = open_array(tmp_path)
    save(tmp_path / "1.npy", X[:3])
    with pytest.raises(InputError, match=r"1.npy: changed to float32 \(3, 3, 4\)"):
        rows_of(source)
    (tmp_path / "1.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"1.npy: is truncated"):
        rows_of(source)


def test_the_only_float_tensor_of_two_dimensions_needs_no_key(tmp_path: Path) -> None:
    states = torch.arange(24.0).reshape(2, 3, 4).to(torch.bfloat16)
    shard = {"states": states, "input_ids": torch.zeros(2, 3, dtype=torch.int64), "norms": torch.zeros(3), "step": 3}
    torch.save(shard, tmp_path / "0.pt")
    assert (open_array(tmp_path / "0.pt").shape, open_array(tmp_path / "0.pt").dtype) == ((2, 3, 4), "bfloat16")
    assert open_array(tmp_path, "states").shape == (2, 3, 4)
    torch.save({**shard, "more": states}, tmp_path / "0.pt")
    with pytest.raises(
        InputError, match=r"holds 4 arrays; choose one with key \(--key\): 'states' bfloat16 \(2, 3, 4\)"
    ):
        open_array(tmp_path)


def test_an_output_that_is_one_of_the_inputs_is_refused(tmp_path: Path, make_sae: Any) -> None:
    sae = make_sae("standard")
    folder = tmp_path / "acts"
    folder.mkdir()
    for number in range(2):
        save(folder / f"{number}.npy", np.ones((5, sae.width), np.float32))
    before = (folder / "1.npy").read_bytes()
    (tmp_path / "link").symlink_to(folder / "1.npy")
    for output in (folder / "1.npy", tmp_path / "link"):
        for path in (folder, folder / "*.npy"):
            with pytest.raises(OutputError, match="is the input"):
                encode_array(open_array(path), output, sae=sae, force=True)
    assert (folder / "1.npy").read_bytes() == before
    encode_array(open_array(folder), folder / "acts.saec", sae=sae)  # beside the shards is no shard
    assert open_array(folder).n_rows == 10


def test_a_file_inside_of_a_store_is_no_output(tmp_path: Path, make_sae: Any) -> None:
    zarr = pytest.importorskip("zarr", exc_type=Exception)  # type: ignore[arg-type, unused-ignore]
    sae = make_sae("standard")
    zarr.create_array(str(tmp_path / "x.zarr"), data=np.ones((5, sae.width), np.float32))
    with pytest.raises(OutputError, match="is the input"):
        encode_array(open_array(tmp_path / "x.zarr"), tmp_path / "x.zarr" / "zarr.json", sae=sae, force=True)


@pytest.mark.parametrize(
    "library, name, extra",
    [
        ("pyarrow", "x.arrow", "arrow"),
        ("pyarrow.parquet", "x.parquet", "arrow"),
        ("h5py", "x.h5", "hdf5"),
        ("zarr", "x", "zarr"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, name: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / ".zgroup").write_text("{}")
    (tmp_path / "x.arrow").write_bytes(b"")
    (tmp_path / "x.parquet").write_bytes(b"")
    (tmp_path / "x.h5").write_bytes(b"")
    path = tmp_path if library == "zarr" else tmp_path / name
    with pytest.raises(InputError, match=rf"needs {library.split('.')[0]}, which .*pip install 'saecodec\[{extra}\]'"):
        open_array(path)


@pytest.mark.parametrize(
    "save_shard", [np.save, lambda path, x: torch.save(torch.from_numpy(x), path)], ids=["npy", "pt"]
)
def test_reading_holds_a_few_batches_not_the_shards(tmp_path: Path, save_shard: Callable[[Path, Any], None]) -> None:
    suffix = "npy" if save_shard is np.save else "pt"
    for number in range(10):
        save_shard(tmp_path / f"{number}.{suffix}", np.zeros((10_000, 64), np.float32))  # 25.6 MB together
    open_array(tmp_path)
    tracemalloc.start()
    try:
        rows = sum(len(batch) for batch in open_array(tmp_path).batches(500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 100_000
    assert peak < 10e6
