"""`measure` reports what a real file costs, and everything it reports can be recomputed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from saecodec.codec import Codec
from saecodec.errors import InputError, OutputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.codecfile import load_codec, save_codec
from saecodec.formats.encoding import encode_array
from saecodec.formats.measuring import Extras, measure_array
from saecodec.goal import Goal
from saecodec.sae import SAE

Rows = npt.NDArray[np.float32]


def entropy(counts: npt.NDArray[np.int64]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


@pytest.fixture(scope="module")
def many() -> Rows:
    """(500, 8), made of a few directions so that latents repeat."""
    rng = np.random.default_rng(5)
    return (rng.normal(size=(500, 3)) @ rng.normal(size=(3, 8))).astype(np.float32)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"embed": "decoder"},
    {"goal": Goal.of("1rms"), "chunk_rows": 64},
    {"goal": Goal.of(0.05), "chunk_rows": 11},
    {"chunk_rows": 499},
    {"embed": "decoder", "weights": "int8"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_size_is_that_of_a_real_file(sae: SAE, many: Rows, tmp_path: Path, options: dict[str, Any]) -> None:
    encode_array(MemoryArray(many), tmp_path / "x.saec", sae=sae, **options)
    report = measure_array(MemoryArray(many), sae=sae, **options)
    assert report["file_bytes"] == (tmp_path / "x.saec").stat().st_size
    assert report["bits_per_row"] == 8 * report["file_bytes"] / 500
    assert report["bits_per_scalar"] == pytest.approx(report["bits_per_row"] / 8)
    assert report["ratio_float32"] == pytest.approx(32 / report["bits_per_scalar"])


@pytest.mark.parametrize("options", OPTIONS)
def test_the_bits_of_the_parts_add_up(sae: SAE, many: Rows, options: dict[str, Any]) -> None:
    report = measure_array(MemoryArray(many), sae=sae, **options)
    assert sum(report["bits"].values()) == pytest.approx(report["bits_per_row"], rel=1e-12)
    assert (report["bits"]["decoder"] > 0) == (options.get("embed") == "decoder")


@pytest.mark.parametrize("options", OPTIONS[1:4])
def test_the_estimates_are_those_of_the_dense_codes(sae: SAE, many: Rows, options: dict[str, Any]) -> None:
    report = measure_array(MemoryArray(many), sae=sae, **options)
    codec = Codec.fit(sae, many, options.get("goal", Goal.of()).step)
    q = codec.quantize(many).to_dense()
    sum_entropy = sum(entropy(np.unique(q[:, f], return_counts=True)[1]) for f in range(q.shape[1]))
    n_levels = len(np.unique(q[q != 0]))
    l0 = np.count_nonzero(q) / len(q)
    assert report["l0"] == l0
    assert report["estimates"]["sum_entropy"] == pytest.approx(sum_entropy, rel=1e-9)
    assert report["estimates"]["l0_formula"] == pytest.approx(l0 * (np.log2(n_levels) + np.log2(q.shape[1])), rel=1e-12)
    assert report["sae_alone"]["l0"] == sae.features(many).nnz / len(q)
    assert report["bits_per_nonzero"] == pytest.approx(8 * report["file_bytes"] / np.count_nonzero(q))


def test_the_distortion_is_that_of_the_decoded_rows(sae: SAE, many: Rows) -> None:
    report = measure_array(MemoryArray(many + 100), sae=sae, chunk_rows=33)  # far from zero: sums must not cancel
    codec = Codec.fit(sae, many + 100, chunk_rows=33)
    x, x_hat = (many + 100).astype(np.float64), codec.reconstruct(codec.quantize(many + 100)).astype(np.float64)
    nmse = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    cosine = ((x * x_hat).sum(1) / np.sqrt((x**2).sum(1) * (x_hat**2).sum(1))).mean()
    assert report["nmse"] == pytest.approx(nmse, rel=1e-6)
    assert report["variance_explained"] == pytest.approx(1 - nmse, rel=1e-6)
    assert report["cosine"] == pytest.approx(cosine, rel=1e-9)
    assert report["max_error"] == pytest.approx(np.abs(x - x_hat).max(), rel=1e-6)
    assert report["step"] == codec.quantizer.step


@pytest.mark.parametrize("options", OPTIONS)
def test_the_ideal_code_length_is_near_the_real_one(sae: SAE, many: Rows, options: dict[str, Any]) -> None:
    report = measure_array(MemoryArray(many), sae=sae, **options)
    chunks = -(-500 // options.get("chunk_rows", 4096))
    for part in ("support", "levels"):
        ideal, real = (report[key][part] * 500 for key in ("ideal", "bits"))
        # A stream ends on a word of 32 bits, and there are at most 16 groups to a chunk.
        assert -1 <= real - ideal <= chunks * 16 * 64


def test_a_codec_from_elsewhere_is_counted_beside_the_file(sae: SAE, codec: Codec, many: Rows, tmp_path: Path) -> None:
    save_codec(codec, tmp_path / "c.saecodec")
    size = (tmp_path / "c.saecodec").stat().st_size
    report = measure_array(MemoryArray(many), sae=sae, codec=load_codec(tmp_path / "c.saecodec"), codec_bytes=size)
    assert report["outside"] == {"codec_bytes": size, "sae_bytes": sae.nbytes}
    assert report["bits"]["tables"] == 0
    assert report["bits_per_row_with_codec"] == pytest.approx(report["bits_per_row"] + 8 * size / 500)
    assert report["codec_id"] == codec.codec_id
    embedded = measure_array(MemoryArray(many), sae=sae, codec=codec, codec_bytes=size, embed="tables")
    assert embedded["outside"]["codec_bytes"] == 0
    assert embedded["bits_per_row_with_codec"] == embedded["bits_per_row"]


def test_an_sae_inside_the_codec_or_the_file_is_not_counted_twice(codec: Codec, sae: SAE, many: Rows) -> None:
    assert measure_array(MemoryArray(many), codec=codec, codec_bytes=999)["outside"]["sae_bytes"] == 0
    assert measure_array(MemoryArray(many), sae=sae, embed="decoder")["outside"]["sae_bytes"] == 0
    assert measure_array(MemoryArray(many), sae=sae)["outside"]["sae_bytes"] == sae.nbytes


@pytest.mark.parametrize("dtype, item", [("float16", 2), ("float32", 4), ("float64", 8)])
def test_the_ratio_to_the_input_goes_by_its_dtype(sae: SAE, many: Rows, dtype: str, item: int) -> None:
    report = measure_array(MemoryArray(many.astype(dtype)), sae=sae)
    assert report["ratio_input"] == pytest.approx(500 * 8 * item / report["file_bytes"])
    assert report["ratio_float32"] == pytest.approx(report["ratio_input"] * 4 / item)


def test_leading_dimensions_change_the_shape_and_nothing_else(sae: SAE, many: Rows) -> None:
    flat, folded = (measure_array(MemoryArray(rows), sae=sae) for rows in (many, many.reshape(5, 100, 8)))
    assert (flat["shape"], folded["shape"]) == ([500, 8], [5, 100, 8])
    for key in ("rows", "nmse", "l0", "ideal", "estimates", "codec_id", "sae"):
        assert flat[key] == folded[key]


EDGES = {
    "no rows": np.zeros((0, 8), np.float32),
    "one row": np.ones((1, 8), np.float32),
    "constant rows": np.full((50, 8), 0.1, np.float32),
    "zeros": np.zeros((20, 8), np.float32),
    "no active latent": None,
}


@pytest.mark.parametrize("case", EDGES)
def test_what_is_not_defined_is_none(sae: SAE, case: str) -> None:
    x = EDGES[case]
    if x is None:
        x = np.repeat(sae.b_dec.numpy()[None], 9, 0) + np.linspace(0, 1e-3, 9, dtype=np.float32)[:, None]
    report = measure_array(MemoryArray(x), sae=sae, chunk_rows=16)
    n_rows, silent = len(x), case in ("no rows", "no active latent")
    assert report["rows"] == n_rows
    assert report["file_bytes"] > 0
    for key in ("bits_per_row", "bits_per_scalar", "l0", "cosine", "bits_per_row_with_codec"):
        assert (report[key] is None) == (n_rows == 0), key
    assert (report["sae_alone"]["l0"] is None) == (n_rows == 0)
    assert (report["sae_alone"]["nmse"] is None) == (report["nmse"] is None)
    assert (report["nmse"] is None) == (report["variance_explained"] is None) == (case != "no active latent")
    if silent:
        assert report["bits_per_nonzero"] is None
        assert report["estimates"] == {"l0_formula": None, "sum_entropy": None}
    if case == "no active latent":
        assert report["l0"] == 0
        assert report["bits"]["support"] == report["bits"]["levels"] == 0
    strict = json.dumps(report, allow_nan=False)
    assert json.loads(strict) == report


def test_a_report_is_strict_json(sae: SAE, many: Rows) -> None:
    report = measure_array(MemoryArray(many), sae=sae)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["sae"]["decoder_id"] == sae.decoder_id


def test_contradicting_options_are_refused_as_in_encoding(sae: SAE, codec: Codec, many: Rows) -> None:
    with pytest.raises(InputError, match="the step comes from the codec"):
        measure_array(MemoryArray(many), codec=codec, goal=Goal.of(1.0))
    with pytest.raises(InputError, match="must embed them"):
        measure_array(MemoryArray(many), sae=sae, embed="none")


def test_nothing_is_left_in_the_temporary_folder(
    sae: SAE, many: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    measure_array(MemoryArray(many), sae=sae)
    bad = many.copy()
    bad[3] = np.nan
    with pytest.raises(InputError):
        measure_array(MemoryArray(bad), sae=sae)
    assert list(tmp_path.iterdir()) == []


def test_arrays_hold_the_figures_of_every_row_and_latent(sae: SAE, many: Rows, tmp_path: Path) -> None:
    path = tmp_path / "figures.npz"
    report = measure_array(MemoryArray(many), sae=sae, extras=Extras(arrays=str(path)))
    with np.load(path) as found:
        arrays = dict(found)
    assert arrays["row"].tolist() == list(range(500))
    once = report["bytes"]["tables"]
    assert once < report["file_bytes"] - arrays["row_bits"].sum() / 8 < once + 600
    assert arrays["row_squared_error"].sum() / arrays["row_spread"].sum() == pytest.approx(report["nmse"])
    assert arrays["latent_support_bits"].sum() == pytest.approx(8 * report["bytes"]["support"])
    assert arrays["latent_level_bits"].sum() == pytest.approx(8 * report["bytes"]["levels"])
    assert arrays["latent_nonzeros"].sum() / 500 == pytest.approx(report["l0"])
    assert arrays["latent_removal_error"].shape == (sae.n_latents,)
    with pytest.raises(OutputError, match="exists"):
        measure_array(MemoryArray(many), sae=sae, extras=Extras(arrays=str(path)))


def test_the_two_parts_are_told_against_the_number_of_rows(sae: SAE, many: Rows) -> None:
    report = measure_array(MemoryArray(many), sae=sae)
    parts = report["two_part"]
    shared = parts["bytes"]["prior"] + parts["with_sae"]["int8"]["sae_bytes"]
    totals = parts["with_sae"]["int8"]["total_by_rows"]
    for n, bits in zip(totals["rows"], totals["bits_per_row"], strict=True):
        assert bits == pytest.approx(8 * parts["bytes"]["data"] / 500 + 8 * shared / n)
