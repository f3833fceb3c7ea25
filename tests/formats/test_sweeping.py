"""A sweep trains what is missing, refuses what is of others, and names the MDL-SAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from saecodec.errors import CheckpointError, InputError, OutputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.sweeping import grid_of, name_of, sweep
from saecodec.formats.training import Run, train_array
from saecodec.formats.training_checkpoint import checkpoint_of
from saecodec.training import Aim, Settings

WEIGHTS = "sae_weights.safetensors"
GRID = [Settings(width, aim=Aim("l0", 2), tokens=640, batch=64) for width in (8, 12)]
NAMES = ["F8_k2", "F12_k2"]


def sparse_rows(n_rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Rows (n, 6) of few of 10 directions."""
    directions = np.random.default_rng(7).standard_normal((10, 6))
    rng = np.random.default_rng(seed)
    return (((rng.random((n_rows, 10)) < 0.15) * rng.exponential(1, (n_rows, 10))) @ directions).astype(np.float32)


@pytest.fixture(scope="module")
def source() -> MemoryArray:
    return MemoryArray(sparse_rows(600), "rows")


def swept(source: MemoryArray, output: Path, grid: list[Settings] = GRID, **options: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    kept = {"targets": [0.3], "baselines": False, "log": lines.append} | options
    return sweep(source, output, grid, **kept), [line for line in lines if ": step" not in line]


@pytest.fixture(scope="module")
def done(source: MemoryArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of GRID."""
    output = tmp_path_factory.mktemp("sweeps") / "done"
    swept(source, output)
    return output


def copy(done: Path, output: Path) -> Path:
    for path in sorted(done.rglob("*")):
        if path.is_file():
            (output / path.relative_to(done)).parent.mkdir(parents=True, exist_ok=True)
            (output / path.relative_to(done)).write_bytes(path.read_bytes())
    return output


def interrupted_at(name: str, tokens: int) -> Any:
    """Progress that a Ctrl-C ends."""

    def progress(stage: str, done: int, total: int, note: str = "", /) -> None:
        if stage == name and done == tokens:
            raise KeyboardInterrupt

    return progress


def test_its_folder_holds_the_saes_that_train_array_writes_and_their_comparison(
    source: MemoryArray, done: Path, tmp_path: Path
) -> None:
    assert sorted(path.name for path in done.iterdir()) == sorted(
        [*NAMES, "compare.html", "compare.json", "sweep.json"]
    )
    for settings, name in zip(GRID, NAMES, strict=True):
        train_array(source, tmp_path / name, settings)
        assert (done / name / WEIGHTS).read_bytes() == (tmp_path / name / WEIGHTS).read_bytes()
    told, report = (json.loads((done / f"{name}.json").read_bytes()) for name in ("sweep", "compare"))
    assert [sae["name"] for sae in report["saes"]] == told["grid"] == [sae["name"] for sae in told["saes"]] == NAMES
    assert told["complete"]
    assert told["compared_on"] == {"input": "rows (rows held out)", "rows": report["rows"], "held_out": True}


def test_run_again_it_trains_nothing_and_compares_again(source: MemoryArray, done: Path, tmp_path: Path) -> None:
    output = copy(done, tmp_path / "sweep")
    before = {name: (output / name / WEIGHTS).stat().st_mtime_ns for name in NAMES}
    for file in ("compare.json", "compare.html"):
        (output / file).write_text("stale")
    facts, lines = swept(source, output)
    assert before == {name: (output / name / WEIGHTS).stat().st_mtime_ns for name in NAMES}
    assert [line.partition(";")[0] for line in lines] == [
        "F8_k2 (1 of 2): is there already",
        "F12_k2 (2 of 2): is there already",
    ]
    assert not any(sae["trained_now"] for sae in facts["saes"])
    again, first = (json.loads((folder / "compare.json").read_bytes()) for folder in (output, done))
    assert again["at"] == first["at"]
    assert (output / "compare.html").read_text() != "stale"


def test_a_grid_that_has_grown_is_trained_where_it_is_new(source: MemoryArray, done: Path, tmp_path: Path) -> None:
    wider = Settings(16, aim=Aim("nmse", 0.3), tokens=640, batch=64)
    output = copy(done, tmp_path / "sweep")
    with pytest.raises(KeyboardInterrupt):
        swept(source, output, [*GRID, wider], progress=interrupted_at("F16_nmse0.3", 320))
    old, held = (json.loads((folder / "sweep.json").read_bytes()) for folder in (done, output))
    assert held == old | {"complete": False}, "the old verdicts stay until there are new ones"
    facts, _ = swept(source, output, [*GRID, wider], targets=None)
    assert [sae["trained_now"] for sae in facts["saes"]] == [False, False, True]
    assert facts["saes"][2]["name"] == "F16_nmse0.3"
    assert facts["targets"] == [0.3]  # that of the grid


def test_stopped_in_the_middle_it_goes_on_to_the_same_saes(source: MemoryArray, done: Path, tmp_path: Path) -> None:
    output = tmp_path / "sweep"
    with pytest.raises(KeyboardInterrupt):
        swept(source, output, progress=interrupted_at("F12_k2", 320))
    assert sorted(path.name for path in output.iterdir()) == ["F12_k2.checkpoint", "F8_k2", "sweep.json"]
    assert not json.loads((output / "sweep.json").read_bytes())["complete"]
    _, lines = swept(source, output)
    assert [line.partition(";")[0] for line in lines][:1] == ["F8_k2 (1 of 2): is there already"]
    assert lines[1] == "F12_k2 (2 of 2): goes on from its checkpoint"
    assert (output / "F12_k2" / WEIGHTS).read_bytes() == (done / "F12_k2" / WEIGHTS).read_bytes()
    assert not list(output.glob("*.checkpoint"))


def test_a_checkpoint_of_another_training_is_refused_or_with_force_replaced(
    source: MemoryArray, done: Path, tmp_path: Path
) -> None:
    output = tmp_path / "sweep"
    longer = [Settings(8, aim=Aim("l0", 2), tokens=1280, batch=64), GRID[1]]
    with pytest.raises(KeyboardInterrupt):
        swept(source, output, longer, progress=interrupted_at("F8_k2", 320))
    with pytest.raises(InputError, match=r"F8_k2.checkpoint: is of another training: its settings"):
        swept(source, output)
    damaged, whole = Path(checkpoint_of(output / "F12_k2")), Path(checkpoint_of(output / "F8_k2")).read_bytes()
    damaged.write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match=r"F12_k2.checkpoint"):
        swept(source, output, longer)
    damaged.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"F12_k2.checkpoint: is no checkpoint of a training"):
        swept(source, output, run=Run(force=True))
    assert not (output / "F8_k2").exists(), "told before any training"
    damaged.write_bytes(whole[:-1])
    swept(source, output, run=Run(force=True))
    assert (output / "F8_k2" / WEIGHTS).read_bytes() == (done / "F8_k2" / WEIGHTS).read_bytes()
    assert not list(output.glob("*.checkpoint"))


def test_saes_of_other_settings_or_rows_are_refused_by_name_before_any_training(
    source: MemoryArray, done: Path, tmp_path: Path
) -> None:
    output = copy(done, tmp_path / "sweep")
    new = Settings(16, aim=Aim("l0", 2), tokens=640, batch=64)
    other = Settings(12, aim=Aim("l0", 2), tokens=640, batch=64, learning_rate=0.01)
    with pytest.raises(OutputError, match=r"F12_k2: was trained with learning_rate 0.004, now it is 0.01; .*--force"):
        swept(source, output, [new, other])
    with pytest.raises(OutputError, match=r"F8_k2: was trained on other rows"):
        swept(MemoryArray(2 * sparse_rows(600), "rows"), output)
    told = json.loads((output / "F12_k2" / "training.json").read_bytes())
    held = told["held_out"]
    for damaged in (
        {"settings": 3},
        told | {"held_out": {}},
        told | {"held_out": 3},
        told | {"held_out": held | {"nmse": "low"}},
        told | {"held_out": {"rows": 9, "nmse": 0.1}},
        told | {"seconds": None},
        told | {"settings": told["settings"] | {"aim": {"kind": "l0"}}},
    ):
        (output / "F12_k2" / "training.json").write_text(json.dumps(damaged))
        with pytest.raises(OutputError, match=r"F12_k2: holds no training.json that tells"):
            swept(source, output)
    (output / "F8_k2" / WEIGHTS).unlink()
    with pytest.raises(OutputError, match=r"F8_k2: holds no sae_weights"):
        swept(source, output)
    assert not (output / "F16_k2").exists()
    facts, _ = swept(source, output, run=Run(force=True))
    assert [sae["trained_now"] for sae in facts["saes"]] == [True, True]
    assert (output / "F12_k2" / WEIGHTS).read_bytes() == (done / "F12_k2" / WEIGHTS).read_bytes()


def test_what_force_does_not_replace_is_told_before_any_training(
    source: MemoryArray, done: Path, tmp_path: Path
) -> None:
    output = copy(done, tmp_path / "sweep")
    new, wide = (Settings(width, aim=Aim("l0", 2), tokens=640, batch=64) for width in (4, 16))
    (output / "F8_k2" / "training.json").unlink()
    (output / "F8_k2" / "notes.txt").write_text("mine")
    (output / "F16_k2").write_text("mine")
    for last, message in ((GRID[0], "F8_k2: is not replaced, because it holds 'notes.txt'"), (wide, "is a file")):
        with pytest.raises(OutputError, match=message):
            swept(source, output, [new, last], run=Run(force=True))
    assert not (output / "F4_k2").exists()


def test_targets_that_cannot_be_are_told_before_any_training(source: MemoryArray, tmp_path: Path) -> None:
    for targets in ([0.2, 1.5], []):
        with pytest.raises(InputError, match="NMSE values between 0 and 1"):
            swept(source, tmp_path / "sweep", targets=targets)
    assert not list(tmp_path.iterdir())


def test_a_training_that_fails_is_told_by_name(source: MemoryArray, tmp_path: Path) -> None:
    lines: list[str] = []
    wild = Settings(12, aim=Aim("l0", 2), tokens=640, batch=64, learning_rate=1e30)
    with pytest.raises(InputError, match=r"^F12_k2: the training diverged"):
        swept(source, tmp_path / "sweep", [GRID[0], wild], log=lines.append)
    assert lines[0] == "F8_k2 (1 of 2): training"
    assert lines[1].startswith("F8_k2 (1 of 2): trained, ")
    assert lines[2:] == ["F12_k2 (2 of 2): training"]


def test_an_aim_that_is_missed_is_told(source: MemoryArray, tmp_path: Path) -> None:
    far = Settings(8, aim=Aim("nmse", 1e-5), tokens=64, batch=64)
    _, lines = swept(source, tmp_path / "sweep", [far])
    assert lines[1].endswith(", where 1e-05 was aimed at")
    assert ". Warning: held-out rows have NMSE " in lines[1]


def test_with_force_what_is_as_asked_for_stays(source: MemoryArray, done: Path, tmp_path: Path) -> None:
    output = copy(done, tmp_path / "sweep")
    (output / "F8_k2" / "training.json").unlink()
    facts, _ = swept(source, output, run=Run(force=True))
    assert [sae["trained_now"] for sae in facts["saes"]] == [True, False]


def test_a_folder_of_other_things_is_no_place_for_a_sweep(source: MemoryArray, tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'compare.json', and no sweep to go on with"):
        swept(source, tmp_path)
    with pytest.raises(OutputError, match=r"is a file"):
        swept(source, tmp_path / "compare.json")
    with pytest.raises(OutputError, match=r"there is no folder"):
        swept(source, tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["compare.json"]
    for other in ('{"kind": "survey"}', "[]", "3", "not JSON", "[" * 100_000):
        (tmp_path / "sweep.json").write_text(other)
        with pytest.raises(OutputError, match=r"holds 'compare.json', and no sweep to go on with"):
            swept(source, tmp_path)
        assert (tmp_path / "sweep.json").read_text() == other
    (tmp_path / "sweep.json").unlink()
    (tmp_path / "sweep.json").mkdir()
    with pytest.raises(OutputError, match=r"sweep.json: is a folder"):
        swept(source, tmp_path, run=Run(force=True))
    assert (tmp_path / "compare.json").read_text() == "mine"


def test_rows_that_cannot_be_compared_are_told_before_any_training(source: MemoryArray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test: has rows of 5 values, rows of 6"):
        swept(source, tmp_path / "sweep", test=MemoryArray(sparse_rows(50)[:, :5], "test"))
    with pytest.raises(InputError, match=r"too few rows to hold some out: give rows to compare on"):
        swept(MemoryArray(sparse_rows(100), "rows"), tmp_path / "sweep")
    assert not list(tmp_path.iterdir())


def test_test_rows_are_what_is_compared_on_and_a_target_out_of_reach_is_no_error(
    source: MemoryArray, done: Path, tmp_path: Path
) -> None:
    test = MemoryArray(sparse_rows(200, seed=1), "test")
    facts, _ = swept(source, copy(done, tmp_path / "sweep"), test=test, targets=[1e-6, 0.5])
    assert facts["compared_on"] == {"input": "test", "rows": 200, "held_out": False}
    assert facts["at"]["1e-06"] == {
        "mdl": None,
        "bits_per_row": None,
        "ties": [],
        "edge": None,
        "k_edge": None,
        "with_sae": [],
        "missing": NAMES,
    }
    assert facts["at"]["0.5"]["mdl"] in NAMES
    at, verdict = (facts["compare"]["at"]["0.5"], facts["at"]["0.5"])
    assert [shared["rows"] for shared in verdict["with_sae"]] == [200, 600]
    assert verdict["with_sae"][0]["mdl"] == at["mdl_with_sae"]
    (sae,) = (sae for sae in facts["compare"]["saes"] if sae["name"] == at["mdl_with_sae"])
    assert verdict["with_sae"][0]["total_bits_per_row"] == pytest.approx(sae["at"]["0.5"]["total_bits_per_row"])


def test_saes_that_cannot_be_trained_together_are_refused(source: MemoryArray, tmp_path: Path) -> None:
    def make(width: int, **others: Any) -> Settings:
        return Settings(width, **{"aim": Aim("l0", 2), "tokens": 640, "batch": 64} | others)

    for grid, message in (
        ([], "a sweep of no SAEs"),
        ([make(8), make(8)], "F8_k2: is given twice"),
        ([make(8), make(9, batch=32)], "F9_k2: .* the same batches"),
        ([make(8), make(9, seed=1)], "F9_k2: .* the same batches"),
        ([make(8, nested=(4,))], "F8_k2: a sweep trains no nested widths"),
    ):
        with pytest.raises(InputError, match=message):
            swept(source, tmp_path / "sweep", grid)


def test_a_grid_is_all_pairs_but_those_that_are_not_sparse() -> None:
    lines: list[str] = []
    aims = [Aim("l0", 4), Aim("l0", 16)]
    grid = grid_of([8, 32], aims, lambda width, aim: Settings(width, aim=aim), lines.append)
    assert list(map(name_of, grid)) == ["F8_k4", "F32_k4", "F32_k16"]
    assert lines == ["left out: k = 16 is more than half of 8 latents"]
    with pytest.raises(InputError, match="no SAE is left"):
        grid_of([2], aims, lambda width, aim: Settings(width, aim=aim))
    rates = grid_of([2], [Aim("bits", 80)], lambda width, aim: Settings(width, "jumprelu", "rate", aim))
    assert list(map(name_of, rates)) == ["F2_bits80"]
