"""`measure --latents`: what coding stored feature activations costs, from a file that was written and decoded again."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import DEFAULT_CHUNK_ROWS
from saecodec.errors import InputError
from saecodec.formats.encoding_latents import encode_latents
from saecodec.formats.file_sizes import bytes_by_part
from saecodec.formats.latent_source import LatentSource
from saecodec.formats.latent_values import latent_rows
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.goal import DEFAULT_STEP
from saecodec.latent_rows import LatentRows
from saecodec.progress import Progress, no_progress
from saecodec.quantizer import Step
from saecodec.stored_floats import as_float


def compare_latents(
    file: SaecFile, source: LatentSource, progress: Progress = no_progress, jobs: int | None = 1
) -> LatentDistortion:
    """How far a file's activations are from those it came from; InputError when their shapes differ."""
    if source.shape != file.shape or source.dtype != file.dtype:
        raise InputError(
            f"{source.path}: {source.dtype} of shape {source.shape}, but {file.path} was made from {file.dtype} of "
            f"shape {file.shape}"
        )
    distortion = LatentDistortion(source.n_latents)
    for wanted, found in zip(source.chunks(file.index.filled_rows), latent_rows(file, jobs=jobs), strict=True):
        with np.errstate(invalid="ignore"):  # exact values may be infinite
            distortion.add(wanted, found)
        progress("decode", distortion.n_rows, file.n_rows)
    return distortion


class LatentDistortion:
    """How far activations are from those they came from, as vectors of F latents, over the rows added.

    nmse: squared error over the squared deviation from the mean row, as of rows of activations (FVU).
    """

    def __init__(self, n_latents: int) -> None:
        self._sum, self._square, self._error = np.zeros(n_latents), 0.0, 0.0
        self.n_rows, self.nnz, self.decoded_nnz, self.max_error, self.equal = 0, 0, 0, 0.0, True

    def add(self, wanted: LatentRows, found: LatentRows) -> None:
        """Add rows, as stored and as decoded; values of one dtype."""
        self.equal = self.equal and all(
            np.array_equal(a, b)
            for a, b in (
                (wanted.indptr, found.indptr),
                (wanted.latents, found.latents),
                (_bits(wanted.values), _bits(found.values)),
            )
        )
        z, z_hat = (as_float(rows.values, np.dtype(np.float64)) for rows in (wanted, found))
        self._sum += np.bincount(wanted.latents, weights=z, minlength=len(self._sum))
        self._square += float(z @ z)
        n = len(self._sum)
        cells, at = np.unique(
            np.concatenate([wanted.rows() * n + wanted.latents, found.rows() * n + found.latents]), return_inverse=True
        )
        errors = np.bincount(at.reshape(-1), weights=np.concatenate([z, -z_hat]), minlength=len(cells))
        self._error += float(errors @ errors)
        self.max_error = max(self.max_error, float(np.abs(errors).max(initial=0.0)))
        self.n_rows += wanted.n_rows
        self.nnz += wanted.nnz
        self.decoded_nnz += found.nnz

    @property
    def nmse(self) -> float | None:
        """None without rows, where all are alike, or where a value is not finite."""
        spread = self._square - float(self._sum @ self._sum) / max(self.n_rows, 1)
        nmse = self._error / spread if spread > 0 else np.nan
        return float(nmse) if np.isfinite(nmse) else None


def measure_latents(
    source: LatentSource,
    *,
    step: str | float | Step = DEFAULT_STEP,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Encode feature activations into a temporary file, decode it, and report.

    Arguments are those of `encode_latents`. ratio: bytes of the file over the stored ones, columns (tokens) left out on
    both sides; ratio_with_columns: all of both. bits_per_nonzero: of the stored activations, columns left out. bits:
    per row by part, adding up to 8 * file_bytes / rows. nmse: see `LatentDistortion`. Values that are not defined are
    None.
    """
    with tempfile.TemporaryDirectory(prefix="saecodec-") as folder:
        path = os.path.join(folder, "measured.saec")
        encoded = encode_latents(source, path, step=step, chunk_rows=chunk_rows, progress=progress)
        with open_saec(path) as file:
            distortion = compare_latents(file, source, progress)
            started = time.perf_counter()
            for _ in latent_rows(file):
                pass
            seconds = time.perf_counter() - started
            parts, header, rows = bytes_by_part(file), file.header, file.n_rows
            stored, columns = source.stored, parts["columns"]
            return {
                "rows": rows,
                "shape": list(source.shape),
                "kind": source.kind,
                "dtype": source.dtype,
                "nonzeros": distortion.nnz,
                "file_bytes": file.size,
                "column_bytes": columns,
                "stored_bytes": stored.total,
                "stored_column_bytes": stored.columns,
                "ratio": _over(file.size - columns, stored.total - stored.columns),
                "ratio_with_columns": _over(file.size, stored.total),
                "ratio_columns": _over(columns, stored.columns),
                "bits_per_row": _over(8 * file.size, rows),
                "bits_per_nonzero": _over(8 * (file.size - columns), distortion.nnz),
                "bits": {part: _over(8 * n_bytes, rows) for part, n_bytes in parts.items()},
                "values": "step" if header.values is None else header.values.kind,
                "step": encoded.step,
                "l0": _over(distortion.nnz, rows),
                "decoded_l0": _over(distortion.decoded_nnz, rows),
                "nmse": distortion.nmse,
                "max_error": distortion.max_error if np.isfinite(distortion.max_error) else None,
                "bit_equal": distortion.equal,
                "seconds": {"encode": encoded.seconds, "decode": seconds},
            }


def _over(a: float, b: float) -> float | None:
    return a / b if b else None


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
