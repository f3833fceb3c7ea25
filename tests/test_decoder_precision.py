"""Rounded decoders: how far from the ones given, that rounding twice is rounding once, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from saecodec.decoder_precision import PRECISIONS, from_integers, to_integers, with_precision
from saecodec.errors import InputError
from saecodec.sae import SAE

LARGEST, TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
Directions = NDArray[np.float32]


def finite() -> st.SearchStrategy[float]:
    """Of all sizes, and of neighbouring ones."""
    return st.one_of(st.floats(-LARGEST, LARGEST, width=32), st.floats(-2, 2, width=32), st.sampled_from([0.0, -0.0]))


directions = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=finite())


def decoder(w_dec: Directions) -> SAE:
    return SAE(torch.from_numpy(w_dec), torch.zeros(w_dec.shape[1]), None, "standard", "n")


@pytest.mark.parametrize("precision", PRECISIONS)
@given(w_dec=directions)
def test_rounding_twice_is_rounding_once(precision: str, w_dec: Directions) -> None:
    once = with_precision(decoder(w_dec), precision)
    twice = with_precision(once, precision)
    assert once.w_dec.numpy().tobytes() == twice.w_dec.numpy().tobytes()
    assert once.decoder_id == twice.decoder_id


@given(directions)
def test_integers_are_within_half_a_scale_and_fill_their_range(w_dec: Directions) -> None:
    integers, scale = to_integers(w_dec)
    assert (integers.dtype, scale.dtype) == (np.int8, np.float32)
    exact, largest = w_dec.astype(np.float64), np.abs(w_dec).max(1).astype(np.float64)
    fine = largest >= 128 * TINY
    error = np.abs(integers * scale.astype(np.float64)[:, None] - exact)
    assert (error[fine] <= 0.501 * scale[fine, None]).all()
    assert (np.abs(integers[fine].astype(int)).max(1, initial=0) == 127).all()
    np.testing.assert_allclose(scale[fine], largest[fine] / 127, rtol=2.0**-8)
    assert not integers[largest < 126 * TINY].any()
    assert not scale[largest < 126 * TINY].any()


@given(directions)
def test_products_of_integers_and_scales_are_exact(w_dec: Directions) -> None:
    integers, scale = to_integers(w_dec)
    product = from_integers(integers, scale)
    assert product.dtype == np.float32
    np.testing.assert_array_equal(product, integers * scale.astype(np.float64)[:, None])
    assert np.isfinite(product).all()


def test_the_largest_float_has_a_scale() -> None:
    integers, scale = to_integers(np.array([[LARGEST, -LARGEST / 2]], np.float32))
    assert integers.tolist() == [[127, -64]]
    assert np.isfinite(from_integers(integers, scale)).all()


def test_the_documents_integer_weights_are_as_it_says() -> None:
    scale = np.array([0.5, 0.25], np.float32)
    product = from_integers(np.array([[127, -3], [0, 127]], np.int8), scale)
    assert product.tolist() == [[63.5, -1.5], [0, 31.75]]


def test_bfloat16_is_torchs() -> None:
    w_dec = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    found = with_precision(decoder(w_dec.numpy()), "bfloat16").w_dec
    assert torch.equal(found, w_dec.bfloat16().float())
    assert not torch.equal(found, w_dec)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_only_the_directions_change(make_sae: Callable[..., SAE], architecture: str, precision: str) -> None:
    sae = replace(make_sae(architecture), normalization="row_norm")
    sae = replace(sae, w_dec=sae.w_dec / 3)
    rounded = with_precision(sae, precision)
    assert rounded.encoder is sae.encoder
    assert torch.equal(rounded.b_dec, sae.b_dec)
    assert rounded.decoder_id != sae.decoder_id
    kept: dict[str, Any] = {"w_dec": sae.w_dec}
    assert replace(rounded, **kept).sae_id == sae.sae_id
    assert (rounded.w_dec - sae.w_dec).abs().max() < 0.01


def test_float32_is_the_sae_itself_and_no_other_precision_is_known(sae: SAE) -> None:
    assert with_precision(sae, "float32") is sae
    for unknown in ("int4", "", "float16"):
        with pytest.raises(InputError, match=f"precision of weights is '{unknown}', expected one of float32, bfloat16"):
            with_precision(sae, unknown)
