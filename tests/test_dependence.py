"""The bits that dependence is worth, and the latents that others follow from, are those of codes made to order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from saecodec.codes import Codes
from saecodec.dependence import OFFSETS, Dependence, measure_dependence
from saecodec.latents import LatentCodec
from saecodec.priors.context import ContextPrior
from saecodec.priors.factorized import FactorizedPrior
from saecodec.priors.fit_context import fit_context
from saecodec.priors.network import GAINS, Network

SEQ = "seq"
N = 6  # causes, and as many effects
CAUSES, EFFECTS = slice(N, 2 * N), slice(0, N)
RATE = 0.15


def network(offset: int | None, rank: int = N) -> Network:
    """Made by hand: latent i of 0 to 5, in block 1, is in bin 1 where latent 6 + i, in block 0, fires `offset` rows
    away, and in bin 0 elsewhere. None: nothing is context."""
    block = np.repeat([1, 0], N)
    context, out = np.zeros((N, 3, rank), np.int8), np.zeros((2 * N, rank), np.int8)
    if offset is not None:
        context[:, {0: 0, -1: 1, 1: 2}[offset]] = 127 * np.eye(N)
        out[N:] = 127 * np.eye(N)
    zeros = np.zeros(2 * N, np.int64)
    return Network(
        block,
        np.ones(GAINS, np.int64),
        context.reshape(N, 3 * rank),
        np.zeros((2, rank), np.int64),
        np.zeros(rank, np.int64),
        out,
        zeros,
        np.zeros_like(out),
        zeros,
        13,
        0,
        2,
        1,
    )


def codes_of(offset: int | None, n_rows: int = 4000, *, length: int = 10, seed: int = 0) -> Codes:
    """Causes are random. Effect i fires when cause i fires in the row `offset` from its own, if that is of the same
    sequence; None: when it likes."""
    rng = np.random.default_rng(seed)
    ids = np.arange(n_rows) // length
    cause = rng.random((n_rows, N)) < RATE
    effect = rng.random((n_rows, N)) < RATE
    if offset is not None:
        at = np.arange(n_rows) + offset
        inside = (at >= 0) & (at < n_rows)
        at = at.clip(0, n_rows - 1)
        effect = cause[at] & (inside & (ids[at] == ids))[:, None]
    return Codes.from_dense(np.concatenate([effect, cause], 1) * rng.geometric(0.5, (n_rows, 2 * N)), {SEQ: ids})


def prior_of(n: Network, codes: Codes) -> ContextPrior:
    """Tables for a network."""
    factorized = LatentCodec.fit([codes]).prior
    assert isinstance(factorized, FactorizedPrior)
    device = torch.device("cpu")
    return fit_context(lambda: [codes], factorized, device=device, report=print, seconds=1, network=n).prior


def chunked(codes: Codes, rows: int = 1000) -> Callable[[], list[Codes]]:
    return lambda: [codes[i : i + rows] for i in range(0, codes.n_rows, rows)]


def measured(offset: int | None) -> Dependence:
    codes = codes_of(offset)
    out = measure_dependence(prior_of(network(offset), codes), chunked(codes))
    assert out is not None
    return out


def entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


# -- bits --------------------------------------------------------------------------------------------------------------


def test_independent_latents_cost_the_same_under_every_model() -> None:
    found = measured(None)
    assert found.independent == pytest.approx(2 * N * entropy(RATE), rel=0.05)
    for bits in (found.gaps, found.row, found.neighbours):
        assert found.independent * 0.99 < bits < found.independent * 1.06


def test_what_follows_in_the_row_is_saved_by_the_model_of_rows() -> None:
    found = measured(0)
    assert found.gaps > 0.97 * found.independent
    assert found.row < 0.6 * found.independent
    assert found.neighbours == pytest.approx(found.row, rel=0.08)


@pytest.mark.parametrize("offset", [-1, 1])
def test_what_follows_from_rows_beside_is_saved_by_the_model_of_neighbours_alone(offset: int) -> None:
    found = measured(offset)
    assert found.gaps > 0.97 * found.independent
    assert found.row > 0.97 * found.independent
    assert found.neighbours < 0.6 * found.independent


def test_a_latent_that_fires_in_bursts_is_cheaper_by_its_gaps() -> None:
    dense = np.zeros((4000, 2 * N), np.int64)
    dense[:, 0] = np.arange(4000) % 400 < 80
    codes = Codes.from_dense(dense)
    found = measure_dependence(prior_of(network(None), codes), chunked(codes))
    assert found is not None
    assert found.independent == pytest.approx(entropy(0.2))
    assert found.gaps < 0.1 * found.independent


def test_bits_of_each_latent_are_told_those_that_save_most_first() -> None:
    codes = codes_of(0)
    found = measured(0)
    rates = np.bincount(codes.latents, minlength=2 * N) / codes.n_rows
    assert N <= len(found.latents) <= 10
    assert {one.latent for one in found.latents[:N]} == set(range(N))
    for one in found.latents:
        assert one.rate == pytest.approx(rates[one.latent])
        assert one.independent == pytest.approx(entropy(one.rate))
    saved = [one.independent - one.context for one in found.latents]
    assert saved == sorted(saved, reverse=True)
    assert saved[N - 1] > 0.5
    assert found.independent == pytest.approx(sum(entropy(rate) for rate in rates))


def test_the_bits_do_not_depend_on_how_often_chunks_are_asked_for() -> None:
    codes = codes_of(-1)
    prior = prior_of(network(-1), codes)
    asked = []

    def chunks() -> list[Codes]:
        asked.append(1)
        return chunked(codes)()

    found, again = measure_dependence(prior, chunks), measure_dependence(prior, chunked(codes))
    assert found is not None
    assert again is not None
    assert found.latents == again.latents
    for name in ("independent", "gaps", "row", "neighbours"):
        assert getattr(found, name) == getattr(again, name)
    assert len(asked) >= 2


def test_codes_without_nonzeros_have_no_dependence() -> None:
    prior = prior_of(network(0), codes_of(0))
    empty = Codes.from_dense(np.zeros((20, 2 * N), int))
    assert measure_dependence(prior, lambda: [empty]) is None
    assert measure_dependence(prior, lambda: [empty[:0]]) is None
    assert measure_dependence(prior, lambda: []) is None


# -- predecessors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_predecessor_of_an_effect_is_its_cause(offset: int) -> None:
    found = measured(offset)
    effects = [one for one in found.latents if one.latent < N]
    assert len(effects) == N
    for one in effects:
        first = one.predecessors[0]
        assert (first.latent, first.offset) == (one.latent + N, offset)
        assert first.probability == 1  # wherever the two rows are of one sequence
        assert first.information == pytest.approx(entropy(RATE), rel=0.25)
        assert all(other.information < 0.05 for other in one.predecessors[1:])


def test_no_predecessor_is_of_the_same_or_a_later_block() -> None:
    codes = codes_of(0)
    for one in measured(0).latents:
        assert all(other.latent >= N > one.latent for other in one.predecessors)
    same = replace(network(None), block=np.zeros(2 * N, np.int64), context=np.zeros((0, 3 * N), np.int8))
    found = measure_dependence(prior_of(replace(same, bias=same.bias[:1]), codes), chunked(codes))
    assert found is not None
    assert all(one.predecessors == [] for one in found.latents)


def by_brute_force(parts: list[Codes], block: np.ndarray, latent: int, other: int, offset: int) -> tuple[float, float]:
    """Probability and mutual information, from every pair of rows of one chunk and one sequence."""
    table = np.zeros((2, 2))
    for part in parts:
        fires, ids = part.to_dense() != 0, part.columns.get(SEQ, np.zeros(part.n_rows))
        for row in range(part.n_rows):
            beside = row + offset
            if 0 <= beside < part.n_rows and ids[beside] == ids[row]:
                table[int(fires[row, latent]), int(fires[beside, other])] += 1
    p = table / table.sum()
    information = 0.0
    for i in range(2):
        for j in range(2):
            if p[i, j]:
                information += p[i, j] * math.log2(p[i, j] / (p[i].sum() * p[:, j].sum()))
    return table[1, 1] / table[:, 1].sum(), information if block[other] < block[latent] else 0.0


@pytest.mark.parametrize("sequences", [False, True])
def test_predecessors_are_the_best_of_all_pairs_of_rows_in_a_chunk_and_a_sequence(sequences: bool) -> None:
    codes = codes_of(-1, 600, length=3, seed=3)
    if not sequences:
        codes = replace(codes, columns={})
    prior = prior_of(network(None), codes)
    block = prior.network.block
    few = codes[:151]
    parts = [few[:50], few[50:51], few[51:51], few[51:]]
    found = measure_dependence(prior, lambda: parts)
    assert found is not None
    for one in found.latents:
        every = {}
        for other in range(2 * N):
            for offset in OFFSETS:
                every[other, offset] = by_brute_force(parts, block, one.latent, other, offset)
        strongest = [max(every[other, offset][1] for offset in OFFSETS) for other in range(2 * N)]
        best = sorted((bits for bits in strongest if bits > 1e-12), reverse=True)[:3]
        assert [p.information for p in one.predecessors if p.information > 1e-12] == pytest.approx(best)
        assert len({p.latent for p in one.predecessors}) == len(one.predecessors)  # each is named once
        for p in one.predecessors:
            assert (p.probability, p.information) == pytest.approx(every[p.latent, p.offset])


@pytest.mark.parametrize("offset", [0, -1])
def test_sequences_of_one_row_have_no_neighbours(offset: int) -> None:
    codes = codes_of(0, 1000, length=1)
    found = measure_dependence(prior_of(network(offset), codes), chunked(codes))
    assert found is not None
    assert found.row == pytest.approx(found.neighbours, rel=0.2)  # one fitted on the codes, one on few held out
    assert all(p.offset == 0 for one in found.latents for p in one.predecessors)
