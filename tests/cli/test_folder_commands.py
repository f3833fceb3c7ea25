"""encode-dir and decode-dir, as a person or a program runs them."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import run

from saecodec.formats.saec import open_saec

BUNDLED = Path(str(files("saecodec") / "bundled"))
SAE = BUNDLED / "minilm_l3_sae"


@pytest.fixture
def folder(tmp_path):
    """Three shards of 100 rows in acts/, and a codec for them."""
    rows = np.load(BUNDLED / "minilm_l3_rows.npy")
    (tmp_path / "acts" / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.npy", "b.npy", "deep/c.npy")):
        np.save(tmp_path / "acts" / name, rows[100 * i : 100 * (i + 1)])
    np.save(tmp_path / "train.npy", rows[300:800])
    run("fit", SAE, tmp_path / "train.npy", "-o", tmp_path / "c.saecodec")
    return tmp_path


def test_a_folder_goes_there_and_back(folder):
    pieces = ("-c", folder / "c.saecodec", "-s", SAE, "--jobs", 1)
    output = run("encode-dir", folder / "acts", folder / "coded", *pieces).output
    assert "3 shards (3 now, 0 before), 300 rows" in output
    assert "NMSE 0." in output
    assert "(0 now, 3 before)" in run("encode-dir", folder / "acts", folder / "coded", *pieces).output
    output = run("decode-dir", folder / "coded", folder / "hat", *pieces, "--to", "safetensors").output
    assert "3 shards (3 now, 0 before), 300 rows" in output
    run("verify", folder / "coded" / "deep" / "c.saec", *pieces[:4], "--against", folder / "acts" / "deep" / "c.npy")
    assert (folder / "hat" / "deep" / "c.safetensors").exists()


def test_a_shard_that_fails_is_told_and_the_status_is_1(folder):
    np.save(folder / "acts" / "a.npy", np.full((2, 384), np.nan, np.float16))
    arguments = ("encode-dir", folder / "acts", folder / "coded", "-c", folder / "c.saecodec", "-s", SAE, "--jobs", 1)
    result = run(*arguments, "--json", ok=False)
    assert result.exit_code == 1
    assert "failed: a.npy: " in result.stderr
    assert "1 of 3 shards failed" in result.stderr
    found = json.loads(result.stdout)
    assert (found["done"], found["failed"]) == (2, 1)
    assert found == json.loads((folder / "coded" / "summary.json").read_text())


def test_what_is_there_is_kept_without_force(folder):
    arguments = ("encode-dir", folder / "acts", folder / "coded", "-c", folder / "c.saecodec", "-s", SAE, "--jobs", 1)
    (folder / "coded").mkdir()
    (folder / "coded" / "b.saec").write_text("mine")
    assert "b.saec is there, and the manifest does not know it" in run(*arguments, ok=False).stderr
    assert (folder / "coded" / "b.saec").read_text() == "mine"
    run(*arguments, "--force")


def test_rows_of_damaged_shards_are_lost_and_told_and_the_status_is_3(folder):
    pieces = ("-c", folder / "c.saecodec", "-s", SAE, "--jobs", 1)
    run("encode-dir", folder / "acts", folder / "coded", *pieces, "--chunk-rows", 30)
    data = bytearray((folder / "coded" / "b.saec").read_bytes())
    with open_saec(folder / "coded" / "b.saec") as file:
        data[int(file.index.offsets[1]) + 30] ^= 1
    (folder / "coded" / "b.saec").write_bytes(data)
    arguments = ("decode-dir", folder / "coded", folder / "hat", *pieces)
    assert "failed: b.saec: " in run(*arguments, ok=False).stderr
    result = run(*arguments, "--on-error", "nan", "--force", ok=False)
    assert result.exit_code == 3
    assert "lost: b.saec: rows 30:60: chunk 1 (rows 30:60)" in result.stderr
    assert np.isnan(np.load(folder / "hat" / "b.npy")).all(axis=1).nonzero()[0].tolist() == [*range(30, 60)]
    result = run(*arguments, "--on-error", "nan", "--json", ok=False)  # done before, and lost all the same
    assert result.exit_code == 3
    (told,) = json.loads(result.stdout)["losses"]
    assert (told["source"], told["lost"][0][:2]) == ("b.saec", [30, 60])
