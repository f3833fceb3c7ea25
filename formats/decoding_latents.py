"""Decoding of feature activations: from a file of latents as they were, from one of rows what its levels stand for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO, Final

import numpy as np

from saecodec.errors import InputError, OutputError
from saecodec.formats.array_source import ITEM_BYTES
from saecodec.formats.atomic import atomic_output, check_output_path
from saecodec.formats.atomic_folder import atomic_folder, check_output_folder
from saecodec.formats.damage import Losses
from saecodec.formats.delphi import DelphiSource
from saecodec.formats.delphi_layout import TOKEN, USER_KEY, Layout, default_splits, is_cache_file
from saecodec.formats.delphi_writer import FLOATS, DelphiWriter, default_config
from saecodec.formats.latent_values import latent_dtype, salvaged_latents
from saecodec.formats.saec import SaecFile
from saecodec.formats.sparse_npz import save_sparse_npz
from saecodec.formats.sparse_torch import save_sparse_torch
from saecodec.formats.temporary import temporary_file
from saecodec.latent_rows import LatentRows
from saecodec.progress import Progress, no_progress
from saecodec.stored_floats import STORED

_MATRICES: Final = (".npz", ".pt", ".pth")
_FILES: Final = (".npy", ".safetensors", ".saec", ".saecodec", ".csv", ".json", ".parquet", ".zarr", ".h5", ".zip")
"""What is no folder's name; others with a dot may be, as `model.layers.3`."""
_N_SPLITS: Final = 5  # delphi's default


def decode_latents(
    file: SaecFile,
    path: str | os.PathLike[str],
    *,
    rows: tuple[int, int] | None = None,
    dtype: str | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    jobs: int | None = 1,
    losses: Losses | None = None,
) -> tuple[int, ...]:
    """Write the feature activations of a `.saec` file, and return their shape.

    path: `.npz` gives a scipy CSR matrix and `.pt` a torch CSR tensor, (T, F); any other name is the folder of a delphi
    cache, (sequences, positions, F): splits and `config.json` are those of the cache that the file was made from, else
    five splits. rows: start and stop over flattened rows, in a cache whole sequences. dtype: see `latent_rows`; of a
    cache float16 unless the file was made from one of another. force: replace a file, or a folder that holds nothing
    but a cache. jobs: processes that decode. losses: what to do about rows of damaged chunks, and then which they were;
    a matrix may go without them. Nothing appears under `path` unless all of it succeeds.

    Raises InputError (rows, losses), MissingPieceError, IdentityError, FormatError, OutputError.
    """
    start, stop = rows if rows is not None else (0, file.n_rows)
    file.check_range(start, stop)
    losses = Losses() if losses is None else losses
    check_latent_losses(path, losses.on_error)
    wanted = check_latent_output(path, file, dtype, force=force)
    n_latents = file.codec.latents.prior.n_latents

    def chunks() -> Iterator[LatentRows]:
        done = 0
        for chunk in losses.kept(salvaged_latents(file, start, stop, wanted, jobs)):
            yield chunk
            done += chunk.n_rows
            progress("decode", done, stop - start)

    if _extension(path) in _MATRICES:
        with atomic_output(path, force=force) as out:
            _write_matrix(out, _extension(path), chunks(), n_latents, wanted)
        return stop - start - losses.n_rows, n_latents
    leading = file.index.leading
    positions = leading[-1] if len(leading) > 1 or (leading and rows is None) else stop - start
    if positions and (start % positions or stop % positions):
        raise OutputError(
            f"{os.fspath(path)}: rows {start}:{stop} cut a sequence of {positions}: a delphi cache holds whole ones; "
            "give multiples, or write an .npz"
        )
    shape = ((stop - start) // positions if positions else 0), positions
    layout = _layout(file, shape, n_latents)
    with (
        atomic_folder(path, force=force, mine=is_cache_file) as folder,
        DelphiWriter(folder, shape, layout, wanted) as writer,
    ):
        for chunk in chunks():
            writer.add(chunk)
        writer.finish()
    return (*shape, n_latents)


def check_latent_losses(path: str | os.PathLike[str], on_error: str) -> None:
    """InputError when feature activations cannot be written without the rows of damaged chunks as asked."""
    if on_error == "nan":
        raise InputError(
            f"{os.fspath(path)}: a sparse matrix has no NaN for a row, and a row without activations would be a lie: "
            "leave lost rows out (--on-error skip)"
        )
    if on_error == "skip" and _extension(path) not in _MATRICES:
        raise InputError(
            f"{os.fspath(path)}: a delphi cache holds whole sequences, from which no rows can be left out: write an "
            ".npz or .pt"
        )


def check_latent_output(path: str | os.PathLike[str], file: SaecFile, dtype: str | None, *, force: bool = False) -> str:
    """The dtype that `decode_latents` writes; OutputError when the output is refused. Costs nothing."""
    extension = _extension(path)
    if extension in _MATRICES:
        check_output_path(path, force=force)
        wanted = dtype or latent_dtype(file)
        if wanted == "bfloat16" and extension == ".npz":
            raise OutputError(
                f"{path}: .npz has no bfloat16; write a .pt, or choose --dtype float32, which holds it exactly"
            )
    elif extension in _FILES and not os.path.isdir(path):
        raise OutputError(
            f"{path}: has the extension {extension!r}; activations are written as {', '.join(_MATRICES)}, or into a "
            "folder, delphi's cache"
        )
    else:
        check_output_folder(path, force=force, mine=is_cache_file)
        stored = latent_dtype(file)
        if dtype is None and file.holds_latents and not _from_delphi(file) and stored != "float16":
            raise OutputError(
                f"{path}: a delphi cache holds float16, but the activations are {stored}: say what it shall hold, "
                f"--dtype float16, which rounds them, or --dtype float32"
            )
        wanted = dtype or (stored if _from_delphi(file) else "float16")
        if wanted in ITEM_BYTES and wanted not in FLOATS:
            raise OutputError(
                f"{path}: a delphi cache holds {' or '.join(FLOATS)}, not {wanted}: choose one with --dtype"
            )
    if wanted not in ITEM_BYTES:
        raise OutputError(f"{path}: dtype {wanted!r} was asked for; expected one of {', '.join(ITEM_BYTES)}")
    return wanted


def _from_delphi(file: SaecFile) -> bool:
    """Whether the file was made from a cache, and says how that is laid out."""
    header = file.header
    return file.holds_latents and header.sae["source"] == DelphiSource.kind and USER_KEY in header.user


def _extension(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(os.fspath(path))[1].lower()


def _layout(file: SaecFile, shape: tuple[int, int], n_latents: int) -> Layout:
    """Of the cache that the file was made from, else a new one; tokens where the rows have them."""
    if _from_delphi(file):
        return Layout.of_text(file.header.user[USER_KEY], n_latents, file.path)
    first = next(file.codes(0, min(file.n_rows, 1)), None)
    tokens = "I64" if first is not None and TOKEN in first.columns else ""
    splits = default_splits(n_latents, _N_SPLITS)
    return Layout(splits, tokens, default_config(shape, len(splits)))


def _write_matrix(file: BinaryIO, extension: str, chunks: Iterator[LatentRows], n_latents: int, dtype: str) -> None:
    """Write a CSR matrix. Activations wait in temporary files: an `.npz` has them behind what is known last."""
    with ExitStack() as stack:
        latents, values = (stack.enter_context(temporary_file()) for _ in range(2))
        counts = [np.zeros(1, np.int64)]
        for chunk in chunks:
            latents.write(chunk.latents.astype("<i4").tobytes())
            values.write(np.ascontiguousarray(chunk.values).tobytes())
            counts.append(np.diff(chunk.indptr))
        indptr = np.cumsum(np.concatenate(counts))
        for part in (latents, values):
            part.seek(0)
        if extension == ".npz":
            save_sparse_npz(file, indptr, latents, values, n_latents, dtype)
        else:
            found = np.frombuffer(bytearray(values.read()), STORED[dtype])
            save_sparse_torch(file, indptr, np.frombuffer(latents.read(), "<i4"), found, n_latents, dtype)
