"""SAELens checkpoints of every version compute what SAELens computes, and what cannot be coded is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saecodec.codec import Codec
from saecodec.errors import CheckpointError, SaecodecError, UnsupportedError
from saecodec.formats.checkpoints import load_sae

FIXTURES = Path(__file__).parents[1] / "fixtures" / "saelens"
CASES = [
    "abstopk",
    "batchtopk",
    "gated",
    "gated_nobdecin",
    "jumprelu",
    "jumprelu_float16",
    "jumprelu_float64",
    "jumprelu_nobdecin",
    "matching_pursuit",
    "old_bool_norm_true",
    "old_v3_standard",
    "old_v4_jumprelu",
    "old_v4_topk",
    "old_very_old",
    "saelens5_finetune_scaling",
    "saelens5_tanh_relu",
    "standard",
    "standard_layer_norm",
    "standard_nobdecin",
    "topk",
    "topk_constant_norm_rescale",
    "topk_expected_average_only_in",
    "topk_nobdecin",
    "topk_train",
]
ARCHITECTURES = {
    "batchtopk": "jumprelu",  # so saved for inference
    "matching_pursuit": "matching_pursuit",
    "old_bool_norm_true": "standard",
    "old_very_old": "standard",
    "saelens5_finetune_scaling": "standard",
    "saelens5_tanh_relu": "standard",
}
"""Where the name of the case does not begin with it."""
REFUSED = ["temporal", "transcoder"]
Edit = Callable[..., Path]


def tolerance(case: str) -> float:
    return 2e-2 if "float16" in case else 1e-4


def reference(case: str) -> dict[str, torch.Tensor]:
    with np.load(FIXTURES / case / "io.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored}


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """A copy of a fixture: `config` updates its cfg.json (None removes a key), `tensors` its weights."""

    def edit(case: str, config: dict[str, Any] | None = None, tensors: dict[str, Any] | None = None) -> Path:
        folder = tmp_path / case
        shutil.copytree(FIXTURES / case, folder)
        for name, update in (("cfg.json", config), ("sae_weights.safetensors", tensors)):
            path = folder / name
            old = json.loads(path.read_text()) if name == "cfg.json" else load_file(path)
            new = {key: value for key, value in {**old, **(update or {})}.items() if value is not None}
            if name == "cfg.json":
                path.write_text(json.dumps(new))
            else:
                save_file(new, path)
        return folder

    return edit


def test_every_fixture_is_tested() -> None:
    assert sorted(path.name for path in FIXTURES.iterdir() if path.is_dir()) == sorted(CASES + REFUSED)


@pytest.mark.parametrize("case", REFUSED)
def test_what_gives_no_rows_back_is_refused_and_its_latents_are_pointed_at(case: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"{case}.*architecture '{case}'.*encode --latents"):
        load_sae(FIXTURES / case)


@pytest.mark.parametrize("case", CASES)
def test_feature_activations_and_rows_are_those_of_the_library(case: str) -> None:
    sae, io = load_sae(FIXTURES / case), reference(case)
    z = sae.encode(io["x"])
    assert float((z - io["z"]).abs().max()) < tolerance(case)
    side = sae.side(io["x"].numpy())
    assert float((sae.decode(io["z"], side) - io["x_hat"]).abs().max()) < tolerance(case)
    assert float((sae.reconstruct(io["x"]) - io["x_hat"]).abs().max()) < tolerance(case)


@pytest.mark.parametrize("case", CASES)
def test_the_sparse_path_equals_the_dense_one(case: str) -> None:
    sae, x = load_sae(FIXTURES / case), reference(case)["x"]
    features, z = sae.features(x.numpy()), sae.encode(x)
    dense = np.zeros(z.shape, np.float32)
    dense[np.repeat(np.arange(len(x)), np.diff(features.indptr)), features.latents] = features.values
    scale = sae.encoder.scale
    np.testing.assert_array_equal(dense if scale is None else dense * scale.numpy(), z.numpy())
    assert np.all(features.values != 0)
    np.testing.assert_allclose(sae.rows(features).numpy(), sae.decode(z, features.side).numpy(), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_sae_says_what_it_is(case: str) -> None:
    sae = load_sae(FIXTURES / case)
    assert (sae.width, sae.n_latents, sae.name) == (32, 128, case)
    assert sae.source.startswith("SAELens gpt2-small blocks.8.hook_resid_pre")
    assert sae.architecture == ARCHITECTURES.get(
        case, case.removeprefix("old_v3_").removeprefix("old_v4_").split("_")[0]
    )


def test_the_name_of_a_relative_path_is_the_folders_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES / "topk")
    assert load_sae(".").name == "topk"


def test_a_change_of_the_encoder_keeps_the_decoder_id_and_changes_the_sae_id(edited: Edit) -> None:
    stored, sae = load_file(FIXTURES / "standard" / "sae_weights.safetensors"), load_sae(FIXTURES / "standard")
    changed = load_sae(edited("standard", tensors={"b_enc": stored["b_enc"] + 1}))
    assert changed.decoder_id == sae.decoder_id
    assert changed.sae_id != sae.sae_id


@pytest.mark.parametrize(
    "case, config, named",
    [
        ("topk", {"normalize_activations": "constant_scalar_rescale"}, "'constant_scalar_rescale'"),
        ("standard", {"normalize_activations": "z_score"}, "'z_score'; this version knows none, .*layer_norm"),
        ("standard", {"reshape_activations": "hook_q"}, "'hook_q'; this version knows none, hook_z"),
        ("standard", {"architecture": "transcoder", "d_out": 24}, "'transcoder'"),
        ("jumprelu", {"architecture": "jumprelu_skip_transcoder"}, "'jumprelu_skip_transcoder'"),
        ("standard", {"architecture": "temporal"}, "'temporal'"),
        ("standard", {"architecture": "crosscoder"}, "'crosscoder'; this version loads standard, topk, .*pursuit"),
        ("standard", {"activation_fn": "gelu"}, "'gelu'; this version knows relu, topk, tanh-relu"),
        ("standard", {"dtype": "float8_e4m3fn"}, "'float8_e4m3fn'"),
    ],
)
def test_what_this_version_cannot_do_is_refused_by_name(
    edited: Edit, case: str, config: dict[str, Any], named: str
) -> None:
    folder = edited(case, config)
    with pytest.raises(UnsupportedError) as refused:
        load_sae(folder)
    assert re.search(named, str(refused.value))
    assert str(folder / "cfg.json") in str(refused.value)


def test_a_scaling_factor_of_ones_changes_nothing(edited: Edit) -> None:
    folder = edited("standard", tensors={"scaling_factor": torch.ones(128)})
    assert load_sae(folder).sae_id == load_sae(FIXTURES / "standard").sae_id


def test_a_scaling_factor_of_another_architecture_is_refused_by_name(edited: Edit) -> None:
    with pytest.raises(UnsupportedError, match="scaling_factor"):
        load_sae(edited("jumprelu", tensors={"scaling_factor": torch.full((128,), 2.0)}))


def test_a_scaling_factor_that_is_not_a_number_is_refused(edited: Edit) -> None:
    factors = torch.ones(128)
    factors[5] = float("nan")
    with pytest.raises(CheckpointError, match="w_dec must be finite"):
        load_sae(edited("old_very_old", tensors={"scaling_factor": factors}))


def test_a_tensor_the_architecture_does_not_have_is_refused_by_name(edited: Edit) -> None:
    with pytest.raises(UnsupportedError, match="W_skip"):
        load_sae(edited("standard", tensors={"W_skip": torch.zeros(32, 32)}))
    with pytest.raises(UnsupportedError, match="threshold"):
        load_sae(edited("topk", tensors={"threshold": torch.zeros(128)}))


@pytest.mark.parametrize(
    "case, tensor", [("standard", "b_enc"), ("jumprelu", "threshold"), ("gated", "r_mag"), ("topk", "W_dec")]
)
def test_a_missing_tensor_is_named(edited: Edit, case: str, tensor: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{tensor}'.* missing.*'{case}'"):
        load_sae(edited(case, tensors={tensor: None}))


@pytest.mark.parametrize(
    "tensor, shape",
    [("W_dec", (32, 128)), ("W_enc", (128, 32)), ("b_enc", (127,)), ("b_dec", (1, 32)), ("threshold", (1,))],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(edited: Edit, tensor: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError) as refused:
        load_sae(edited("jumprelu", tensors={tensor: torch.zeros(shape)}))
    expected = tuple(load_file(FIXTURES / "jumprelu" / "sae_weights.safetensors")[tensor].shape)
    assert f"{tensor} has shape {shape}, expected {expected}" in str(refused.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor, shown", [("W_dec", "w_dec"), ("b_enc", "b_enc"), ("threshold", "threshold")])
def test_weights_that_are_not_finite_are_named(edited: Edit, tensor: str, shown: str, value: float) -> None:
    weights = load_file(FIXTURES / "jumprelu" / "sae_weights.safetensors")[tensor].clone()
    weights.view(-1)[3] = value
    with pytest.raises(CheckpointError, match=f"jumprelu: {shown} must be finite"):
        load_sae(edited("jumprelu", tensors={tensor: weights}))


@pytest.mark.parametrize(
    "key, value", [("d_in", None), ("d_sae", 0), ("d_in", "32"), ("d_in", 32.0), ("k", None), ("k", True)]
)
def test_a_size_that_is_not_a_positive_integer_is_named(edited: Edit, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is .*expected a positive integer"):
        load_sae(edited("topk", {key: value}))


@pytest.mark.parametrize("text", ["", "{", '{"d_in": 32', "[1, 2]", "null", "\x00"])
def test_a_config_that_is_not_a_json_object_is_refused(edited: Edit, text: str) -> None:
    folder = edited("standard")
    (folder / "cfg.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"cfg\.json: "):
        load_sae(folder)


def test_a_config_that_is_not_text_is_refused(edited: Edit) -> None:
    folder = edited("standard")
    (folder / "cfg.json").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(CheckpointError, match=r"cfg\.json: "):
        load_sae(folder)


@pytest.mark.parametrize(
    "text, case",
    [
        pytest.param(lambda cfg: "[" * 200_000, "standard", id="nested too deep"),
        pytest.param(
            lambda cfg: json.dumps({**cfg, "activation_fn_kwargs": [8]}),
            "old_v4_topk",
            id="activation_fn_kwargs a list",
        ),
    ],
)
def test_a_hostile_config_raises_an_error_of_ours(edited: Edit, text: Callable[[Any], str], case: str) -> None:
    folder = edited(case)
    path = folder / "cfg.json"
    path.write_text(text(json.loads(path.read_text())))
    with pytest.raises(SaecodecError):
        load_sae(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_weights_are_refused(edited: Edit, keep: int) -> None:
    folder = edited("standard")
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"sae_weights\.safetensors: cannot be read as safetensors"):
        load_sae(folder)


@pytest.mark.parametrize(
    "missing, told", [("cfg.json", r"has W_dec, W_enc, b_dec, b_enc"), ("sae_weights.safetensors", "no weights")]
)
def test_a_folder_that_is_not_a_checkpoint_says_what_was_found_and_what_is_known(
    edited: Edit, missing: str, told: str
) -> None:
    folder = edited("standard")
    (folder / missing).unlink()
    (folder / "io.npz").unlink()
    with pytest.raises(UnsupportedError, match=rf"no SAE checkpoint .*known \(.*{told}.*\)\. Known are: SAELens;"):
        load_sae(folder)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"nothing-here: no such path"):
        load_sae(tmp_path / "nothing-here")


def test_a_training_checkpoint_of_batch_topk_is_what_is_saved_of_it_for_inference() -> None:
    io, saved = reference("batchtopk"), load_sae(FIXTURES / "batchtopk")
    trained = load_sae(FIXTURES / "batchtopk" / "training_checkpoint")
    assert (saved.architecture, trained.architecture) == ("jumprelu", "batchtopk")
    torch.testing.assert_close(trained.encode(io["x"]), io["z"], atol=1e-4, rtol=0)
    torch.testing.assert_close(trained.reconstruct(io["x"]), io["x_hat"], atol=1e-4, rtol=0)


def test_batch_topk_without_its_saved_threshold_is_refused_by_name(edited: Edit) -> None:
    with pytest.raises(CheckpointError, match=r"'topk_threshold'.* missing.*'batchtopk'"):
        load_sae(edited("topk", {"architecture": "batchtopk"}))


@pytest.mark.parametrize(
    "case, config",
    [
        ("standard", {"reshape_activations": "hook_z"}),
        ("old_v3_standard", {"hook_name": "blocks.8.attn.hook_z"}),
        ("old_very_old", {"hook_point": "blocks.8.attn.hook_z"}),
    ],
)
def test_rows_of_hook_z_are_the_last_two_dimensions(edited: Edit, case: str, config: dict[str, Any]) -> None:
    io, sae = reference(case), load_sae(edited(case, config))
    assert (sae.row_dims, load_sae(FIXTURES / case).row_dims) == (2, 1)
    assert sae.sae_id == load_sae(FIXTURES / case).sae_id
    heads = io["x"].reshape(5, 2, 4, 8)
    torch.testing.assert_close(sae.encode(heads), io["z"].reshape(5, 2, 128), atol=1e-5, rtol=0)
    torch.testing.assert_close(sae.reconstruct(heads), io["x_hat"].reshape(heads.shape), atol=1e-5, rtol=0)
    torch.testing.assert_close(sae.encode(io["x"]), io["z"], atol=1e-5, rtol=0)
    codec = Codec.fit(sae, heads.numpy())
    flat, whole = (codec.decode(codec.encode(x.numpy())) for x in (io["x"], heads))
    np.testing.assert_array_equal(flat, whole)


def test_a_k_that_contradicts_the_config_is_refused_with_both(edited: Edit) -> None:
    assert load_sae(FIXTURES / "topk", k=8).sae_id == load_sae(FIXTURES / "topk").sae_id
    with pytest.raises(CheckpointError, match="k = 9 was given, but the config says 8"):
        load_sae(FIXTURES / "topk", k=9)
    with pytest.raises(CheckpointError, match=r"k = 9 was given, but architecture .standard. has none"):
        load_sae(FIXTURES / "standard", k=9)


def test_b_dec_of_matching_pursuit_is_added_only_where_it_is_subtracted(edited: Edit) -> None:
    with_b_dec = load_file(FIXTURES / "matching_pursuit" / "sae_weights.safetensors")["b_dec"] + 1
    folder = edited("matching_pursuit", {"apply_b_dec_to_input": False}, {"b_dec": with_b_dec})
    assert not load_sae(folder).b_dec.any()


@pytest.mark.parametrize(
    "config",
    [{"max_iterations": 0}, {"max_iterations": 2.5}, {"residual_threshold": "x"}, {"residual_threshold": 1e999}],
)
def test_matching_pursuit_that_could_not_run_is_refused_with_its_figures(edited: Edit, config: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"max_iterations .*residual_threshold .*not possible"):
        load_sae(edited("matching_pursuit", config))
