"""Fitting and encoding of arrays: one pass of the SAE, flat in memory, into a codec or a `.saec` file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from saecodec.codec import DEFAULT_CHUNK_ROWS, DEFAULT_STEP, Codec, check_chunk_rows, fit_features
from saecodec.errors import InputError, MissingPieceError, OutputError
from saecodec.features import Features
from saecodec.formats.array_source import ArraySource
from saecodec.formats.atomic import atomic_output
from saecodec.formats.header import check_user
from saecodec.formats.saec_writer import SaecWriter
from saecodec.formats.spool import Spool, code_spool, feature_spool
from saecodec.quantizer import Step
from saecodec.sae import SAE

Progress = Callable[[str, int, int], None]
"""Called with what is being done, rows done and rows in all."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Reports to nobody."""


@dataclass
class EncodeReport:
    """What happened: nonzero feature activations of the SAE, and seconds by stage."""

    sae_nnz: int = 0
    sae_seconds: float = 0.0
    code_seconds: float = 0.0


def fit_array(
    source: ArraySource,
    sae: SAE,
    step: str | float | Step = DEFAULT_STEP,
    *,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    progress: Progress = no_progress,
) -> Codec:
    """Fit a codec on all rows of an array. InputError names the first row that holds NaN or infinity."""
    step = Step.parse(step)
    _check(source, sae, chunk_rows)
    with feature_spool() as spool, code_spool(sae.n_latents) as codes:
        _fill(spool, _features(source, sae, chunk_rows, EncodeReport()), source.n_rows, progress)
        progress("fit", 0, source.n_rows)
        return fit_features(sae, spool, step, codes)


def encode_array(
    source: ArraySource,
    path: str | os.PathLike[str],
    *,
    sae: SAE | None = None,
    codec: Codec | None = None,
    step: str | float | Step | None = None,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    embed: str | None = None,
    user: dict[str, str] | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> EncodeReport:
    """Encode an array into a `.saec` file.

    Without `codec`, one is fitted on the array itself and its tables are embedded. With it, step and tables are the
    codec's, and the file names it by hash. `sae` may be left out when the codec holds the whole SAE. step: see `Step`
    (default 0.4rms). embed: "none" (needs `codec`), "tables" or "decoder"; default "none" with a codec, "tables"
    without. force: overwrite. Nothing appears under `path` unless all of it succeeds.

    Raises InputError (NaN, shapes, contradicting options), MissingPieceError, IdentityError, OutputError.
    """
    if codec is not None and step is not None:
        raise InputError("the step comes from the codec: leave --step out, or leave -c out to fit on the input itself")
    if codec is None and embed == "none":
        raise InputError(
            "without a codec the tables are fitted on the input, and the file must embed them: tables or decoder"
        )
    wanted = Step.parse(DEFAULT_STEP if step is None else step)
    if codec is not None and sae is not None:
        codec = codec.with_sae(sae)
    sae = codec.sae if codec is not None else sae
    if sae is None:
        which = f"SAE {codec.info.get('sae', '?')!r}" if codec else "an SAE"
        raise MissingPieceError(f"encoding needs {which}: give it (-s SAE), or a codec fitted with --embed-sae")
    _check(source, sae, chunk_rows)
    check_user(user or {})
    if os.path.exists(path) and os.path.exists(source.path) and os.path.samefile(path, source.path):
        raise OutputError(f"{os.fspath(path)}: is the input; choose another output")
    with ExitStack() as held:
        file = held.enter_context(atomic_output(path, force=force))
        spool = held.enter_context(feature_spool())
        started = time.perf_counter()
        report = EncodeReport()
        features = _features(source, sae, chunk_rows, report)
        if codec is None:
            _fill(spool, features, source.n_rows, progress)
            progress("fit", 0, source.n_rows)
            store = held.enter_context(code_spool(sae.n_latents))
            codec, codes = fit_features(sae, spool, wanted, store), iter(store)
            embed = embed or "tables"
        else:
            codes = map(codec.quantize_features, features)
        writer = SaecWriter(
            file,
            codec,
            shape=source.shape,
            dtype=source.dtype,
            chunk_rows=chunk_rows,
            embed=embed or "none",
            user=user,
        )
        done = 0
        for chunk in codes:
            writer.add(chunk)
            done += chunk.n_rows
            progress("encode", done, source.n_rows)
        writer.finish()
        report.code_seconds = time.perf_counter() - started - report.sae_seconds
    return report


def _check(source: ArraySource, sae: SAE, chunk_rows: int) -> None:
    if source.width != sae.width:
        raise InputError(
            f"{source.path}: shape {source.shape}, but the SAE {sae.name!r} codes rows of {sae.width} values"
        )
    check_chunk_rows(chunk_rows)


def _features(source: ArraySource, sae: SAE, chunk_rows: int, report: EncodeReport) -> Iterator[Features]:
    """The feature activations of each chunk of rows; time spent in the SAE and nonzeros go into `report`."""
    row = 0
    for x in source.batches(chunk_rows):
        started = time.perf_counter()
        try:
            features = sae.features(x, row)
        except InputError as error:
            raise InputError(f"{source.path}: {error}") from error
        report.sae_seconds += time.perf_counter() - started
        report.sae_nnz += features.nnz
        row += len(x)
        yield features


def _fill(spool: Spool[Features], features: Iterable[Features], n_rows: int, progress: Progress) -> None:
    for chunk in features:
        spool.append(chunk)
        progress("SAE", spool.n_rows, n_rows)
