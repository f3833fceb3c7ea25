"""The reference decoder, written from docs/format.md alone, reads what saecodec writes."""

from __future__ import annotations

import functools
import importlib.util
import io
import itertools
import math
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import saecodec
from saecodec import fit_residual, integer_weights
from saecodec.buckets import bucket_of
from saecodec.codec import Codec
from saecodec.codes import MAX_LEVEL, Codes
from saecodec.errors import FormatError
from saecodec.filled_rows import FilledRows
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.decoding import verify_file
from saecodec.formats.encoding import encode_array
from saecodec.formats.header import Header
from saecodec.formats.index import Index
from saecodec.formats.latent_values import latent_rows
from saecodec.formats.recovering import recover_file
from saecodec.formats.saec import open_saec
from saecodec.formats.saec_writer import SaecWriter
from saecodec.formats.weights import pack_weights, unpack_weights
from saecodec.frames import frame, pack_record, unpack_record
from saecodec.goal import Goal
from saecodec.integers import pack_ints, unpack_ints, zigzag
from saecodec.latents import LatentCodec
from saecodec.layers import Layers
from saecodec.matrices import encode_matrix
from saecodec.nonlinearity import Gated, JumpReLU, Nonlinearity, ReLU, TopK
from saecodec.normalization import KINDS
from saecodec.priors import network as network_module
from saecodec.priors.context import ContextPrior
from saecodec.priors.factorized import FactorizedPrior
from saecodec.priors.network import Network
from saecodec.quantizer import Quantizer
from saecodec.rangecoder import StreamDecoder, StreamEncoder, model_of
from saecodec.residual import Block, ResidualLayer
from saecodec.runs import encode_runs
from saecodec.sae import SAE, Encoder
from saecodec.side import SideQuantizer
from saecodec.table_set import TableSet
from saecodec.tables import expand, max_code
from saecodec.wire import ByteReader, blob, varint, varints

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "format.md"
GOLDEN = HERE / "golden"
WIDTH, LATENTS = 8, 48


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


reference = _load(HERE / "reference_decoder.py")

NONLINEARITIES = {
    "relu": ReLU(),
    "jumprelu": JumpReLU(torch.full((LATENTS,), 0.7)),
    "topk": TopK(5),
    "gated": Gated(torch.zeros(LATENTS), torch.full((LATENTS,), 0.1), torch.full((LATENTS,), -0.2)),
}


def _sae(nonlinearity: Nonlinearity = NONLINEARITIES["topk"], seed: int = 0) -> SAE:
    generator = torch.Generator().manual_seed(seed)
    w_dec = torch.randn(LATENTS, WIDTH, generator=generator)
    w_dec *= torch.linspace(0.2, 3, LATENTS)[:, None] / w_dec.norm(dim=1, keepdim=True)
    w_enc = torch.randn(WIDTH, LATENTS, generator=generator)
    encoder = Encoder(w_enc, torch.full((LATENTS,), -0.5), nonlinearity, True)
    return SAE(w_dec, torch.randn(WIDTH, generator=generator), encoder, nonlinearity.kind, "synthetic")


def _rows(n: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, WIDTH)) * rng.gamma(1.0, size=(n, 1))).astype(np.float32)


def _levels(rows: list[dict[int, int]], n_latents: int) -> np.ndarray:
    out = np.zeros((len(rows), n_latents), np.int64)
    for t, row in enumerate(rows):
        for latent, level in row.items():
            out[t, latent] = level
    return out


def _assert_close(x_hat: np.ndarray, expected: np.ndarray) -> None:
    assert x_hat.shape == expected.shape
    error = np.linalg.norm(x_hat - expected, axis=-1)
    assert (error <= 1e-5 * np.linalg.norm(expected, axis=-1)).all()


def _saec_bytes(codec: Codec, parts: list[Codes] | list[Layers], embed: str, width: int = WIDTH) -> bytes:
    file = io.BytesIO()
    shape = (sum(part.n_rows for part in parts), width)
    writer = SaecWriter(file, codec, shape=shape, dtype="float32", chunk_rows=100, embed=embed)
    for part in parts:
        writer.add(part if isinstance(part, Layers) else Layers(part))
    writer.finish()
    return file.getvalue()


@pytest.mark.parametrize("kind", NONLINEARITIES)
@pytest.mark.parametrize("step", ["0.05rms", "0.4rms", "3rms"])
def test_files_decode_to_the_same_levels_and_rows(tmp_path, kind, step):
    sae, path = _sae(NONLINEARITIES[kind]), tmp_path / "x.saec"
    x = _rows(300).reshape(3, 100, WIDTH)
    encode_array(MemoryArray(x), path, sae=sae, goal=Goal.of(step), chunk_rows=128, embed="decoder")
    found = reference.read_saec(path.read_bytes())
    with open_saec(path) as file:
        codes = Codes.concatenate(file.codes(), LATENTS)
        np.testing.assert_array_equal(_levels(found.rows, LATENTS), codes.to_dense())
        _assert_close(found.x_hat, file.rows().reshape(file.shape))
        assert found.shape == list(x.shape)
        assert found.header["codec_id"].hex() == file.codec.codec_id


@pytest.mark.parametrize("embed_sae", [False, True])
@pytest.mark.parametrize("embed", ["none", "tables"])
def test_what_a_file_does_not_embed_comes_from_codec_and_decoder(tmp_path, embed, embed_sae):
    sae, path = _sae(), tmp_path / "c.saecodec"
    codec = Codec.fit(sae, _rows(400))
    saecodec.save_codec(codec, path, embed_sae=embed_sae)
    codec_file = reference.read_codec(path.read_bytes())
    x = _rows(60, seed=2)
    codes = codec.quantize(x)
    data = _saec_bytes(codec, [codes[:33], codes[33:]], embed)
    weights = {} if embed_sae else {"w_dec": sae.w_dec.numpy(), "b_dec": sae.b_dec.numpy()}
    found = reference.read_saec(data, codec=codec_file, **weights)
    np.testing.assert_array_equal(_levels(found.rows, LATENTS), codes.to_dense())
    _assert_close(found.x_hat, codec.reconstruct(codes))
    assert codec_file.head["decoder_id"].hex() == sae.decoder_id == reference.decoder_id(**sae.decoder_tensors())


def test_an_embedded_sae_has_all_its_tensors(tmp_path):
    sae, path = _sae(NONLINEARITIES["gated"]), tmp_path / "c.saecodec"
    saecodec.save_codec(Codec.fit(sae, _rows(50)), path, embed_sae=True)
    tensors = reference.read_codec(path.read_bytes()).tensors
    assert tensors.keys() == sae.tensors().keys()
    for name, array in sae.tensors().items():
        np.testing.assert_array_equal(tensors[name], array)


def _prior(rng: np.random.Generator, n_latents: int, *, signed: bool, resolution: int) -> FactorizedPrior:
    def tables(n_classes: int) -> TableSet:
        classes = rng.integers(0, n_classes, n_latents)
        classes[-1] = n_classes - 1
        codes = rng.integers(0, max_code(resolution) + 1, (n_classes, int(rng.integers(2, 305))))
        codes[0] = 0  # a table of zeros is uniform
        return TableSet(classes, codes, resolution)

    return FactorizedPrior(tables(5), tables(3), (2, 1, 2), signed)


@pytest.mark.parametrize("resolution", [0, 1, 2, 3])
@pytest.mark.parametrize("signed", [False, True])
def test_chunks_of_any_codes_decode_with_signs_large_levels_and_columns(signed, resolution):
    rng = np.random.default_rng(resolution + 10 * signed)
    prior = _prior(rng, 30, signed=signed, resolution=resolution)
    codec = LatentCodec(prior)
    tables = codec.to_bytes() + Quantizer(0.25, np.zeros((3, 16), np.int64), prior.level_class).to_bytes()
    for n_rows in (0, 1, 7, 60):
        shape = (n_rows, 30)
        levels = rng.integers(1, 1 << rng.integers(1, 20, shape), endpoint=True) * (rng.random(shape) < 0.2)
        levels.ravel()[:1] = MAX_LEVEL
        levels *= rng.choice([-1, 1] if signed else [1], shape)
        noise = rng.integers(-(1 << 37), 1 << 37, n_rows)
        columns = {"row": np.arange(n_rows), "noise": noise, "é": np.zeros(n_rows, int)}
        chunk = codec.pack(Codes.from_dense(levels, columns))
        found = reference.chunk_of(chunk, reference.tables_of(tables))
        np.testing.assert_array_equal(_levels(found.rows, 30), levels)
        assert {name: np.array(values).tolist() for name, values in columns.items()} == found.columns


def test_tables_expand_to_the_same_weights_and_identity():
    rng = np.random.default_rng(3)
    sae = SAE(torch.from_numpy(rng.standard_normal((30, 4)).astype(np.float32)), torch.zeros(4), None, "standard")
    for resolution in range(4):
        prior = _prior(rng, 30, signed=True, resolution=resolution)
        centroids = rng.integers(-128, 128, (3, 16))
        codec = Codec(Quantizer(0.1 * 3**resolution, centroids, prior.level_class), LatentCodec(prior), sae.decoder_id)
        tables = reference.tables_of(codec.tables())
        assert tables.support.weights == prior.support.weights.tolist()
        assert tables.levels.weights == prior.levels.weights.tolist()
        assert tables.centroids == centroids.tolist()
        assert reference.codec_id(tables, sae.decoder_id) == codec.codec_id


@pytest.mark.parametrize("spread", [0, 1, 4, 15, 40])
def test_integer_arrays_decode(spread):
    rng = np.random.default_rng(spread)
    for size in (0, 1, 2, 100):
        values = (rng.random(size) * 2.0 ** (rng.random(size) * spread)).astype(np.int64)
        source = reference.Bytes(pack_ints(values))
        assert reference.integers(source, size) == values.tolist()
        source.end()


def test_buckets_are_those_of_the_formulas():
    bounds = [reference.base_and_bits(b) for b in range(304)]
    assert [base for base, _ in bounds] == [0, *(base + (1 << bits) for base, bits in bounds[:-1])]
    assert sum(bounds[-1][:1]) + (1 << bounds[-1][1]) == 1 << 40
    for b, (base, bits) in enumerate(bounds):
        assert bucket_of(np.array([base, base + (1 << bits) - 1])).tolist() == [b, b]


def test_the_range_coder_decodes_streams_with_held_back_carries():
    """Symbols chosen so that the interval straddles a word boundary again and again."""
    rng = np.random.default_rng(5)
    mask, held = (1 << 64) - 1, 0
    for _ in range(150):
        encoder, coded, low, span = StreamEncoder(), [], 0, mask
        for _ in range(int(rng.integers(1, 12))):
            cut = ((1 << 64) - low & mask) // (span >> 24)  # the symbol of weight 1 in which 2^64 lies
            cut = cut if 1 <= cut <= (1 << 24) - 2 and rng.random() < 0.9 else int(rng.integers(1, (1 << 24) - 2))
            weights = [cut, 1, (1 << 24) - 1 - cut]
            encoder.put(np.array([1], np.int32), model_of(np.array(weights)))
            coded.append(weights)
            low, span = low + (span >> 24) * cut & mask, span >> 24
            if span < 1 << 32:
                low, span = low << 32 & mask, span << 32
        held += low + span > mask
        stream = reference.Stream(encoder.finish())
        assert [stream.symbol(weights) for weights in coded] == [1] * len(coded)
        stream.end()
    assert held > 50


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_flipped_bits_and_cuts_are_refused():
    codec = Codec.fit(_sae(), _rows(100))
    data = _saec_bytes(codec, [codec.quantize(_rows(20))], "tables")
    for at in range(0, len(data), 7):
        with pytest.raises(reference.Refused):
            reference.read_saec(_flipped(data, at))
        with pytest.raises(reference.Refused):
            reference.read_saec(data[:at])


def test_ancillary_frames_are_skipped_and_critical_ones_refused():
    codec = Codec.fit(_sae(), _rows(100))
    data = codec.to_bytes()
    magic = reference.CODEC_MAGIC
    reference.read_codec(magic + data + frame("Note", b"?", critical=False))
    with pytest.raises(reference.Refused, match="Note"):
        reference.read_codec(magic + data + frame("Note", b"?"))


# -- the residual layer ------------------------------------------------------------------------------------------------

SHAPES = {
    "square": ((8, 8),),
    "narrow": ((3, 8),),
    "blocks": ((3, 3), (0, 1), (1, 2), (2, 2)),
    "one": ((0, 3), (1, 5)),
}


def _layer(shapes: tuple[tuple[int, int], ...], seed: int = 0, step: float = 0.25) -> ResidualLayer:
    """With orthonormal components, but for rounding; of its three classes one may be empty."""
    rng = np.random.default_rng(seed)
    blocks = [
        Block(np.rint(100 * np.linalg.qr(rng.standard_normal((w, w)))[0][:m]).astype(np.int64)) for m, w in shapes
    ]
    n_components, width = (sum(shape[i] for shape in shapes) for i in (0, 1))
    classes = rng.integers(0, 3, n_components)
    tables = TableSet(classes, rng.integers(0, max_code(1) + 1, (3, 30)), 1)
    mean, centroids = rng.integers(-50, 50, width), rng.integers(-128, 128, (3, 16))
    return ResidualLayer(step, 0.01, tuple(blocks), mean, tables, centroids)


def _layers(codec: Codec, n: int, seed: int = 2) -> Layers:
    """Codes of rows, and residual levels of all sizes."""
    rng = np.random.default_rng(seed)
    shape = (n, codec.residual.n_components)
    levels = rng.integers(-4, 5, shape) << (20 * (rng.random(shape) < 0.05) * rng.random(shape)).astype(int)
    levels[:1, :1] = -MAX_LEVEL
    return Layers(codec.quantize(_rows(n, seed)), np.clip(levels, -MAX_LEVEL, MAX_LEVEL).astype(np.int32))


def _assert_near(x_hat: np.ndarray, expected: np.ndarray, layers: Layers, codec: Codec) -> None:
    """To 1e-5 of the norms of the base layer, the coordinates and the mean."""
    layer = codec.residual
    scale = np.linalg.norm(codec.reconstruct(layers.codes), axis=-1) + np.linalg.norm(layer.mean) * layer.step / 16
    scale += np.linalg.norm(layers.residual, axis=-1) * layer.step
    assert (np.linalg.norm(x_hat - expected, axis=-1) <= 1e-5 * scale).all()


@pytest.mark.parametrize("kind", SHAPES)
def test_residual_layers_of_files_decode_to_the_same_levels_and_rows(tmp_path, kind):
    sae, path = _sae(), tmp_path / "c.saecodec"
    codec = replace(Codec.fit(sae, _rows(200)), residual=_layer(SHAPES[kind]))
    saecodec.save_codec(codec, path, embed_sae=True)
    given, layers = reference.read_codec(path.read_bytes()), _layers(codec, 60)
    assert given.head["version"] == [1, 1]
    for embed in ("none", "tables", "decoder"):
        data = _saec_bytes(codec, [layers[:25], layers[25:25], layers[25:]], embed)
        file = tmp_path / "x.saec"
        file.write_bytes(data)
        found = reference.read_saec(data, codec=given if embed != "decoder" else None)
        assert found.header["version"] == [1, 1]
        np.testing.assert_array_equal(_levels(found.rows, LATENTS), layers.codes.to_dense())
        np.testing.assert_array_equal(found.residual, layers.residual)
        with open_saec(file, codec=saecodec.load_codec(path)) as opened:
            residual = np.concatenate([part.residual for part in opened.layers()])
            np.testing.assert_array_equal(residual, layers.residual)
            _assert_near(found.x_hat, opened.rows(), layers, codec)
            _assert_close(found.base, opened.rows(base_only=True))
            assert found.header["codec_id"].hex() == opened.codec.codec_id


@pytest.mark.parametrize("kind", SHAPES)
def test_residual_layers_in_memory_decode_to_the_same_levels_and_rows(kind):
    codec = replace(Codec.fit(_sae(), _rows(200)), residual=_layer(SHAPES[kind], seed=1))
    layers = _layers(codec, 70)
    data = b"".join(codec.pack(layers[:64]) + codec.pack(layers[64:]))
    given = reference.read_codec(reference.CODEC_MAGIC + codec.to_bytes())
    chunks, residual = reference.read_rows(data, given.tables, given.residual)
    np.testing.assert_array_equal(residual, layers.residual)
    np.testing.assert_array_equal(residual, np.concatenate([part.residual for part in codec.chunks(data)]))
    rows = [row for chunk in chunks for row in chunk.rows]
    base = reference.reconstruct(rows, given.tables, codec.sae.w_dec.numpy(), codec.sae.b_dec.numpy())
    _assert_close(base, codec.decode(data, base_only=True))
    _assert_near(base + reference.residual_rows(residual, given.residual), codec.decode(data), layers, codec)


@pytest.mark.parametrize("max_block", [8, 3])
@pytest.mark.parametrize("step", ["0.1rms", "0.4rms", "20rms"])
def test_fitted_residual_layers_decode_to_the_same_levels_and_rows(tmp_path, monkeypatch, step, max_block):
    monkeypatch.setattr(fit_residual, "MAX_BLOCK", max_block)
    x, path = _rows(200), tmp_path / "x.saec"
    goal = Goal.of(step, residual=True)
    encode_array(MemoryArray(x), path, sae=_sae(), goal=goal, chunk_rows=64, embed="decoder")
    found = reference.read_saec(path.read_bytes())
    assert [w for _, w in found.layer.shapes] == ([8] if max_block == 8 else [2, 3, 3])
    with open_saec(path) as file:
        residual = np.concatenate([part.residual for part in file.layers()])
        every = Layers(Codes.concatenate(file.codes(), LATENTS), residual)
        np.testing.assert_array_equal(found.residual, residual)
        _assert_near(found.x_hat, file.rows(), every, file.decoder)
        _assert_close(found.base, file.rows(base_only=True))


def test_no_byte_of_a_residual_layer_depends_on_the_decoder_or_its_floats():
    """The same levels under the same layer are the same bytes, whatever the base layer holds."""
    layer, levels = _layer(SHAPES["blocks"]), np.arange(-30, 30).reshape(10, 6).astype(np.int32)
    codecs = [
        replace(Codec.fit(_sae(seed=seed), _rows(100), step), residual=layer) for seed, step in ((0, 0.1), (1, 2))
    ]
    (_, first), (_, second) = (codec.pack(Layers(codec.quantize(_rows(10)), levels)) for codec in codecs)
    assert first == second


def _residual_file() -> tuple[Codec, Layers, bytes]:
    codec = replace(Codec.fit(_sae(), _rows(100)), residual=_layer(SHAPES["blocks"]))
    layers = _layers(codec, 20)
    return codec, layers, _saec_bytes(codec, [layers[:12], layers[12:]], "tables")


def test_flipped_bits_and_cuts_of_a_file_with_a_residual_layer_are_refused_by_both(tmp_path):
    _, _, data = _residual_file()
    path = tmp_path / "x.saec"

    def read() -> None:
        with open_saec(path) as file:
            verify_file(file)

    path.write_bytes(data)
    read()
    reference.read_saec(data)
    for at in range(0, len(data), 11):
        for bad in (_flipped(data, at), data[:at]):
            path.write_bytes(bad)
            _refused_by_both(lambda bad=bad: reference.read_saec(bad), read)


# -- what both refuse --------------------------------------------------------------------------------------------------


def _refused_by_both(ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    with pytest.raises(saecodec.SaecodecError):
        theirs()
    with pytest.raises(reference.Refused):
        ours()


VERSIONS = [("version", v) for v in ([2, 0], [0, 9], [1], [1, 0, 0], [1, -1], [1, 0.5], [True, 0], 1, "1.0", None)]
REQUIRES = [("requires", v) for v in (["prior:other"], [1], "prior:factorized", None)]
SAE_FACTS = {"name": "n", "source": "", "architecture": "a", "n_latents": 3}
HEADER_FIELDS = [
    *VERSIONS,
    *REQUIRES,
    *[("width", v) for v in (0, -1, (1 << 24) + 1, 2.0, True, None)],
    *[("dtype", v) for v in ("int8", 1, None)],
    *[("chunk_rows", v) for v in (0, (1 << 20) + 1, 1.0, None)],
    *[("embed", v) for v in ("sae", 1, None)],
    *[(key, v) for key in ("decoder_id", "codec_id") for v in (b"", bytes(31), "0" * 32, None)],
    *[("sae", v) for v in ({}, SAE_FACTS | {"n_latents": 1.0}, SAE_FACTS | {"name": 1}, [], None)],
    *[("step", v) for v in (0.0, -1.0, float("inf"), float("nan"), 1, "1", None)],
    *[(key, v) for key in ("prior", "made_by") for v in (b"x", 1, None)],
    *[("user", v) for v in ({"a": 1}, [], "x")],
    *[("weights", v) for v in ("int8", "bfloat16", "int4", 8, [])],  # of a file that embeds no decoder
    ("requires", ["prior:factorized", "weights:int8"]),
]


def _without_none(record: dict[str, Any]) -> bytes:
    """None stands for a field that is not there."""
    return pack_record({key: value for key, value in record.items() if value is not None})


@pytest.mark.parametrize("key, value", HEADER_FIELDS)
def test_header_fields_that_both_refuse(key, value):
    payload = reference.frames_of(_example(), 8)[0].payload
    good = unpack_record(payload, "header")
    assert reference.read_header(pack_record(good | {"user": {"a": "b"}, "later": [1.5]})) == good | {
        "user": {"a": "b"},
        "later": [1.5],
    }
    assert Header.from_bytes(pack_record(good | {"version": [1, 7], "later": [1.5]}), "header").width == good["width"]
    bad = _without_none(good | {key: value})
    _refused_by_both(lambda: reference.read_header(bad), lambda: Header.from_bytes(bad, "header"))


CODEC_FIELDS = [
    *VERSIONS,
    *REQUIRES,
    ("requires", ["prior:factorized", "weights:int8"]),
    *[("decoder_id", v) for v in (bytes(31), "0" * 32, None)],
    *[("embed", v) for v in ("sae", "decoder", 0, None)],
    *[("info", v) for v in ([], "x", None)],
]


@pytest.mark.parametrize("key, value", CODEC_FIELDS)
def test_codec_fields_that_both_refuse(tmp_path, key, value):
    magic, path = reference.CODEC_MAGIC, tmp_path / "c.saecodec"
    head, tables = reference.frames_of(Codec.fit(_sae(), _rows(50)).to_bytes(), 0)
    bad = _without_none(unpack_record(head.payload, "header") | {key: value})
    path.write_bytes(magic + frame("CHED", bad) + frame("TABL", tables.payload))
    _refused_by_both(lambda: reference.read_codec(path.read_bytes()), lambda: saecodec.load_codec(path))


@pytest.mark.parametrize(
    "order",
    [
        "CHED SAEW TABL",
        "CHED TABL",
        "CHED TABL SAEW SAEW",
        "TABL CHED SAEW",
        "CHED TABL INDX SAEW",
    ],
)
def test_codec_frames_that_both_refuse(tmp_path, order):
    sae, path = _sae(), tmp_path / "c.saecodec"
    saecodec.save_codec(Codec.fit(sae, _rows(50)), path, embed_sae=True)
    parts = {part.kind: part.payload for part in reference.frames_of(path.read_bytes(), 8)}
    good = frame("CHED", parts["CHED"]) + frame("TABL", parts["TABL"]) + frame("SAEW", parts["SAEW"])
    assert reference.CODEC_MAGIC + good == path.read_bytes()
    frames = (frame(kind, parts.get(kind, b""), critical=kind != "Note") for kind in order.split())
    path.write_bytes(reference.CODEC_MAGIC + b"".join(frames))
    _refused_by_both(lambda: reference.read_codec(path.read_bytes()), lambda: saecodec.load_codec(path))


@pytest.mark.parametrize(
    "size, data",
    [
        (2, "03 04 01 00"),  # another length
        (3, "03 04 00 00"),  # no bucket
        (3, "03 b0 02 01 00"),  # the first bucket is 304
        (3, "03 af 02 02 11 00"),  # the last bucket is 304
        (3, "03 04 02 10 04 00 00 00 20"),  # the first nibble is 0
        (3, "03 04 02 01 04 00 00 00 20"),  # the last nibble is 0
        (3, "03 04 03 11 11 04 00 00 00 20"),  # an unused half is not
        (3, "03 04 01 04 00 00 00 00"),  # words, but nothing to code
        (3, "03 04 02 11 00"),  # no words, but symbols
        (3, "03 10 01 00"),  # no words, but offsets
        (3, "03 04 02 11 03 00 00 00"),  # not whole words
        (3, "03 04 01"),  # no blob
    ],
)
def test_integer_arrays_that_both_refuse(size, data):
    raw = bytes.fromhex(data)
    assert reference.integers(reference.Bytes(bytes.fromhex("03 04 01 00")), 3) == [4, 4, 4]
    assert pack_ints(np.full(3, 4)).hex(" ") == "03 04 01 00"
    _refused_by_both(
        lambda: reference.integers(reference.Bytes(raw), size), lambda: unpack_ints(ByteReader(raw, "x"), size)
    )


def test_a_stream_has_words_exactly_when_it_has_symbols():
    for words in (b"", bytes(4), bytes(8)):
        for weights in ([], [1 << 23, 1 << 23]):
            ours, theirs = reference.Stream(words), StreamDecoder(words, "stream")
            for _ in weights[:1]:
                assert ours.symbol(weights) == int(theirs.get(model_of(np.array(weights)), 1)[0]) == 0
            if bool(words) == bool(weights):
                ours.end()
                theirs.end()
            else:
                _refused_by_both(ours.end, theirs.end)


def _index(leading: list[int], rows: list[int], lengths: list[int], distances: list[int]) -> bytes:
    head = varints([len(leading), *leading, len(rows)])
    return head + b"".join(pack_ints(np.array(column)) for column in (rows, lengths, distances))


@pytest.mark.parametrize(
    "leading, rows, lengths, distances",
    [
        ([2, 4], [4], [30], [100]),  # more rows than there are
        ([], [0], [30], [100]),  # no dimensions are one row
        ([1] * 64, [1], [30], [100]),
        ([(1 << 48) + 1, 0], [0], [30], [100]),
        ([1 << 24, 1 << 24, 0], [0], [30], [100]),  # too large for an array, though it has no rows
        ([(1 << 20) + 1], [(1 << 20) + 1], [30], [100]),
        ([1], [1], [19], [100]),  # not even a frame head
        ([2], [1, 1], [30, 30], [900, 50]),  # ends outside the file
    ],
)
def test_indices_that_both_refuse(leading, rows, lengths, distances):
    good = reference.read_index(_index([2, 3], [2, 4], [30, 40], [100, 5]), 1000)
    assert (good.leading, good.rows, good.frames) == ([2, 3], [2, 4], [(100, 30), (135, 40)])
    bad = _index(leading, rows, lengths, distances)
    _refused_by_both(lambda: reference.read_index(bad, 1000), lambda: Index.from_bytes(bad, 1000, "index"))


def _rtab(
    blocks: list[tuple[int, int]],
    *,
    basis: list[int] | None = None,
    mean: list[int] | None = None,
    step: float = 0.5,
    unit: float = 0.125,
    members: int | None = None,
    centroids: list[int] | None = None,
    tail: bytes = b"",
) -> bytes:
    """The payload of RTAB, as valid as its arguments."""
    width, n_components = sum(w for _, w in blocks), sum(m for m, _ in blocks)
    basis = [3] * sum(m * w for m, w in blocks) if basis is None else basis
    mean = [-1] * width if mean is None else mean
    classes = np.zeros(n_components if members is None else members, np.int64)
    head = varints([len(blocks), *(size for block in blocks for size in block)]) + struct.pack("<dd", step, unit)
    arrays = [pack_ints(zigzag(np.array(values, np.int64))) for values in (basis, mean, centroids or [0] * 16)]
    table = TableSet(classes, np.ones((1, 2), np.int64), 0).to_bytes()
    return head + arrays[0] + arrays[1] + table + arrays[2] + tail


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        _rtab([]),
        _rtab([(0, 2)]),  # no component
        _rtab([(0, 0), (1, 1)]),  # no values
        _rtab([(2, 1)]),  # more components than values
        _rtab([(1, 2)], basis=[3]),
        _rtab([(1, 2)], basis=[(1 << 15) + 1, 0]),
        _rtab([(1, 2)], basis=[-(1 << 15) - 1, 0]),
        _rtab([(1, 2)], mean=[1]),
        _rtab([(1, 2)], mean=[0, (1 << 24) + 1]),
        _rtab([(1, 2)], mean=[0, -(1 << 24) - 1]),
        *[_rtab([(1, 2)], step=value) for value in (0.0, -1.0, math.inf, math.nan)],
        *[_rtab([(1, 2)], unit=value) for value in (0.0, -1.0, math.inf, math.nan)],
        _rtab([(1, 2)], members=2),
        _rtab([(1, 2)], centroids=[128] * 16),
        _rtab([(1, 2)], centroids=[0] * 32),
        _rtab([(1, 2)], tail=b"\0"),
        _rtab([(1, 2)])[:-1],
        varints([1, 1 << 14, 1 << 14]) + _rtab([(1, 2)])[3:],  # 2^28 entries
        varints([2, 0, 1 << 24, 1, 1]) + _rtab([(1, 2)])[3:],  # rows of 2^24 + 1
        varints([1 << 62]) + _rtab([(1, 2)])[1:],
    ],
)
def test_residual_layers_that_both_refuse(payload):
    edge, widest = 1 << 15, [1 << 24, -(1 << 24)]
    good = _rtab([(1, 2), (0, 3)], basis=[edge, -edge], mean=[*widest, 0, 0, 0])
    ours, theirs = reference.residual_of(good), ResidualLayer.from_bytes(good, "layer")
    assert ours.shapes == [(1, 2), (0, 3)] == [block.vectors.shape for block in theirs.blocks]
    assert ours.basis == [edge, -edge] == theirs.blocks[0].vectors.ravel().tolist()
    assert ours.mean == theirs.mean.tolist() == [*widest, 0, 0, 0]
    assert theirs.to_bytes() == good
    _refused_by_both(lambda: reference.residual_of(payload), lambda: ResidualLayer.from_bytes(payload, "layer"))


def _stream(values: list[int], layer: ResidualLayer) -> bytes:
    return encode_runs(np.array(values, np.int64), np.array([0, len(values)]), [0, 1], layer.tables.models)[0]


def test_residual_chunks_that_both_refuse():
    raw = _rtab([(1, 1)])
    ours, theirs = reference.residual_of(raw), ResidualLayer.from_bytes(raw, "layer")
    largest = _stream([0, 2 << 20, 1, (2 << 20) - 1], theirs)
    levels = [[0], [1 << 20], [-1], [-(1 << 20)]]
    assert reference.residual_levels(largest, ours, 4) == theirs.decode(largest, 4, "x").tolist() == levels
    assert reference.residual_levels(b"", ours, 0) == theirs.decode(b"", 0, "x").tolist() == []
    three = _stream([1, 2, 3], theirs)
    for n_rows, payload in [
        (1, b""),
        (0, three),
        (1, three + bytes(8)),
        (3, three[:-1]),
        (3, three + b"\0"),
        (4, _stream([0, (2 << 20) + 1, 0, 0], theirs)),
        (4, _stream([0, (2 << 20) + 2, 0, 0], theirs)),
        (1 << 20, three),  # more than it can hold
    ]:
        _refused_by_both(
            lambda n_rows=n_rows, payload=payload: reference.residual_levels(payload, ours, n_rows),
            lambda n_rows=n_rows, payload=payload: theirs.decode(payload, n_rows, "x"),
        )


def test_more_than_2_to_the_26_residual_levels_of_a_chunk_are_refused_by_both():
    raw = _rtab([(65, 65)])
    ours, theirs = reference.residual_of(raw), ResidualLayer.from_bytes(raw, "layer")
    size = 65 * (1 << 20) // 8  # bytes that so many levels of a bit would have
    _refused_by_both(
        lambda: reference.residual_levels(bytes(size), ours, 1 << 20), lambda: theirs.decode(bytes(size), 1 << 20, "x")
    )


@pytest.mark.parametrize("facts", [{"step": 1e38}, {"step": 1e300}, {"unit": 1e300}, {"unit": 1e39}])
def test_residuals_that_no_float32_holds_are_refused_by_both(facts):
    raw = _rtab([(1, 1)], mean=[0], **facts)
    ours, theirs = reference.residual_of(raw), ResidualLayer.from_bytes(raw, "layer")
    _refused_by_both(
        lambda: reference.residual_rows([[0], [1 << 20]], ours),
        lambda: theirs.rows(np.array([[0], [1 << 20]], np.int32)),
    )


def _assembled(parts: list[tuple[str, bytes]], n_rows: list[int]) -> bytes:
    """A file of these frames, and the index and trailer that they need."""
    data, at, sizes = reference.SAEC_MAGIC, [], []
    for kind, payload in parts:
        if kind == "CHNK":
            at.append(len(data))
            sizes.append(20 + len(payload))
        data += frame(kind, payload, critical=kind not in ("RCHK", "Note"))
    index = Index((sum(n_rows),), *(np.array(values, np.int64) for values in (n_rows, at, sizes)))
    return data + frame("INDX", index.to_bytes()) + frame("TAIL", struct.pack("<Q", len(data)))


@pytest.mark.parametrize(
    "feature, order",
    [
        (True, "HEAD TABL CHNK0 RCHK0 CHNK1 RCHK1"),  # no layer
        (True, "HEAD RTAB TABL CHNK0 RCHK0 CHNK1 RCHK1"),
        (True, "HEAD TABL RTAB RTAB CHNK0 RCHK0 CHNK1 RCHK1"),
        (True, "HEAD TABL RTAB CHNK0 RCHK0 CHNK1"),
        (True, "HEAD TABL RTAB CHNK0 CHNK1 RCHK0 RCHK1"),
        (True, "HEAD TABL RTAB CHNK0 RCHK0 RCHK0 CHNK1 RCHK1"),
        (True, "HEAD TABL RTAB RCHK0 CHNK0 CHNK1 RCHK1"),
        (True, "HEAD TABL RTAB CHNK0 Note RCHK0 CHNK1 RCHK1"),
        (True, "HEAD TABL RTAB CHNK0 RCHK1 CHNK1 RCHK0"),  # of other numbers of rows
        (True, "HEAD TABL CHNK0 CHNK1"),
        (False, "HEAD TABL RTAB CHNK0 CHNK1"),
        (False, "HEAD TABL RTAB CHNK0 RCHK0 CHNK1 RCHK1"),
        (False, "HEAD TABL CHNK0 RCHK0 CHNK1 RCHK1"),
    ],
)
def test_frames_of_residual_layers_that_both_refuse(tmp_path, feature, order):
    codec, _, data = _residual_file()
    path = tmp_path / "x.saec"
    found = [(part.kind, part.payload) for part in reference.frames_of(data, 8)]
    parts = dict(found) | {f"{kind}{i // 2}": payload for i, (kind, payload) in enumerate(found[3:7])}
    if not feature:
        header, base = unpack_record(parts["HEAD"], "header"), replace(codec, residual=None)
        header |= {"requires": ["prior:factorized"], "codec_id": bytes.fromhex(base.codec_id)}
        parts["HEAD"] = pack_record(header)

    def write(names: str) -> bytes:
        path.write_bytes(_assembled([(name[:4], parts.get(name, b"")) for name in names.split()], [12, 8]))
        return path.read_bytes()

    def read() -> None:
        with open_saec(path) as file:
            verify_file(file)

    if feature:
        assert write("HEAD TABL RTAB CHNK0 RCHK0 CHNK1 RCHK1") == data
        reference.read_saec(write("HEAD Note TABL Note RTAB Note CHNK0 RCHK0 Note CHNK1 RCHK1 Note"))
    else:
        reference.read_saec(write("HEAD TABL CHNK0 CHNK1"))
    read()
    bad = write(order)
    _refused_by_both(lambda: reference.read_saec(bad), read)


@pytest.mark.parametrize(
    "feature, order",
    [
        (True, "CHED TABL SAEW"),
        (True, "CHED RTAB TABL SAEW"),
        (True, "CHED TABL SAEW RTAB"),
        (True, "CHED TABL RTAB RTAB SAEW"),
        (False, "CHED TABL RTAB SAEW"),
    ],
)
def test_codec_frames_of_residual_layers_that_both_refuse(tmp_path, feature, order):
    codec, path = replace(Codec.fit(_sae(), _rows(50)), residual=_layer(SHAPES["narrow"])), tmp_path / "c.saecodec"
    saecodec.save_codec(codec, path, embed_sae=True)
    parts = {part.kind: part.payload for part in reference.frames_of(path.read_bytes(), 8)}
    assert list(parts) == ["CHED", "TABL", "RTAB", "SAEW"]
    if not feature:
        (parts["CHED"],) = (
            part.payload for part in reference.frames_of(replace(codec, residual=None).to_bytes(), 0)[:1]
        )
        parts["CHED"] = pack_record(unpack_record(parts["CHED"], "header") | {"embed": "sae"})
    path.write_bytes(reference.CODEC_MAGIC + b"".join(frame(kind, parts[kind]) for kind in order.split()))
    _refused_by_both(lambda: reference.read_codec(path.read_bytes()), lambda: saecodec.load_codec(path))


@pytest.mark.parametrize("kinds", ["CHNK", "RCHK", "CHNK CHNK", "CHNK RCHK RCHK", "RCHK CHNK", "CHNK RCHK TABL"])
def test_rows_in_memory_that_both_refuse(kinds):
    codec, layers, _ = _residual_file()
    frames = dict(zip(("CHNK", "RCHK"), codec.pack(layers), strict=True)) | {"TABL": frame("TABL", b"")}
    given = reference.read_codec(reference.CODEC_MAGIC + codec.to_bytes())
    data = b"".join(frames[kind] for kind in kinds.split())
    _refused_by_both(lambda: reference.read_rows(data, given.tables, given.residual), lambda: list(codec.chunks(data)))


@pytest.mark.parametrize("width", [WIDTH - 1, WIDTH + 1])
def test_a_residual_layer_for_rows_of_another_width_is_refused_by_both(tmp_path, width):
    sae, path = _sae(), tmp_path / "x.saec"
    codec = replace(Codec.fit(sae, _rows(50)), residual=_layer(((2, width),)))
    path.write_bytes(_saec_bytes(codec, [_layers(codec, 5)], "tables"))
    with open_saec(path) as file:
        _refused_by_both(lambda: reference.read_saec(path.read_bytes()), lambda: list(file.layers()))
    saecodec.save_codec(codec, tmp_path / "c.saecodec", embed_sae=True)
    data = (tmp_path / "c.saecodec").read_bytes()
    _refused_by_both(lambda: reference.read_codec(data), lambda: saecodec.load_codec(tmp_path / "c.saecodec"))


def test_a_codec_with_a_residual_layer_is_another_codec(tmp_path):
    codec, layers, _ = _residual_file()
    without = replace(codec, residual=None)
    base = reference.read_codec(reference.CODEC_MAGIC + without.to_bytes())
    given = reference.read_codec(reference.CODEC_MAGIC + codec.to_bytes())
    path = tmp_path / "x.saec"
    for written, kept, wrong, ours in ((codec, layers, without, base), (without, Layers(layers.codes), codec, given)):
        path.write_bytes(_saec_bytes(written, [kept], "none"))
        with open_saec(path, codec=wrong) as file:
            _refused_by_both(
                lambda ours=ours: reference.read_saec(path.read_bytes(), codec=ours),
                lambda file=file: list(file.layers()),
            )
    codec_id = reference.codec_id(given.tables, codec.decoder_id, given.residual)
    assert codec_id == codec.codec_id != reference.codec_id(base.tables, codec.decoder_id)
    layer, tables = codec.residual, codec.residual.tables
    for changes in (
        {"step": 0.5},
        {"unit": 0.02},
        {"mean": layer.mean + 1},
        {"centroids": layer.centroids // 2},
        {"blocks": tuple(Block(-block.vectors) for block in layer.blocks)},
        {"blocks": tuple(block for block in layer.blocks if len(block.vectors))},
        {"tables": replace(tables, classes=2 - tables.classes)},
        {"tables": replace(tables, codes=40 - tables.codes)},
    ):
        changed = replace(codec, residual=replace(layer, **changes))
        assert changed.codec_id not in (codec_id, without.codec_id)


def _chunk(columns: list[tuple[bytes, int, list[int]]], n_rows: int = 2, tail: str = "00 00 00 00 00 00") -> bytes:
    """A chunk under the example's tables, by default without nonzeros."""
    coded = (blob(name) + varint(mode) + pack_ints(zigzag(np.array(values))) for name, mode, values in columns)
    return varints([n_rows, len(columns)]) + b"".join(coded) + bytes.fromhex(tail)


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk([(b"", 0, [1, 2])]),
        _chunk([(b"b", 0, [1, 2]), (b"a", 0, [1, 2])]),
        _chunk([(b"a", 0, [1, 2]), (b"a", 0, [1, 2])]),
        _chunk([("\U00010000".encode(), 0, [1, 2]), ("\uffff".encode(), 0, [1, 2])]),  # UTF-16 would order them so
        _chunk([(b"\xff", 0, [1, 2])]),
        _chunk([(b"a", 2, [1, 2])]),
        _chunk([(b"a", 0, [1, 2, 3])]),
        _chunk([(b"a", 0, [1 << 38, 2])]),
        _chunk([(b"a", 0, [0, -(1 << 38)])]),
        _chunk([(b"a", 1, [(1 << 38) - 1, 1])]),
        _chunk([], n_rows=(1 << 20) + 1),
        _chunk([], tail="05 00 01 01 00 00 00 00 00 00 00 00 00 00"),  # 5 nonzeros in 2 latents of 2 rows
        _chunk([], tail="00 00 01 00 00 00 00 00 00 00"),  # words, but no nonzeros
        _chunk([], tail="01 00 00 00 00 00"),  # a nonzero, but no words
        _chunk([], tail="00 00 00 00 00 00 00"),
    ],
)
def test_chunks_that_both_refuse(chunk):
    tables = reference.frames_of(_example(), 8)[1].payload
    codec = Codec.from_tables(tables, "00" * 32, {}, "tables")
    read = reference.tables_of(tables)
    edge = (1 << 38) - 1
    good = _chunk([(b"a", 1, [edge, -2 * edge]), ("\uffff".encode(), 0, [1, 2]), ("\U00010000".encode(), 0, [1, 2])])
    columns = {name: values.tolist() for name, values in codec.latents.unpack(good).columns.items()}
    assert (
        reference.chunk_of(good, read).columns
        == columns
        == {"a": [edge, -edge], "\uffff": [1, 2], "\U00010000": [1, 2]}
    )
    _refused_by_both(lambda: reference.chunk_of(chunk, read), lambda: codec.latents.unpack(chunk))


def _large_tables(n_latents: int) -> bytes:
    classes = np.zeros(n_latents, np.int64)
    tables = TableSet(classes, np.ones((1, 2), np.int64), 0)
    quantizer = Quantizer(1.0, np.zeros((1, 16), np.int64), classes)
    return LatentCodec(FactorizedPrior(tables, tables, (1,), False)).to_bytes() + quantizer.to_bytes()


def test_a_chunk_of_more_than_2_to_the_40_cells_is_refused_by_both():
    tables = _large_tables((1 << 20) + 1)
    ours, theirs = reference.tables_of(tables), Codec.from_tables(tables, "00" * 32, {}, "tables").latents
    chunk = _chunk([], n_rows=1 << 20, tail="00 00 00")
    _refused_by_both(lambda: reference.chunk_of(chunk, ours), lambda: theirs.unpack(chunk))


@pytest.mark.parametrize("centroids", [[128] * 16, [-129] * 16, [0] * 32, [0] * 15])
def test_centroids_that_both_refuse(centroids):
    good = _large_tables(3)
    tail = len(pack_ints(np.zeros(16, np.int64)))
    bad = good[:-tail] + pack_ints(zigzag(np.array(centroids)))
    assert reference.tables_of(good).centroids == [[0] * 16]
    _refused_by_both(lambda: reference.tables_of(bad), lambda: Codec.from_tables(bad, "00" * 32, {}, "tables"))


@pytest.mark.parametrize("n_latents, width", [(LATENTS + 1, WIDTH), (LATENTS, WIDTH + 1)])
def test_weights_of_another_shape_are_refused_by_both_before_they_are_unpacked(n_latents, width):
    payload = pack_weights(_sae(), decoder_only=True)
    reference.weights_frame(payload, LATENTS, WIDTH)
    record = reference.Bytes(payload).blob()
    for bad in (payload, blob(record) + b"not zstd"):
        _refused_by_both(
            lambda bad=bad: reference.weights_frame(bad, n_latents, width),
            lambda bad=bad: unpack_weights(bad, "weights", n_latents=n_latents, width=width),
        )
        with pytest.raises(FormatError, match="w_dec has shape"):
            unpack_weights(bad, "weights", n_latents=n_latents, width=width)


# -- integer weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("cells", [1 << 20, 100])
def test_rounded_decoders_are_read_alike(tmp_path, monkeypatch, weights, cells):
    """One block of latents, and several."""
    monkeypatch.setattr(integer_weights, "_CELLS", cells)
    sae, x, path = _sae(), _rows(60), tmp_path / "x.saec"
    encode_array(MemoryArray(x), path, sae=sae, embed="decoder", weights=weights)
    found = reference.read_saec(path.read_bytes())
    (payload,) = (part.payload for part in reference.frames_of(path.read_bytes(), 8) if part.kind == "SAEW")
    _, tensors = reference.weights_frame(payload, LATENTS, WIDTH, weights)
    with open_saec(path) as file:
        for name, tensor in file.decoder.sae.decoder_tensors().items():
            assert tensors[name].tobytes() == tensor.tobytes()
        _assert_close(found.x_hat, file.rows())
        assert found.header["weights"] == file.header.weights == weights
    assert not np.array_equal(tensors["w_dec"], sae.w_dec.numpy())


def _integer_payload(
    scales: Any = (0.5, 3.0),
    block: int = 1,
    rows: Any = ((127, -127, 4), (0, 1, -1)),
    more: bytes = b"",
    width: int = 3,
) -> bytes:
    """Of two latents and rows of three, under flat tables; block: latents of one, as it is said."""
    tables = TableSet(np.zeros(width, np.int64), np.zeros((1, 2), np.int64), 0)
    record = {"name": "", "source": "", "config": {}, "shapes": {"b_dec": [3], "w_dec": [2, 3]}}
    planes = np.ascontiguousarray(np.array([1, 2, 3, *scales], "<f4").view(np.uint8).reshape(-1, 4).T).tobytes()
    coded = b"".join(blob(encode_matrix(np.array([row]), tables)) for row in rows)
    floats = zstandard.ZstdCompressor().compress(planes)
    return blob(pack_record(record)) + blob(floats) + varint(block) + tables.to_bytes() + coded + more


def _read_integers_by_both(payload: bytes) -> tuple[Callable[[], Any], Callable[[], Any]]:
    return (
        lambda: reference.weights_frame(payload, 2, 3, "int8")[1],
        lambda: unpack_weights(payload, "weights", n_latents=2, width=3, precision="int8").decoder_tensors(),
    )


def test_integer_weights_of_any_scale_are_read_alike():
    for scales in ((0.5, 3.0), (0.1, 0.0), (1e-45, 2.6e36), (1e-39, 0.3)):
        ours, theirs = (read() for read in _read_integers_by_both(_integer_payload(scales)))
        assert ours["w_dec"].tolist() == theirs["w_dec"].tolist()
        assert ours["b_dec"].tolist() == theirs["b_dec"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "forged",
    [
        {"scales": (0.5, -0.5)},
        {"scales": (0.5, float("inf"))},
        {"scales": (0.5, float("nan"))},
        {"scales": (3e38, 1.0)},  # a product that float32 does not hold
        {"scales": (0.5,)},
        {"scales": (0.5, 1.0, 1.0)},
        {"block": 0},
        {"block": 2},  # then the first stream has two rows
        {"block": 3},
        {"rows": ((128, 0, 0), (0, 0, 0))},
        {"rows": ((0, 0, -128), (0, 0, 0))},
        {"rows": ((0, 0, 0),)},
        {"rows": ((0, 0, 0),) * 3},
        {"more": b"\0"},
        {"rows": ((0, 0), (0, 0)), "width": 2},
        {"rows": ((0, 0, 0, 0), (0, 0, 0, 0)), "width": 4},
    ],
    ids=str,
)
def test_integer_weights_that_both_refuse(forged):
    for read in _read_integers_by_both(_integer_payload()):
        assert read()["w_dec"].tolist() == [[63.5, -63.5, 2.0], [0.0, 3.0, -3.0]]
    _refused_by_both(*_read_integers_by_both(_integer_payload(**forged)))


def test_damaged_integer_weights_are_refused_by_both_or_read_alike():
    good = _integer_payload()
    flipped = [good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :] for at in range(len(good)) for bit in range(8)]
    cut, refused = [good[:end] for end in range(len(good))], 0
    for bad in [*flipped, *cut]:
        ours, theirs = _read_integers_by_both(bad)
        refused += _read_alike(
            lambda ours=ours: {name: tensor.tolist() for name, tensor in ours().items()},
            lambda theirs=theirs: {name: tensor.tolist() for name, tensor in theirs().items()},
        )
    assert len(cut) < refused < len(cut) + len(flipped)


# -- the context prior -------------------------------------------------------------------------------------------------


def _network(rng: np.random.Generator, n_latents: int, n_blocks: int, rank: int, n_rows: int = 8) -> Network:
    """Any integers within the limits, but mostly such that units and bins are neither all cut off nor all alike."""
    block = rng.integers(0, n_blocks, n_latents)  # there may be empty ones, the first and last among them
    n_context, (n_bins, n_level_bins) = int((block < n_blocks - 1).sum()), rng.integers(1, 129, 2)
    gains = rng.integers(0, 128, 16) if rng.random() < 0.7 else np.arange(1, 17)
    top = 0.2 * n_latents * gains.mean() * 64  # about what the sums come to
    shifts = np.clip(int(math.log2(top / 127 + 1)) + rng.integers(-2, 3, rank), 0, 23)
    out_shift, level_shift = (
        int(np.clip(math.log2(60 * 64 * rank**0.5 / n + 1) + rng.integers(-1, 2), 0, 23))
        for n in (n_bins, n_level_bins)
    )

    def weights(*shape: int) -> np.ndarray:
        return rng.integers(-127, 128, shape).astype(np.int8)

    def biases(middle: float, size: int) -> np.ndarray:
        wide = rng.integers(1 - (1 << 22), 1 << 22, size)
        return np.where(rng.random(size) < 0.05, wide, np.rint(middle * rng.uniform(-0.5, 2, size)).astype(np.int64))

    return Network(
        block=block,
        gains=gains,
        context=weights(n_context, 3 * rank),
        bias=biases(top / 2, n_blocks * rank).reshape(n_blocks, rank),
        shifts=shifts,
        out=weights(n_latents, rank),
        out_bias=biases(min(int(n_bins) << out_shift >> 1, 1 << 20), n_latents),
        level_out=weights(n_latents, rank),
        level_bias=biases(min(int(n_level_bins) << level_shift >> 1, 1 << 20), n_latents),
        shift=out_shift,
        level_shift=level_shift,
        n_bins=int(n_bins),
        n_level_bins=int(n_level_bins),
    )


def _context(rng: np.random.Generator, network: Network, *, signed: bool = False) -> ContextPrior:
    def tables(n_members: int) -> TableSet:
        n_classes, resolution = int(rng.integers(1, 5)), int(rng.integers(0, 4))
        codes = rng.integers(0, max_code(resolution) + 1, (n_classes, int(rng.integers(2, 305))))
        return TableSet(rng.integers(0, n_classes, n_members), codes, resolution)

    f = len(network.block)
    return ContextPrior(
        network,
        support=tables(network.n_bins),
        levels=tables(network.n_level_bins),
        level_class=rng.integers(0, 4, f),
        cost=rng.integers(0, 321, f),
        cost_bin=rng.integers(0, network.n_level_bins, f),
        signed=signed,
    )


def _context_codec(prior: ContextPrior, decoder_id: str = "00" * 32, sae: SAE | None = None) -> Codec:
    centroids = np.random.default_rng(0).integers(-128, 128, (prior.n_level_classes, 16))
    return Codec(Quantizer(0.25, centroids, prior.level_class), LatentCodec(prior), decoder_id, sae)


def _some_codes(
    rng: np.random.Generator, n_rows: int, n_latents: int, *, signed: bool, sequences: bool, density: float = 0.2
) -> Codes:
    """Mostly small levels, and some of all sizes."""
    shape = (n_rows, n_latents)
    levels = rng.integers(1, 25, shape) << (16 * rng.random(shape) * (rng.random(shape) < 0.1)).astype(np.int64)
    levels *= (rng.random(shape) < density) * rng.choice([-1, 1] if signed else [1], shape)
    columns = {"seq": np.cumsum(rng.random(n_rows) < 0.3) % 3 - 1} if sequences else {"seq2": np.arange(n_rows) // 2}
    return Codes.from_dense(levels, columns | {"a": np.arange(n_rows)})


def _assert_decodes(codec: Codec, codes: Codes) -> bytes:
    """By both, to the codes; the chunk."""
    chunk = codec.latents.pack(codes)
    found = reference.chunk_of(chunk, reference.tables_of(codec.tables()))
    np.testing.assert_array_equal(_levels(found.rows, codes.n_latents), codes.to_dense())
    assert found.columns == {name: values.tolist() for name, values in codes.columns.items()}
    again = codec.latents.unpack(chunk)
    np.testing.assert_array_equal(again.to_dense(), codes.to_dense())
    return chunk


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 24),
    st.integers(1, 5),
    st.integers(1, 7),
    st.integers(0, 14),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.05, 0.2, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_chunks_under_any_context_prior_decode_alike(
    n_latents, n_blocks, rank, n_rows, signed, sequences, density, seed
):
    rng = np.random.default_rng(seed)
    prior = _context(rng, _network(rng, n_latents, n_blocks, rank), signed=signed)
    codec = _context_codec(prior)
    _assert_decodes(codec, _some_codes(rng, n_rows, n_latents, signed=signed, sequences=sequences, density=density))
    tables = reference.tables_of(codec.tables())
    assert reference.codec_id(tables, codec.decoder_id) == codec.codec_id
    assert tables.centroids == codec.quantizer.centroids.tolist()
    again = Codec.from_tables(codec.tables(), codec.decoder_id, {}, "tables")
    assert again.tables() == codec.tables()


def _extreme_network() -> tuple[Network, np.ndarray]:
    """A network of 780 units, which are all 127, and whose sums nearly cancel out and are not shifted, so that a sum
    off by one is another bin; the logits and scores of all columns, (2, 40)."""
    rng, rank, f = np.random.default_rng(7), 780, 40
    block = np.arange(f) % 2
    out, level_out = (rng.choice([-127, 127], (f, rank)) + rng.integers(-1, 2, (f, rank)) for _ in range(2))
    target = rng.integers(-20, 150, (2, f))
    biases = [goal - 127 * w.clip(-127, 127).sum(1) for goal, w in zip(target, (out, level_out), strict=True)]
    network = Network(
        block=block,
        gains=np.full(16, 127),
        context=np.full((20, 3 * rank), 127, np.int8),
        bias=np.full((2, rank), (1 << 22) - 1),
        shifts=np.zeros(rank, np.int64),
        out=out.clip(-127, 127).astype(np.int8),
        out_bias=biases[0],
        level_out=level_out.clip(-127, 127).astype(np.int8),
        level_bias=biases[1],
        shift=0,
        level_shift=0,
        n_bins=128,
        n_level_bins=128,
    )
    assert max(np.abs(values).max() for values in biases) < 1 << 22
    return network, target


def test_sums_that_go_far_and_come_back_give_the_same_bins_to_the_last_bit():
    network, target = _extreme_network()
    rng = np.random.default_rng(8)
    prior = _context(rng, network)
    codes = _some_codes(rng, 6, 40, signed=False, sequences=True)
    _assert_decodes(_context_codec(prior), codes)
    binned = prior.binned(codes)
    wanted = target.clip(0, 127)[:, binned.cells.column]
    np.testing.assert_array_equal([binned.bins, binned.level_bins], wanted)


def test_sums_at_the_limits_give_the_same_bins():
    """Rows of 258 nonzeros of gain 127, under weights of -127 and 127."""
    rng, f, rank = np.random.default_rng(9), 270, 6
    network = _network(rng, f, 2, rank)
    network = replace(
        network,
        block=(np.arange(f) >= 262).astype(np.int64),
        gains=np.full(16, 127),
        context=np.where(np.arange(3 * rank) % rank < 3, 127, rng.choice([-127, 127], (262, 3 * rank))).astype(np.int8),
        bias=np.array([[0] * rank, [(1 << 22) - 1, 1 - (1 << 22), -(1 << 21), 50, 3, 0]]),
        shifts=np.array([17, 16, 16, 12, 13, 14]),
    )
    dense = np.zeros((5, f), np.int64)
    for row in dense:
        row[rng.permutation(262)[:258]] = 1
    dense[:, 262:] = rng.integers(0, 3, (5, 8))
    _assert_decodes(_context_codec(_context(rng, network)), Codes.from_dense(dense))


def test_blocks_with_which_gains_add_up_to_more_than_2_to_the_15_are_left_out_by_both(monkeypatch):
    """In the first block, or in a later one while the first stays; in a row alone, not in those beside it."""
    rng, f = np.random.default_rng(10), 310
    network = _network(rng, f, 4, 5)
    block = np.repeat([0, 1, 2, 3], [270, 10, 10, 20])
    gains = np.array([1, 2, 3] + [40] * 12 + [127])
    network = replace(network, block=block, gains=gains, context=rng.integers(-127, 128, (290, 15)).astype(np.int8))
    network = replace(network, shifts=np.full(5, 14), bias=rng.integers(-(1 << 19), 1 << 19, (4, 5)))
    codec = _context_codec(_context(rng, network))
    full = np.zeros(f, np.int64)
    full[:258] = 16  # 32766, so that a level of 2 leads to 2^15 and one of 3 past it
    full[290:] = rng.integers(0, 2, 20)
    rows = {"kept": {260: 2}, "out": {260: 3}, "first kept": {275: 3}, "second": {275: 2, 285: 1}, "all": {285: 2}}
    dense = np.zeros((2 * len(rows), f), np.int64)
    dense[1::2] = rng.integers(0, 20, (len(rows), f)) * (rng.random((len(rows), f)) < 0.1)
    for row, more in zip(dense[::2], rows.values(), strict=True):
        row[:] = full
        row[list(more)] = list(more.values())
    for columns in ({}, {"seq": np.arange(len(dense)) // 2}):
        codes = Codes.from_dense(dense, columns)
        chunk = _assert_decodes(codec, codes)
        for limit in ((1 << 15) - 1, (1 << 15) + 1):  # which rows stay context matters
            with monkeypatch.context() as patch:
                patch.setattr(network_module, "ROW_GAIN", limit)
                assert codec.latents.pack(codes) != chunk


@pytest.mark.parametrize("residual", [False, True])
def test_files_with_a_context_prior_decode_to_the_same_levels_and_rows(tmp_path, residual):
    sae, path, rng = _sae(), tmp_path / "c.saecodec", np.random.default_rng(11)
    prior = _context(rng, _network(rng, LATENTS, 3, 6))
    codec = _context_codec(prior, sae.decoder_id, sae)
    if residual:
        codec = replace(codec, residual=_layer(SHAPES["blocks"]))
    saecodec.save_codec(codec, path, embed_sae=True)
    given = reference.read_codec(path.read_bytes())
    assert given.head["version"] == [1, 2]
    codes = codec.quantize(_rows(40))
    codes = replace(codes, columns={"seq": np.arange(40) // 7})
    levels = rng.integers(-4, 5, (40, codec.residual.n_components)).astype(np.int32) if residual else None
    layers = Layers(codes, levels)
    parts = [layers[:15], layers[15:15], layers[15:]]
    for embed in ("none", "tables", "decoder"):
        data, file = _saec_bytes(codec, parts, embed), tmp_path / "x.saec"
        file.write_bytes(data)
        found = reference.read_saec(data, codec=given if embed != "decoder" else None)
        features = ["prior:context", *(["layer:residual"] if residual else [])]
        assert (found.header["version"], found.header["requires"]) == ([1, 2], features)
        np.testing.assert_array_equal(_levels(found.rows, LATENTS), codes.to_dense())
        with open_saec(file, codec=saecodec.load_codec(path)) as opened:
            if residual:
                np.testing.assert_array_equal(found.residual, levels)
                _assert_near(found.x_hat, opened.rows(), layers, codec)
            _assert_close(found.base, opened.rows(base_only=True))
            assert found.header["codec_id"].hex() == opened.codec.codec_id


def test_everything_that_decides_a_bin_is_in_the_identity_and_nothing_informative():
    rng = np.random.default_rng(12)
    network = _network(rng, 9, 3, 2)
    network = replace(network, block=np.arange(9) % 3, context=np.ones((6, 6), np.int8), n_bins=9, n_level_bins=7)
    prior = _context(rng, network)

    def codec_id(prior: ContextPrior) -> str:
        codec = _context_codec(prior)
        assert reference.codec_id(reference.tables_of(codec.tables()), codec.decoder_id) == codec.codec_id
        return codec.codec_id

    changed = [
        *(replace(network, **{name: getattr(network, name) + 1}) for name in ("shift", "n_bins", "gains", "out_bias")),
        *(replace(network, **{name: getattr(network, name) ^ 1}) for name in ("bias", "shifts", "level_bias")),
        *(replace(network, **{name: -getattr(network, name) // 2}) for name in ("context", "out", "level_out")),
        replace(network, level_shift=network.level_shift ^ 1),
        replace(network, n_level_bins=8),
        replace(network, block=(np.arange(9) + 1) % 3),
    ]
    priors = [
        *(_context(np.random.default_rng(12), n) for n in changed),
        replace(prior, signed=True),
        replace(prior, level_class=prior.level_class ^ 1),
        replace(prior, support=replace(prior.support, codes=np.zeros_like(prior.support.codes))),
        replace(prior, levels=replace(prior.levels, codes=np.zeros_like(prior.levels.codes))),
    ]
    ids = [codec_id(changed) for changed in priors]
    assert len({codec_id(prior), *ids}) == len(priors) + 1
    for informative in (replace(prior, cost=prior.cost ^ 1), replace(prior, cost_bin=0 * prior.cost_bin)):
        assert codec_id(informative) == codec_id(prior)


def _context_tables(
    *,
    sizes: tuple[int, ...] = (3, 2, 1),
    shifts: tuple[int, ...] = (0, 0),
    n_bins: tuple[int, ...] = (2, 2),
    signed: int = 0,
    block: tuple[int, ...] = (0, 0, 1),
    gains: tuple[int, ...] = (1,) * 16,
    unit_shifts: tuple[int, ...] = (0,),
    biases: tuple[tuple[int, ...], ...] = ((0, 0), (0, 0, 1), (0, 1, 1)),
    weights: tuple[int, ...] = (0,) * 12,
    packed: bytes | None = None,
    members: tuple[int, ...] = (2, 2),
    codes: tuple[tuple[tuple[int, ...], ...], ...] = (((9, 9),), ((20, 0),)),
    latents: tuple[tuple[int, ...], ...] = ((0, 0, 1), (8, 8, 320), (0, 1, 1)),
    centroids: tuple[int, ...] = (0,) * 32,
    name: bytes = b"context",
    tail: bytes = b"",
) -> bytes:
    """The payload of TABL, as valid as its arguments. By itself: the bins of columns are 0, 0, 1, their level bins
    0, 1, 1, whatever the context; a gap costs about a bit, a level next to none."""
    head = blob(name) + varints([signed, *sizes, *shifts, *n_bins])
    arrays = b"".join(pack_ints(np.array(values)) for values in (block, gains, unit_shifts))
    arrays += b"".join(pack_ints(zigzag(np.array(values, np.int64))) for values in biases)
    frame = zstandard.ZstdCompressor().compress(np.array(weights, np.int8).tobytes()) if packed is None else packed
    tables = b"".join(
        TableSet(np.zeros(n, np.int64), np.array(rows), 0).to_bytes() for n, rows in zip(members, codes, strict=True)
    )
    tables += b"".join(pack_ints(np.array(values)) for values in latents)
    quantizer = struct.pack("<d", 0.5) + pack_ints(zigzag(np.array(centroids)))
    return head + arrays + blob(frame) + tables + quantizer + tail


_ZSTD = zstandard.ZstdCompressor()
_SILENT = zstandard.ZstdCompressor(write_content_size=False)
_LARGE = (1 << 22) - 1


@pytest.mark.parametrize(
    "payload",
    [
        _context_tables(name=b"contexts"),
        _context_tables(signed=2),
        *[_context_tables(sizes=sizes) for sizes in ((2, 2, 1), (3, 1, 1), (3, 3, 1), (3, 2, 2), (0, 2, 1), (3, 0, 1))],
        _context_tables(sizes=(3, 2, 0), unit_shifts=(), biases=((), (0, 0, 1), (0, 1, 1)), weights=()),
        _context_tables(sizes=(3, 257, 1), biases=((0,) * 257, (0, 0, 1), (0, 1, 1)), weights=(0,) * 15),
        _context_tables(
            sizes=(3, 2, 781), unit_shifts=(0,) * 781, biases=((0,) * 1562, (0, 0, 1), (0, 1, 1)), weights=(0,) * 9372
        ),
        _context_tables(sizes=((1 << 24) + 1, 2, 1)),
        *[_context_tables(shifts=shifts) for shifts in ((24, 0), (0, 24))],
        _context_tables(n_bins=(0, 2), members=(0, 2)),
        _context_tables(n_bins=(2, 0), members=(2, 0), latents=((0, 0, 1), (8, 8, 320), (0, 0, 0))),
        _context_tables(n_bins=(129, 2), members=(129, 2)),
        _context_tables(n_bins=(2, 129), members=(2, 129)),
        _context_tables(members=(3, 2)),
        _context_tables(members=(2, 1)),
        _context_tables(block=(0, 0, 2)),
        _context_tables(block=(0, 1, 1)),  # then U has one row, and the weights are too many
        _context_tables(gains=(128,) + (1,) * 15),
        _context_tables(gains=(1,) * 15),
        _context_tables(unit_shifts=(24,)),
        *[_context_tables(biases=((0, n), (0, 0, 1), (0, 1, 1))) for n in (1 << 22, -(1 << 22), 1 << 37)],
        *[_context_tables(biases=((0, 0), (0, 0, n), (0, 1, 1))) for n in (1 << 22, -(1 << 22))],
        *[_context_tables(biases=((0, 0), (0, 0, 1), (n, 1, 1))) for n in (1 << 22, -(1 << 22))],
        *[_context_tables(weights=(0,) * i + (-128,) + (0,) * (11 - i)) for i in (0, 7, 11)],
        *[_context_tables(weights=(0,) * n) for n in (0, 11, 13, 15)],
        _context_tables(packed=b""),
        _context_tables(packed=b"not zstd"),
        _context_tables(packed=_SILENT.compress(bytes(12))),
        _context_tables(packed=_ZSTD.compress(bytes(12))[:-1]),
        _context_tables(packed=_ZSTD.compress(bytes(12)) + b"\0"),
        _context_tables(packed=_ZSTD.compress(bytes(12)) * 2),
        _context_tables(packed=_ZSTD.compress(bytes(11)).replace(b"\x20\x0b", b"\x20\x0c", 1)),  # announces one more
        _context_tables(packed=_ZSTD.compress(bytes(13)).replace(b"\x20\x0d", b"\x20\x0c", 1)),
        _context_tables(latents=((0, 0, 1 << 10), (8, 8, 320), (0, 1, 1)), centroids=(0,) * 16 * 1025),
        _context_tables(latents=((0, 0, 1), (8, 8, 321), (0, 1, 1))),
        _context_tables(latents=((0, 0, 1), (8, 8, 320), (0, 1, 2))),
        _context_tables(latents=((0, 1), (8, 8, 320), (0, 1, 1))),
        *[_context_tables(centroids=(0,) * n) for n in (16, 48)],
        _context_tables(centroids=(128,) * 32),
        _context_tables(tail=b"\0"),
        _context_tables()[:-1],
    ],
)
def test_context_priors_that_both_refuse(payload):
    biases = ((_LARGE, -_LARGE), (0, _LARGE, -_LARGE), (_LARGE, 0, -_LARGE))
    weights = tuple(127 if i % 2 else -127 for i in range(12))
    good = _context_tables(shifts=(23, 23), gains=(127,) * 16, unit_shifts=(23,), biases=biases, weights=weights)
    ours, theirs = reference.tables_of(good), Codec.from_tables(good, "00" * 32, {}, "tables")
    assert ours.network.hidden_bias == [[_LARGE], [-_LARGE]] == theirs.latents.prior.network.bias.tolist()
    assert ours.network.level_out == [[127], [-127], [127]] == theirs.latents.prior.network.level_out.tolist()
    assert reference.codec_id(ours, "00" * 32) == theirs.codec_id
    _refused_by_both(lambda: reference.tables_of(payload), lambda: Codec.from_tables(payload, "00" * 32, {}, "tables"))


def _context_chunk(
    n_rows: int = 2,
    counts: tuple[int, ...] = (2, 1),
    level_counts: tuple[int, ...] = (1, 2),
    gaps: tuple[int, ...] = (1, 1, 0),
    magnitudes: tuple[int, ...] = (0, 4, 7),
    words: tuple[int, ...] = (0, 0),
    tail: bytes = b"",
) -> bytes:
    """A chunk under the tables of `_context_tables`, as valid as its arguments. words: more of each stream than it
    says. By itself (0, 0, 8), (1, 5, 0), from ranks 1 and 3 of bin 0, and 0 of bin 1."""
    prior = Codec.from_tables(_context_tables(), "00" * 32, {}, "tables").latents.prior
    streams = [
        encode_runs(np.array(values, np.int64), np.array([0, len(values)]), [0, 1], tables.models)[0]
        for values, tables in ((gaps, prior.support), (magnitudes, prior.levels))
    ]
    lengths = [len(stream) // 4 + n for stream, n in zip(streams, words, strict=True)]
    return varints([n_rows, 0, *counts, *level_counts, *lengths]) + b"".join(streams) + tail


_FAR = (1 << 40) - 1


@pytest.mark.parametrize(
    "chunk",
    [
        _context_chunk(gaps=(1, 2, 0)),  # rank 4 of bin 0, which has 4 cells
        _context_chunk(gaps=(4, 0, 0)),
        _context_chunk(gaps=(1, 1, 2)),  # rank 2 of bin 1, which has 2
        _context_chunk(gaps=(1, 1, _FAR)),
        _context_chunk(2, (4, 0), (2, 2), (_FAR,) * 4, (0, 0, 0, 0)),
        _context_chunk(counts=(1, 2)),
        _context_chunk(counts=(0, 3)),  # in bin 1 there is no room for three
        _context_chunk(counts=(2, 2)),
        _context_chunk(counts=(2, 0)),
        _context_chunk(counts=(2, 1 << 24)),
        _context_chunk(counts=(2, (1 << 24) + 1), level_counts=(1, (1 << 24) + 2)),
        _context_chunk(2, (4, 3), (4, 3), (0,) * 7, (0,) * 7),  # 7 nonzeros of 6 cells
        _context_chunk(0, (1, 0), (1, 0), (0,), (0,)),
        *[_context_chunk(level_counts=counts) for counts in ((2, 1), (0, 3), (3, 0))],  # not those of the network
        *[_context_chunk(level_counts=counts) for counts in ((1, 1), (1, 3), (0, 0))],
        _context_chunk(magnitudes=(0, 4, 1 << 20)),
        _context_chunk(counts=(2, 1, 0)),
        _context_chunk(gaps=(1, 1, 0, 0) * 30),  # words left
        _context_chunk(magnitudes=(0, 4, *[1 << 19] * 9)),
        *[_context_chunk(words=words) for words in ((1, 0), (0, 1), (-1, 0), (0, -1), (1 << 40, 0))],
        *[_context_chunk(words=words, tail=bytes(8)) for words in ((2, 0), (0, 2))],
        _context_chunk(2, (0, 0), (0, 0), (), (), (1, 0), bytes(4)),  # words, but nothing coded
        _context_chunk(2, (1, 0), (1, 0), (), ()),
        _context_chunk(2, (1, 0), (1, 0), (0,), ()),
        _context_chunk(2, (1, 0), (1, 0), (), (0,)),
        _context_chunk(tail=b"\0"),
        _context_chunk()[:-1],
        _context_chunk()[:5],
        _context_chunk((1 << 20) + 1),
        _context_chunk(1 << 20, (1 << 20, 0), (1 << 20, 0)),  # more gaps than the stream can hold
    ],
)
def test_context_chunks_that_both_refuse(chunk):
    tables = _context_tables()
    ours, theirs = reference.tables_of(tables), Codec.from_tables(tables, "00" * 32, {}, "tables").latents
    largest = 1 << 20
    for good, levels in (
        (_context_chunk(), [[0, 0, 8], [1, 5, 0]]),
        (_context_chunk(2, (4, 2), (2, 4), (0,) * 6, (0, 1, 2, 3, 4, largest - 1)), [[1, 3, 5], [2, 4, largest]]),
        (_context_chunk(2, (0, 0), (0, 0), (), ()), [[0, 0, 0], [0, 0, 0]]),
        (_context_chunk(0, (0, 0), (0, 0), (), ()), []),
    ):
        assert _levels(reference.chunk_of(good, ours).rows, 3).tolist() == levels
        assert theirs.unpack(good).to_dense().tolist() == levels
    _refused_by_both(lambda: reference.chunk_of(chunk, ours), lambda: theirs.unpack(chunk))


@pytest.mark.parametrize("likely", [0, 1])
def test_more_gaps_or_levels_than_their_stream_can_hold_are_refused_by_both_before_they_are_decoded(likely):
    """One of them costs about a bit, the other next to nothing."""
    codes = [((9, 9),), ((9, 9),)]
    codes[likely] = ((20, 0),)
    tables = _context_tables(codes=tuple(codes))
    ours, theirs = reference.tables_of(tables), Codec.from_tables(tables, "00" * 32, {}, "tables").latents
    chunk = _context_chunk(1 << 20, (1 << 20, 0), (1 << 20, 0))
    with pytest.raises(FormatError, match="cannot come from streams"):
        theirs.unpack(chunk)
    with pytest.raises(reference.Refused, match="fits its stream"):
        reference.chunk_of(chunk, ours)


@pytest.mark.parametrize("sizes", [(1 << 24, 2, 4), (17_208, 2, 780)])
def test_a_network_of_more_than_2_to_the_26_weights_is_refused_by_both_before_it_is_read(sizes):
    payload = _context_tables(sizes=sizes)
    with pytest.raises(FormatError, match="is not possible"):
        Codec.from_tables(payload, "00" * 32, {}, "tables")
    with pytest.raises(reference.Refused, match="at most 2\\^26 weights"):
        reference.tables_of(payload)


def test_a_chunk_of_more_than_2_to_the_24_hidden_values_is_refused_by_both():
    tables = _context_tables(
        sizes=(3, 1, 17),
        block=(0, 0, 0),
        unit_shifts=(0,) * 17,
        biases=((0,) * 17, (0, 0, 1), (0, 1, 1)),
        weights=(0,) * 2 * 3 * 17,
    )
    ours, theirs = reference.tables_of(tables), Codec.from_tables(tables, "00" * 32, {}, "tables").latents
    for n_rows in (1 << 20, (1 << 24) // 17 + 1):
        chunk = _context_chunk(n_rows, (0, 0), (0, 0), (), ())
        _refused_by_both(lambda chunk=chunk: reference.chunk_of(chunk, ours), lambda chunk=chunk: theirs.unpack(chunk))
    assert theirs.unpack(_context_chunk((1 << 24) // 17, (0, 0), (0, 0), (), ())).nnz == 0


def _read_alike(ours: Callable[[], object], theirs: Callable[[], object]) -> bool:
    """Both refuse, or read the same; whether they refuse. constriction sees some ends of streams that cannot be, which
    the document does not tell of."""
    try:
        found = theirs()
    except saecodec.SaecodecError as error:
        if "did not end where its stream ends" not in str(error):
            with pytest.raises(reference.Refused):
                ours()
        return True
    assert ours() == found
    return False


def test_damaged_context_chunks_are_refused_by_both_or_read_alike():
    """Without the CRC of a frame around them."""
    rng = np.random.default_rng(13)
    codec = _context_codec(_context(rng, _network(rng, 12, 3, 3), signed=True))
    tables, refused, n = reference.tables_of(codec.tables()), 0, 0
    chunk = codec.latents.pack(_some_codes(rng, 8, 12, signed=True, sequences=True))
    for at in range(len(chunk)):
        for bit in rng.permutation(8)[:2].tolist():
            bad = chunk[:at] + bytes([chunk[at] ^ 1 << bit]) + chunk[at + 1 :]
            n += 1
            refused += _read_alike(
                lambda bad=bad: _levels(reference.chunk_of(bad, tables).rows, 12).tolist(),
                lambda bad=bad: codec.latents.unpack(bad).to_dense().tolist(),
            )
    assert 0.5 < refused / n < 1


def test_damaged_context_priors_are_refused_by_both_or_read_alike():
    rng = np.random.default_rng(14)
    network = replace(_network(rng, 7, 3, 2), n_bins=5, n_level_bins=4)
    data = _context_codec(_context(rng, network)).tables()
    for at in range(len(data)):
        bad = data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
        _read_alike(
            lambda bad=bad: reference.codec_id(reference.tables_of(bad), "00" * 32),
            lambda bad=bad: Codec.from_tables(bad, "00" * 32, {}, "tables").codec_id,
        )


# -- side information --------------------------------------------------------------------------------------------------

NORMALIZING = KINDS[1:]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", NORMALIZING)
def test_files_with_side_information_decode_to_the_same_rows(tmp_path, kind, residual):
    sae = replace(_sae(), normalization=kind)
    x = (3 * _rows(300) + _rows(300, seed=5)[:, :1]).reshape(6, 50, WIDTH)
    x[1, 2] = 0
    codec = Codec.fit(sae, x, "0.4rms", residual=residual)
    saecodec.save_codec(codec, tmp_path / "c.saecodec", embed_sae=True)
    given = reference.read_codec((tmp_path / "c.saecodec").read_bytes())
    assert (given.normalization, given.side.payload) == (kind, codec.side.to_bytes())
    weights = sae.decoder_tensors() | sae.decoder_config()
    assert reference.decoder_id(**weights) == codec.decoder_id == given.head["decoder_id"].hex()
    assert reference.codec_id(given.tables, codec.decoder_id, given.residual, given.side) == codec.codec_id
    assert reference.codec_id(given.tables, codec.decoder_id, given.residual) != codec.codec_id
    for embed, needed in (("none", {"codec": given}), ("tables", weights), ("decoder", {})):
        encode_array(MemoryArray(x), tmp_path / f"{embed}.saec", codec=codec, embed=embed, chunk_rows=128)
        found = reference.read_saec((tmp_path / f"{embed}.saec").read_bytes(), **needed)
        with open_saec(tmp_path / f"{embed}.saec", codec=codec) as file:
            _assert_close(found.x_hat, file.rows().reshape(file.shape))
            _assert_close(found.base, file.rows(base_only=True).reshape(file.shape))


def test_a_decoder_of_another_normalization_is_refused_by_both(tmp_path):
    sae = replace(_sae(), normalization="row_norm")
    encode_array(MemoryArray(_rows(40)), tmp_path / "x.saec", sae=sae, embed="tables")
    for kind in ("none", "layer_norm"):
        other = replace(sae, normalization=kind)
        with open_saec(tmp_path / "x.saec", sae=other) as file:
            _refused_by_both(
                lambda kind=kind: reference.read_saec(
                    (tmp_path / "x.saec").read_bytes(), **sae.decoder_tensors(), normalization=kind
                ),
                file.rows,
            )


@pytest.mark.parametrize("kind", NORMALIZING)
def test_damaged_side_information_is_refused_by_both_or_read_alike(kind):
    """Every bit, every cut, and a byte behind it."""
    good = SideQuantizer(kind, 300, 0.85, *((0.25, -0.75) if kind == "layer_norm" else ())).to_bytes()
    flipped = [good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :] for at in range(len(good)) for bit in range(8)]
    values = np.array([0, 1, -1, 77, -900, (1 << 38) - 1, 1 - (1 << 38)])
    columns = {"side.scale": values, "side.mean": values[::-1]}
    chunk = reference.Chunk([{}] * len(values), {name: array.tolist() for name, array in columns.items()})
    read = 0

    def theirs(bad: bytes, columns: dict[str, Any]) -> list[float]:
        side = SideQuantizer.from_bytes(bad, "x").side(columns)
        means = np.zeros(len(side.scale)) if side.mean is None else side.mean
        return [*side.scale.tolist(), *means.tolist()]

    def ours(bad: bytes, chunk: Any) -> list[float]:
        pairs = reference.scales_and_means(chunk, reference.side_of(bad))
        return np.array(pairs, np.float32).T.ravel().tolist()

    for bad in [good, *flipped, *(good[:end] for end in range(len(good))), good + b"\0"]:
        for part in (slice(0, 4), slice(4, 5), slice(5, 6), slice(6, 7)):
            few = reference.Chunk(chunk.rows[part], {name: v[part] for name, v in chunk.columns.items()})
            some = {name: array[part] for name, array in columns.items()}
            read += not _read_alike(
                lambda bad=bad, few=few: pytest.approx(ours(bad, few), rel=1e-6),
                lambda bad=bad, some=some: theirs(bad, some),
            )
    assert read > 40


# -- the document ------------------------------------------------------------------------------------------------------


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _example() -> bytes:
    lines = [line.split(";")[0] for line in _blocks("hexdump")[0].splitlines()]
    return bytes.fromhex(" ".join(line.split(":", 1)[1] for line in lines if ":" in line))


EXAMPLE_LEVELS = [[2, 0, 0], [0, 0, 0], [1, 0, -3], [0, 20, 0]]


def test_the_documents_example_decodes_as_it_says(tmp_path):
    w_dec, b_dec = [[1, 0], [0, 2], [3, 4]], [0.5, -0.25]
    found = reference.read_saec(_example(), w_dec=w_dec, b_dec=b_dec)
    assert _levels(found.rows, 3).tolist() == EXAMPLE_LEVELS
    assert found.chunks[0].columns == {"doc": [0, 0, 7, 7]}
    path = tmp_path / "example.saec"
    path.write_bytes(_example())
    sae = SAE(torch.tensor(w_dec, dtype=torch.float32), torch.tensor(b_dec), None, "standard")
    with open_saec(path, sae=sae) as file:
        assert Codes.concatenate(file.codes(), 3).to_dense().tolist() == EXAMPLE_LEVELS
        _assert_close(found.x_hat, file.rows().reshape(file.shape))


def test_the_documents_script_still_makes_its_example():
    (script,) = (block for block in _blocks("python") if "SaecWriter" in block)
    space: dict[str, object] = {}
    exec(script, space)
    made, written = space["data"], _example()
    for ours, theirs in zip(reference.frames_of(made, 8), reference.frames_of(written, 8), strict=True):
        # HEAD names the version of saecodec, and INDX and TAIL hold offsets behind it.
        if ours.kind in ("TABL", "CHNK"):
            assert ours.payload == theirs.payload
    head, shown = (reference.read_header(reference.frames_of(data, 8)[0].payload) for data in (made, written))
    assert head | {"made_by": ""} == shown | {"made_by": ""}
    text = DOCUMENT.read_text(encoding="utf-8")
    assert head["codec_id"].hex() in text
    assert head["decoder_id"].hex() in text


def test_the_documents_residual_layer_is_as_it_says():
    first, second = (block for block in _blocks("python"))
    space: dict[str, Any] = {}
    exec(first, space)
    exec(second, space)
    lines = [line.split(";")[0].split(":", 1)[1] for line in _blocks("hexdump")[1].splitlines()]
    shown = bytes.fromhex(" ".join(lines))
    assert space["rtab"] + space["rchk"] == shown
    layer = reference.residual_of(space["rtab"])
    assert reference.residual_levels(shown[len(space["rtab"]) :], layer, 4) == [[1], [0], [-2], [40]]
    tables = reference.tables_of(space["codec"].tables())
    base = reference.reconstruct(reference.read_saec(_example()).rows, tables, [[1, 0], [0, 2], [3, 4]], [0.5, -0.25])
    rows = base + reference.residual_rows([[1], [0], [-2], [40]], layer)
    text = DOCUMENT.read_text(encoding="utf-8")
    for row in rows:
        assert "({:.10g}, {:.10g})".format(*row) in text
    assert reference.codec_id(tables, space["codec"].decoder_id, layer) == space["codec_id"]
    assert space["codec_id"] in text
    assert struct.pack("<dd", layer.step, layer.unit).hex() in text


def test_the_documents_worked_table_is_right():
    text = DOCUMENT.read_text(encoding="utf-8")
    codes = np.zeros(304, np.int64)
    codes[:3] = 20, 17, 5
    weights = [f"{w}" for w in expand(codes, 1)[:4]]
    assert reference.table_of([20, 17, 5], 1) == expand(codes, 1).tolist()
    assert all(weight in text for weight in weights)


@pytest.mark.parametrize("bits", [[], [1], [16], [17], [37], [5, 20, 3, 37, 16]])
def test_uniform_integers_come_in_pieces_of_16_bits(bits):
    values = [(1 << n) - 1 - 5 * i % (1 << n) for i, n in enumerate(bits)]
    encoder = StreamEncoder()
    encoder.put_bits(np.array(values, np.int64), np.array(bits, np.int64))
    stream = reference.Stream(encoder.finish())
    assert stream.uniform(bits) == values
    stream.end()


# -- golden files ------------------------------------------------------------------------------------------------------


@functools.cache
def _golden_maker():
    return _load(GOLDEN / "make_golden.py")


def _golden(pattern: str) -> list[Path]:
    return sorted(GOLDEN.glob(pattern))


@pytest.mark.parametrize("path", _golden("*.saecodec"), ids=lambda path: path.name)
def test_golden_codecs_are_read_alike(path):
    found, codec = reference.read_codec(path.read_bytes()), saecodec.load_codec(path)
    decoder_id = found.head["decoder_id"].hex()
    assert reference.codec_id(found.tables, decoder_id, found.residual, found.side) == codec.codec_id
    assert (found.residual is None) == (codec.residual is None)
    assert found.tables.step == codec.quantizer.step
    assert bool(found.tensors) == (codec.sae is not None)


@pytest.mark.parametrize("path", _golden("*.saec"), ids=lambda path: path.name)
def test_golden_files_decode_alike(path):
    """A file that embeds no tables is read with the golden codec that has its id; one whose side information needs a
    decoder to be seen, and has none, with that of its formula."""
    data, codecs = path.read_bytes(), [(p, saecodec.load_codec(p)) for p in _golden("*.saecodec")]
    with open_saec(path) as file:
        wanted = file.header.codec_id
    given = next(((p, codec) for p, codec in codecs if codec.codec_id == wanted), None)
    sae = _golden_maker().FILES[path.stem].sae() if path.stem in ("heads", "row_norm") else None
    weights = {} if sae is None else sae.decoder_tensors() | sae.decoder_config()
    found = reference.read_saec(data, codec=given and reference.read_codec(given[0].read_bytes()), **weights)
    with open_saec(path, codec=given and given[1], sae=sae) as file:
        codes = Codes.concatenate(file.codes(), found.tables.n_latents)
        np.testing.assert_array_equal(_levels(found.rows, found.tables.n_latents), codes.to_dense())
        columns = {name: values.tolist() for name, values in codes.columns.items()}
        assert columns == {name: [v for c in found.chunks for v in c.columns[name]] for name in columns}
        if file.header.residual:
            np.testing.assert_array_equal(found.residual, np.concatenate([part.residual for part in file.layers()]))
        assert (found.latents is not None) == file.holds_latents
        if found.latents is not None:
            rows = list(latent_rows(file, dtype="float32"))
            values = np.concatenate([part.values for part in rows])
            rtol = 0 if file.header.values.exact else 1e-6
            np.testing.assert_allclose([z for row in found.latents for z in row.values()], values, rtol=rtol, atol=0)
        if found.x_hat is not None:
            assert found.x_hat.shape == found.base.shape == file.shape
            _assert_close(found.x_hat.reshape(-1, file.header.width), file.rows())
            _assert_close(found.base.reshape(-1, file.header.width), file.rows(base_only=True))


@pytest.mark.parametrize("path", _golden("*.frames"), ids=lambda path: path.name)
def test_golden_chunks_decode_alike(path):
    (_, payload), (_, chunk) = ((part.kind, part.payload) for part in reference.frames_of(path.read_bytes(), 0))
    latents = LatentCodec.from_bytes(payload)
    n_classes, level_class = latents.prior.n_level_classes, latents.prior.level_class
    quantizer = Quantizer(1.0, np.zeros((n_classes, 16), np.int64), level_class)  # the tables have none
    found = reference.chunk_of(chunk, reference.tables_of(payload + quantizer.to_bytes()))
    codes = latents.unpack(chunk)
    np.testing.assert_array_equal(_levels(found.rows, codes.n_latents), codes.to_dense())
    assert found.columns == {name: values.tolist() for name, values in codes.columns.items()}


@pytest.mark.parametrize("path", _golden("*.rows"), ids=lambda path: path.name)
def test_golden_chunks_of_zarr_arrays_decode_alike(path):
    case = _golden_maker().ZARR[path.stem]
    codec_file, n_rows = GOLDEN / f"{case.codec}.saecodec", case.shape[0] * case.shape[1]
    codec, known = saecodec.load_codec(codec_file), reference.read_codec(codec_file.read_bytes())
    wanted = FilledRows.read(codec, path.read_bytes(), n_rows)
    coded, chunks, residual = reference.read_filled_rows(path.read_bytes(), n_rows, known.tables, known.residual)
    assert coded == wanted.coded.tolist()
    ((chunk,), (part,)) = (chunks, wanted.parts)
    np.testing.assert_array_equal(_levels(chunk.rows, known.tables.n_latents), part.codes.to_dense())
    np.testing.assert_array_equal(residual, part.residual)


def _ends_of_trailers(data: bytes) -> list[int]:
    return [frame.offset + frame.size for frame in reference.frames_of(data, 8) if frame.kind == "TAIL"]


def test_every_generation_is_a_file_to_both(tmp_path):
    data = (GOLDEN / "appended.saec").read_bytes()
    ends = _ends_of_trailers(data)
    assert len(ends) == 3
    for end, blocks in zip(ends, (2, 3, 5), strict=True):
        (tmp_path / "prefix.saec").write_bytes(data[:end])
        with open_saec(tmp_path / "prefix.saec") as file:
            assert verify_file(file).rows == 40 * blocks
            assert file.shape == (blocks, 40, 8)
        assert reference.read_saec(data[:end]).shape == [blocks, 40, 8]


def _damaged(draw: Callable[..., Any], data: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["flip", "cut", "leave out", "put in", "twice"]))
        length = draw(st.integers(1, 300))
        piece = {
            "flip": bytes([*data[at : at + 1]]).translate(bytes(b ^ 16 for b in range(256))) + data[at + 1 :],
            "cut": b"",
            "leave out": data[at + length :],
            "put in": draw(st.binary(max_size=40)) + data[at:],
            "twice": data[max(at - length, 0) :],
        }[kind]
        data = data[:at] + piece
    return data


@pytest.mark.parametrize("name", ["appended", "residual", "none"])
@given(drawn=st.data())
def test_both_recover_the_same_chunks_of_a_damaged_file(name, tmp_path_factory, drawn):
    folder = tmp_path_factory.mktemp("r")
    data = _damaged(drawn.draw, (GOLDEN / f"{name}.saec").read_bytes())
    _recover_both(data, folder)


@pytest.mark.parametrize("name", ["decoder", "residual"])
def test_both_skip_the_same_damaged_frames_of_later_versions(name, tmp_path):
    data, note = (GOLDEN / f"{name}.saec").read_bytes(), frame("note", bytes(9), critical=False)
    preamble = [each.offset for each in reference.frames_of(data, 8) if each.kind not in ("RCHK", "INDX", "TAIL")]
    for at, hit in itertools.product(preamble[:4], range(len(note))):  # the last is the first chunk's
        damaged = bytearray(data[:at] + note + data[at:])
        damaged[at + hit] ^= 1
        _recover_both(bytes(damaged), tmp_path)


def _recover_both(data: bytes, folder: Path) -> None:
    (folder / "torn").write_bytes(data)
    try:
        wanted = reference.recover_saec(data)
    except reference.Refused:
        with pytest.raises(saecodec.SaecodecError):
            recover_file(folder / "torn", folder / "out.saec", force=True)
        return
    found = recover_file(folder / "torn", folder / "out.saec", force=True)
    out = (folder / "out.saec").read_bytes()
    chunks, leading = reference.recover_saec(out)
    assert (chunks, leading) == (wanted[0], list(wanted[1]))
    assert (found.chunks, list(found.shape[:-1])) == (len(chunks), leading)
    assert len(_ends_of_trailers(out)) == 1
