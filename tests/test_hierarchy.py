"""Codes sorted or split by a forest are those of the definition, and come back exactly; forests are what they say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.co_occurrence import CoOccurrence
from saecodec.codes import Codes
from saecodec.errors import FormatError, InputError
from saecodec.hierarchy import (
    Forest,
    best_forest,
    containment_forest,
    depths,
    forest_to_bytes,
    joined,
    read_forest,
    sorted_by_parent,
    split_by_parent,
    unsorted,
)
from saecodec.integers import pack_ints
from saecodec.wire import ByteReader, varint

AnyCodes = Callable[..., st.SearchStrategy[Codes]]
SameCodes = Callable[[Codes, Codes], None]


@st.composite
def forests(draw: st.DrawFn, n: int) -> Forest:
    """Any forest of n latents: each has a parent among those before it in some order, or none."""
    order = draw(st.permutations(range(n)))
    forest = np.full(n, -1, np.int32)
    for i, latent in enumerate(order):
        forest[latent] = draw(st.sampled_from([-1, *order[:i]]))
    return forest


def forest_of(*parents: int) -> Forest:
    return np.array(parents, np.int32)


def by_hand(codes: Codes, forest: Forest) -> tuple[Codes, Codes]:
    """Sorted and split codes, column by column."""
    dense = codes.to_dense()
    stacked, split = dense.copy(), np.zeros((codes.n_rows, codes.n_latents + (forest >= 0).sum()), np.int32)
    split[:, : codes.n_latents] = dense
    children = np.flatnonzero(forest >= 0)
    for c, child in enumerate(children):
        fires = dense[:, forest[child]] != 0
        stacked[:, child] = np.concatenate([dense[fires, child], dense[~fires, child]])
        split[:, child] = 0
        split[: fires.sum(), child] = dense[fires, child]
        split[: (~fires).sum(), codes.n_latents + c] = dense[~fires, child]
    return Codes.from_dense(stacked, codes.columns), Codes.from_dense(split, codes.columns)


# -- forests -----------------------------------------------------------------------------------------------------------


@given(st.data(), st.integers(0, 12))
def test_depths_count_ancestors(data: st.DataObject, n: int) -> None:
    forest = data.draw(forests(n))
    expected = []
    for latent in range(n):
        depth = 0
        while (latent := int(forest[latent])) >= 0:
            depth += 1
        expected.append(depth)
    assert depths(forest).tolist() == expected


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 9, 1000])
def test_a_chain_is_a_forest_and_a_circle_is_none(n: int) -> None:
    chain = np.arange(-1, n - 1, dtype=np.int32)
    assert depths(chain).tolist() == list(range(n))
    chain[0] = n - 1
    with pytest.raises(InputError, match="the ancestors of latent 0 go round in a circle"):
        depths(chain)


def test_what_is_no_forest_of_the_codes_is_refused() -> None:
    codes = Codes.from_dense(np.ones((2, 3), int))
    for forest, words in (
        (forest_of(-1, 3, 0), r"parents must be in \[-1, 3\), found -1..3"),
        (forest_of(-2, 0, 0), "found -2..0"),
        (forest_of(-1, 2, 1), "latent 1 go round"),
        (forest_of(-1, -1), "a forest of 2 latents, but codes of 3"),
        (np.zeros(3), "one integer a latent, got float64"),
        (np.full((3, 1), -1), r"of shape \(3, 1\)"),
    ):
        for made in (sorted_by_parent, unsorted, split_by_parent):
            with pytest.raises(InputError, match=words):
                made(codes, forest)


@given(st.data(), st.integers(0, 12))
def test_a_forest_comes_back_from_its_bytes(data: st.DataObject, n: int) -> None:
    forest = data.draw(forests(n))
    reader = ByteReader(forest_to_bytes(forest), "forest")
    read = read_forest(reader, n)
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, forest)
    reader.end()


@given(st.binary(max_size=30), st.integers(0, 9))
def test_any_bytes_are_a_forest_or_a_format_error(data: bytes, n: int) -> None:
    try:
        forest = read_forest(ByteReader(data, "forest"), n)
    except FormatError:
        return
    depths(forest)


@pytest.mark.parametrize(
    "steps,parents,words",
    [
        ([0, 2], [1, 1], "forest: latent 3 of a forest of 3"),
        ([0, 0], [1, 0], "forest: the ancestors of latent 0 go round"),
        ([0], [3], "found 3 where values below 3"),
    ],
)
def test_hostile_forests_are_refused(steps: list[int], parents: list[int], words: str) -> None:
    packed = varint(len(steps)) + pack_ints(np.array(steps)) + pack_ints(np.array(parents))
    with pytest.raises(FormatError, match=words):
        read_forest(ByteReader(packed, "forest"), 3)


def test_a_forest_takes_no_memory_for_children_that_it_cannot_have() -> None:
    with pytest.raises(FormatError, match="where at most 3 is possible"):
        read_forest(ByteReader(varint(1 << 40), "forest"), 3)


# -- codes -------------------------------------------------------------------------------------------------------------


def test_a_worked_example() -> None:
    """Latent 1 is the child of 0: rows 1 and 3, in which 0 fires, come before rows 0 and 2."""
    codes = Codes.from_dense(np.array([[0, 5], [7, 6], [0, 0], [8, 0]]))
    forest = forest_of(-1, 0)
    assert sorted_by_parent(codes, forest).to_dense().T.tolist() == [[0, 7, 0, 8], [6, 0, 5, 0]]
    assert split_by_parent(codes, forest).to_dense().T.tolist() == [[0, 7, 0, 8], [6, 0, 0, 0], [5, 0, 0, 0]]


@given(st.data(), st.integers(1, 9))
def test_codes_are_sorted_and_split_as_defined_and_come_back(
    any_codes: AnyCodes, assert_same_codes: SameCodes, data: st.DataObject, n: int
) -> None:
    codes, forest = data.draw(any_codes(n_latents=n)), data.draw(forests(n))
    stacked, split = by_hand(codes, forest)
    assert_same_codes(sorted_by_parent(codes, forest).check(), stacked)
    assert_same_codes(split_by_parent(codes, forest).check(), split)
    assert_same_codes(unsorted(stacked, forest), codes)
    assert_same_codes(joined(split, forest), codes)


@given(st.data(), st.integers(1, 9))
def test_any_codes_are_the_sorted_ones_of_some(
    any_codes: AnyCodes, assert_same_codes: SameCodes, data: st.DataObject, n: int
) -> None:
    codes, forest = data.draw(any_codes(n_latents=n)), data.draw(forests(n))
    assert_same_codes(sorted_by_parent(unsorted(codes, forest).check(), forest), codes)


@given(st.data(), st.integers(1, 6))
def test_split_codes_of_no_codes_are_refused(
    any_codes: AnyCodes, assert_same_codes: SameCodes, data: st.DataObject, n: int
) -> None:
    forest = data.draw(forests(n))
    codes = data.draw(any_codes(n_latents=n + int((forest >= 0).sum())))
    try:
        found = joined(codes, forest)
    except InputError:
        return
    assert_same_codes(split_by_parent(found.check(), forest), codes)


@pytest.mark.parametrize("column,row", [(1, 2), (2, 2)])
def test_a_nonzero_behind_the_rows_of_its_part_is_refused(column: int, row: int) -> None:
    dense = np.zeros((4, 3), int)
    dense[[0, 3], 0] = 1  # the parent fires in two rows of four
    dense[row - 1, column] = 1
    joined(Codes.from_dense(dense), forest_of(-1, 0))
    dense[row, column] = 1
    with pytest.raises(InputError, match="behind the rows of its part"):
        joined(Codes.from_dense(dense), forest_of(-1, 0))
    with pytest.raises(InputError, match="split by this forest have 3 latents, got 2"):
        joined(Codes.from_dense(dense[:, :2]), forest_of(-1, 0))


@pytest.mark.parametrize("signed", [False, True])
def test_many_rows_of_deep_forests_come_back(
    bursty_codes: Callable[..., Codes], assert_same_codes: SameCodes, signed: bool
) -> None:
    codes = bursty_codes(600, 40, signed=signed)
    order = np.random.default_rng(0).permutation(40)
    forest = np.full(40, -1, np.int32)
    forest[order[1:]] = order[:-1]
    assert depths(forest).max() == 39
    assert_same_codes(unsorted(sorted_by_parent(codes, forest), forest), codes)
    assert_same_codes(joined(split_by_parent(codes, forest), forest), codes)


# -- which forest ------------------------------------------------------------------------------------------------------


def planted(n_rows: int = 3000, seed: int = 0) -> Codes:
    """Latent 0 has the child 1, and that the child 2; 3 fires mostly with 4; 5 and 6 fire when they like."""
    rng = np.random.default_rng(seed)
    fires = rng.random((n_rows, 7)) < [0.3, 0.5, 0.5, 0.02, 0.25, 0.2, 0.1]
    fires[:, 1] &= fires[:, 0]
    fires[:, 2] &= fires[:, 1]
    fires[:, 3] |= fires[:, 4] & (rng.random(n_rows) < 0.5)
    return Codes.from_dense(fires * rng.geometric(0.5, fires.shape))


def test_a_planted_hierarchy_is_found() -> None:
    pairs = CoOccurrence(7)
    pairs.add(planted())
    assert containment_forest(pairs).tolist() == [-1, 0, 1, -1, -1, -1, -1]
    assert best_forest(pairs, 20).tolist() == [-1, 0, 1, 4, -1, -1, -1]
    assert best_forest(pairs, 1e6).tolist() == [-1] * 7
    assert containment_forest(pairs, 0.8).tolist() == [-1, 0, 1, 4, -1, -1, -1]


def test_the_best_forest_of_equal_latents_is_acyclic() -> None:
    fires = np.repeat(np.random.default_rng(0).random((200, 1)) < 0.3, 5, axis=1)
    pairs = CoOccurrence(5)
    pairs.add(Codes.from_dense(fires.astype(int)))
    assert best_forest(pairs, 0).tolist() == [-1, 0, 0, 0, 0]
    assert containment_forest(pairs).tolist() == [-1] * 5  # none is more frequent than another
