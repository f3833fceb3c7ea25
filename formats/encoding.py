"""Fitting and encoding of arrays, flat in memory, into a codec or a `.saec` file."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import DEFAULT_CHUNK_ROWS, Codec
from saecodec.codes import Codes
from saecodec.costs import DEFAULT_SLOPE
from saecodec.decoder_precision import FLOAT32, with_precision
from saecodec.errors import InputError, MissingPieceError, OutputError, named
from saecodec.features import Features
from saecodec.formats.array_source import ArraySource, rows_for
from saecodec.formats.atomic import atomic_output
from saecodec.formats.header import check_user
from saecodec.formats.saec_writer import SaecWriter, check_embedded, check_rounded
from saecodec.formats.spool import Spool, code_spool, feature_spool, level_spool
from saecodec.goal import Goal
from saecodec.layers import Layers
from saecodec.prefetch import prefetched
from saecodec.priors.factorized import FactorizedPrior
from saecodec.progress import Progress, no_progress
from saecodec.row_coder import RowCoder
from saecodec.rows import needs_sequences
from saecodec.sae import SAE
from saecodec.search import fitted_search
from saecodec.sequences import Chunking, ids_of_shape
from saecodec.side import scales_of
from saecodec.steering import Activations, Steering
from saecodec.store import Store

Ids = NDArray[np.integer[Any]]
_INDEX_BYTES = 5  # an entry of the index, about


@dataclass(frozen=True)
class EncodeReport:
    """What was done. goal: what was asked for. reached: the figure that its target is about, None without one. slope:
    squared error that a bit was allowed to cost, in squared steps. seconds: all of it."""

    goal: Goal
    reached: float | None
    slope: float
    seconds: float


class _FileStores(ExitStack):
    """Stores in temporary files, closed with it."""

    def features(self) -> Store[Features]:
        return self.enter_context(feature_spool())

    def codes(self, n_latents: int, columns: tuple[str, ...] = ()) -> Store[Codes]:
        return self.enter_context(code_spool(n_latents, columns))

    def levels(self) -> Store[NDArray[np.int32]]:
        return self.enter_context(level_spool())

    def discard(self, store: object) -> None:
        if isinstance(store, Spool):
            store.close()


def fit_array(
    source: ArraySource,
    sae: SAE,
    goal: Goal | None = None,
    *,
    seq: Ids | None = None,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    verify: bool = True,
    progress: Progress = no_progress,
) -> Codec:
    """Fit a codec on all rows of an array; the bits of a target are those of the rows, without the codec file.

    seq: sequence ids, see `encode_array`. verify: hold a target on all rows, not on a sample of them alone; what it
    reached is then in the codec's `info`. InputError names the first row that holds NaN or infinity; TargetError when a
    target is out of reach.
    """
    goal = goal or Goal.of()
    source = rows_for(source, sae.width, sae.row_dims)
    _check_width(source, sae)
    chunking = _chunking(source, chunk_rows, seq, goal.prior, sae)
    with _FileStores() as stores, named(source.path):
        steering = Steering(sae, _rows(source, chunking), goal, chunking=chunking, stores=stores, progress=progress)
        return steering.fit(verify=verify, recode=True).codec


@contextmanager
def shared_activations(
    source: ArraySource, sae: SAE, *, seq: Ids | None = None, chunk_rows: int = DEFAULT_CHUNK_ROWS
) -> Iterator[Activations]:
    """Feature activations of an array, in a temporary file, for several files of it by `encode_array` with the same
    arguments: the SAE runs once for all."""
    source = rows_for(source, sae.width, sae.row_dims)
    _check_width(source, sae)
    goal = Goal.of()
    chunking = _chunking(source, chunk_rows, seq, goal.prior, sae)
    with _FileStores() as stores, named(source.path):
        yield Steering(sae, _rows(source, chunking), goal, chunking=chunking, stores=stores).activations()


def encode_array(
    source: ArraySource,
    path: str | os.PathLike[str],
    *,
    sae: SAE | None = None,
    codec: Codec | None = None,
    goal: Goal | None = None,
    seq: Ids | None = None,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    embed: str | None = None,
    weights: str = FLOAT32,
    user: dict[str, str] | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    activations: Activations | None = None,
    jobs: int | None = 1,
) -> EncodeReport:
    """Encode an array into a `.saec` file.

    Without `codec`, one is fitted on the array itself and its tables are embedded. With it, steps and tables are the
    codec's, and so is the search unless another is asked for; the file names it by hash, and a target is met by the
    search's slope alone. `sae` may be left out when the codec holds the whole SAE. seq: sequence id of each row,
    integers (T,), which is coded too; without it, the context prior takes those of an array (..., position, d). goal:
    see `Goal.of`; the bits of a target are those of the file. embed: "none" (needs `codec`), "tables" or "decoder";
    default "none" with a codec, "tables" without. weights: precision of an embedded decoder, "float32", "bfloat16" or
    "int8"; rows are then coded for the rounded decoder (`with_precision`), and a codec must be of that. force:
    overwrite. Nothing appears under `path` unless all of it succeeds. activations: see `shared_activations`.
    jobs: processes that code chunks, None for as many as pays: see `map_chunks`. The bytes do not depend on it.

    Raises InputError (NaN, shapes, contradicting options), TargetError, MissingPieceError, IdentityError, OutputError.
    """
    started = time.perf_counter()
    goal = _goal_with(codec, goal)
    if codec is None and embed == "none":
        raise InputError(
            "without a codec the tables are fitted on the input, and the file must embed them: tables or decoder"
        )
    embed = embed or ("none" if codec is not None else "tables")
    sae, codec = matched(sae, codec, weights, embed)
    source = rows_for(source, sae.width, sae.row_dims)
    _check_width(source, sae)
    prior = codec.latents.prior.name if codec is not None else goal.prior
    chunking = _chunking(source, chunk_rows, seq, prior, sae)
    check_user(user or {})
    if source.lies_in(path):
        raise OutputError(f"{os.fspath(path)}: is the input; choose another output")

    def writer_of(file: BinaryIO, codec: Codec, shape: tuple[int, ...]) -> SaecWriter:
        return SaecWriter(
            file,
            codec,
            shape=shape,
            dtype=source.dtype,
            chunk_rows=chunk_rows,
            embed=embed,
            user=user,
            row_shape=source.row_shape,
            weights=weights,
        )

    write_empty = lambda file, codec: writer_of(file, codec, (0, source.width)).finish()  # noqa: E731
    overhead = _Overhead(write_empty, embed, len(chunking.sizes))
    with _FileStores() as stores, named(source.path):
        file = stores.enter_context(atomic_output(path, force=force, partial=True))
        reached, slope = None, DEFAULT_SLOPE
        if codec is not None and goal.target is None:
            scales = scales_of(sae, source.batches(chunking.sizes), chunking.ids)
            coder = RowCoder(codec, goal.search, scales=scales)
            numbered = zip(chunking.spans(), prefetched(source.batches(chunking.sizes)), strict=True)
            chunks: Iterator[Layers] = (coder(x, first).labelled(chunking, first) for (first, _), x in numbered)
        else:
            steering = Steering(
                sae,
                _rows(source, chunking),
                goal,
                chunking=chunking,
                stores=stores,
                overhead=overhead,
                progress=progress,
                activations=activations,
            )
            coded = steering.fit() if codec is None else steering.code(codec)
            codec, reached, slope = coded.codec, coded.reached, coded.slope
            chunks = coded.layers()
        if jobs is None and sae.device.type == "cpu" and codec.latents.prior.name == FactorizedPrior.name:
            jobs = 1  # coding is a twentieth of the work, and the SAE has all cores
        writer, done = writer_of(file, codec, source.shape), 0
        for n_rows in writer.add_all(chunks, len(chunking.sizes), jobs):
            done += n_rows
            progress("encode", done, source.n_rows)
        writer.finish()
        if goal.target is not None and goal.target.kind == "bits":
            reached = 8 * file.tell() / max(source.n_rows, 1)
    return EncodeReport(goal, reached, slope, time.perf_counter() - started)


def matched(sae: SAE | None, codec: Codec | None, weights: str, embed: str) -> tuple[SAE, Codec | None]:
    """The SAE as a file holds it (by default the codec's own), and the codec with it.

    Raises MissingPieceError when there is no SAE, InputError or IdentityError when the two contradict each other.
    """
    sae = sae if sae is not None else codec.sae if codec is not None else None
    if sae is None:
        which = f"SAE {codec.info.get('sae', '?')!r}" if codec else "an SAE"
        raise MissingPieceError(f"encoding needs {which}: give it (-s SAE), or a codec fitted with --embed-sae")
    check_embedded(weights, embed)
    sae = with_precision(sae, weights)
    if codec is None:
        return sae, None
    if weights != FLOAT32:
        check_rounded(codec, sae, weights)
    return sae, codec.with_sae(sae)


class _Overhead:
    """Bytes of a `.saec` file beside its chunks, for a codec: the tables' are its own, the rest is the same for all."""

    def __init__(self, write_empty: Callable[[io.BytesIO, Codec], None], embed: str, n_chunks: int) -> None:
        self._write_empty, self._embed, self._n_chunks = write_empty, embed, n_chunks
        self._rest: int | None = None

    def __call__(self, codec: Codec) -> float:
        tables = len(codec.table_frames()) if self._embed != "none" else 0
        if self._rest is None:
            file = io.BytesIO()
            self._write_empty(file, codec)
            self._rest = len(file.getvalue()) - tables
        return tables + self._rest + _INDEX_BYTES * self._n_chunks


def _goal_with(codec: Codec | None, goal: Goal | None) -> Goal:
    """The goal, checked against what a codec decides."""
    goal = goal or Goal.of()
    if codec is None:
        return goal
    if goal.step_given:
        raise InputError("the step comes from the codec: leave --step out, or leave -c out to fit on the input itself")
    if goal.target is None and not goal.search_given:
        goal = replace(goal, search=fitted_search(codec.info))
    if goal.residual and codec.residual is None:
        raise InputError("this codec has no residual layer: fit one that has (saecodec fit --residual)")
    if goal.target is not None and goal.search == "none" and codec.residual is None:
        raise InputError("with a codec a target is met by searching codes: leave --search out, or choose refit")
    return goal


def _check_width(source: ArraySource, sae: SAE) -> None:
    if source.width != sae.width:
        raise InputError(
            f"{source.path}: shape {source.shape}, but the SAE {sae.name!r} codes rows of {sae.width} values"
        )


def _chunking(source: ArraySource, chunk_rows: int, seq: Ids | None, prior: str, sae: SAE) -> Chunking:
    """Chunks of the rows. Where sequences are needed, the ids of an array with positions come from its shape."""
    if seq is None and needs_sequences(prior, sae):
        seq = ids_of_shape(source.shape)
    return Chunking.of(source.n_rows, chunk_rows, seq)


def _rows(source: ArraySource, chunking: Chunking) -> Callable[[], Iterator[NDArray[np.float32]]]:
    return lambda: source.batches(chunking.sizes)
