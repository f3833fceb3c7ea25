"""Tiny checkpoints of every family of SAEs but SAELens', written as their libraries write them, each with its equation.

d = 6, F = 10, random weights whose decoder directions are not of norm 1. An equation is transcribed from its library,
in numpy and float64, and knows nothing of the code under test. SAELens has reference outputs (test_saelens.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

D, F, K = 6, 10, 3
Array = NDArray[np.float64]
Equation = Callable[[Array], tuple[Array, Array]]
"""x (..., d) -> z (..., F) and x_hat (..., d)."""


class Written(NamedTuple):
    """A checkpoint on disk. path: for `load_sae`. k: what it has to be told. tolerance: of z and x_hat."""

    path: str | Path
    equation: Equation
    k: int | None = None
    tolerance: float = 1e-5


CASES: dict[str, Callable[[Path], Written]] = {}
"""Writes the checkpoint into a folder."""


def case(write: Callable[[Path], Written]) -> Callable[[Path], Written]:
    CASES[write.__name__] = write
    return write


# -- weights, files, and the steps of equations ------------------------------------------------------------------------


def rows(n_sequences: int = 4) -> Array:
    """Rows of sequences, (n, 16, d), of different norms and means."""
    rng, shape = np.random.default_rng(5), (n_sequences, 16, 1)
    x = rng.normal(size=(n_sequences, 16, D)) * rng.uniform(0.5, 3, shape) + rng.normal(size=shape)
    return x.astype(np.float32).astype(np.float64)


def weights(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


W_E, B_E, B_D = weights(D, F, seed=1), weights(F, seed=2), weights(D, seed=4)
W_D = np.float32(weights(F, D, seed=3) / 4).astype(np.float64)  # reconstructions of about the rows' own size
NORMS = np.linalg.norm(W_D, axis=1)
W_G, B_G = weights(D, F, seed=6), weights(F, seed=7)
THRESHOLD = np.abs(weights(F, seed=8))
R_MAG, B_MAG, B_GATE = (weights(F, seed=seed) / 2 for seed in (9, 10, 11))


def tensor(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.float32, order="C"))


def tensors(**values: Any) -> dict[str, torch.Tensor]:
    """float32, by names in which `__` stands for a dot."""
    return {name.replace("__", "."): tensor(value) for name, value in values.items()}


def as_json(path: Path, config: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(config))


def relu(h: Array) -> Array:
    return np.maximum(h, 0)


def sigmoid(h: Array) -> Array:
    return 1 / (1 + np.exp(-h))


def largest(by: Array, k: int) -> NDArray[np.bool_]:
    """Which are the k largest of a row."""
    return np.argsort(np.argsort(-by, axis=-1), axis=-1) < k


# -- dictionary_learning -----------------------------------------------------------------------------------------------


def dictionary(folder: Path, kind: str | None, state: Mapping[str, torch.Tensor]) -> Path:
    torch.save(dict(state), folder / "ae.pt")
    if kind is not None:
        as_json(folder / "config.json", {"trainer": {"dict_class": kind, "k": K}, "buffer": {"d_submodule": D}})
    return folder


LINEAR = tensors(encoder__weight=W_E.T, encoder__bias=B_E, decoder__weight=W_D.T)
PARAMETERS = tensors(W_enc=W_E, b_enc=B_E, W_dec=W_D, b_dec=B_D)


def auto_encoder(x: Array) -> tuple[Array, Array]:
    z = relu((x - B_D) @ W_E + B_E)
    return z * NORMS, z @ W_D + B_D  # its loader makes decoder directions of norm 1


def two_linear(x: Array) -> tuple[Array, Array]:
    z = relu(x @ W_E + B_E)
    return z, z @ W_D + B_D


def subtracting(act: Callable[[Array], Array]) -> Equation:
    def equation(x: Array) -> tuple[Array, Array]:
        z = act((x - B_D) @ W_E + B_E)
        return z, z @ W_D + B_D

    return equation


def jump(h: Array, threshold: Array | float = THRESHOLD) -> Array:
    return relu(h) * (h > threshold)


def jump_relu(x: Array) -> tuple[Array, Array]:
    z = jump(x @ W_E + B_E)
    return z, z @ W_D + B_D


def top_k(h: Array) -> Array:
    return relu(h) * largest(h, K)


@case
def dictionary_learning_auto_encoder(folder: Path) -> Written:
    return Written(dictionary(folder, "AutoEncoder", LINEAR | {"bias": tensor(B_D)}), auto_encoder)


@case
def dictionary_learning_auto_encoder_without_config(folder: Path) -> Written:
    return Written(dictionary(folder, None, LINEAR | {"bias": tensor(B_D)}) / "ae.pt", auto_encoder)


@case
def dictionary_learning_auto_encoder_new(folder: Path) -> Written:
    return Written(dictionary(folder, "AutoEncoderNew", LINEAR | {"decoder.bias": tensor(B_D)}), two_linear)


@case
def dictionary_learning_gated(folder: Path) -> Written:
    state = tensors(encoder__weight=W_E.T, decoder__weight=W_D.T, decoder_bias=B_D)
    state |= tensors(r_mag=R_MAG, mag_bias=B_MAG, gate_bias=B_GATE)

    def equation(x: Array) -> tuple[Array, Array]:
        e = (x - B_D) @ W_E
        z = (e + B_GATE > 0) * relu(np.exp(R_MAG) * e + B_MAG)
        return z, z @ W_D + B_D

    return Written(dictionary(folder, "GatedAutoEncoder", state), equation)


@case
def dictionary_learning_jump_relu(folder: Path) -> Written:
    state = PARAMETERS | {"threshold": tensor(THRESHOLD)}
    return Written(dictionary(folder, "JumpReluAutoEncoder", state), jump_relu)


def top_k_state(threshold: float) -> dict[str, torch.Tensor]:
    return LINEAR | {"b_dec": tensor(B_D), "k": torch.tensor(K), "threshold": tensor(threshold)}


@case
def dictionary_learning_top_k(folder: Path) -> Written:
    return Written(dictionary(folder, "AutoEncoderTopK", top_k_state(0.7)), subtracting(top_k))


@case
def dictionary_learning_top_k_without_config(folder: Path) -> Written:
    return Written(dictionary(folder, None, top_k_state(-1)), subtracting(top_k))


@case
def dictionary_learning_batch_top_k(folder: Path) -> Written:
    return Written(dictionary(folder, "BatchTopKSAE", top_k_state(0.75)), subtracting(lambda h: jump(h, 0.75)))


@case
def dictionary_learning_batch_top_k_without_threshold(folder: Path) -> Written:
    return Written(dictionary(folder, "BatchTopKSAE", top_k_state(-1)), subtracting(relu))


@case
def dictionary_learning_matryoshka(folder: Path) -> Written:
    state = PARAMETERS | {"k": torch.tensor(K), "threshold": tensor(0.75), "group_sizes": torch.tensor([4, 6])}
    return Written(dictionary(folder, "MatryoshkaBatchTopKSAE", state), subtracting(lambda h: jump(h, 0.75)))


# -- Gemma Scope -------------------------------------------------------------------------------------------------------


def gemma(*, lower: bool) -> dict[str, torch.Tensor]:
    state = PARAMETERS | {"threshold": tensor(THRESHOLD)}
    return {name.lower() if lower else name: value for name, value in state.items()}


@case
def gemma_scope(folder: Path) -> Written:
    np.savez(folder / "params.npz", **gemma(lower=False))
    return Written(folder, jump_relu)


@case
def gemma_scope_in_lower_case(folder: Path) -> Written:
    np.savez(folder / "params.npz", **gemma(lower=True))
    return Written(folder / "params.npz", jump_relu)


@case
def gemma_scope_of_embeddings(folder: Path) -> Written:
    """Its file has W_enc sqrt(d) and W_dec / sqrt(d)."""
    path = folder / "embedding" / "width_4k" / "average_l0_6"
    path.mkdir(parents=True)
    state, root = gemma(lower=False), math.sqrt(D)
    np.savez(path / "params.npz", **state | {"W_enc": state["W_enc"] * root, "W_dec": state["W_dec"] / root})
    return Written(folder, jump_relu)


@case
def gemma_scope_2(folder: Path) -> Written:
    save_file(gemma(lower=True), folder / "params.safetensors")
    as_json(folder / "config.json", {"architecture": "jump_relu", "affine_connection": False})
    return Written(folder, jump_relu)


# -- Llama Scope -------------------------------------------------------------------------------------------------------

MEAN_NORM = 3.5
DATASET = {"norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": MEAN_NORM, "out": MEAN_NORM}}


def scale_of(x: Array, norm: str | None) -> Array | float:
    """What rows are multiplied by first, and divided by last."""
    if norm == "dataset-wise":
        return float(np.sqrt(D)) / MEAN_NORM
    lengths = np.linalg.norm(x, axis=-1, keepdims=True)
    if norm == "token-wise":
        return np.asarray(np.sqrt(D) / lengths)
    if norm == "batch-wise":
        return np.asarray(np.sqrt(D) / lengths.mean(axis=-2, keepdims=True))
    return 1.0


def llama_scope(
    folder: Path, act: Callable[[Array], Array], state: Mapping[str, torch.Tensor] | None = None, **config: Any
) -> Written:
    """First generation. act: of h in the units of normalized rows, times decoder norms where it includes them."""
    (folder / "checkpoints").mkdir()
    held = LINEAR | tensors(decoder__bias=B_D) | dict(state or {})
    save_file(held, folder / "checkpoints" / "final.safetensors")
    as_json(
        folder / "hyperparams.json", {"d_model": D, "d_sae": F, "hook_point_in": "h", "hook_point_out": "h"} | config
    )
    as_json(folder / "lm_config.json", {"model_name": "tiny"})

    def equation(x: Array) -> tuple[Array, Array]:
        scale = scale_of(x, config.get("norm_activation"))
        u = x * scale - (B_D if config.get("apply_decoder_bias_to_pre_encoder") else 0)
        h = u @ W_E + B_E
        if config.get("use_glu_encoder"):
            h = h * sigmoid(u @ W_G + B_G)
        n = NORMS if config.get("sparsity_include_decoder_norm") else np.ones(F)
        z = act(h * n)
        return z, (z / n @ W_D + B_D) / scale

    return Written(folder, equation)


@case
def llama_scope_relu_with_the_norm_of_the_dataset(folder: Path) -> Written:
    return llama_scope(folder, relu, act_fn="relu", **DATASET)


@case
def llama_scope_jumprelu_with_decoder_norms(folder: Path) -> Written:
    scale = float(np.sqrt(D)) / MEAN_NORM
    jumps = {"act_fn": "jumprelu", "jump_relu_threshold": 0.8, "sparsity_include_decoder_norm": True}
    return llama_scope(folder, lambda h: jump(h / scale, 0.8) * scale, **jumps, **DATASET)


@case
def llama_scope_topk_used_as_jumprelu(folder: Path) -> Written:
    jumps = {"act_fn": "topk", "top_k": K, "jump_relu_threshold": 0.8, "norm_activation": "token-wise"}
    return llama_scope(folder, lambda h: jump(h, 0.8), **jumps)


@case
def llama_scope_topk_with_the_norm_of_the_sequence(folder: Path) -> Written:
    top = {"act_fn": "topk", "top_k": K, "norm_activation": "batch-wise", "sparsity_include_decoder_norm": True}
    return llama_scope(folder, top_k, **top)


@case
def llama_scope_with_a_gated_linear_unit(folder: Path) -> Written:
    state = tensors(encoder_glu__weight=W_G.T, encoder_glu__bias=B_G)
    return llama_scope(folder, relu, state, act_fn="relu", use_glu_encoder=True, **DATASET)


@case
def llama_scope_that_subtracts_the_decoder_bias(folder: Path) -> Written:
    return llama_scope(folder, relu, act_fn="relu", apply_decoder_bias_to_pre_encoder=True, **DATASET)


@case
def llama_scope_r1(folder: Path) -> Written:
    """`config.json` and a threshold for each latent, by its logarithm."""
    state = LINEAR | tensors(decoder__bias=B_D, log_jumprelu_threshold=np.log(THRESHOLD))
    save_file(state, folder / "sae_weights.safetensors")
    as_json(folder / "config.json", {"d_model": D, "act_fn": "jumprelu"} | DATASET)

    def equation(x: Array) -> tuple[Array, Array]:
        scale = scale_of(x, "dataset-wise")
        z = jump(x * scale @ W_E + B_E)
        return z, (z @ W_D + B_D) / scale

    return Written(folder, equation)


def lm_saes(
    folder: Path, act: Callable[[Array], Array], state: Mapping[str, torch.Tensor] | None = None, **config: Any
) -> Written:
    """Second generation, whose decoder norms count in the comparisons unless it says otherwise."""
    hook = {"hook_point_in": "h", "hook_point_out": "h"}
    held = tensors(W_E=W_E, b_E=B_E, W_D=W_D, b_D=B_D, dataset_average_activation_norm__h=MEAN_NORM) | dict(state or {})
    save_file(held, folder / "sae_weights.safetensors")
    as_json(folder / "config.json", {"sae_type": "sae", "d_model": D} | hook | config)

    def equation(x: Array) -> tuple[Array, Array]:
        scale = scale_of(x, config.get("norm_activation"))
        h = x * scale @ W_E + B_E
        if config.get("use_glu_encoder"):
            h = h * sigmoid(x * scale @ W_G + B_G)
        n = NORMS if config.get("sparsity_include_decoder_norm", True) else np.ones(F)
        z = act(h * n) / n
        return z, (z @ W_D + B_D) / scale

    return Written(folder, equation)


LOGGED = tensors(activation_function__log_jumprelu_threshold=np.log(THRESHOLD))


@case
def language_model_saes_relu(folder: Path) -> Written:
    return lm_saes(folder, relu, act_fn="relu", norm_activation="dataset-wise")


@case
def language_model_saes_jumprelu(folder: Path) -> Written:
    return lm_saes(folder, jump, LOGGED, act_fn="jumprelu", norm_activation="dataset-wise")


@case
def language_model_saes_jumprelu_without_decoder_norms(folder: Path) -> Written:
    plain = {"sparsity_include_decoder_norm": False, "norm_activation": "inference"}
    return lm_saes(folder, jump, LOGGED, act_fn="jumprelu", **plain)


@case
def language_model_saes_topk(folder: Path) -> Written:
    return lm_saes(folder, top_k, act_fn="topk", top_k=K, norm_activation="dataset-wise")


@case
def language_model_saes_with_a_gated_linear_unit(folder: Path) -> Written:
    state = tensors(W_E_glu=W_G, b_E_glu=B_G)
    return lm_saes(folder, relu, state, act_fn="relu", use_glu_encoder=True, norm_activation="dataset-wise")


@case
def language_model_saes_with_norms_of_rows(folder: Path) -> Written:
    return lm_saes(folder, top_k, act_fn="topk", top_k=K, norm_activation="token-wise")


@case
def language_model_saes_with_norms_of_sequences(folder: Path) -> Written:
    return lm_saes(folder, relu, act_fn="relu", norm_activation="batch-wise")


@case
def language_model_saes_batchtopk_with_a_threshold(folder: Path) -> Written:
    return lm_saes(folder, jump, LOGGED, act_fn="batchtopk", top_k=K, norm_activation="dataset-wise")


# -- sparsify ----------------------------------------------------------------------------------------------------------


def sparsify(folder: Path, equation: Equation, dtype: torch.dtype = torch.float32, **config: Any) -> Written:
    state = tensors(encoder__weight=W_E.T, encoder__bias=B_E, W_dec=W_D, b_dec=B_D)
    save_file({name: value.to(dtype) for name, value in state.items()}, folder / "sae.safetensors")
    as_json(folder / "cfg.json", {"expansion_factor": 2, "normalize_decoder": True, "k": K, "d_in": D} | config)
    return Written(folder, equation)


@case
def sparsify_topk(folder: Path) -> Written:
    return sparsify(folder, subtracting(top_k), activation="topk", signed=False, transcode=False)


@case
def sparsify_groupmax(folder: Path) -> Written:
    def act(h: Array) -> Array:
        groups = h.reshape(*h.shape[:-1], 5, F // 5)
        return np.asarray(relu(np.where(groups == groups.max(-1, keepdims=True), groups, 0)).reshape(h.shape))

    return sparsify(folder, subtracting(act), activation="groupmax", k=5)


@case
def sparsify_signed(folder: Path) -> Written:
    return sparsify(folder, subtracting(lambda h: h * largest(np.abs(h), K)), signed=True)


@case
def sparsify_bfloat16(folder: Path) -> Written:
    """Its encoder multiplies in bfloat16, and a top-k is of what that gives."""

    def half(values: Array) -> torch.Tensor:
        return tensor(values).bfloat16()

    def equation(x: Array) -> tuple[Array, Array]:
        u = half(x) - half(B_D)
        h = (u @ half(W_E) + half(B_E)).double().numpy()
        z = top_k(h)
        return z, z @ half(W_D).double().numpy() + half(B_D).double().numpy()

    return sparsify(folder, equation, torch.bfloat16)


# -- openai, saerch ----------------------------------------------------------------------------------------------------

OPENAI = tensors(encoder__weight=W_E.T, decoder__weight=W_D.T, pre_bias=B_D, latent_bias=B_E)


def openai(folder: Path, equation: Equation, activation: str, **state: Any) -> Written:
    path = folder / "autoencoder.pt"
    statistics = tensors(stats_last_nonzero=np.zeros(F))
    torch.save(OPENAI | statistics | {"activation": activation, "activation_state_dict": state}, path)
    return Written(path, equation)


def layer_normed(act: Callable[[Array], Array]) -> Equation:
    def equation(x: Array) -> tuple[Array, Array]:
        mean, deviation = x.mean(-1, keepdims=True), x.std(-1, ddof=1, keepdims=True)
        z = act(((x - mean) / (deviation + 1e-5) - B_D) @ W_E + B_E)
        return z, (z @ W_D + B_D) * deviation + mean

    return equation


@case
def openai_relu(folder: Path) -> Written:
    return openai(folder, subtracting(relu), "ReLU")


@case
def openai_topk(folder: Path) -> Written:
    return openai(folder, layer_normed(top_k), "TopK", k=K, postact_fn="ReLU")


@case
def openai_topk_identity(folder: Path) -> Written:
    return openai(folder, layer_normed(lambda h: h * largest(h, 7)), "TopK", k=7, postact_fn="Identity")


@case
def saerch(folder: Path) -> Written:
    torch.save(OPENAI, folder / f"{K}_{F}.pth")
    return Written(folder, subtracting(top_k))


@case
def saerch_with_k_given(folder: Path) -> Written:
    torch.save(OPENAI, folder / "embeddings.pth")
    return Written(folder, subtracting(top_k), k=K)


# -- two linear maps, Qwen Scope, mutual features ----------------------------------------------------------------------


@case
def goodfire(folder: Path) -> Written:
    maps = tensors(encoder_linear__weight=W_E.T, decoder_linear__weight=W_D.T)
    torch.save(maps | tensors(encoder_linear__bias=B_E, decoder_linear__bias=B_D), folder / "sae.pth")
    return Written(folder, two_linear)


@case
def deepseek_r1(folder: Path) -> Written:
    torch.save(LINEAR | {"decoder.bias": tensor(B_D)}, folder / "l19.pt")
    return Written(folder / "l19.pt", two_linear)


@case
def qwen_scope(folder: Path) -> Written:
    def equation(x: Array) -> tuple[Array, Array]:
        z = top_k(x @ W_E + B_E)
        return z, z @ W_D + B_D

    torch.save(tensors(W_enc=W_E.T, W_dec=W_D.T, b_enc=B_E, b_dec=B_D), folder / "layer3.sae.pt")
    return Written(folder, equation, k=K)


@case
def mutual_features(folder: Path) -> Written:
    """The second of two; latents 0 and 1 are the same, so that they tie."""
    tied = W_E.T.copy()
    tied[1] = tied[0]
    bias = B_E.copy()
    bias[1] = bias[0]
    state = {"encoders.0.weight": tensor(W_D), "encoders.0.bias": tensor(B_E)}
    torch.save(state | {"encoders.1.weight": tensor(tied), "encoders.1.bias": tensor(bias)}, folder / "saes.pt")

    def equation(x: Array) -> tuple[Array, Array]:
        h = x @ tied.T + bias
        z = h * (h >= np.sort(h, axis=-1)[..., -7:][..., :1] - 1e-9)  # the 7 largest, whatever their sign, and ties
        return z, z @ (tied / np.linalg.norm(tied, axis=1, keepdims=True))

    return Written(f"{folder / 'saes.pt'}#1", equation, k=7)
