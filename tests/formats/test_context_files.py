"""Files under the context prior: fitted, encoded, measured and decoded, with sequences from a file or from a shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner

from saecodec.cli.app import app
from saecodec.cli.render_measure import measure_text
from saecodec.codec import Codec
from saecodec.errors import InputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.codecfile import load_codec, save_codec
from saecodec.formats.decoding import verify_file
from saecodec.formats.encoding import encode_array, fit_array
from saecodec.formats.measuring import measure_array
from saecodec.formats.saec import open_saec
from saecodec.formats.sequence_ids import load_sequence_ids
from saecodec.frames import frames, unpack_record
from saecodec.goal import Goal
from saecodec.sae import SAE

Rows = npt.NDArray[np.float32]
POSITIONS = 20


@pytest.fixture(scope="module")
def rows() -> Rows:
    """60 sequences of 20 rows; a row is its sequence's topic and something of the row before."""
    random = np.random.default_rng(3)
    topic = 1.5 * random.normal(size=(60, 1, 8))
    noise = random.normal(size=(60, POSITIONS, 8))
    return np.asarray(topic + noise + 0.7 * np.roll(noise, 1, axis=1), np.float32)


@pytest.fixture(scope="module")
def context_codec(sae: SAE, rows: Rows) -> Codec:
    return fit_array(MemoryArray(rows), sae, Goal.of(prior="context", fit_seconds=60.0), chunk_rows=256)


def sequence_columns(path: Path, codec: Codec) -> list[npt.NDArray[np.int64]]:
    with open_saec(path, codec=codec) as file:
        return [codes.columns["seq"] for codes in file.codes()]


def test_a_codec_file_holds_the_context_prior(context_codec: Codec, tmp_path: Path, rows: Rows) -> None:
    save_codec(context_codec, tmp_path / "c.saecodec", embed_sae=True)
    loaded = load_codec(tmp_path / "c.saecodec")
    assert loaded.codec_id == context_codec.codec_id
    assert loaded.latents.prior.name == "context"
    data = context_codec.encode(rows)
    np.testing.assert_array_equal(loaded.decode(data), context_codec.decode(data))
    told = loaded.info["context"]
    assert told["heldout_rows"] > 0
    assert told["bits_per_heldout_row"] < told["bits_per_heldout_row_factorized"]


def test_a_file_names_the_prior_and_the_version_that_has_it(context_codec: Codec, tmp_path: Path, rows: Rows) -> None:
    encode_array(MemoryArray(rows), tmp_path / "x.saec", codec=context_codec)
    (_, payload), *_ = frames((tmp_path / "x.saec").read_bytes()[8:], "test")
    head = unpack_record(payload, "test")
    assert (head["version"], head["requires"]) == ([1, 2], ["prior:context"])


@pytest.mark.parametrize("embed", ["none", "tables", "decoder"])
def test_positions_are_sequences_and_chunks_end_with_them(
    context_codec: Codec, rows: Rows, tmp_path: Path, embed: str
) -> None:
    path = tmp_path / "x.saec"
    encode_array(MemoryArray(rows), path, codec=context_codec, chunk_rows=90, embed=embed)
    ids = sequence_columns(path, context_codec)
    assert [len(part) for part in ids] == 15 * [80]
    np.testing.assert_array_equal(np.concatenate(ids), np.repeat(np.arange(60), POSITIONS))
    with open_saec(path, codec=context_codec) as file:
        assert file.shape == rows.shape
        flat = rows.reshape(-1, 8)
        parts = [context_codec.quantize(flat[i : i + 80]) for i in range(0, len(flat), 80)]
        for found, wanted in zip(file.codes(), parts, strict=True):
            np.testing.assert_array_equal(found.to_dense(), wanted.to_dense())
        assert verify_file(file, against=MemoryArray(rows)).rows == len(flat)
    data = context_codec.encode(rows, chunk_rows=90)
    with open_saec(path, codec=context_codec) as file:
        np.testing.assert_array_equal(file.rows(), context_codec.decode(data))


def test_given_ids_are_stored_whatever_the_prior(codec: Codec, rows: Rows, tmp_path: Path) -> None:
    flat, ids = rows.reshape(-1, 8), np.arange(1200) // 7 - 3
    encode_array(MemoryArray(flat), tmp_path / "x.saec", codec=codec, seq=ids, chunk_rows=100)
    np.testing.assert_array_equal(np.concatenate(sequence_columns(tmp_path / "x.saec", codec)), ids)
    encode_array(MemoryArray(rows), tmp_path / "y.saec", codec=codec)
    with open_saec(tmp_path / "y.saec", codec=codec) as file:
        assert all(not codes.columns for codes in file.codes())


def test_the_library_takes_sequences_from_the_shape_too(sae: SAE, rows: Rows) -> None:
    codec = Codec.fit(sae, rows, prior="context", fit_seconds=0.5)
    columns = [codes.columns["seq"] for codes in codec.codes(codec.encode(rows, chunk_rows=100))]
    np.testing.assert_array_equal(np.concatenate(columns), np.repeat(np.arange(60), POSITIONS))


def test_measuring_tells_what_dependence_is_worth(context_codec: Codec, rows: Rows) -> None:
    size = len(context_codec.to_bytes())
    report = measure_array(MemoryArray(rows), codec=context_codec, codec_bytes=size, chunk_rows=400)
    assert sum(report["bits"].values()) == pytest.approx(report["bits_per_row"])
    found = report["context"]
    support, falls = found["support"], found["dependence"]
    assert support["independent"] - falls["total"]["bits_per_row"] == pytest.approx(support["neighbours"])
    parts = [falls[name]["bits_per_row"] for name in ("time", "row", "neighbours")]
    assert sum(parts) == pytest.approx(falls["total"]["bits_per_row"])
    # The codec's tables were fitted on a few held-out rows, those of the report on these: training differs by machine.
    assert 0.7 * report["ideal"]["support"] < support["neighbours"] < 1.01 * report["ideal"]["support"]
    assert falls["row"]["bits_per_row"] > 0
    even = found["break_even"]
    saved = even["chunk_bits_per_row"]["factorized"] - even["chunk_bits_per_row"]["context"]
    assert even["rows"] == pytest.approx(8 * even["codec_bytes_more"] / saved)
    assert report["bits_per_row_with_codec"] == pytest.approx(8 * (report["file_bytes"] + size) / 1200)
    assert 0 < len(found["latents"]) <= 10
    json.dumps(report)


def test_measuring_with_the_factorized_prior_tells_nothing_of_it(codec: Codec, rows: Rows) -> None:
    assert measure_array(MemoryArray(rows), codec=codec)["context"] is None


@pytest.mark.parametrize("goal", [{"nmse": 0.3}, {"bits": 25.0}, {"bits": 60.0, "residual": True}], ids=str)
def test_targets_are_met_under_the_context_prior(sae: SAE, rows: Rows, goal: dict[str, Any]) -> None:
    codec = fit_array(MemoryArray(rows), sae, Goal.of(prior="context", fit_seconds=2.0, **goal))
    assert codec.latents.prior.name == "context"
    (name, value), *_ = goal.items()
    told = codec.info["target"]
    assert told[name] == value
    assert told["reached"] == pytest.approx(value, rel=0.03)
    data = codec.encode(rows, search="pursuit")
    found = 8 * len(data) / 1200 if name == "bits" else float(((codec.decode(data) - rows.reshape(-1, 8)) ** 2).sum())
    wanted = value if name == "bits" else value * float(((rows - rows.mean((0, 1))) ** 2).sum())
    assert found == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_no_byte(context_codec: Codec, rows: Rows, dtype: torch.dtype) -> None:
    codes = context_codec.quantize(rows[:20])
    chunk = context_codec.latents.pack(codes)
    with torch.autocast("cpu", dtype):
        assert context_codec.latents.pack(codes) == chunk
        np.testing.assert_array_equal(context_codec.latents.unpack(chunk).to_dense(), codes.to_dense())


def test_a_rate_that_context_reaches_at_a_finer_step_than_aimed_at_first_is_met(sae: SAE, rows: Rows) -> None:
    codec = fit_array(MemoryArray(rows), sae, Goal.of(bits=75.0, prior="context", fit_seconds=1.0))
    assert codec.info["target"]["reached"] == pytest.approx(75.0, rel=0.03)


def test_one_row_is_measured(context_codec: Codec, rows: Rows) -> None:
    report = measure_array(MemoryArray(rows[0, :1]), codec=context_codec)
    assert report["context"]["latents"] == []
    assert measure_text(report, "one row")


def test_ids_missing_from_rows_of_a_codec_with_sequences_are_told(
    context_codec: Codec, rows: Rows, tmp_path: Path
) -> None:
    save_codec(context_codec, tmp_path / "c.saecodec", embed_sae=True)
    np.save(tmp_path / "flat.npy", rows.reshape(-1, 8))
    np.save(tmp_path / "ids.npy", np.repeat(np.arange(60), POSITIONS))
    arguments = ["encode", tmp_path / "flat.npy", "-c", tmp_path / "c.saecodec", "-o", tmp_path / "o.saec", "--force"]
    told = CliRunner().invoke(app, [str(a) for a in arguments])
    assert "give the ids of these rows too (--seq)" in told.stderr
    assert CliRunner().invoke(app, [*(str(a) for a in arguments), "--seq", str(tmp_path / "ids.npy")]).stderr == ""


def test_few_rows_are_refused_with_what_it_takes(sae: SAE, rows: Rows) -> None:
    with pytest.raises(InputError, match=r"at least 512 rows, got 40: give more"):
        fit_array(MemoryArray(rows[:2]), sae, Goal.of(prior="context"))


@pytest.mark.parametrize(
    "content",
    [np.zeros(9, np.int64), np.zeros(10), np.zeros((2, 6), np.uint8), b"not an array"],
    ids=["9", "f", "12", "b"],
)
def test_a_file_that_holds_no_ids_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "ids.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    with pytest.raises(InputError, match=r"ids\.npy: .*sequence id"):
        load_sequence_ids(path, (10,))


def test_ids_of_the_rows_shape_and_of_any_integer_type_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(10, dtype=np.uint16).reshape(2, 5))
    assert load_sequence_ids(tmp_path / "ids.npy", (2, 5)).tolist() == list(range(10))
    with pytest.raises(InputError, match=r"expected a sequence id, an integer, for each of 10 rows: shape \(5, 2\)"):
        load_sequence_ids(tmp_path / "ids.npy", (5, 2))


def test_the_commands_fit_encode_and_measure_with_sequences(tmp_path: Path, bundled: Callable[[str], str]) -> None:
    sae, rows, ids = (bundled(name) for name in ("minilm_l3_sae", "minilm_l3_rows.npy", "minilm_l3_seq.npy"))
    codec, out = str(tmp_path / "c.saecodec"), str(tmp_path / "x.saec")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    fitted = json.loads(
        run("fit", sae, rows, "--prior", "context", "--fit-time", "4", "--seq", ids, "-o", codec, "--json")
    )
    assert fitted["prior"] == "context"
    assert fitted["context"]["heldout_rows"] > 0
    run("encode", rows, "-s", sae, "-c", codec, "--seq", ids, "-o", out)
    columns = sequence_columns(Path(out), load_codec(codec))
    np.testing.assert_array_equal(np.concatenate(columns), np.load(ids))
    text = run("measure", rows, "-s", sae, "-c", codec, "--seq", ids)
    for line in (
        "independent latents",
        "given neighbouring rows as well",
        "pays for itself",
        "and with the codec file",
    ):
        assert line in text


@pytest.fixture
def bundled() -> Callable[[str], str]:
    """The path of a bundled file."""
    import saecodec

    return lambda name: str(Path(saecodec.__file__).parent / "bundled" / name)
