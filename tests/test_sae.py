"""The SAE: its sparse path is its dense path, its inputs are checked, and its identity is its content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saecodec.errors import CheckpointError, InputError, MissingPieceError
from saecodec.features import Features
from saecodec.nonlinearity import JumpReLU, ReLU
from saecodec.sae import SAE, Encoder

MakeSAE = Callable[..., SAE]
ExactRows = Callable[..., NDArray[np.float32]]


def gaussian_sae(kind: str, make_sae: MakeSAE, seed: int = 0) -> SAE:
    """The tiny SAE with weights that are not exact."""
    made = make_sae(kind)
    generator = torch.Generator().manual_seed(seed)
    assert made.encoder is not None
    encoder = replace(
        made.encoder, w_enc=torch.randn(8, 24, generator=generator), b_enc=torch.randn(24, generator=generator) - 1
    )
    return replace(made, w_dec=torch.randn(24, 8, generator=generator), encoder=encoder)


def dense_z(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """z by the equations, dense, in the encoder's precision."""
    encoder = sae.encoder
    assert encoder is not None
    dtype = encoder.w_enc.dtype
    u = x.to(dtype) - sae.b_dec.to(dtype) if encoder.apply_b_dec_to_input else x.to(dtype)
    h = (u @ encoder.w_enc + encoder.b_enc).float()
    p = encoder.nonlinearity.tensors()
    if sae.architecture == "relu":
        return h.relu()
    if sae.architecture == "jumprelu":
        return h.relu() * (h > p["threshold"])
    if sae.architecture == "gated":
        return (h + p["b_gate"] > 0) * (h * p["r_mag"].exp() + p["b_mag"]).relu()
    k = min(int(encoder.nonlinearity.config()["k"]), sae.n_latents)
    values, latents = h.topk(k, dim=1)
    return torch.zeros_like(h).scatter(1, latents, values.relu())


def as_dense(features: Features, n_latents: int) -> torch.Tensor:
    out = np.zeros((features.n_rows, n_latents), np.float32)
    out[np.repeat(np.arange(features.n_rows), np.diff(features.indptr)), features.latents] = features.values
    return torch.from_numpy(out)


# -- encoding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_features_are_the_nonzeros_of_the_dense_activations(
    make_sae: MakeSAE, exact_rows: ExactRows, architecture: str, apply_b_dec: bool, dtype: torch.dtype
) -> None:
    sae = make_sae(architecture, apply_b_dec=apply_b_dec, dtype=dtype)
    x = exact_rows(300)
    features = sae.features(x)
    assert (features.indptr.dtype, features.latents.dtype, features.values.dtype) == (np.int64, np.int32, np.float32)
    assert 0 < features.nnz < 300 * 24
    z = dense_z(sae, torch.from_numpy(x))
    ties = architecture == "topk"  # equal pre-activations: which of them is the k-th is torch's choice
    if ties:
        torch.testing.assert_close(as_dense(features, 24).sort(1).values, z.sort(1).values, rtol=0, atol=0)
    else:
        torch.testing.assert_close(as_dense(features, 24), z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sae.encode(torch.from_numpy(x)), as_dense(features, 24), rtol=0, atol=0)


def test_weights_that_are_not_exact_agree_too(make_sae: MakeSAE, architecture: str) -> None:
    sae = gaussian_sae(architecture, make_sae)
    x = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32)
    torch.testing.assert_close(as_dense(sae.features(x), 24), dense_z(sae, torch.from_numpy(x)), rtol=1e-5, atol=1e-5)


def test_subtracting_b_dec_first_changes_the_features(make_sae: MakeSAE, exact_rows: ExactRows) -> None:
    on, off = make_sae(apply_b_dec=True), make_sae(apply_b_dec=False)
    assert on.features(exact_rows(50)).nnz != off.features(exact_rows(50)).nnz


def test_batches_of_the_encoder_change_nothing(
    make_sae: MakeSAE, exact_rows: ExactRows, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, x = make_sae(architecture), exact_rows(300)
    whole = sae.features(x)
    monkeypatch.setattr(SAE, "batch_rows", 7)
    parts = sae.features(x)
    for name in ("indptr", "latents", "values"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_no_rows_have_no_features(make_sae: MakeSAE, architecture: str) -> None:
    features = make_sae(architecture).features(np.zeros((0, 8), np.float32))
    assert (features.n_rows, features.nnz, features.indptr.tolist()) == (0, 0, [0])


@pytest.mark.parametrize("leading", [(), (1,), (0,), (5,), (2, 3), (2, 0, 3)])
def test_leading_dimensions_are_kept(make_sae: MakeSAE, architecture: str, leading: tuple[int, ...]) -> None:
    sae = make_sae(architecture)
    x = torch.randn(*leading, 8)
    z = sae.encode(x)
    assert z.shape == (*leading, 24)
    assert sae.decode(z).shape == sae.reconstruct(x).shape == (*leading, 8)
    torch.testing.assert_close(sae.reconstruct(x), sae.decode(z), rtol=0, atol=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_refused_by_its_number(sae: SAE, exact_rows: ExactRows, bad: float) -> None:
    x = exact_rows(100)
    x[[17, 60], 3] = bad
    with pytest.raises(InputError, match=r"row 17 holds NaN or infinity \(2 such rows among 100\)"):
        sae.features(x)
    with pytest.raises(InputError, match="row 5017 "):
        sae.features(x, first_row=5000)


@pytest.mark.parametrize("size", [1e30, -1e30, 1e19])
def test_a_row_whose_squares_overflow_is_refused_and_not_called_nan(
    sae: SAE, exact_rows: ExactRows, size: float
) -> None:
    x = exact_rows(10)
    x[3] = size
    with pytest.raises(InputError, match=r"row 3 has a norm above 1\.8e19"):
        sae.features(x)


def test_a_large_row_is_encoded(sae: SAE, exact_rows: ExactRows) -> None:
    x = exact_rows(10)
    x[3] = 1e18
    assert np.isfinite(sae.features(x).values).all()


@pytest.mark.parametrize("shape", [(3, 7), (3, 9), (8,), (2, 3, 8), (3, 0)])
def test_rows_of_another_shape_are_refused(sae: SAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="codes rows of 8 values, got an array of shape"):
        sae.features(np.zeros(shape, np.float32))


def test_a_decoder_alone_cannot_encode_but_decodes(sae: SAE) -> None:
    alone = replace(sae, encoder=None)
    with pytest.raises(MissingPieceError, match="'tiny-relu'; only its decoder"):
        alone.features(np.ones((2, 8), np.float32))
    torch.testing.assert_close(alone.decode(torch.ones(2, 24)), sae.decode(torch.ones(2, 24)), rtol=0, atol=0)
    assert alone.decoder_id == sae.decoder_id
    assert alone.sae_id is None
    assert not alone.signed


def test_read_only_rows_are_encoded_without_a_warning(sae: SAE, exact_rows: ExactRows) -> None:
    x = exact_rows(10)
    x.setflags(write=False)
    sae.features(x)


# -- decoding ----------------------------------------------------------------------------------------------------------


def test_rows_of_features_are_the_dense_decoding(make_sae: MakeSAE, exact_rows: ExactRows, architecture: str) -> None:
    sae = make_sae(architecture)
    features = sae.features(exact_rows(300))
    rows = sae.rows(features)
    assert rows.dtype == torch.float32
    exact = architecture != "gated"
    torch.testing.assert_close(
        rows, sae.decode(as_dense(features, 24)), rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5
    )


def test_rows_without_active_latents_are_b_dec(sae: SAE) -> None:
    nothing = Features(np.zeros(4, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    torch.testing.assert_close(sae.rows(nothing), sae.b_dec.expand(3, 8), rtol=0, atol=0)
    none = Features(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    assert sae.rows(none).shape == (0, 8)


def test_decoding_leaves_b_dec_alone(sae: SAE, exact_rows: ExactRows) -> None:
    before = sae.b_dec.clone()
    sae.rows(sae.features(exact_rows(5)))
    torch.testing.assert_close(sae.b_dec, before, rtol=0, atol=0)


def test_norms_are_those_of_the_decoder_directions_in_float64(sae: SAE) -> None:
    assert sae.norms.dtype == np.float64
    np.testing.assert_allclose(sae.norms, np.linalg.norm(sae.w_dec.numpy().astype(np.float64), axis=1), rtol=1e-15)
    huge = replace(sae, w_dec=sae.w_dec * 1e30)
    assert np.isfinite(huge.norms).all()


# -- what an SAE is made of --------------------------------------------------------------------------------------------


def broken(sae: SAE, **changes: Any) -> SAE:
    assert sae.encoder is not None
    outer = {key: value for key, value in changes.items() if key in ("w_dec", "b_dec")}
    inner = {key: value for key, value in changes.items() if key not in outer}
    return replace(sae, **outer, encoder=replace(sae.encoder, **inner))


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"b_dec": torch.zeros(9)}, r"tiny-relu: b_dec has shape \(9,\), expected \(8,\)"),
        ({"w_enc": torch.zeros(24, 8)}, r"w_enc has shape \(24, 8\), expected \(8, 24\)"),
        ({"b_enc": torch.zeros(1)}, "b_enc has shape"),
        ({"nonlinearity": JumpReLU(torch.zeros(1))}, "threshold has shape"),
        ({"w_dec": torch.full((24, 8), float("nan"))}, "w_dec must be finite"),
        ({"b_enc": torch.full((24,), float("inf"))}, "b_enc must be finite"),
        ({"w_dec": torch.zeros(24, 8, dtype=torch.float64)}, "w_dec must be finite float32, found torch.float64"),
        ({"w_dec": torch.zeros(24, 8, dtype=torch.float16)}, "w_dec must be finite float32, found torch.float16"),
        ({"nonlinearity": JumpReLU(torch.zeros(24, dtype=torch.float16))}, "threshold must be finite float32"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(sae: SAE, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        broken(sae, **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_config_and_tensors_make_the_sae_again(make_sae: MakeSAE, architecture: str, dtype: torch.dtype) -> None:
    sae = make_sae(architecture, dtype=dtype, apply_b_dec=False)
    again = SAE.from_tensors(sae.config(), sae.tensors(), "again")
    assert again.config() == sae.config()
    assert (again.sae_id, again.decoder_id, again.name) == (sae.sae_id, sae.decoder_id, "again")
    assert again.encoder is not None
    assert again.encoder.w_enc.dtype == dtype
    x = torch.randn(20, 8)
    torch.testing.assert_close(again.reconstruct(x), sae.reconstruct(x), rtol=0, atol=0)


def test_decoder_tensors_make_the_decoder_again(sae: SAE) -> None:
    again = SAE.from_tensors(sae.config(), sae.decoder_tensors(), "decoder")
    assert again.encoder is None
    assert again.decoder_id == sae.decoder_id
    assert SAE.from_tensors(again.config(), again.tensors(), "decoder").decoder_id == sae.decoder_id


def test_a_remade_sae_does_not_share_memory_with_its_tensors(sae: SAE) -> None:
    tensors = sae.decoder_tensors()
    copy = {key: value.copy() for key, value in tensors.items()}
    again = SAE.from_tensors(sae.config(), copy, "copy")
    copy["w_dec"][:] = 0
    assert again.decoder_id == sae.decoder_id


@pytest.mark.parametrize("missing", ["w_dec", "b_dec", "b_enc"])
def test_missing_tensors_are_refused_by_name(sae: SAE, missing: str) -> None:
    tensors = sae.tensors()
    del tensors[missing]
    with pytest.raises(CheckpointError, match=missing):
        SAE.from_tensors(sae.config(), tensors, "broken")


def test_an_encoder_without_a_nonlinearity_is_refused(sae: SAE) -> None:
    with pytest.raises(CheckpointError, match="nonlinearity"):
        SAE.from_tensors({}, sae.tensors(), "broken")


@pytest.mark.parametrize("shape", [(8,), (2, 3, 8)])
def test_a_decoder_that_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match="w_dec"):
        SAE.from_tensors({}, {"w_dec": np.zeros(shape, np.float32), "b_dec": np.zeros(8, np.float32)}, "broken")


def test_an_sae_says_what_it_is(sae: SAE) -> None:
    assert repr(sae) == "SAE('tiny-relu', relu, d=8, F=24)"
    assert (sae.width, sae.n_latents, sae.nbytes) == (8, 24, 4 * (2 * 8 * 24 + 8 + 24))


# -- identity ----------------------------------------------------------------------------------------------------------


W_ENC, B_ENC = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, -1.0]]), torch.tensor([0.0, -0.5, 0.125])


def fixed_sae(**changes: Any) -> SAE:
    """d = 2, F = 3, numbers that anyone can type."""
    parts: dict[str, Any] = {
        "w_dec": torch.tensor([[1.0, 0.0], [0.0, -2.0], [0.5, 0.25]]),
        "b_dec": torch.tensor([0.0, 1.0]),
        "w_enc": W_ENC,
        "b_enc": B_ENC,
        "nonlinearity": JumpReLU(torch.tensor([0.0, 0.5, 1.0])),
        "apply": True,
        "name": "fixed",
        "architecture": "jumprelu",
    } | changes
    encoder = Encoder(parts["w_enc"], parts["b_enc"], parts["nonlinearity"], parts["apply"])
    return SAE(parts["w_dec"], parts["b_dec"], encoder, parts["architecture"], parts["name"])


def test_identities_are_pinned() -> None:
    assert fixed_sae().decoder_id == DECODER_ID
    assert fixed_sae().sae_id == SAE_ID


DECODER_ID = "536603fca1185d14bdd604fac76ad10e84f2d6f7b7b817369d01ed0423dfdda6"
SAE_ID = "d364e14c5ccaa9e45d7e10effdf2f08e7d1c584864fc2b255b0073978ddbab87"


def test_the_decoder_id_is_the_hash_that_the_format_describes() -> None:
    import hashlib

    text = b'{"kind":"decoder","shapes":{"b_dec":[2],"w_dec":[3,2]}}'
    numbers = np.array([0, 1, 1, 0, 0, -2, 0.5, 0.25], "<f4")  # b_dec, then w_dec
    assert fixed_sae().decoder_id == hashlib.sha256(text + numbers.tobytes()).hexdigest()


def test_identities_ignore_names_devices_layouts_and_the_sign_of_zero() -> None:
    sae = fixed_sae()
    negative = torch.where(sae.w_dec == 0, torch.tensor(-0.0), sae.w_dec)
    assert torch.signbit(negative).any()
    others = [
        fixed_sae(name="another"),
        fixed_sae(w_dec=negative, b_enc=torch.tensor([-0.0, -0.5, 0.125])),
        fixed_sae(w_dec=sae.w_dec.t().contiguous().t()),
        sae.to("cpu"),
        sae.to("auto").to("cpu"),
        replace(sae, source="elsewhere", metadata={"model": "x"}),
    ]
    for other in others:
        assert (other.decoder_id, other.sae_id) == (sae.decoder_id, sae.sae_id)


@pytest.mark.parametrize(
    "changes",
    [
        {"w_enc": torch.ones(2, 3)},
        {"b_enc": torch.zeros(3)},
        {"nonlinearity": JumpReLU(torch.tensor([0.0, 0.5, 1.5]))},
        {"nonlinearity": ReLU()},
        {"apply": False},
        {
            "w_enc": W_ENC.half(),
            "b_enc": B_ENC.half(),
        },
    ],
    ids=lambda changes: ",".join(changes),
)
def test_another_encoder_is_another_sae_with_the_same_decoder(changes: dict[str, Any]) -> None:
    other = fixed_sae(**changes)
    assert other.decoder_id == fixed_sae().decoder_id
    assert other.sae_id != fixed_sae().sae_id


@pytest.mark.parametrize(
    "changes", [{"w_dec": torch.ones(3, 2)}, {"b_dec": torch.tensor([0.0, 1.0000001])}], ids=lambda c: ",".join(c)
)
def test_another_decoder_is_another_identity(changes: dict[str, Any]) -> None:
    other = fixed_sae(**changes)
    assert other.decoder_id != fixed_sae().decoder_id
    assert other.sae_id != fixed_sae().sae_id
