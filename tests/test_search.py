"""The encoder's search: valid codes for every SAE, that cost less than those of the SAE's own activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import saecodec.dictionary
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.costs import DEFAULT_SLOPE
from saecodec.distortion import Distortion
from saecodec.errors import InputError
from saecodec.nonlinearity import Nonlinearity, SignedTopK, TopK
from saecodec.sae import SAE, Encoder
from saecodec.search import Found, Mode, Search

MakeSAE = Callable[..., SAE]
Rows = NDArray[np.float32]
ExactRows = Callable[..., Rows]
RealData = tuple[SAE, NDArray[np.float16]]


def normal_sae(n_latents: int, width: int, nonlinearity: Nonlinearity, seed: int = 0) -> SAE:
    """Random directions of all lengths; the encoder is their transpose."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n_latents, width, generator=generator)
    encoder = Encoder(w.T.contiguous(), torch.zeros(n_latents), nonlinearity, True)
    return SAE(w, torch.randn(width, generator=generator), encoder, nonlinearity.kind, "normal")


def normal_rows(n_rows: int, width: int, seed: int = 1) -> Rows:
    return 3 * np.random.default_rng(seed).normal(size=(n_rows, width)).astype(np.float32)


def found(codec: Codec, x: Rows, mode: Mode, slope: float = DEFAULT_SLOPE, **options: Any) -> Found:
    assert codec.sae is not None
    return Search(codec.sae, mode)(x, codec.quantizer, codec.latents.prior.costs(), slope, **options)


def error(codec: Codec, x: Rows, codes: Codes) -> float:
    """Sum of squared errors."""
    return float(np.square(x - codec.reconstruct(codes), dtype=np.float64).sum())


modes = pytest.mark.parametrize("mode", ["refit", "pursuit"])


# -- codes -------------------------------------------------------------------------------------------------------------


@modes
@pytest.mark.parametrize("slope", [0.0, DEFAULT_SLOPE, 0.2])
def test_codes_are_valid_for_every_architecture(
    make_sae: MakeSAE, exact_rows: ExactRows, architecture: str, mode: Mode, slope: float
) -> None:
    sae, x = make_sae(architecture), exact_rows(200)
    codec = Codec.fit(sae, x)
    result = found(codec, x, mode, slope)
    assert result.codes.check().nnz > 0
    assert (result.codes.n_rows, result.codes.n_latents) == (200, sae.n_latents)
    assert result.codes.levels.min() > 0, "no architecture has signs"
    assert result.exact.shape == (result.codes.nnz,)
    assert np.abs(result.exact - result.codes.levels).max() < 1.5
    decoded = codec.decode(codec.encode(x, search=mode, slope=slope))
    np.testing.assert_array_equal(decoded, codec.reconstruct(result.codes))


@modes
def test_at_no_price_a_search_errs_less_for_every_architecture(
    make_sae: MakeSAE, exact_rows: ExactRows, architecture: str, mode: Mode
) -> None:
    x = exact_rows(300)
    codec = Codec.fit(make_sae(architecture), x)
    assert error(codec, x, found(codec, x, mode, 0.0).codes) < error(codec, x, codec.quantize(x))


@modes
def test_an_sae_with_signs_gets_levels_of_both(mode: Mode) -> None:
    sae, x = normal_sae(30, 16, SignedTopK(30)), normal_rows(100, 16)
    codec = Codec.fit(sae, x, 0.5)
    codes = found(codec, x, mode, 0.01).codes.check()
    assert codes.levels.min() < 0 < codes.levels.max()
    assert error(codec, x, codes) < error(codec, x, codec.quantize(x))
    assert codec.decode(codec.encode(x, search=mode)).shape == x.shape


def test_refit_keeps_to_the_support_of_the_sae(make_sae: MakeSAE, exact_rows: ExactRows, architecture: str) -> None:
    sae, x = make_sae(architecture), exact_rows(100)
    dense = found(Codec.fit(sae, x), x, "refit", 0.0).codes.to_dense()
    features = sae.features(x)
    own = np.zeros(dense.shape, bool)
    own[np.repeat(np.arange(100), np.diff(features.indptr)), features.latents] = True
    assert not (dense.astype(bool) & ~own).any()


@modes
def test_a_direction_of_length_zero_is_never_coded(mode: Mode) -> None:
    sae, x = normal_sae(20, 8, TopK(20)), normal_rows(50, 8)
    assert sae.encoder is not None
    sae.w_dec[::3] = 0
    codes = found(Codec.fit(sae, x), x, mode, 0.0).codes.check()
    assert codes.nnz > 0
    assert not np.isin(codes.latents, np.arange(0, 20, 3)).any()


@modes
def test_an_sae_of_zero_directions_codes_nothing(mode: Mode) -> None:
    sae, x = normal_sae(5, 4, TopK(2)), normal_rows(10, 4)
    sae.w_dec[:] = 0
    assert found(Codec.fit(sae, x, 1.0), x, mode).codes.nnz == 0


@modes
def test_directions_that_are_the_same_are_no_trouble(mode: Mode) -> None:
    sae, x = normal_sae(24, 8, TopK(24)), normal_rows(100, 8)
    assert sae.encoder is not None
    sae.w_dec[12:] = sae.w_dec[:12]
    sae.encoder.w_enc[:, 12:] = sae.encoder.w_enc[:, :12]
    codec = Codec.fit(sae, x)
    codes = found(codec, x, mode, 0.0).codes.check()
    assert error(codec, x, codes) < error(codec, x, codec.quantize(x))


@pytest.mark.parametrize("n_latents", [1, 3, 63, 64, 65, 300])
@modes
def test_any_number_of_latents_can_be_searched(n_latents: int, mode: Mode) -> None:
    sae, x = normal_sae(n_latents, 16, TopK(min(n_latents, 4))), normal_rows(40, 16)
    assert Search(sae, mode).n_candidates == min(64, n_latents)
    assert Search(sae, mode, 1000.0).n_candidates == n_latents
    assert found(Codec.fit(sae, x), x, mode).codes.check().n_latents == n_latents


@modes
def test_no_rows_have_no_codes(sae: SAE, exact_rows: ExactRows, mode: Mode) -> None:
    codec = Codec.fit(sae, exact_rows(100))
    result = found(codec, exact_rows(0), mode)
    assert (result.codes.check().n_rows, result.codes.nnz, result.exact.shape) == (0, 0, (0,))
    assert codec.encode(exact_rows(0), search=mode) == b""


@modes
def test_rows_without_a_latent_have_empty_codes(make_sae: MakeSAE, exact_rows: ExactRows, mode: Mode) -> None:
    codec = Codec.fit(make_sae("relu"), exact_rows(100))
    assert codec.sae is not None
    x = np.repeat(codec.sae.b_dec.numpy()[None], 3, 0)
    assert found(codec, x, mode).codes.nnz == 0


@modes
def test_a_big_dictionary_gets_the_same_codes(
    minilm: RealData, mnist: RealData, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    for sae, rows in (minilm, mnist):
        x = rows[:300].astype(np.float32)
        codec = Codec.fit(sae, x, "0.8rms")
        expected = found(codec, x, mode).codes
        with monkeypatch.context() as patch:
            patch.setattr(saecodec.dictionary, "MAX_GRAM_LATENTS", 0)
            codes = found(codec, x, mode).codes.check()
        differ = (codes.to_dense() != expected.to_dense()).any(1).mean()
        assert differ <= 0.01, "beyond ties of floats"
        assert error(codec, x, codes) == pytest.approx(error(codec, x, expected), rel=1e-3)


@modes
def test_the_number_of_threads_does_not_change_the_codes(
    minilm: RealData, mode: Mode, torch_threads: Callable[[int], None], assert_same_codes: Callable[..., None]
) -> None:
    sae, x = minilm[0], minilm[1][:600].astype(np.float32)
    codec, results = Codec.fit(sae, x), []
    for n in (1, 2):
        torch_threads(n)
        results.append(found(codec, x, mode))
    assert_same_codes(results[0].codes, results[1].codes)
    np.testing.assert_array_equal(results[0].exact, results[1].exact)


# -- what is refused ---------------------------------------------------------------------------------------------------


@modes
def test_a_row_that_is_not_finite_is_named(sae: SAE, exact_rows: ExactRows, mode: Mode) -> None:
    codec, x = Codec.fit(sae, exact_rows(100)), exact_rows(10)
    x[6, 2] = np.nan
    with pytest.raises(InputError, match="row 106 holds NaN"):
        found(codec, x, mode, first_row=100)
    with pytest.raises(InputError, match="row 6 holds NaN"):
        codec.encode(x, search=mode)


@modes
@pytest.mark.parametrize("scale", [1e8, 1e15])
def test_rows_far_beyond_the_step_are_refused(sae: SAE, exact_rows: ExactRows, mode: Mode, scale: float) -> None:
    codec = Codec.fit(sae, exact_rows(100))
    with pytest.raises(InputError, match=r"too small: a level above 2\^20 would be needed; use a larger step"):
        found(codec, exact_rows(10) * np.float32(scale), mode)


# -- what it is for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["minilm", "mnist"])
@pytest.mark.parametrize("step", ["0.4rms", "1.2rms"])
def test_at_no_price_refitted_values_never_err_more(request: Any, data: str, step: str) -> None:
    sae, rows = request.getfixturevalue(data)
    x = rows.astype(np.float32)
    codec = Codec.fit(sae, x, step)
    own, codes = codec.quantize(x), found(codec, x, "refit", 0.0).codes
    assert error(codec, x, codes) < error(codec, x, own)
    rows_of_error = [np.square(x - codec.reconstruct(c)).sum(1) for c in (codes, own)]
    assert (rows_of_error[0] <= rows_of_error[1]).mean() > 0.9  # rounding may be unlucky in a row


@pytest.mark.parametrize("data", ["minilm", "mnist"])
@modes
@pytest.mark.parametrize("step, slope", [("0.4rms", 0.06), ("1rms", 0.06), ("1rms", 0.01), ("1rms", 0.5)])
def test_a_search_never_costs_both_more_bits_and_more_error(
    request: Any, data: str, mode: Mode, step: str, slope: float
) -> None:
    sae, rows = request.getfixturevalue(data)
    x = rows.astype(np.float32)
    codec = Codec.fit(sae, x, step)
    own, searched = codec.encode(x), codec.encode(x, search=mode, slope=slope)
    nmse = []
    for data_ in (own, searched):
        distortion = Distortion(sae.width)
        distortion.add(x, codec.decode(data_))
        nmse.append(distortion.nmse)
    assert len(searched) < len(own) or nmse[1] < nmse[0]
    lagrangian = [
        n * codec_variance(x) + slope * codec.quantizer.step**2 * 8 * len(d)
        for n, d in zip(nmse, (own, searched), strict=True)
    ]
    assert lagrangian[1] < lagrangian[0], "what it minimises is error + slope x bits"


def codec_variance(x: Rows) -> float:
    return float(np.square(x - x.mean(0, dtype=np.float64), dtype=np.float64).sum())


def test_a_higher_price_of_bits_spends_fewer_and_errs_more(minilm: RealData) -> None:
    sae, x = minilm[0], minilm[1][:300].astype(np.float32)
    codec = Codec.fit(sae, x)
    for mode in ("refit", "pursuit"):
        sizes, errors = [], []
        for slope in (0.01, 0.1, 1.0, 10.0):
            sizes.append(len(codec.encode(x, search=mode, slope=slope)))
            errors.append(error(codec, x, found(codec, x, mode, slope).codes))
        assert sizes == sorted(sizes, reverse=True)
        assert errors == sorted(errors)
