"""The feature activations of an open file: by rows, as sparse matrices; by latent, without decoding the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes
from saecodec.errors import InputError
from saecodec.formats.array_index import row_index
from saecodec.formats.latent_values import latent_dtype, latent_values
from saecodec.formats.saec import SaecFile
from saecodec.stored_floats import as_float

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from saecodec.formats.saec_array import SaecArray


class FeatureView:
    """Activations, or levels, of T rows and F latents: `view[index]` is a scipy CSR matrix (n, F).

    index: of flattened rows: an integer, a slice, a mask, or integers, which may repeat. Activations are float32, or
    float64 where latents were stored as such; levels are int32.
    """

    def __init__(self, array: SaecArray, *, levels: bool = False) -> None:
        self._array, self._levels = array, levels

    @property
    def shape(self) -> tuple[int, int]:
        """(T, F)."""
        return self._array.n_rows, self._array.file.codec.latents.prior.n_latents

    def __getitem__(self, index: Any) -> csr_array:
        try:
            from scipy.sparse import csr_array
        except ImportError as error:
            raise InputError("sparse matrices take scipy: pip install 'saecodec[sparse]'") from error
        if isinstance(index, tuple):
            raise IndexError(
                "an index names rows, over the flattened leading dimensions; the activations of a latent are "
                "f.feature(latent), or a column of the matrix, f.features[rows][:, latent]"
            )
        numbers, _ = row_index(index, (self._array.n_rows,), 0)
        if numbers.ndim > 1:
            raise IndexError(f"a matrix has rows in one dimension, not indices of shape {numbers.shape}")
        codes = self._array.take_codes(numbers.reshape(-1))
        values = codes.levels if self._levels else activations_of(self._array.file, codes)
        return csr_array((values, codes.latents, codes.indptr), shape=(codes.n_rows, codes.n_latents))

    def __repr__(self) -> str:
        return f"FeatureView({'levels' if self._levels else 'activations'}, shape={self.shape})"


def activations_of(file: SaecFile, codes: Codes) -> NDArray[Any]:
    """The activations of codes of a file, (K,), in a dtype that scipy has: see `scipy_dtype`."""
    return as_float(latent_values(file, codes, latent_dtype(file)), scipy_dtype(file))


def scipy_dtype(file: SaecFile) -> np.dtype[Any]:
    """Of activations as scipy has them: float32, or float64 if stored as such."""
    return np.dtype(np.float64 if latent_dtype(file) == "float64" else np.float32)


def codes_of_latents(file: SaecFile, latents: NDArray[np.int64]) -> Iterator[tuple[int, Codes]]:
    """The codes of some latents, int64 (n,), chunk by chunk, with the number of the first row; columns are left out.

    Chunks are read whole, so that their checksums are looked at, but only decoded as far as these latents take.
    """
    codec = file.codec.latents
    n_latents = codec.prior.n_latents
    for latent in latents.tolist():
        if not 0 <= latent < n_latents:
            raise InputError(f"{file.path}: there is no latent {latent}: they are 0 to {n_latents - 1}")
    chunks = np.flatnonzero(file.index.rows > 0).tolist()
    for i, block in zip(chunks, file.chunk_blocks(chunks, base_only=True), strict=True):
        codes = block.codes_of(latents, codec)
        yield int(file.index.first_row[i]), Codes(codes.indptr, codes.latents, codes.levels, n_latents)
