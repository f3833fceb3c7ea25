"""Damaged files on the command line: what is lost is listed, the rest is written, and the exit status tells."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from click import Context
from click.testing import CliRunner
from command_line import run

from saecodec.cli.app import app
from saecodec.formats.damage import ON_ERROR, Losses
from saecodec.formats.saec import open_saec

BUNDLED = Path(str(files("saecodec") / "bundled"))
SAE = str(BUNDLED / "minilm_l3_sae")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """200 rows (2, 100, 384) in chunks of 30 as a file (a.saec) and decoded (a.npy); the file with chunks 1, 2 and 5
    damaged (damaged.saec)."""
    folder = tmp_path_factory.mktemp("damage")
    np.save(folder / "x.npy", np.load(BUNDLED / "minilm_l3_rows.npy")[:200].reshape(2, 100, 384))
    run("encode", folder / "x.npy", "-s", SAE, "-o", folder / "a.saec", "--chunk-rows", "30")
    run("decode", folder / "a.saec", "-s", SAE, "-o", folder / "a.npy")
    data = bytearray((folder / "a.saec").read_bytes())
    with open_saec(folder / "a.saec") as file:
        for i in (1, 2, 5):
            data[int(file.index.offsets[i]) + 30] ^= 1
    (folder / "damaged.saec").write_bytes(data)
    return folder


def run_with_losses(*arguments):
    """As `run`, of a command that writes its output and loses rows."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 3, result.output
    return result


LOST = [[30, 90], [150, 180]]
KEPT = np.r_[0:30, 90:150, 180:200]


def test_commands_take_what_the_library_knows():
    for name in ("decode", "export", "decode-dir"):
        (option,) = [each for each in app.get_command(Context(app), name).params if each.name == "on_error"]
        assert (tuple(option.type.choices), option.default) == (ON_ERROR, Losses().on_error)


def test_nothing_is_written_unless_it_is_said_how(folder, tmp_path):
    result = run("decode", folder / "damaged.saec", "-s", SAE, "-o", tmp_path / "x.npy", ok=False)
    assert result.exit_code == 1
    assert "chunk 1 (rows 30:60), offset" in result.output
    assert "--on-error skip (or nan)" in result.output
    assert list(tmp_path.iterdir()) == []


def test_lost_rows_are_nan_or_left_out_and_listed(folder, tmp_path):
    whole = np.load(folder / "a.npy")
    arguments = ("decode", folder / "damaged.saec", "-s", SAE)
    result = run_with_losses(*arguments, "--on-error", "nan", "-o", tmp_path / "nan.npy")
    assert "float16 array of shape (2, 100, 384)" in result.stdout
    assert [line.split(": ")[2] for line in result.stderr.splitlines()] == ["rows 30:90", "rows 150:180"]
    assert "frame CHNK is corrupted (CRC-32 mismatch); and 1 more behind it" in result.stderr
    found = np.load(tmp_path / "nan.npy").reshape(200, 384)
    assert np.isnan(np.delete(found, KEPT, axis=0)).all()
    np.testing.assert_array_equal(found[KEPT], whole.reshape(200, 384)[KEPT])
    result = run_with_losses(*arguments, "--on-error", "skip", "-o", tmp_path / "skip.npy", "--json")
    told = json.loads(result.stdout)
    assert result.stderr == ""
    assert (told["shape"], told["rows"], told["lost_rows"]) == ([110, 384], 110, 90)
    assert [part[:2] for part in told["lost"]] == LOST
    np.testing.assert_array_equal(np.load(tmp_path / "skip.npy"), whole.reshape(200, 384)[KEPT])


def test_rows_that_are_not_asked_for_are_not_lost(folder, tmp_path):
    arguments = ("decode", folder / "damaged.saec", "-s", SAE, "--on-error", "skip", "--json")
    told = json.loads(run(*arguments, "--rows", "90:150", "-o", tmp_path / "a.npy").stdout)
    assert (told["shape"], told["lost"]) == ([60, 384], [])
    told = json.loads(run_with_losses(*arguments, "--rows", "40:160", "-o", tmp_path / "b.npy").stdout)
    assert [part[:2] for part in told["lost"]] == [[40, 90], [150, 160]]


def test_export_and_latents_leave_rows_out_too(folder, tmp_path):
    arguments = (folder / "damaged.saec", "-s", SAE, "--on-error")
    run_with_losses("export", *arguments, "nan", "--to", "npz", "-o", tmp_path / "x.npz")
    assert np.isnan(np.load(tmp_path / "x.npz")["x"]).sum() == 90 * 384
    told = json.loads(
        run_with_losses("decode", "--latents", *arguments, "skip", "-o", tmp_path / "z.npz", "--json").stdout
    )
    assert told["shape"] == [110, 1536]
    result = run("export", *arguments, "nan", "--to", "delphi", "-o", tmp_path / "z", ok=False)
    assert "leave lost rows out" in result.output
    assert not (tmp_path / "z").exists()


@pytest.mark.parametrize("how", [("-s", SAE), (), ("--checksums",)])
def test_verify_lists_all_damage_and_fails(folder, how):
    result = run("verify", folder / "damaged.saec", *how, ok=False)
    assert result.exit_code == 1
    assert [line.split(":")[0] for line in result.stdout.splitlines()[:3]] == ["rows 30", "rows 60", "rows 150"]
    assert "--on-error nan" in result.stdout
    assert "3 of 7 chunks, 90 of 200 rows lost" in result.stderr
    told = json.loads(run("verify", folder / "damaged.saec", *how, "--json", ok=False).stdout)
    assert (told["ok"], told["lost_rows"], [part[:2] for part in told["lost"]]) == (False, 90, LOST)
    assert [part[:3] for part in told["damaged_chunks"]] == [[1, 30, 60], [2, 60, 90], [5, 150, 180]]
    assert told["elsewhere"] == []


def test_verify_of_a_file_that_cannot_be_opened_says_so_as_json(folder, tmp_path):
    (tmp_path / "torn.saec").write_bytes((folder / "a.saec").read_bytes()[:-3])
    told = json.loads(run("verify", tmp_path / "torn.saec", "--json", ok=False).stdout)
    assert told["ok"] is False
    assert "saecodec recover" in told["error"]
    assert "saecodec recover" in run("verify", tmp_path / "torn.saec", ok=False).output
