"""Files that grow, are torn, and are put together, on the command line."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import run

from saecodec.formats.saec import open_saec

BUNDLED = Path(str(files("saecodec") / "bundled"))
SAE = str(BUNDLED / "minilm_l3_sae")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """200 rows (a.npy) and 100 more (b.npy), a codec (c.saecodec), and their files under it (a.saec, b.saec)."""
    folder = tmp_path_factory.mktemp("store")
    rows = np.load(BUNDLED / "minilm_l3_rows.npy")
    np.save(folder / "a.npy", rows[:200].reshape(2, 100, 384))
    np.save(folder / "b.npy", rows[200:300].reshape(1, 100, 384))
    run("fit", SAE, BUNDLED / "minilm_l3_rows.npy", "-o", folder / "c.saecodec")
    for name in "ab":
        encode(folder, name, folder / f"{name}.saec", "--chunk-rows", 100)
    return folder


def encode(folder, name, out, *options):
    return run("encode", folder / f"{name}.npy", "-s", SAE, "-c", folder / "c.saecodec", "-o", out, *options)


def test_rows_are_appended_under_the_files_own_header(folder, tmp_path):
    out = tmp_path / "out.saec"
    out.write_bytes((folder / "a.saec").read_bytes())
    told = json.loads(encode(folder, "b", out, "--append", "--json").output)
    assert (told["appended"], told["rows"], told["file_bytes"]) == (100, 300, out.stat().st_size)
    run("verify", out, "-s", SAE, "-c", folder / "c.saecodec")
    run("cat", out, "-o", tmp_path / "one.saec")
    run("cat", folder / "a.saec", folder / "b.saec", "-o", tmp_path / "two.saec")
    assert (tmp_path / "one.saec").read_bytes() == (tmp_path / "two.saec").read_bytes()
    with open_saec(tmp_path / "two.saec") as file:
        assert file.shape == (3, 100, 384)
    assert "100 rows appended" in encode(folder, "b", out, "--append").output


def test_an_append_that_fails_leaves_the_file_as_it_was(folder, tmp_path):
    out, rows = tmp_path / "out.saec", np.load(folder / "a.npy")
    before = (folder / "a.saec").read_bytes()
    out.write_bytes(before)
    rows[1, 50, 3] = np.nan
    np.save(tmp_path / "bad.npy", rows)
    arguments = ("encode", tmp_path / "bad.npy", "-s", SAE, "-c", folder / "c.saecodec", "-o", out, "--append")
    assert "row 150 holds NaN" in run(*arguments, ok=False).output
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ("--step", "1"),
        ("--embed", "tables"),
        ("--chunk-rows", "4096"),
        ("--note", "a=b"),
        ("--jobs", "2"),
        ("--force",),
    ],
)
def test_what_the_file_decides_cannot_be_asked_for(folder, options):
    arguments = ("encode", folder / "b.npy", "-s", SAE, "-o", folder / "a.saec", "--append", *options)
    assert f"{options[0]}: rows are appended as the file says" in run(*arguments, ok=False).output


def test_a_torn_file_is_recovered_and_told_about(folder, tmp_path):
    data = (folder / "a.saec").read_bytes()
    (tmp_path / "acts.saec.partial").write_bytes(data[:-500])
    assert f"recover {tmp_path}/acts.saec.partial -o" in run("info", tmp_path / "acts.saec.partial", ok=False).output
    output = run("recover", tmp_path / "acts.saec.partial", "-o", tmp_path / "acts.saec").output
    assert "100 rows in 1 chunk of" in output
    assert "skipped bytes" in output
    told = json.loads(run("recover", folder / "a.saec", "-o", tmp_path / "whole.saec", "--json").output)
    assert told["complete"] is True
    assert (told["chunks"], told["rows"], told["shape"], told["skipped"]) == (2, 200, [2, 100, 384], [])
    assert (tmp_path / "whole.saec").read_bytes() == data
    run("verify", tmp_path / "acts.saec", "--checksums")
    assert (told["lost"], told["lost_known"]) == ([], True)
    assert "which rows the skipped bytes held is not known" in output


def test_recover_tells_the_rows_that_are_lost(folder, tmp_path):
    data = bytearray((folder / "a.saec").read_bytes())
    with open_saec(folder / "a.saec") as file:
        data[int(file.index.offsets[1]) + 40] ^= 1
    (tmp_path / "damaged.saec").write_bytes(data)
    assert "rows 100:200 of" in run("recover", tmp_path / "damaged.saec", "-o", tmp_path / "rest.saec").output
    told = json.loads(run("recover", tmp_path / "damaged.saec", "-o", tmp_path / "b.saec", "--json").output)
    assert (told["rows"], told["lost"], told["lost_known"]) == (100, [[100, 200]], True)


def test_files_that_differ_are_told_apart_and_metadata_that_is_lost_is_told(folder, tmp_path):
    for day in "12":
        encode(folder, "b", tmp_path / f"{day}.saec", "--note", f"day={day}")
    result = run("cat", tmp_path / "1.saec", tmp_path / "2.saec", "-o", tmp_path / "out.saec")
    assert "its 'day' '2' is left out" in result.stderr
    run("encode", folder / "a.npy", "-s", SAE, "-o", tmp_path / "other.saec")
    output = run("cat", folder / "a.saec", tmp_path / "other.saec", "-o", tmp_path / "no.saec", ok=False).output
    assert "codec_id is" in output
    assert not (tmp_path / "no.saec").exists()


def test_a_stale_partial_file_is_in_the_way_until_it_is_recovered_or_discarded(folder, tmp_path):
    (tmp_path / "out.saec.partial").write_bytes((folder / "a.saec").read_bytes()[:-10])
    arguments = ("encode", folder / "b.npy", "-s", SAE, "-c", folder / "c.saecodec", "-o", tmp_path / "out.saec")
    assert "is left of a run that was killed" in run(*arguments, ok=False).output
    run(*arguments, "--force")
    assert [path.name for path in tmp_path.iterdir()] == ["out.saec"]


def test_neither_command_loads_torch_to_say_what_it_does():
    code = "import sys; from saecodec.cli.app import app; app(['{}', '--help'], standalone_mode=False); "
    for name in ("cat", "recover", "encode"):
        program = code.format(name) + "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
