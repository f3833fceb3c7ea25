"""How many bits the dependence of latents is worth: the same support under models that know more and more.

1. independent: every latent fires with its own rate, as in the sum of entropies of arXiv 2410.11179.
2. gaps: the factorized prior, which also sees that a latent fires in bursts.
3. row: the context prior's network, shown the other latents of a row alone.
4. neighbours: the context prior's network, shown neighbouring rows as well.

Rates and tables of all four are fitted on the very codes; the network is the codec's. It was trained with neighbouring
rows, so a network trained without them would do better at 3: what 4 saves over 3 is the most that these are worth. All
are ideal code lengths, without tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.codes import Codes
from saecodec.information import Counts, mutual_information
from saecodec.priors.context import ContextPrior, symbol_bits
from saecodec.priors.factorized import FactorizedPrior
from saecodec.priors.fit_context import fit_gap_tables, gap_histogram
from saecodec.priors.fit_factorized import LatentStatistics, fit_factorized
from saecodec.sequences import linked_rows

OFFSETS: Final = (-1, 0, 1)
"""Rows that context comes from, relative to the row of a latent."""
_LATENTS: Final = 10  # told about
_PREDECESSORS: Final = 3  # of each


@dataclass(frozen=True)
class Predecessor:
    """A latent that another one depends on. offset: of its row, relative to the other's, where it says most.
    probability: that the other one fires when it does. information: mutual information of the two, in bits per row."""

    latent: int
    offset: int
    probability: float
    information: float


@dataclass(frozen=True)
class Dependent:
    """A latent whose cost falls. rate: share of rows in which it fires. independent, context: bits per row that its
    support costs, by rate alone and under the context prior. predecessors: the strongest, first."""

    latent: int
    rate: float
    independent: float
    context: float
    predecessors: list[Predecessor]


@dataclass(frozen=True)
class Dependence:
    """Bits per row of support under each model. latents: those whose cost falls most. factorized: the prior fitted on
    the codes."""

    independent: float
    gaps: float
    row: float
    neighbours: float
    latents: list[Dependent]
    factorized: FactorizedPrior


def measure_dependence(prior: ContextPrior, chunks: Callable[[], Iterable[Codes]]) -> Dependence | None:
    """The dependence of codes, given chunk by chunk with their columns, twice or more; None without nonzeros."""
    f = prior.n_latents
    statistics, counts, by_latent, n_rows = LatentStatistics(f), np.zeros(f), np.zeros(f), 0
    alone, beside = np.zeros((2, prior.network.n_bins, buckets.N_BUCKETS))  # gaps, the rows beside unseen and seen
    for codes in chunks():
        statistics.add(codes)
        alone += gap_histogram(prior.binned(codes, neighbours=False), prior.network.n_bins)
        binned = prior.binned(codes)
        beside += gap_histogram(binned, prior.network.n_bins)
        latent = prior.network.layout.latent_of[binned.cells.column]
        by_latent += np.bincount(latent, prior.cell_bits(binned)[0], f)
        counts += np.bincount(codes.latents, minlength=f)
        n_rows += codes.n_rows
    if not counts.any():
        return None
    independent = _entropy(counts / n_rows)
    factorized = fit_factorized(chunks(), statistics, signed=statistics.signed)
    gaps = sum(factorized.ideal_bits(codes)[0] for codes in chunks())
    row, neighbours = (float((seen * symbol_bits(fit_gap_tables(seen))).sum()) for seen in (alone, beside))
    context = by_latent / n_rows
    falls = independent - context
    chosen = np.argsort(-falls, kind="stable")[:_LATENTS]
    chosen = chosen[falls[chosen] > 0]
    found = _predecessors(prior.network.block, chosen, chunks())
    latents = [
        Dependent(i, float(counts[i] / n_rows), float(independent[i]), float(context[i]), before)
        for i, before in zip(chosen.tolist(), found, strict=True)
    ]
    bits = (float(independent.sum()), gaps / n_rows, row / n_rows, neighbours / n_rows)
    return Dependence(*bits, latents, factorized)


def _predecessors(
    block: NDArray[np.int64], chosen: NDArray[np.int64], chunks: Iterable[Codes]
) -> list[list[Predecessor]]:
    """The strongest predecessors of some latents, among the latents of earlier blocks."""
    f, n = len(block), len(OFFSETS)
    both = np.zeros((len(chosen), n, f))  # rows in which the chosen one fires and, at an offset, the other
    other, own, rows = np.zeros((n, f)), np.zeros((len(chosen), n)), np.zeros(n)
    for codes in chunks:
        t, at = codes.n_rows, codes.rows()
        linked = linked_rows(codes.columns, t)
        fires = np.zeros((len(chosen), t), np.bool_)
        for i, latent in enumerate(chosen):
            fires[i, at[codes.latents == latent]] = True
        for o, offset in enumerate(OFFSETS):
            # Row u is context of row u - offset, if there is one and a sequence holds both.
            seen = {0: np.ones(t, np.bool_), 1: linked, -1: np.append(linked[1:], False)}[offset][:t]
            target = np.clip(np.arange(t) - offset, 0, max(t - 1, 0))
            rows[o] += seen.sum()
            other[o] += np.bincount(codes.latents[seen[at]], minlength=f)
            for i in range(len(chosen)):
                hit = fires[i, target] & seen
                own[i, o] += hit.sum()
                both[i, o] += np.bincount(codes.latents[hit[at]], minlength=f)
    out = []
    for i, latent in enumerate(chosen):
        information = np.stack([mutual_information(both[i, o], own[i, o], other[o], rows[o]) for o in range(n)])
        information[:, block >= block[latent]] = 0
        where = information.argmax(axis=0)  # a predecessor is named once, where it says most
        best = np.argsort(-information.max(axis=0), kind="stable")[:_PREDECESSORS]
        pairs = [(int(where[j]), int(j)) for j in best if information[where[j], j] > 0]
        out.append(
            [Predecessor(j, OFFSETS[o], float(both[i, o, j] / other[o, j]), float(information[o, j])) for o, j in pairs]
        )
    return out


def _entropy(p: Counts) -> Counts:
    """Bits per row of events of probability p."""
    sides = (np.where(q > 0, -q * np.log2(np.where(q > 0, q, 1)), 0) for q in (p, 1 - p))
    return np.asarray(sum(sides, np.zeros(len(p))))
