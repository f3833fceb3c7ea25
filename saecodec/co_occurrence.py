"""Which latents fire in the same rows: near-duplicates, parents of children, and the bits that two share.

What a pair shares is the mutual information of its two supports in the rows counted, rows taken as independent: an
ideal code of the pair saves as much against ideal codes of each. A code that sees bursts saves a part of it already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import Codes
from saecodec.errors import InputError
from saecodec.information import Counts, mutual_information

MAX_LATENTS: Final = 1 << 13
"""Latents whose pairs are counted at most: their counts take 256 MB."""
_BLOCK_CELLS: Final = 1 << 20  # pairs that are looked at together
_DENSE_ROWS: Final = 1 << 10  # of 0/1 in a matrix product: sums stay far below 2^24, where float32 is exact
_DENSE_LATENTS: Final = 1 << 9
_DENSE_CELLS: Final = 1000  # cells of a matrix product that take as long as one pair that is counted alone, on a CPU

Integers = NDArray[np.int64]


class CoOccurrence:
    """Counts of rows in which pairs of latents fire together, over the codes added.

    n_latents: F. latents: those that are told apart, int64 (G,), ascending, G <= 8192; all others are ignored.
    n_rows: rows added.

    >>> pairs = CoOccurrence(3)
    >>> pairs.add(Codes.from_dense(np.array([[1, 2, 0], [3, 1, 0], [1, 0, 1]])))
    >>> pairs.both().tolist()
    [[3, 2, 1], [2, 2, 0], [1, 0, 1]]
    """

    def __init__(self, n_latents: int, latents: Integers | None = None) -> None:
        """latents: all when None. InputError when they are too many, or not ascending in [0, F)."""
        chosen = np.arange(n_latents) if latents is None else np.asarray(latents, np.int64)
        if len(chosen) > MAX_LATENTS:
            raise InputError(
                f"pairs of at most {MAX_LATENTS} latents are counted, got {len(chosen)}: choose the most frequent"
            )
        if chosen.ndim != 1 or (np.diff(chosen, prepend=-1, append=n_latents) <= 0).any():
            raise InputError(f"latents must be ascending in [0, {n_latents})")
        self.n_latents = n_latents
        self.latents = chosen
        self.n_rows = 0
        self._place = np.full(n_latents, -1)
        self._place[chosen] = np.arange(len(chosen))
        self._counts = np.zeros(len(chosen), np.int64)
        self._upper = np.zeros((len(chosen), len(chosen)), np.int32)  # above the diagonal

    @classmethod
    def most_frequent(cls, counts: Integers, limit: int = MAX_LATENTS) -> CoOccurrence:
        """Of the `limit` latents with the largest counts, int64 (F,); ties go to the first."""
        return cls(len(counts), np.sort(np.argsort(-counts, kind="stable")[:limit]))

    def add(self, codes: Codes) -> None:
        """Add a chunk. InputError when it has another number of latents."""
        if codes.n_latents != self.n_latents:
            raise InputError(f"codes of {codes.n_latents} latents, expected {self.n_latents}")
        if self.n_rows + codes.n_rows > np.iinfo(np.int32).max:
            raise InputError("pairs are counted in at most 2^31 - 1 rows")
        self.n_rows += codes.n_rows
        place = self._place[codes.latents]
        kept = np.flatnonzero(place >= 0)
        place, indptr = place[kept], np.searchsorted(kept, codes.indptr)
        self._counts += np.bincount(place, minlength=len(self.latents))
        per_row = np.diff(indptr)
        if (per_row * (per_row - 1) // 2).sum() * _DENSE_CELLS > codes.n_rows * self._upper.size:
            self._add_dense(place, indptr)
        else:
            self._add_pairs(place, indptr)

    def _add_pairs(self, place: Integers, indptr: Integers) -> None:
        """Pairs of a nonzero with the n-th behind it in its row, for n = 1, 2, ...: one pass for each n."""
        end = np.repeat(indptr[1:], np.diff(indptr))
        first, distance = np.arange(len(place)), 1
        while (first := first[first + distance < end[first]]).size:
            pair = place[first] * len(self.latents) + place[first + distance]
            np.add.at(self._upper.reshape(-1), pair, np.int32(1))
            distance += 1

    def _add_dense(self, place: Integers, indptr: Integers) -> None:
        """Products of blocks of 0/1, above the diagonal only."""
        for start in range(0, len(indptr) - 1, _DENSE_ROWS):
            rows = indptr[start : start + _DENSE_ROWS + 1]
            fires = np.zeros((len(rows) - 1, len(self.latents)), np.float32)
            fires[np.repeat(np.arange(len(rows) - 1), np.diff(rows)), place[rows[0] : rows[-1]]] = 1
            for first in range(0, len(self.latents), _DENSE_LATENTS):
                block = fires[:, first : first + _DENSE_LATENTS].T @ fires[:, first:]
                self._upper[first : first + _DENSE_LATENTS, first:] += np.triu(block, 1).astype(np.int32)

    @property
    def counts(self) -> Integers:
        """Rows in which each latent fires, int64 (G,)."""
        return self._counts

    def both(self, start: int = 0, stop: int | None = None) -> Integers:
        """Rows in which a latent of start:stop and any latent fire, int64 (n, G); on the diagonal, `counts`."""
        block = self._upper[start:stop].astype(np.int64) + self._upper[:, start:stop].T
        own = np.arange(len(block))
        block[own, start + own] = self._counts[start:stop]
        return np.asarray(block)

    def blocks(self) -> Iterator[tuple[int, Counts, Counts]]:
        """First latent, `both` of some latents with all as float64 (n, G), and their mutual information in bits per
        row, float64 (n, G); block by block."""
        g = len(self.latents)
        size = max(1, _BLOCK_CELLS // max(g, 1))
        for start in range(0, g, size):
            both, counts = self.both(start, start + size).astype(np.float64), self._counts.astype(np.float64)
            yield start, both, mutual_information(both, counts[start : start + size, None], counts, self.n_rows)


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Pairs of latents that fire in almost the same rows, in arrays of length P, those that share most bits first.

    first, second: latents, int64, first < second. jaccard: rows with both / rows with either (Jaccard 1912).
    cosine: of the decoder directions; None without them. saved: mutual information, in bits per row.
    """

    first: Integers
    second: Integers
    jaccard: Counts
    cosine: Counts | None
    saved: Counts


@dataclass(frozen=True, eq=False)
class ParentChild:
    """Latents that fire only where a more frequent one does, in arrays of length P, those that share most bits first.

    child, parent: latents, int64; a child has one parent. probability: P(parent | child). lift: that over P(parent).
    saved: mutual information, in bits per row.
    """

    child: Integers
    parent: Integers
    probability: Counts
    lift: Counts
    saved: Counts


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Places of pairs in the counts, rows with both, and their mutual information."""

    first: Integers
    second: Integers
    both: Counts
    bits: Counts

    @classmethod
    def most_bits_first(cls, parts: list[_Pairs]) -> _Pairs:
        """All pairs; those with equal bits stay in order."""
        none, nothing = np.zeros(0, np.int64), np.zeros(0)
        first = np.concatenate([none, *(part.first for part in parts)])
        second = np.concatenate([none, *(part.second for part in parts)])
        both = np.concatenate([nothing, *(part.both for part in parts)])
        bits = np.concatenate([nothing, *(part.bits for part in parts)])
        order = np.argsort(-bits, kind="stable")
        return cls(first[order], second[order], both[order], bits[order])


def near_duplicates(
    co: CoOccurrence, min_jaccard: float = 0.5, *, min_rows: int = 20, w_dec: NDArray[np.float32] | None = None
) -> NearDuplicates:
    """The pairs with a Jaccard index of `min_jaccard` (> 0) or more, of latents that fire in `min_rows` rows or more.

    w_dec: decoder directions, float32 (F, d).
    """
    counts, parts = co.counts, []
    for start, both, bits in co.blocks():
        own = counts[start : start + len(both), None]
        wanted = (both >= min_jaccard * (own + counts - both)) & (np.minimum(own, counts) >= max(min_rows, 1))
        i, j = np.nonzero(np.triu(wanted, start + 1))
        parts.append(_Pairs(i + start, j, both[i, j], bits[i, j]))
    found = _Pairs.most_bits_first(parts)
    first, second = co.latents[found.first], co.latents[found.second]
    jaccard = found.both / (counts[found.first] + counts[found.second] - found.both)
    return NearDuplicates(first, second, jaccard, None if w_dec is None else _cosine(w_dec, first, second), found.bits)


def parent_child(
    co: CoOccurrence, min_probability: float = 0.95, *, min_rows: int = 20, min_lift: float = 2.0
) -> ParentChild:
    """Children that fire in `min_rows` rows or more, each with its parent.

    A parent fires in more rows than its child, in at least `min_probability` of the child's rows, and `min_lift` times
    as often there as in all rows, which a latent that is almost always on does not. Of several, the one with the
    largest mutual information is the parent, and of equals the first.
    """
    counts, parts = co.counts, []
    for start, both, bits in co.blocks():
        own = counts[start : start + len(both), None]
        allowed = (counts > own) & (own >= max(min_rows, 1)) & (both >= min_probability * own)
        allowed &= both * co.n_rows >= min_lift * own * counts
        child = np.flatnonzero(allowed.any(1))
        parent = np.where(allowed[child], bits[child], -np.inf).argmax(1)
        parts.append(_Pairs(child + start, parent, both[child, parent], bits[child, parent]))
    found = _Pairs.most_bits_first(parts)
    child, parent = found.first, found.second
    probability = found.both / counts[child]
    lift = probability * co.n_rows / counts[parent]
    return ParentChild(co.latents[child], co.latents[parent], probability, lift, found.bits)


def strongest(co: CoOccurrence, n: int) -> tuple[Integers, Counts]:
    """For each latent, the `n` more frequent ones that share most bits with it: int64 (F, n), and these bits per row,
    float64 (F, n).

    Only latents that fire together more often than by chance count; -1 and 0 bits where there are fewer. Of two that
    are equally frequent the first counts as the more frequent, so that no latent is among its own ancestors.
    """
    counts = co.counts
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    latents, shared = np.full((co.n_latents, n), -1), np.zeros((co.n_latents, n))
    for start, both, bits in co.blocks():
        block = slice(start, start + len(both))
        allowed = (rank < rank[block, None]) & (both * co.n_rows > counts[block, None] * counts)
        left, row = np.where(allowed, bits, 0), np.arange(len(both))
        for k in range(n):
            best = left.argmax(1)
            most = left[row, best]
            latents[co.latents[block], k] = np.where(most > 0, co.latents[best], -1)
            shared[co.latents[block], k] = np.maximum(most, 0)
            left[row, best] = 0
    return latents, shared


def _cosine(w_dec: NDArray[np.float32], first: Integers, second: Integers) -> Counts:
    """Cosine of each pair of directions; 0 where one has no length."""
    product, a, b = (
        np.einsum("pd,pd->p", w_dec[i], w_dec[j], dtype=np.float64)
        for i, j in ((first, second), (first, first), (second, second))
    )
    length = np.sqrt(a * b)
    return np.where(length > 0, product / np.where(length > 0, length, 1), 0)
