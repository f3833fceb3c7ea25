"""Decoding of `.saec` files into arrays, and their verification."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from saecodec.distortion import Distortion
from saecodec.errors import FormatError, InputError
from saecodec.formats.array_sinks import create_array
from saecodec.formats.array_source import ArraySource
from saecodec.formats.encoding import Progress, no_progress
from saecodec.formats.saec import SaecFile


def decode_file(
    file: SaecFile,
    path: str | os.PathLike[str],
    *,
    rows: tuple[int, int] | None = None,
    dtype: str | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> tuple[int, ...]:
    """Decode into an array file (`.npy`, `.npz`, `.safetensors`, `.pt`) and return its shape.

    rows: start and stop over flattened rows, which gives a 2-D array; None is all rows in the shape that was encoded.
    dtype: of the output, by default the input's. Raises MissingPieceError, IdentityError, FormatError, OutputError.
    """
    start, stop = rows if rows is not None else (0, file.n_rows)
    shape = file.shape if rows is None else (stop - start, file.header.width)
    done = 0
    batches = file.batches(start, stop)
    with create_array(path, shape, dtype or file.dtype, force=force) as sink:
        for batch in batches:
            sink.write(batch)
            done += len(batch)
            progress("decode", done, stop - start)
    return shape


@dataclass(frozen=True)
class Verification:
    """Result of a check: frames, chunks and rows of the file; decoded: "nothing", "levels" or "rows"; distortion: when
    there was something to compare with."""

    frames: int
    chunks: int
    rows: int
    decoded: str
    distortion: Distortion | None


def verify_file(
    file: SaecFile, *, against: ArraySource | None = None, decode: bool = True, progress: Progress = no_progress
) -> Verification:
    """Check every frame's checksum, decode every chunk, and compare with the input where it is given.

    decode: False checks the checksums and the structure alone, for which neither SAE nor codec is needed; without an
    SAE only the levels are decoded. Raises FormatError at the first damage.
    """
    seen, chunks, offsets = 0, 0, []
    for offset, head, _ in file.frames():
        seen += 1
        if head.kind == "CHNK":
            chunks += 1
            offsets.append(offset)
    if offsets != file.index.offsets.tolist():
        raise FormatError(
            f"{file.path}: the index lists {len(file.index.rows)} chunks, the file has {chunks} elsewhere"
        )
    if against is not None and against.shape != file.shape:
        raise InputError(f"{against.path}: shape {against.shape}, but {file.path} was made from shape {file.shape}")
    distortion, decoded = None, "nothing"
    if decode and against is not None:
        distortion, decoded = compare(file, against, progress), "rows"
    elif decode:
        decoded, done = "rows" if file.has_sae else "levels", 0
        for part in file.batches() if file.has_sae else file.codes():
            done += len(part) if isinstance(part, np.ndarray) else part.n_rows
            progress("verify", done, file.n_rows)
    return Verification(seen, chunks, file.n_rows, decoded, distortion)


def compare(file: SaecFile, source: ArraySource, progress: Progress = no_progress) -> Distortion:
    """Distortion of a file's rows against the array they came from."""
    distortion = Distortion(file.header.width)
    sizes = set(file.index.rows[:-1].tolist())
    if len(sizes) > 1:
        raise InputError(f"{file.path}: chunks of different sizes {sorted(sizes)} cannot be compared in one pass")
    batches = source.batches(max(int(file.index.rows[0]) if len(file.index.rows) else 1, 1))
    for x, x_hat in zip(batches, file.batches(), strict=True):
        distortion.add(x, x_hat)
        progress("decode", distortion.n_rows, file.n_rows)
    return distortion
