"""The residual layer: levels to bytes and back, the layer to bytes and back, and what levels stand for."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import saecodec.residual
from saecodec.buckets import N_BUCKETS
from saecodec.codes import MAX_LEVEL
from saecodec.errors import FormatError, InputError
from saecodec.integers import pack_ints, zigzag
from saecodec.quantizer import CENTROID_LEVELS
from saecodec.residual import MAX_ENTRY, Block, ResidualLayer
from saecodec.runs import encode_runs
from saecodec.table_set import TableSet
from saecodec.wire import varint, varints

SHAPES = [(3, 4), (0, 2), (2, 2), (1, 5)]


def make_layer(seed: int = 0, shapes: list[tuple[int, int]] = SHAPES, n_classes: int = 3) -> ResidualLayer:
    """A layer of random integers."""
    rng = np.random.default_rng(seed)
    blocks = tuple(Block(rng.integers(-99, 100, shape)) for shape in shapes)
    n_components, width = sum(m for m, _ in shapes), sum(w for _, w in shapes)
    codes = rng.integers(0, 40, (n_classes, 60))
    tables = TableSet(rng.integers(0, n_classes, n_components), codes, 1)
    mean, centroids = rng.integers(-50, 50, width), rng.integers(-128, 128, (n_classes, CENTROID_LEVELS))
    return ResidualLayer(0.25, 1 / 64, blocks, mean, tables, centroids)


def orthonormal_layer(width: int, step: float = 0.5) -> ResidualLayer:
    """A layer with a rotation as its basis, as finely as integers allow, and without mean and centroids."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    tables = TableSet(np.zeros(width, np.int64), np.zeros((1, N_BUCKETS), np.int64), 0)
    vectors = np.rint(basis * MAX_ENTRY).astype(np.int64)
    mean, centroids = np.zeros(width, np.int64), np.zeros((1, CENTROID_LEVELS), np.int64)
    return ResidualLayer(step, 1 / MAX_ENTRY, (Block(vectors),), mean, tables, centroids)


LAYER = make_layer()
level = st.one_of(st.integers(-3, 3), st.integers(-40, 40), st.integers(-MAX_LEVEL, MAX_LEVEL))


# -- levels ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(level, min_size=6, max_size=6), max_size=12))
def test_levels_come_back(values: list[list[int]]) -> None:
    levels = np.array(values, np.int32).reshape(-1, 6)
    found = LAYER.decode(LAYER.encode(levels), len(levels), "test")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, levels)


@pytest.mark.parametrize("n_classes", [1, 2, 6, 50])
@pytest.mark.parametrize("n_rows", [0, 1, 777])
def test_levels_of_any_number_of_classes_and_rows_come_back(n_classes: int, n_rows: int) -> None:
    layer = make_layer(n_classes, n_classes=n_classes)
    levels = np.random.default_rng(1).geometric(0.4, (n_rows, 6)).astype(np.int32) - 1
    np.testing.assert_array_equal(layer.decode(layer.encode(levels), n_rows, "test"), levels)


def test_likely_levels_take_few_bytes() -> None:
    codes = np.array([[60, 0]])
    tables = TableSet(np.zeros(6, np.int64), codes, 1)
    zeros = np.zeros((10_000, 6), np.int32)
    assert len(replace(LAYER, tables=tables).encode(zeros)) < 100


def test_a_chunk_that_is_too_large_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saecodec.residual, "MAX_CELLS", 60)
    assert LAYER.encode(np.zeros((10, 6), np.int32))
    with pytest.raises(InputError, match="11 rows has 66 residual levels, more than 60: use fewer rows a chunk"):
        LAYER.encode(np.zeros((11, 6), np.int32))


@pytest.mark.parametrize("n_rows", [1 << 20, 1 << 40])
def test_more_rows_than_bytes_can_hold_are_refused_before_there_is_memory_for_them(n_rows: int) -> None:
    with pytest.raises(FormatError, match=r"integers cannot come from|residual levels, more than"):
        LAYER.decode(b"\0" * 16, n_rows, "test")


@given(st.data())
def test_damaged_levels_are_a_format_error_or_other_levels(data: st.DataObject) -> None:
    levels = np.random.default_rng(0).integers(-9, 9, (30, 6)).astype(np.int32)
    good = LAYER.encode(levels)
    kind = data.draw(st.sampled_from(["flip", "cut", "more", "random"]))
    bad = bytearray(good)
    if kind == "flip":
        bad[data.draw(st.integers(0, len(good) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del bad[data.draw(st.integers(0, len(good) - 1)) :]
    elif kind == "more":
        bad += data.draw(st.binary(min_size=1, max_size=9))
    else:
        bad = bytearray(data.draw(st.binary(max_size=80)))
    try:
        found = LAYER.decode(bytes(bad), 30, "test")
    except FormatError:
        return
    assert found.shape == (30, 6)
    assert np.abs(found).max() <= MAX_LEVEL


@pytest.mark.parametrize("n_rows", [29, 31])
def test_levels_of_another_number_of_rows_are_refused(n_rows: int) -> None:
    levels = np.random.default_rng(0).integers(-9, 9, (30, 6)).astype(np.int32)
    with pytest.raises(FormatError, match=r"^test: "):
        LAYER.decode(LAYER.encode(levels), n_rows, "test")


def test_a_level_above_the_limit_is_refused_by_writer_and_reader() -> None:
    levels = np.full((1, 6), MAX_LEVEL, np.int32)
    assert LAYER.decode(LAYER.encode(levels), 1, "test").max() == MAX_LEVEL
    for beyond in (MAX_LEVEL + 1, -MAX_LEVEL - 1):
        levels[0, 3] = beyond
        with pytest.raises(InputError, match=r"a residual level exceeds 2\^20"):
            LAYER.encode(levels)
        values = zigzag(levels.T[np.argsort(LAYER.tables.classes, kind="stable")].ravel().astype(np.int64))
        runs = np.concatenate([[0], np.cumsum(np.bincount(LAYER.tables.classes, minlength=3))])
        (data,) = encode_runs(values, runs, [0, 3], LAYER.tables.models)
        with pytest.raises(FormatError, match=f"test: an integer exceeds {MAX_LEVEL} in magnitude"):
            LAYER.decode(data, 1, "test")


@pytest.mark.parametrize("shape", [(3, 5), (3, 7), (6,)])
def test_levels_of_another_number_of_components_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"residual levels of shape .* for 6 components"):
        LAYER.encode(np.zeros(shape, np.int32))


# -- rows --------------------------------------------------------------------------------------------------------------


def test_levels_stand_for_centroids_times_basis_plus_mean() -> None:
    levels = np.random.default_rng(0).integers(-20, 21, (50, 6)).astype(np.int32)
    offsets = np.zeros(levels.shape)
    for t, m in np.ndindex(levels.shape):
        size = abs(levels[t, m])
        if 1 <= size <= CENTROID_LEVELS:
            offsets[t, m] = LAYER.centroids[LAYER.tables.classes[m], size - 1] / 256
    values = np.sign(levels) * (np.abs(levels) + offsets) * LAYER.step
    basis, at, left = np.zeros((6, 13)), 0, 0
    for block in LAYER.blocks:
        m, w = block.vectors.shape
        basis[at : at + m, left : left + w] = block.vectors * LAYER.unit
        at, left = at + m, left + w
    expected = values @ basis + LAYER.mean * LAYER.step / 16
    found = LAYER.rows(levels)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_level_zero_everywhere_is_the_mean() -> None:
    rows = LAYER.rows(np.zeros((3, 6), np.int32))
    np.testing.assert_allclose(rows, np.repeat(LAYER.mean[None] * LAYER.step / 16, 3, 0), rtol=1e-6)


def test_coordinates_are_those_of_the_rows_that_levels_stand_for() -> None:
    layer = orthonormal_layer(12)
    levels = np.random.default_rng(0).integers(-20, 21, (40, 12)).astype(np.int32)
    np.testing.assert_allclose(layer.coordinates(layer.rows(levels)), levels, atol=0.01)


def test_no_rows_have_no_coordinates() -> None:
    assert LAYER.coordinates(np.zeros((0, 13), np.float32)).shape == (0, 6)
    assert LAYER.rows(np.zeros((0, 6), np.int32)).shape == (0, 13)


# -- the layer as bytes ------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 1 << 20),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)).map(lambda mw: (mw[0], mw[0] + mw[1])), max_size=5),
    st.integers(1, 9),
)
def test_a_layer_comes_back(seed: int, shapes: list[tuple[int, int]], n_classes: int) -> None:
    layer = make_layer(seed, [(1, 3), *shapes], n_classes)
    found = ResidualLayer.from_bytes(layer.to_bytes(), "test")
    assert (found.step, found.unit, found.width, found.n_components) == (
        layer.step,
        layer.unit,
        layer.width,
        layer.n_components,
    )
    assert found.scales() == layer.scales()
    assert [b.vectors.shape for b in found.blocks] == [b.vectors.shape for b in layer.blocks]
    assert found.content().keys() == layer.content().keys()
    for key, value in layer.content().items():
        np.testing.assert_array_equal(found.content()[key], value, err_msg=key)
    assert found.to_bytes() == layer.to_bytes()


def test_every_part_of_a_layer_is_in_its_content() -> None:
    other = make_layer(1)
    same = {key: value.tobytes() for key, value in LAYER.content().items()}
    for part in ("blocks", "mean", "tables", "centroids"):
        changed = replace(LAYER, **{part: getattr(other, part)}).content()
        assert {key: value.tobytes() for key, value in changed.items()} != same, part
    assert replace(LAYER, step=0.5).scales() != LAYER.scales() != replace(LAYER, unit=0.5).scales()


@given(st.data())
def test_damaged_layers_are_a_format_error_or_another_layer(data: st.DataObject) -> None:
    bad = bytearray(LAYER.to_bytes())
    if data.draw(st.booleans()):
        for _ in range(data.draw(st.integers(1, 3))):
            bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    else:
        del bad[data.draw(st.integers(0, len(bad) - 1)) :]
    try:
        found = ResidualLayer.from_bytes(bytes(bad), "test")
    except FormatError:
        return
    assert 0 < found.step < float("inf")
    assert found.n_components == len(found.tables.classes)


def bytes_of(
    shapes: list[tuple[int, int]], step: float = 1.0, unit: float = 1.0, change: Callable[[bytes], bytes] = bytes
) -> bytes:
    """A layer of zeros, written by hand."""
    m, w = sum(m for m, _ in shapes), sum(w for _, w in shapes)
    basis = pack_ints(np.zeros(sum(m * w for m, w in shapes), np.int64))
    tables = TableSet(np.zeros(m, np.int64), np.zeros((1, 2), np.int64), 0).to_bytes()
    head = varint(len(shapes)) + varints([n for shape in shapes for n in shape]) + struct.pack("<dd", step, unit)
    return change(head + basis + pack_ints(np.zeros(w, np.int64)) + tables + pack_ints(np.zeros(16, np.int64)))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_or_unit_that_is_none_is_refused(value: float) -> None:
    assert ResidualLayer.from_bytes(bytes_of([(1, 2)]), "test").width == 2
    for data in (bytes_of([(1, 2)], step=value), bytes_of([(1, 2)], unit=value)):
        with pytest.raises(FormatError, match="test: the residual's step is"):
            ResidualLayer.from_bytes(data, "test")


@pytest.mark.parametrize("shapes", [[(3, 2)], [(0, 4)], [(1, 1), (0, 0)], [(1, 1), (5, 4)], [], [(1 << 23, 1 << 23)]])
def test_a_basis_that_cannot_be_is_refused(shapes: list[tuple[int, int]]) -> None:
    data = bytes_of(shapes) if sum(m for m, _ in shapes) < 99 else varint(1) + varints(shapes[0]) + b"\0" * 99
    with pytest.raises(FormatError, match=r"^test: "):
        ResidualLayer.from_bytes(data, "test")


def test_entries_beyond_the_limit_and_bytes_left_over_are_refused() -> None:
    fine = replace(LAYER, blocks=(Block(np.full((6, 13), -MAX_ENTRY)),))
    assert ResidualLayer.from_bytes(fine.to_bytes(), "test").blocks[0].vectors.min() == -MAX_ENTRY
    beyond = replace(fine, blocks=(Block(np.full((6, 13), MAX_ENTRY + 1)),))
    with pytest.raises(FormatError, match=f"found {zigzag(np.array([MAX_ENTRY + 1]))[0]} where values below"):
        ResidualLayer.from_bytes(beyond.to_bytes(), "test")
    with pytest.raises(FormatError, match="1 bytes left over"):
        ResidualLayer.from_bytes(LAYER.to_bytes() + b"\0", "test")


def test_a_step_that_no_float32_holds_is_a_format_error() -> None:
    layer = ResidualLayer.from_bytes(bytes_of([(1, 2)], step=1e300), "test")
    values: NDArray[np.int32] = np.ones((1, 1), np.int32)
    with pytest.raises(FormatError):
        layer.rows(values)
