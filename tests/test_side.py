"""Side information in the bitstream: integers for scales and means, their precision, and payloads that are none."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec import exact
from saecodec.codes import MAX_COLUMN, Codes
from saecodec.errors import FormatError, InputError
from saecodec.features import Features
from saecodec.nonlinearity import TopK
from saecodec.normalization import KINDS, Side, has_mean, restored, sequence_scales
from saecodec.sae import SAE, Encoder
from saecodec.side import (
    MAX_RESOLUTION,
    MEAN,
    SCALE,
    SideQuantizer,
    SideStatistics,
    scales_of,
    side_columns,
    targets,
    with_side,
)
from saecodec.wire import varint

MakeSAE = Callable[..., SAE]
Rows = NDArray[np.float32]
NORMALIZING = KINDS[1:]
MEANS = SideQuantizer("layer_norm", 24, 0.3, 0.125, -0.375)
SCALES = SideQuantizer("row_norm", 7, 3.0)


def rows(n: int = 400, width: int = 8, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) * rng.gamma(3, size=(n, 1)) + rng.normal(size=(n, 1))
    return x.astype(np.float32)


def features_of(sae: SAE, x: Rows) -> Features:
    """Of rows in sequences of ten."""
    scales = scales_of(sae, [x], np.arange(len(x)) // 10)
    return sae.features(x, side=None if scales is None else Side(scales))


# -- integers ----------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 5000),
    st.floats(-60, 60),
    st.lists(st.tuples(st.integers(-1000, 1000), st.integers(-100_000, 100_000)), max_size=30),
    st.floats(1e-6, 10),
    st.floats(-1e6, 1e6),
)
def test_columns_are_those_of_what_they_stand_for(
    resolution: int, octave: float, values: list[tuple[int, int]], step: float, centre: float
) -> None:
    """Where float32 tells two levels apart, and holds both."""
    found = np.array(values, np.int64).reshape(-1, 2)
    octaves = (found[:, 0] - (found[:, 0] > 0)) / resolution + octave
    found = found[np.abs(octaves) < 120]
    found = found[np.abs(found[:, 1] + centre / step) < 1 << 22]
    columns = {SCALE: found[:, 0], MEAN: found[:, 1]}
    for quantizer in (
        SideQuantizer("layer_norm", resolution, 2.0**octave, step, centre),
        SideQuantizer("row_norm", resolution, 2.0**octave),
    ):
        again = quantizer.columns(quantizer.side(columns))
        assert {name: values.tolist() for name, values in again.items()} == {
            name: columns[name].tolist() for name in side_columns(quantizer.kind)
        }


@pytest.mark.parametrize("resolution", [1, 3, 100, 50_000])
def test_scales_are_rounded_within_half_a_level_and_means_within_half_a_step(resolution: int) -> None:
    rng = np.random.default_rng(resolution)
    side = Side(
        np.exp2(rng.uniform(-30, 30, 200)).astype(np.float32), (100 * rng.standard_normal(200)).astype(np.float32)
    )
    quantizer = SideQuantizer("layer_norm", resolution, 0.7, 0.01, 0.053)
    found = quantizer.rounded(side)
    assert found.mean is not None
    assert side.mean is not None
    octaves = np.log2(found.scale.astype(np.float64)) - np.log2(side.scale.astype(np.float64))
    assert np.abs(octaves).max() <= 0.5 / resolution + 2e-7
    assert np.abs(found.mean - side.mean).max() <= 0.005 + 4e-5
    assert found.scale.dtype == found.mean.dtype == np.float32
    twice = quantizer.rounded(found)
    np.testing.assert_array_equal(twice.scale, found.scale)


@pytest.mark.parametrize("octave", [-5, 0, 5])
def test_a_scale_of_zero_stays_zero_and_no_other_is_stored_as_zero(octave: int) -> None:
    quantizer = SideQuantizer("row_norm", 1, 2.0**octave)
    columns = quantizer.columns(Side(np.float32([0, 0.25, 0.5, 1, 2, 64])))
    levels = [level - octave for level in (-2, -1, 0, 1, 6)]
    assert columns[SCALE].tolist() == [0, *(n + 1 if n >= 0 else n for n in levels)]
    assert quantizer.side(columns).scale.tolist() == [0, 0.25, 0.5, 1, 2, 64]


def test_columns_of_a_kind_are_scales_and_where_it_has_means_means() -> None:
    assert [side_columns(kind) for kind in KINDS] == [(), (SCALE, MEAN), (SCALE,), (SCALE,)]
    assert SCALES.side({SCALE: np.array([1])}).mean is None


def test_a_mean_that_is_too_large_is_refused() -> None:
    side = Side(np.ones(2, np.float32), np.float32([0, 1e30]))
    with pytest.raises(InputError, match=r"a row's mean is 1e\+30: too large for this codec's steps of 0.125; drop"):
        MEANS.columns(side)
    largest = Side(np.ones(1, np.float32), np.float32([0.125 * (MAX_COLUMN - (1 << 20))]))
    assert MEANS.columns(largest)[MEAN].tolist() == [MAX_COLUMN - (1 << 20) + 3]


@pytest.mark.parametrize("name", [SCALE, MEAN])
def test_rows_without_a_column_of_side_information_are_refused(name: str) -> None:
    columns = {SCALE: np.zeros(2, np.int64), MEAN: np.zeros(2, np.int64), "seq": np.zeros(2, np.int64)}
    MEANS.side(columns)
    with pytest.raises(FormatError, match=f"column '{name}' is missing"):
        MEANS.side({key: values for key, values in columns.items() if key != name})


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("resolution", [1, 100, MAX_RESOLUTION])
def test_columns_that_stand_for_no_float32_are_refused(sign: int, resolution: int) -> None:
    quantizer = SideQuantizer("layer_norm", resolution, 1.0, 1e300, 0.0)
    zero = np.zeros(1, np.int64)
    assert quantizer.side({SCALE: zero, MEAN: zero}).mean == 0
    with pytest.raises(FormatError, match="no float32"):
        quantizer.side({SCALE: zero, MEAN: zero + sign})
    level = 128 * resolution + 1  # 2^128
    assert quantizer.side({SCALE: zero + level - 1, MEAN: zero}).scale == np.float32(2.0 ** (128 - 1 / resolution))
    for stored in (level, level + resolution, MAX_COLUMN - 1):
        with pytest.raises(FormatError, match="no float32"):
            quantizer.side({SCALE: zero + stored, MEAN: zero})
    assert quantizer.side({SCALE: zero - MAX_COLUMN + 1, MEAN: zero}).scale == 0  # so small a one is


# -- payloads ----------------------------------------------------------------------------------------------------------


POSITIVE = st.floats(5e-324, 1e308)


@given(st.sampled_from(NORMALIZING), st.integers(1, MAX_RESOLUTION), POSITIVE, POSITIVE, st.floats(-1e308, 1e308))
def test_bytes_are_read_back(kind: str, resolution: int, centre: float, step: float, mean_centre: float) -> None:
    means = (step, mean_centre) if has_mean(kind) else ()
    quantizer = SideQuantizer(kind, resolution, centre, *means)
    data = quantizer.to_bytes()
    assert SideQuantizer.from_bytes(data, "x") == quantizer
    for end in range(len(data)):
        with pytest.raises(FormatError, match="x, side information: truncated"):
            SideQuantizer.from_bytes(data[:end], "x")
    with pytest.raises(FormatError, match="left over"):
        SideQuantizer.from_bytes(data + b"\0", "x")


def payload(
    kind: int = 1, resolution: int = 9, centre: float = 4.0, step: float = 0.5, mean_centre: float = 3.0
) -> bytes:
    return varint(kind) + varint(resolution) + struct.pack("<3d", centre, step, mean_centre)


NOT_POSITIVE = (math.nan, 0.0, -0.0, -1.0, math.inf, -math.inf)


@pytest.mark.parametrize(
    "changed",
    [
        *({"kind": kind} for kind in (0, 2, 3, 4, 9, 1 << 40)),
        *({"resolution": n} for n in (0, MAX_RESOLUTION + 1, 1 << 40)),
        *({"centre": centre} for centre in NOT_POSITIVE),
        *({"step": step} for step in NOT_POSITIVE),
        *({"mean_centre": centre} for centre in (math.nan, math.inf, -math.inf)),
    ],
)
def test_hostile_payloads_are_refused(changed: dict[str, float]) -> None:
    assert SideQuantizer.from_bytes(payload(), "x") == SideQuantizer("layer_norm", 9, 4.0, 0.5, 3.0)
    with pytest.raises(FormatError, match=r"^x, side information: "):
        SideQuantizer.from_bytes(payload(**changed), "x")


def test_a_kind_of_none_and_a_varint_of_two_lengths_are_no_side_information() -> None:
    one = struct.pack("<d", 1.0)
    assert SideQuantizer.from_bytes(bytes([2, 5]) + one, "x").kind == "row_norm"
    for data in (bytes([0, 5]) + one, bytes([2, 0x85, 0]) + one):
        with pytest.raises(FormatError):
            SideQuantizer.from_bytes(data, "x")


# -- precision ---------------------------------------------------------------------------------------------------------


def squared_errors(sae: SAE, x: Rows, quantizer: SideQuantizer) -> tuple[float, float]:
    """Of rows decoded with exact side information, and with what a decoder knows."""
    features = features_of(sae, x)
    assert features.side is not None
    rounded = replace(features, side=quantizer.rounded(features.side))
    exact, found = (np.square(x - sae.rows(f).numpy(), dtype=np.float64).sum() for f in (features, rounded))
    return float(exact), float(found)


def random_sae(kind: str, width: int, k: int, seed: int) -> SAE:
    """k of 2 d random directions, a basis and its negatives, are active in a row: what is left is orthogonal to what is
    decoded, as with an SAE that was trained."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    w_dec = torch.cat([basis, -basis])
    encoder = Encoder(w_dec.T.contiguous(), torch.zeros(2 * width), TopK(k), True)
    return SAE(w_dec, 0.1 * torch.randn(width, generator=generator), encoder, "topk", normalization=kind)


@pytest.mark.parametrize("kind", NORMALIZING)
@pytest.mark.parametrize("width, k, seed", [(8, 2, 0), (32, 4, 1), (32, 12, 2), (64, 16, 3)])
def test_rounding_adds_about_half_a_percent_to_the_squared_error(kind: str, width: int, k: int, seed: int) -> None:
    sae = random_sae(kind, width, k, seed)
    x = rows(4000, width, seed)
    statistics = SideStatistics(sae)
    for part in np.split(x, 4):
        statistics.add(part, features_of(sae, part))
    quantizer = statistics.quantizer(1.0)
    assert quantizer is not None
    exact, found = squared_errors(sae, x, quantizer)
    assert 0.0005 < found / exact - 1 < 0.01


def test_an_error_that_is_given_takes_the_place_of_the_saes_own(make_sae: MakeSAE) -> None:
    """A hundredth of it: ten times the precision."""
    sae = replace(make_sae("relu"), normalization="layer_norm")
    x = rows()
    statistics = SideStatistics(sae)
    features = features_of(sae, x)
    statistics.add(x, features)
    error = np.square(x - sae.rows(features).numpy()).sum() / len(x)
    own, fine = statistics.quantizer(1.0), statistics.quantizer(1.0, float(error) / 100)
    assert own is not None
    assert fine is not None
    assert own.mean_step == pytest.approx(10 * fine.mean_step, rel=1e-3)
    assert fine.resolution == pytest.approx(10 * own.resolution, abs=10)


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_a_precision_without_rows_and_for_rows_of_zeros(kind: str, make_sae: MakeSAE) -> None:
    sae = replace(make_sae("relu"), normalization=kind)
    for x in (np.zeros((0, 8), np.float32), np.zeros((3, 8), np.float32)):
        statistics = SideStatistics(sae)
        statistics.add(x, features_of(sae, x))
        quantizer = statistics.quantizer(1.0)
        if kind == "none":
            assert quantizer is None
            continue
        assert quantizer is not None
        assert SideQuantizer.from_bytes(quantizer.to_bytes(), "x") == quantizer
        side = features_of(sae, x).side
        assert side is not None
        assert quantizer.rounded(side).scale.tolist() == [0] * len(x)


@pytest.mark.parametrize("size", [1e4, 1e11, 1e18])
@pytest.mark.parametrize("spread", [0, 1e-6])
def test_the_precision_of_large_means_that_hardly_vary_can_be_stored(
    size: float, spread: float, make_sae: MakeSAE
) -> None:
    sae = replace(make_sae("relu"), normalization="layer_norm")
    x = (size * (1 + spread * rows())).astype(np.float32)
    statistics, features = SideStatistics(sae), features_of(sae, x)
    statistics.add(x, features)
    quantizer = statistics.quantizer(1.0)
    assert quantizer is not None
    assert features.side is not None
    assert features.side.mean is not None
    again = SideQuantizer.from_bytes(quantizer.to_bytes(), "x")
    assert again == quantizer
    found = again.rounded(features.side).mean
    assert found is not None
    np.testing.assert_allclose(found, features.side.mean, rtol=1e-6)


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NORMALIZING)
def test_a_search_makes_up_for_the_rounding_of_scales(kind: str, make_sae: MakeSAE) -> None:
    """What it is to reconstruct, restored by what a decoder knows, is the row, but for the mean's rounding."""
    sae = replace(make_sae("relu"), normalization=kind)
    x = rows()
    side = features_of(sae, x).side
    quantizer = SideQuantizer(kind, 5, 1.0, *((0.1, 0.2) if has_mean(kind) else ()))
    wanted, columns = targets(sae, quantizer, x, 0, side)
    found = restored(torch.from_numpy(wanted), quantizer.side(columns)).numpy()
    assert np.abs(found - x).max() <= (0.05 if has_mean(kind) else 0) + 1e-5
    assert side is not None
    expected = quantizer.columns(side)
    assert {name: v.tolist() for name, v in columns.items()} == {name: v.tolist() for name, v in expected.items()}


def test_rows_that_hardly_vary_are_searched_in_normalized_space_too(make_sae: MakeSAE) -> None:
    """The rounding of their mean may be many times their scale."""
    sae = replace(make_sae("relu"), normalization="layer_norm")
    x = (0.3 + 1e-6 * rows()).astype(np.float32)
    wanted, _ = targets(sae, SideQuantizer("layer_norm", 9, 1.0, 0.5, 0.0), x, 0, None)
    assert np.abs(wanted).max() < 1.1 * math.sqrt(8)


def test_an_sae_that_normalizes_nothing_has_its_rows_as_targets(make_sae: MakeSAE) -> None:
    x = rows()
    wanted, columns = targets(make_sae("relu"), None, x, 0, None)
    assert wanted is x
    assert columns == {}


def test_codes_get_the_side_information_of_their_features(make_sae: MakeSAE) -> None:
    sae = replace(make_sae("relu"), normalization="row_norm")
    features = features_of(sae, rows(5))
    codes = Codes(np.zeros(6, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int32), 24, {"seq": np.arange(5)})
    assert with_side(codes, features, None) is codes
    assert with_side(codes, replace(features, side=None), SCALES) is codes
    assert features.side is not None
    found = with_side(codes, features, SCALES).columns
    assert found.keys() == {"seq", SCALE}
    assert found[SCALE].tolist() == SCALES.columns(features.side)[SCALE].tolist()


def test_scales_of_sequences_are_known_beforehand_and_of_no_other_kind(make_sae: MakeSAE) -> None:
    x, ids = rows(30), np.arange(30) // 7
    for kind in ("none", "layer_norm", "row_norm"):
        assert scales_of(replace(make_sae("relu"), normalization=kind), [x], ids) is None
    sae = replace(make_sae("relu"), normalization="sequence_norm")
    expected = sequence_scales(np.linalg.norm(x, axis=1), ids, 8)
    found = scales_of(sae, [x[:4], x[4:4], x[4:]], ids)
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert scales_of(sae, [], ids[:0]).tolist() == []  # type: ignore[union-attr]
    with pytest.raises(InputError, match="--seq"):
        scales_of(sae, [x], None)


def test_decimals_decide_once_for_rows_of_the_same_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few bytes can have a million rows whose scale lies between two float32: 7 seconds, row by row."""
    asked = []
    monkeypatch.setattr(exact, "exp2", lambda *of: asked.append(of) or Decimal(of[2]))
    side = SideQuantizer("row_norm", 1, 1 + 2.0**-24).side({SCALE: np.ones(1000, np.int64)})
    assert len(asked) == 1
    assert (side.scale == 1).all()
    asked.clear()
    monkeypatch.setattr(exact, "log2", lambda *of: asked.append(of) or Decimal(3))
    columns = SideQuantizer("row_norm", 1, 2.0**0.5).columns(Side(np.ones(1000, np.float32)))
    assert len(asked) == 1
    assert (columns[SCALE] == 4).all()
