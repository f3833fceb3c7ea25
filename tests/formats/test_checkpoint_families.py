"""Every family of checkpoints computes what its own library computes: equations transcribed in numpy, here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from saecodec.codec import Codec
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.checkpoints import FAMILIES, find, load_sae
from saecodec.formats.describe import describe
from saecodec.formats.measuring import measure_array
from saecodec.sae import SAE

D, F, K, T = 6, 10, 3, 40
Array = NDArray[np.float64]
Written = tuple[Path, dict[str, Any], Callable[[Array], tuple[Array, Array]]]


def drawn(seed: int = 0) -> dict[str, Array]:
    """Random weights in canonical orientation, directions of all lengths."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 2, (F, 1))
    return {
        "w_enc": rng.normal(size=(D, F)),
        "b_enc": rng.normal(size=F) * 0.3,
        "w_dec": rng.normal(size=(F, D)) * scale,
        "b_dec": rng.normal(size=D) * 0.5,
        "threshold": rng.uniform(0.1, 0.6, F),
    }


def rows(seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=(T, D)) * 2


def tensor(array: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(np.asarray(array), dtype=dtype).contiguous()


def relu(h: Array) -> Array:
    return np.maximum(h, 0)


def largest(h: Array, k: int, key: Array | None = None) -> Array:
    """h where it is among the k largest (of `key`) of its row, else 0."""
    order = np.argsort(-(h if key is None else key), axis=1)[:, :k]
    out = np.zeros_like(h)
    np.put_along_axis(out, order, np.take_along_axis(h, order, 1), 1)
    return out


def layer_normed(x: Array) -> tuple[Array, Array, Array]:
    mean = x.mean(1, keepdims=True)
    std = (x - mean).std(1, ddof=1, keepdims=True)
    return (x - mean) / (std + 1e-5), mean, std


def linear(w: dict[str, Array], encoder: str = "encoder", decoder: str = "decoder") -> dict[str, torch.Tensor]:
    return {
        f"{encoder}.weight": tensor(w["w_enc"].T),
        f"{encoder}.bias": tensor(w["b_enc"]),
        f"{decoder}.weight": tensor(w["w_dec"].T),
    }


def parameters(w: dict[str, Array], *more: str) -> dict[str, torch.Tensor]:
    names = {"w_enc": "W_enc", "b_enc": "b_enc", "w_dec": "W_dec", "b_dec": "b_dec"}
    return {name: tensor(w[key]) for key, name in names.items()} | {key: tensor(w[key]) for key in more}


# -- dictionary_learning -----------------------------------------------------------------------------------------------


def dictionary_learning(folder: Path, kind: str) -> Written:
    w = drawn()
    norms = np.linalg.norm(w["w_dec"], axis=1)
    threshold = 0.4

    def forward(x: Array) -> tuple[Array, Array]:
        subtract = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
        projection = (x - w["b_dec"] if subtract else x) @ w["w_enc"]
        h = projection + w["b_enc"]
        if kind == "GatedAutoEncoder":
            magnitude = relu(np.exp(w["threshold"]) * projection + w["b_enc"] / 2)
            z = (projection + w["b_enc"] > 0) * magnitude
        elif kind == "JumpReluAutoEncoder":
            z = relu(h) * (h > w["threshold"])
        elif kind == "AutoEncoderTopK":
            z = largest(relu(h), K)
        elif kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            z = relu(h) * (h > threshold)
        else:
            z = relu(h)
        x_hat = z @ w["w_dec"] + w["b_dec"]
        return (z * norms if kind == "AutoEncoder" else z), x_hat

    state: dict[str, Any] = linear(w)
    if kind == "AutoEncoder":
        state |= {"bias": tensor(w["b_dec"])}
    elif kind == "AutoEncoderNew":
        state |= {"decoder.bias": tensor(w["b_dec"])}
    elif kind == "GatedAutoEncoder":
        state.pop("encoder.bias")
        state |= {"gate_bias": tensor(w["b_enc"]), "mag_bias": tensor(w["b_enc"] / 2), "r_mag": tensor(w["threshold"])}
        state |= {"decoder_bias": tensor(w["b_dec"])}
    elif kind == "JumpReluAutoEncoder":
        state = parameters(w, "threshold")
    elif kind == "MatryoshkaBatchTopKSAE":
        groups = {"group_sizes": torch.tensor([4, 6]), "k": torch.tensor(K), "threshold": torch.tensor(threshold)}
        state = parameters(w) | groups
    else:
        told = threshold if kind == "BatchTopKSAE" else -1.0
        state |= {"b_dec": tensor(w["b_dec"]), "k": torch.tensor(K), "threshold": torch.tensor(told)}
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind}, "buffer": {}}))
    return folder, {}, forward


# -- Gemma Scope -------------------------------------------------------------------------------------------------------


def gemma_scope(folder: Path, kind: str) -> Written:
    w = drawn()

    def forward(x: Array) -> tuple[Array, Array]:
        h = x @ w["w_enc"] + w["b_enc"]
        z = relu(h) * (h > w["threshold"])
        return z, z @ w["w_dec"] + w["b_dec"]

    arrays = parameters(w, "threshold")
    if kind == "2":
        lower = {name.lower(): value for name, value in arrays.items()}
        save_file(lower, folder / "params.safetensors")
        config = {"architecture": "jump_relu", "affine_connection": False, "hf_hook_point_in": "a"}
        (folder / "config.json").write_text(json.dumps(config))
        return folder, {}, forward
    path = folder / "layer_3" / "width_16k" / "average_l0_20"
    path.mkdir(parents=True)
    named = {name.lower() if kind == "lower" else name: value.numpy() for name, value in arrays.items()}
    np.savez(path / "params.npz", **named)
    return folder, {}, forward


# -- Language-Model-SAEs -----------------------------------------------------------------------------------------------


def normalized(x: Array, how: str, norm: float) -> tuple[Array, Any]:
    if how == "dataset-wise":
        return x * np.sqrt(D) / norm, np.sqrt(D) / norm
    if how == "token-wise":
        factor = np.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
        return x * factor, factor
    if how == "batch-wise":
        factor = np.sqrt(D) / np.linalg.norm(x, axis=1).mean()
        return x * factor, factor
    return x, 1.0


def activated(h: Array, act: str, w: dict[str, Array], n: Array) -> Array:
    if act == "relu":
        return relu(h * n) / n
    if act == "jumprelu":
        return h * (h * n > w["threshold"])
    return largest(relu(h * n), K) / n


def llamascopium(folder: Path, act: str, how: str, glu: bool, by_norm: bool) -> Written:
    w, norm = drawn(), 7.5
    other = drawn(9)
    n = np.linalg.norm(w["w_dec"], axis=1) if by_norm else np.ones(F)

    def forward(x: Array) -> tuple[Array, Array]:
        u, factor = normalized(x, how, norm)
        h = u @ w["w_enc"] + w["b_enc"]
        if glu:
            h = h / (1 + np.exp(-(u @ other["w_enc"] + other["b_enc"])))
        z = activated(h, act, w, n)
        return z, (z @ w["w_dec"] + w["b_dec"]) / factor

    state = {"W_E": tensor(w["w_enc"]), "b_E": tensor(w["b_enc"]), "W_D": tensor(w["w_dec"]), "b_D": tensor(w["b_dec"])}
    state["dataset_average_activation_norm.hook"] = torch.tensor(norm)
    if act == "jumprelu":
        state["activation_function.log_jumprelu_threshold"] = tensor(np.log(w["threshold"]))
    if glu:
        state |= {"W_E_glu": tensor(other["w_enc"]), "b_E_glu": tensor(other["b_enc"])}
    save_file(state, folder / "sae_weights.safetensors")
    config: dict[str, Any] = {"sae_type": "sae", "d_model": D, "act_fn": act, "norm_activation": how, "top_k": K}
    config |= {"use_glu_encoder": glu, "sparsity_include_decoder_norm": by_norm}
    config |= {"hook_point_in": "hook", "hook_point_out": "hook"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, {}, forward


def llama_scope(folder: Path, act: str, how: str, by_norm: bool, r1: bool = False) -> Written:
    """z in the units of h, times the decoder's norms: what native code has, times f. docs/checkpoints.md says why."""
    w, norm = drawn(), 7.5
    n = np.linalg.norm(w["w_dec"], axis=1) if by_norm else np.ones(F)
    scalar = 0.35

    def forward(x: Array) -> tuple[Array, Array]:
        # Native: fold 1 divides both biases by f, fold 2 moves the decoder's norms over; z comes out in x's units.
        u, factor = normalized(x, how, norm)
        f = factor if how == "dataset-wise" else 1.0
        given = x if how == "dataset-wise" else u
        b_e, b_d = w["b_enc"] / f, w["b_dec"] / f
        h = (given @ w["w_enc"] + b_e) * n
        if act == "topk":
            z = largest(relu(h), K)
        elif act == "jumprelu":
            z = h * (h > (w["threshold"] / f if r1 else scalar))
        else:
            z = relu(h)
        x_hat = z @ (w["w_dec"] / n[:, None]) + b_d
        return z * f, (x_hat if how == "dataset-wise" else x_hat / factor)

    state = linear(w) | {"decoder.bias": tensor(w["b_dec"])}
    config: dict[str, Any] = {"d_model": D, "d_sae": F, "act_fn": act, "norm_activation": how, "top_k": K}
    config |= {"sparsity_include_decoder_norm": by_norm, "dataset_average_activation_norm": {"in": norm, "out": norm}}
    config |= {"hook_point_in": "hook", "hook_point_out": "hook", "apply_decoder_bias_to_pre_encoder": False}
    if r1:
        state["log_jumprelu_threshold"] = tensor(np.log(w["threshold"]))
        save_file(state, folder / "sae_weights.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        return folder, {}, forward
    config["jump_relu_threshold"] = scalar if act == "jumprelu" else 0
    (folder / "checkpoints").mkdir()
    save_file(state, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(config))
    return folder, {}, forward


# -- sparsify, OpenAI, and others --------------------------------------------------------------------------------------


def sparsify(folder: Path, kind: str) -> Written:
    w, k = drawn(), 5 if kind == "groupmax" else K

    def forward(x: Array) -> tuple[Array, Array]:
        h = (x - w["b_dec"]) @ w["w_enc"] + w["b_enc"]
        if kind == "signed":
            z = largest(h, k, np.abs(h))
        elif kind == "groupmax":
            groups = relu(h).reshape(-1, k, F // k)
            z = np.where(groups == groups.max(2, keepdims=True), groups, 0).reshape(-1, F)
        else:
            z = largest(relu(h), k)
        return z, z @ w["w_dec"] + w["b_dec"]

    state = linear(w) | {"W_dec": tensor(w["w_dec"]), "b_dec": tensor(w["b_dec"])}
    state.pop("decoder.weight")
    save_file(state, folder / "sae.safetensors")
    config = {"activation": "groupmax" if kind == "groupmax" else "topk", "k": k, "d_in": D, "num_latents": F}
    config |= {"signed": kind == "signed", "transcode": False, "skip_connection": False, "normalize_decoder": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder, {}, forward


def openai(folder: Path, kind: str) -> Written:
    w = drawn()

    def forward(x: Array) -> tuple[Array, Array]:
        u, mean, std = layer_normed(x) if kind in ("TopK", "Identity") else (x, 0.0, 1.0)
        h = (u - w["b_dec"]) @ w["w_enc"] + w["b_enc"]
        if kind == "ReLU":
            z = relu(h)
        else:
            z = largest(h, K) if kind == "Identity" else relu(largest(h, K))
        return z, (z @ w["w_dec"] + w["b_dec"]) * std + mean

    state: dict[str, Any] = {"encoder.weight": tensor(w["w_enc"].T), "decoder.weight": tensor(w["w_dec"].T)}
    state |= {"pre_bias": tensor(w["b_dec"]), "latent_bias": tensor(w["b_enc"]), "stats_last_nonzero": torch.zeros(F)}
    if kind == "saerch":
        torch.save(state, folder / f"{K}_{F}.pth")
        return folder, {}, forward
    after = {"k": K, "postact_fn": "Identity" if kind == "Identity" else "ReLU"}
    state["activation"] = "ReLU" if kind == "ReLU" else "TopK"
    state["activation_state_dict"] = {} if kind == "ReLU" else after
    torch.save(state, folder / "autoencoder.pt")
    return folder / "autoencoder.pt", {}, forward


def two_linear(folder: Path, infix: str) -> Written:
    w = drawn()

    def forward(x: Array) -> tuple[Array, Array]:
        z = relu(x @ w["w_enc"] + w["b_enc"])
        return z, z @ w["w_dec"] + w["b_dec"]

    state = linear(w, f"encoder{infix}", f"decoder{infix}") | {f"decoder{infix}.bias": tensor(w["b_dec"])}
    torch.save(state, folder / "sae.pt")
    return folder, {}, forward


def qwen(folder: Path) -> Written:
    w = drawn()

    def forward(x: Array) -> tuple[Array, Array]:
        z = largest(relu(x @ w["w_enc"] + w["b_enc"]), K)
        return z, z @ w["w_dec"] + w["b_dec"]

    state = {"W_enc": tensor(w["w_enc"].T), "W_dec": tensor(w["w_dec"].T), "b_enc": tensor(w["b_enc"])}
    torch.save(state | {"b_dec": tensor(w["b_dec"])}, folder / "layer4.sae.pt")
    return folder, {"k": K}, forward


def mutual(folder: Path) -> Written:
    w = drawn()
    w["w_enc"][:, 1] = w["w_enc"][:, 0]  # so that the two always tie
    w["b_enc"][1] = w["b_enc"][0]

    def forward(x: Array) -> tuple[Array, Array]:
        h = x @ w["w_enc"] + w["b_enc"]
        z = h * (h >= np.sort(h, axis=1)[:, -K][:, None])
        unit = w["w_enc"].T / np.linalg.norm(w["w_enc"], axis=0)[:, None]
        return z, z @ unit

    state = {}
    for i, held in enumerate((drawn(5), w)):
        state |= {f"encoders.{i}.weight": tensor(held["w_enc"].T), f"encoders.{i}.bias": tensor(held["b_enc"])}
    torch.save(state, folder / "saes.pth")
    return Path(f"{folder}/saes.pth#1"), {"k": K}, forward


def mapped(folder: Path, kind: str) -> Written:
    w = drawn()

    def forward(x: Array) -> tuple[Array, Array]:
        h = (x - w["b_dec"]) @ w["w_enc"] + w["b_enc"]
        z = relu(h) * (h > 0.3) if kind == "jumprelu" else largest(h, K, np.abs(h))
        return z, z @ w["w_dec"] + w["b_dec"]

    state = {"enc": tensor(w["w_enc"].T), "be": tensor(w["b_enc"]), "dec": tensor(w["w_dec"]), "bd": tensor(w["b_dec"])}
    save_file(state | {"theta": torch.tensor(0.3)}, folder / "model.safetensors")
    mapping: dict[str, Any] = {"weights": "model.safetensors", "apply_b_dec_to_input": True, "nonlinearity": kind}
    mapping["tensors"] = {"w_enc": {"name": "enc", "transpose": True}, "b_enc": "be", "w_dec": "dec", "b_dec": "bd"}
    if kind == "jumprelu":
        mapping["tensors"]["threshold"] = "theta"
    else:
        mapping["k"] = K
    name = "saecodec.json" if kind == "jumprelu" else "mine.json"
    (folder / name).write_text(json.dumps(mapping))
    return (folder if kind == "jumprelu" else folder / name), {}, forward


CLASSES = ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"]
CLASSES += ["AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"]
CASES: dict[str, Callable[[Path], Written]] = {
    **{f"dictionary_learning {kind}": lambda p, kind=kind: dictionary_learning(p, kind) for kind in CLASSES},
    **{f"gemma_scope {kind}": lambda p, kind=kind: gemma_scope(p, kind) for kind in ("npz", "lower", "2")},
    **{
        f"llamascopium {act} {how}{' glu' if glu else ''}{' by norm' if by_norm else ''}": (
            lambda p, act=act, how=how, glu=glu, by_norm=by_norm: llamascopium(p, act, how, glu, by_norm)
        )
        for act, how, glu, by_norm in (
            ("relu", "dataset-wise", False, True),
            ("jumprelu", "dataset-wise", False, True),
            ("jumprelu", "inference", True, False),
            ("jumprelu", "dataset-wise", True, True),
            ("topk", "token-wise", False, True),
            ("topk", "batch-wise", False, True),
            ("relu", "batch-wise", False, False),
        )
    },
    **{
        f"llama_scope {act} {how}{' by norm' if by_norm else ''}": (
            lambda p, act=act, how=how, by_norm=by_norm: llama_scope(p, act, how, by_norm)
        )
        for act, how, by_norm in (
            ("jumprelu", "dataset-wise", True),
            ("jumprelu", "dataset-wise", False),
            ("topk", "dataset-wise", True),
            ("relu", "token-wise", True),
            ("relu", "batch-wise", False),
        )
    },
    "llama_scope r1": lambda p: llama_scope(p, "jumprelu", "dataset-wise", False, r1=True),
    **{f"sparsify {kind}": lambda p, kind=kind: sparsify(p, kind) for kind in ("topk", "groupmax", "signed")},
    **{f"openai {kind}": lambda p, kind=kind: openai(p, kind) for kind in ("ReLU", "TopK", "Identity", "saerch")},
    "goodfire": lambda p: two_linear(p, "_linear"),
    "deepseek": lambda p: two_linear(p, ""),
    "qwen": qwen,
    "mutual": mutual,
    **{f"mapped {kind}": lambda p, kind=kind: mapped(p, kind) for kind in ("jumprelu", "abstopk")},
}
SIDE = {"token-wise": "row_norm", "batch-wise": "sequence_norm", "openai TopK": "layer_norm"}
SIDE["openai Identity"] = "layer_norm"


@pytest.mark.parametrize("case", CASES)
def test_feature_activations_and_rows_are_those_of_the_equation(case: str, tmp_path: Path) -> None:
    path, options, forward = CASES[case](tmp_path)
    sae, x = load_sae(path, **options), rows()
    z, x_hat = forward(x)
    given = tensor(x)
    np.testing.assert_allclose(sae.encode(given).numpy(), z, atol=2e-5)
    np.testing.assert_allclose(sae.reconstruct(given).numpy(), x_hat, atol=2e-5)
    assert 0.02 < (z != 0).mean() < 0.98
    assert (z < 0).any() == sae.signed
    assert sae.normalization == next((kind for name, kind in SIDE.items() if name in case), "none")


@pytest.mark.parametrize("case", CASES)
def test_its_canonical_form_and_its_description_are_complete(case: str, tmp_path: Path) -> None:
    path, options, _ = CASES[case](tmp_path)
    sae, x = load_sae(path, **options), tensor(rows())
    again = SAE.from_tensors(sae.config(), sae.tensors(), sae.name)
    assert (again.decoder_id, again.sae_id) == (sae.decoder_id, sae.sae_id)
    torch.testing.assert_close(again.encode(x), sae.encode(x), atol=0, rtol=0)
    facts = describe(path, options.get("k"))
    assert facts["kind"].startswith("SAE (")
    assert facts["architecture"] == sae.architecture
    assert "x_hat = z W_dec + b_dec" in facts["equation"]
    assert ("normalization undone" in facts["equation"]) == (sae.normalization != "none")


@pytest.mark.parametrize("case", CASES)
def test_rows_go_through_files_and_side_information_adds_less_than_a_percent(case: str, tmp_path: Path) -> None:
    path, options, _ = CASES[case](tmp_path)
    sae = load_sae(path, **options)
    x = np.random.default_rng(3).normal(size=(20, 40, D)).astype(np.float32)
    codec = Codec.fit(sae, x, 0.05)
    decoded = codec.decode(codec.encode(x))
    report = measure_array(MemoryArray(x), sae=sae, codec=codec)
    error = float(((decoded - x.reshape(-1, D)) ** 2).sum())
    assert error == pytest.approx(report["nmse"] * float(((x - x.mean((0, 1))) ** 2).sum()), rel=1e-4)
    own = float(((sae.reconstruct(tensor(x)).numpy() - x) ** 2).sum())
    assert error < 1.02 * own
    assert (report["bits"]["side"] > 0) == (sae.normalization != "none")


def test_all_families_are_tested(tmp_path: Path) -> None:
    found = {"SAELens"}  # which has a file of tests of its own
    for i, make in enumerate(CASES.values()):
        folder = tmp_path / str(i)
        folder.mkdir()
        path = make(folder)[0]
        if not str(path).endswith(".json") and not (path / "saecodec.json").exists():
            found.add(find(Path(str(path).partition("#")[0]))[0].name)
    assert found == {family.name for family in FAMILIES}
