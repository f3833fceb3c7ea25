"""Codec files: what was fitted comes back, with its SAE when that is embedded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import pytest

import saecodec
from saecodec.codec import Codec
from saecodec.errors import FormatError, IdentityError, InputError, MissingPieceError, OutputError, UnsupportedError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.codecfile import MAGIC, codec_bytes, codec_facts, load_codec, read_codec_file, save_codec
from saecodec.formats.encoding import encode_array
from saecodec.formats.frame_file import MAGIC as SAEC_MAGIC
from saecodec.formats.saec import open_saec
from saecodec.frames import HEAD_BYTES, frame, pack_record
from saecodec.sae import SAE

ARCHITECTURES = ["standard", "jumprelu", "topk", "gated"]
Rows = npt.NDArray[np.float32]


@pytest.fixture
def path(codec: Codec, tmp_path: Path) -> Path:
    path = tmp_path / "c.saecodec"
    save_codec(codec, path)
    return path


@pytest.fixture
def whole(codec: Codec, tmp_path: Path) -> Path:
    """With the SAE."""
    path = tmp_path / "whole.saecodec"
    save_codec(codec, path, embed_sae=True)
    return path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("embed_sae", [False, True])
def test_a_codec_comes_back(
    make_sae: Callable[..., SAE], x: Rows, tmp_path: Path, architecture: str, embed_sae: bool
) -> None:
    sae, path = make_sae(architecture), tmp_path / "c.saecodec"
    codec = Codec.fit(sae, x)
    save_codec(codec, path, embed_sae=embed_sae)
    back = load_codec(path)
    assert (back.codec_id, back.decoder_id, back.info) == (codec.codec_id, codec.decoder_id, codec.info)
    assert back.tables() == codec.tables()
    assert (back.sae is not None) == embed_sae
    if embed_sae:
        assert back.sae is not None
        assert (back.sae.sae_id, back.sae.name) == (sae.sae_id, sae.name)
    else:
        back = back.with_sae(sae)
    assert back.encode(x) == codec.encode(x)
    np.testing.assert_array_equal(back.decode(codec.encode(x)), codec.decode(codec.encode(x)))


def test_a_codec_without_its_sae_decodes_codes_only(path: Path, codec: Codec, sae: SAE, x: Rows) -> None:
    back = load_codec(path)
    (codes,) = back.codes(codec.encode(x))
    assert np.array_equal(codes.to_dense(), codec.quantize(x).to_dense())
    for use in (lambda: back.encode(x), lambda: back.decode(codec.encode(x)), lambda: back.quantize(x)):
        with pytest.raises(MissingPieceError, match=f"needs SAE '{sae.name}' .*{sae.decoder_id[:16]}.*-s SAE"):
            use()


def test_another_sae_is_refused_with_both_ids(path: Path, sae: SAE, other_sae: SAE) -> None:
    with pytest.raises(IdentityError) as wrong:
        load_codec(path).with_sae(other_sae)
    for named in (repr(sae.name), sae.decoder_id, repr(other_sae.name), other_sae.decoder_id):
        assert named in str(wrong.value)


def test_the_top_of_the_package_saves_and_loads(codec: Codec, tmp_path: Path) -> None:
    saecodec.save_codec(codec, tmp_path / "c.saecodec")
    assert saecodec.load_codec(tmp_path / "c.saecodec").codec_id == codec.codec_id


def test_saving_twice_gives_the_same_bytes(codec: Codec, whole: Path, tmp_path: Path) -> None:
    save_codec(load_codec(whole), tmp_path / "again.saecodec", embed_sae=True)
    assert (tmp_path / "again.saecodec").read_bytes() == whole.read_bytes()


def test_a_decoder_alone_can_be_embedded(codec: Codec, sae: SAE, x: Rows, tmp_path: Path) -> None:
    decoder = SAE.from_tensors({"architecture": "standard"}, sae.decoder_tensors(), "decoder")
    save_codec(codec.with_sae(decoder), tmp_path / "c.saecodec", embed_sae=True)
    back = load_codec(tmp_path / "c.saecodec")
    np.testing.assert_array_equal(back.decode(codec.encode(x)), codec.decode(codec.encode(x)))
    with pytest.raises(MissingPieceError, match="encoding needs the whole SAE"):
        back.encode(x)


def test_there_must_be_an_sae_to_embed(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no SAE to embed"):
        save_codec(load_codec(path), tmp_path / "new.saecodec", embed_sae=True)
    assert not (tmp_path / "new.saecodec").exists()


def test_a_file_is_overwritten_only_when_forced(codec: Codec, path: Path) -> None:
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="already exists; pass --force"):
        save_codec(codec, path)
    assert path.read_bytes() == b"mine"
    save_codec(codec, path, force=True)
    assert load_codec(path).codec_id == codec.codec_id


def test_the_frames_are_listed(path: Path, whole: Path) -> None:
    assert [kind for kind, _ in read_codec_file(path)] == ["CHED", "TABL"]
    assert [kind for kind, _ in read_codec_file(whole)] == ["CHED", "TABL", "SAEW"]
    assert (
        MAGIC + b"".join(frame(kind, bytes(payload)) for kind, payload in read_codec_file(whole)) == whole.read_bytes()
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.saecodec: cannot be read \(No such file"):
        load_codec(tmp_path / "nothing.saecodec")


@pytest.mark.parametrize("data", [b"", MAGIC[:-1], SAEC_MAGIC + bytes(100), b"PK\3\4" + bytes(100)])
def test_another_kind_of_file_is_refused_by_its_magic(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(FormatError, match="not a codec file"):
        load_codec(path)


def test_a_file_cut_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    data, cut = path.read_bytes(), tmp_path / "cut.saecodec"
    for size in range(len(data)):
        cut.write_bytes(data[:size])
        with pytest.raises(FormatError):
            load_codec(cut)


def test_a_change_of_any_byte_is_noticed(path: Path, tmp_path: Path) -> None:
    data, flipped = path.read_bytes(), tmp_path / "flipped.saecodec"
    for at in range(len(data)):
        flipped.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        with pytest.raises(FormatError):
            load_codec(flipped)


def test_a_file_that_lost_its_weights_is_refused(whole: Path, frame_boundaries: Any) -> None:
    data = whole.read_bytes()
    whole.write_bytes(data[: frame_boundaries(data)[-2]])
    with pytest.raises(FormatError, match="says that it embeds 'sae', but holds 0 weights frames"):
        load_codec(whole)


def test_weights_cut_inside_are_refused(whole: Path, frame_boundaries: Any) -> None:
    data = whole.read_bytes()
    boundary = frame_boundaries(data)[-2]
    for size in (boundary + 1, boundary + 20, len(data) - 1):
        whole.write_bytes(data[:size])
        with pytest.raises(FormatError):
            load_codec(whole)


@pytest.mark.parametrize("kept", [[], [0], [1], [1, 0], [0, 0, 1], [0, 1, 1]])
@pytest.mark.parametrize("note", [[], [("note", False, b"")]])
def test_a_codec_is_its_head_and_its_tables(
    path: Path, take_apart: Any, put_together: Any, kept: list[int], note: list[Any]
) -> None:
    parts = take_apart(path.read_bytes())
    path.write_bytes(put_together(MAGIC, [*(parts[i] for i in kept), *note]))
    with pytest.raises(FormatError, match=r"a codec is a frame CHED|is frames .*, found"):
        load_codec(path)


@pytest.mark.parametrize(
    "place",
    [
        1,
        2,
        pytest.param(3),
    ],
)
def test_an_unknown_ancillary_frame_is_skipped_and_a_critical_one_refused_by_name(
    whole: Path, codec: Codec, take_apart: Any, put_together: Any, place: int
) -> None:
    parts = take_apart(whole.read_bytes())
    whole.write_bytes(put_together(MAGIC, [*parts[:place], ("note", False, b"hello"), *parts[place:]]))
    assert load_codec(whole).codec_id == codec.codec_id
    whole.write_bytes(put_together(MAGIC, [*parts[:place], ("WHAT", True, b"hello"), *parts[place:]]))
    with pytest.raises(UnsupportedError, match="frame 'WHAT' is needed to read it"):
        load_codec(whole)


def test_embedded_weights_of_another_sae_are_refused(
    whole: Path, other_sae: SAE, x: Rows, tmp_path: Path, take_apart: Any, put_together: Any
) -> None:
    save_codec(Codec.fit(other_sae, x), tmp_path / "other.saecodec", embed_sae=True)
    head, tables, _ = take_apart(whole.read_bytes())
    *_, weights = take_apart((tmp_path / "other.saecodec").read_bytes())
    whole.write_bytes(put_together(MAGIC, [head, tables, weights]))
    with pytest.raises(IdentityError, match=other_sae.decoder_id):
        load_codec(whole)


@pytest.fixture
def with_head(path: Path, take_apart: Any, put_together: Any) -> Callable[..., Path]:
    """The codec file with fields of its head changed, and all checksums valid."""

    def make(**fields: Any) -> Path:
        (_, _, head), tables = take_apart(path.read_bytes())
        path.write_bytes(
            put_together(MAGIC, [("CHED", True, pack_record({**msgpack.unpackb(head), **fields})), tables])
        )
        return path

    return make


def test_a_later_minor_version_and_unknown_fields_are_read(with_head: Callable[..., Path], codec: Codec) -> None:
    assert load_codec(with_head(version=[1, 99], invented=[1])).codec_id == codec.codec_id


def test_what_needs_a_later_version_is_refused_by_name(with_head: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match=r"format version 2\.0, this reads up to 1: update saecodec"):
        load_codec(with_head(version=[2, 0]))
    with pytest.raises(UnsupportedError, match=r"needs prior:psychic, unknown to this version: update saecodec"):
        load_codec(with_head(version=[1, 0], requires=["prior:psychic"]))


@pytest.mark.parametrize("field", ["version", "requires", "decoder_id", "embed", "info"])
def test_a_field_that_is_not_possible_is_refused(with_head: Callable[..., Path], field: str) -> None:
    for value in (None, {}, "", b"", -1, [None]):
        if (field, value) != ("info", {}):
            with pytest.raises(FormatError):
                load_codec(with_head(**{field: value}))


def test_a_file_that_announces_weights_it_does_not_hold_is_refused(with_head: Callable[..., Path]) -> None:
    with pytest.raises(FormatError, match="says that it embeds 'sae'"):
        load_codec(with_head(embed="sae"))


def test_the_codec_of_a_file_of_rows_is_the_one_whose_tables_it_holds(sae: SAE, x: Rows, tmp_path: Path) -> None:
    """So one copy of a file that is whole decodes another whose tables are damaged."""
    paths = tmp_path / "a.saec", tmp_path / "damaged.saec"
    encode_array(MemoryArray(x), paths[0], sae=sae)
    with open_saec(paths[0], sae=sae) as file:
        wanted, at = file.rows(), file.embedded_at["TABL"] + HEAD_BYTES + 30
    data = bytearray(paths[0].read_bytes())
    data[at] ^= 1
    paths[1].write_bytes(data)
    codec = load_codec(paths[0])
    assert codec.sae is None
    assert codec_bytes(paths[0]) == len(MAGIC) + len(codec.to_bytes())
    with open_saec(paths[1], sae=sae, codec=codec) as file:
        np.testing.assert_array_equal(file.rows(), wanted)
    encode_array(MemoryArray(x), tmp_path / "none.saec", codec=codec.with_sae(sae))
    with pytest.raises(MissingPieceError, match=r"none\.saec: holds no tables"):
        load_codec(tmp_path / "none.saec")


def test_what_a_codec_says_is_not_taken_for_what_is_measured(with_head: Callable[..., Path]) -> None:
    said = {"residual_bytes": 9, "table_bytes": 9, "embeds_sae": True, "codec_id": "x", "rows": [float("nan")]}
    facts = codec_facts(with_head(info={**said, "nmse": {"base": float("-inf")}, "sae": "kept"}))
    assert "residual_bytes" not in facts
    assert (facts["embeds_sae"], facts["sae"]) == (False, "kept")
    assert facts["table_bytes"] > 9
    assert len(facts["codec_id"]) == 64
    assert json.loads(json.dumps(facts, allow_nan=False))["nmse"] == {"base": "-inf"}
    assert facts["rows"] == ["nan"]
