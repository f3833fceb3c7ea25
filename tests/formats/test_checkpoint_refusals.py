"""What cannot be loaded is refused by name, with what was found and the way out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import CASES, LINEAR, PARAMETERS, D, F, K, rows, tensor, tensors
from safetensors.torch import load_file, save_file

from saecodec.errors import CheckpointError, InputError, SaecodecError, UnsupportedError
from saecodec.formats.checkpoints import FAMILIES, find, load_sae, with_input_scale

Edit = Callable[..., Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    """The checkpoint of a case in `tmp_path`: `config` updates its JSON, `state` its tensors (None removes)."""

    def edit(
        name: str, config: Mapping[str, Any] | None = None, state: Mapping[str, torch.Tensor | None] | None = None
    ) -> Path:
        CASES[name](tmp_path)
        for path in tmp_path.rglob("*.json"):
            if path.name != "lm_config.json":
                old = json.loads(path.read_text())
                path.write_text(json.dumps({k: v for k, v in (old | dict(config or {})).items() if v is not None}))
        for path in tmp_path.rglob("*.safetensors"):
            held = load_file(path) | dict(state or {})
            save_file({k: v for k, v in held.items() if v is not None}, path)
        return tmp_path

    return edit


@pytest.mark.parametrize(
    "case, config, state, told",
    [
        ("sparsify_topk", {"transcode": True}, {}, "transcode: a transcoder.*encode --latents"),
        ("sparsify_topk", {"skip_connection": True}, {}, "skip_connection: a skip connection.*encode --latents"),
        ("sparsify_topk", {}, {"W_skip": torch.zeros(D, D)}, "skip_connection: a skip connection"),
        ("sparsify_topk", {"activation": "relu6"}, {}, "activation 'relu6'; this version knows topk, groupmax"),
        ("gemma_scope_2", {"affine_connection": True}, {}, "affine_connection: a skip connection"),
        ("gemma_scope_2", {}, {"affine_skip_connection": torch.zeros(D, D)}, "affine_connection: a skip connection"),
        (
            "gemma_scope_2",
            {"hf_hook_point_in": "pre_mlp", "hf_hook_point_out": "post_mlp"},
            {},
            "from pre_mlp to post_mlp: a transcoder",
        ),
        ("llama_scope_r1", {"hook_point_in": "a", "hook_point_out": "b"}, {}, "from a to b: a transcoder"),
        ("language_model_saes_relu", {"hook_point_out": "b"}, {}, "from h to b: a transcoder"),
        ("language_model_saes_relu", {"sae_type": "crosscoder"}, {}, "sae_type 'crosscoder' is no autoencoder of rows"),
        ("language_model_saes_relu", {"sae_type": "clt"}, {}, "sae_type 'clt' is no autoencoder of rows"),
        ("language_model_saes_topk", {"act_fn": "batchtopk"}, {}, "batchtopk keeps the k N largest.*convert it"),
        ("language_model_saes_topk", {"act_fn": "gelu"}, {}, "act_fn 'gelu'; this version knows relu, jumprelu, topk"),
        ("language_model_saes_topk", {"norm_activation": "z"}, {}, "norm_activation 'z'; this version knows dataset-"),
        ("llama_scope_relu_with_the_norm_of_the_dataset", {"norm_activation": "z"}, {}, "norm_activation 'z'"),
    ],
)
def test_what_cannot_be_coded_is_refused_by_name(
    edited: Edit, case: str, config: Mapping[str, Any], state: Mapping[str, torch.Tensor], told: str
) -> None:
    folder = edited(case, config, state)
    with pytest.raises(UnsupportedError, match=f"^{re.escape(str(folder))}.*{told}"):
        load_sae(folder)


@pytest.mark.parametrize(
    "case, config, state, told",
    [
        ("sparsify_groupmax", {"k": 4}, {}, "groupmax of 4 groups, but 10 latents"),
        ("sparsify_topk", {"k": 0}, {}, "k is 0, expected a positive integer"),
        ("sparsify_topk", {"k": 2.5}, {}, "k is 2.5, expected a positive integer"),
        ("sparsify_topk", {"k": True}, {}, "k is True, expected a positive integer"),
        ("sparsify_topk", {"k": None}, {}, "does not say how many latents are active.*--sae-k"),
        ("llama_scope_jumprelu_with_decoder_norms", {"jump_relu_threshold": 0}, {}, "jumprelu, but .* no threshold"),
        ("language_model_saes_topk", {"act_fn": "jumprelu"}, {}, "act_fn is jumprelu, but there is no threshold"),
        ("language_model_saes_topk", {"top_k": "many"}, {}, "k is 'many', expected a positive integer"),
        ("language_model_saes_relu", {"use_glu_encoder": True}, {}, "tensor 'W_E_glu' is missing"),
        ("language_model_saes_relu", {}, {"W_E": torch.zeros(F, D)}, r"w_enc has shape \(10, 6\), expected \(6, 10\)"),
        ("sparsify_topk", {}, {"b_dec": torch.full((D,), torch.nan)}, "b_dec must be finite"),
    ],
)
def test_what_is_damaged_is_named(
    edited: Edit, case: str, config: Mapping[str, Any], state: Mapping[str, torch.Tensor], told: str
) -> None:
    folder = edited(case, config, state)
    with pytest.raises(CheckpointError, match=told):
        load_sae(folder)


@pytest.mark.parametrize("value", [None, torch.tensor(torch.nan), torch.tensor(0.0), torch.tensor(-1.0)], ids=str)
def test_a_mean_norm_of_the_dataset_that_is_not_there_is_asked_for(edited: Edit, value: torch.Tensor | None) -> None:
    """Where it was never set, Language-Model-SAEs writes memory that nobody wrote to."""
    folder = edited("language_model_saes_relu", state={"dataset_average_activation_norm.h": value})
    with pytest.raises(CheckpointError, match=r'dataset-wise, but the mean norm.* set it .*"in": \.\.\.'):
        load_sae(folder)


def test_the_mean_norm_of_the_dataset_can_be_set_in_the_config(edited: Edit) -> None:
    expected = load_sae(edited("language_model_saes_relu"), "cpu").sae_id
    told = {"dataset_average_activation_norm": {"in": 3.5}}
    assert load_sae(
        edited("language_model_saes_relu", told, {"dataset_average_activation_norm.h": None}), "cpu"
    ).sae_id == (expected)


def test_the_weights_of_language_model_saes_need_their_config(edited: Edit) -> None:
    folder = edited("language_model_saes_relu")
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"need its config\.json"):
        load_sae(folder)


def test_a_backup_of_a_training_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"step": 3, "ae": dict(LINEAR), "optimizer": {}, "config": {}, "norm_factor": 1.5}, tmp_path / "ae.pt")
    with pytest.raises(UnsupportedError, match=r"ae\.pt: is a backup from the middle of a training.*give the ae\.pt"):
        load_sae(tmp_path)


# -- k -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["qwen_scope", "saerch_with_k_given", "mutual_features"])
def test_a_checkpoint_that_does_not_say_k_asks_for_it(tmp_path: Path, case: str) -> None:
    written = CASES[case](tmp_path)
    with pytest.raises(CheckpointError, match=r"does not say how many latents are active: give it \(--sae-k K, or"):
        load_sae(written.path)


@pytest.mark.parametrize(
    "case", ["dictionary_learning_top_k", "openai_topk", "sparsify_topk", "language_model_saes_topk"]
)
def test_a_k_that_contradicts_the_checkpoint_is_refused_with_both(tmp_path: Path, case: str) -> None:
    written = CASES[case](tmp_path)
    assert load_sae(written.path, "cpu", k=K).sae_id == load_sae(written.path, "cpu").sae_id
    with pytest.raises(CheckpointError, match="k = 5 was given, but the checkpoint says 3"):
        load_sae(written.path, k=5)


def test_a_k_where_there_is_none_is_refused(tmp_path: Path) -> None:
    written = CASES["dictionary_learning_gated"](tmp_path)
    with pytest.raises(CheckpointError, match="k was given, but a GatedAutoEncoder has none"):
        load_sae(written.path, k=5)


def test_a_name_that_contradicts_the_number_of_latents_is_not_trusted_with_k(tmp_path: Path) -> None:
    CASES["saerch"](tmp_path)
    (tmp_path / f"{K}_{F}.pth").rename(tmp_path / "3_4096.pth")
    with pytest.raises(CheckpointError, match=r"the name says 4096 latents, there are 10: give k \(--sae-k K\)"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, k=K).n_latents == F


@pytest.mark.parametrize(
    "change, told",
    [
        ({"activation": "Gelu"}, "activation 'Gelu'"),
        ({"activation_state_dict": {"k": 3, "postact_fn": "Abs"}}, "'Abs'"),
    ],
)
def test_an_activation_of_openai_that_is_not_known_is_named(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = Path(CASES["openai_topk"](tmp_path).path)
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(UnsupportedError, match=f"{told}; this version knows ReLU and"):
        load_sae(path)


# -- finding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["", "#7", "#x"])
def test_a_file_of_several_saes_says_how_many_and_how_to_pick_one(tmp_path: Path, part: str) -> None:
    CASES["mutual_features"](tmp_path)
    with pytest.raises(CheckpointError, match=r"saes\.pt: holds 2 SAEs: .*, .*saes\.pt#0 say"):
        load_sae(f"{tmp_path / 'saes.pt'}{part}", k=7)


def test_the_only_sae_of_a_file_needs_no_number(tmp_path: Path) -> None:
    state = {"encoders.0.weight": tensor(np.eye(F, D)), "encoders.0.bias": torch.zeros(F)}
    torch.save(state, tmp_path / "saes.pt")
    assert load_sae(tmp_path, k=2).n_latents == F


def test_a_file_that_is_named_with_a_hash_is_no_part_of_another(tmp_path: Path) -> None:
    written = CASES["deepseek_r1"](tmp_path)
    named = Path(written.path).rename(tmp_path / "l19#2.pt")
    assert load_sae(named).n_latents == F


def test_a_folder_of_several_checkpoints_lists_them(tmp_path: Path) -> None:
    for layer in ("layer_0", "layer_1"):
        (tmp_path / layer).mkdir()
        CASES["gemma_scope"](tmp_path / layer)
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints.*layer_0/params\.npz, layer_1/params\.npz"):
        load_sae(tmp_path)
    assert load_sae(tmp_path / "layer_1").name == "layer_1"


def test_a_checkpoint_is_found_below_a_folder_and_before_those_that_lie_deeper(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "deeper").mkdir(parents=True)
    CASES["gemma_scope"](tmp_path / "a" / "b")
    CASES["goodfire"](tmp_path / "a" / "b" / "deeper")
    assert load_sae(tmp_path).architecture == "jumprelu"


def test_other_files_beside_a_checkpoint_are_passed_over(tmp_path: Path) -> None:
    CASES["sparsify_topk"](tmp_path)
    np.savez(tmp_path / "rows.npz", x=rows())
    (tmp_path / "damaged.pt").write_bytes(b"nothing")
    assert load_sae(tmp_path).source == "sparsify"


def test_an_unknown_layout_says_what_was_found_and_lists_every_family(tmp_path: Path) -> None:
    save_file(tensors(enc=np.eye(F, D), dec=np.eye(D, F)), tmp_path / "mine.safetensors")
    with pytest.raises(UnsupportedError, match=r"mine\.safetensors has dec, enc\).*JSON file that maps") as refused:
        load_sae(tmp_path)
    for family in FAMILIES:
        assert family.name in str(refused.value)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"encoder.weight": Touch()}, tmp_path / "ae.pt")
    with pytest.raises(UnsupportedError, match=r"ae\.pt: cannot be loaded as tensors alone.*save its state_dict\(\)"):
        load_sae(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["ae.pt", "params.npz", "sae.safetensors"])
def test_a_damaged_file_raises_an_error_of_ours(tmp_path: Path, name: str) -> None:
    for content in (b"", b"PK\x03\x04", b"\x80\x02", bytes(range(200))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SaecodecError, match=re.escape(name)):
            load_sae(tmp_path)


def test_an_npz_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.array([{}], object))
    with pytest.raises(CheckpointError, match=r"params\.npz: cannot be read as an npz archive of arrays"):
        load_sae(tmp_path)


FAMILY_OF = {
    "deepseek": "DeepSeek-R1 (qresearch), and two nn.Linear in general",
    "dictionary_learning": "dictionary_learning",
    "gemma_scope": "Gemma Scope",
    "gemma_scope_2": "Gemma Scope 2",
    "goodfire": "Goodfire",
    "language_model": "Language-Model-SAEs 2 (llamascopium)",
    "llama_scope": "Llama Scope, Llama-Scope-R1",
    "mutual_features": "mutual-feature-regularization",
    "openai": "openai/sparse_autoencoder",
    "qwen": "Qwen Scope",
    "saerch": "saerch",
    "sparsify": "EleutherAI sparsify",
}
"""By the first words of a case."""


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_checkpoint_is_taken_by_its_own_family(tmp_path: Path, case: str) -> None:
    family, _ = find(Path(str(CASES[case](tmp_path).path).partition("#")[0]))
    assert family.name == FAMILY_OF[max((name for name in FAMILY_OF if case.startswith(name)), key=len)]


def test_every_family_has_a_case() -> None:
    assert {family.name for family in FAMILIES} == {*FAMILY_OF.values(), "SAELens"}


# -- input scale -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["dictionary_learning_gated", "llama_scope_with_a_gated_linear_unit", "gemma_scope"])
def test_an_input_scale_is_the_sae_of_scaled_rows_divided_by_it(tmp_path: Path, case: str) -> None:
    written, factor = CASES[case](tmp_path), 0.375
    sae, scaled = load_sae(written.path, "cpu"), load_sae(written.path, "cpu", input_scale=factor)
    x = torch.from_numpy(np.float32(rows()))
    torch.testing.assert_close(scaled.encode(x), sae.encode(x * factor), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scaled.reconstruct(x), sae.reconstruct(x * factor) / factor, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_an_input_scale_that_is_not_a_positive_number_is_refused(tmp_path: Path, factor: float) -> None:
    sae = load_sae(CASES["gemma_scope"](tmp_path).path)
    with pytest.raises(InputError, match=f"an input scale is a positive number, got {factor}"):
        with_input_scale(sae, factor)


@pytest.mark.parametrize("case", ["openai_topk", "language_model_saes_with_norms_of_sequences"])
def test_rows_that_are_normalized_take_no_input_scale(tmp_path: Path, case: str) -> None:
    with pytest.raises(InputError, match=r"normalizes rows .*an input scale changes nothing: leave it out"):
        load_sae(CASES[case](tmp_path).path, input_scale=0.5)


def test_four_arrays_of_another_library_in_an_npz_are_not_taken_for_qwens(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", **PARAMETERS)
    with pytest.raises(UnsupportedError, match="no SAE checkpoint that is known"):
        load_sae(tmp_path, k=K)


# -- hostile checkpoints -----------------------------------------------------------------------------------------------


def held_in(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        return dict(load_file(file))
    if file.suffix == ".npz":
        with np.load(file) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    return dict(torch.load(file, weights_only=True))


def write(file: Path, held: dict[str, Any]) -> None:
    if file.suffix == ".safetensors":
        save_file(held, file)
    elif file.suffix == ".npz":
        np.savez(file, **held)
    else:
        torch.save(held, file)


@pytest.mark.parametrize("case", sorted(CASES))
def test_tensors_of_any_other_shape_raise_an_error_of_ours(tmp_path: Path, case: str) -> None:
    """Or they make no difference, such as figures of the training, or another SAE (a tied one of other width)."""
    written = CASES[case](tmp_path)
    (file,) = (path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".npz", ".pt", ".pth"))
    held, refused = held_in(file), 0
    for name in (name for name, value in held.items() if isinstance(value, torch.Tensor)):
        for shape in ((), (0,), (3,), (F, 1), (2, 3), (2, 2, 2)):
            if shape == tuple(held[name].shape):
                continue
            write(file, held | {name: torch.full(shape, 2.0)})
            try:
                sae = load_sae(written.path, "cpu", k=written.k)
            except SaecodecError:
                refused += 1
            else:
                assert sae.encode(torch.zeros(1, 2, sae.width)).shape == (1, 2, sae.n_latents)
    assert refused >= 10


@pytest.mark.parametrize(
    "k", ["NaN", "Infinity", "1e400", "-1", "[3]", '{"k": 3}', "null", "11", "99999999999999999999"]
)
def test_a_k_of_any_other_kind_or_beyond_all_latents_raises_an_error_of_ours(tmp_path: Path, k: str) -> None:
    CASES["sparsify_topk"](tmp_path)
    path = tmp_path / "cfg.json"
    path.write_text(path.read_text().replace('"k": 3', f'"k": {k}'))
    with pytest.raises(CheckpointError, match=r"k is |active"):
        load_sae(tmp_path)


@pytest.mark.parametrize("key", ["dataset_average_activation_norm", "jump_relu_threshold"])
@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e999", "-1", '"x"'])
def test_numbers_of_llama_scope_that_no_float_holds_are_refused(tmp_path: Path, key: str, value: str) -> None:
    name = "llama_scope_jumprelu" if "llama_scope_jumprelu" in CASES else next(n for n in CASES if "llama_scope" in n)
    CASES[name](tmp_path)
    path = next(tmp_path.rglob("hyperparams.json"))
    config = json.loads(path.read_text()) | {"act_fn": "jumprelu", "norm_activation": "dataset-wise"}
    config |= {"dataset_average_activation_norm": {"in": 2.0, "out": 2.0}, "jump_relu_threshold": 0.5}
    path.write_text(json.dumps(config | {key: "?"}).replace('"?"', value))
    with pytest.raises(CheckpointError):
        load_sae(tmp_path)


def test_llama_scope_divides_by_the_norm_of_the_output(tmp_path: Path) -> None:
    name = next(n for n in CASES if "llama_scope" in n)
    CASES[name](tmp_path)
    path = next(tmp_path.rglob("hyperparams.json"))
    plain = {"act_fn": "relu", "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": False}
    found = []
    for out in (2.0, 4.0):
        norms = {"dataset_average_activation_norm": {"in": 2.0, "out": out}}
        path.write_text(json.dumps(json.loads(path.read_text()) | plain | norms))
        found.append(load_sae(tmp_path).reconstruct(torch.ones(1, D)))
    torch.testing.assert_close(found[1], 2 * found[0])
