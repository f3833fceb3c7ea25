"""What removing a nonzero costs is what decoding really costs without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from saecodec import removal
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.encoder import Encoder
from saecodec.features import Features
from saecodec.nonlinearity import AbsTopK
from saecodec.normalization import KINDS
from saecodec.removal import removal_errors
from saecodec.sae import SAE

Rows = npt.NDArray[np.float32]
MakeSAE = Callable[..., SAE]


@pytest.fixture(scope="module")
def x() -> Rows:
    """(60, 8): sizes and means of their own, three sequences; one row is zero."""
    rng = np.random.default_rng(0)
    size = np.repeat([0.5, 2, 1], 20)[:, None] * rng.uniform(0.5, 2, (60, 1))
    rows = (size * (rng.normal(size=(60, 8)) + 0.3 * rng.normal(size=(60, 1)))).astype(np.float32)
    rows[7] = 0
    return rows


def without(codes: Codes, latent: int) -> Codes:
    dense = codes.to_dense()
    dense[:, latent] = 0
    return Codes.from_dense(dense, codes.columns)


def squared_error(x: Rows, x_hat: Rows) -> npt.NDArray[np.float64]:
    return np.square(x.astype(np.float64) - x_hat).sum(1)


def check(codec: Codec, x: Rows, seq: npt.NDArray[np.int64] | None = None) -> None:
    assert codec.sae is not None
    (layers,) = codec.chunks(codec.encode(x, seq=seq))
    codes, x_hat = layers.codes, codec.reconstruct(layers.codes, layers.residual)
    found = removal_errors(codec.sae, codec.features(codes), x, x_hat)
    assert found.shape == (codes.nnz,)
    error, rows = squared_error(x, x_hat), codes.rows()
    rises = np.zeros(0)
    for latent in np.unique(codes.latents):
        rise = squared_error(x, codec.reconstruct(without(codes, latent), layers.residual)) - error
        here = codes.latents == latent
        np.testing.assert_allclose(found[here], rise[rows[here]], rtol=1e-4, atol=1e-4)
        assert np.delete(rise, rows[here]) == pytest.approx(0, abs=1e-9)
        rises = np.append(rises, rise[rows[here]])
    assert len(rises) == codes.nnz > 50
    assert rises.max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("residual", [False, True])
def test_it_is_what_decoding_without_the_latent_adds(make_sae: MakeSAE, x: Rows, kind: str, residual: bool) -> None:
    sae = replace(make_sae(), normalization=kind)
    seq = np.repeat([0, 1, 2], 20) if kind == "sequence_norm" else None
    check(Codec.fit(sae, x, "0.5rms", seq=seq, residual=residual), x, seq)


def test_signed_activations_and_directions_of_any_norm(make_sae: MakeSAE, x: Rows) -> None:
    plain = make_sae()
    w_dec = plain.w_dec * torch.linspace(0.2, 3, len(plain.w_dec))[:, None]
    encoder = Encoder(plain.w_dec.T.contiguous(), torch.zeros(len(w_dec)), AbsTopK(4), True)
    sae = SAE(w_dec, plain.b_dec, encoder, "signed", "signed")
    codec = Codec.fit(sae, x)
    assert (codec.quantize(x).levels < 0).any()
    check(codec, x)


def test_a_latent_that_only_does_harm_has_a_negative_price(sae: SAE, x: Rows) -> None:
    features = Features(np.array([0, 1]), np.array([3], np.int32), np.array([2.0], np.float32))
    row = sae.b_dec.numpy()[None]  # the right answer without any latent
    (rise,) = removal_errors(sae, features, row, sae.rows(features).numpy())
    assert rise == pytest.approx(-4 * float(sae.w_dec[3].square().sum()), rel=1e-5)


def test_batches_do_not_matter(sae: SAE, x: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = Codec.fit(sae, x)
    codes = codec.quantize(x)
    arguments = (sae, codec.features(codes), x, codec.reconstruct(codes))
    whole = removal_errors(*arguments)
    for cells in (1, 7 * sae.n_latents, 60 * sae.n_latents):
        monkeypatch.setattr(removal, "_CELLS", cells)
        np.testing.assert_allclose(removal_errors(*arguments), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_rows", [0, 1, 4])
def test_rows_without_nonzeros_give_nothing(sae: SAE, n_rows: int) -> None:
    features = Features(np.zeros(n_rows + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    x = np.ones((n_rows, sae.width), np.float32)
    assert removal_errors(sae, features, x, x).shape == (0,)
