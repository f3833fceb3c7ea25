"""A JSON file maps the tensors of any other SAE; every key that is wrong is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_cases import (
    B_D,
    B_E,
    B_G,
    B_GATE,
    B_MAG,
    NORMS,
    R_MAG,
    THRESHOLD,
    W_D,
    W_E,
    W_G,
    Array,
    D,
    F,
    K,
    jump,
    largest,
    layer_normed,
    relu,
    rows,
    sigmoid,
    tensors,
    top_k,
)
from make_checkpoints import PAGE, between
from safetensors.torch import save_file

from saecodec.errors import CheckpointError, SaecodecError, UnsupportedError
from saecodec.formats.checkpoints import load_sae
from saecodec.formats.mapped_sae import KEYS
from saecodec.nonlinearity import NONLINEARITIES

Map = Callable[..., Path]
LINEAR = {"w_enc": {"name": "enc.kernel", "transpose": True}, "b_enc": "enc.bias", "w_dec": "dec", "b_dec": "mean"}
GLU = {"w_glu": "glu", "b_glu": "glu.bias"}
GATE = {"r_mag": "r", "b_mag": "m", "b_gate": "g"}


@pytest.fixture
def mapped(tmp_path: Path) -> Map:
    """The tensors of an SAE under names of their own, and a mapping: its keys, and more tensors for it."""

    def write(more: dict[str, Any] | None = None, *, name: str = "saecodec.json", **keys: Any) -> Path:
        held = tensors(enc__kernel=W_E.T, enc__bias=B_E, dec=W_D, mean=B_D, glu=W_G, glu__bias=B_G)
        held |= tensors(threshold=THRESHOLD, one=np.array([0.75]), none=np.array(0.75), r=R_MAG, m=B_MAG, g=B_GATE)
        save_file(held | tensors(norms=NORMS, cube=np.zeros((2, 2, 2))), tmp_path / "mine.safetensors")
        mapping = {"weights": "mine.safetensors", "tensors": LINEAR | (more or {})} | keys
        (tmp_path / name).write_text(json.dumps({key: value for key, value in mapping.items() if value is not ...}))
        return tmp_path / name

    return write


def plain(act: Callable[[Array], Array]) -> Callable[[Array], tuple[Array, Array]]:
    def equation(x: Array) -> tuple[Array, Array]:
        z = act(x @ W_E + B_E)
        return z, z @ W_D + B_D

    return equation


def subtracted(x: Array) -> tuple[Array, Array]:
    z = relu((x - B_D) @ W_E + B_E)
    return z, z @ W_D + B_D


def gated_unit(x: Array) -> tuple[Array, Array]:
    z = relu((x @ W_E + B_E) * sigmoid(x @ W_G + B_G))
    return z, z @ W_D + B_D


def gated(h: Array) -> Array:
    return np.asarray((h - B_E + B_GATE > 0) * relu(np.exp(R_MAG) * (h - B_E) + B_MAG))


def ranked(x: Array) -> tuple[Array, Array]:
    h = x @ W_E + B_E
    z = relu(h) * largest(h * NORMS, K)
    return z * NORMS, z @ W_D + B_D


def unscaled(x: Array) -> tuple[Array, Array]:
    z, x_hat = ranked(x)
    return z / NORMS, x_hat


def of_norm_one(x: Array) -> tuple[Array, Array]:
    z, x_hat = plain(relu)(x)
    return z * NORMS, x_hat


@pytest.mark.parametrize(
    "more, keys, equation",
    [
        ({}, {}, plain(relu)),
        ({}, {"nonlinearity": "tanh_relu"}, plain(lambda h: np.tanh(relu(h)))),
        ({"threshold": "threshold"}, {"nonlinearity": "jumprelu"}, plain(jump)),
        ({"threshold": "one"}, {"nonlinearity": "jumprelu"}, plain(lambda h: jump(h, 0.75))),
        ({"threshold": "none"}, {"nonlinearity": "jumprelu"}, plain(lambda h: jump(h, 0.75))),
        ({}, {"nonlinearity": "topk", "k": K}, plain(top_k)),
        ({"scale": "norms"}, {"nonlinearity": "topk", "k": K}, ranked),
        ({"scale": "norms"}, {"nonlinearity": "topk", "k": K, "scaled": False}, unscaled),
        ({}, {"nonlinearity": "abstopk", "k": K}, plain(lambda h: h * largest(np.abs(h), K))),
        ({}, {"nonlinearity": "signed_topk", "k": 7}, plain(lambda h: h * largest(h, 7))),
        ({}, {"apply_b_dec_to_input": True}, subtracted),
        ({}, {"apply_b_dec_to_input": True, "normalization": "layer_norm"}, layer_normed(relu)),
        ({}, {"unit_decoder": True}, of_norm_one),
        (GLU, {}, gated_unit),
    ],
)
def test_the_sae_that_a_mapping_describes(
    mapped: Map, more: dict[str, Any], keys: dict[str, Any], equation: Callable[[Array], tuple[Array, Array]]
) -> None:
    sae, x = load_sae(mapped(more, **keys), "cpu"), rows()
    z, x_hat = equation(x)
    assert 0 < np.count_nonzero(z) < z.size
    np.testing.assert_allclose(sae.encode(torch.from_numpy(x)), z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sae.reconstruct(torch.from_numpy(x)), x_hat, rtol=1e-5, atol=1e-5)


def test_a_gate_has_no_bias_of_the_encoder(mapped: Map) -> None:
    path = mapped(nonlinearity="gated", tensors={key: LINEAR[key] for key in ("w_enc", "w_dec", "b_dec")} | GATE)
    x = rows()
    z = gated(x @ W_E + B_E)
    np.testing.assert_allclose(load_sae(path, "cpu").encode(torch.from_numpy(x)), z, rtol=1e-5, atol=1e-5)


def test_biases_may_be_left_out(mapped: Map) -> None:
    sae = load_sae(mapped(tensors={key: LINEAR[key] for key in ("w_enc", "w_dec")}), "cpu")
    assert sae.encoder is not None
    assert not sae.b_dec.any()
    assert not sae.encoder.tensors()["b_enc"].any()


def test_a_mapping_is_found_in_its_folder_and_under_any_name(mapped: Map) -> None:
    path, other = mapped(), mapped(name="other.json", architecture="mine")
    assert load_sae(path.parent).sae_id == load_sae(path).sae_id
    assert load_sae(other).architecture == "mine"


def test_the_example_in_the_document_loads(tmp_path: Path) -> None:
    example = between(PAGE.read_text(encoding="utf-8"), "example").removeprefix("```json\n").removesuffix("\n```")
    (tmp_path / "saecodec.json").write_text(example)
    held = tensors(encoder__kernel=W_E.T, encoder__bias=B_E, dictionary=W_D, mean=B_D, theta=THRESHOLD)
    torch.save(held, tmp_path / "my_sae.pt")
    z = jump((rows() - B_D) @ W_E + B_E)
    np.testing.assert_allclose(load_sae(tmp_path, "cpu").encode(torch.from_numpy(rows())), z, rtol=1e-5, atol=1e-5)


def test_the_document_has_every_key_and_every_nonlinearity() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| Key |") : text.index("## What cannot")]
    for word in KEYS | {kind.kind for kind in NONLINEARITIES}:
        assert f"`{word}`" in table


def test_k_may_be_given_by_the_user(mapped: Map) -> None:
    path = mapped(nonlinearity="topk")
    assert load_sae(path, k=K).sae_id == load_sae(mapped(nonlinearity="topk", k=K)).sae_id
    path = mapped(nonlinearity="topk")
    with pytest.raises(CheckpointError, match="does not say how many latents are active"):
        load_sae(path)


@pytest.mark.parametrize("file", ["mine.pt", "mine.npz"])
def test_weights_may_be_of_other_formats(mapped: Map, tmp_path: Path, file: str) -> None:
    held = tensors(enc__kernel=W_E.T, enc__bias=B_E, dec=W_D, mean=B_D)
    if file.endswith(".pt"):
        torch.save(held, tmp_path / file)
    else:
        np.savez(tmp_path / file, **held)
    assert load_sae(mapped(weights=file)).sae_id == load_sae(mapped()).sae_id


@pytest.mark.parametrize(
    "more, keys, told",
    [
        ({}, {"wights": "x"}, r"unknown keys \['wights'\]; a mapping has apply_b_dec_to_input, architecture, "),
        ({}, {"weights": ...}, "weights is None, expected the name of a file"),
        ({}, {"weights": 3}, "weights is 3, expected the name of a file"),
        ({}, {"weights": "other.safetensors"}, r"weights 'other\.safetensors': no such file"),
        ({}, {"weights": "saecodec.json"}, r"weights 'saecodec\.json': no such file, or none of \.safetensors, "),
        ({}, {"tensors": ...}, "tensors is None, expected a map such as w_enc: name"),
        ({}, {"tensors": ["w_enc"]}, r"tensors is \['w_enc'\], expected a map"),
        ({}, {"tensors": {"w_enc": "dec"}}, r"tensors \['w_dec'\] are not mapped"),
        ({"w_skip": "dec"}, {}, "tensors has 'w_skip': 'dec', expected one of w_enc, w_dec, w_glu, b_enc, "),
        ({"b_dec": 3}, {}, "tensors has 'b_dec': 3"),
        ({"b_dec": {"name": "mean", "transpose": 1}}, {}, "tensors has 'b_dec'.*with a name, or with"),
        ({"b_dec": {"transpose": True}}, {}, "tensors has 'b_dec'"),
        ({"b_dec": {"name": "mean", "transpose": True}}, {}, r"b_dec has shape \(6,\): nothing to transpose"),
        ({"w_dec": "cube"}, {}, r"the decoder has shape \(2, 2, 2\), expected two dimensions"),
        ({"b_dec": "nothing"}, {}, r"tensor 'nothing' is missing \(found cube, dec, "),
        ({"w_enc": "enc.kernel"}, {}, r"w_enc has shape \(10, 6\), expected \(6, 10\)"),
        ({}, {"nonlinearity": "jumprelu"}, r"saecodec\.json: nonlinearity 'jumprelu' needs 'threshold'"),
        ({}, {"nonlinearity": "gated"}, r"saecodec\.json: nonlinearity 'gated' needs 'r_mag'"),
        ({}, {"k": 3}, "k is given, but nonlinearity 'relu' has none"),
        ({}, {"nonlinearity": "topk", "k": "3"}, "k is '3', expected a positive integer"),
        ({}, {"nonlinearity": "groupmax", "k": 4}, "groupmax of 4 groups, but 10 latents"),
        ({}, {"nonlinearity": "topk", "k": 3, "scaled": "no"}, "scaled is 'no', expected true or false"),
        ({}, {"apply_b_dec_to_input": 1}, "apply_b_dec_to_input is 1, expected true or false"),
        ({}, {"unit_decoder": None}, "unit_decoder is None, expected true or false"),
        (
            {},
            {"nonlinearity": "topk", "k": 3, "unit_decoder": True},
            "unit_decoder goes with nonlinearity 'relu' alone",
        ),
        ({}, {"normalization": "batch_norm"}, "normalization 'batch_norm' is none of none, layer_norm"),
        ({}, {"dtype": "float8"}, "dtype is 'float8', expected one of float32, float16, bfloat16"),
        ({"w_glu": "glu"}, {}, "a gated linear unit needs both w_glu and b_glu"),
        ({"threshold": "one"}, {}, r"tensors \['threshold'\] have no place in nonlinearity 'relu'"),
    ],
)
def test_what_is_wrong_with_a_mapping_is_named(
    mapped: Map, more: dict[str, Any], keys: dict[str, Any], told: str
) -> None:
    path = mapped(more, **keys)
    with pytest.raises(CheckpointError, match=told):
        load_sae(path)


@pytest.mark.parametrize("kind", ["batchtopk", 3, None, ["relu"]])
def test_a_nonlinearity_that_is_not_known_is_named(mapped: Map, kind: Any) -> None:
    path = mapped(nonlinearity=kind, k=3 if kind == "batchtopk" else ...)
    with pytest.raises(UnsupportedError, match=rf"saecodec\.json: unknown nonlinearity {re.escape(repr(kind))}.*topk"):
        load_sae(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_mapping_that_is_not_a_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "saecodec.json").write_text(text)
    with pytest.raises(SaecodecError, match=r"saecodec\.json: (cannot be read as JSON|expected a JSON object)"):
        load_sae(tmp_path)


def test_a_mapping_of_half_precision_multiplies_in_it(mapped: Map) -> None:
    sae = load_sae(mapped(dtype="bfloat16"), "cpu")
    assert (sae.width, sae.n_latents) == (D, F)
    x = torch.from_numpy(np.float32(rows().reshape(-1, D)))
    h = x.bfloat16() @ torch.from_numpy(W_E).bfloat16() + torch.from_numpy(B_E).bfloat16()
    torch.testing.assert_close(sae.encode(x), h.float().relu(), rtol=1e-5, atol=1e-5)
