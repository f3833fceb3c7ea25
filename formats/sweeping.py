"""`train --sweep`: a grid of SAEs, trained on the same rows and compared by description length.

In the sweep's folder, every SAE has one of its own, which appears when it is trained. So a sweep that was stopped goes
on where it stood when it is run again: SAEs that are there are taken as they are, and a checkpoint is resumed. So does
one whose grid has grown.

At an NMSE, the MDL-SAE is the one that takes the fewest bits a row (arXiv 2410.11179). What its decoder takes is told
beside it, shared by a number of rows: without it, nothing but the error keeps a wider SAE from being better, and with
it the description length has a minimum inside a grid that is wide enough.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import saecodec
from saecodec.errors import CheckpointError, InputError, OutputError
from saecodec.formats.array_source import ArraySource, MemoryArray
from saecodec.formats.atomic import atomic_output, check_output_path, reporting
from saecodec.formats.atomic_folder import check_output_folder
from saecodec.formats.checkpoints import load_sae
from saecodec.formats.comparing import Candidate, checked_targets, compare
from saecodec.formats.page import write_page
from saecodec.formats.rate_curve import Log, Setting
from saecodec.formats.saelens import CONFIG, WEIGHTS
from saecodec.formats.sweep_verdicts import verdict_at
from saecodec.formats.training import FACTS, FILES, Run, identity, missed_aim, settings_told, train_array
from saecodec.formats.training_checkpoint import check_checkpoint, checkpoint_of, load_checkpoint
from saecodec.formats.training_rows import TrainingRows
from saecodec.progress import Progress, no_progress
from saecodec.sae import available
from saecodec.training import Aim, Settings

SWEEP: Final = "sweep.json"
"""What a sweep tells of itself; it makes a folder one of a sweep's."""
PAGE: Final = "compare.html"
REPORT: Final = "compare.json"
DEFAULT_TARGETS: Final = (0.1, 0.2, 0.3)
_KEPT: Final = ("n_latents", "steps", "seconds", "held_out")
_SHORT: Final = {"l0": "k", "nmse": "nmse", "bits": "bits"}
_SAME: Final = 1e-6  # of the scale of rows, whose sum may depend on the number of threads


def name_of(settings: Settings) -> str:
    """The folder of an SAE in its sweep: F256_k8, F256_nmse0.2, F256_bits80."""
    return f"F{settings.n_latents}_{_SHORT[settings.aim.kind]}{settings.aim.value:g}"


def grid_of(
    widths: Iterable[int],
    aims: Iterable[Aim],
    make: Callable[[int, Aim], Settings],
    log: Log = lambda line: None,
) -> list[Settings]:
    """Settings for all pairs of a width and an aim, less those with k above half the width, which are no sparse codes:
    `log` is told. InputError when none is left."""
    pairs = [(width, aim) for width in widths for aim in aims]
    dense = [(width, aim) for width, aim in pairs if aim.kind == "l0" and aim.value > width / 2]
    for width, aim in dense:
        log(f"left out: k = {aim.value:g} is more than half of {width} latents")
    if len(dense) == len(pairs):
        raise InputError("no SAE is left to train: give widths of at least twice k")
    return [make(width, aim) for width, aim in pairs if (width, aim) not in dense]


def sweep(
    source: ArraySource,
    output: str | os.PathLike[str],
    grid: Sequence[Settings],
    *,
    test: ArraySource | None = None,
    targets: Sequence[float] | None = None,
    run: Run | None = None,
    search: str = "none",
    weights: str = "int8",
    baselines: bool = True,
    progress: Progress = no_progress,
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Train a grid of SAEs on the rows of an array, compare them, and name the MDL-SAE; returns what `sweep.json`
    tells, and under "compare" what `compare.json` does.

    Each SAE goes to the folder `output/NAME`, see `name_of`. One that is there is not trained again; where it is of
    other settings or rows, it is refused, or with `Run.force` replaced. A checkpoint is resumed unasked.
    test: rows to compare on, by default those that all trainings held out. targets: NMSE values, by default those that
    the grid aims at, else 0.1, 0.2, 0.3. search, weights, baselines: see `compare`.

    Raises InputError (rows, a grid whose SAEs cannot be trained together), OutputError, CheckpointError.
    """
    run, output = run or Run(), os.fspath(output)
    folders = _folders(grid, output)
    aimed = {s.aim.value for s in grid if s.aim.kind == "nmse"}
    targets = checked_targets((aimed or DEFAULT_TARGETS) if targets is None else targets)
    _check(source, test, output, force=run.force)
    rows = TrainingRows(source, grid[0].batch, grid[0].seed, memory=run.memory, progress=progress)
    if test is None and not len(rows.held_out):
        raise InputError(f"{source.path}: has too few rows to hold some out: give rows to compare on (--test)")
    wanting = [s for s, folder in folders if _is_wanting(folder, s, rows, force=run.force)]
    resumed = [s for s, folder in folders if s in wanting and _is_resumed(folder, s, source, rows, run)]
    facts: dict[str, Any] = {
        "kind": "sweep",
        "version": saecodec.__version__,
        "complete": False,
        "input": source.path,
        "rows": source.n_rows,
        "grid": [name_of(settings) for settings in grid],
    }
    if not os.path.isdir(output):
        with reporting(output):
            os.mkdir(output)
    _write(output, (_told(output) or facts) | {"complete": False})  # old verdicts stay until there are new ones
    saes = []
    for number, (settings, folder) in enumerate(folders, 1):
        name = name_of(settings)
        if settings in wanting:
            begins = "goes on from its checkpoint" if settings in resumed else "training"
            log(f"{name} ({number} of {len(grid)}): {begins}")
            own, named = replace(run, resume=settings in resumed), _named(name, progress)
            try:
                train_array(source, folder, settings, own, rows=rows, progress=named)
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
        told = json.loads((Path(folder) / FACTS).read_bytes())
        log(f"{name} ({number} of {len(grid)}): {_line(told, trained=settings in wanting)}")
        aim = {"kind": settings.aim.kind, "value": settings.aim.value}
        kept = {key: told[key] for key in _KEPT}
        saes.append({"name": name, "aim": aim, "trained_now": settings in wanting, **kept})
    judged_on = test or MemoryArray(rows.held_out.numpy(), f"{source.path} (rows held out)")
    report = compare(
        judged_on,
        [Candidate(folder, lambda folder=folder: load_sae(folder, run.device)) for _, folder in folders],  # type: ignore[misc]
        targets,
        setting=Setting(search, False, weights),
        baselines=baselines,
        log=log,
    )
    write_page(report, os.path.join(output, PAGE), force=True)
    ks = {name_of(settings): settings.aim.value for settings in grid if settings.aim.kind == "l0"}
    facts |= {
        "complete": True,
        "compared_on": {"input": judged_on.path, "rows": report["rows"], "held_out": test is None},
        "search": search,
        "weights": weights,
        "targets": report["targets"],
        "saes": saes,
        "at": {key: verdict_at(report, key, source.n_rows, ks) for key in report["at"]},
    }
    _write(output, facts)
    return facts | {"compare": report}


def _folders(grid: Sequence[Settings], output: str) -> list[tuple[Settings, str]]:
    """Settings with the folders of their SAEs; InputError when they do not make one sweep."""
    if not grid:
        raise InputError("a sweep of no SAEs: give widths, and k or another aim")
    names = [name_of(settings) for settings in grid]
    for settings, name in zip(grid, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"{name}: is given twice in a sweep")
        if settings.nested:
            raise InputError(f"{name}: a sweep trains no nested widths; train one SAE that has them")
        if (settings.batch, settings.seed) != (grid[0].batch, grid[0].seed):
            raise InputError(
                f"{name}: the SAEs of a sweep are trained on the same batches: give one batch and one seed"
            )
    return [(settings, os.path.join(output, name)) for settings, name in zip(grid, names, strict=True)]


def _check(source: ArraySource, test: ArraySource | None, output: str, *, force: bool) -> None:
    """Raise, before any work, when a sweep cannot go to a folder, or be compared on `test`."""
    for rows in (source, *([] if test is None else [test])):
        if rows.lies_in(output):
            raise OutputError(f"{output}: holds the rows {rows.path}; choose another output")
    if test is not None and test.width != source.width:
        raise InputError(f"{test.path}: has rows of {test.width} values, {source.path} of {source.width}")
    if not os.path.isdir(output):
        check_output_folder(output)
        return
    if not os.access(output, os.W_OK | os.X_OK):
        raise OutputError(f"{output}: is not writable; choose another place")
    held = sorted(os.listdir(output))
    if held and _told(output) is None and not force:
        raise OutputError(f"{output}: holds {held[0]!r}, and no sweep to go on with; choose another folder")
    for name in (SWEEP, PAGE, REPORT):
        check_output_path(os.path.join(output, name), force=True)


def _told(output: str) -> dict[str, Any] | None:
    """What the sweep in a folder tells; None where there is none, whatever else is called so."""
    try:
        told = json.loads((Path(output) / SWEEP).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) and told.get("kind") == "sweep" else None


def _is_wanting(folder: str, settings: Settings, rows: TrainingRows, *, force: bool) -> bool:
    """Whether an SAE is to be trained; OutputError when another has its place that is not to be replaced."""
    if not os.path.lexists(folder):
        return True
    different = _difference(folder, settings, rows)
    if different is not None and not force:
        raise OutputError(f"{folder}: {different}; choose another folder for this sweep, or replace it (--force)")
    if different is not None:
        check_output_folder(folder, force=True, mine=FILES.__contains__)
    return different is not None


def _difference(folder: str, settings: Settings, rows: TrainingRows) -> str | None:
    """Why a folder does not hold the SAE of these settings and rows; None where it does."""
    try:
        told = json.loads((Path(folder) / FACTS).read_bytes())
        found, n_rows, scale = dict(told["settings"]), told["rows"], float(told["scale"])
        incomplete = any(key not in told for key in _KEPT)
        _line(told, trained=True)  # which asks for what is told of it
    except (OSError, KeyError, InputError, TypeError, ValueError, ArithmeticError, RecursionError):
        incomplete = True
    if incomplete:
        return f"holds no {FACTS} that tells how an SAE was trained"
    missing = [name for name in (CONFIG, WEIGHTS) if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        return f"holds no {missing[0]}"
    wanted = settings_told(settings)
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        key = different[0]
        return f"was trained with {key} {found.get(key)!r}, now it is {wanted[key]!r}"
    if n_rows != rows.n_rows or not math.isclose(scale, rows.scaling.scale, rel_tol=_SAME):
        return "was trained on other rows"
    return None


def _is_resumed(folder: str, settings: Settings, source: ArraySource, rows: TrainingRows, run: Run) -> bool:
    """Whether a training goes on from a checkpoint. One of another training, or a damaged one, raises; with `Run.force`
    it is passed over, and replaced."""
    held = checkpoint_of(folder)
    if not os.path.exists(held):
        return False
    try:
        load_checkpoint(held, identity(settings, source, rows, available(run.device)))
    except (InputError, CheckpointError):
        if not run.force:
            raise
        check_checkpoint(held)
        return False
    return True


def _named(name: str, progress: Progress) -> Progress:
    """Progress in which the training of an SAE has its name."""

    def told(stage: str, done: int, total: int, note: str = "", /) -> None:
        progress(name if stage == "train" else stage, done, total, note)

    return told


def _line(told: dict[str, Any], *, trained: bool) -> str:
    held = told["held_out"]
    what = f"trained, {told['seconds']:.0f} s" if trained else "is there already"
    what += f"; NMSE {held['nmse']:.4f}, L0 {held['l0']:.1f} of held-out rows" if held["rows"] else ""
    missed = missed_aim(told)
    return what if missed is None else f"{what}. Warning: {missed}"


def _write(output: str, facts: dict[str, Any]) -> None:
    with atomic_output(os.path.join(output, SWEEP), force=True) as file:
        file.write(json.dumps(facts, indent=1).encode() + b"\n")
