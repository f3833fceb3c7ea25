"""A deterministic SAE: levels depend on rows and weights alone, whatever else a machine does with the sums."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import saecodec
from saecodec import sae as sae_module
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.encoder import MatchingPursuit
from saecodec.errors import InputError, MissingPieceError, UnsupportedError
from saecodec.exact_encoder import deterministic
from saecodec.features import Features, Side
from saecodec.fit_residual import choose_levels
from saecodec.fitting import activity
from saecodec.nonlinearity import (
    AbsTopK,
    Gated,
    GroupMax,
    JumpReLU,
    Nonlinearity,
    ReLU,
    SignedTopK,
    SignedTopKWithTies,
    TanhReLU,
    TopK,
)
from saecodec.normalization import KINDS, sequence_scales
from saecodec.quantizer import quantize
from saecodec.residual import Block, ResidualLayer
from saecodec.sae import SAE, Encoder
from saecodec.search import Search
from saecodec.side import SideQuantizer, scales_of, with_side
from saecodec.table_set import TableSet

Rows = npt.NDArray[np.float32]
RealData = tuple[SAE, npt.NDArray[np.float16]]
D, F = 24, 96


def _uniform(seed: int, *shape: int) -> Rows:
    return (np.random.default_rng(seed).integers(-(1 << 22), 1 << 22, shape) / (1 << 21)).astype(np.float32)


def _tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(_uniform(seed, *shape))


NONLINEARITIES: dict[str, Nonlinearity] = {
    "relu": ReLU(),
    "tanh_relu": TanhReLU(),
    "jumprelu": JumpReLU(_tensor(1, F) + 6),
    "topk": TopK(7),
    "ranked_topk": TopK(7, _tensor(2, F).abs() + 1),
    "signed_topk": SignedTopK(7),
    "signed_topk_with_ties": SignedTopKWithTies(7),
    "abstopk": AbsTopK(7),
    "groupmax": GroupMax(8),
    "gated": Gated(_tensor(3, F) / 4, _tensor(4, F), _tensor(5, F) - 6),
}


NOT_THE_SAME_EVERYWHERE = (
    (torch, "addmm matmul einsum exp tanh"),
    (torch.nn.functional, "embedding_bag linear"),
    (torch.Tensor, "__matmul__ matmul norm mean exp tanh"),
    (np.linalg, "norm pinv"),
    (np, "matmul dot mean"),
)


def made(nonlinearity: Nonlinearity, normalization: str = "none", dtype: torch.dtype = torch.float32) -> SAE:
    encoder = Encoder(_tensor(6, D, F).to(dtype), _tensor(7, F).to(dtype), nonlinearity, True)
    sae = SAE(_tensor(8, F, D), _tensor(9, D), encoder, "any", "tiny", normalization=normalization)
    return deterministic(sae)


@pytest.fixture(scope="module")
def x() -> Rows:
    """No float32 sum of products of these rows is exact; their sizes differ."""
    return _uniform(10, 400, D) * np.float32(1.7) * np.abs(_uniform(11, 400, 1))


@pytest.fixture
def another_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on, products are added up in another order, and functions are off in their last bits.

    No product may round at all: its sums are compared with those of long doubles, where a machine has any. What adds
    floats in an order of its own is not there, but for einsum, by which rows are checked: it is wrong. Operators of
    arrays stay, so pinv stands for the products with what it gives."""

    def change() -> None:
        mm, einsum = torch.mm, np.einsum

        def in_parts(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            cut = a.shape[1] // 3
            found = mm(a[:, cut:].flip(1), b[cut:].flip(0)) + mm(a[:, :cut], b[:cut])
            longer = a.numpy().astype(np.longdouble) @ b.numpy().astype(np.longdouble)
            np.testing.assert_array_equal(found.numpy().astype(np.longdouble), longer)
            return found

        monkeypatch.setattr(torch, "mm", in_parts)
        for name in ("exp", "exp2", "log2", "tanh"):
            right = getattr(np, name)
            monkeypatch.setattr(np, name, lambda *a, right=right, **k: right(*a, **k) * (1 + 2.0**-50))
        monkeypatch.setattr(np, "einsum", lambda *a, **k: einsum(*a, **k) * (1 + 2.0**-6))
        for owner, names in NOT_THE_SAME_EVERYWHERE:
            for name in names.split():

                def refuse(*_: object, name: str = name, **__: object) -> None:
                    raise AssertionError(f"{name} has other bits on other machines")

                monkeypatch.setattr(owner, name, refuse)

    return change


def fitted(sae: SAE, x: Rows, step: str = "0.4rms") -> Codec:
    seq = np.arange(len(x)) // 50 if sae.normalization == "sequence_norm" else None
    return Codec.fit(replace(sae, encoder=plain(sae)), x, step=step, seq=seq).with_sae(sae)


def plain(sae: SAE) -> Encoder:
    """The encoder that a deterministic one was made of."""
    encoder = sae.encoder
    assert isinstance(encoder, Encoder)
    return Encoder(encoder.w_enc, encoder.b_enc, encoder.nonlinearity, encoder.apply_b_dec_to_input)


def hashed(codes: Codes) -> str:
    digest = hashlib.sha256()
    for part in (codes.indptr, codes.latents, codes.levels, *(codes.columns[name] for name in sorted(codes.columns))):
        digest.update(np.asarray(part, "<i8").tobytes())
    return digest.hexdigest()[:16]


# -- the same everywhere -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NONLINEARITIES)
def test_levels_do_not_depend_on_the_machine(
    name: str, dtype: torch.dtype, x: Rows, another_machine: Callable[[], None]
) -> None:
    codec = fitted(made(NONLINEARITIES[name], dtype=dtype), x)
    data = codec.encode(x)
    another_machine()
    again = replace(codec, sae=made(NONLINEARITIES[name], dtype=dtype))
    assert again.encode(x) == data


@pytest.mark.parametrize("kind", KINDS)
def test_side_information_and_residual_levels_do_not_depend_on_the_machine(
    kind: str, x: Rows, another_machine: Callable[[], None]
) -> None:
    sae = made(NONLINEARITIES["topk"], kind)
    seq = np.arange(len(x)) // 50
    codec = Codec.fit(replace(sae, encoder=plain(sae)), x, step="0.4rms", residual=True, seq=seq).with_sae(sae)
    data = codec.encode(x, seq=seq)
    another_machine()
    # the layer's cached arrays are of the machine before
    again = replace(codec, sae=made(NONLINEARITIES["topk"], kind), residual=replace(codec.residual))  # type: ignore[type-var]
    assert again.encode(x, seq=seq) == data


@pytest.mark.parametrize("kind", KINDS)
def test_dense_activations_and_reconstructions_are_those_of_rows_one_by_one(
    kind: str, x: Rows, another_machine: Callable[[], None]
) -> None:
    sae, rows = made(NONLINEARITIES["topk"], kind), torch.from_numpy(x[:60])
    seq = np.arange(60) if kind == "sequence_norm" else None
    scales = scales_of(sae, [x[:60]], seq)
    features = sae.features(x[:60], 0, None if scales is None else Side(scales))
    expected = sae.rows(features)
    another_machine()
    sae = made(NONLINEARITIES["topk"], kind)
    sequences = rows[:, None]
    assert int((sae.encode(sequences) != 0).sum()) == features.nnz
    torch.testing.assert_close(sae.reconstruct(sequences)[:, 0], expected, rtol=0, atol=0)
    alone = torch.cat([sae.reconstruct(row[None]) for row in rows])
    torch.testing.assert_close(alone, expected, rtol=0, atol=0)
    assert sae.reconstruct(rows[:0]).shape == (0, D)


@given(st.permutations(range(60)))
def test_permuting_rows_permutes_their_levels(order: list[int]) -> None:
    sae, rows = made(NONLINEARITIES["topk"]), _uniform(12, 60, D)
    codes = quantize(sae.features(rows), sae.norms, 0.3)
    permuted = quantize(sae.features(rows[order]), sae.norms, 0.3)
    np.testing.assert_array_equal(permuted.to_dense(), codes.to_dense()[order])


def test_the_rms_of_activations_does_not_depend_on_their_order() -> None:
    sae = made(NONLINEARITIES["topk"])
    values, latents = _uniform(13, 5000).ravel() ** 9, np.arange(5000) % F
    orders = [np.random.default_rng(i).permutation(5000) for i in range(20)]

    def rms(order: npt.NDArray[np.int64]) -> float:
        return activity(sae, [Features(np.array([0, 5000]), latents[order].astype(np.int32), values[order])])[0]

    assert len({rms(order) for order in orders}) == 1
    squares = (values * sae.norms[latents]) ** 2
    assert len({math.sqrt(squares[order].sum() / 5000) for order in orders}) > 1


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_the_scale_of_a_sequence_does_not_depend_on_the_order_of_its_rows(order: tuple[int, ...]) -> None:
    """A tie of two float32s, and what decides it, which no sum has that begins with the largest."""
    norms = np.array([1 + 2.0**-24, 2.0**-54, 2.0**-54, 2.0**-53])[list(order)]
    np.testing.assert_array_equal(sequence_scales(norms, np.zeros(4, int), 16), np.float32(1 + 2.0**-23) / 16)


@pytest.mark.parametrize("n_threads,cells", [(1, 1 << 21), (1, 1), (2, 1 << 18)])
def test_bytes_do_not_depend_on_threads_nor_on_batches(
    n_threads: int,
    cells: int,
    minilm: RealData,
    torch_threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sae, rows = deterministic(minilm[0]), minilm[1][:400].astype(np.float32)
    torch_threads(2)
    codec = Codec.fit(sae, rows)
    whole = codec.quantize(rows)
    torch_threads(n_threads)
    monkeypatch.setattr(sae_module, "_BATCH_CELLS", cells)
    assert hashed(codec.quantize(rows)) == hashed(whole)
    assert Codec.fit(sae, rows).to_bytes() == codec.to_bytes()
    for chunk_rows in (64, 400):
        parts = list(codec.codes(codec.encode(rows, chunk_rows=chunk_rows)))
        assert hashed(Codes.concatenate(parts, sae.n_latents)) == hashed(whole)


RECORDED = {
    "minilm": "66e76502565f97db",
    "mnist": "aa01d09b89c8e45f",
    "tanh_relu": "d67478f59435e4eb",
    "gated": "2e76bf113f1bfe86",
    "ranked_topk": "2dcb73294b00a702",
    "layer_norm": "f31e8e6d8a2fd0f2",
    "row_norm": "0ba7afb94ac8446d",
    "sequence_norm": "edf923c717a7f01c",
    "residual": "a570361078134eec",
}


def residual_layer() -> ResidualLayer:
    """Three blocks of a basis that is orthonormal but for the rounding of its integers."""
    two = np.array([[1, 1], [1, -1]])
    block = Block(11585 * np.kron(np.kron(two, two), two))
    tables = TableSet(np.arange(D) % 3, np.array([[9, 7, 7, 2], [9, 4, 3, 1], [3, 3, 3, 3]]), 1)
    return ResidualLayer(0.21, 2.0**-15, (block,) * 3, np.arange(D) - 9, tables, np.zeros((3, 16), np.int64))


@pytest.fixture
def codes_of(minilm: RealData, mnist: RealData, x: Rows) -> Callable[[str], Codes]:
    def found(name: str) -> Codes:
        if name in ("minilm", "mnist"):
            sae, rows = minilm if name == "minilm" else mnist
            sae = deterministic(sae)
            return quantize(sae.features(rows.astype(np.float32)), sae.norms, 0.05)
        if name == "residual":
            sae = made(NONLINEARITIES["topk"])
            coordinates = residual_layer().coordinates(x - sae.rows(sae.features(x)).numpy(), deterministic=True)
            return Codes.from_dense(choose_levels(residual_layer(), coordinates, 0.1))
        sae = made(NONLINEARITIES.get(name, NONLINEARITIES["topk"]), name if name in KINDS else "none")
        if name not in KINDS:
            return quantize(sae.features(x), sae.norms, 0.05)
        scales = scales_of(sae, [x], np.arange(len(x)) // 50)
        features = sae.features(x, 0, None if scales is None else Side(scales))
        return with_side(quantize(features, sae.norms, 0.05), features, SideQuantizer(name, 97, 0.7, 0.01, 0.1))

    return found


@pytest.mark.parametrize("name", RECORDED)
def test_levels_are_those_that_were_recorded(name: str, codes_of: Callable[[str], Codes]) -> None:
    """On any machine: what is recorded here was found on one (docs/determinism.md)."""
    assert hashed(codes_of(name)) == RECORDED[name]


# -- what it is --------------------------------------------------------------------------------------------------------


def test_it_is_the_same_sae_and_nearly_the_same_levels(minilm: RealData) -> None:
    sae, rows = minilm[0], minilm[1].astype(np.float32)
    exactly = deterministic(sae)
    assert exactly.deterministic
    assert not sae.deterministic
    assert (exactly.decoder_id, exactly.sae_id) == (sae.decoder_id, sae.sae_id)
    assert deterministic(exactly) is exactly
    codec = Codec.fit(sae, rows)
    a, b = (of.quantize(rows).to_dense() for of in (codec, codec.with_sae(exactly)))
    assert np.count_nonzero(a != b) <= 1e-4 * np.count_nonzero(a)
    features = sae.features(rows[:100])
    np.testing.assert_allclose(exactly.rows(features).numpy(), sae.rows(features).numpy(), atol=1e-5)


def test_residual_levels_are_nearly_those_of_the_default(x: Rows) -> None:
    sae = made(NONLINEARITIES["topk"])
    codec = Codec.fit(replace(sae, encoder=plain(sae)), x, residual=True)
    a, b = (next(part.residual for part in of.layers(x)) for of in (codec, codec.with_sae(sae)))
    assert a is not None
    assert b is not None
    assert np.count_nonzero(a) > 0
    assert np.count_nonzero(a != b) <= 1e-3 * a.size


def test_of_equal_activations_the_first_are_taken() -> None:
    w_enc = torch.ones(2, 9)
    w_enc[:, 4] = 2
    encoder = Encoder(w_enc, torch.zeros(9), TopK(3), False)
    sae = deterministic(SAE(torch.ones(9, 2), torch.zeros(2), encoder, "topk"))
    np.testing.assert_array_equal(sae.features(np.ones((1, 2), np.float32)).latents, [0, 1, 4])
    encoder = replace(encoder, nonlinearity=AbsTopK(3), b_enc=-4.0 * (torch.arange(9) % 2))
    sae = deterministic(SAE(torch.ones(9, 2), torch.zeros(2), encoder, "abstopk"))
    np.testing.assert_array_equal(sae.features(np.ones((1, 2), np.float32)).values, [2, -2, 4])


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused() -> Iterator[tuple[str, SAE, type[Exception]]]:
    sae = made(ReLU())
    pursuit = MatchingPursuit(3, 0.0, False, True)
    yield "matching_pursuit", replace(sae, encoder=pursuit), UnsupportedError
    glu = replace(plain(sae), w_glu=_tensor(1, D, F), b_glu=_tensor(2, F))
    yield "gated linear unit", replace(sae, encoder=glu), UnsupportedError
    yield "the whole SAE 'tiny'", replace(sae, encoder=None), MissingPieceError


@pytest.mark.parametrize("case", list(refused()), ids=lambda case: case[0])
def test_what_has_no_deterministic_arithmetic_is_refused_by_name(case: tuple[str, SAE, type[Exception]]) -> None:
    text, sae, kind = case
    with pytest.raises(kind, match=text):
        saecodec.deterministic(sae)


def test_searches_targets_and_fitted_layers_are_refused(x: Rows) -> None:
    sae = made(NONLINEARITIES["topk"])
    with pytest.raises(InputError, match="--search none"):
        Search(sae, "refit")
    x = np.concatenate([x, x])
    for asked, named in (
        ({"nmse": 0.5}, "what meets NMSE 0.5"),
        ({"search": "refit"}, "the search refit"),
        ({"residual": True}, "a residual layer"),
        ({"prior": "context"}, "a context prior"),
    ):
        with pytest.raises(InputError, match=f"{named} .*fit a codec without --deterministic"):
            Codec.fit(sae, x, **asked)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the SAE 'tiny' needs"):
        Codec.fit(made(NONLINEARITIES["topk"], "layer_norm"), x)
    with pytest.raises(InputError, match="--device cpu"):
        sae.encoder.to(torch.device("cuda"))  # type: ignore[union-attr]
