"""Reading a `.saec` file back beside the rows that it was made of: what every measure goes through.

Each chunk is decoded from the file and compared with its rows; the bytes of the chunk are attributed to rows and
latents.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saecodec.attribution import Attribution
from saecodec.distortion import ROUNDING, Distortion
from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource
from saecodec.formats.file_sizes import chunk_sizes
from saecodec.formats.saec import SaecFile
from saecodec.layers import Layers

Figures = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Decoded:
    """A chunk: rows x and what the file gives for them, x_hat, float32 (n, d). bits: by row, float64 (n,). support,
    levels: bits of each nonzero's place and level, float64 (K,). code_bytes: of its codes. seconds: of decoding."""

    first_row: int
    x: NDArray[np.float32]
    layers: Layers
    x_hat: NDArray[np.float32]
    bits: Figures
    support: Figures
    levels: Figures
    code_bytes: int
    seconds: float

    @property
    def squared_error(self) -> Figures:
        """|x - x_hat|^2 of each row, float64 (n,)."""
        error = self.x.astype(np.float64) - self.x_hat
        return np.asarray(np.einsum("td,td->t", error, error))


def read_back(file: SaecFile, source: ArraySource, attribution: Attribution) -> Iterator[Decoded]:
    """The chunks of a file beside the rows of `source`, in order; bits are added to `attribution`."""
    decoder, first = file.decoder, 0
    chunks, filled = file.layers(), np.flatnonzero(file.index.rows > 0)
    for i, x in zip(filled.tolist(), source.batches(file.index.filled_rows), strict=True):
        started = time.perf_counter()
        layers = next(chunks)
        x_hat = decoder.reconstruct(layers.codes, layers.residual)
        seconds = time.perf_counter() - started
        sizes = chunk_sizes(file, i)
        bits, support, levels = attribution.add(layers, sizes.parts, sizes.residual, sizes.frames)
        yield Decoded(first, x, layers, x_hat, bits, support, levels, sizes.codes, seconds)
        first += len(x)


def spread_of(source: ArraySource, batch_rows: int = 4096) -> Figures:
    """|x - mean|^2 of each row, float64 (T,), mean over all rows: what the NMSE's denominator is the sum of.

    Zeros where that is the rounding of rows that are all alike, as `Distortion.variance` has it. InputError names the
    first row that holds NaN or infinity.
    """
    total, energy, first = np.zeros(source.width), 0.0, 0
    for x in source.batches(batch_rows):
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            raise InputError(f"{source.path}: row {first + bad[0]} holds NaN or infinity: it has no squared error")
        total += x.sum(0, dtype=np.float64)
        energy += float(np.einsum("td,td->", x, x, dtype=np.float64))
        first += len(x)
    mean = total / max(source.n_rows, 1)
    parts = [np.zeros(0)]
    for x in source.batches(batch_rows):
        centred = x - mean
        parts.append(np.einsum("td,td->t", centred, centred))
    spread = np.concatenate(parts)
    return spread if spread.sum() > ROUNDING * energy else np.zeros(len(spread))


@dataclass(frozen=True, eq=False)
class RowFigures:
    """What each row of a file costs and misses. bits: of its chunk, float64 (T,). shared: bits of the file that no
    chunk holds (header, tables, index, embedded weights), so that bits.sum() + shared is 8 times the file's size.
    squared_error: float64 (T,)."""

    bits: Figures
    shared: float
    squared_error: Figures


class RowCollector:
    """Collects the `RowFigures` of decoded chunks, and their distortion."""

    def __init__(self, width: int) -> None:
        self._bits, self._errors = [np.zeros(0)], [np.zeros(0)]
        self.distortion = Distortion(width)

    def add(self, chunk: Decoded) -> None:
        """Add a chunk."""
        self._bits.append(chunk.bits)
        self._errors.append(chunk.squared_error)
        self.distortion.add(chunk.x, chunk.x_hat)

    def figures(self, file_bytes: int) -> RowFigures:
        """Of all rows, in a file of so many bytes."""
        bits = np.concatenate(self._bits)
        return RowFigures(bits, 8.0 * file_bytes - float(bits.sum()), np.concatenate(self._errors))
