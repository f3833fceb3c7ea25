"""What the command line says of an SAE beside its path."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run

BUNDLED = Path(str(files("saecodec") / "bundled")) / "minilm_l3_sae"


@pytest.fixture
def rows(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32))
    return tmp_path / "x.npy"


@pytest.fixture
def qwen(tmp_path):
    """A top-k whose file does not say k."""
    weights = {
        "W_enc": torch.randn(16, 8),
        "W_dec": torch.randn(8, 16),
        "b_enc": torch.ones(16),
        "b_dec": torch.ones(8),
    }
    torch.save(weights, tmp_path / "layer3.sae.pt")
    return tmp_path / "layer3.sae.pt"


def test_k_is_asked_for_and_taken(rows, qwen):
    assert "--sae-k" in run("measure", rows, "-s", qwen, ok=False).output
    assert json.loads(run("measure", rows, "-s", qwen, "--sae-k", "3", "--json").output)["sae_alone"]["l0"] <= 3
    assert "the 3 largest h" in run("info", qwen, "--sae-k", "3").output
    assert "16 latents" in run("info", qwen, "--sae-k", "17", ok=False).output


def test_an_input_scale_is_part_of_the_sae_and_named_in_the_file(rows, qwen, tmp_path):
    given = ("-s", qwen, "--sae-k", "3")
    run("encode", rows, *given, "--input-scale", "0.5", "-o", tmp_path / "x.saec")
    assert "input scale 0.5" in run("info", tmp_path / "x.saec").output
    assert "--input-scale" in run("decode", tmp_path / "x.saec", *given, "-o", tmp_path / "a.npy", ok=False).output
    run("decode", tmp_path / "x.saec", *given, "--input-scale", "0.5", "-o", tmp_path / "a.npy")
    for bad in ("0", "-1", "nan", "1e-40"):
        assert "input scale" in run("measure", rows, *given, "--input-scale", bad, ok=False).output


def test_a_scale_that_lies_outside_the_weights_is_asked_for(rows, tmp_path):
    config = json.loads((BUNDLED / "cfg.json").read_text()) | {"normalize_activations": "expected_average_only_in"}
    folder = tmp_path / "sae"
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(config))
    (folder / "sae_weights.safetensors").write_bytes((BUNDLED / "sae_weights.safetensors").read_bytes())
    source = BUNDLED.parent / "minilm_l3_rows.npy"
    assert "norm_scaling_factor" in run("info", folder).output
    assert "--input-scale F" in run("measure", source, "-s", folder).stderr
    assert not run("measure", source, "-s", folder, "--input-scale", "1").stderr
    assert "SAELens" in run("info", folder / "cfg.json").output  # its folder is meant
