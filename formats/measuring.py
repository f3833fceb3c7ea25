"""`measure`: what an SAE's explanation of an array really costs, from a file that was written and decoded again."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

import saecodec
from saecodec.codec import DEFAULT_CHUNK_ROWS, Codec
from saecodec.decoder_precision import FLOAT32
from saecodec.distortion import Distortion
from saecodec.formats.array_source import ITEM_BYTES, ArraySource, rows_for
from saecodec.formats.atomic import atomic_output
from saecodec.formats.baseline_report import baselines_at, saebench_facts, sample_rows
from saecodec.formats.codecfile import MAGIC
from saecodec.formats.context_report import ContextComparison
from saecodec.formats.detail import DetailCollector
from saecodec.formats.encoding import EncodeReport, Ids, encode_array
from saecodec.formats.groups import Groups
from saecodec.formats.metric import Metric
from saecodec.formats.point import Ground, Observer, read_point
from saecodec.formats.read_back import Decoded
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.formats.selection import Selection
from saecodec.formats.two_part import FloorMeter, decoder_facts, two_part
from saecodec.goal import Goal
from saecodec.priors.registry import CONTEXT
from saecodec.progress import Progress, no_progress
from saecodec.rows import needs_sequences
from saecodec.sae import SAE
from saecodec.sequences import ids_of_shape
from saecodec.side import scales_of


@dataclass(frozen=True)
class Extras:
    """What a measure tells beside the file. group: path of labels of rows, see `Groups.load`. metric: another
    distortion. baselines: what other codes need at the same NMSE. detail: tables of where the bits go. arrays: file to
    write with the figures of every row and latent, see `DetailCollector.arrays`; force: overwrite it."""

    group: str | None = None
    metric: Metric | None = None
    baselines: bool = False
    detail: bool = False
    arrays: str | None = None
    force: bool = False


def measure_array(
    source: ArraySource,
    *,
    sae: SAE | None = None,
    codec: Codec | None = None,
    codec_bytes: int = 0,
    goal: Goal | None = None,
    seq: Ids | None = None,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    embed: str | None = None,
    weights: str = FLOAT32,
    selection: Selection | None = None,
    extras: Extras | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Encode an array into a temporary file, decode it, and report.

    Arguments are those of `encode_array`; codec_bytes: size of the codec's file. selection: rows to leave out
    altogether. Rates are bits per row and add up to 8 * file_bytes / rows. "sae_alone" is the SAE as it was given, not
    rounded to `weights`. Values that are not defined (no rows, no nonzeros, constant rows) are None.
    """
    extras, selection = extras or Extras(), selection or Selection()
    whole = sae if sae is not None else codec.sae if codec is not None else None
    if whole is not None:
        source = rows_for(source, whole.width, whole.row_dims)
        selection.check(whole)
    kept = selection.apply(source, seq if seq is not None else ids_of_shape(source.shape))
    if kept.source is not source and whole is not None:
        prior = codec.latents.prior.name if codec is not None else (goal or Goal.of()).prior
        seq = kept.ids if seq is not None or needs_sequences(prior, whole) else None
    groups = None if extras.group is None else Groups.load(extras.group, source.n_rows, kept.rows)
    with tempfile.TemporaryDirectory(prefix="saecodec-") as folder:
        path = os.path.join(folder, "measured.saec")
        encoded = encode_array(
            kept.source,
            path,
            sae=sae,
            codec=codec,
            goal=goal,
            seq=seq,
            chunk_rows=chunk_rows,
            embed=embed,
            weights=weights,
            progress=progress,
        )
        assert whole is not None
        embedded = embed == "decoder"  # then it is what the file holds that decodes it, rounded or not
        with open_saec(path, sae=None if embedded else whole, codec=codec, device=str(whole.device)) as file:
            outside_codec = codec_bytes if file.header.embed == "none" else 0
            # An SAE that is in a codec file which is needed anyway is part of that file's size.
            held = file.header.embed == "decoder" or (outside_codec and codec is not None and codec.sae is not None)
            outside = {"codec_bytes": outside_codec, "sae_bytes": 0 if held else whole.nbytes}
            ground = Ground(kept.source, kept.ids, numbers=kept.rows, positions=kept.positions)
            report = _report(file, ground, whole, encoded, outside, extras, groups, progress)
    return report | {"weights": weights, "selection": selection.told(source.n_rows)}


def _report(
    file: SaecFile,
    ground: Ground,
    sae: SAE,
    encoded: EncodeReport,
    outside: dict[str, int],
    extras: Extras,
    groups: Groups | None,
    progress: Progress,
) -> dict[str, Any]:
    decoder, source = file.decoder, ground.source
    floors = FloorMeter(sae, scales_of(sae, source.batches(file.index.filled_rows), ground.ids))
    base = Distortion(source.width)
    context = ContextComparison(decoder) if decoder.latents.prior.name == CONTEXT else None
    seconds = 0.0

    def observe(chunk: Decoded) -> None:
        nonlocal seconds
        seconds += chunk.seconds
        floors.add(chunk.x, chunk.first_row)
        if decoder.residual is not None:
            base.add(chunk.x, decoder.reconstruct(chunk.layers.codes))
        if context is not None:
            context.add(chunk.layers.codes, chunk.code_bytes)
        progress("decode", chunk.first_row + len(chunk.x), file.n_rows)

    observers: list[Observer] = [observe]
    watch = None if extras.metric is None else extras.metric.watch(ground)
    with ExitStack() as stack:
        detail = None
        if (extras.detail or groups is not None or extras.arrays is not None) and file.n_rows:
            detail = stack.enter_context(DetailCollector(decoder, ground, groups))
            observers.append(detail.add)
        if watch is not None:
            observers.append(watch.add)
        point = read_point(file, ground, observers)
        tables = None if detail is None else detail.facts(point)
        if extras.arrays is not None:
            with atomic_output(extras.arrays, force=extras.force) as out:
                arrays: dict[str, Any] = {} if detail is None else detail.arrays(point)
                np.savez(out, **arrays)
    rows, target, statistics = file.n_rows, encoded.goal.target, point.statistics

    def per_row(n_bits: float) -> float | None:
        return n_bits / rows if rows else None

    floor, nmse, width = floors.floor(), point.distortion.nmse, file.header.width
    decoders = decoder_facts(sae, floor)
    others = None
    if extras.baselines and nmse is not None and 0 < nmse < 1:
        others = baselines_at(sample_rows(source), nmse, rows) | {"saebench": saebench_facts(sae, ground)}
    sizes = {name: facts["bytes"] for name, facts in decoders.items()}
    raw, pca = 8.0 * ITEM_BYTES[source.dtype] * width, None if others is None else others["pca"]
    return point.facts() | {
        "version": saecodec.__version__,
        "rows": rows,
        "width": width,
        "shape": list(file.shape),
        "bits_per_scalar": per_row(8 * file.size / width),
        "bits_per_nonzero": 8 * file.size / statistics.nnz if statistics.nnz else None,
        "ratio_float32": 4 * rows * width / file.size,
        "ratio_input": ITEM_BYTES[source.dtype] * rows * width / file.size,
        "variance_explained": None if nmse is None else 1 - nmse,
        "max_error": point.distortion.max_error,
        "sae_alone": {"l0": floor.l0, "nmse": floor.nmse[FLOAT32]},
        "base_nmse": base.nmse if decoder.residual is not None else None,
        "bootstrap": ground.told(),
        "search": encoded.goal.search,
        "slope": encoded.slope,
        "target": None if target is None else {target.kind: target.value, "reached": encoded.reached},
        "bits": {part: per_row(8 * n_bytes) for part, n_bytes in point.parts.items()},
        "ideal": dict(zip(("support", "levels"), map(per_row, point.attribution.ideal), strict=True)),
        "outside": outside,
        "bits_per_row_with_codec": per_row(8 * (file.size + outside["codec_bytes"])),
        "decoder": decoders,
        "two_part": two_part(point.parts, rows, _prior_bytes(decoder, outside["codec_bytes"]), sizes, raw, pca),
        "prior": file.header.prior,
        "context": None if context is None else context.report(),
        "baselines": others,
        "metric": None if watch is None else watch.facts() | {"name": watch.name},
        "detail": tables,
        "seconds": {"sae": floor.seconds, "encode": encoded.seconds, "decode": seconds},
        "sae": dict(file.header.sae) | {"decoder_id": file.header.decoder_id},
        "codec_id": file.header.codec_id,
    }


def _prior_bytes(codec: Codec, codec_bytes: int) -> int:
    """Of a codec file that is outside the rows' file, what is not the SAE."""
    return min(codec_bytes, len(MAGIC) + len(codec.to_bytes()))


def page_of(report: dict[str, Any], name: str) -> dict[str, Any]:
    """A measure's report in the form of a comparison of one SAE with one point, which `page.write_page` shows."""
    held = ("version", "rows", "width", "selection", "search", "weights", "prior", "bootstrap", "baselines")
    point = {key: report[key] for key in ("step", "residual_step", "file_bytes", "bytes", "bits_per_row", "nmse", "l0")}
    point |= {key: report[key] for key in ("bits_interval", "nmse_interval", "nmse_median", "cosine", "estimates")}
    metric = report["metric"]
    point |= {key: None if metric is None else metric[key] for key in ("metric", "metric_interval")}
    sae = {
        "name": report["sae"]["name"],
        "path": report["sae"].get("source", ""),
        "decoder_id": report["sae"]["decoder_id"],
        "n_latents": report["sae"]["n_latents"],
        "l0": report["sae_alone"]["l0"],
        "floor": report["sae_alone"]["nmse"],
        "decoder": report["decoder"],
        "points": [point],
        "at": {},
        "detail": report["detail"],
    }
    return {key: report[key] for key in held} | {
        "kind": "measure",
        "input": name,
        "residual": report["residual_step"] is not None,
        "targets": [],
        "metric": None if metric is None else metric["name"],
        "saes": [sae],
        "at": {},
        "two_part": report["two_part"],
    }
