"""From an array to the folder of a trained SAE, stopped and gone on with."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save

from saecodec.errors import CheckpointError, InputError, OutputError
from saecodec.formats import training
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.checkpoints import load_sae
from saecodec.formats.training import Run, missed_aim, train_array
from saecodec.training import Aim, Settings, Trainer

WIDTH, F, BATCH, STEPS = 6, 10, 32, 30
Rows = NDArray[np.float32]


def rows(n: int = 1500) -> Rows:
    draw = np.random.default_rng(0)
    z = (draw.random((n, F)) < 0.15) * draw.uniform(1, 2, (n, F))
    return (40 * z @ draw.normal(size=(F, WIDTH)) + 7).astype(np.float32)


X = rows()
SETTINGS = {
    "batchtopk": Settings(F, aim=Aim("l0", 2), tokens=STEPS * BATCH, batch=BATCH, nested=(4,), learning_rate=0.01),
    "rate": Settings(F, "jumprelu", "rate", Aim("nmse", 0.3), STEPS * BATCH, BATCH, 0.01),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Stop:
    """A progress that stops the training at a step as Ctrl-C does."""

    def __init__(self, step: int, by_signal: bool = False) -> None:
        self.step, self.by_signal = step, by_signal

    def __call__(self, what: str, done: int, total: int, more: str = "") -> None:
        if what == "train" and done == self.step * BATCH:
            if self.by_signal:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, Any]:
    """What a folder holds, but how long it took."""
    held: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    facts = json.loads(held.pop("training.json"))
    del facts["seconds"]
    return held | {"facts": facts}


@pytest.mark.parametrize("kind", SETTINGS)
def test_the_folder_holds_the_sae_and_what_is_told_of_it(tmp_path: Path, kind: str) -> None:
    settings, output = SETTINGS[kind], tmp_path / "sae"
    made: list[Trainer] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "Trainer", lambda *of: made.append(Trainer(*of)) or made[-1])
        facts = train_array(MemoryArray(X), output, settings)
    assert facts == json.loads((output / "training.json").read_text())
    sae, own = load_sae(output), made[0].sae()
    assert torch.equal(sae.w_dec, own.w_dec)
    assert torch.equal(sae.encoder.w_enc, own.encoder.w_enc)  # type: ignore[union-attr]
    ratio = sae.encoder.nonlinearity.threshold / own.encoder.nonlinearity.threshold  # type: ignore[union-attr]
    torch.testing.assert_close(ratio, torch.full((F,), facts["threshold_factor"] or 1.0))
    held = facts["held_out"]
    assert held["rows"] > 50
    features = sae.features((made[0]._held_out / facts["scale"] + made[0]._scaling.mean).numpy())
    assert held["l0"] == pytest.approx(len(features.latents) / held["rows"], rel=0.02)
    assert 0 < held["nmse"] < 1
    assert held["coded_nmse"] > 0.9 * held["nmse"]
    assert facts["curve"]["points"][-1][0] == facts["steps"] == STEPS
    assert facts["settings"] == settings.to_json() | {"learning_rate": settings.peak_rate}
    assert not (tmp_path / "sae.checkpoint").exists()
    if kind == "rate":
        assert (held["step"], held["bits_per_row"]) == pytest.approx((facts["step"], held["bits_per_row"]))
        return
    part = load_sae(tmp_path / "sae-4")
    assert torch.equal(part.w_dec, own.w_dec[:4])
    assert json.loads((tmp_path / "sae-4" / "training.json").read_text())["n_latents"] == 4


@pytest.mark.parametrize("kind, stops, by_signal", [("batchtopk", [7], True), ("rate", [18], False)])
def test_a_training_that_was_stopped_goes_on_to_the_same_folder(
    tmp_path: Path, kind: str, stops: list[int], by_signal: bool
) -> None:
    settings, source = SETTINGS[kind], MemoryArray(X)
    train_array(source, tmp_path / "whole", settings)
    for stop in stops:
        output = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            train_array(source, output, settings, progress=Stop(stop, by_signal))
        assert not output.exists()
        with pytest.raises(OutputError, match=r"go on \(--resume\), or begin anew \(--force\)"):
            train_array(source, output, settings)
        train_array(source, output, settings, Run(resume=True))
        assert contents(output) == contents(tmp_path / "whole")
    assert not list(tmp_path.glob("*.checkpoint"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_midst_of_a_step_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, source = SETTINGS["batchtopk"], MemoryArray(X)
    train_array(source, tmp_path / "whole", settings)
    step = Trainer._step

    def interrupted(self: Trainer, x: torch.Tensor) -> None:
        if self.steps_done == 9:
            self.parameters["w_dec"].data.add_(0)
            os.kill(os.getpid(), signal.SIGINT)
        step(self, x)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_array(source, tmp_path / "sae", settings)
    monkeypatch.undo()
    with safe_open(tmp_path / "sae.checkpoint", framework="pt") as file:
        assert json.loads(file.metadata()["saecodec_training"])["numbers"]["trainer"]["steps_done"] == 10
    train_array(source, tmp_path / "sae", settings, Run(resume=True))
    assert contents(tmp_path / "sae") == contents(tmp_path / "whole")


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def impatient(self: Trainer, x: torch.Tensor) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it waited")

    monkeypatch.setattr(Trainer, "_step", impatient)
    with pytest.raises(KeyboardInterrupt):
        train_array(MemoryArray(X), tmp_path / "sae", SETTINGS["batchtopk"])
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def stopped(folder: Path, stop: int = 20) -> Path:
    """The output of a training that was stopped."""
    with pytest.raises(KeyboardInterrupt):
        train_array(MemoryArray(X), folder / "sae", SETTINGS["batchtopk"], progress=Stop(stop))
    return folder / "sae"


def test_a_checkpoint_now_and_then_is_one_to_go_on_from(tmp_path: Path) -> None:
    def killed(what: str, done: int, total: int, more: str = "") -> None:
        if what == "train" and done == 20 * BATCH:
            raise MemoryError

    train_array(MemoryArray(X), tmp_path / "whole", SETTINGS["batchtopk"])
    output = tmp_path / "sae"
    with pytest.raises(MemoryError):
        train_array(MemoryArray(X), output, SETTINGS["batchtopk"], Run(save_seconds=0), progress=killed)
    train_array(MemoryArray(X), output, SETTINGS["batchtopk"], Run(resume=True))
    assert contents(output) == contents(tmp_path / "whole")


@pytest.mark.parametrize("change", [{"seed": 1}, {"tokens": 2000}, {"batch": 16}, {"learning_rate": 0.02}])
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    output = stopped(tmp_path)
    with pytest.raises(InputError, match=r"sae\.checkpoint: is of another training: its settings"):
        train_array(MemoryArray(X), output, replace(SETTINGS["batchtopk"], **change), Run(resume=True))


@pytest.mark.parametrize("x", [X[:-1], X * 2 + 1], ids=["number", "mean"])
def test_other_rows_are_refused(tmp_path: Path, x: Rows) -> None:
    output = stopped(tmp_path)
    with pytest.raises(InputError, match="is of another training: of other rows, or with another memory for them"):
        train_array(MemoryArray(x), output, SETTINGS["batchtopk"], Run(resume=True))


def test_another_memory_is_refused_where_its_rows_would_come_in_another_order(tmp_path: Path) -> None:
    output = stopped(tmp_path)
    with pytest.raises(InputError, match="is of another training"):
        train_array(MemoryArray(X), output, SETTINGS["batchtopk"], Run(resume=True, memory=1000 * 4 * WIDTH))


def test_a_number_of_threads_is_part_of_a_training(tmp_path: Path) -> None:
    output = stopped(tmp_path)
    torch.set_num_threads(2)
    with pytest.raises(InputError, match="its threads was 1, now it is 2"):
        train_array(MemoryArray(X), output, SETTINGS["batchtopk"], Run(resume=True))


@pytest.mark.parametrize(
    "change",
    [
        {"trainer": 3},
        {"trainer": {}},
        {"told": []},
        {"told": {}},
        {"told": {"seconds": "1", "curve": []}},
        {"told": {"seconds": math.nan, "curve": []}},
        {"told": {"seconds": 1.0, "curve": 5}},
        {"told": None},
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    output = stopped(tmp_path)
    rewrite(tmp_path / "sae.checkpoint", numbers=change)
    with pytest.raises(CheckpointError, match=r"sae\.checkpoint: does not hold the state of such a training"):
        train_array(MemoryArray(X), output, SETTINGS["batchtopk"], Run(resume=True))


@pytest.mark.parametrize(
    "name", ["parameter.w_dec", "adam.w_enc.exp_avg", "adam.b_enc.step", "costs.rate", "silent", "draws"]
)
def test_tensors_that_cannot_be_are_refused(tmp_path: Path, name: str) -> None:
    output = stopped(tmp_path)
    rewrite(tmp_path / "sae.checkpoint", tensors={name: torch.zeros(3, 1)})
    with pytest.raises(CheckpointError, match=r"sae\.checkpoint: does not hold the state of such a training"):
        train_array(MemoryArray(X), output, SETTINGS["batchtopk"], Run(resume=True))


def rewrite(path: Path, *, tensors: dict[str, Any] | None = None, numbers: dict[str, Any] | None = None) -> None:
    with safe_open(path, framework="pt") as file:
        told = json.loads(file.metadata()["saecodec_training"])
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    told["numbers"] |= numbers or {}
    path.write_bytes(save(held | (tensors or {}), {"saecodec_training": json.dumps(told)}))


def test_there_has_to_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sae\.checkpoint: there is no checkpoint to resume from"):
        train_array(MemoryArray(X), tmp_path / "sae", SETTINGS["batchtopk"], Run(resume=True))


def test_nothing_is_overwritten_unless_it_may_be(tmp_path: Path) -> None:
    output = tmp_path / "sae-4"
    output.mkdir()
    (output / "mine").write_text("")
    for force in (False, True):
        with pytest.raises(OutputError, match="sae-4"):
            train_array(MemoryArray(X), tmp_path / "sae", SETTINGS["batchtopk"], Run(force=force))
    (tmp_path / "other").mkdir()
    output = stopped(tmp_path / "other")
    train_array(MemoryArray(X), output, SETTINGS["batchtopk"], Run(force=True))
    assert not (tmp_path / "other" / "sae.checkpoint").exists()
    train_array(MemoryArray(X), output, SETTINGS["batchtopk"], Run(force=True))


def test_what_is_no_checkpoint_keeps_its_name_and_stops_a_training_before_it_begins(tmp_path: Path) -> None:
    held = tmp_path / "sae.checkpoint"

    def never(*of: Any) -> None:
        raise AssertionError

    for content in (b"", b"mine", save({"a": torch.zeros(2)}), save({"a": torch.zeros(2)}, {"mine": "1"})):
        held.write_bytes(content)
        for force in (False, True):
            with pytest.raises(OutputError, match=r"sae\.checkpoint: is no checkpoint of a training"):
                train_array(MemoryArray(X), tmp_path / "sae", SETTINGS["batchtopk"], Run(force=force), progress=never)
        assert held.read_bytes() == content
    held.unlink()
    held.mkdir()
    with pytest.raises(OutputError, match=r"sae\.checkpoint: is a folder"):
        train_array(MemoryArray(X), tmp_path / "sae", SETTINGS["batchtopk"], Run(force=True), progress=never)


def test_what_fails_after_the_last_step_costs_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, output = SETTINGS["batchtopk"], tmp_path / "sae"
    train_array(MemoryArray(X), tmp_path / "whole", settings)
    write = training.write_saelens

    def full(sae: Any, folder: str, **options: Any) -> None:
        if sae.n_latents == F:
            raise OSError(28, "No space left on device")
        write(sae, folder, **options)

    monkeypatch.setattr(training, "write_saelens", full)
    with pytest.raises(OutputError, match="No space left"):
        train_array(MemoryArray(X), output, settings)
    monkeypatch.undo()
    monkeypatch.delattr(Trainer, "_step")
    with pytest.raises(OutputError, match=r"sae-4: already exists, .*--resume --force"):
        train_array(MemoryArray(X), output, settings, Run(resume=True))
    train_array(MemoryArray(X), output, settings, Run(resume=True, force=True))
    assert contents(output) == contents(tmp_path / "whole")


def test_where_there_is_no_room_for_a_last_checkpoint_the_sae_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*of: Any) -> None:
        raise OutputError("no room")

    monkeypatch.setattr(training, "save_checkpoint", full)
    train_array(MemoryArray(X), tmp_path / "sae", SETTINGS["batchtopk"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sae", "sae-4"]


def test_a_job_that_is_told_to_end_leaves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, source, step = SETTINGS["batchtopk"], MemoryArray(X), Trainer._step
    train_array(source, tmp_path / "whole", settings)

    def ended(self: Trainer, x: torch.Tensor) -> None:
        if self.steps_done == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, x)

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        monkeypatch.setattr(Trainer, "_step", ended)
        with pytest.raises(SystemExit) as stopped:
            train_array(source, tmp_path / "sae", settings)
        monkeypatch.undo()
        assert stopped.value.code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
    train_array(source, tmp_path / "sae", settings, Run(resume=True))
    assert contents(tmp_path / "sae") == contents(tmp_path / "whole")


@pytest.mark.parametrize("steps", [99, 100, 101, 199, 200, 201])
def test_a_curve_has_a_hundred_points_at_most(tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_step", lambda self, x: setattr(self, "steps_done", self.steps_done + 1))
    settings = Settings(F, aim=Aim("l0", 2), tokens=steps, batch=1)
    points = train_array(MemoryArray(X), tmp_path / "sae", settings)["curve"]["points"]
    assert 50 < len(points) <= 100
    assert points[-1][0] == steps


def test_an_aim_that_was_missed_is_told_where_that_was_measured() -> None:
    def told(objective: str, aim: Aim, **held: Any) -> str | None:
        settings = Settings(F, "jumprelu", objective, aim).to_json()
        return missed_aim({"settings": settings, "held_out": {"rows": 9, **held}})

    assert told("sparsity", Aim("nmse", 0.2), nmse=0.219) is None
    for nmse in (0.221, 0.179):
        assert (
            told("sparsity", Aim("nmse", 0.2), nmse=nmse) == f"held-out rows have NMSE {nmse}0, where 0.2 was aimed at"
        )
    assert told("sparsity", Aim("nmse", 0.2), rows=0) is None
    assert told("sparsity", Aim("l0", 2), nmse=0.9) is None
    assert told("rate", Aim("nmse", 0.2), nmse=0.5, searched={"nmse": 0.2}) is None
    assert told("rate", Aim("nmse", 0.2), nmse=0.2, searched=None) == "no search of held-out rows reaches nmse 0.2"
    assert told("rate", Aim("bits", 20), rows=0) is None


@pytest.mark.parametrize("kind", SETTINGS)
def test_few_rows_leave_none_to_judge_by(tmp_path: Path, kind: str) -> None:
    settings = replace(SETTINGS[kind], tokens=5 * BATCH)
    facts = train_array(MemoryArray(X[:100]), tmp_path / "sae", settings)
    assert facts["held_out"] == {"rows": 0}
    assert facts["threshold_factor"] is None
    load_sae(tmp_path / "sae")
