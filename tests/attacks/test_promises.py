"""What docs/security.md promises beside refusals: of names, links, sizes, and of writers."""

from __future__ import annotations

import json
import os
from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hostile import CERTAIN, codec_file, edited, golden, record, saec

import saecodec
from saecodec.cli.app import app
from saecodec.cli.terminal import printable
from saecodec.codes import Codes
from saecodec.errors import FormatError, InputError, LimitError, MissingPieceError, OutputError
from saecodec.formats.array_sinks import create_array
from saecodec.formats.arrays import open_array
from saecodec.formats.codec_lookup import PATH_VARIABLE, find_codec
from saecodec.formats.codecfile import codec_facts
from saecodec.formats.decoding import verify_file
from saecodec.formats.delphi_layout import Layout
from saecodec.formats.describe import describe
from saecodec.formats.feature_view import codes_of_latents
from saecodec.formats.folder_manifest import MANIFEST, STAGING, SUMMARY, file_hash, open_manifest, staged_path
from saecodec.formats.saec import open_saec
from saecodec.formats.weights import pack_weights
from saecodec.frames import pack_record
from saecodec.latents import LatentCodec
from saecodec.limits import limited
from saecodec.priors.factorized import FactorizedPrior
from saecodec.sae import SAE
from saecodec.table_set import TableSet

GOLDEN = Path(__file__).parent.parent / "golden"

# -- terminals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, shown",
    [
        ("layer 3 × α", "layer 3 × α"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\rb\nc\x9b", r"a\rb\nc\x9b"),
        ("\u202egpj.exe\u2066", r"\u202egpj.exe\u2066"),
        ("\x7f\U000e0001", r"\x7f\U000e0001"),
    ],
)
def test_what_moves_a_cursor_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_names_of_a_file_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\u202e"
    facts = {"name": evil, "source": evil, "architecture": evil, "n_latents": 48}
    path = tmp_path / "a.saec"
    path.write_bytes(saec(edited(golden("none.saec"), "HEAD", record(sae=facts, user={evil: evil}, made_by=evil))))
    for arguments in (["info", str(path)], ["decode", str(path), "-o", str(tmp_path / "x.npy")], ["verify", str(path)]):
        output = CliRunner().invoke(app, arguments).output
        assert output
        assert not set("\x1b\x07\u202e") & set(output), arguments


def test_a_long_name_makes_no_long_error(tmp_path: Path) -> None:
    path = tmp_path / "a.saec"
    path.write_bytes(saec(edited(golden("none.saec"), "HEAD", record(requires=["x" * 100_000]))))
    done = CliRunner().invoke(app, ["info", str(path)])
    assert done.exit_code == 1
    assert len(done.output) < 5000
    assert "characters)" in done.output


# -- what a codec file says --------------------------------------------------------------------------------------------


def test_the_info_of_a_codec_file_changes_no_fact(tmp_path: Path) -> None:
    path = tmp_path / "a.saecodec"
    lies = {"codec_id": "0" * 64, "kind": "saec", "embeds_sae": "?", "step": 9.0, "sae": "told"}
    path.write_bytes(codec_file(edited(golden("none.saecodec"), "CHED", record(info=lies))))
    found, true = describe(path), describe(GOLDEN / "none.saecodec")
    assert {key: found[key] for key in lies} == {key: true[key] for key in lies} | {"sae": "told"}


def test_a_codec_is_not_found_under_the_name_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = codec_facts(GOLDEN / "none.saecodec")["codec_id"]
    folder = tmp_path / "codecs"
    folder.mkdir()
    data = codec_file(edited(golden("residual_none.saecodec"), "CHED", record(info={"codec_id": wanted})))
    (folder / "a.saecodec").write_bytes(data)
    monkeypatch.setenv(PATH_VARIABLE, str(folder))
    with pytest.raises(MissingPieceError, match=f"the codec {wanted} is not at hand"):
        find_codec(wanted)


def test_info_that_json_cannot_say_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.saecodec"
    path.write_bytes(codec_file(edited(golden("none.saecodec"), "CHED", record(info={"sae": b"\0"}))))
    with pytest.raises(FormatError, match="'info' holds what is no text or number"):
        describe(path)


# -- folders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MANIFEST, SUMMARY, STAGING])
def test_a_link_in_a_folder_of_outputs_leads_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    folder, outside = tmp_path / "out", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / name).symlink_to(outside / "x" if name != STAGING else outside)
    with pytest.raises(OutputError, match=r"is reached by a link"), open_manifest(str(folder), "encode-dir"):
        pass
    assert not list(outside.iterdir())


@pytest.mark.parametrize("name", [MANIFEST, SUMMARY, STAGING])
def test_a_link_to_what_a_folder_of_outputs_holds_costs_it_nothing(tmp_path: Path, name: str) -> None:
    kept = tmp_path / "sub" / "a.pt"
    kept.parent.mkdir()
    kept.touch()
    (tmp_path / name).symlink_to("sub" if name == STAGING else "sub/a.pt")
    with (
        pytest.raises(OutputError, match=r"is reached by a link"),
        open_manifest(str(tmp_path), "decode-dir", force=True),
    ):
        pass
    with pytest.raises(OutputError, match=r"is reached by a link") if name == STAGING else nullcontext():
        staged_path(str(tmp_path), "a.pt")
    assert list(kept.parent.iterdir()) == [kept]
    assert kept.read_bytes() == b""


def test_what_a_crash_is_said_to_have_left_is_not_put_elsewhere(tmp_path: Path) -> None:
    folder, outside = tmp_path / "out", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    staged = Path(staged_path(str(folder), "keys/authorized"))
    staged.write_bytes(b"mine")
    (folder / "keys").symlink_to(outside)
    line = {"command": "encode-dir", "source": "a", "source_bytes": 1, "source_mtime_ns": 1, "source_sha256": ""}
    line |= {
        "output": "keys/authorized",
        "output_bytes": 4,
        "output_sha256": file_hash(staged),
        "settings": {},
        "rows": 1,
    }
    (folder / MANIFEST).write_text(json.dumps(line) + "\n")
    with pytest.raises(OutputError, match=r"leads out of .*, by a link"), open_manifest(str(folder), "encode-dir"):
        pass
    assert not list(outside.iterdir())


@pytest.mark.parametrize("output", ["../x.saec", "/tmp/x.saec", "a/../../x.saec"])
def test_a_manifest_names_no_path_outside_of_its_folder(tmp_path: Path, output: str) -> None:
    with open_manifest(str(tmp_path / "out"), "encode-dir") as manifest, pytest.raises(OutputError, match="leads out"):
        manifest.settle({"output": output}, force=False)


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_chunks_are_turned_into_rows_in_parts_and_nobody_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with saecodec.open(GOLDEN / "layer_norm.saec") as f:
        whole, rows = f.file.rows(), f[:]
    monkeypatch.setattr("saecodec.layers._BATCH_VALUES", 8 * 7)
    np.save(tmp_path / "x.npy", rows)
    with saecodec.open(GOLDEN / "layer_norm.saec") as f:
        assert max(map(len, f.file.batches())) == 7
        assert [len(part) for part in f.file.batches()] == f.file.batch_rows
        np.testing.assert_array_equal(np.concatenate(list(f.file.batches())), whole)
        np.testing.assert_array_equal(np.concatenate(list(f)), rows.reshape(-1, 8))
        np.testing.assert_array_equal(f[:], rows)
        found = verify_file(f.file, against=open_array(str(tmp_path / "x.npy"), None))
    assert found.distortion is not None
    assert found.distortion.nmse < 1e-5


def test_an_array_that_memory_cannot_hold_is_refused() -> None:
    with saecodec.open(GOLDEN / "tables.saec", sae=None) as f, limited(array_bytes=4 * 8 * 299):
        assert f.shape == (2, 150, 8)
        for index in (slice(None), (slice(None), slice(None)), (..., 0)):
            with pytest.raises(LimitError, match="SAECODEC_LIMITS=array_bytes=9600"):
                f[index]
        with pytest.raises(LimitError, match="SAECODEC_LIMITS=array_bytes=9600"):
            f.file.rows()
    with open_saec(GOLDEN / "tables.saec") as file, limited(array_bytes=1):
        file.check_size()  # a matter of what reading would take, not of memory


def test_where_a_latent_fires_takes_no_memory_for_rows_where_it_does_not() -> None:
    with saecodec.open(GOLDEN / "tables.saec") as f:
        dense = np.concatenate([codes.to_dense() for codes in f.file.codes()])
        found = [(first, codes) for first, codes in codes_of_latents(f.file, np.array([5]))]
    assert [first for first, _ in found] == [0, 100, 200]
    rows = np.concatenate([first + codes.rows() for first, codes in found])
    np.testing.assert_array_equal(rows, np.flatnonzero(dense[:, 5]))


def test_decoding_asks_the_disk_for_room_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(399))
    for extension in (".npy", ".npz", ".safetensors", ".pt"):
        path = tmp_path / f"x{extension}"
        with (
            pytest.raises(OutputError, match="No space left on device: it takes 400 bytes, 399 are free"),
            create_array(path, (10, 10), "float32"),
        ):
            pass
        with create_array(path, (3, 10), "float32") as sink:
            sink.write(np.zeros((3, 10), np.float32))
    assert os.listdir(tmp_path)


def test_a_chunk_of_a_zarr_array_is_no_larger_than_an_array_may_be() -> None:
    zarr = pytest.importorskip("zarr")
    from saecodec.formats.zarr import SaeCodec

    serializer = SaeCodec.of(GOLDEN / "none.saecodec")
    array = zarr.create_array(
        {}, shape=(40, 8), chunks=(20, 8), dtype="float32", serializer=serializer, compressors=None
    )
    array[:20] = 1
    with limited(array_bytes=4 * 20 * 8 - 1), pytest.raises(LimitError, match="a chunk of the array: 640 bytes"):
        array[:20]


@pytest.mark.parametrize("number", ["1e999", "NaN", '"x"', "null", "[" * 5000 + "]" * 5000])
def test_a_layout_of_a_delphi_cache_that_lies_is_refused(number: str) -> None:
    with pytest.raises(InputError, match="is not the layout of a delphi cache"):
        Layout.of_text(f'{{"splits": [[0, {number}, "I64"]], "tokens": "", "config": null}}', 4, "a.saec")


# -- writers -----------------------------------------------------------------------------------------------------------


def test_a_chunk_that_no_reader_takes_is_not_written() -> None:
    tables = TableSet(np.zeros(16, np.int64), np.array([CERTAIN]), 0)
    codec = LatentCodec(FactorizedPrior(tables, tables, (1,), signed=False))

    def ones(n_rows: int) -> Codes:
        n = n_rows * 16
        latents = np.tile(np.arange(16, dtype=np.int32), n_rows)
        return Codes(np.arange(0, n + 1, 16), latents, np.ones(n, np.int32), 16)

    assert codec.unpack(codec.pack(ones(1 << 16))).nnz == 1 << 20
    many = ones((1 << 16) + 1)
    with pytest.raises(LimitError, match=r"a chunk .fewer rows in each, --chunk-rows.*: .* stand for 16,777,472"):
        codec.pack(many)
    with limited(expansion=1 << 40):
        data = codec.pack(many)
        assert codec.unpack(data).nnz == many.nnz
    with pytest.raises(LimitError, match="SAECODEC_LIMITS=expansion="):
        codec.unpack(data)


def test_weights_that_no_reader_takes_are_not_written() -> None:
    sae = SAE(torch.zeros(4096, 1024), torch.zeros(1024), None, "standard", "empty")
    with pytest.raises(LimitError, match=r"empty: .* bytes stand for 16,781,312"):
        pack_weights(sae, decoder_only=True)


def test_metadata_that_no_reader_takes_is_not_written() -> None:
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"a": deep}
    for metadata in ({"user": {str(i): "" for i in range(5000)}}, deep):
        with pytest.raises(InputError, match="metadata that no reader takes"):
            pack_record(metadata)


def test_an_sae_of_more_latents_than_readers_take_is_refused_at_once() -> None:
    with limited(latents=3, width=2):
        with pytest.raises(LimitError, match="big: 4 latents are more than the limit of 3"):
            SAE(torch.zeros(4, 2), torch.zeros(2), None, "standard", "big")
        with pytest.raises(LimitError, match="wide: 3 values of a row are more than the limit of 2"):
            SAE(torch.zeros(3, 3), torch.zeros(3), None, "standard", "wide")
