"""What a joint code of latents really saves: bytes of the same codes packed as they are and split by a forest.

Both have tables of their own, fitted on the codes. Tables and the forest are counted, and every chunk is decoded again
from the bytes that are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log2
from typing import Final

import numpy as np

from saecodec.co_occurrence import CoOccurrence, strongest
from saecodec.codes import Codes
from saecodec.errors import SaecodecError
from saecodec.hierarchy import Forest, forest_to_bytes, joined, read_forest, split_by_parent
from saecodec.latents import LatentCodec
from saecodec.priors.factorized import FactorizedPrior
from saecodec.priors.fit_factorized import LatentStatistics, fit_factorized
from saecodec.wire import ByteReader

Chunks = Callable[[], Iterable[Codes]]
"""Gives the codes chunk by chunk; every call starts again."""
_CLASS_NAMES: Final = 8.0  # bits, of up to 64 support classes and 32 level classes


@dataclass(frozen=True)
class JointCode:
    """Bytes of codes as they are (independent), and split by a forest (joint).

    n_children: latents with a parent. chunks, tables, forest: what the totals consist of.
    """

    n_children: int
    chunks_independent: int
    tables_independent: int
    chunks_joint: int
    tables_joint: int
    forest: int

    @property
    def bytes_independent(self) -> int:
        """Chunks and tables."""
        return self.chunks_independent + self.tables_independent

    @property
    def bytes_joint(self) -> int:
        """Chunks, tables and the forest."""
        return self.chunks_joint + self.tables_joint + self.forest


def joint_code(chunks: Chunks, forest: Forest) -> JointCode:
    """The bytes of codes with and without `forest`.

    chunks: is called several times. InputError when `forest` is not one of the codes' latents; SaecodecError when a
    chunk does not come back.
    """
    f, packed = len(forest), forest_to_bytes(forest)
    read = read_forest(ByteReader(packed, "forest"), f)
    independent, joint = _bytes(chunks, _roots(f), _roots(f)), _bytes(chunks, forest, read)
    return JointCode(int((forest >= 0).sum()), *independent, *joint, len(packed))


def coded_forest(co: CoOccurrence, chunks: Chunks, n_candidates: int = 4) -> Forest:
    """The forest in which each latent has the parent under which it really costs least, or none.

    Candidates are the more frequent latents that share most bits with it; all are judged under the tables fitted on the
    first choice, and no parent under those of the codes as they are. Shared bits alone do not tell: they ignore bursts,
    and what it costs to have two columns. chunks: those that `co` counted; called several times.
    """
    f = co.n_latents
    candidates, shared = strongest(co, n_candidates)
    # A child's parent is named, and so are the two classes of a second column.
    price = log2(max(f, 1)) + _CLASS_NAMES
    first = np.where(shared[:, 0] * co.n_rows > price, candidates[:, 0], -1).astype(np.int32)
    child_of = np.concatenate([np.arange(f), np.flatnonzero(first >= 0)])
    choices = [np.where((first >= 0) & (other >= 0), other, first).astype(np.int32) for other in candidates.T]
    alone, split = _fitted(chunks, f), _fitted(_split(chunks, first), len(child_of))
    costs = np.zeros((1 + len(choices), f))
    costs[1:] = price
    for codes in chunks():
        costs[0] += alone.latent_bits(codes)
        for cost, choice in zip(costs[1:], choices, strict=True):
            cost += np.bincount(child_of, split.latent_bits(split_by_parent(codes, choice)))
    return np.asarray(np.stack([_roots(f), *choices])[costs.argmin(0), np.arange(f)], np.int32)


def _roots(n_latents: int) -> Forest:
    """The forest without children, which leaves codes as they are."""
    return np.full(n_latents, -1, np.int32)


def _split(chunks: Chunks, forest: Forest) -> Chunks:
    return lambda: (split_by_parent(codes, forest) for codes in chunks())


def _fitted(chunks: Chunks, n_latents: int) -> FactorizedPrior:
    statistics = LatentStatistics(n_latents)
    for codes in chunks():
        statistics.add(codes)
    return fit_factorized(chunks(), statistics, signed=statistics.signed)


def _bytes(chunks: Chunks, forest: Forest, read: Forest) -> tuple[int, int]:
    """Bytes of the chunks split by `forest` and of their tables; `read` is the forest that a decoder has."""
    codec = LatentCodec(_fitted(_split(chunks, forest), len(forest) + int((forest >= 0).sum())))
    tables = codec.to_bytes()
    decoder, n_bytes = LatentCodec.from_bytes(tables), 0
    for number, codes in enumerate(chunks()):
        packed = codec.pack(split_by_parent(codes, forest))
        if not _same(joined(decoder.unpack(packed), read), codes):
            raise SaecodecError(f"chunk {number} does not come back from its joint code")
        n_bytes += len(packed)
    return n_bytes, len(tables)


def _same(a: Codes, b: Codes) -> bool:
    """Whether rows, latents, levels and columns are equal."""
    nonzeros = [(a.indptr, b.indptr), (a.latents, b.latents), (a.levels, b.levels)]
    return (
        all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in nonzeros)
        and a.columns.keys() == b.columns.keys()
        and all(np.array_equal(values, b.columns[name]) for name, values in a.columns.items())
    )
