"""--deterministic: the bytes of a file, whatever the threads, the processes and the blocks that its rows come in."""

import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import run

BUNDLED = Path(str(files("saecodec") / "bundled"))
SAE = BUNDLED / "minilm_l3_sae"


@pytest.fixture
def folder(tmp_path):
    """acts/a.npy and acts/b.npy, 150 rows each, both.npy, and a codec for them that has a residual layer."""
    rows = np.load(BUNDLED / "minilm_l3_rows.npy")[:300]
    (tmp_path / "acts").mkdir()
    np.save(tmp_path / "acts" / "a.npy", rows[:150])
    np.save(tmp_path / "acts" / "b.npy", rows[150:])
    np.save(tmp_path / "both.npy", rows)
    run("fit", SAE, tmp_path / "both.npy", "--residual", "-o", tmp_path / "c.saecodec")
    return tmp_path


def test_bytes_do_not_depend_on_threads_processes_or_blocks(folder, torch_threads):
    pieces = ("-s", SAE, "-c", folder / "c.saecodec", "--deterministic")
    written = []
    for threads, jobs in ((1, 1), (2, 2)):
        torch_threads(threads)
        out = folder / f"{threads}.saec"
        run("encode", folder / "both.npy", *pieces, "--chunk-rows", 100, "--jobs", jobs, "-o", out)
        written.append(out.read_bytes())
        run("encode-dir", folder / "acts", folder / f"coded{jobs}", *pieces, "--jobs", jobs)
        written.append((folder / f"coded{jobs}" / "a.saec").read_bytes())
    assert written[:2] == written[2:]
    grown = folder / "grown.saec"
    run("encode", folder / "acts" / "a.npy", *pieces, "--chunk-rows", 100, "-o", grown)
    run("encode", folder / "acts" / "b.npy", *pieces, "--append", "-o", grown)
    for path in (grown, folder / "1.saec"):
        run("decode", path, *pieces[:4], "-o", path.with_suffix(".npy"))
    np.testing.assert_array_equal(np.load(folder / "grown.npy"), np.load(folder / "1.npy"))


def test_an_sae_inside_a_codec_file_is_deterministic_too(folder):
    run("fit", SAE, folder / "both.npy", "--embed-sae", "--deterministic", "-o", folder / "whole.saecodec")
    run("encode", folder / "both.npy", "-c", folder / "whole.saecodec", "--deterministic", "-o", folder / "a.saec")
    run(
        *("encode", folder / "both.npy", "-c", folder / "whole.saecodec", "-s", SAE, "--deterministic"),
        *("-o", folder / "b.saec"),
    )
    run("encode", folder / "both.npy", "-s", SAE, "--deterministic", "-o", folder / "alone.saec")
    assert (folder / "a.saec").read_bytes() == (folder / "b.saec").read_bytes()
    found = [json.loads(run("info", folder / f"{name}.saec", "--json").output)["codec_id"] for name in ("a", "alone")]
    assert found[0] == found[1]


def test_a_measure_is_of_the_file_that_encode_writes(folder):
    pieces = (folder / "both.npy", "-s", SAE, "--deterministic")
    run("encode", *pieces, "-o", folder / "a.saec")
    assert json.loads(run("measure", *pieces, "--json").output)["file_bytes"] == (folder / "a.saec").stat().st_size


def test_a_folder_is_coded_anew_when_it_is_to_be_deterministic(folder):
    pieces = ("encode-dir", folder / "acts", folder / "coded", "-s", SAE, "-c", folder / "c.saecodec", "--jobs", 1)
    run(*pieces)
    run(*pieces, "--deterministic", ok=False)  # made with other settings
    assert "2 now" in run(*pieces, "--deterministic", "--force").output
    assert "0 now" in run(*pieces, "--deterministic").output


def test_what_cannot_be_deterministic_is_refused_before_anything_is_written(folder):
    both, out = folder / "both.npy", folder / "out"
    for command, text in (
        (("encode", both, "-s", SAE, "-o", out, "--nmse", 0.3), "NMSE 0.3 .*fit a codec without --deterministic"),
        (("encode", both, "-s", SAE, "-c", folder / "c.saecodec", "-o", out, "--nmse", 0.3), "leave --nmse out"),
        (("measure", both, "-s", SAE, "-c", folder / "c.saecodec", "--bits", 300), "leave --bits out"),
        (("encode", both, "-s", SAE, "-c", folder / "c.saecodec", "-o", out, "--search", "refit"), "--search none"),
        (("encode", both, "-s", SAE, "-o", out, "--latents"), "--deterministic"),
        (("fit", SAE, both, "-o", out, "--residual"), "a residual layer .*fit a codec without --deterministic"),
        (("encode-dir", folder / "acts", out, "-s", SAE, "-c", folder / "c.saecodec", "--search", "pursuit"), "none"),
    ):
        told = " ".join(run(*command, "--deterministic", ok=False).stderr.split())
        assert re.search(text, told)
        assert not list(folder.glob("out/*.saec"))
        assert not out.is_file()
