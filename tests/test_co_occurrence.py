"""Pairs are counted, and found, as by looking at every row and every pair."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.co_occurrence import MAX_LATENTS, CoOccurrence, near_duplicates, parent_child, strongest
from saecodec.codes import Codes
from saecodec.errors import InputError
from saecodec.information import mutual_information

AnyCodes = Callable[..., st.SearchStrategy[Codes]]
Fires = NDArray[np.generic]


def counted(fires: Fires, n_chunks: int = 3) -> CoOccurrence:
    out = CoOccurrence(fires.shape[1])
    for part in np.array_split(fires, n_chunks):
        out.add(Codes.from_dense(part.astype(int)))
    return out


def related(n_rows: int = 400, n_latents: int = 14, seed: int = 0) -> Fires:
    """Random supports, in which most latents look at some other one, from equal to contained to contrary."""
    rng = np.random.default_rng(seed)
    fires = rng.random((n_rows, n_latents)) < rng.uniform(0.02, 0.6, n_latents)
    for i in range(2, n_latents):
        j, kind = rng.integers(i), rng.integers(5)
        noise = rng.random(n_rows) < 0.02
        if kind == 0:
            fires[:, i] = fires[:, j] ^ noise
        elif kind == 1:
            fires[:, i] &= fires[:, j]
        elif kind == 2:
            fires[:, i] = fires[:, j] & (rng.random(n_rows) < 0.3) | noise
        elif kind == 3:
            fires[:, i] &= ~fires[:, j]
    return fires


def information(a: Fires, b: Fires) -> float:
    """Mutual information from its definition, in bits per row."""
    total = 0.0
    for x in (False, True):
        for y in (False, True):
            p, px, py = ((a == x) & (b == y)).mean(), (a == x).mean(), (b == y).mean()
            total += p * math.log2(p / (px * py)) if p else 0.0
    return total


# -- counts ------------------------------------------------------------------------------------------------------------


@given(st.data())
def test_counts_are_those_of_a_product_of_dense_supports(any_codes: AnyCodes, data: st.DataObject) -> None:
    parts = data.draw(st.lists(any_codes(n_latents=7), max_size=3))
    pairs = CoOccurrence(7)
    for part in parts:
        pairs.add(part)
    fires = (Codes.concatenate([Codes(p.indptr, p.latents, p.levels, 7) for p in parts], 7).to_dense() != 0).astype(int)
    np.testing.assert_array_equal(pairs.both(), fires.T @ fires)
    np.testing.assert_array_equal(pairs.counts, fires.sum(0))
    assert pairs.n_rows == len(fires)


@pytest.mark.parametrize("n_latents,rate", [(400, 0.02), (600, 0.1)])
def test_sparse_and_dense_rows_are_counted_alike(n_latents: int, rate: float) -> None:
    """8 of 400 latents go pair by pair, 60 of 600 through products of more than one block of rows and of latents."""
    fires = (np.random.default_rng(0).random((2500, n_latents)) < rate).astype(float)
    np.testing.assert_array_equal(counted(fires, 2).both(), fires.T @ fires)
    np.testing.assert_array_equal(counted(fires, 2).both(3, 9), (fires.T @ fires)[3:9])


@pytest.mark.parametrize("n_latents,rate", [(400, 0.02), (600, 0.1)])
def test_of_chosen_latents_others_are_ignored(n_latents: int, rate: float) -> None:
    fires = (np.random.default_rng(1).random((300, n_latents)) < rate).astype(int)
    chosen = np.arange(1, n_latents, 3)
    pairs = CoOccurrence(n_latents, chosen)
    pairs.add(Codes.from_dense(fires))
    few = fires[:, chosen]
    np.testing.assert_array_equal(pairs.both(), few.T @ few)
    np.testing.assert_array_equal(pairs.counts, few.sum(0))
    found = parent_child(pairs, 0.1, min_rows=1, min_lift=1.0)
    assert len(found.child)
    assert set(found.child) | set(found.parent) <= set(chosen)
    best, bits = strongest(pairs, 1)
    others = np.setdiff1d(np.arange(n_latents), chosen)
    assert (best[others] == -1).all()
    assert (bits[others] == 0).all()
    assert set(best[best >= 0]) <= set(chosen)


def test_the_most_frequent_latents_are_chosen_and_ties_go_to_the_first() -> None:
    assert CoOccurrence.most_frequent(np.array([3, 5, 1, 3, 3]), 3).latents.tolist() == [0, 1, 3]
    assert len(CoOccurrence.most_frequent(np.arange(MAX_LATENTS + 5)).latents) == MAX_LATENTS


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(InputError, match="at most 8192 latents are counted, got 8193"):
        CoOccurrence(MAX_LATENTS + 1)
    for latents in ([1, 0], [2, 2], [-1, 2], [0, 5], [[0, 1]]):
        with pytest.raises(InputError, match=r"ascending in \[0, 5\)"):
            CoOccurrence(5, np.array(latents))
    with pytest.raises(InputError, match="codes of 4 latents, expected 5"):
        CoOccurrence(5).add(Codes.from_dense(np.ones((2, 4), int)))


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_the_information_of_an_event_on_itself_is_its_entropy() -> None:
    for n, expected in ((0, 0.0), (8, 0.0), (4, 1.0), (1, 0.543564)):
        assert mutual_information(np.array([n]), n, n, 8).tolist() == pytest.approx([expected], abs=1e-6)
    assert mutual_information(np.array([2.0]), 4, 4, 8).tolist() == pytest.approx([0.0])


@pytest.mark.parametrize("seed", range(4))
def test_information_is_that_of_the_definition(seed: int) -> None:
    fires = related(60, seed=seed)
    pairs = counted(fires)
    (start, both, bits) = next(pairs.blocks())
    assert start == 0
    np.testing.assert_array_equal(both, pairs.both())
    expected = [[information(a, b) for b in fires.T] for a in fires.T]
    np.testing.assert_allclose(bits, expected, atol=1e-12)


def test_blocks_of_many_latents_join_up() -> None:
    """Of 1100 latents, which do not go into one block; the last are children of the first."""
    fires = np.random.default_rng(0).random((2000, 1100)) < 0.1
    fires[:, -100:] &= fires[:, :100]
    pairs = counted(fires, 1)
    found = list(pairs.blocks())
    assert [start for start, _, _ in found] == [0, 953]
    np.testing.assert_array_equal(np.concatenate([both for _, both, _ in found]), pairs.both())
    counts = pairs.counts
    bits = mutual_information(pairs.both().astype(float), counts[:, None], counts, 2000)
    np.testing.assert_array_equal(np.concatenate([bits for _, _, bits in found]), bits)
    children = parent_child(pairs, min_rows=8)
    assert {(c, p) for c, p in zip(children.child, children.parent, strict=True) if c >= 1000} == {
        (c, c - 1000) for c in range(1000, 1100) if 8 <= counts[c] < counts[c - 1000]
    }
    best, _ = strongest(pairs, 1)
    frequent = np.flatnonzero(counts >= 8)
    frequent = frequent[frequent >= 1000]
    np.testing.assert_array_equal(best[frequent, 0], frequent - 1000)
    twins = fires.copy()
    twins[:, 1050:] = twins[:, :50]
    same = near_duplicates(counted(twins, 1), 0.9)
    assert set(zip(same.first, same.second, strict=True)) == {(i, 1050 + i) for i in range(50)}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit,min_rows", [(0.3, 20), (0.8, 1)])
def test_near_duplicates_are_all_pairs_above_the_limit(seed: int, limit: float, min_rows: int) -> None:
    fires = related(seed=seed)
    w_dec = np.random.default_rng(seed).normal(size=(fires.shape[1], 5)).astype(np.float32)
    w_dec[0] = 0
    expected = {}
    for i in range(fires.shape[1]):
        for j in range(i + 1, fires.shape[1]):
            a, b = fires[:, i], fires[:, j]
            if min(a.sum(), b.sum()) >= min_rows and (a & b).sum() / (a | b).sum() >= limit:
                expected[i, j] = (a & b).sum() / (a | b).sum(), information(a, b)
    found = near_duplicates(counted(fires), limit, min_rows=min_rows, w_dec=w_dec)
    assert {
        (i, j): (x, y) for i, j, x, y in zip(found.first, found.second, found.jaccard, found.saved, strict=True)
    } == {pair: pytest.approx(values) for pair, values in expected.items()}
    assert (np.diff(found.saved) <= 0).all()
    assert found.cosine is not None
    for i, j, cosine in zip(found.first, found.second, found.cosine, strict=True):
        length = np.linalg.norm(w_dec[i]) * np.linalg.norm(w_dec[j])
        assert cosine == pytest.approx(w_dec[i] @ w_dec[j] / length if length else 0, abs=1e-6)


def test_equal_latents_are_near_duplicates_and_independent_ones_are_not() -> None:
    fires = np.random.default_rng(0).random((2000, 6)) < 0.1
    fires[:, 4] = fires[:, 1]
    found = near_duplicates(counted(fires))
    assert (found.first.tolist(), found.second.tolist(), found.jaccard.tolist()) == ([1], [4], [1.0])
    assert found.saved[0] == pytest.approx(information(fires[:, 1], fires[:, 1]))
    assert found.cosine is None


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("probability,min_rows,lift", [(0.95, 20, 2.0), (0.5, 5, 1.2)])
def test_a_child_has_the_best_of_its_parents(seed: int, probability: float, min_rows: int, lift: float) -> None:
    fires = related(seed=seed)
    expected = {}
    for child, own in enumerate(fires.T):
        best = 0.0
        for parent, other in enumerate(fires.T):
            if not min_rows <= own.sum() < other.sum():
                continue
            given_child = other[own].mean()
            if given_child >= probability and given_child / other.mean() >= lift and information(own, other) > best:
                best = information(own, other)
                expected[child] = (parent, given_child, given_child / other.mean(), best)
    found = parent_child(counted(fires), probability, min_rows=min_rows, min_lift=lift)
    rows = zip(found.child, found.parent, found.probability, found.lift, found.saved, strict=True)
    assert {row[0]: row[1:] for row in rows} == {child: pytest.approx(values) for child, values in expected.items()}
    assert (np.diff(found.saved) <= 0).all()


def test_a_latent_that_is_almost_always_on_is_no_parent() -> None:
    rng = np.random.default_rng(0)
    fires = rng.random((2000, 3)) < 0.1
    fires[:, 2] = rng.random(2000) < 0.99
    assert len(parent_child(counted(fires)).child) == 0
    fires[:, 1] = fires[:, 0] & (rng.random(2000) < 0.5)
    found = parent_child(counted(fires))
    assert (found.child.tolist(), found.parent.tolist(), found.probability.tolist()) == ([1], [0], [1.0])


@pytest.mark.parametrize("seed", range(4))
def test_the_strongest_are_more_frequent_and_share_most(seed: int) -> None:
    fires = related(seed=seed)
    fires[:, 5] = fires[:, 3]  # equally frequent: the first counts as the more frequent
    n, counts = fires.shape[1], fires.sum(0)
    latents, bits = strongest(counted(fires), 3)
    for i in range(n):
        shared = [
            (-round(information(fires[:, i], fires[:, j]), 9), j)
            for j in range(n)
            if (-counts[j], j) < (-counts[i], i) and (fires[:, i] & fires[:, j]).mean() > counts[i] * counts[j] / 400**2
        ]
        best = sorted(shared)[:3]
        assert latents[i].tolist() == [j for _, j in best] + [-1] * (3 - len(best))
        assert bits[i].tolist() == pytest.approx([-x for x, _ in best] + [0.0] * (3 - len(best)), abs=1e-8)


def test_codes_without_nonzeros_have_no_pairs() -> None:
    for fires in (np.zeros((20, 4), bool), np.zeros((0, 4), bool)):
        pairs = counted(fires, 1)
        assert len(near_duplicates(pairs, min_rows=0).first) == 0
        assert len(parent_child(pairs, min_rows=0).child) == 0
        assert (strongest(pairs, 2)[0] == -1).all()
