"""`train`, of one SAE and of a sweep, as in a shell."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from command_line import run

from saecodec.cli.train import train
from saecodec.formats.arrays import open_array
from saecodec.formats.checkpoints import load_sae
from saecodec.formats.training import Run, train_array
from saecodec.training import Aim, Settings
from saecodec.training import settings as known

SMALL = ("--tokens", 640, "--batch", 64)
WEIGHTS = "sae_weights.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """600 rows (a.npy) and 200 more (test.npy) of few of 10 directions, and an SAE of them (sae)."""
    folder, rng = tmp_path_factory.mktemp("train"), np.random.default_rng(0)
    directions = rng.standard_normal((10, 6))
    rows = ((rng.random((800, 10)) < 0.15) * rng.exponential(1, (800, 10))) @ directions
    np.save(folder / "a.npy", rows[:600].astype(np.float32))
    np.save(folder / "test.npy", rows[600:].astype(np.float32))
    run("train", folder / "a.npy", "-o", folder / "sae", "--width", 12, "--k", 2, *SMALL)
    return folder


def test_an_sae_is_trained_and_what_is_told_of_it_is_in_its_folder(folder, tmp_path):
    result = run("train", folder / "a.npy", "-o", tmp_path / "sae", "--width", 12, "--k", 2, *SMALL, "--json")
    told = json.loads(result.stdout)
    assert told.pop("output") == str(tmp_path / "sae")
    assert told == json.loads((tmp_path / "sae" / "training.json").read_bytes())
    assert (told["steps"], told["n_latents"], told["rows"]) == (10, 12, 600 - told["held_out"]["rows"])
    assert told["settings"]["aim"] == {"kind": "l0", "value": 2}
    assert sorted(path.name for path in (tmp_path / "sae").iterdir()) == ["cfg.json", WEIGHTS, "training.json"]
    assert (tmp_path / "sae" / WEIGHTS).read_bytes() == (folder / "sae" / WEIGHTS).read_bytes()
    sae = load_sae(tmp_path / "sae", "cpu")
    assert (sae.n_latents, sae.width) == (12, 6)


def test_what_is_told_for_people(folder, tmp_path):
    options = ("--objective", "rate", "--nmse", 0.3, *SMALL)
    output = run("train", folder / "a.npy", "-o", tmp_path / "sae", "--width", 8, *options).stdout
    assert output.startswith(f"{tmp_path}/sae: 8 latents, jumprelu\n")
    assert "640 tokens" in output
    assert "on 32 held-out rows   NMSE" in output
    assert "bits/row at NMSE" in output


def test_nested_widths_have_folders_beside_it(folder, tmp_path):
    run("train", folder / "a.npy", "-o", tmp_path / "sae", "--width", 12, "--k", 2, "--nested", "4,8", *SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sae", "sae-4", "sae-8"]
    whole = load_sae(tmp_path / "sae", "cpu").w_dec
    assert load_sae(tmp_path / "sae-4", "cpu").w_dec.equal(whole[:4])


def test_a_training_that_is_stopped_goes_on_to_the_same_sae(folder, tmp_path):
    def stop(stage, done, total, note="", /):
        if stage == "train" and done == 320:
            raise KeyboardInterrupt

    settings = Settings(12, aim=Aim("l0", 2), tokens=640, batch=64)
    with pytest.raises(KeyboardInterrupt):
        train_array(open_array(str(folder / "a.npy")), tmp_path / "sae", settings, Run(), progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["sae.checkpoint"]
    arguments = ("train", folder / "a.npy", "-o", tmp_path / "sae", "--width", 12, *SMALL)
    assert "go on (--resume), or begin anew (--force)" in run(*arguments, "--k", 2, ok=False).stderr
    other = run(*arguments, "--k", 3, "--resume", ok=False).stderr
    assert "is of another training: its settings" in other
    run(*arguments, "--k", 2, "--resume")
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]
    assert (tmp_path / "sae" / WEIGHTS).read_bytes() == (folder / "sae" / WEIGHTS).read_bytes()
    assert "there is no checkpoint to resume from" in run(*arguments, "--k", 2, "--resume", "--force", ok=False).stderr


def test_what_is_there_is_replaced_only_when_that_is_asked_for(folder, tmp_path):
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "cfg.json").write_text("old")
    (tmp_path / "sae" / WEIGHTS).write_text("old")
    arguments = ("train", folder / "a.npy", "-o", tmp_path / "sae", "--width", 12, "--k", 2, *SMALL)
    assert "already exists; pass --force" in run(*arguments, ok=False).stderr
    assert (tmp_path / "sae" / "cfg.json").read_text() == "old"
    run(*arguments, "--force")
    assert (tmp_path / "sae" / WEIGHTS).read_bytes() == (folder / "sae" / WEIGHTS).read_bytes()
    (tmp_path / "sae" / "notes.txt").write_text("mine")
    assert "is not replaced, because it holds 'notes.txt'" in run(*arguments, "--force", ok=False).stderr


def test_rows_of_a_saec_file_are_trained_on(folder, tmp_path):
    encode = ("encode", folder / "a.npy", "-s", folder / "sae", "--step", "0.1rms", "-o")
    run(*encode, tmp_path / "whole.saec", "--embed", "decoder")
    run(*encode, tmp_path / "bare.saec")
    run("decode", tmp_path / "whole.saec", "-o", tmp_path / "decoded.npy")

    days = tmp_path / "days"
    days.mkdir()
    (days / "bare.saec").write_bytes((tmp_path / "bare.saec").read_bytes())
    with_sae = ("-s", folder / "sae")
    inputs = {"whole.saec": (), "bare.saec": with_sae, "decoded.npy": (), "days": with_sae, "day?/*.saec": with_sae}
    weights = set()
    for name, options in inputs.items():
        output = tmp_path / "of it"
        run("train", tmp_path / name, "-o", output, "--width", 8, *SMALL, "--k", 2, *options, "--force")
        weights.add((output / WEIGHTS).read_bytes())
    assert len(weights) == 1
    refused = ("-o", tmp_path / "out", "--width", 8, "--k", 2, *SMALL)
    assert "needs" in run("train", tmp_path / "bare.saec", *refused, ok=False).stderr
    told = run("train", tmp_path / "decoded.npy", *refused, *with_sae, ok=False).stderr
    assert "-s and -c tell how a .saec file is decoded" in told


def test_the_sae_that_decodes_the_input_is_not_replaced(folder, tmp_path):
    sae = tmp_path / "sae-4"
    sae.mkdir()
    for path in (folder / "sae").iterdir():
        (sae / path.name).write_bytes(path.read_bytes())
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "F8_k2").symlink_to(sae)
    run("encode", folder / "a.npy", "-s", sae, "--step", "0.1rms", "-o", tmp_path / "a.saec")
    arguments = ("train", tmp_path / "a.saec", "--width", 8, "--k", 2, *SMALL, "--force")
    for decoder, output, options in (
        (sae, "sae-4", ()),
        (sae / WEIGHTS, "sae-4", ()),
        (sae, "sae", ("--nested", "4")),
        (sae, "sweep", ("--sweep",)),
    ):
        result = run(*arguments, "-s", decoder, "-o", tmp_path / output, *options, ok=False)
        assert "is the SAE that decodes the input (-s); choose another output" in result.stderr
    assert (sae / WEIGHTS).read_bytes() == (folder / "sae" / WEIGHTS).read_bytes()


def test_an_aim_that_is_missed_is_told_on_stderr(folder, tmp_path):
    arguments = ("train", folder / "a.npy", "-o", tmp_path / "sae", "--width", 8, *SMALL, "--json")
    result = run(*arguments, "--nmse", 1e-5)
    assert json.loads(result.stdout)["steps"] == 10
    assert "Warning: held-out rows have NMSE " in result.stderr
    assert "Warning" not in run(*arguments, "--k", 2, "--force").stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (("--width", "8,12"), "--width: one SAE has one of them; to train an SAE for each, add --sweep"),
        (("--width", "8", "--k", "2,3"), "--k: one SAE has one of them"),
        (("--width", "8", "--nmse", "0.2,0.3"), "--nmse: one SAE has one of them"),
        (("--width", "8", "--bits", "20,30"), "--bits: one SAE has one of them"),
        (("--width", "8", "--test", "a.npy"), "--test, --at and --search say how a sweep compares"),
        (("--width", "8", "--at", "0.2"), "--test, --at and --search say how a sweep compares"),
        (("--width", "8", "--search", "none"), "--test, --at and --search say how a sweep compares"),
        (("--width", "0"), "'0' is not a whole number above 0"),
        (("--width", "8.5"), "'8.5' is not a whole number above 0"),
        (("--width", "8", "--k", "two"), "'two' is not a number above 0"),
        (("--width", "8", "--k", "nan"), "'nan' is not a number above 0"),
        (("--width", "8,8", "--sweep"), "'8,8' has a number twice"),
        (("--width", "8", "--k", "2", "--nmse", "0.2"), "exclude each other"),
        (("--width", "8", "--objective", "rate", "--sweep"), "needs something to aim at"),
        (("--width", "8", "--nested", "4;6"), "is not a list of widths"),
    ],
)
def test_options_that_make_no_training_are_told_before_any_work(options, message, folder, tmp_path):
    result = run("train", folder / "a.npy", "-o", tmp_path / "out", *options, ok=False)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_a_sweep_names_the_mdl_sae_and_run_again_it_trains_nothing(folder, tmp_path):
    arguments = ("train", folder / "a.npy", "-o", tmp_path / "out", "--sweep", "--width", "4,12", *SMALL)
    options = ("--test", folder / "test.npy", "--at", "0.01,0.75")
    result = run(*arguments, "--k", "2,4", *options)
    assert "left out: k = 4 is more than half of 4 latents" in result.stderr
    assert "F4_k2 (1 of 3): trained" in result.stderr
    assert "at NMSE 0.75\n" in result.stdout  # what compare tells
    assert "the MDL-SAE among 3, on 200 rows of" in result.stdout
    assert "decoder shared by 200 rows  bits/row  decoder shared by 600 rows  bits/row\n" in result.stdout
    assert "no SAE reaches NMSE 0.01: " in result.stdout
    assert " *" in result.stdout.partition("the MDL-SAE among 3")[2]
    assert "* at an end of the grid, by its width or its k: " in result.stdout
    assert "with saecodec compare --residual, a layer codes" in result.stdout  # train has no such option
    names = ["F12_k2", "F12_k4", "F4_k2", "compare.html", "compare.json", "sweep.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    again = run(*arguments, "--k", "2,4", *options, "--json")
    assert "F12_k4 (3 of 3): is there already" in again.stderr
    told = json.loads(again.stdout)
    assert told.pop("output") == str(tmp_path / "out")
    assert told == json.loads((tmp_path / "out" / "sweep.json").read_bytes())
    verdict = told["at"]["0.75"]
    assert verdict["edge"] or verdict["k_edge"], "both have two values"
    assert f" {verdict['mdl']} * " in result.stdout.partition("the MDL-SAE among 3")[2]
    for more, message in (
        (("--seed", "1"), "F4_k2: was trained with seed 0, now it is 1; choose another folder for this sweep"),
        (("--arch", "topk"), "F4_k2: was trained with architecture 'batchtopk', now it is 'topk'"),
    ):
        assert message in run(*arguments, "--k", "2", *more, ok=False).stderr


def test_a_sweep_for_rate_is_compared_where_it_aims_on_rows_that_are_held_out(folder, tmp_path):
    arguments = ("train", folder / "a.npy", "-o", tmp_path / "out", "--sweep", "--objective", "rate", "--width", "12")
    result = run(*arguments, "--nmse", "0.3,0.4", *SMALL, "--json")
    told = json.loads(result.stdout)
    assert told["grid"] == ["F12_nmse0.3", "F12_nmse0.4"]
    assert told["targets"] == [0.3, 0.4]
    assert told["compared_on"]["held_out"]


def test_the_command_line_has_the_values_of_the_settings():
    """It repeats them, because the settings come with torch, which --help does without."""
    options = {option.name: option for option in train.params}
    fields = {field.name: field.default for field in dataclasses.fields(Settings)}
    assert tuple(options["arch"].type.choices) == known.ARCHITECTURES
    assert tuple(options["objective"].type.choices) == known.OBJECTIVES
    same = ("objective", "tokens", "batch", "seed")
    assert [options[name].default for name in same] == [fields[name] for name in same]
    assert f"Default: {known.DEFAULT_K}." in options["k"].help
    assert f"Default: {fields['architecture']}," in options["arch"].help
    assert f"Default: {Settings(4096).peak_rate}, less above 4096" in options["lr"].help
    assert Settings(4096).peak_rate > Settings(4097).peak_rate


def test_every_option_of_a_sweep_is_told_in_the_help():
    text = run("train", "--help").stdout
    assert all(option in text for option in ("--sweep", "--test", "--at", "--search"))
    assert "--sweep --width 64,128,256 --k 4,8,16" in text
