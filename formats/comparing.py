"""`compare`: SAEs by description length, from real files.

At a given NMSE (the epsilon of arXiv 2410.11179) the *MDL-SAE* is the one with the fewest bits. The paper leaves the
SAE itself out, since it is paid once for any number of rows. Both are told: bits per row without it, and with its
decoder, as it would be stored, shared by the rows at hand; and from how many rows on which SAE is the shortest
description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import saecodec
from saecodec.decoder_precision import with_precision
from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource, rows_for
from saecodec.formats.baseline_report import baselines_at, saebench_facts, sample_rows
from saecodec.formats.groups import Groups
from saecodec.formats.metric import Metric
from saecodec.formats.point import Ground
from saecodec.formats.rate_curve import CurveMaker, Log, Setting, nearest
from saecodec.formats.selection import Selection
from saecodec.formats.sequence_ids import load_sequence_ids
from saecodec.formats.two_part import decoder_facts, floor_of
from saecodec.formats.verdicts import AtTarget, Curve, all_crossings, bd_rates, pareto
from saecodec.sae import SAE
from saecodec.sequences import ids_of_shape


@dataclass(frozen=True)
class Candidate:
    """An SAE to be compared. load: makes it, when its turn comes."""

    path: str
    load: Callable[[], SAE]


def checked_targets(targets: Iterable[float]) -> list[float]:
    """NMSE values to compare at, rising, to six digits; InputError when there are none, or they cannot be."""
    rising = sorted({float(f"{target:g}") for target in targets})
    if not rising or not all(0 < target < 1 for target in rising):
        raise InputError(f"SAEs are compared at NMSE values between 0 and 1, got {rising or 'none'}")
    return rising


def compare(
    source: ArraySource,
    candidates: Sequence[Candidate],
    targets: Sequence[float],
    *,
    seq: NDArray[np.integer[Any]] | str | None = None,
    setting: Setting | None = None,
    selection: Selection | None = None,
    group: str | None = None,
    metric: Metric | None = None,
    baselines: bool = True,
    detail: bool = True,
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Measure a curve for each SAE on the rows of an array, and compare them at NMSE targets; for programs.

    targets: in (0, 1), told apart by six digits. seq: sequence ids, (T,), or the path of a file of them, by default
    those of the array's shape: sequences are resampled whole.
    selection: rows to leave out. group: path of labels of rows, see `Groups.load`. metric: another distortion.
    baselines: what other codes need. detail: tables of where the bits go, of each SAE's file nearest to the first
    target. InputError when rows are not finite, do not vary, or are not those of an SAE.
    """
    setting, selection = setting or Setting(), selection or Selection()
    targets = checked_targets(targets)
    pairs = named(candidates)
    rows = _rows(source, pairs, selection)
    ground = _ground(rows, seq, selection)
    groups = None if group is None else Groups.load(group, rows.n_rows, ground.numbers)
    curves: list[Curve] = []
    saes: list[dict[str, Any]] = []
    for name, candidate in pairs:
        sae = replace(candidate.load(), name="sae", source="")  # a long name is no part of an explanation
        floor = floor_of(sae, ground.source, ground.ids)
        decoder, nmse = decoder_facts(sae, floor), floor.nmse[setting.weights]
        bound = nmse if setting.search == "none" and not setting.residual else None
        with CurveMaker(name, with_precision(sae, setting.weights), ground, setting, log, metric) as maker:
            points = maker.curve(targets, nmse or 0.0)
            tables = maker.detail(nearest(points, targets[0]), groups) if detail and points else None
        curves.append(Curve(name, points, decoder[setting.weights]["bytes"], bound))
        saes.append(
            {
                "name": name,
                "path": candidate.path,
                "decoder_id": sae.decoder_id,
                "architecture": sae.architecture,
                "n_latents": sae.n_latents,
                "l0": floor.l0,
                "floor": nmse,
                "decoder": decoder,
                "points": [point.facts for point in points],
                "saebench": saebench_facts(sae, ground) if baselines else None,
                "detail": tables,
            }
        )
    sample = sample_rows(ground.source) if baselines else None
    others = {f"{t:g}": None if sample is None else baselines_at(sample, t, ground.source.n_rows) for t in targets}
    found = {f"{t:g}": AtTarget.of(curves, t, ground.source.n_rows) for t in targets}
    for facts, curve in zip(saes, curves, strict=True):
        facts["at"] = {key: at.of_curve(curve, ground, others[key]) for key, at in found.items()}
    return {
        "kind": "compare",
        "version": saecodec.__version__,
        "input": source.path,
        "rows": ground.source.n_rows,
        "width": ground.source.width,
        "selection": selection.told(rows.n_rows),
        "search": setting.search,
        "residual": setting.residual,
        "weights": setting.weights,
        "prior": "factorized",
        "targets": targets,
        "metric": None if metric is None else metric.name,
        "bootstrap": ground.told(),
        "saes": saes,
        "at": {key: at.verdict() for key, at in found.items()},
        "baselines": others if baselines else None,
        "pareto": pareto(curves),
        "bd_rate": bd_rates(curves),
        "crossings": all_crossings(curves),
    }


def named(candidates: Sequence[Candidate]) -> list[tuple[str, Candidate]]:
    """Candidates with the shortest ends of their paths that tell them apart; InputError when two are the same."""
    parts = [candidate.path.rstrip("/").split("/") for candidate in candidates]
    out = []
    for part, candidate in zip(parts, candidates, strict=True):
        if sum(other == part for other in parts) > 1:
            raise InputError(f"{candidate.path}: is given twice")
        length = 1
        while sum(other[-length:] == part[-length:] for other in parts) > 1:
            length += 1
        out.append(("/".join(part[-length:]), candidate))
    return out


def _rows(source: ArraySource, candidates: Sequence[tuple[str, Candidate]], selection: Selection) -> ArraySource:
    """The array as rows of the SAEs, each of which is loaded once for this: what cannot be measured is told at once."""
    rows: ArraySource | None = None
    for name, candidate in candidates:
        sae = candidate.load()
        of_sae = rows_for(source, sae.width, sae.row_dims)
        if of_sae.width != sae.width:
            raise InputError(f"{source.path}: shape {source.shape}, but the SAE {name!r} codes rows of {sae.width}")
        if rows is not None and of_sae.n_rows != rows.n_rows:
            raise InputError(
                f"{source.path}: shape {source.shape} is {rows.n_rows} rows of one SAE, but not of {name!r}"
            )
        selection.check(sae)
        rows = rows or of_sae
    if rows is None:
        raise InputError("no SAE to compare: give one or more")
    return rows


def _ground(rows: ArraySource, seq: NDArray[np.integer[Any]] | str | None, selection: Selection) -> Ground:
    if isinstance(seq, str):
        seq = load_sequence_ids(seq, rows.shape[:-1])
    ids = seq if seq is not None else ids_of_shape(rows.shape)
    kept = selection.apply(rows, ids)
    ground = Ground(kept.source, kept.ids, numbers=kept.rows, positions=kept.positions)
    if not ground.varies:
        raise InputError(f"{rows.path}: the rows do not vary: there is no NMSE to compare at")
    return ground
