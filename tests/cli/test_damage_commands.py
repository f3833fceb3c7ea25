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
from saecodec.codec import Codec
from saecodec.formats.create import create
from saecodec.formats.damage import ON_ERROR, Losses
from saecodec.formats.saec import open_saec
from saecodec.frames import frame
from saecodec.limits import limited

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
    break_chunks(folder / "a.saec", folder / "damaged.saec")
    return folder


def break_chunks(path, damaged):
    """Write a file with damage in chunks 1, 2 and 5."""
    data = bytearray(path.read_bytes())
    with open_saec(path) as file:
        for i in (1, 2, 5):
            data[int(file.index.offsets[i]) + 30] ^= 1
    damaged.write_bytes(data)


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


def test_verify_tells_as_json_whatever_keeps_the_file_from_being_opened(folder, tmp_path):
    told = json.loads(run("verify", tmp_path / "missing.saec", "--json", ok=False).stdout)
    assert (told["ok"], "cannot be opened" in told["error"]) == (False, True)
    with limited(width=8):
        told = json.loads(run("verify", folder / "a.saec", "--json", ok=False).stdout)
    assert (told["ok"], "SAECODEC_LIMITS=width" in told["error"]) == (False, True)


@pytest.mark.parametrize("name", ["a.saec", "damaged.saec"])
def test_a_frame_that_must_be_understood_is_listed_as_such(folder, tmp_path, name):
    data, stray = (folder / name).read_bytes(), frame("ZOTE", b"")
    index = int.from_bytes(data[-8:], "little")
    path = tmp_path / name
    path.write_bytes(data[:index] + stray + data[index:-28] + frame("TAIL", (index + len(stray)).to_bytes(8, "little")))
    result = run("verify", path, "--checksums", ok=False)
    assert "frame 'ZOTE' is needed to read it" in result.stdout
    assert "costs the certainty" in result.stdout
    assert ("is not whole to this version" if name == "a.saec" else "is damaged") in result.stderr
    told = json.loads(run("verify", path, "--checksums", "--json", ok=False).stdout)
    assert (told["ok"], len(told["damaged_chunks"])) == (False, 0 if name == "a.saec" else 3)
    assert [part[3] for part in told["elsewhere"]] == ["the certainty that rows are those that were encoded"]


def test_names_of_damaged_files_do_nothing_to_a_terminal(folder, tmp_path):
    path = tmp_path / "a\x1b[31mX.saec"
    path.write_bytes((folder / "damaged.saec").read_bytes())
    for command in (
        ("verify", path, "--checksums"),
        ("decode", path, "-s", SAE, "--on-error", "nan", "-o", tmp_path / "x.npy"),
    ):
        result = CliRunner().invoke(app, list(map(str, command)), color=True)  # as on a terminal
        assert "\\x1b[31mX.saec" in result.output
        assert "\x1b[31m" not in result.output


@pytest.mark.parametrize("on_error, kept", [("nan", 200), ("skip", 110)])
def test_the_rows_that_are_told_are_those_of_the_output_however_many_heads_they_have(tmp_path, sae, on_error, kept):
    (tmp_path / "coded").mkdir()
    path = tmp_path / "coded" / "heads.saec"
    x = np.random.default_rng(0).normal(size=(200, sae.width)).astype(np.float32)
    row_shape = (2, sae.width // 2)
    with create(path, Codec.fit(sae, x), chunk_rows=30, embed="decoder", row_shape=row_shape) as store:
        store.append(x.reshape(200, *row_shape))
    break_chunks(path, path)
    arguments = ("--on-error", on_error, "--json")
    told = json.loads(run_with_losses("decode", path, "-o", tmp_path / "x_hat.npy", *arguments).stdout)
    assert (told["rows"], told["shape"]) == (kept, [kept, *row_shape])
    told = json.loads(
        run_with_losses("decode-dir", tmp_path / "coded", tmp_path / "out", "--jobs", 1, *arguments).stdout
    )
    line = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert (told["rows"], line["rows"], line["width"]) == (kept, kept, sae.width)


def test_what_is_advised_is_possible(folder, tmp_path):
    result = run("decode", "--latents", folder / "damaged.saec", "-s", SAE, "-o", tmp_path / "cache", ok=False)
    assert "--on-error skip writes the other rows, as an .npz or .pt" in result.output
    assert "nan" not in result.output


def test_what_is_whole_is_not_decoded_again_for_what_is_damaged(folder, tmp_path):
    """A folder with one bad file is decoded up to that; asked again what to do about it, decode-dir does that alone."""
    (tmp_path / "coded").mkdir()
    for name in ("a.saec", "damaged.saec"):
        (tmp_path / "coded" / name).write_bytes((folder / name).read_bytes())
    command = ("decode-dir", tmp_path / "coded", tmp_path / "out", "-s", SAE, "--jobs", 1, "--json")
    first = run(*command, ok=False)
    assert (first.exit_code, json.loads(first.stdout)["done"], json.loads(first.stdout)["failed"]) == (1, 1, 1)
    again = json.loads(run_with_losses(*command, "--on-error", "nan").stdout)
    assert (again["done"], again["skipped"], again["failed"]) == (1, 1, 0)
    assert json.loads(run_with_losses(*command, "--on-error", "nan").stdout)["skipped"] == 2
    refused = run(*command, "--on-error", "skip", ok=False)
    assert "damaged.npy was made with another codec, SAE or settings" in refused.output


def test_damaged_tables_cost_every_row_unless_the_codec_is_given(folder, tmp_path):
    path = tmp_path / "tables.saec"
    with open_saec(folder / "a.saec") as file:
        at = file.embedded_at["TABL"] + 60
    data = bytearray((folder / "a.saec").read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    told = run("verify", path, "-s", SAE, ok=False)
    assert "200 of 200 rows lost; unless the codec is given (-c CODEC)" in told.output
    for more in (("-s", SAE), ("--checksums",)):
        report = json.loads(run("verify", path, *more, "--json", ok=False).stdout)
        assert (report["ok"], report["lost_rows"], report["damaged_chunks"]) == (False, 200, [])
        assert report["lost"][0][:2] == [0, 200]
    report = json.loads(run("verify", path, "-s", SAE, "-c", folder / "a.saec", "--json", ok=False).stdout)
    assert (report["lost_rows"], report["lost"], len(report["elsewhere"])) == (0, [], 1)
    run("decode", path, "-s", SAE, "-c", folder / "a.saec", "-o", tmp_path / "x.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.load(folder / "a.npy"))
