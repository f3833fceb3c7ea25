"""Feature activations of an open file: of latents as they were stored, of rows what its levels stand for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from saecodec.codes import Codes
from saecodec.formats.damage import Lost, converted, intact
from saecodec.formats.saec import SaecFile
from saecodec.latent_rows import LatentRows
from saecodec.layers import Layers
from saecodec.stored_floats import as_float, narrowed


def latent_dtype(file: SaecFile) -> str:
    """The dtype that activations have unless another is asked for."""
    return file.dtype if file.holds_latents else "float32"


def latent_values(file: SaecFile, codes: Codes, dtype: str) -> npt.NDArray[Any]:
    """The activations of codes of a file, (K,), as `dtype`, in numpy's form of it.

    A file of rows needs its SAE, for the norms of its directions alone: it is not run. FormatError when a level stands
    for no value.
    """
    values, quantizer = file.header.values, file.codec.quantizer
    if values is not None and values.exact:
        found = values.values(codes.levels, file.dtype, file.path)
        if dtype == file.dtype:
            return found
        return narrowed(as_float(found, np.dtype(np.float32)) if file.dtype == "bfloat16" else found, dtype)
    if file.holds_latents:
        norms = np.ones(codes.n_latents)
    else:
        sae = file.decoder.sae
        assert sae is not None
        norms = sae.norms
    return narrowed(quantizer.dequantize(codes, norms).values, dtype)


def latent_rows(
    file: SaecFile, start: int = 0, stop: int | None = None, dtype: str | None = None, jobs: int | None = 1
) -> Iterator[LatentRows]:
    """The feature activations of rows start:stop, chunk by chunk, as `dtype`: see `latent_values`.

    dtype: default that of a file of latents, else float32. jobs: see `SaecFile.layers`.
    """
    return intact(salvaged_latents(file, start, stop, dtype, jobs))


def salvaged_latents(
    file: SaecFile, start: int = 0, stop: int | None = None, dtype: str | None = None, jobs: int | None = 1
) -> Iterator[LatentRows | Lost]:
    """As `latent_rows`; of a chunk that is damaged, which rows are lost with it."""
    wanted = dtype or latent_dtype(file)

    def rows_of(layers: Layers) -> LatentRows:
        codes = layers.codes
        return LatentRows(codes.indptr, codes.latents, latent_values(file, codes, wanted), codes.columns)

    return converted(file.salvaged_layers(start, stop, base_only=True, jobs=jobs), rows_of, start, file.path)
