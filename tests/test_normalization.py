"""Normalization of rows: as the SAEs' libraries do it, undone exactly, and without NaN where a row has no scale; and
SAEs that normalize."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saecodec.errors import CheckpointError, InputError
from saecodec.formats.weights import pack_weights, unpack_weights
from saecodec.normalization import (
    KINDS,
    Side,
    has_mean,
    normalized,
    restored,
    sequence_scales,
    side_of,
    unrestored,
)
from saecodec.sae import SAE

MakeSAE = Callable[..., SAE]
Rows = NDArray[np.float32]
NORMALIZING = KINDS[1:]
IDS = np.array([7, 7, 7, 7, 2, 7, 7, 7, 3, 3, 3, 3])


def rows(width: int = 8, n: int = len(IDS)) -> Rows:
    """Of different means and sizes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, width)) * rng.gamma(2, size=(n, 1)) + rng.normal(size=(n, 1))
    return x.astype(np.float32)


def side_information(kind: str, x: Rows) -> Side | None:
    if kind == "sequence_norm":
        return Side(sequence_scales(np.linalg.norm(x, axis=1), IDS[: len(x)], x.shape[1]))
    return side_of(kind, torch.from_numpy(x))


def transcribed(kind: str, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """What the encoder sees, the scales and the means, in float64."""
    x, none = x.astype(np.float64), np.zeros((len(x), 1))
    if kind == "layer_norm":
        mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        return (x - mean) / (std + 1e-5), std, mean
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    if kind == "sequence_norm":
        runs = np.split(norm, np.flatnonzero(np.diff(IDS)) + 1)
        norm = np.concatenate([np.full_like(run, run.mean()) for run in runs])
    scale = norm / np.sqrt(x.shape[1])
    return x / scale, scale, none


@pytest.mark.parametrize("kind", NORMALIZING)
def test_rows_are_normalized_as_the_libraries_do_it(kind: str) -> None:
    x = rows()
    seen, scale, mean = transcribed(kind, x)
    side = side_information(kind, x)
    assert side is not None
    np.testing.assert_allclose(side.scale, scale[:, 0], rtol=1e-5)
    assert (side.mean is not None) == has_mean(kind) == (kind == "layer_norm")
    if side.mean is not None:
        np.testing.assert_allclose(side.mean, mean[:, 0], atol=1e-6)
    assert side.scale.dtype == np.float32
    np.testing.assert_allclose(normalized(kind, torch.from_numpy(x), side), seen, atol=1e-5)
    y = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    np.testing.assert_allclose(restored(torch.from_numpy(y.copy()), side), y * scale + mean, rtol=1e-5, atol=1e-5)


def test_the_epsilon_of_layer_norm_is_on_the_way_in_alone() -> None:
    x = 1e-5 * rows()
    side = side_information("layer_norm", x)
    std = x.astype(np.float64).std(1, ddof=1, keepdims=True)
    centred = x - x.mean(1, keepdims=True)
    seen = normalized("layer_norm", torch.from_numpy(x), side).numpy()
    np.testing.assert_allclose(seen, centred / (std + 1e-5), rtol=1e-3, atol=1e-4)
    assert np.abs(seen - centred / std).max() > 0.1
    np.testing.assert_allclose(unrestored(torch.from_numpy(x), side), centred / std, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_decoder_would_have_to_make_is_restored_to_the_rows(kind: str) -> None:
    x = rows()
    side = side_information(kind, x)
    back = restored(unrestored(torch.from_numpy(x), side).clone(), side)
    np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", NORMALIZING)
@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, -7e5])
@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_rows_of_zeros_and_of_equal_values_have_no_nan(kind: str, value: float, width: int) -> None:
    x = np.full((3, width), value, np.float32)
    side = side_information(kind, x)
    assert side is not None
    seen, wanted = (f(torch.from_numpy(x), side).numpy() for f in (lambda x, s: normalized(kind, x, s), unrestored))
    assert np.isfinite(seen).all()
    assert np.isfinite(wanted).all()
    if value == 0 or kind == "layer_norm":
        assert side.scale.tolist() == [0, 0, 0]
        assert not seen.any()
        assert not wanted.any()
    np.testing.assert_allclose(restored(torch.from_numpy(wanted.copy()), side), x, rtol=1e-6)


def test_no_kind_needs_nothing() -> None:
    x = torch.from_numpy(rows())
    assert side_of("none", x) is None
    assert normalized("none", x, None) is x
    assert unrestored(x, None) is x
    assert restored(x, None) is x


@pytest.mark.parametrize("kind", NORMALIZING)
def test_side_information_of_no_rows_is_none_of_them(kind: str) -> None:
    x = np.zeros((0, 4), np.float32)
    side = side_information(kind, x)
    assert side is not None
    assert len(side.scale) == 0
    assert normalized(kind, torch.from_numpy(x), side).shape == (0, 4)


def test_an_id_that_comes_back_after_others_is_another_sequence() -> None:
    scales = sequence_scales(np.array([2.0, 4, 10, 8]), np.array([1, 1, 2, 1]), 1)
    assert scales.tolist() == [3, 3, 10, 8]
    assert scales.dtype == np.float32


def test_a_slice_of_side_information_is_that_of_the_rows() -> None:
    side = side_information("layer_norm", rows())
    assert side is not None
    part = side[2:5]
    assert part.scale.tolist() == side.scale[2:5].tolist()
    assert part.mean is not None
    assert side.mean is not None
    assert part.mean.tolist() == side.mean[2:5].tolist()


# -- SAEs that normalize -----------------------------------------------------------------------------------------------


@pytest.fixture(params=NORMALIZING)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def sae(kind: str, make_sae: MakeSAE) -> SAE:
    return replace(make_sae("relu"), normalization=kind)


def test_an_sae_encodes_normalized_rows_and_restores_what_it_decodes(sae: SAE, kind: str) -> None:
    """A tensor (sequences, position, d)."""
    x = rows().reshape(3, 4, 8)
    flat = x.reshape(12, 8)
    ids = np.arange(12) // 4
    side = Side(sequence_scales(np.linalg.norm(flat, axis=1), ids, 8)) if kind == "sequence_norm" else None
    side = side or side_of(kind, torch.from_numpy(flat))
    plain = replace(sae, normalization="none")
    z = plain.encode(normalized(kind, torch.from_numpy(flat), side))
    np.testing.assert_allclose(sae.encode(torch.from_numpy(x)).reshape(12, -1), z, atol=1e-5)
    expected = restored(plain.decode(z).clone(), side)
    np.testing.assert_allclose(sae.reconstruct(torch.from_numpy(x)).reshape(12, 8), expected, atol=1e-5)
    np.testing.assert_allclose(sae.decode(z.reshape(3, 4, -1), side).reshape(12, 8), expected, atol=1e-5)
    features = sae.features(flat, side=side)
    np.testing.assert_allclose(sae.rows(features), expected, atol=1e-4)
    assert features.side is not None
    np.testing.assert_array_equal(features.side.scale, side.scale)


def test_feature_activations_alone_do_not_decode(sae: SAE) -> None:
    with pytest.raises(InputError, match=r"normalizes rows.*use reconstruct\(x\), or give decode .* sae\.side\(x\)"):
        sae.decode(torch.zeros(2, sae.n_latents))


def test_features_of_a_sequence_norm_need_its_sequences(make_sae: MakeSAE) -> None:
    sae = replace(make_sae("relu"), normalization="sequence_norm")
    with pytest.raises(InputError, match=r"mean norm of their sequence.*--seq"):
        sae.features(rows())
    with pytest.raises(InputError, match="--seq"):
        sae.side(rows())


@pytest.mark.parametrize("kind", ["layer_norm", "row_norm"])
def test_side_information_does_not_depend_on_batches(sae: SAE, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows()
    whole = sae.side(x)
    monkeypatch.setattr(SAE, "batch_rows", property(lambda self: 5))
    parts, features = sae.side(x), sae.features(x)
    assert whole is not None
    assert parts is not None
    assert features.side is not None
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-6)
    np.testing.assert_array_equal(features.side.scale, parts.scale)
    np.testing.assert_allclose(sae.rows(features), sae.reconstruct(torch.from_numpy(x)), atol=1e-4)


def test_identities_differ_by_how_rows_are_normalized(make_sae: MakeSAE) -> None:
    saes = [replace(make_sae("relu"), normalization=kind) for kind in KINDS]
    assert saes[0].decoder_id == make_sae("relu").decoder_id
    assert len({sae.decoder_id for sae in saes}) == len({sae.sae_id for sae in saes}) == len(KINDS)


def test_canonical_forms_and_weights_keep_the_normalization(sae: SAE, kind: str) -> None:
    again = SAE.from_tensors(sae.config(), sae.tensors(), "again")
    assert (again.normalization, again.sae_id) == (kind, sae.sae_id)
    decoder = SAE.from_tensors(sae.decoder_config(), sae.decoder_tensors(), "again")
    assert (decoder.normalization, decoder.decoder_id) == (kind, sae.decoder_id)
    for decoder_only in (False, True):
        payload = pack_weights(sae, decoder_only=decoder_only)
        unpacked = unpack_weights(payload, "w", n_latents=sae.n_latents)
        assert (unpacked.normalization, unpacked.decoder_id) == (kind, sae.decoder_id)
        assert unpacked.sae_id == (None if decoder_only else sae.sae_id)


def test_an_unknown_normalization_is_refused_by_name(make_sae: MakeSAE) -> None:
    with pytest.raises(CheckpointError, match="'batch_norm' is none of none, layer_norm"):
        replace(make_sae("relu"), normalization="batch_norm")
