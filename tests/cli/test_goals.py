"""Targets, searches and residual layers from the command line."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import run

BUNDLED = Path(str(files("saecodec") / "bundled"))
SAE = str(BUNDLED / "minilm_l3_sae")
FINE = ["--step", "0.15rms", "--residual"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 rows (a.npy), all rows (b.npy), their file with a residual layer (r.saec), a codec with one (r.saecodec)."""
    folder = tmp_path_factory.mktemp("cli")
    rows = np.load(BUNDLED / "minilm_l3_rows.npy")
    np.save(folder / "a.npy", rows[:300])
    np.save(folder / "b.npy", rows)
    np.save(folder / "train.npy", rows[300:])
    run("encode", folder / "b.npy", "-s", SAE, *FINE, "-o", folder / "r.saec", "--chunk-rows", 500)
    run(
        "fit",
        SAE,
        folder / "train.npy",
        "--step",
        "0.8rms",
        "--search",
        "refit",
        "--residual",
        "-o",
        folder / "r.saecodec",
    )
    return folder


def command(name: str, folder: Path, *options: object) -> list[object]:
    out = folder / "out" / "x"
    out.parent.mkdir(exist_ok=True)
    return {
        "measure": ["measure", folder / "a.npy", "-s", SAE],
        "encode": ["encode", folder / "a.npy", "-s", SAE, "-o", f"{out}.saec", "--force"],
        "fit": ["fit", SAE, folder / "a.npy", "-o", f"{out}.saecodec", "--force"],
    }[name] + list(options)


COMMANDS = pytest.mark.parametrize("name", ["measure", "encode", "fit"])


# -- what is reached ---------------------------------------------------------------------------------------------------


@COMMANDS
def test_a_target_and_what_was_reached_are_in_the_json(folder, name):
    report = json.loads(run(*command(name, folder, "--nmse", 0.2, "--search", "none", "--json")).output)
    assert report["target"] == {"nmse": 0.2, "reached": pytest.approx(0.2, rel=0.01)}


@COMMANDS
def test_without_a_target_the_json_says_null(folder, name):
    assert json.loads(run(*command(name, folder, "--json")).output)["target"] is None


@COMMANDS
def test_people_read_what_was_reached(folder, name):
    output = run(*command(name, folder, "--bits", 130, "--search", "none")).output
    assert name == "measure" or "130 bits per row asked for" in output
    if name == "measure":
        assert "bits per row" in output


def test_a_search_without_a_target_keeps_the_step(folder):
    none, refit, pursuit = (
        json.loads(run(*command("measure", folder, "--step", "0.8rms", "--search", search, "--json")).output)
        for search in ("none", "refit", "pursuit")
    )
    assert none["step"] == pytest.approx(refit["step"]) == pytest.approx(pursuit["step"])
    assert (none["search"], refit["search"], pursuit["search"]) == ("none", "refit", "pursuit")
    assert refit["bits_per_row"] < none["bits_per_row"]


def test_with_a_codec_a_target_leaves_the_codec_as_it_is(folder):
    report = json.loads(run(*command("measure", folder, "-c", folder / "r.saecodec", "--nmse", 0.11, "--json")).output)
    fitted = json.loads(run("info", folder / "r.saecodec", "--json").output)
    assert report["codec_id"] == fitted["codec_id"]
    assert report["step"] == fitted["step"]
    assert report["nmse"] == pytest.approx(0.11, rel=0.01)


# -- the residual layer ------------------------------------------------------------------------------------------------


def test_measure_tells_both_layers_apart(folder):
    report = json.loads(run("measure", folder / "b.npy", "-s", SAE, *FINE, "--json").output)
    assert report["nmse"] < 0.5 * report["base_nmse"]
    assert report["residual_step"] == pytest.approx(report["step"] / 2)
    assert report["bits"]["residual"] > 0
    text = run("measure", folder / "b.npy", "-s", SAE, *FINE).output
    assert "NMSE of the base layer alone" in text
    assert "residual: what the SAE leaves" in text


def test_decode_can_leave_the_residual_layer_out(folder):
    x, errors = np.load(folder / "b.npy").astype(np.float64), []
    for option in ([], ["--base-only"]):
        run("decode", folder / "r.saec", "-s", SAE, *option, "--force", "-o", folder / "x.npy")
        errors.append(np.square(x - np.load(folder / "x.npy")).sum())
    assert errors[0] < 0.5 * errors[1]


def test_base_only_changes_nothing_without_a_residual_layer(folder):
    run("encode", folder / "a.npy", "-s", SAE, "-o", folder / "plain.saec")
    for option, name in (([], "p.npy"), (["--base-only"], "q.npy")):
        run("decode", folder / "plain.saec", "-s", SAE, *option, "-o", folder / name)
    np.testing.assert_array_equal(np.load(folder / "p.npy"), np.load(folder / "q.npy"))


def test_info_and_verify_know_the_residual_layer(folder):
    found = json.loads(run("info", folder / "r.saec", "--json").output)
    assert found["residual"]["residual_bits_per_row"] > 0
    assert "residual" in run("info", folder / "r.saec").output
    assert json.loads(run("info", folder / "r.saecodec", "--json").output)["residual_bytes"] > 0
    assert json.loads(run("verify", folder / "r.saec", "-s", SAE, "--json").output)["ok"]


# -- what is refused ---------------------------------------------------------------------------------------------------


@COMMANDS
@pytest.mark.parametrize(
    "options, named",
    [
        (["--nmse", 0.2, "--bits", 100], "nmse and bits"),
        (["--nmse", 0.2, "--step", "0.4rms"], "step and nmse"),
        (["--bits", 100, "--step", 1], "step and bits"),
    ],
)
def test_step_nmse_and_bits_exclude_each_other(folder, name, options, named):
    result = run(*command(name, folder, *options), ok=False)
    assert result.output == f"Error: {named} exclude each other: give one of step, nmse, bits\n"


@COMMANDS
@pytest.mark.parametrize("option", ["--nmse", "--bits"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_target_is_a_positive_number(folder, name, option, value):
    output = run(*command(name, folder, option, value), ok=False).output
    assert output.startswith("Error: a target is a positive number")


@COMMANDS
def test_a_value_that_is_no_number_and_a_search_that_is_none_are_wrong_usage(folder, name):
    assert run(*command(name, folder, "--nmse", "little"), ok=False).exit_code == 2
    result = run(*command(name, folder, "--search", "best"), ok=False)
    assert result.exit_code == 2
    assert "pursuit" in result.output


@COMMANDS
def test_what_is_out_of_reach_is_one_line_that_says_what_is_possible(folder, name):
    result = run(*command(name, folder, "--nmse", "0.01", "--search", "none"), ok=False)
    assert result.exit_code == 1
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert "a.npy: NMSE 0.01 is out of reach: the finest step tried gives" in line
    assert not list((folder / "out").glob(".saecodec-*"))


def test_a_codec_decides_step_and_layers(folder):
    run("fit", SAE, folder / "train.npy", "-o", folder / "plain.saecodec", "--force")
    for options, message in (
        (["--residual"], "no residual layer"),
        (["--step", "1"], "the step comes from the codec"),
        (["--nmse", "0.2", "--search", "none"], "a target is met by searching codes"),
    ):
        output = run(*command("encode", folder, "-c", folder / "plain.saecodec", *options), ok=False).output
        assert message in output


@COMMANDS
def test_help_shows_examples_of_targets(name):
    output = run(name, "--help").output
    examples = output[output.index("Examples:") :]
    assert "--nmse" in examples
    assert "--residual" in examples
    for option in ("--nmse", "--bits", "--step", "--search", "--residual"):
        assert f"  {option}" in output
