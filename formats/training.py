"""`train`: from an array of activations to an SAE in SAELens' layout.

While it runs, a checkpoint lies beside the output folder, `OUTPUT.checkpoint`; the folder appears when all is done.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

import saecodec
from saecodec.distortion import Distortion
from saecodec.errors import CheckpointError, InputError, OutputError, TargetError
from saecodec.formats.array_source import ArraySource, MemoryArray
from saecodec.formats.atomic_folder import atomic_folder, check_output_folder
from saecodec.formats.measuring import measure_array
from saecodec.formats.processes import deferring_interrupts
from saecodec.formats.saelens import CONFIG, WEIGHTS
from saecodec.formats.saelens_writer import write_saelens
from saecodec.formats.training_checkpoint import check_checkpoint, checkpoint_of, load_checkpoint, save_checkpoint
from saecodec.formats.training_rows import MEMORY, TrainingRows
from saecodec.goal import DEFAULT_STEP, Goal
from saecodec.progress import Progress, no_progress
from saecodec.quantizer import Step
from saecodec.sae import SAE, available
from saecodec.training import Aim, Settings, Trainer
from saecodec.training.checked_state import number
from saecodec.training.first_latents import first_latents
from saecodec.training.tuning import code, tune

FACTS: Final = "training.json"
"""What a training tells of itself, beside the SAE."""
FILES: Final = (CONFIG, WEIGHTS, FACTS)
"""What the folder of a training holds."""
_CURVE_POINTS: Final = 100
_NEAR: Final = 0.1  # of an NMSE aimed at, by which one that was reached may differ
_METER_SECONDS: Final = 0.1  # between looks at where a training stands, for progress: it takes sums over all latents


@dataclass(frozen=True)
class Run:
    """How a training runs. Its SAE depends on the device, by its arithmetic, and on the memory, where not all rows fit
    in it: they are mixed in blocks then.

    device: "auto" is cuda where there is one. memory: bytes that rows may take. save_seconds: between checkpoints.
    resume: go on from one. force: replace an output, and a checkpoint, unless the training resumes from that."""

    device: str = "auto"
    memory: int = MEMORY
    save_seconds: float = 60.0
    resume: bool = False
    force: bool = False


def train_array(
    source: ArraySource,
    output: str | os.PathLike[str],
    settings: Settings,
    run: Run | None = None,
    *,
    rows: TrainingRows | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train an SAE on the rows of an array, and write it to the folder `output`; returns what `training.json` tells.

    The SAEs of `settings.nested` go to folders beside it, `output-WIDTH`. Interrupted (Ctrl-C) or killed, a training
    goes on from its checkpoint with `Run.resume`, to the same SAE as if it had not stopped. rows: those of the source,
    if they are at hand; they are read again where they are of other batches.

    Raises InputError (rows, settings, a checkpoint of another training), OutputError, CheckpointError.
    """
    run = run or Run()
    folders = folders_of(output, settings)
    held = checkpoint_of(output)
    if run.resume and not os.path.exists(held):
        raise InputError(f"{held}: there is no checkpoint to resume from: leave --resume out")
    for folder in folders.values():
        if run.resume and not run.force and os.path.lexists(folder):
            raise OutputError(
                f"{folder}: already exists, and {held} is left of a training that was stopped: to finish that, and "
                "replace the folder, resume with force (--resume --force)"
            )
        check_output_folder(folder, force=run.force, mine=FILES.__contains__)
        if source.lies_in(folder):
            raise OutputError(f"{folder}: holds the input; choose another output")
    check_checkpoint(held)
    if os.path.exists(held) and not (run.resume or run.force):
        raise OutputError(f"{held}: is left of a training that was stopped: go on (--resume), or begin anew (--force)")
    device = available(run.device)
    if rows is None or not rows.serve(source, settings.batch, settings.seed):
        rows = TrainingRows(source, settings.batch, settings.seed, memory=run.memory, progress=progress)
    trainer = Trainer(settings, rows.scaling, rows.held_out, device)
    of = identity(settings, source, rows, device)
    told: dict[str, Any] = {"seconds": 0.0, "curve": []}
    if run.resume:
        tensors, numbers = load_checkpoint(held, of)
        try:
            trainer.restore(tensors, numbers["trainer"])
            told = {"seconds": number(numbers["told"], "seconds"), "curve": list(numbers["told"]["curve"])}
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{held}: does not hold the state of such a training ({error})") from error
    _steps(trainer, rows, told, run, progress, lambda: _save(held, trainer, told, of))
    facts = _write(trainer, rows, source, folders, told, run)
    if os.path.exists(held):
        os.unlink(held)
    return facts


def folders_of(output: str | os.PathLike[str], settings: Settings) -> dict[int, str]:
    """Where the SAEs of a training go, by width: nested ones beside the output."""
    nested = {width: f"{os.fspath(output).rstrip(os.sep)}-{width}" for width in settings.nested}
    return nested | {settings.n_latents: os.fspath(output)}


def identity(settings: Settings, source: ArraySource, rows: TrainingRows, device: torch.device) -> dict[str, Any]:
    """What a checkpoint belongs to: where all of this is the same, a training goes on as if it had not stopped."""
    return {
        "settings": settings.to_json(),
        "rows": [source.n_rows, source.width, rows.n_rows],
        "mean": rows.scaling.mean.double().square().sum().item(),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def settings_told(settings: Settings) -> dict[str, Any]:
    """Settings as `training.json` has them: with the learning rate that was taken."""
    return settings.to_json() | {"learning_rate": settings.peak_rate}


def missed_aim(told: dict[str, Any]) -> str | None:
    """What a training was to reach on held-out rows and did not, by what `training.json` tells; None where it did, or
    where nothing was measured that would tell."""
    settings, held = told["settings"], told["held_out"]
    aim = Aim(**settings["aim"])
    if settings["objective"] == "rate":
        lost = "searched" in held and held["searched"] is None
        return f"no search of held-out rows reaches {aim}" if lost else None
    if aim.kind != "nmse" or not held["rows"] or abs(held["nmse"] / aim.value - 1) <= _NEAR:
        return None
    return f"held-out rows have NMSE {held['nmse']:.4f}, where {aim.value:g} was aimed at"


def _save(path: str, trainer: Trainer, told: dict[str, Any], of: dict[str, Any]) -> None:
    tensors, numbers = trainer.state()
    save_checkpoint(path, tensors, {"trainer": numbers, "told": told}, of)


def _steps(
    trainer: Trainer,
    rows: TrainingRows,
    told: dict[str, Any],
    run: Run,
    progress: Progress,
    save: Callable[[], None],
) -> None:
    """All steps that are left, with a checkpoint now and then, after the last one, and when it is interrupted, which
    waits for the end of a step: in the midst of one, there is no state to go on from."""
    settings, started, before = trainer.settings, time.perf_counter(), told["seconds"]
    saved, saved_step = started, trainer.steps_done
    every = -(-settings.n_steps // _CURVE_POINTS)
    meter, shown = trainer.meter(), -math.inf
    with deferring_interrupts() as let_through:
        for step in trainer.train(rows.batches(trainer.steps_done)):
            now = time.perf_counter()
            told["seconds"] = before + now - started
            on_curve = step % every == 0 or step == settings.n_steps
            if on_curve or now - shown >= _METER_SECONDS:
                meter, shown = trainer.meter(), now
            if on_curve:
                told["curve"].append([meter.step, meter.nmse, meter.l0, meter.bits, meter.dead, meter.pressure])
            try:
                progress("train", step * settings.batch, settings.n_steps * settings.batch, str(meter))
                let_through()
            except (KeyboardInterrupt, SystemExit):
                save()
                raise
            if now - saved >= run.save_seconds:
                save()
                saved, saved_step = time.perf_counter(), step
        if saved_step < settings.n_steps:  # judging takes time, too, and writing may fail
            with suppress(OutputError):  # where there may be room for an SAE, though not for a checkpoint
                save()


def _write(
    trainer: Trainer,
    rows: TrainingRows,
    source: ArraySource,
    folders: dict[int, str],
    told: dict[str, Any],
    run: Run,
) -> dict[str, Any]:
    settings, sae, x = trainer.settings, trainer.sae(), rows.held_out.numpy()
    point = None
    if settings.objective == "rate" and len(x):
        sae, point = tune(sae, x, trainer.price)
    facts: dict[str, Any] = {
        "version": saecodec.__version__,
        "input": source.path,
        "rows": rows.n_rows,
        "settings": settings_told(settings),
        "steps": settings.n_steps,
        "seconds": round(told["seconds"], 1),
        "device": str(available(run.device)),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "scale": rows.scaling.scale,
        "threshold_factor": None if point is None else point.factor,
        "step": None if point is None else point.step,
        "curve": {"columns": ["step", "nmse", "l0", "bits_per_row", "dead", "pressure"], "points": told["curve"]},
    }
    out: dict[str, Any] = {}
    for width, folder in folders.items():
        part = first_latents(sae, width)
        step = Step.parse(DEFAULT_STEP) if point is None else Step(point.step, False)
        out = facts | {"n_latents": width, "held_out": judged(part, rows.held_out, step)}
        if point is not None:
            out["held_out"]["searched"] = searched(part, x, settings.aim)
        with atomic_folder(folder, force=run.force, mine=FILES.__contains__) as path:
            write_saelens(
                part, path, metadata={"saecodec_version": saecodec.__version__, "trained_as": _name(settings)}
            )
            (Path(path) / FACTS).write_text(json.dumps(out, indent=1) + "\n")
    return out


def _name(settings: Settings) -> str:
    return f"{settings.architecture}, objective {settings.objective}, {settings.aim}"


def searched(sae: SAE, x: NDArray[np.float32], aim: Aim) -> dict[str, Any] | None:
    """Rows, (H, d), coded for an aim with the codec's search, in a real file; None where it is out of reach."""
    goal = Goal.of(nmse=aim.value) if aim.kind == "nmse" else Goal.of(bits=aim.value)
    try:
        report = measure_array(MemoryArray(x), sae=sae, goal=goal)
    except TargetError:
        return None
    return {key: report[key] for key in ("bits_per_row", "nmse", "l0", "step")}


def judged(sae: SAE, held_out: torch.Tensor, step: Step) -> dict[str, Any]:
    """What an SAE does with rows, (H, d): its own NMSE, nonzeros a row, share of latents that never fire; and bits per
    row and NMSE of these rows coded at a step without search, which are measured, not estimated."""
    x = held_out.numpy()
    if not len(x):
        return {"rows": 0}
    features = sae.features(x)
    own = Distortion(sae.width)
    own.add(x, sae.rows(features).numpy())
    fires = torch.bincount(torch.from_numpy(features.latents).long(), minlength=sae.n_latents)
    coded = code(sae, x, step, features)
    return {
        "rows": len(x),
        "nmse": math.inf if own.nmse is None else own.nmse,
        "l0": len(features.latents) / len(x),
        "dead": float((fires == 0).float().mean()),
        "step": coded.step,
        "bits_per_row": coded.bits,
        "coded_nmse": coded.nmse,
    }
