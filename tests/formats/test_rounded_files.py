"""Files that embed a rounded decoder: rows are coded for it, it alone decodes them, and contradictions are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import saecodec
from saecodec.codec import Codec
from saecodec.decoder_precision import with_precision
from saecodec.errors import FormatError, IdentityError, InputError, UnsupportedError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.codecfile import load_codec
from saecodec.formats.describe import describe
from saecodec.formats.encoding import encode_array
from saecodec.formats.header import Header
from saecodec.formats.measuring import measure_array
from saecodec.formats.saec import open_saec
from saecodec.frames import frame, frames, pack_record, unpack_record
from saecodec.goal import Goal
from saecodec.sae import SAE

Rows = npt.NDArray[np.float32]
ROUNDED = ["bfloat16", "int8"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "x.saec"


@pytest.mark.parametrize("weights", ROUNDED)
@pytest.mark.parametrize("goal", [None, Goal.of("0.2rms", search="refit"), Goal.of("0.6rms", residual=True)])
def test_a_file_is_that_of_the_rounded_sae_and_decodes_alone(
    sae: SAE, x: Rows, out: Path, weights: str, goal: Goal | None
) -> None:
    encode_array(MemoryArray(x), out, sae=sae, goal=goal, embed="decoder", weights=weights)
    rounded = with_precision(sae, weights)
    with open_saec(out) as file:
        assert (file.header.weights, file.header.decoder_id) == (weights, rounded.decoder_id)
        found = file.decoder.sae
        assert found is not None
        assert found.decoder_id == rounded.decoder_id
        rows = file.rows()
    encode_array(MemoryArray(x), out, sae=rounded, goal=goal, embed="tables", force=True)
    with open_saec(out, sae=rounded) as file:
        np.testing.assert_array_equal(file.rows(), rows)


def test_only_integers_need_a_later_reader(sae: SAE, x: Rows, out: Path) -> None:
    heads = {}
    for weights in ("float32", *ROUNDED):
        encode_array(MemoryArray(x), out, sae=sae, embed="decoder", weights=weights, force=True)
        (_, payload), *_ = frames(out.read_bytes()[8:], "test")
        head = heads[weights] = unpack_record(payload, "test")
        features = ["prior:factorized"] + (["weights:int8"] if weights == "int8" else [])
        assert (head["requires"], head["version"]) == (features, [1, 5] if weights == "int8" else [1, 0])
    assert "weights" not in heads["float32"]
    assert describe(out)["weights"] == "int8"


def test_the_sae_as_it_was_before_rounding_decodes_too_but_no_other(
    sae: SAE, other_sae: SAE, x: Rows, out: Path
) -> None:
    encode_array(MemoryArray(x), out, sae=sae, embed="decoder", weights="int8")
    with open_saec(out) as alone, open_saec(out, sae=sae) as given, open_saec(out, sae=other_sae) as other:
        np.testing.assert_array_equal(given.rows(), alone.rows())
        with pytest.raises(IdentityError, match="but the SAE given"):
            other.rows()


@pytest.mark.parametrize("weights", ROUNDED)
def test_measure_reports_what_the_rounded_decoder_gives(sae: SAE, x: Rows, out: Path, weights: str) -> None:
    report = measure_array(MemoryArray(x), sae=sae, embed="decoder", weights=weights)
    encode_array(MemoryArray(x), out, sae=sae, embed="decoder", weights=weights)
    with open_saec(out) as file:
        error = float(((x.astype(np.float64) - file.rows()) ** 2).sum())
    assert report["nmse"] == pytest.approx(error / ((x - x.mean(0, dtype=np.float64)) ** 2).sum(), rel=1e-5)
    exact = measure_array(MemoryArray(x), sae=sae, embed="decoder")
    assert (report["weights"], exact["weights"]) == (weights, "float32")
    assert report["sae_alone"] == exact["sae_alone"]
    assert report["outside"] == {"codec_bytes": 0, "sae_bytes": 0}
    assert report["bits"]["decoder"] < 0.8 * exact["bits"]["decoder"]


@pytest.mark.parametrize("embed", [None, "tables"])
def test_weights_that_the_file_does_not_hold_are_refused(sae: SAE, x: Rows, out: Path, embed: str | None) -> None:
    with pytest.raises(InputError, match="weights in int8 are of a decoder in the file: embed it"):
        encode_array(MemoryArray(x), out, sae=sae, embed=embed, weights="int8")
    with pytest.raises(InputError, match="precision of weights is 'int4'"):
        encode_array(MemoryArray(x), out, sae=sae, embed="decoder", weights="int4")
    assert not out.exists()


def test_a_codec_of_the_exact_decoder_is_refused_and_one_of_the_rounded_decoder_serves(
    sae: SAE, codec: Codec, x: Rows, out: Path
) -> None:
    options: dict[str, Any] = {"embed": "decoder", "weights": "int8"}
    for pieces in ({"codec": codec}, {"codec": codec, "sae": sae}):
        with pytest.raises(InputError, match=r"fit it on the rounded SAE \(saecodec.with_precision\(sae, 'int8'\)\)"):
            encode_array(MemoryArray(x), out, **pieces, **options)
    assert not out.exists()
    rounded = saecodec.with_precision(sae, "int8")
    of_rounded = Codec.fit(rounded, x)
    encode_array(MemoryArray(x), out, codec=of_rounded, sae=sae, **options)
    with open_saec(out) as file:
        np.testing.assert_array_equal(file.rows(), of_rounded.reconstruct(of_rounded.quantize(x)))


# -- what is refused in files ------------------------------------------------------------------------------------------


def test_a_header_that_contradicts_itself_about_weights_is_refused(sae: SAE, x: Rows, out: Path) -> None:
    encode_array(MemoryArray(x), out, sae=sae, embed="decoder", weights="int8")
    (_, payload), *_ = frames(out.read_bytes()[8:], "test")
    good = unpack_record(payload, "test")
    assert Header.from_bytes(pack_record(good), "test").weights == "int8"
    plain = good | {"requires": ["prior:factorized"]}
    for bad in (
        plain,
        {key: value for key, value in good.items() if key != "weights"},
        *[good | {"weights": name} for name in ("float32", "bfloat16", "int4", 8, None, ["int8"])],
        *[plain | {"weights": name} for name in ("int4", 8, None, ["int8"], {})],
        good | {"embed": "tables"},
        plain | {"weights": "bfloat16", "embed": "none"},
    ):
        with pytest.raises(FormatError, match=r"header field 'weights' is .* not possible"):
            Header.from_bytes(pack_record(bad), "test")


def test_a_reader_that_does_not_know_integer_weights_says_so(
    sae: SAE, x: Rows, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_array(MemoryArray(x), out, sae=sae, embed="decoder", weights="int8")
    monkeypatch.delitem(saecodec.version.FEATURES, "weights:int8")
    with pytest.raises(UnsupportedError, match="needs weights:int8, unknown to this version"):
        open_saec(out)


def test_damaged_integer_weights_are_refused(
    sae: SAE, x: Rows, out: Path, rebuild: Callable[..., bytes], tmp_path: Path
) -> None:
    encode_array(MemoryArray(x), out, sae=sae, embed="decoder", weights="int8")
    for cut in (1, 4, 40):
        damaged = tmp_path / "damaged.saec"
        short = rebuild(out, lambda parts, cut=cut: [(k, c, p[:-cut] if k == "SAEW" else p) for k, c, p in parts])
        damaged.write_bytes(short)
        with open_saec(damaged) as file, pytest.raises(FormatError, match="weights"):
            file.rows()


def test_a_codec_file_has_no_integer_weights(codec: Codec, tmp_path: Path) -> None:
    (_, head), (_, tables) = frames(codec.to_bytes(), "test")
    record = unpack_record(head, "test")
    record["requires"] = [*record["requires"], "weights:int8"]
    path = tmp_path / "c.saecodec"
    path.write_bytes(b"\x89SAEM\r\n\x1a" + frame("CHED", pack_record(record)) + frame("TABL", bytes(tables)))
    with pytest.raises(FormatError, match=r"requires 'weights:int8', which is for \.saec files"):
        load_codec(path)
