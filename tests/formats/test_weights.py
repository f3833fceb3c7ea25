"""SAE weights in a frame: every architecture comes back bit by bit, and a payload that lies is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from saecodec.decoder_precision import PRECISIONS, with_precision
from saecodec.errors import CheckpointError, FormatError, SaecodecError, UnsupportedError
from saecodec.formats import weights
from saecodec.formats.weights import pack_weights, unpack_weights
from saecodec.frames import pack_record, unpack_record
from saecodec.integer_weights import pack_integers
from saecodec.sae import SAE, Encoder
from saecodec.wire import ByteReader, blob

ARCHITECTURES = ["standard", "jumprelu", "topk", "gated"]
MakeSAE = Callable[..., SAE]


DECODER = {"b_dec": [1], "w_dec": [2, 1]}


def payload(
    values: Any = (1.0, 2.0, 3.0), shapes: Any = DECODER, config: Any = MappingProxyType({}), **more: Any
) -> bytes:
    """A payload of any record, around correctly packed values."""
    record = {
        "config": dict(config) if isinstance(config, Mapping) else config,
        "name": "n",
        "source": "s",
        "shapes": shapes,
        **more,
    }
    planes = np.ascontiguousarray(np.array(values, "<f4").view(np.uint8).reshape(-1, 4).T).tobytes()
    return blob(pack_record({key: value for key, value in record.items() if value is not None})) + compress(planes)


def unpack(data: bytes, n_latents: int | None = None) -> SAE:
    """`unpack_weights` for as many latents as the record says."""
    if n_latents is None:
        try:
            (n_latents, *_) = unpack_record(ByteReader(data, "test").blob(), "test")["shapes"]["w_dec"]
        except (SaecodecError, LookupError, TypeError, ValueError):
            n_latents = 2
    return unpack_weights(data, "test", n_latents=n_latents)


def compress(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def test_the_smallest_payload_is_a_decoder() -> None:
    sae = unpack(payload())
    assert sae.w_dec.tolist() == [[2.0], [3.0]]
    assert sae.b_dec.tolist() == [1.0]
    assert (sae.name, sae.source, sae.architecture, sae.encoder) == ("n", "s", "unknown", None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_whole_sae_comes_back_bit_by_bit(make_sae: MakeSAE, architecture: str, seed: int) -> None:
    sae = make_sae(architecture, seed)
    back = unpack(pack_weights(sae, decoder_only=False))
    assert (back.sae_id, back.decoder_id, back.config()) == (sae.sae_id, sae.decoder_id, sae.config())
    assert (back.name, back.source, back.architecture) == (sae.name, sae.source, sae.architecture)
    for key, tensor in sae.tensors().items():
        assert tensor.tobytes() == back.tensors()[key].tobytes()
    x = np.random.default_rng(1).normal(size=(9, sae.width)).astype(np.float32)
    torch.testing.assert_close(back.encode(torch.from_numpy(x)), sae.encode(torch.from_numpy(x)), rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_decoder_alone_has_no_encoder_and_the_same_identity(make_sae: MakeSAE, architecture: str) -> None:
    sae = make_sae(architecture)
    back = unpack(pack_weights(sae, decoder_only=True))
    assert back.encoder is None
    assert back.sae_id is None
    assert (back.decoder_id, back.architecture) == (sae.decoder_id, architecture)
    assert pack_weights(back, decoder_only=False) == pack_weights(sae, decoder_only=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_encoder_of_half_precision_stays_one(make_sae: MakeSAE, dtype: torch.dtype) -> None:
    sae = make_sae()
    assert sae.encoder is not None
    half = Encoder(sae.encoder.w_enc.to(dtype), sae.encoder.b_enc.to(dtype), sae.encoder.nonlinearity, True)
    sae = replace(sae, encoder=half)
    back = unpack(pack_weights(sae, decoder_only=False))
    assert back.encoder is not None
    assert back.encoder.w_enc.dtype == dtype
    assert back.sae_id == sae.sae_id


def test_odd_values_keep_their_bits() -> None:
    odd = np.array([-0.0, 1e-45, -1e-38, 3.4e38, 0.1, -3.0], np.float32)
    sae = SAE(torch.from_numpy(odd.reshape(3, 2)), torch.from_numpy(odd[:2].copy()), None, "unknown")
    back = unpack(pack_weights(sae, decoder_only=True))
    assert back.w_dec.numpy().tobytes() == odd.tobytes()
    assert back.b_dec.numpy().tobytes() == odd[:2].tobytes()


def test_weights_rounded_to_bfloat16_take_less_than_two_thirds(make_sae: MakeSAE) -> None:
    sae = make_sae(width=64, latents=256)
    rounded = replace(sae, w_dec=sae.w_dec.bfloat16().float())
    full, short = (len(pack_weights(one, decoder_only=True)) for one in (sae, rounded))
    assert short < 2 / 3 * full < full < 1.01 * 4 * 64 * 257


def test_the_same_weights_pack_to_the_same_bytes(make_sae: MakeSAE) -> None:
    assert pack_weights(make_sae("gated"), decoder_only=False) == pack_weights(make_sae("gated"), decoder_only=False)


def test_a_cut_payload_is_refused(make_sae: MakeSAE) -> None:
    data = pack_weights(make_sae(), decoder_only=False)
    for size in [*range(0, len(data) - 1, 29), len(data) - 1]:
        with pytest.raises(FormatError, match="test"):
            unpack(data[:size])


def test_bytes_left_over_are_refused() -> None:
    for extra in (b"\0", compress(b""), compress(b"more")):
        with pytest.raises(FormatError):
            unpack(payload() + extra)


def test_a_zstd_frame_of_another_size_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.zstandard, "ZstdDecompressor", None)
    head = payload(values=())[: -len(compress(b""))]
    for data in (b"", bytes(8), bytes(16), bytes(1 << 20)):
        with pytest.raises(FormatError, match="do not unpack to 12 bytes"):
            unpack(head + compress(data))


def test_a_zstd_frame_that_hides_its_size_is_refused() -> None:
    head = payload(values=())[: -len(compress(b""))]
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(12))
    with pytest.raises(FormatError, match="do not unpack to 12 bytes"):
        unpack(head + hidden)


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param(None, id="missing"),
        pytest.param({}, id="none"),
        pytest.param([[1], [2, 1]], id="a list"),
        pytest.param({"b_dec": [1], "w_dec": [2, 1, 1]}, id="three dimensions"),
        pytest.param({"b_dec": [], "w_dec": [2, 1]}, id="no dimensions"),
        pytest.param({"b_dec": [0], "w_dec": [3, 1]}, id="zero"),
        pytest.param({"b_dec": [-1], "w_dec": [-2, -1]}, id="negative"),
        pytest.param({"b_dec": [True], "w_dec": [2, 1]}, id="bool"),
        pytest.param({"b_dec": [1.0], "w_dec": [2, 1]}, id="fractional"),
        pytest.param({"b_dec": 1, "w_dec": [2, 1]}, id="a number"),
        pytest.param({"b_dec": [1], "w_dec": [1 << 40, 1 << 40]}, id="2^80"),
        pytest.param({"b_dec": [1], "w_dec": [1 << 34, 1]}, id="64 GiB"),
        pytest.param({"b_dec": [1], "w_dec": [3, 1]}, id="one value more"),
        pytest.param({f"t{i:02}": [1] for i in range(17)}, id="17 tensors"),
    ],
)
def test_shapes_that_are_not_possible_are_refused(shapes: Any) -> None:
    with pytest.raises(FormatError):
        unpack(payload(shapes=shapes))


@pytest.mark.parametrize("shapes", [{"b_dec": [1], "w_enc": [2, 1]}, {"b_dec": [1], "w_dec": [2]}])
def test_a_decoder_without_its_directions_is_refused(shapes: dict[str, list[int]]) -> None:
    with pytest.raises(FormatError, match="w_dec has shape"):
        unpack(payload(shapes=shapes))


def test_a_decoder_without_its_bias_is_refused() -> None:
    with pytest.raises(CheckpointError, match="w_dec and b_dec are needed"):
        unpack(payload(shapes={"c_dec": [1], "w_dec": [2, 1]}))


def test_a_decoder_of_another_size_than_the_files_is_refused() -> None:
    assert unpack_weights(payload(), "test", n_latents=2, width=1).n_latents == 2
    for n_latents, width in ((3, 1), (2, 2), (1, 2)):
        with pytest.raises(FormatError, match=f"the file is of {n_latents} latents, width {width}"):
            unpack_weights(payload(), "test", n_latents=n_latents, width=width)


def test_tensors_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(CheckpointError, match="b_dec has shape"):
        unpack(payload(shapes={"b_dec": [2], "w_dec": [1, 1]}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(CheckpointError, match="w_dec must be finite"):
        unpack(payload(values=(1.0, 2.0, value)))


ENCODER = {"b_dec": [1], "b_enc": [2], "w_dec": [2, 1], "w_enc": [1, 2]}
SEVEN = (0.0,) * 7


@pytest.mark.parametrize(
    "config, error",
    [
        ({}, CheckpointError),
        ({"nonlinearity": {"kind": "sigmoid"}}, UnsupportedError),
        ({"nonlinearity": {}}, UnsupportedError),
        ({"nonlinearity": {"kind": "jumprelu"}}, CheckpointError),
        ({"nonlinearity": {"kind": "topk"}}, CheckpointError),
    ],
)
def test_an_encoder_whose_nonlinearity_is_unknown_or_incomplete_is_refused(config: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        unpack(payload(SEVEN, ENCODER, config))


@pytest.mark.parametrize("fields", [{"config": None}, {"config": []}, {"name": None}, {"name": 3}, {"source": b""}])
def test_a_record_without_its_fields_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match=next(iter(fields))):
        unpack(payload(**fields))


@pytest.mark.parametrize(
    "nonlinearity", [3, {"kind": "topk", "k": "many"}, {"kind": "topk", "k": None}, {"kind": "topk", "k": -3}]
)
def test_a_nonlinearity_that_is_not_possible_is_refused(nonlinearity: Any) -> None:
    with pytest.raises(SaecodecError):
        unpack(payload(SEVEN, ENCODER, {"nonlinearity": nonlinearity}))


def test_a_tensors_name_is_text() -> None:
    with pytest.raises(SaecodecError):
        unpack(payload(shapes={"b_dec": [1], b"w_dec": [2, 1]}))


# -- rounded weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("decoder_only", [False, True])
def test_rounded_weights_come_back_as_they_were_rounded(
    make_sae: MakeSAE, architecture: str, precision: str, decoder_only: bool
) -> None:
    sae = replace(make_sae(architecture), normalization="layer_norm")
    rounded = with_precision(sae, precision)
    data = pack_weights(sae, decoder_only=decoder_only, precision=precision)
    back = unpack_weights(data, "test", n_latents=sae.n_latents, width=sae.width, precision=precision)
    assert (back.decoder_id, back.normalization) == (rounded.decoder_id, "layer_norm")
    assert back.w_dec.numpy().tobytes() == rounded.w_dec.numpy().tobytes()
    assert back.b_dec.numpy().tobytes() == sae.b_dec.numpy().tobytes()
    assert back.sae_id == (None if decoder_only else rounded.sae_id)
    assert pack_weights(rounded, decoder_only=decoder_only, precision=precision) == data


def test_what_precisions_take(make_sae: MakeSAE) -> None:
    sae = make_sae(width=64, latents=1024)
    full, half, integers = (len(pack_weights(sae, decoder_only=True, precision=name)) for name in PRECISIONS)
    assert half < 2 / 3 * full
    assert integers < 1.03 * 64 * 1024 < half


def int8_payload(scales: Any = (0.5, 2.0), b_dec: Any = (1.0,), shapes: Any = DECODER, integers: Any = None) -> bytes:
    """A payload of w_dec = (-63.5), (4.0), or of other figures."""
    head = payload(values=(), shapes=shapes)[: -len(compress(b""))]
    floats = np.array([*b_dec, *scales], "<f4")
    planes = np.ascontiguousarray(floats.view(np.uint8).reshape(-1, 4).T).tobytes()
    packed = pack_integers(np.array([[-127], [2]], np.int8)) if integers is None else integers
    return head + blob(compress(planes)) + packed


def unpack_int8(data: bytes) -> SAE:
    return unpack_weights(data, "test", n_latents=2, width=1, precision="int8")


def test_the_smallest_integer_payload_is_a_decoder() -> None:
    sae = unpack_int8(int8_payload())
    assert (sae.w_dec.tolist(), sae.b_dec.tolist()) == ([[-63.5], [4.0]], [1.0])


def test_any_float_can_be_a_scale_and_its_product_is_rounded_once() -> None:
    scale = np.float32(0.1)
    (first, second) = unpack_int8(int8_payload((scale, 0.0))).w_dec.numpy().ravel()
    assert first == np.float32(-127 * np.float64(scale))
    assert float(first) != -127 * float(scale)
    assert second == 0


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -0.5, -0.0])
def test_scales_that_are_not_finite_or_negative_are_refused(scale: float) -> None:
    with pytest.raises(FormatError, match="test: the scales of the weights are not finite, or negative"):
        unpack_int8(int8_payload((0.5, scale)))


def test_products_that_overflow_are_refused() -> None:
    with pytest.raises(FormatError, match="test: the scales of the weights are so large that products are no float32"):
        unpack_int8(int8_payload((3e38, 1.0)))
    largest = np.finfo(np.float32).max
    assert unpack_int8(int8_payload((largest / np.float32(127.5), largest / 2))).w_dec.isfinite().all()


def test_integer_weights_of_another_size_are_refused() -> None:
    for data in (
        int8_payload((0.5,)),
        int8_payload((0.5, 1.0, 2.0)),
        int8_payload(b_dec=()),
        int8_payload(shapes={"b_dec": [1], "w_dec": [3, 1]}),
        int8_payload(shapes={"b_dec": [1]}),
        int8_payload(integers=pack_integers(np.zeros((3, 1), np.int8))),
        int8_payload() + b"\0",
        payload(),
    ):
        with pytest.raises(FormatError, match="test"):
            unpack_int8(data)
    with pytest.raises(CheckpointError, match="w_dec and b_dec are needed"):
        unpack_int8(int8_payload(b_dec=(), shapes={"w_dec": [2, 1]}))


def test_a_cut_payload_of_integers_is_refused(make_sae: MakeSAE) -> None:
    data = pack_weights(make_sae(), decoder_only=True, precision="int8")
    for size in [*range(0, len(data) - 1, 7), len(data) - 1]:
        with pytest.raises(FormatError, match="test"):
            unpack_weights(data[:size], "test", n_latents=24, precision="int8")
