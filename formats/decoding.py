"""Decoding of `.saec` files into arrays, and their verification."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.distortion import Distortion
from saecodec.errors import InputError
from saecodec.formats.array_sinks import check_array_output, check_room, create_array
from saecodec.formats.array_source import ArraySource, rows_for
from saecodec.formats.damage import Losses, Lost
from saecodec.formats.latent_source import LatentSource
from saecodec.formats.latent_values import latent_rows
from saecodec.formats.measuring_latents import LatentDistortion, compare_latents
from saecodec.formats.saec import SaecFile
from saecodec.formats.structure import checked_frames
from saecodec.progress import Progress, no_progress

_NAN_VALUES: Final = 1 << 22  # that are written at a time


def decode_file(
    file: SaecFile,
    path: str | os.PathLike[str],
    *,
    rows: tuple[int, int] | None = None,
    dtype: str | None = None,
    base_only: bool = False,
    force: bool = False,
    progress: Progress = no_progress,
    jobs: int | None = 1,
    losses: Losses | None = None,
) -> tuple[int, ...]:
    """Decode into an array file, of one of `array_sinks.EXTENSIONS`, and return its shape.

    rows: start and stop over flattened rows, which gives one leading dimension; None is all rows in the shape that was
    encoded. dtype: of the output, by default the input's. base_only: without the residual layer, whose chunks are not
    read. jobs: processes that decode, None for as many as pays: see `map_chunks`. losses: what to do about rows of
    damaged chunks, and then which they were; without, the first one raises. Where rows are skipped the array has one
    leading dimension, and is decoded twice, for its shape is written first.

    Raises InputError (rows), MissingPieceError, IdentityError, FormatError, OutputError.
    """
    start, stop = rows if rows is not None else (0, file.n_rows)
    file.check_range(start, stop)
    losses = Losses() if losses is None else losses
    n_rows = stop - start

    def batches() -> Iterator[NDArray[np.float32] | Lost]:
        return file.salvaged_batches(start, stop, base_only=base_only, jobs=jobs)

    wanted = dtype or file.dtype
    if losses.on_error == "skip":
        check_array_output(path, wanted, force=force)
        check_room(path, (n_rows, *file.row_shape), wanted)
        n_rows -= sum(part.n_rows for part in batches() if isinstance(part, Lost))
    shape = file.shape if rows is None and n_rows == file.n_rows else (n_rows, *file.row_shape)
    done = 0
    with create_array(path, shape, wanted, force=force) as sink:
        for batch in losses.kept(batches(), lambda n: _nan(n, file.header.width)):
            sink.write(batch.reshape(-1, shape[-1]))
            done += len(batch)
            progress("decode", done, n_rows)
    return shape


def _nan(n_rows: int, width: int) -> Iterator[NDArray[np.float32]]:
    """Rows of NaN, a few at a time."""
    most = max(1, _NAN_VALUES // width)
    for start in range(0, n_rows, most):
        yield np.full((min(most, n_rows - start), width), np.nan, np.float32)


@dataclass(frozen=True)
class Verification:
    """Result of a check: frames, chunks and rows of the file; decoded: "nothing", "levels" or "rows"; distortion: when
    there was something to compare with."""

    frames: int
    chunks: int
    rows: int
    decoded: str
    distortion: Distortion | LatentDistortion | None


def verify_file(
    file: SaecFile,
    *,
    against: ArraySource | LatentSource | None = None,
    decode: bool = True,
    progress: Progress = no_progress,
    jobs: int | None = 1,
) -> Verification:
    """Check every frame's checksum, decode every chunk, and compare with the input where it is given.

    decode: False checks the checksums and the structure alone, for which neither SAE nor codec is needed; without an
    SAE only the levels are decoded. against: what the file was made from, of latents a `LatentSource`. jobs: processes
    that decode. Raises FormatError at the first damage.
    """
    n_frames = sum(1 for _ in checked_frames(file))
    if against is not None and against.shape != file.shape:
        raise InputError(f"{against.path}: shape {against.shape}, but {file.path} was made from shape {file.shape}")
    distortion: Distortion | LatentDistortion | None = None
    decoded = "nothing"
    if not decode:
        pass
    elif isinstance(against, LatentSource):
        distortion, decoded = compare_latents(file, against, progress, jobs), "rows"
    elif against is not None:
        source = rows_for(against, file.header.width, len(file.row_shape))
        distortion, decoded = compare(file, source, progress, jobs), "rows"
    else:
        decoded, done = "rows" if file.has_sae or file.holds_latents else "levels", 0
        latents, rows = file.holds_latents, file.has_sae
        for part in latent_rows(file, jobs=jobs) if latents else (file.batches if rows else file.layers)(jobs=jobs):
            done += len(part) if isinstance(part, np.ndarray) else part.n_rows
            progress("verify", done, file.n_rows)
    return Verification(n_frames, len(file.index.rows), file.n_rows, decoded, distortion)


def compare(file: SaecFile, source: ArraySource, progress: Progress = no_progress, jobs: int | None = 1) -> Distortion:
    """Distortion of a file's rows against the array they came from. jobs: processes that decode."""
    distortion = Distortion(file.header.width)
    for x, x_hat in zip(source.batches(file.batch_rows), file.batches(jobs=jobs), strict=True):
        if not np.isfinite(x).all():
            bad = distortion.n_rows + int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
            raise InputError(f"{source.path}: row {bad} holds NaN or infinity: this is not the array that was encoded")
        distortion.add(x, x_hat)
        progress("decode", distortion.n_rows, file.n_rows)
    return distortion
