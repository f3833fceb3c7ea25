"""saerch's stores of activations: `topk_indices_{k}_{n}.npy` and `topk_values_{k}_{n}.npy`, (rows, k) each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import numpy as np

from saecodec.errors import InputError
from saecodec.formats.array_source import float_dtype
from saecodec.formats.latent_source import LatentSource, StoredBytes, with_latents
from saecodec.formats.numpy_arrays import map_npy
from saecodec.latent_rows import LatentRows

_PARTS = ("topk_indices", "topk_values")


class SaerchPair(LatentSource):
    """k activations a row, in any order, of which some may be zero. F is in the name, `..._{k}_{n}.npy`, or given."""

    kind = "saerch"

    def __init__(self, path: str, n_latents: int | None) -> None:
        folder, name = os.path.split(path)
        paths = [os.path.join(folder, re.sub("^topk_(indices|values)", part, name)) for part in _PARTS]
        missing = next((p for p in paths if not os.path.isfile(p)), None)
        if missing is not None:
            raise InputError(f"{path}: its other half, {missing}, is not there")
        self._indices, self._values = (map_npy(p) for p in paths)
        shape = self._indices.shape
        if len(shape) < 2 or self._values.shape != shape or self._indices.dtype.kind not in "iu":
            raise InputError(
                f"{path}: {self._indices.dtype} {shape} and {self._values.dtype} {self._values.shape}; expected "
                "integer latent numbers (..., k) and as many values"
            )
        named = re.search(r"_(\d+)_(\d+)\.npy$", name)
        if named is None and n_latents is None:
            raise InputError(f"{path}: how many latents there are is not in its name: give it (--n-latents F)")
        found = int(named[2]) if named and int(named[1]) == shape[-1] else 1
        dtype = float_dtype(self._values.dtype, paths[1])
        size = StoredBytes(sum(os.path.getsize(p) for p in paths))
        super().__init__(path, (*shape[:-1], with_latents(path, found, n_latents)), dtype, size)

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[LatentRows]:
        k = self._indices.shape[-1]
        indices, values = self._indices.reshape(-1, k), self._values.reshape(-1, k)
        for start, stop in spans:
            indptr = np.arange(stop - start + 1, dtype=np.int64) * k
            latents = indices[start:stop].reshape(-1).astype(np.int64)
            found = values[start:stop].reshape(-1).astype(values.dtype.newbyteorder("="))
            yield LatentRows.sorted(indptr, latents, found, self.n_latents, self.path, start)
