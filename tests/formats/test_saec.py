"""The `.saec` file: what goes in comes out, and no damage goes unnoticed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import saecodec
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.errors import FormatError, IdentityError, InputError, MissingPieceError, SaecodecError, UnsupportedError
from saecodec.formats.array_source import ArraySource, MemoryArray
from saecodec.formats.decoding import verify_file
from saecodec.formats.encoding import encode_array
from saecodec.formats.file_sizes import bytes_by_part
from saecodec.formats.frame_file import MAGIC, TRAILER
from saecodec.formats.header import Header
from saecodec.formats.index import Index
from saecodec.formats.saec import open_saec
from saecodec.formats.saec_writer import SaecWriter
from saecodec.frames import HEAD_BYTES, pack_record
from saecodec.integers import pack_ints
from saecodec.layers import Layers
from saecodec.sae import SAE
from saecodec.wire import varint

ARCHITECTURES = ["standard", "jumprelu", "topk", "gated"]
EMBEDS = ["none", "tables", "decoder"]
DTYPES = ["float16", "bfloat16", "float32", "float64"]
SHAPES = [(8,), (0, 8), (1, 8), (37, 8), (3, 0, 8), (3, 5, 8), (2, 3, 4, 8)]

Rows = npt.NDArray[np.float32]
Frames = list[tuple[str, bool, bytes]]
Make = Callable[..., Path]


class Array(MemoryArray):
    """Rows that say they were stored in a dtype that numpy may not have."""

    def __init__(self, array: npt.NDArray[Any], dtype: str) -> None:
        super().__init__(array)
        self.dtype = dtype


def source(shape: tuple[int, ...], dtype: str = "float32", seed: int = 3) -> ArraySource:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Array(values, dtype) if dtype == "bfloat16" else MemoryArray(values.astype(dtype))


def same(a: Codes, b: Codes) -> bool:
    return np.array_equal(a.to_dense(), b.to_dense()) and a.n_rows == b.n_rows


def all_codes(file: Any, start: int = 0, stop: int | None = None) -> Codes:
    return Codes.concatenate(file.codes(start, stop), file.codec.latents.prior.n_latents)


def read_everything(path: Path, sae: SAE | None, codec: Codec | None = None) -> None:
    """What a careful reader looks at; raises SaecodecError when something is wrong with the file."""
    with open_saec(path, sae=sae, codec=codec) as file:
        verify_file(file)
        file.rows()


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("embed", EMBEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_rows_shape_and_dtype_come_back(
    make_sae: Callable[..., SAE], tmp_path: Path, architecture: str, embed: str, shape: tuple[int, ...]
) -> None:
    sae, path = make_sae(architecture), tmp_path / "x.saec"
    dtype = DTYPES[(len(shape) + len(embed) + ARCHITECTURES.index(architecture)) % len(DTYPES)]
    array = source(shape, dtype)
    codec = Codec.fit(sae, source((50, 8), seed=5)._array)  # type: ignore[attr-defined]
    encode_array(array, path, sae=sae, codec=codec, embed=embed, chunk_rows=16)
    (x,) = list(array.batches(1 << 20)) or [np.zeros((0, 8), np.float32)]
    codes = codec.quantize(x)
    needs_sae, needs_codec = embed != "decoder", embed == "none"
    with open_saec(path, sae=sae if needs_sae else None, codec=codec if needs_codec else None) as file:
        assert (file.shape, file.dtype, file.n_rows, file.header.width) == (shape, dtype, len(x), 8)
        assert file.header.embed == embed
        assert (file.header.decoder_id, file.header.codec_id) == (sae.decoder_id, codec.codec_id)
        assert (file.header.step, file.header.prior) == (codec.quantizer.step, "factorized")
        assert dict(file.header.sae) == {
            "name": sae.name,
            "source": "tests",
            "architecture": architecture,
            "n_latents": 24,
        }
        assert file.header.made_by == f"saecodec {saecodec.__version__}"
        assert same(all_codes(file), codes)
        rows = file.rows()
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, codec.reconstruct(codes), rtol=0, atol=1e-5)
        assert verify_file(file).rows == len(x)


@pytest.mark.parametrize("chunk_rows", [1, 2, 7, 39, 40, 41, 1 << 20])
def test_any_number_of_rows_to_a_chunk_gives_the_same_codes(
    saec: Make, sae: SAE, codec: Codec, x: Rows, chunk_rows: int
) -> None:
    with open_saec(saec(chunk_rows=chunk_rows), sae=sae) as file:
        assert file.header.chunk_rows == chunk_rows
        assert len(file.index.rows) == -(-40 // chunk_rows)
        assert same(all_codes(file), codec.quantize(x))


@given(bounds=st.tuples(st.integers(0, 40), st.integers(0, 40)).map(sorted), chunk_rows=st.sampled_from([1, 7, 16, 40]))
def test_any_range_of_rows_is_that_range_of_all_rows(
    tmp_path_factory: pytest.TempPathFactory, sae: SAE, codec: Codec, x: Rows, bounds: list[int], chunk_rows: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"range-{chunk_rows}.saec"
    if not path.exists():
        encode_array(MemoryArray(x), path, sae=sae, codec=codec, embed="decoder", chunk_rows=chunk_rows)
    a, b = bounds
    with open_saec(path) as file:
        assert same(all_codes(file, a, b), all_codes(file)[a:b])
        part = file.rows(a, b)
        assert part.shape == (b - a, 8)
        np.testing.assert_allclose(part, file.rows()[a:b], rtol=0, atol=1e-5)


@pytest.mark.parametrize("start, stop", [(-1, 5), (0, 41), (5, 4), (41, 41), (0, -1)])
def test_rows_the_file_does_not_have_are_refused(saec: Make, sae: SAE, start: int, stop: int) -> None:
    with open_saec(saec(), sae=sae) as file, pytest.raises(InputError, match=f"rows {start}:{stop} .* it has 40"):
        file.rows(start, stop)


def test_only_the_chunks_that_hold_the_rows_are_read(saec: Make, sae: SAE, frame_boundaries: Any) -> None:
    path = saec(chunk_rows=10)
    damaged = bytearray(path.read_bytes())
    with open_saec(path, sae=sae) as file:
        offset = int(file.index.offsets[2])
        before, after = file.rows(0, 20), file.rows(30, 40)
    damaged[offset + HEAD_BYTES + 3] ^= 1
    path.write_bytes(damaged)
    with open_saec(path, sae=sae) as file:
        np.testing.assert_array_equal(file.rows(0, 20), before)
        np.testing.assert_array_equal(file.rows(30, 40), after)
        with pytest.raises(FormatError, match=f"offset {offset}: frame CHNK is corrupted"):
            file.rows(15, 25)


def test_user_metadata_comes_back(sae: SAE, codec: Codec, x: Rows, tmp_path: Path) -> None:
    user = {"model": "gpt2", "note": "ünïcode\n", "": "", "long": "x" * 10_000}
    path = tmp_path / "x.saec"
    encode_array(MemoryArray(x), path, sae=sae, codec=codec, user=user)
    with open_saec(path) as file:
        assert file.header.user == user


def test_columns_of_a_chunk_come_back(sae: SAE, codec: Codec, x: Rows, tmp_path: Path) -> None:
    codes, columns = codec.quantize(x), {"sequence": np.repeat(np.arange(4), 10), "token": np.arange(40) * 7 - 3}
    path = tmp_path / "x.saec"
    with open(path, "wb") as out:
        writer = SaecWriter(out, codec, shape=(40, 8), dtype="float32", chunk_rows=40, embed="tables")
        writer.add(Layers(Codes(codes.indptr, codes.latents, codes.levels, codes.n_latents, columns)))
        writer.finish()
    with open_saec(path, sae=sae) as file:
        (part,) = file.codes(5, 15)
        assert {name: values.tolist() for name, values in part.columns.items()} == {
            name: values[5:15].tolist() for name, values in columns.items()
        }
        assert bytes_by_part(file)["columns"] > 0
        assert sum(bytes_by_part(file).values()) == file.size


@pytest.mark.parametrize("embed", EMBEDS)
@pytest.mark.parametrize("chunk_rows", [1, 16, 4096])
def test_the_bytes_by_part_add_up_to_the_size(saec: Make, sae: SAE, codec: Codec, embed: str, chunk_rows: int) -> None:
    path = saec(embed, chunk_rows=chunk_rows)
    with open_saec(path, sae=sae, codec=codec) as file:
        parts = bytes_by_part(file)
        assert sum(parts.values()) == file.size == path.stat().st_size
        assert min(parts.values()) >= 0
        assert parts["tables"] == (len(codec.tables()) if embed != "none" else 0)
        assert (parts["decoder"] > 0) == (embed == "decoder")
        assert parts["support"] > 0
        assert parts["levels"] > 0


def test_the_writer_refuses_to_finish_with_rows_missing(codec: Codec, x: Rows, tmp_path: Path) -> None:
    with open(tmp_path / "x.saec", "wb") as out:
        writer = SaecWriter(out, codec, shape=(41, 8), dtype="float32", chunk_rows=40, embed="none")
        writer.add(Layers(codec.quantize(x)))
        with pytest.raises(InputError, match=r"40 rows were written, but the leading dimensions are \(41,\)"):
            writer.finish()


def test_a_closed_file_and_its_repr(saec: Make) -> None:
    path = saec()
    with open_saec(path) as file:
        assert repr(file) == f"SaecFile({str(path)!r}, shape=(40, 8), dtype=float32, chunks=3)"


# -- missing and wrong pieces ------------------------------------------------------------------------------------------


def test_a_file_without_decoder_says_which_sae_it_needs(saec: Make, sae: SAE) -> None:
    with open_saec(saec("tables")) as file:
        assert all_codes(file).n_rows == 40  # codes need no SAE
        with pytest.raises(MissingPieceError) as missing:
            file.rows()
    message = str(missing.value)
    assert repr(sae.name) in message
    assert f"decoder id {sae.decoder_id[:16]}" in message
    assert "-s SAE" in message
    assert "--embed decoder" in message


def test_a_file_without_tables_says_which_codec_it_needs(saec: Make, sae: SAE, codec: Codec) -> None:
    with open_saec(saec("none"), sae=sae) as file, pytest.raises(MissingPieceError) as missing:
        next(file.codes())
    message = str(missing.value)
    assert codec.codec_id[:16] in message
    assert ".saecodec" in message
    assert "-c CODEC" in message
    assert "--embed tables" in message


def test_another_sae_is_refused_with_both_ids(saec: Make, sae: SAE, other_sae: SAE) -> None:
    with open_saec(saec("tables"), sae=other_sae) as file, pytest.raises(IdentityError) as wrong:
        file.rows()
    for named in (repr(sae.name), sae.decoder_id, repr(other_sae.name), other_sae.decoder_id):
        assert named in str(wrong.value)


def test_another_codec_is_refused_with_both_ids(saec: Make, sae: SAE, codec: Codec, other_codec: Codec) -> None:
    with open_saec(saec("none"), sae=sae, codec=other_codec) as file, pytest.raises(IdentityError) as wrong:
        file.rows()
    assert codec.codec_id in str(wrong.value)
    assert other_codec.codec_id in str(wrong.value)


def test_a_codec_with_its_sae_is_all_that_a_file_needs(saec: Make, codec: Codec, x: Rows) -> None:
    with open_saec(saec("none"), codec=codec) as file:
        np.testing.assert_allclose(file.rows(), codec.reconstruct(codec.quantize(x)), rtol=0, atol=1e-5)


def test_pieces_that_contradict_what_the_file_embeds_are_refused(
    saec: Make, sae: SAE, other_sae: SAE, other_codec: Codec
) -> None:
    path = saec("decoder")
    with open_saec(path, sae=other_sae) as file, pytest.raises(IdentityError) as raised:
        file.rows()
    assert sae.decoder_id in str(raised.value)
    assert other_sae.decoder_id in str(raised.value)
    with open_saec(path, codec=other_codec) as file, pytest.raises(IdentityError, match=other_codec.codec_id):
        file.rows()


@pytest.mark.parametrize("kind", ["TABL", "SAEW"])
def test_embedded_pieces_of_another_codec_are_refused(
    saec: Make, other_sae: SAE, other_codec: Codec, x: Rows, tmp_path: Path, rebuild: Any, take_apart: Any, kind: str
) -> None:
    donor, path = tmp_path / "donor.saec", saec("decoder")
    donor_codec = other_codec if kind == "TABL" else Codec.fit(other_sae, x)
    encode_array(MemoryArray(x), donor, codec=donor_codec, embed="decoder")
    (payload,) = (payload for found, _, payload in take_apart(donor.read_bytes()) if found == kind)
    path.write_bytes(rebuild(path, lambda parts: [(k, c, payload if k == kind else p) for k, c, p in parts]))
    with open_saec(path) as file, pytest.raises(IdentityError):
        file.rows()


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed", EMBEDS)
def test_a_file_cut_at_or_beside_a_frames_end_is_refused(
    saec: Make, sae: SAE, codec: Codec, frame_boundaries: Any, embed: str
) -> None:
    path = saec(embed)
    data = path.read_bytes()
    read_everything(path, sae, codec)
    for boundary in [0, *frame_boundaries(data)]:
        for size in (boundary - 1, boundary, boundary + 1):
            if not 0 <= size < len(data):
                continue
            path.write_bytes(data[:size])
            with pytest.raises(SaecodecError):
                read_everything(path, sae, codec)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, make_sae: Callable[..., SAE]) -> tuple[bytes, SAE]:
    """A complete file of a few hundred bytes that embeds its tables, and the SAE it needs."""
    sae, path = make_sae(width=2, latents=3), tmp_path_factory.mktemp("tiny") / "x.saec"
    encode_array(source((5, 2)), path, sae=sae, chunk_rows=3)
    return path.read_bytes(), sae


def test_a_file_cut_anywhere_is_refused(tiny: tuple[bytes, SAE], tmp_path: Path) -> None:
    (data, sae), path = tiny, tmp_path / "cut.saec"
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(SaecodecError):
            read_everything(path, sae)


def test_a_change_of_any_byte_is_noticed(tiny: tuple[bytes, SAE], tmp_path: Path) -> None:
    (data, sae), path = tiny, tmp_path / "flipped.saec"
    for at in range(len(data)):
        for mask in (0x01, 0x80):
            path.write_bytes(data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :])
            with pytest.raises(SaecodecError), open_saec(path, sae=sae) as file:
                verify_file(file, decode=False)


@pytest.mark.parametrize("added", [b"\0", b"\n", b"a whole line\n", bytes(28)])
def test_bytes_after_the_end_are_noticed(tiny: tuple[bytes, SAE], tmp_path: Path, added: bytes) -> None:
    (data, sae), path = tiny, tmp_path / "longer.saec"
    path.write_bytes(data + added)
    with pytest.raises(FormatError, match="no valid trailer"):
        open_saec(path, sae=sae)


@pytest.mark.parametrize(
    "data", [b"", b"\x89SAE", b"\x89SAEM\r\n\x1a" + bytes(100), b"\x93NUMPY" + bytes(100), bytes(5000)]
)
def test_another_kind_of_file_is_refused_by_its_magic(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.saec"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"not a \.saec file \(it does not begin with the magic"):
        open_saec(path)


def test_a_file_that_text_mode_changed_is_refused(saec: Make) -> None:
    path = saec()
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    with pytest.raises(FormatError, match="magic"):
        open_saec(path)


def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.saec: cannot be opened \(No such file"):
        open_saec(tmp_path / "nothing.saec")
    with pytest.raises(InputError, match="cannot be opened"):
        open_saec(tmp_path)


# -- frames this version does not know ---------------------------------------------------------------------------------

PLACES = {"before HEAD": 0, "after HEAD": 1, "after TABL": 2, "between chunks": 3, "after the chunks": 5}


@pytest.mark.parametrize("place", [place for place in PLACES if place != "before HEAD"])
def test_an_unknown_ancillary_frame_is_skipped(
    saec: Make, sae: SAE, codec: Codec, x: Rows, rebuild: Any, place: str
) -> None:
    path = saec()
    size = path.stat().st_size
    path.write_bytes(
        rebuild(path, lambda parts: [*parts[: PLACES[place]], ("note", False, b"hello"), *parts[PLACES[place] :]])
    )
    assert path.stat().st_size >= size + HEAD_BYTES + 5
    with open_saec(path, sae=sae) as file:
        assert same(all_codes(file), codec.quantize(x))
        assert verify_file(file).frames == 8
        assert sum(bytes_by_part(file).values()) == file.size


def test_an_unknown_ancillary_frame_after_the_index_is_skipped(
    saec: Make, sae: SAE, take_apart: Any, put_together: Any
) -> None:
    path = saec()
    parts = take_apart(path.read_bytes())
    path.write_bytes(put_together(MAGIC, [*parts[:-1], ("note", False, b""), parts[-1]]))
    read_everything(path, sae)


@pytest.mark.parametrize("place", PLACES)
def test_an_unknown_critical_frame_is_refused_by_name(saec: Make, sae: SAE, rebuild: Any, place: str) -> None:
    path = saec()
    data = rebuild(path, lambda parts: [*parts[: PLACES[place]], ("WHAT", True, b"hello"), *parts[PLACES[place] :]])
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match=r"frame 'WHAT' is needed to read it.*update saecodec"):
        read_everything(path, sae)


@pytest.mark.parametrize("place", ["after HEAD", "after TABL"])
def test_an_unknown_critical_frame_before_the_chunks_is_refused_by_who_only_decodes(
    saec: Make, sae: SAE, rebuild: Any, place: str
) -> None:
    path = saec()
    data = rebuild(path, lambda parts: [*parts[: PLACES[place]], ("WHAT", True, b"hello"), *parts[PLACES[place] :]])
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match=r"frame 'WHAT' is needed to read it"), open_saec(path, sae=sae) as file:
        file.rows()


@pytest.mark.parametrize(
    "embed, change",
    [
        ("tables", lambda parts: parts[:1] + parts[2:]),
        ("decoder", lambda parts: parts[:2] + parts[3:]),
        ("decoder", lambda parts: [parts[0], parts[2], parts[1], *parts[3:]]),
        ("none", lambda parts: [parts[0], ("TABL", True, b""), *parts[1:]]),
        ("tables", lambda parts: [parts[0], *parts[2:], parts[1]]),
        pytest.param("tables", lambda parts: [parts[0], parts[1], parts[1], *parts[2:]]),
        pytest.param("tables", lambda parts: [*parts, parts[1]]),
        pytest.param("tables", lambda parts: [*parts, parts[0]]),
    ],
)
def test_frames_other_than_the_header_announces_are_refused(
    saec: Make, sae: SAE, codec: Codec, rebuild: Any, embed: str, change: Callable[[Frames], Frames]
) -> None:
    path = saec(embed)
    path.write_bytes(rebuild(path, change))
    with pytest.raises(FormatError):
        read_everything(path, sae, codec)


def test_a_file_that_begins_with_another_frame_is_refused(saec: Make, rebuild: Any) -> None:
    path = saec()
    path.write_bytes(rebuild(path, lambda parts: parts[1:]))
    with pytest.raises(FormatError, match="the first frame is TABL, expected HEAD"):
        open_saec(path)


# -- the header --------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_header(saec: Make, rebuild: Any) -> Callable[..., Path]:
    """The file of `saec` with fields of its header changed (`remove`d), and all checksums valid."""

    def make(remove: str | None = None, **fields: Any) -> Path:
        path = saec()

        def change(parts: Frames) -> Frames:
            record = {**msgpack.unpackb(parts[0][2]), **fields}
            record.pop(remove, None)
            return [("HEAD", True, pack_record(record)), *parts[1:]]

        path.write_bytes(rebuild(path, change))
        return path

    return make


def test_a_later_minor_version_and_unknown_fields_are_read(with_header: Callable[..., Path], sae: SAE) -> None:
    read_everything(with_header(version=[1, 99], invented={"a": [1, 2]}), sae)


def test_a_later_major_version_is_refused(with_header: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match=r"format version 2\.0, this reads up to 1: update saecodec"):
        open_saec(with_header(version=[2, 0]))


def test_an_unknown_requirement_is_refused_by_name(with_header: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedError, match=r"needs prior:psychic, unknown to this version: update saecodec"):
        open_saec(with_header(requires=["prior:factorized", "prior:psychic"]))


FIELDS = [
    "version",
    "requires",
    "width",
    "dtype",
    "chunk_rows",
    "embed",
    "decoder_id",
    "codec_id",
    "sae",
    "step",
    "prior",
    "made_by",
]


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(with_header: Callable[..., Path], field: str) -> None:
    with pytest.raises(FormatError, match=f"'{field}'"):
        open_saec(with_header(remove=field))


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_type_is_refused(with_header: Callable[..., Path], field: str) -> None:
    for value in (None, [], {}, "", b"", -1, 0.0):
        if (field, value) in (("requires", []), ("made_by", ""), ("prior", "")):
            continue  # a file may require nothing, and text is free
        with pytest.raises(FormatError):
            open_saec(with_header(**{field: value}))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"width": 0}, id="no width"),
        pytest.param({"width": (1 << 24) + 1}, id="2^24"),
        pytest.param({"width": True}, id="bool"),
        pytest.param({"dtype": "int8"}, id="dtype"),
        pytest.param({"embed": "everything"}, id="embed"),
        pytest.param({"decoder_id": bytes(31)}, id="short id"),
        pytest.param({"codec_id": bytes(33)}, id="long id"),
        pytest.param({"step": -1.0}, id="negative step"),
        pytest.param({"step": float("nan")}, id="nan step"),
        pytest.param({"user": ["a"]}, id="user"),
        pytest.param({"user": {"a": 1}}, id="user number"),
        pytest.param({"step": float("inf")}, id="infinite step"),
        pytest.param({"version": ["1", "0"]}, id="version text"),
        pytest.param({"version": [1]}, id="version short"),
        pytest.param({"version": [0, 9]}, id="version 0"),
        pytest.param({"version": [1, -1]}, id="version negative"),
        pytest.param({"chunk_rows": 0}, id="no chunk rows"),
        pytest.param({"chunk_rows": (1 << 20) + 1}, id="chunk rows"),
        pytest.param({"requires": [["prior:factorized"]]}, id="requires"),
        pytest.param({"sae": {"name": "n"}}, id="sae"),
    ],
)
def test_a_header_that_is_not_possible_is_refused(with_header: Callable[..., Path], fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        open_saec(with_header(**fields))


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x01", b"\x81", b"\x81\x01\x02", b"\xdf\xff\xff\xff\xff"])
def test_a_header_that_is_not_a_record_is_refused(saec: Make, rebuild: Any, payload: bytes) -> None:
    path = saec()
    path.write_bytes(rebuild(path, lambda parts: [("HEAD", True, payload), *parts[1:]]))
    with pytest.raises(FormatError, match="header"):
        open_saec(path)


def test_a_width_other_than_the_saes_is_refused(with_header: Callable[..., Path], sae: SAE) -> None:
    with (
        open_saec(with_header(width=9), sae=sae) as file,
        pytest.raises(FormatError, match="rows of 9, but the SAE has rows of 8"),
    ):
        file.rows()


def test_the_header_is_its_own_inverse() -> None:
    about = {"name": "n", "source": "s", "architecture": "a", "n_latents": 3}
    for residual, side in product((False, True), repeat=2):
        facts = ("ab" * 32, "cd" * 32, about, 0.5, "factorized", "me", residual, side, {"a": "b"})
        header = Header(8, "bfloat16", 7, "none", *facts)
        assert Header.from_bytes(header.to_bytes(), "test") == header


def test_what_was_written_with_many_dimensions_can_be_read(sae: SAE, codec: Codec, x: Rows, tmp_path: Path) -> None:
    path = tmp_path / "x.saec"
    try:
        encode_array(MemoryArray(x.reshape(*[1] * 30, 40, 8)), path, codec=codec)
    except InputError:
        return  # refused before it is written
    with open_saec(path, codec=codec) as file:
        assert file.n_rows == 40


def test_what_was_written_with_much_metadata_can_be_read(codec: Codec, x: Rows, tmp_path: Path) -> None:
    path = tmp_path / "x.saec"
    try:
        encode_array(MemoryArray(x), path, codec=codec, user={"note": "x" * (1 << 24)})
    except InputError:
        return
    with open_saec(path, codec=codec) as file:
        assert len(file.header.user["note"]) == 1 << 24


# -- an index that lies ------------------------------------------------------------------------------------------------


def columns_of(path: Path) -> tuple[list[int], list[int], list[int]]:
    with open_saec(path) as file:
        return file.index.rows.tolist(), file.index.offsets.tolist(), file.index.lengths.tolist()


LIES: dict[str, Callable[[list[int], list[int], list[int]], tuple[list[int], list[int], list[int]]]] = {
    "rows of two chunks exchanged": lambda rows, at, n: ([8, 16, 16], at, n),
    "one row moved to the next chunk": lambda rows, at, n: ([15, 17, 8], at, n),
    "a chunk left out": lambda rows, at, n: ([16, 24], at[:2], n[:2]),
    "a frame that is not there": lambda rows, at, n: ([16, 16, 8, 0], [*at, at[-1] + n[-1]], [*n, 100]),
    "beginning inside the first frame": lambda rows, at, n: (rows, [at[0] + 4, *at[1:]], [n[0] - 4, *n[1:]]),
    "beginning before the first frame": lambda rows, at, n: (rows, [at[0] - 30, *at[1:]], [n[0] + 30, *n[1:]]),
    "the tables as a chunk": lambda rows, at, n: (rows, [at[0] - 200, *at[1:]], n),
    "a length cut": lambda rows, at, n: (rows, at, [n[0] - 1, *n[1:]]),
    "a length beyond the next frame": lambda rows, at, n: (rows, [at[0], at[1] + 5, at[2]], [n[0] + 5, n[1] - 5, n[2]]),
    "beyond the file": lambda rows, at, n: (rows, [*at[:2], at[2] + 100_000], n),
    "far beyond the file": lambda rows, at, n: (rows, [*at[:2], 1 << 39], n),
    "a length beyond the file": lambda rows, at, n: (rows, at, [*n[:2], 1 << 39]),
    "a length below a frame's head": lambda rows, at, n: (rows, at, [n[0], n[1], 19]),
    "a row too many": lambda rows, at, n: ([16, 16, 9], at, n),
    "no chunks": lambda rows, at, n: ([], [], []),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_noticed(saec: Make, sae: SAE, rebuild: Any, lie: str) -> None:
    path = saec()
    path.write_bytes(rebuild(path, index=LIES[lie]))
    with pytest.raises(FormatError):
        read_everything(path, sae)
    if lie == "a frame that is not there":
        return  # a chunk of no rows is never read
    with pytest.raises(FormatError), open_saec(path, sae=sae) as file:
        file.rows()


@pytest.mark.parametrize("lie", LIES)
def test_an_index_that_lies_is_noticed_without_decoding(saec: Make, rebuild: Any, lie: str) -> None:
    path = saec()
    path.write_bytes(rebuild(path, index=LIES[lie]))
    with pytest.raises(FormatError), open_saec(path) as file:
        verify_file(file, decode=False)


def test_chunks_in_another_order_are_other_rows_or_an_error(saec: Make, sae: SAE, rebuild: Any) -> None:
    path = saec()
    path.write_bytes(rebuild(path, lambda parts: [*parts[:2], parts[4], parts[3], parts[2]]))
    with pytest.raises(FormatError, match="chunk 0 differs"):
        read_everything(path, sae)


def test_an_index_cannot_name_a_frame_before_another(saec: Make) -> None:
    rows, offsets, lengths = columns_of(saec())
    with pytest.raises(ValueError, match="packed"):
        Index((40,), *(np.array(c, np.int64) for c in (rows, offsets[::-1], lengths))).to_bytes()


@pytest.mark.parametrize("offset", [0, 7, 8, 9, 1 << 63, (1 << 64) - 1])
def test_a_trailer_that_points_elsewhere_is_refused(
    saec: Make, take_apart: Any, put_together: Any, offset: int
) -> None:
    path = saec()
    parts = take_apart(path.read_bytes())
    path.write_bytes(put_together(MAGIC, [*parts[:-1], ("TAIL", True, TRAILER.pack(offset))]))
    with pytest.raises(FormatError):
        open_saec(path)


def test_a_trailer_that_points_to_itself_or_beyond_is_refused(saec: Make, take_apart: Any, put_together: Any) -> None:
    path = saec()
    size, parts = path.stat().st_size, take_apart(path.read_bytes())
    for offset in (size - HEAD_BYTES - 8, size - 1, size, size + 1):
        path.write_bytes(put_together(MAGIC, [*parts[:-1], ("TAIL", True, struct.pack("<Q", offset))]))
        with pytest.raises(FormatError, match="outside the file"):
            open_saec(path)


ROWS_40 = varint(1) + varint(40)
TWENTIES, NONE, HUGE = np.array([20, 20]), np.zeros(0, np.int64), np.full(2, (1 << 40) - 1)


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(ROWS_40, id="nothing more"),
        pytest.param(ROWS_40 + varint(1 << 40), id="2^40 chunks"),
        pytest.param(ROWS_40 + varint(3), id="no columns"),
        pytest.param(ROWS_40 + varint(2) + 2 * pack_ints(TWENTIES) + pack_ints(NONE), id="two lengths"),
        pytest.param(ROWS_40 + varint(1) + 3 * pack_ints(HUGE[:1]), id="2^40 rows"),
        pytest.param(ROWS_40 + varint(2) + pack_ints(TWENTIES) + 2 * pack_ints(HUGE), id="2^40 bytes"),
        pytest.param(varint(32) + varint(1) * 32 + varint(1) + pack_ints(np.ones(1)) * 3, id="32 dimensions"),
        pytest.param(varint(1) + varint((1 << 48) + 1) + varint(0) + 3 * pack_ints(NONE), id="2^48"),
        pytest.param(varint(2) + varint(1 << 48) * 2 + varint(0) + 3 * pack_ints(NONE), id="2^96 rows in no chunks"),
        pytest.param(varint(1) + varint(0) + varint(0) + 3 * pack_ints(NONE) + b"\0", id="left over"),
    ],
)
def test_an_index_that_cannot_be_parsed_is_refused(
    saec: Make, take_apart: Any, put_together: Any, payload: bytes
) -> None:
    path = saec()
    parts = take_apart(path.read_bytes())
    path.write_bytes(put_together(MAGIC, [*parts[:-2], ("INDX", True, payload), parts[-1]]))
    with pytest.raises(FormatError):
        open_saec(path)
