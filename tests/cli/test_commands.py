"""The commands, as a person or a program runs them, on slices of the bundled data."""

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import run

BUNDLED = Path(str(files("saecodec") / "bundled"))
SAE = str(BUNDLED / "minilm_l3_sae")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """600 rows in 3-D (a.npy), their file (a.saec) and a codec fitted on other rows (c.saecodec)."""
    folder = tmp_path_factory.mktemp("cli")
    rows = np.load(BUNDLED / "minilm_l3_rows.npy")
    np.save(folder / "a.npy", rows[:600].reshape(6, 100, 384))
    np.save(folder / "train.npy", rows[600:1800])
    run("encode", folder / "a.npy", "-s", SAE, "-o", folder / "a.saec", "--chunk-rows", 256)
    run("fit", SAE, folder / "train.npy", "-o", folder / "c.saecodec")
    return folder


def test_the_demo_runs_and_reports_rate_and_distortion():
    output = run("demo").output
    assert "bits per row" in output
    assert "NMSE" in output


def test_decode_restores_shape_and_dtype_of_the_input(folder):
    run("decode", folder / "a.saec", "-s", SAE, "-o", folder / "out.npy")
    x, x_hat = np.load(folder / "a.npy"), np.load(folder / "out.npy")
    assert x_hat.shape == x.shape
    assert x_hat.dtype == x.dtype
    x, x_hat = x.astype(np.float64), x_hat.astype(np.float64)
    assert np.sum((x - x_hat) ** 2) / np.sum((x - x.mean((0, 1))) ** 2) < 0.2


def test_decode_of_a_range_gives_the_same_rows_in_two_dimensions(folder):
    run("decode", folder / "a.saec", "-s", SAE, "-o", folder / "all.npy", "--dtype", "float32")
    for text, rows in (
        ("250:260", slice(250, 260)),
        (":3", slice(0, 3)),
        ("-5:", slice(595, 600)),
        ("7:7", slice(7, 7)),
    ):
        run(
            "decode",
            folder / "a.saec",
            "-s",
            SAE,
            "--rows",
            text,
            "--dtype",
            "float32",
            "--force",
            "-o",
            folder / "p.npy",
        )
        expected = np.load(folder / "all.npy").reshape(-1, 384)[rows]
        np.testing.assert_allclose(np.load(folder / "p.npy"), expected, rtol=1e-5, atol=1e-5)


def test_a_file_with_its_decoder_embedded_needs_nothing(folder):
    run("encode", folder / "a.npy", "-s", SAE, "--embed", "decoder", "-o", folder / "whole.saec")
    run("decode", folder / "whole.saec", "-o", folder / "whole.npy")
    run("decode", folder / "a.saec", "-s", SAE, "-o", folder / "plain.npy")
    np.testing.assert_array_equal(np.load(folder / "whole.npy"), np.load(folder / "plain.npy"))


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_a_file_with_rounded_weights_decodes_alone_and_is_smaller(folder, weights):
    out = folder / f"{weights}.saec"
    run("encode", folder / "a.npy", "-s", SAE, "--embed", "decoder", "--weights", weights, "-o", out)
    run("decode", out, "-o", folder / f"{weights}.npy")
    assert np.load(folder / f"{weights}.npy").shape == (6, 100, 384)
    assert re.search(rf"^  weights +{weights}$", run("info", out).output, re.MULTILINE)
    arguments = ("measure", folder / "a.npy", "-s", SAE, "--embed", "decoder")
    exact = json.loads(run(*arguments, "--json").output)
    rounded = json.loads(run(*arguments, "--weights", weights, "--json").output)
    assert rounded["file_bytes"] == out.stat().st_size
    assert rounded["bits"]["decoder"] < (0.8 if weights == "bfloat16" else 0.55) * exact["bits"]["decoder"]
    assert abs(rounded["nmse"] / exact["nmse"] - 1) < 0.01
    assert f"embedded decoder ({weights})" in run(*arguments, "--weights", weights).output


def test_rounded_weights_without_a_decoder_in_the_file_or_with_a_codec_of_the_exact_one_are_refused(folder):
    arguments = ("encode", folder / "a.npy", "-s", SAE, "-o", folder / "no.saec", "--weights", "int8")
    assert "--embed decoder" in run(*arguments, ok=False).output
    codec = ("-c", folder / "c.saecodec", "--embed", "decoder")
    assert "leave --weights out" in run(*arguments, *codec, ok=False).output
    assert not (folder / "no.saec").exists()


def test_a_codec_with_its_sae_embedded_encodes_and_decodes_alone(folder):
    run("fit", SAE, folder / "train.npy", "--embed-sae", "-o", folder / "whole.saecodec")
    run("encode", folder / "a.npy", "-c", folder / "whole.saecodec", "-o", folder / "by_codec.saec")
    run("decode", folder / "by_codec.saec", "-c", folder / "whole.saecodec", "-o", folder / "by_codec.npy")
    assert np.load(folder / "by_codec.npy").shape == (6, 100, 384)


def test_what_is_missing_is_named(folder):
    output = run("decode", folder / "a.saec", "-o", folder / "no.npy", ok=False).output
    assert "needs SAE 'minilm_l3_sae' (decoder id" in output
    assert "--embed decoder makes a file that needs nothing" in output
    run("encode", folder / "a.npy", "-s", SAE, "-c", folder / "c.saecodec", "-o", folder / "coded.saec")
    output = run("decode", folder / "coded.saec", "-s", SAE, "-o", folder / "no.npy", ok=False).output
    assert "needs the codec" in output
    assert not (folder / "no.npy").exists()


def test_nothing_is_overwritten_without_force(folder):
    before = (folder / "a.saec").read_bytes()
    output = run("encode", folder / "train.npy", "-s", SAE, "-o", folder / "a.saec", ok=False).output
    assert "--force" in output
    assert (folder / "a.saec").read_bytes() == before


def test_a_step_beside_a_codec_is_refused(folder):
    arguments = ("encode", folder / "a.npy", "-s", SAE, "-c", folder / "c.saecodec", "--step", "0.2")
    assert "step" in run(*arguments, "-o", folder / "no.saec", ok=False).output
    assert not (folder / "no.saec").exists()


def test_a_row_with_nan_is_named_and_leaves_no_file(folder):
    x = np.load(folder / "a.npy").reshape(-1, 384).copy()
    x[417, 3] = np.nan
    np.save(folder / "nan.npy", x)
    for arguments in (("-o", folder / "nan.saec"), ("-c", folder / "c.saecodec", "-o", folder / "nan.saec")):
        output = run("encode", folder / "nan.npy", "-s", SAE, *arguments, ok=False).output
        assert "row 417" in output
    assert not list(folder.glob("*nan.saec*"))
    assert not list(folder.glob(".saecodec-*"))


def test_measure_reports_json_whose_bits_add_up(folder):
    report = json.loads(run("measure", folder / "a.npy", "-s", SAE, "--json").output)
    asked = "rows file_bytes bits_per_row bits_per_scalar bits_per_nonzero nmse cosine l0 sae_alone step bits outside"
    assert {*asked.split(), "target"} <= report.keys()
    assert report["bits"].keys() >= {"support", "levels", "tables", "headers"}
    assert report["outside"].keys() == {"codec_bytes", "sae_bytes"}
    assert report["estimates"].keys() == {"l0_formula", "sum_entropy"}
    assert report["sae_alone"].keys() == {"l0", "nmse"}
    assert report["target"] is None
    assert report["seconds"].keys() == {"sae", "encode", "decode"}
    assert sum(report["bits"].values()) == pytest.approx(report["bits_per_row"], rel=1e-12)
    assert report["bits_per_row"] == 8 * report["file_bytes"] / report["rows"]


def test_measure_with_a_codec_counts_the_codec_file_outside(folder):
    report = json.loads(run("measure", folder / "a.npy", "-s", SAE, "-c", folder / "c.saecodec", "--json").output)
    n_bytes = (folder / "c.saecodec").stat().st_size
    assert report["outside"]["codec_bytes"] == n_bytes
    assert report["bits"]["tables"] == 0
    assert report["bits_per_row_with_codec"] == 8 * (report["file_bytes"] + n_bytes) / 600


def test_verify_checks_and_compares(folder):
    report = json.loads(run("verify", folder / "a.saec", "-s", SAE, "--against", folder / "a.npy", "--json").output)
    assert report["ok"]
    assert report["chunks"] == 3
    assert report["decoded"] == "rows"
    assert 0 < report["nmse"] < 0.2
    assert "levels decode" in run("verify", folder / "a.saec").output
    assert "nothing was decoded" in run("verify", folder / "a.saec", "--checksums").output


def test_verify_refuses_a_damaged_file(folder):
    data = bytearray((folder / "a.saec").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "damaged.saec").write_bytes(data)
    assert "CRC-32" in run("verify", folder / "damaged.saec", "--checksums", ok=False).output


@pytest.mark.parametrize("name", ["a.saec", "c.saecodec", SAE])
def test_info_describes_every_kind_of_file(folder, name):
    path = folder / name if not name.startswith("/") else name
    assert json.loads(run("info", path, "--json").output)["kind"]
    assert run("info", path).output.count("\n") > 4


def test_info_does_not_import_torch(folder):
    code = "import sys; sys.argv = ['saecodec', 'info', sys.argv[1]]\nfrom saecodec.cli import main\n"
    code += "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    for name in ("a.saec", "c.saecodec", SAE):
        subprocess.run([sys.executable, "-c", code, str(folder / name)], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("command", ["demo", "measure", "encode", "decode", "export", "fit", "info", "verify"])
def test_every_command_has_help(command):
    output = run(command, "--help").output
    assert "Examples:" in output or command == "demo"


def test_errors_are_one_line_and_status_1_and_wrong_usage_is_status_2(folder):
    result = run("measure", folder / "missing.npy", "-s", SAE, ok=False)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "missing.npy" in result.output
    assert run("decode", folder / "a.saec", "--rows", "1-2", "-o", "x.npy", ok=False).exit_code == 2
    assert "it has 600" in run("decode", folder / "a.saec", "--rows", ":601", "-o", folder / "x.npy", ok=False).output


def test_a_device_that_is_not_there_is_refused(folder):
    assert (
        "device 'nonsense' is not available"
        in run("measure", folder / "a.npy", "-s", SAE, "--device", "nonsense", ok=False).output
    )
