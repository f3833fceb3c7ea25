"""Arrays of zarr stores, and what is refused of them."""

from __future__ import annotations

import importlib.metadata
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saecodec.errors import InputError
from saecodec.formats.arrays import open_array

try:
    importlib.metadata.version("zfpy")
except importlib.metadata.PackageNotFoundError:
    zarr = pytest.importorskip("zarr", minversion="3")
else:
    pytest.skip("zarr cannot be imported where zfpy is installed", allow_module_level=True)

X = np.arange(6 * 4, dtype=np.float32).reshape(6, 4)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rows_of(path: Path, key: str | None = None) -> Any:
    return np.concatenate(list(open_array(path, key).batches(4)))


@pytest.mark.parametrize("version", [2, 3])
def test_the_path_of_an_array_in_a_group_is_its_key(tmp_path: Path, version: Any) -> None:
    group = zarr.create_group(str(tmp_path / "x"), zarr_format=version)
    for name in ("layer/3", "layer/4"):
        group.create_array(name, data=X)
    group.create_array("ids", data=np.arange(6))
    with pytest.raises(InputError, match=r"holds 3 arrays; choose .*'layer/3' float32 \(6, 4\)"):
        open_array(tmp_path / "x")
    np.testing.assert_array_equal(rows_of(tmp_path / "x", "layer/3"), X)
    np.testing.assert_array_equal(rows_of(tmp_path / "x" / "layer" / "4"), X)
    with pytest.raises(InputError, match="one array without a name"):
        open_array(tmp_path / "x" / "layer" / "4", "layer")


def test_consolidated_metadata_of_an_older_state_are_not_believed(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "x"), zarr_format=2)
    group.create_array("a", data=X)
    zarr.consolidate_metadata(str(tmp_path / "x"))
    (tmp_path / "x" / "a").rename(tmp_path / "x" / "b")
    np.testing.assert_array_equal(rows_of(tmp_path / "x", "b"), X)


def test_shards_of_a_store_are_read(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "x"), data=X, chunks=(2, 4), shards=(4, 4))
    np.testing.assert_array_equal(rows_of(tmp_path / "x"), X)


@pytest.mark.parametrize("part", ["filters", "compressor"])
@pytest.mark.parametrize("codec", ["pickle", "nonsense"])
def test_a_codec_that_may_run_code_or_is_unknown_is_refused(tmp_path: Path, part: str, codec: str) -> None:
    zarr.create_array(str(tmp_path / "x"), data=X, zarr_format=2)
    value = {"id": codec}
    edit(tmp_path / "x" / ".zarray", **{part: [value] if part == "filters" else value})
    with pytest.raises(InputError, match=f"{tmp_path}/x: .*{codec}"):
        rows_of(tmp_path / "x")


@pytest.mark.parametrize(
    "changes",
    [
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "nonsense"}]},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "numcodecs.pickle"}]},
        {"data_type": "bfloat16"},
        {"data_type": "int32"},
        {"data_type": 3},
        {"shape": [6, -4]},
        {"shape": [6, 0]},
        {"shape": "64"},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 30, 4]}}},
        {"storage_transformers": [{"name": "nonsense"}]},
        {"zarr_format": 9},
    ],
    ids=str,
)
def test_lying_metadata_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    zarr.create_array(str(tmp_path / "x"), data=X)
    edit(tmp_path / "x" / "zarr.json", **changes)
    with pytest.raises(InputError, match=f"{tmp_path}/x: "):
        rows_of(tmp_path / "x")


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, None])
def test_a_corrupt_chunk_is_refused(tmp_path: Path, content: bytes | None) -> None:
    zarr.create_array(str(tmp_path / "x"), data=X, chunks=(3, 4))
    chunk = tmp_path / "x" / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-5] if content is None else content)
    with pytest.raises(InputError, match=f"{tmp_path}/x: cannot be read"):
        rows_of(tmp_path / "x")


@pytest.mark.parametrize("shape", [(50_000, 64), (2, 25_000, 64)], ids=str)
def test_reading_holds_a_few_batches_not_the_array(tmp_path: Path, shape: tuple[int, ...]) -> None:
    chunks = (*[1] * (len(shape) - 2), 1000, 64)
    zarr.create_array(str(tmp_path / "x"), data=np.ones(shape, np.float32), chunks=chunks)  # 12.8 MB
    tracemalloc.start()
    try:
        rows = sum(len(batch) for batch in open_array(tmp_path / "x").batches(500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 50_000
    assert peak < 11e6
