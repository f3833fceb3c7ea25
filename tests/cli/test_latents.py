"""--latents of encode, decode and measure, as a person runs them."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from safetensors.numpy import save_file

SAE = str(Path(str(files("saecodec") / "bundled")) / "minilm_l3_sae")
F, SEQUENCES, CONTEXT = 40, 6, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A delphi cache of one split (cache), and its file (x.saec)."""
    folder = tmp_path_factory.mktemp("latents")
    rng = np.random.default_rng(0)
    dense = rng.gamma(2.0, 1.0, (SEQUENCES, CONTEXT, F)) * (rng.random((SEQUENCES, CONTEXT, F)) < 0.1)
    locations = np.argwhere(dense > 0)
    (folder / "cache").mkdir()
    tensors = {
        "locations": np.ascontiguousarray(locations, np.uint16),
        "activations": dense[dense > 0].astype(np.float16),
        "tokens": rng.integers(0, 99, (SEQUENCES, CONTEXT)),
    }
    save_file(tensors, folder / "cache" / f"0_{F - 1}.safetensors")
    run("encode", "--latents", folder / "cache", "--step", "0", "-o", folder / "x.saec", "--note", "layer=3")
    return folder


def test_a_cache_goes_in_and_comes_out_alike(folder):
    output = run("decode", "--latents", folder / "x.saec", "-o", folder / "back").output
    assert f"back: float16 feature activations of shape ({SEQUENCES}, {CONTEXT}, {F})" in output
    name = f"0_{F - 1}.safetensors"
    assert (folder / "back" / name).read_bytes() == (folder / "cache" / name).read_bytes()


def test_rows_of_a_matrix_and_its_dtype_can_be_chosen(folder):
    run("decode", "--latents", folder / "x.saec", "--rows", "-5:", "--dtype", "float32", "-o", folder / "z.npz")
    with np.load(folder / "z.npz") as z:
        assert z["shape"].tolist() == [5, F]
        assert z["data"].dtype == np.float32


def test_info_verify_and_measure_know_such_files(folder):
    facts = json.loads(run("info", folder / "x.saec", "--json").output)
    assert (facts["kind"], facts["values"], facts["user"]["layer"]) == ("saec of latents", "exact (float16)", "3")
    assert "exact (float16)" in run("info", folder / "x.saec").output
    assert "all rows decode" in run("verify", folder / "x.saec").output
    text = run("verify", folder / "x.saec", "--against", folder / "cache").output
    assert "NMSE 0.0000, equal bit by bit" in text
    report = json.loads(run("verify", folder / "x.saec", "--against", folder / "cache", "--json").output)
    assert (report["bit_equal"], report["decoded"]) == (True, "rows")
    report = json.loads(run("measure", "--latents", folder / "cache", "--step", "0", "--json").output)
    assert report["bit_equal"] is True
    text = run("measure", "--latents", folder / "cache").output
    assert "of the stored bytes, tokens left out" in text
    assert "quantized" in text


def test_the_default_is_a_step_and_json_says_what_was_done(folder):
    output = run("encode", "--latents", folder / "cache", "-o", folder / "y.saec", "--json").output
    facts = json.loads(output)
    assert facts["exact"] is False
    assert facts["step"] > 0
    assert facts["file_bytes"] == (folder / "y.saec").stat().st_size


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("-s", SAE), "-s: feature activations are coded without an SAE"),
        (("--nmse", "0.1"), "--nmse: feature activations are coded without an SAE"),
        (("--residual",), "--residual:"),
        (("--embed", "decoder"), "--embed:"),
        (("--step", "x"), "a step is a positive number"),
        (("--n-latents", "7"), "has 40 latents or more, but --n-latents says 7"),
        (("--key", "x"), "a key (--key) chooses a tensor of a .pt file"),
    ],
)
def test_options_that_make_no_sense_with_latents_are_refused(folder, arguments, message):
    for command in ("encode", "measure"):
        more = ("-o", folder / "no.saec") if command == "encode" else ()
        assert message in run(command, "--latents", folder / "cache", *arguments, *more, ok=False).output
    assert not (folder / "no.saec").exists()


def test_what_is_no_activations_and_what_is_no_rows_is_said(folder):
    assert "decode --latents" in run("decode", folder / "x.saec", "-o", folder / "x.npy", ok=False).output
    (folder / "a.npy").write_bytes(b"")
    output = run("encode", "--latents", folder / "a.npy", "-o", folder / "no.saec", ok=False).output
    assert "not a kind of feature activations that is known; expected a scipy CSR .npz" in output
    assert "no such file" in run("encode", "--latents", folder / "none", "-o", folder / "no.saec", ok=False).output
    output = run("encode", folder / "a.npy", "--n-latents", "4", "-s", SAE, "-o", folder / "no.saec", ok=False).output
    assert "--n-latents: is for --latents" in output
    output = run("decode", "--latents", folder / "x.saec", "--base-only", "-o", folder / "no.npz", ok=False).output
    assert "--base-only" in output


def test_activations_of_an_ordinary_file_need_its_sae(folder):
    rows = np.load(Path(str(files("saecodec") / "bundled")) / "minilm_l3_rows.npy")[:64]
    np.save(folder / "rows.npy", rows)
    run("encode", folder / "rows.npy", "-s", SAE, "-o", folder / "rows.saec")
    output = run("decode", "--latents", folder / "rows.saec", "-o", folder / "rows.npz", ok=False).output
    assert "needs SAE 'minilm_l3_sae'" in output
    run("decode", "--latents", folder / "rows.saec", "-s", SAE, "-o", folder / "rows.npz")
    with np.load(folder / "rows.npz") as z:
        assert z["shape"].tolist() == [64, 1536]
        assert (z["data"] > 0).all()


def test_a_folder_does_not_narrow_activations_unasked(tmp_path):
    csr = {"data": np.float32([1.1, 2.2]), "indices": np.int32([0, 3]), "indptr": np.int32([0, 1, 2])}
    np.savez(tmp_path / "z.npz", **csr, shape=np.array([2, 5]), format=np.array(b"csr"))
    run("encode", "--latents", tmp_path / "z.npz", "-o", tmp_path / "z.saec")
    refused = run("decode", "--latents", tmp_path / "z.saec", "-o", tmp_path / "out", ok=False)
    assert "--dtype float16, which rounds them, or --dtype float32" in refused.output.replace("\n", " ")
    run("decode", "--latents", tmp_path / "z.saec", "-o", tmp_path / "out", "--dtype", "float32")


def test_a_sparse_matrix_without_latents_points_to_it(tmp_path):
    csr = {"data": np.float32([1.1]), "indices": np.int32([0]), "indptr": np.int32([0, 1])}
    np.savez(tmp_path / "z.npz", **csr, shape=np.array([1, 384]), format=np.array(b"csr"))
    assert "--latents" in run("measure", tmp_path / "z.npz", "-s", SAE, ok=False).output
