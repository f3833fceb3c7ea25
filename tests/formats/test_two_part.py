"""Two-part description lengths add up, and break even where the totals cross."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from coded_rows import coded
from hypothesis import given
from hypothesis import strategies as st

from saecodec.codec import Codec
from saecodec.decoder_precision import PRECISIONS, with_precision
from saecodec.encoder import MatchingPursuit
from saecodec.errors import InputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.codecfile import load_codec, save_codec
from saecodec.formats.file_sizes import bytes_by_part
from saecodec.formats.measuring import Extras, measure_array
from saecodec.formats.two_part import (
    FloorMeter,
    break_even,
    decoder_bytes,
    decoder_facts,
    floor_of,
    shortest_by_rows,
    total_by_rows,
    two_part,
)
from saecodec.frames import HEAD_BYTES
from saecodec.sae import SAE
from saecodec.side import scales_of

Rows = npt.NDArray[np.float32]
MakeSAE = Callable[..., SAE]
DECODERS = {"float32": 4000, "int8": 900}


# -- lines -------------------------------------------------------------------------------------------------------------

bits = st.integers(0, 60).map(float)
codes = st.dictionaries(st.sampled_from("abcdef"), st.tuples(bits, bits), max_size=6)


@given(bits, bits, bits, bits)
def test_from_the_break_even_on_a_code_is_no_longer_than_another(w: float, r: float, v: float, q: float) -> None:
    even = break_even(w, r, v, q)
    at_most = [w + r * n <= v + q * n for n in range(0, 200)]
    if even is None:
        assert not at_most[-1]
    elif even > 0:
        assert at_most == [n >= even for n in range(0, 200)]
    else:
        assert all(at_most)


@given(bits, bits, bits)
def test_codes_of_equal_rates_are_told_apart_by_their_weights(w: float, v: float, rate: float) -> None:
    assert break_even(w, rate, v, rate) == (0 if w <= v else None)
    assert shortest_by_rows({"a": w, "b": v}, {"a": rate, "b": rate}) == [
        {"from_rows": 0, "name": "a" if w <= v else "b"}
    ]


@given(bits, bits)
def test_totals_by_rows_share_what_is_paid_once(shared: float, growing: float) -> None:
    found = total_by_rows(shared, growing)
    assert found["rows"] == [1000, 10**4, 10**5, 10**6, 10**7, 10**8, 10**9]
    for n, each in zip(*found.values(), strict=True):
        assert each * n == pytest.approx(shared + growing * n)


@given(codes)
def test_the_shortest_by_rows_is_the_minimum_for_any_number_of_rows(
    given_codes: dict[str, tuple[float, float]],
) -> None:
    weights, rates = ({name: pair[i] for name, pair in given_codes.items()} for i in (0, 1))
    steps = shortest_by_rows(weights, rates)
    assert [step["from_rows"] for step in steps[:1]] == [0.0] * bool(given_codes)
    for n in np.concatenate([np.arange(0, 70, 0.5), [1e6]]):
        if not steps:
            break
        name = [step["name"] for step in steps if step["from_rows"] <= n][-1]
        assert weights[name] + rates[name] * n == pytest.approx(min(w + r * n for w, r in given_codes.values()))
    # No step for nothing: each begins later, with a larger weight and a lower rate.
    for i, step in enumerate(steps[1:]):
        before = steps[i]
        assert step["from_rows"] > before["from_rows"]
        assert rates[step["name"]] < rates[before["name"]]


# -- the parts ---------------------------------------------------------------------------------------------------------


def total(part: dict[str, float], decoder: int, rows: float) -> float:
    """Bits of so many rows, the prior and the decoder."""
    return part["data"] * rows + 8 * (part["prior"] + decoder)


@pytest.mark.parametrize("n_rows", [1, 500])
def test_the_parts_add_up_and_totals_cross_at_the_break_even(n_rows: int) -> None:
    parts = {"support": 700, "levels": 300, "headers": 50, "side": 7, "tables": 120, "decoder": 4000}
    data = 1057 - HEAD_BYTES  # the head of the decoder's frame is counted with the decoder
    pca = {"model_bytes": 600, "bits_per_row": 40.0 if n_rows > 1 else 9000.0}
    raw = 128.0 if n_rows > 1 else 9000.0
    found = two_part(parts, n_rows, 33, DECODERS, raw, pca)
    assert found["bytes"] == {"data": data, "prior": 153}
    rates = found["bits_per_row"]
    assert rates == {"data": 8 * data / n_rows, "prior": 8 * 153 / n_rows}
    outside = two_part(parts | {"decoder": 0}, n_rows, 33, DECODERS, raw, pca)
    assert outside["bytes"] == {"data": 1057, "prior": 153}
    for name, n_bytes in DECODERS.items():
        sae = found["with_sae"][name]
        assert sae["sae_bytes"] == n_bytes
        assert sae["total_bits_per_row"] == pytest.approx(rates["data"] + rates["prior"] + sae["sae_bits_per_row"])
        for n, each in zip(*sae["total_by_rows"].values(), strict=True):
            assert each * n == pytest.approx(total({"data": rates["data"], "prior": 153}, n_bytes, n))
        for other, weight, rate in (("raw", 0, raw), ("pca", 8 * 600, pca["bits_per_row"])):
            even = sae[f"rows_to_break_even_{other}"]
            assert even > 0
            here = total({"data": rates["data"], "prior": 153}, n_bytes, even)
            assert here == pytest.approx(weight + rate * even)


def test_what_is_not_defined_is_none() -> None:
    parts = {"support": 0, "levels": 0, "headers": 50, "tables": 20, "decoder": 0}
    none = two_part(parts, 0, 0, DECODERS, 128.0, None)
    assert none["bits_per_row"] == {"data": None, "prior": None}
    assert set(none["with_sae"]["int8"].values()) == {None, 900}
    never = two_part(parts | {"support": 10**6}, 10, 0, DECODERS, 128.0, None)["with_sae"]["int8"]
    assert (never["rows_to_break_even_raw"], never["rows_to_break_even_pca"]) == (None, None)


# -- the decoder, and the floor ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(sae: SAE) -> Rows:
    return np.random.default_rng(0).normal(size=(300, sae.width)).astype(np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_decoder_counts_what_it_takes_in_a_file(sae: SAE, rows: Rows, precision: str) -> None:
    with coded(rows, sae, embed="decoder", weights=precision) as file:
        parts, size = bytes_by_part(file), file.size
    assert decoder_bytes(sae)[precision] == parts["decoder"] + HEAD_BYTES  # the head of its frame is among headers
    if precision == "float32":
        with coded(rows, sae, embed="tables") as file:
            assert decoder_bytes(sae)[precision] == pytest.approx(size - file.size, abs=8)  # "decoder" for "tables"


@pytest.mark.parametrize("kind", ["none", "layer_norm", "sequence_norm"])
@pytest.mark.parametrize("ids", [None, np.repeat(np.arange(30), 10)])
def test_the_floor_is_the_sae_without_quantization(
    make_sae: MakeSAE, rows: Rows, kind: str, ids: npt.NDArray[np.int64] | None
) -> None:
    sae = replace(make_sae("topk"), normalization=kind)
    if kind == "sequence_norm" and ids is None:
        with pytest.raises(InputError, match=r"<memory>: the SAE .*--seq"):
            floor_of(sae, MemoryArray(rows), ids)
        return
    floor = floor_of(sae, MemoryArray(rows), ids)
    import torch

    shaped = torch.from_numpy(rows if ids is None else rows.reshape(30, 10, -1))
    z = sae.encode(shaped)
    assert floor.l0 == pytest.approx(int((z != 0).sum()) / 300)
    variance = np.square(rows - rows.mean(0, dtype=np.float64)).sum()
    error = np.square(rows.astype(np.float64) - sae.reconstruct(shaped).numpy().reshape(300, -1)).sum()
    assert floor.nmse["float32"] == pytest.approx(error / variance, rel=1e-5)
    assert floor.nmse["bfloat16"] == pytest.approx(floor.nmse["float32"], rel=0.02)
    assert floor.nmse["int8"] == pytest.approx(floor.nmse["float32"], rel=0.02)
    assert len(set(floor.nmse.values())) == 3
    assert floor.seconds > 0


def test_a_rounded_floor_is_that_of_the_rounded_decoder_on_the_same_features(sae: SAE, rows: Rows) -> None:
    found = floor_of(sae, MemoryArray(rows), None).nmse["int8"]
    x_hat = with_precision(sae, "int8").rows(sae.features(rows)).numpy()
    variance = np.square(rows - rows.mean(0, dtype=np.float64)).sum()
    assert found == pytest.approx(np.square(rows.astype(np.float64) - x_hat).sum() / variance, rel=1e-6)


@pytest.mark.parametrize("ids", [None, np.repeat(np.arange(30), 10)])
def test_the_floor_of_a_matching_pursuit_is_of_what_each_rounded_decoder_finds(
    make_sae: MakeSAE, rows: Rows, ids: npt.NDArray[np.int64] | None
) -> None:
    """It encodes with its directions: a file of rounded ones has other features."""
    kind = "none" if ids is None else "sequence_norm"
    sae = replace(make_sae("topk"), encoder=MatchingPursuit(3, 0.0, False, True), normalization=kind)
    found = floor_of(sae, MemoryArray(rows), ids)
    for precision in PRECISIONS:
        alone = floor_of(with_precision(sae, precision), MemoryArray(rows), ids)
        assert found.nmse[precision] == alone.nmse["float32"]
    meter = FloorMeter(sae, scales_of(sae, [rows], ids))
    for first in range(0, 300, 70):  # sequences go on from chunk to chunk
        meter.add(rows[first : first + 70], first)
    assert meter.floor().nmse == pytest.approx(found.nmse, rel=1e-6)
    if ids is None:
        assert found.l0 == sae.features(rows).nnz / 300
        x_hat = with_precision(sae, "int8").rows(sae.features(rows)).numpy()
        other = np.square(rows.astype(np.float64) - x_hat).sum() / np.square(rows - rows.mean(0, dtype=float)).sum()
        assert found.nmse["int8"] != pytest.approx(other, rel=1e-6)


def test_no_rows_have_no_floor(sae: SAE) -> None:
    floor = floor_of(sae, MemoryArray(np.zeros((0, sae.width), np.float32)), None)
    assert floor.l0 is None
    assert set(floor.nmse.values()) == {None}
    assert {name: facts["nmse"] for name, facts in decoder_facts(sae, floor).items()} == dict.fromkeys(PRECISIONS)


def test_a_row_that_is_too_large_is_named_by_its_place_in_the_array(sae: SAE) -> None:
    x = np.zeros((5000, sae.width), np.float32)
    x[4500] = 1e30
    with pytest.raises(InputError, match=r"a\.npy: row 4500"):
        floor_of(sae, MemoryArray(x, "a.npy"), None)


def test_a_measure_tells_them(make_sae: MakeSAE, rows: Rows) -> None:
    sae = make_sae("topk")
    report = measure_array(MemoryArray(rows), sae=sae, embed="decoder", weights="int8", extras=Extras(baselines=True))
    two, parts = report["two_part"], report["bytes"]
    assert two["bytes"]["data"] + two["bytes"]["prior"] + parts["decoder"] + HEAD_BYTES == report["file_bytes"]
    assert two["with_sae"]["int8"]["sae_bytes"] == parts["decoder"] + HEAD_BYTES == report["decoder"]["int8"]["bytes"]
    whole = two["with_sae"]["int8"]["total_bits_per_row"]
    assert whole == pytest.approx(report["bits_per_row"])  # of a file that holds the decoder it is all there is
    pca = report["baselines"]["pca"]
    for name, found in two["with_sae"].items():
        for other, weight, rate in (("raw", 0, 32 * sae.width), ("pca", 8 * pca["model_bytes"], pca["bits_per_row"])):
            even = found[f"rows_to_break_even_{other}"]
            if even is None or even == 0:
                assert two["bits_per_row"]["data"] >= rate or other == "pca"
                continue
            mine = total(
                {"data": two["bits_per_row"]["data"], "prior": two["bytes"]["prior"]}, found["sae_bytes"], even
            )
            assert mine == pytest.approx(weight + rate * even), name


@pytest.mark.parametrize("embed", ["none", "tables"])
def test_an_sae_in_the_codec_file_is_no_part_of_the_prior(sae: SAE, rows: Rows, tmp_path: Path, embed: str) -> None:
    """With it the file is larger by the SAE, which is counted as such."""
    plain, holding = tmp_path / "plain.saecodec", tmp_path / "holding.saecodec"
    codec = Codec.fit(sae, rows)
    save_codec(codec, plain)
    save_codec(codec, holding, embed_sae=True)

    def measured(path: Path) -> dict[str, Any]:
        found, size = load_codec(path, "cpu"), path.stat().st_size
        return measure_array(MemoryArray(rows), sae=sae, codec=found, codec_bytes=size, embed=embed)

    one, other = measured(plain), measured(holding)
    assert one["two_part"] == other["two_part"]
    assert one["file_bytes"] == other["file_bytes"]
    if embed == "none":
        assert one["two_part"]["bytes"]["prior"] == plain.stat().st_size < holding.stat().st_size
        assert other["outside"]["codec_bytes"] == holding.stat().st_size
    else:
        assert one["two_part"]["bytes"]["prior"] == one["bytes"]["tables"]
