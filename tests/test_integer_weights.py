"""The integers of a decoder come back, take about what their entropy says, and lies about them are refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

import saecodec.integer_weights
from saecodec.errors import FormatError, InputError
from saecodec.integer_weights import MAX_CELLS, pack_integers, read_integers
from saecodec.matrices import encode_matrix
from saecodec.table_set import TableSet
from saecodec.wire import ByteReader, blob, varint

Integers = NDArray[np.int8]
matrices = arrays(np.int8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-127, 127))


def read(data: bytes, n_latents: int, width: int) -> Integers:
    reader = ByteReader(data, "test")
    out = read_integers(reader, n_latents, width)
    reader.end()
    return out


@given(matrices, st.integers(1, 12))
def test_integers_come_back_whatever_the_block(integers: Integers, block: int) -> None:
    found = read(pack_integers(integers, min(block, len(integers))), *integers.shape)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, integers)
    np.testing.assert_array_equal(read(pack_integers(integers), *integers.shape), integers)


@pytest.fixture
def spread() -> Integers:
    """(600, 40), of other spreads in other columns."""
    rng = np.random.default_rng(0)
    return np.clip(np.rint(rng.normal(size=(600, 40)) * np.geomspace(0.5, 40, 40)), -127, 127).astype(np.int8)


def entropy(values: Integers) -> float:
    p = np.unique(values, return_counts=True)[1] / values.size
    return float(-(p * np.log2(p)).sum())


def test_columns_take_about_their_entropy(spread: Integers) -> None:
    ideal = sum(entropy(column) for column in spread.T) * len(spread)
    bits = 8 * len(pack_integers(spread))
    assert 0.97 * ideal < bits < 1.06 * ideal  # empirical entropies of 600 values are too small
    assert bits < 0.9 * entropy(spread) * spread.size


def test_large_matrices_are_cut_into_blocks(spread: Integers, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pack_integers(spread)
    assert ByteReader(whole, "test").varint() == 600
    monkeypatch.setattr(saecodec.integer_weights, "_CELLS", 1000)
    parts = pack_integers(spread)
    assert ByteReader(parts, "test").varint() == 25
    assert len(parts) < 1.02 * len(whole)
    np.testing.assert_array_equal(read(parts, 600, 40), spread)
    assert pack_integers(spread, 25) == parts


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Integers:
    return np.random.default_rng(1).integers(-127, 128, (9, 4)).astype(np.int8)


def test_every_cut_is_refused(small: Integers) -> None:
    good = pack_integers(small, 4)
    for size in range(len(good)):
        with pytest.raises(FormatError, match="test"):
            read(good[:size], 9, 4)
    with pytest.raises(FormatError, match="left over"):
        read(good + b"\0", 9, 4)


@given(st.data())
def test_damage_is_a_format_error_or_other_integers(data: st.DataObject) -> None:
    integers = np.random.default_rng(1).integers(-127, 128, (9, 4)).astype(np.int8)
    bad = bytearray(pack_integers(integers, 4))
    at = data.draw(st.integers(0, len(bad) - 1))
    bad[at] ^= data.draw(st.integers(1, 255))
    try:
        found = read(bytes(bad), 9, 4)
    except FormatError:
        return
    assert (found.shape, found.dtype) == ((9, 4), np.int8)
    assert found.min() >= -127


@pytest.mark.parametrize("n_latents, width", [(8, 4), (10, 4), (9, 3), (9, 5), (1, 36)])
def test_another_shape_is_refused(small: Integers, n_latents: int, width: int) -> None:
    with pytest.raises(FormatError):
        read(pack_integers(small, 9), n_latents, width)


UNIFORM = TableSet(np.zeros(4, np.int64), np.zeros((1, 2), np.int64), 0)


def forged(block: int, tables: TableSet, parts: Iterator[bytes] | list[bytes]) -> bytes:
    return varint(block) + tables.to_bytes() + b"".join(map(blob, parts))


@pytest.mark.parametrize("value", [128, -128, 300, 1 << 20])
def test_an_integer_beyond_127_is_refused(value: int) -> None:
    rows = np.array([[127, -127, 0, 5]])
    assert read(forged(1, UNIFORM, [encode_matrix(rows, UNIFORM)]), 1, 4).tolist() == rows.tolist()
    rows[0, 2] = value
    with pytest.raises(FormatError, match="exceeds 127"):
        read(forged(1, UNIFORM, [encode_matrix(rows, UNIFORM)]), 1, 4)


def test_blocks_that_are_not_possible_are_refused(small: Integers) -> None:
    good = pack_integers(small, 9)
    for block in (0, 10, 1 << 40):
        with pytest.raises(FormatError):
            read(varint(block) + good[1:], 9, 4)
    with pytest.raises(FormatError, match="blocks of 1048577 latents of 4 weights are not possible"):
        read(varint(MAX_CELLS // 4 + 1) + UNIFORM.to_bytes(), 1 << 26, 4)
    with pytest.raises(FormatError, match="64 blocks of weights, 0 bytes left"):  # as large as can be
        read(varint(MAX_CELLS // 4) + UNIFORM.to_bytes(), 1 << 26, 4)


def test_rows_that_no_reader_takes_are_not_written() -> None:
    with pytest.raises(InputError, match="directions of 4194305 values cannot be stored as int8, at most 4194304"):
        pack_integers(np.zeros((1, MAX_CELLS + 1), np.int8))


def test_more_blocks_than_bytes_are_refused() -> None:
    with pytest.raises(FormatError, match="16777216 blocks of weights, 3 bytes left"):
        read(forged(1, UNIFORM, []) + b"\0\0\0", 1 << 24, 4)


def test_integers_that_bytes_cannot_hold_are_refused_before_there_is_memory_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All blocks are looked at before one is decoded: the first of these is valid."""
    monkeypatch.setattr(saecodec.integer_weights, "decode_matrix", None)
    first = encode_matrix(np.zeros((1 << 10, 4), np.int64), UNIFORM)
    with pytest.raises(FormatError, match="4096 integers cannot come from 4 bytes"):
        read(forged(1 << 10, UNIFORM, [first, b"\0\0\0\0"]), 1 << 11, 4)
