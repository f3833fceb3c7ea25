"""SAEBench's `mdl` equals a dense implementation of its equations, and its decoding is the one it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.errors import InputError
from saecodec.features import Features
from saecodec.nonlinearity import TopK
from saecodec.sae import SAE, Encoder
from saecodec.saebench import Chunks, saebench_mdl

RealData = tuple[SAE, NDArray[np.float16]]


def sparse(z: NDArray[np.float32]) -> Features:
    rows, latents = np.nonzero(z)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(z)))])
    return Features(indptr.astype(np.int64), latents.astype(np.int32), z[rows, latents].astype(np.float32))


def decoder(n_latents: int, width: int = 5) -> SAE:
    rng = np.random.default_rng(n_latents)
    w, b = rng.normal(size=(n_latents, width)), rng.normal(size=width)
    return SAE(torch.from_numpy(w).float(), torch.from_numpy(b).float(), None, "decoder")


def given_chunks(x: NDArray[np.float32], z: NDArray[np.float32], cuts: list[int]) -> Chunks:
    parts = np.split(np.arange(len(x)), sorted(cuts))
    return lambda: [(x[part], sparse(z[part])) for part in parts]


def dense_mdl(z: torch.Tensor, num_bins: int) -> tuple[float, torch.Tensor]:
    """Description length and quantized activations, latent by latent, of dense z (T, F) in the library's units."""
    total, quantized = 0.0, torch.empty_like(z)
    for f in range(z.shape[1]):
        edges = torch.linspace(0, max(100.0, z[:, f].max().item()), num_bins + 1)
        counts = torch.histogram(z[:, f].contiguous(), bins=edges)[0].double()
        probabilities = counts / counts.sum()
        probabilities = probabilities[(probabilities > 0) & (probabilities < 1)]
        p = (z[:, f] > 0).double().mean()
        active = 0.0 if p in (0, 1) else -p * torch.log2(p) - (1 - p) * torch.log2(1 - p)
        total += float(active + p * -(probabilities * torch.log2(probabilities)).sum())
        index = torch.bucketize(z[:, f].contiguous(), edges).clamp(1, num_bins) - 1
        quantized[:, f] = (0.5 * (edges[:-1] + edges[1:]))[index]
    return total, quantized


def dense_nmse(x: NDArray[np.float32], x_hat: torch.Tensor) -> float:
    error = x.astype(np.float64) - x_hat.double().numpy()
    return float((error**2).sum() / ((x - x.mean(0, dtype=np.float64)) ** 2).sum())


def assert_dense(
    sae: SAE, x: NDArray[np.float32], z: NDArray[np.float32], bins: list[int], cuts: list[int] | None = None
) -> None:
    found = saebench_mdl(sae, given_chunks(x, z, cuts or []), bins)
    assert [code.num_bins for code in found.codes] == bins
    for code in found.codes:
        bits, quantized = dense_mdl(torch.from_numpy(z), code.num_bins)
        assert code.mdl_bits == pytest.approx(bits, rel=1e-12, abs=1e-12)
        x_hat = sae.decode(quantized)
        assert code.nmse == pytest.approx(dense_nmse(x, x_hat), rel=1e-4)
        mse = torch.nn.functional.mse_loss(x_hat.double(), torch.from_numpy(x).double())
        assert code.rmse_over_width == pytest.approx(float(mse.sqrt()) / x.shape[1], rel=1e-4)


def test_a_worked_example() -> None:
    sae = SAE(torch.ones(1, 1), torch.zeros(1), None, "identity")
    z = np.array([[0], [50]], np.float32)
    found = saebench_mdl(sae, given_chunks(z, z, []), [2]).chosen
    # Active half of the time; 50 is counted in the upper bin, and decodes to the midpoint of the lower one, as 0 does.
    assert found.mdl_bits == 1 + 0.5 * 1
    assert found.nmse == (25**2 + 25**2) / (25**2 + 25**2)
    assert found.rmse_over_width == 25
    assert found.first_bin == 0


def test_it_is_the_dense_equations_on_random_activations() -> None:
    rng = np.random.default_rng(1)
    on = rng.random((400, 30)) < rng.uniform(0, 0.6, 30)
    z = np.where(on, rng.lognormal(4, 1.5, (400, 30)) * np.geomspace(1e-3, 1, 30), 0).astype(np.float32)
    z[:, 20] = 0  # dead
    z[:, 21] += 1  # always active
    assert (z.max(0) > 100).any()
    assert ((z.max(0) < 100) & (z.max(0) > 0)).any()
    x = rng.normal(size=(400, 5)).astype(np.float32)
    assert_dense(decoder(30), x, z, [1, 3, 8, 16, 64, 128], [1, 130])


@given(st.data())
def test_it_is_the_dense_equations_where_activations_lie_on_edges(data: st.DataObject) -> None:
    n_rows, n_latents = data.draw(st.integers(2, 12)), data.draw(st.integers(1, 4))
    value = st.one_of(st.just(0.0), st.sampled_from([-3.0, 6.25, 12.5, 25, 50, 87.5, 100, 128, 200, 256, 1e-3, 12.4]))
    drawn = data.draw(st.lists(value, min_size=n_rows * n_latents, max_size=n_rows * n_latents))
    z = np.array(drawn, np.float32).reshape(n_rows, n_latents)
    x = np.random.default_rng(n_rows).normal(size=(n_rows, 5)).astype(np.float32)
    cuts = data.draw(st.lists(st.integers(0, n_rows), max_size=3))
    bins = data.draw(st.lists(st.sampled_from([1, 2, 4, 8, 16, 32]), min_size=1, unique=True).map(sorted))
    assert_dense(decoder(n_latents), x, z, bins, cuts)


def test_activations_are_in_the_units_of_the_library() -> None:
    base, rng = decoder(6), np.random.default_rng(2)
    w_enc, rank = torch.from_numpy(rng.normal(size=(5, 6))).float(), torch.tensor([0.0, 0.5, 1, 2, 40, 300])
    sae = replace(base, encoder=Encoder(w_enc, torch.zeros(6), TopK(3, rank), True))
    x = rng.normal(size=(200, 5)).astype(np.float32)
    z = sae.encode(torch.from_numpy(x))
    assert z.max() > 100
    found = saebench_mdl(sae, lambda: [(x, sae.features(x))], [8]).chosen
    bits, quantized = dense_mdl(z, 8)
    assert found.mdl_bits == pytest.approx(bits, rel=1e-12)
    assert found.nmse == pytest.approx(dense_nmse(x, sae.decode(quantized)), rel=1e-4)


def test_normalization_is_undone_and_named(make_sae: Callable[..., SAE], exact_rows: Callable[..., NDArray]) -> None:  # type: ignore[type-arg]
    plain, x = make_sae(), exact_rows(50)
    sae = replace(plain, normalization="layer_norm")
    found = saebench_mdl(sae, lambda: [(x, sae.features(x))], [16])
    _, quantized = dense_mdl(sae.encode(torch.from_numpy(x)), 16)
    assert found.chosen.nmse == pytest.approx(dense_nmse(x, sae.decode(quantized, sae.side(x))), rel=1e-4)
    assert any("layer_norm" in sentence for sentence in found.distortions)
    unnormalized = saebench_mdl(plain, lambda: [(x, plain.features(x))], [16])
    assert not any("normalizes" in sentence for sentence in unnormalized.distortions)


def test_the_least_bits_within_the_threshold_are_chosen() -> None:
    rng = np.random.default_rng(3)
    z = np.where(rng.random((300, 8)) < 0.5, rng.uniform(0, 100, (300, 8)), 0).astype(np.float32)
    sae = decoder(8)
    x = sae.decode(torch.from_numpy(z)).numpy()
    codes = saebench_mdl(sae, given_chunks(x, z, []), [2, 8, 32]).codes
    bits, errors = [code.mdl_bits for code in codes], [code.rmse_over_width for code in codes]
    assert bits == sorted(bits)
    assert errors == sorted(errors, reverse=True)
    for threshold, expected in ((2 * errors[0], 2), (errors[0], 8), (errors[1], 32), (errors[2], 2)):
        found = saebench_mdl(sae, given_chunks(x, z, []), [32, 8, 2], threshold)
        assert found.chosen.num_bins == expected
        assert found.chosen.within_threshold == (threshold > errors[2])


def test_on_real_activations_most_lie_beside_zero_and_the_error_passes_all_the_same(minilm: RealData) -> None:
    sae, rows = minilm
    x = rows[:512].astype(np.float32)
    found = saebench_mdl(sae, lambda: [(x, sae.features(x))])
    assert found.chosen.num_bins == 8
    assert found.chosen.first_bin > 0.95
    assert found.chosen.within_threshold
    assert found.chosen.nmse is not None
    assert found.chosen.nmse > 1000
    assert any(f"{found.chosen.nmse:.4g} passes" in sentence for sentence in found.distortions)
    assert json.loads(json.dumps(asdict(found)))["chosen"]["mdl_bits"] == found.chosen.mdl_bits


def test_what_cannot_be_measured_is_refused_or_none() -> None:
    sae, z = decoder(2), np.array([[1, 0]], np.float32)
    x = np.zeros((1, 5), np.float32)
    with pytest.raises(InputError, match="no rows"):
        saebench_mdl(sae, list)
    for bins in ([], [0], [8, -1]):
        with pytest.raises(InputError, match="at least 1"):
            saebench_mdl(sae, given_chunks(x, z, []), bins)
    found = saebench_mdl(sae, given_chunks(x, z, []))
    assert found.chosen.nmse is None
    assert any("undefined" in sentence for sentence in found.distortions)


def test_negative_activations_are_named() -> None:
    x = np.eye(3, 5, dtype=np.float32)
    for value, named in ((-1, True), (1, False)):
        z = np.array([[value, 0], [0, 2], [0, 0]], np.float32)
        said = saebench_mdl(decoder(2), given_chunks(x, z, [])).distortions
        assert any("Negative" in sentence for sentence in said) == named
