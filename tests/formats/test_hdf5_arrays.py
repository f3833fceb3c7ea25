"""Datasets of HDF5 files, and what is refused of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saecodec.errors import InputError
from saecodec.formats.arrays import open_array

h5py = pytest.importorskip("h5py")

X = np.arange(6 * 4, dtype=np.float32).reshape(6, 4)


def test_the_path_of_a_dataset_is_its_key(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layer/3"], file["layer/4"] = X, X + 1
    with pytest.raises(InputError, match=r"'layer/3' float32 \(6, 4\), 'layer/4' float32 \(6, 4\)"):
        open_array(tmp_path / "x.h5")
    for key in ("layer/4", "/layer/4"):
        np.testing.assert_array_equal(np.concatenate(list(open_array(tmp_path / "x.h5", key).batches(4))), X + 1)


def test_bfloat16_is_read_as_what_it_is(tmp_path: Path) -> None:
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        h5py.h5d.create(file.id, b"x", kind, h5py.h5s.create_simple(X.shape)).write(h5py.h5s.ALL, h5py.h5s.ALL, X)
    source = open_array(tmp_path / "x.hdf5")
    assert (source.dtype, source.nbytes) == ("bfloat16", 48)
    np.testing.assert_array_equal(np.concatenate(list(source.batches(4))), X)


@pytest.mark.parametrize("dtype", ["int32", "V2", "S3", "complex64", h5py.vlen_dtype(np.float32), h5py.string_dtype()])
def test_other_dtypes_are_refused(tmp_path: Path, dtype: Any) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (2, 3), dtype)
    with pytest.raises(InputError, match=r"x.h5\['x'\]: has dtype .*; expected one of float16"):
        open_array(tmp_path / "x.h5")


def test_values_in_other_files_are_never_followed(tmp_path: Path) -> None:
    np.save(tmp_path / "secret.npy", X)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = X
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["linked"] = h5py.ExternalLink("other.h5", "x")
        file["soft"] = h5py.SoftLink("/linked")
        file.create_dataset("raw", X.shape, "f4", external=[(str(tmp_path / "secret.npy"), 128, X.nbytes)])
        layout = h5py.VirtualLayout(X.shape, "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", X.shape)
        file.create_virtual_dataset("virtual", layout)
    for key in ("linked", "soft"):
        with pytest.raises(InputError, match=f"holds no array named '{key}'"):
            open_array(tmp_path / "x.h5", key)
    for key in ("raw", "virtual"):
        with pytest.raises(InputError, match="its values lie in other files, which are not followed"):
            open_array(tmp_path / "x.h5", key)


def test_a_filter_that_is_not_here_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((2, 4))
        properties.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple(X.shape)
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, properties)
    with pytest.raises(InputError, match=r"x.h5\['x'\]: is packed with filter 32999 .* write it again with gzip"):
        open_array(tmp_path / "x.h5")


def test_a_dataset_without_a_shape_and_a_file_without_datasets_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["x"] = h5py.Empty("f4")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file.create_group("g")
    with pytest.raises(InputError, match=r"x.h5\['x'\]: is an empty dataset"):
        open_array(tmp_path / "x.h5")
    with pytest.raises(InputError, match=r"y.h5: holds no arrays"):
        open_array(tmp_path / "y.h5")


@pytest.mark.parametrize("shape", [(50_000, 64), (2, 25_000, 64)], ids=str)
@pytest.mark.parametrize("chunked", [False, True])
def test_reading_holds_a_few_batches_not_the_dataset(tmp_path: Path, shape: tuple[int, ...], chunked: bool) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        chunks = (*[1] * (len(shape) - 2), 1000, 64) if chunked else None
        file.create_dataset("x", data=np.zeros(shape, np.float32), chunks=chunks)  # 12.8 MB
    tracemalloc.start()
    try:
        rows = sum(len(batch) for batch in open_array(tmp_path / "x.h5").batches(500))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 50_000
    assert peak < 10e6
