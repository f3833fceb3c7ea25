"""Encoding of feature activations into a `.saec` file, without an SAE."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from saecodec.codec import DEFAULT_CHUNK_ROWS
from saecodec.errors import InputError, OutputError, named
from saecodec.formats.atomic import atomic_output
from saecodec.formats.header import check_user
from saecodec.formats.latent_source import LatentSource
from saecodec.formats.saec_writer import LatentsFacts, SaecWriter
from saecodec.formats.spool import code_spool
from saecodec.goal import DEFAULT_STEP
from saecodec.latent_fitting import LatentGoal, fit_latents
from saecodec.layers import Layers
from saecodec.progress import Progress, no_progress
from saecodec.quantizer import Step
from saecodec.sequences import Chunking

ARCHITECTURE: Final = "latents"
"""What a file of latents says in the place of an SAE's architecture."""


@dataclass(frozen=True)
class LatentReport:
    """What was done. step: absolute, 0 when values are exact. nonzeros: codes that were written. seconds: all of it."""

    step: float
    nonzeros: int
    seconds: float


def encode_latents(
    source: LatentSource,
    path: str | os.PathLike[str],
    *,
    step: str | float | Step = DEFAULT_STEP,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    name: str = "",
    user: dict[str, str] | None = None,
    force: bool = False,
    progress: Progress = no_progress,
    jobs: int | None = 1,
) -> LatentReport:
    """Encode feature activations into a `.saec` file that holds its tables and needs no SAE.

    step: absolute, or relative to the rms of the nonzero values ("0.4rms"); 0 keeps float16 and bfloat16 values, and
    wider ones that are such, bit by bit, explicit zeros included. name: of the SAE that they come from, for people.
    user: free text by key. force: overwrite. Nothing appears under `path` unless all of it succeeds.
    jobs: processes that code chunks, None for as many as pays: see `map_chunks`. The bytes do not depend on it.

    Raises InputError (values that cannot be coded, corrupt input), OutputError.
    """
    started = time.perf_counter()
    goal = LatentGoal.of(step)
    taken = source.user.keys() & (user or {}).keys()
    if taken:
        raise InputError(
            f"{source.path}: the metadata {', '.join(sorted(taken))} is the format's own: name it otherwise"
        )
    told = {**source.user, **(user or {})}
    check_user(told)
    if os.path.exists(path) and os.path.exists(source.path) and os.path.samefile(path, source.path):
        raise OutputError(f"{os.fspath(path)}: is the input; choose another output")
    chunking = Chunking.of(source.n_rows, chunk_rows)
    with atomic_output(path, force=force, partial=True) as file, code_spool(source.n_latents, source.columns) as store:
        with named(source.path):
            codec, values = fit_latents(
                lambda: source.chunks(chunking.sizes), source.n_latents, source.dtype, goal, store
            )
        sae = {"name": name, "source": source.kind, "architecture": ARCHITECTURE, "n_latents": source.n_latents}
        writer = SaecWriter(
            file,
            codec,
            shape=source.shape,
            dtype=source.dtype,
            chunk_rows=chunk_rows,
            embed="tables",
            user=told,
            latents=LatentsFacts(values, sae),
        )
        done, nonzeros = 0, 0

        def counted() -> Iterator[Layers]:
            nonlocal nonzeros
            for codes in store:
                nonzeros += codes.nnz
                yield Layers(codes)

        for n_rows in writer.add_all(counted(), len(chunking.sizes), jobs):
            done += n_rows
            progress("encode", done, source.n_rows)
        writer.finish()
    return LatentReport(0.0 if values.exact else codec.quantizer.step, nonzeros, time.perf_counter() - started)
