"""Reading datasets of HDF5 files (h5py, an extra).

Only what lies in the file itself is read: soft and external links are not followed, and datasets whose values lie in
other files are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.array_blocks import BlockArray, block_slices
from saecodec.formats.array_keys import Listed, choose
from saecodec.formats.array_source import ITEM_BYTES, bad_dtype, float_dtype
from saecodec.formats.optional_library import library_errors, load_library

# Position of sign, exponent, exponent bits, mantissa, mantissa bits: h5py gives a dataset of such values as float32.
_BFLOAT16_FIELDS = (15, 7, 8, 0, 7)


class Hdf5Array(BlockArray):
    """A dataset of an HDF5 file, read a few chunks at a time."""

    def __init__(self, path: str, key: str | None) -> None:
        self._h5py = load_library("h5py", "hdf5", path)
        with library_errors(path), self._h5py.File(path, "r") as file:
            datasets = _datasets(self._h5py, file)
            name = choose(path, list(datasets), key.strip("/") if key else key, lambda name: _listed(datasets[name]))
            dataset = datasets[name]
            where = f"{path}[{name!r}]"
            self._check(dataset, where)
            super().__init__(path, tuple(dataset.shape), _dtype(dataset, where))
            self._name = name

    def _check(self, dataset: Any, where: str) -> None:
        """InputError unless the values lie in this file, packed with filters that are here."""
        if dataset.shape is None:
            raise InputError(f"{where}: is an empty dataset without a shape; expected rows (..., width)")
        if dataset.external or dataset.is_virtual:
            raise InputError(f"{where}: its values lie in other files, which are not followed; copy it with h5repack")
        properties = dataset.id.get_create_plist()
        for number in range(properties.get_nfilters()):
            code, _, _, label = properties.get_filter(number)
            if not self._h5py.h5z.filter_avail(code):
                called = label.decode(errors="replace") or "without a name"
                raise InputError(
                    f"{where}: is packed with filter {code} ({called}), which this HDF5 library lacks; write it again "
                    "with gzip (h5repack -f GZIP=4)"
                )

    def _blocks(self) -> Iterator[npt.NDArray[Any]]:
        with self._h5py.File(self.path, "r") as file:
            dataset = file[self._name]
            if dataset.shape != self.shape:
                raise InputError(f"{self.path}: changed from {self.shape} to {dataset.shape} since it was opened")
            for index in block_slices(self.shape, dataset.chunks, dataset.dtype.itemsize):
                yield np.asarray(dataset[index]).reshape(-1, self.width)


def _datasets(h5py: Any, file: Any) -> dict[str, Any]:
    """All datasets by their path; `visititems` follows no soft and no external links."""
    found: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    file.visititems(visit)
    return found


def _is_bfloat16(dataset: Any) -> bool:
    kind = dataset.id.get_type()
    return bool(dataset.dtype == np.float32 and kind.get_size() == 2 and kind.get_fields() == _BFLOAT16_FIELDS)


def _listed(dataset: Any) -> Listed:
    dtype = "bfloat16" if _is_bfloat16(dataset) else dataset.dtype.name
    return Listed.of(dtype, tuple(dataset.shape or ()))


def _dtype(dataset: Any, where: str) -> str:
    if _is_bfloat16(dataset):
        return "bfloat16"
    if dataset.dtype.hasobject:
        raise bad_dtype(where, "of variable length (strings, references or ragged rows)")
    dtype = float_dtype(dataset.dtype, where)
    if dataset.id.get_type().get_size() != ITEM_BYTES[dtype]:
        raise bad_dtype(where, f"of {dataset.id.get_type().get_size()} bytes, which no NumPy dtype has")
    return dtype
