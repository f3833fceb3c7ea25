"""A codec with a residual layer: two layers in a chunk, of which the base may be decoded alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.errors import FormatError, InputError, SaecodecError
from saecodec.frames import frame, frames, pack_record, unpack_record
from saecodec.layers import Layers
from saecodec.row_coder import RowCoder
from saecodec.sae import SAE

Rows = NDArray[np.float32]
ExactRows = Callable[..., Rows]
Parts = list[tuple[str, bool, bytes]]


@pytest.fixture(scope="module")
def x(exact_rows: ExactRows) -> Rows:
    return exact_rows(300, seed=1)


@pytest.fixture(scope="module")
def codec(sae: SAE, exact_rows: ExactRows) -> Codec:
    """Fitted on other rows than `x`, with a residual layer."""
    return Codec.fit(sae, exact_rows(500), "1rms", residual=True)


@pytest.fixture(scope="module")
def plain(codec: Codec) -> Codec:
    return replace(codec, residual=None)


def split(data: bytes) -> Parts:
    return [(head.kind, head.critical, bytes(payload)) for head, payload in frames(data, "test")]


def join(parts: Parts) -> bytes:
    return b"".join(frame(kind, payload, critical=critical) for kind, critical, payload in parts)


def test_layers_are_sliced_together() -> None:
    codes = Codes.from_dense(np.arange(12).reshape(4, 3))
    levels = np.arange(8, dtype=np.int32).reshape(4, 2)
    part = Layers(codes, levels)[1:3]
    assert part.n_rows == 2
    np.testing.assert_array_equal(part.codes.to_dense(), codes.to_dense()[1:3])
    assert part.residual is not None
    np.testing.assert_array_equal(part.residual, levels[1:3])
    assert Layers(codes)[1:3].residual is None


# -- rows to bytes and back --------------------------------------------------------------------------------------------


def test_every_architecture_takes_a_residual_layer(
    make_sae: Callable[..., SAE], exact_rows: ExactRows, x: Rows, architecture: str
) -> None:
    codec = Codec.fit(make_sae(architecture), exact_rows(500), residual=True)
    data = codec.encode(x)
    error = np.square(x - codec.decode(data)).sum()
    assert error < 0.5 * np.square(x - codec.decode(data, base_only=True)).sum()


@pytest.mark.parametrize("chunk_rows", [1, 7, 299, 300, 301])
@pytest.mark.parametrize("search", ["none", "refit", "pursuit"])
def test_decoding_gives_what_the_layers_stand_for(codec: Codec, x: Rows, chunk_rows: int, search: str) -> None:
    if chunk_rows == 1:
        x = x[:40]
    data = codec.encode(x, chunk_rows=chunk_rows, search=search)  # type: ignore[arg-type]
    assert [kind for kind, _, _ in split(data)] == ["CHNK", "RCHK"] * -(-len(x) // chunk_rows)
    layers = RowCoder(codec, search)(x)  # type: ignore[arg-type]
    assert layers.residual is not None
    for found, expected in (
        (codec.decode(data), codec.reconstruct(layers.codes, layers.residual)),
        (codec.decode(data, base_only=True), codec.reconstruct(layers.codes)),
    ):
        differ = ~np.isclose(found, expected, atol=1e-4).all(axis=1)
        assert differ.mean() <= 0.02, "beyond ties of floats in the search"


def test_the_layers_of_a_chunk_come_back(codec: Codec, x: Rows, assert_same_codes: Callable[..., None]) -> None:
    layers = RowCoder(codec)(x)
    (found,) = codec.chunks(b"".join(codec.pack(layers)))
    assert_same_codes(found.codes, layers.codes)
    assert found.residual is not None
    assert layers.residual is not None
    np.testing.assert_array_equal(found.residual, layers.residual)
    (base,) = codec.chunks(b"".join(codec.pack(layers)), base_only=True)
    assert base.residual is None


def test_the_base_layer_is_that_of_the_codec_without_the_other(codec: Codec, plain: Codec, x: Rows) -> None:
    base = [part for part in split(codec.encode(x)) if part[0] == "CHNK"]
    assert base == split(plain.encode(x))
    np.testing.assert_array_equal(codec.decode(codec.encode(x), base_only=True), plain.decode(plain.encode(x)))


def test_encoded_rows_concatenate(codec: Codec, x: Rows) -> None:
    parts = codec.encode(x[:100]) + codec.encode(x[:0]) + codec.encode(x[100:])
    np.testing.assert_allclose(codec.decode(parts), codec.decode(codec.encode(x, chunk_rows=100)), atol=1e-5)


def test_no_rows_are_no_bytes(codec: Codec, x: Rows) -> None:
    assert codec.encode(x[:0]) == b""
    assert codec.decode(b"").shape == (0, 8)


def test_a_finer_residual_layer_errs_less(sae: SAE, x: Rows) -> None:
    errors = []
    for step in (3.0, 1.0, 0.3, 0.1):
        codec = Codec.fit(sae, x, step, residual=True)
        assert codec.residual is not None
        assert codec.residual.step == step / 2
        errors.append(float(np.square(x - codec.decode(codec.encode(x))).sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.2 * errors[0]


# -- the codec as bytes ------------------------------------------------------------------------------------------------


def test_a_codec_with_a_residual_layer_comes_back(codec: Codec, sae: SAE, x: Rows) -> None:
    back = Codec.from_bytes(codec.to_bytes())
    assert (back.codec_id, back.requires) == (codec.codec_id, ["prior:factorized", "layer:residual"])
    assert back.to_bytes() == codec.to_bytes()
    np.testing.assert_array_equal(back.with_sae(sae).decode(codec.encode(x)), codec.decode(codec.encode(x)))


def test_the_residual_layer_is_part_of_the_identity_and_its_absence_changes_none(codec: Codec, plain: Codec) -> None:
    ids = {codec.codec_id, plain.codec_id}
    layer = codec.residual
    assert layer is not None
    ids |= {replace(codec, residual=replace(layer, step=2 * layer.step)).codec_id}
    ids |= {replace(codec, residual=replace(layer, unit=2 * layer.unit)).codec_id}
    ids |= {replace(codec, residual=replace(layer, mean=layer.mean + 1)).codec_id}
    ids |= {replace(codec, residual=replace(layer, centroids=layer.centroids + 1)).codec_id}
    assert len(ids) == 6
    assert Codec.from_bytes(plain.to_bytes()).codec_id == plain.codec_id
    head = unpack_record(split(plain.to_bytes())[0][2], "test")
    assert (head["version"], head["requires"]) == ([1, 0], ["prior:factorized"])


def test_a_codec_file_must_hold_the_layer_that_it_requires(codec: Codec, plain: Codec) -> None:
    head, tables, layer = split(codec.to_bytes())
    assert [head[0], tables[0], layer[0]] == ["CHED", "TABL", "RTAB"]
    for parts in ([head, tables], [head, layer, tables], [head, tables, layer, layer], [head, layer]):
        with pytest.raises(FormatError, match=r"is frames .*RTAB"):
            Codec.from_bytes(join(parts))
    with pytest.raises(FormatError, match=r"a codec .*is (a frame CHED|frames ).*, found"):
        Codec.from_bytes(plain.to_bytes() + join([layer]))


def test_another_layer_than_that_of_the_codec_id_is_refused(codec: Codec) -> None:
    assert codec.residual is not None
    head, tables, _ = split(codec.to_bytes())
    other = replace(codec.residual, mean=codec.residual.mean + 1).to_bytes()
    with pytest.raises(FormatError, match="not those of the codec id"):
        Codec.from_bytes(join([head, tables, ("RTAB", True, other)]))


def test_a_layer_for_other_rows_is_refused(codec: Codec, sae: SAE) -> None:
    assert codec.residual is not None
    wide = replace(codec.residual, mean=np.zeros(9, np.int64))
    with pytest.raises(FormatError, match="residual layer is for rows of 9, the SAE for 8"):
        replace(codec, residual=wide).with_sae(sae)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_chunk_has_residual_levels_exactly_when_its_codec_has_that_layer(codec: Codec, plain: Codec, x: Rows) -> None:
    layers = RowCoder(codec)(x)
    for wrong, with_codec in ((Layers(layers.codes), codec), (layers, plain)):
        with pytest.raises(InputError, match="exactly when its codec has a residual layer"):
            with_codec.pack(wrong)


def test_a_chunk_without_its_residual_is_refused(codec: Codec, x: Rows) -> None:
    chunk, residual = split(codec.encode(x))
    for parts in ([chunk], [chunk, residual, chunk]):
        with pytest.raises(FormatError, match="the last chunk lacks its residual"):
            codec.decode(join(parts))
    with pytest.raises(FormatError, match="a CHNK frame where its residual is due"):
        codec.decode(join([chunk, chunk, residual]))
    for parts in ([residual], [chunk, residual, residual], [residual, chunk]):
        with pytest.raises(FormatError, match="a RCHK frame where a chunk begins"):
            codec.decode(join(parts))


def test_a_residual_of_another_number_of_rows_is_refused(codec: Codec, x: Rows) -> None:
    chunk, _ = split(codec.encode(x))
    _, residual = split(codec.encode(x[:200]))
    with pytest.raises(FormatError, match="encoded rows, residual"):
        codec.decode(join([chunk, residual]))
    assert codec.decode(join([chunk, residual]), base_only=True).shape == x.shape


def test_a_residual_is_refused_by_a_codec_without_that_layer(codec: Codec, plain: Codec, x: Rows) -> None:
    for base_only in (False, True):
        with pytest.raises(FormatError, match="every chunk of a codec with a residual layer, and no other"):
            plain.decode(codec.encode(x), base_only=base_only)


@given(st.data())
def test_damage_is_an_error_of_this_package(codec: Codec, x: Rows, data: st.DataObject) -> None:
    good = codec.encode(x[:20])
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SaecodecError):
        codec.decode(bytes(bad))


def test_a_header_that_says_nothing_of_the_layer_is_refused(codec: Codec) -> None:
    (_, critical, payload), *rest = split(codec.to_bytes())
    record = unpack_record(payload, "test") | {"requires": ["prior:factorized"]}
    with pytest.raises(FormatError, match=r"a codec .*is (a frame CHED|frames ).*, found"):
        Codec.from_bytes(join([("CHED", critical, pack_record(record)), *rest]))
