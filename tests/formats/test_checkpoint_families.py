"""Checkpoints of every family compute what their equations say, and can be coded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from family_cases import CASES, Array, D, F, Written, rows
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.checkpoints import load_sae
from saecodec.formats.describe import describe
from saecodec.formats.measuring import measure_array
from saecodec.normalization import Side, sequence_scales, unrestored
from saecodec.sae import SAE

WITH_SIDE = [
    "language_model_saes_with_norms_of_rows",
    "language_model_saes_with_norms_of_sequences",
    "llama_scope_topk_used_as_jumprelu",
    "llama_scope_topk_with_the_norm_of_the_sequence",
    "openai_topk",
    "openai_topk_identity",
]
SIGNED = ["mutual_features", "openai_topk_identity", "sparsify_signed"]


class Loaded(NamedTuple):
    """An SAE, rows (4, 16, d), and what its equation makes of them."""

    name: str
    written: Written
    sae: SAE
    x: NDArray[np.float32]
    z: Array
    x_hat: Array


@pytest.fixture(scope="module", params=sorted(CASES))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    written = CASES[request.param](tmp_path_factory.mktemp(request.param))
    x = rows()
    return Loaded(
        request.param, written, load_sae(written.path, "cpu", k=written.k), np.float32(x), *written.equation(x)
    )


def side_of(sae: SAE, x: NDArray[np.float32]) -> Side | None:
    """Of rows (..., d), flattened."""
    flat = x.reshape(-1, D)
    if sae.normalization != "sequence_norm":
        return sae.side(flat)
    ids = np.repeat(np.arange(len(x)), x.shape[1])
    return Side(sequence_scales(np.linalg.norm(flat, axis=1), ids, D))


def test_feature_activations_and_reconstructions_are_those_of_the_equation(loaded: Loaded) -> None:
    x = torch.from_numpy(loaded.x)
    assert 0 < np.count_nonzero(loaded.z) < loaded.z.size
    np.testing.assert_allclose(loaded.sae.encode(x), loaded.z, rtol=1e-5, atol=loaded.written.tolerance)
    np.testing.assert_allclose(loaded.sae.reconstruct(x), loaded.x_hat, rtol=1e-5, atol=loaded.written.tolerance)


def test_the_sparse_path_is_the_dense_one(loaded: Loaded) -> None:
    sae, side = loaded.sae, side_of(loaded.sae, loaded.x)
    features, z = (
        sae.features(loaded.x.reshape(-1, D), side=side),
        sae.encode(torch.from_numpy(loaded.x)).reshape(-1, F),
    )
    assert sae.encoder is not None
    dense = np.zeros((len(z), F), np.float32)
    dense[np.repeat(np.arange(len(z)), np.diff(features.indptr)), features.latents] = features.values
    np.testing.assert_array_equal(dense if sae.encoder.scale is None else dense * sae.encoder.scale.numpy(), z)
    np.testing.assert_allclose(sae.rows(features), loaded.x_hat.reshape(-1, D), rtol=1e-4, atol=1e-4)


def test_config_and_tensors_make_it_again(loaded: Loaded) -> None:
    sae = loaded.sae
    again = SAE.from_tensors(sae.config(), sae.tensors(), sae.name)
    assert (again.decoder_id, again.sae_id) == (sae.decoder_id, sae.sae_id)
    x = torch.from_numpy(loaded.x)
    torch.testing.assert_close(again.reconstruct(x), sae.reconstruct(x), rtol=0, atol=0)


def test_it_says_whose_it_is_and_whether_its_activations_are_signed(loaded: Loaded) -> None:
    sae = loaded.sae
    assert (sae.width, sae.n_latents) == (D, F)
    assert sae.source
    assert sae.signed == (loaded.name in SIGNED) == bool((loaded.z < 0).any())
    assert (sae.normalization != "none") == (loaded.name in WITH_SIDE)


def test_its_description_has_its_equation(loaded: Loaded) -> None:
    facts = describe(loaded.written.path, loaded.written.k)
    assert (facts["kind"].split(" (")[0], facts["architecture"]) == ("SAE", loaded.sae.architecture)
    assert (facts["d_in"], facts["d_sae"]) == (D, F)
    assert "x_hat = z W_dec + b_dec" in facts["equation"]
    assert ("normalization undone" in facts["equation"]) == (loaded.sae.normalization != "none")


def test_rows_are_coded_and_measured(loaded: Loaded) -> None:
    codec = Codec.fit(loaded.sae, loaded.x, "0.3rms")
    codes = codec.quantize(loaded.x)
    decoded = codec.decode(codec.encode(loaded.x))
    np.testing.assert_array_equal(decoded, codec.reconstruct(codes))
    report = measure_array(MemoryArray(loaded.x), sae=loaded.sae, codec=codec)
    assert report["rows"] == 64
    assert report["sae_alone"]["l0"] == pytest.approx(np.count_nonzero(loaded.z) / 64)
    total = float(np.square(loaded.x - loaded.x.reshape(-1, D).mean(0)).sum())
    assert report["sae_alone"]["nmse"] == pytest.approx(
        float(np.square(loaded.x - loaded.x_hat).sum()) / total, rel=1e-3
    )
    assert report["nmse"] == pytest.approx(float(np.square(loaded.x.reshape(-1, D) - decoded).sum()) / total, rel=1e-3)


def with_least_squares_decoder(sae: SAE, x: NDArray[np.float32]) -> SAE:
    """The SAE with the decoder that reconstructs these rows best, as a trained one nearly has."""
    flat, side = torch.from_numpy(x.reshape(-1, D)), side_of(sae, x)
    z = sae.encode(torch.from_numpy(x)).reshape(-1, F)
    if sae.encoder is not None and sae.encoder.scale is not None:
        z = z / sae.encoder.scale
    ones = torch.ones(len(z), 1)
    found = torch.linalg.lstsq(torch.cat([z, ones], 1), unrestored(flat, side)).solution
    return replace(sae, w_dec=found[:F].contiguous(), b_dec=found[F].contiguous())


@pytest.mark.parametrize("name", WITH_SIDE)
def test_rounding_side_information_adds_less_than_a_hundredth_to_the_squared_error(name: str, tmp_path: Path) -> None:
    written, x = (
        CASES[name](tmp_path),
        np.float32(rows(256)),
    )  # a bound in the mean: of few rows, chance would exceed it
    sae = with_least_squares_decoder(load_sae(written.path, "cpu", k=written.k), x)
    codec = Codec.fit(sae, x, "0.3rms")
    codes = codec.quantize(x)
    exact = sae.rows(replace(codec.quantizer.dequantize(codes, sae.norms), side=side_of(sae, x))).numpy()
    rounded = codec.reconstruct(codes)
    assert not np.array_equal(exact, rounded)
    flat = x.reshape(-1, D)
    assert np.square(flat - rounded).sum() < 1.01 * np.square(flat - exact).sum()
