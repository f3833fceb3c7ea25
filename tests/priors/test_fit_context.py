"""Fitting the context prior: it finds dependence, repeats itself byte for byte, and judges by rows it has not seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saecodec import buckets
from saecodec.codes import Codes
from saecodec.errors import InputError
from saecodec.latents import LatentCodec
from saecodec.priors import fit_context as module
from saecodec.priors import train_network
from saecodec.priors.context import MAX_COST, ContextPrior, symbol_bits
from saecodec.priors.context_rows import Batch, batch_of
from saecodec.priors.factorized import FactorizedPrior
from saecodec.priors.fit_context import ContextFit, blocks, fit_context, fit_gap_tables, gap_histogram
from saecodec.priors.layout import Layout
from saecodec.priors.network import Walk
from saecodec.priors.soft_network import Parameters, hidden_units
from saecodec.priors.train_network import Recipe, windows
from saecodec.sequences import linked_rows

SameCodes = Callable[[Codes, Codes], None]
CPU = torch.device("cpu")
SEQ = "seq"
LENGTH = 5  # of a sequence
N_CAUSES, N_NOISE = 10, 9
RECIPE = Recipe(rank=16, n_blocks=4, passes=1, batch_rows=256, rate=0.01)


def follow(n_rows: int, seed: int, *, after: bool) -> Codes:
    """Sequences of 5 rows. Latents 0 to 9 follow from 20 to 29, which are random: they fire when those do and latent 10
    does not, or, `after`, when those did in the row before of the same sequence. Latents 11 to 19 are rare noise."""
    rng = np.random.default_rng(seed)
    ids = np.arange(n_rows) // LENGTH
    cause, block = rng.random((n_rows, N_CAUSES)) < 0.15, rng.random((n_rows, 1)) < 0.3
    effect = cause & ~block
    if after:
        effect = np.zeros_like(cause)
        effect[1:] = cause[:-1] & (ids[1:] == ids[:-1])[:, None]
    noise = rng.random((n_rows, N_NOISE)) < 0.02
    levels = rng.geometric(0.5, (n_rows, 2 * N_CAUSES + N_NOISE + 1))
    levels[:, :N_CAUSES] = 1
    return Codes.from_dense(levels * np.concatenate([effect, block, noise, cause], 1), {SEQ: ids})


def factorized_of(codes: Codes) -> FactorizedPrior:
    prior = LatentCodec.fit([codes]).prior
    assert isinstance(prior, FactorizedPrior)
    return prior


def fit(codes: Codes, recipe: Recipe = RECIPE, seconds: float = 600, **more: Any) -> ContextFit:
    def silent(done: int, total: int, bits: float) -> None:
        """The report of nobody."""

    settings = {"device": CPU, "report": silent, "seconds": seconds, "recipe": recipe} | more
    return fit_context(lambda: [codes[:700], codes[700:]], factorized_of(codes), **settings)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fit, and what its training was called with and gave."""

    codes: Codes
    fit: ContextFit
    rows: Codes
    heldout: Codes
    layout: Layout
    gains: np.ndarray
    parameters: Parameters


@pytest.fixture(scope="module", params=[False, True], ids=["in the row", "in the row after"])
def fitted(request: pytest.FixtureRequest) -> Fitted:
    """A fit of 3,000 rows in which ten latents follow from ten others, in the same row or in the row after."""
    calls = []

    def spy(codes: Codes, heldout: Codes, layout: Layout, gains: np.ndarray, *more: Any) -> Parameters:
        out = train_network.train(codes, heldout, layout, gains, *more)
        calls.append((codes, heldout, layout, gains, out))
        return out

    codes = follow(3000, 0, after=request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", spy)
        made = fit(codes)
    return Fitted(codes, made, *calls[0])


def bits_of(prior: ContextPrior | FactorizedPrior, codes: Codes) -> float:
    return sum(prior.ideal_bits(codes)) / codes.n_rows


# -- what it finds -----------------------------------------------------------------------------------------------------


def test_latents_that_follow_from_others_cost_next_to_nothing(fitted: Fitted, request: pytest.FixtureRequest) -> None:
    """On rows that neither prior was fitted on."""
    after = "after" in request.node.name
    fresh = follow(1000, 1, after=after)
    prior, factorized = fitted.fit.prior, factorized_of(fitted.codes)
    assert prior.ideal_bits(fresh)[0] < 0.85 * factorized.ideal_bits(fresh)[0]
    binned = prior.binned(fresh)
    support, _ = prior.cell_bits(binned)
    effects = prior.network.layout.latent_of[binned.cells.column] < N_CAUSES
    assert support[effects].mean() < 1.6  # by their rates they would cost 4
    assert support[~effects].mean() > 2.5


def test_a_chunk_under_a_fitted_prior_comes_back(fitted: Fitted, assert_same_codes: SameCodes) -> None:
    codec = LatentCodec.from_bytes(LatentCodec(fitted.fit.prior).to_bytes())
    chunk = codec.pack(fitted.codes[:500])
    assert_same_codes(codec.unpack(chunk), fitted.codes[:500])
    assert len(chunk) < 0.9 * len(LatentCodec(factorized_of(fitted.codes)).pack(fitted.codes[:500]))


def test_bits_of_held_out_rows_are_told(fitted: Fitted) -> None:
    out, held = fitted.fit, fitted.heldout
    assert out.heldout_rows == held.n_rows
    assert out.heldout_bits == pytest.approx(bits_of(out.prior, held))
    assert out.factorized_bits == pytest.approx(bits_of(factorized_of(fitted.codes), held))
    assert out.heldout_bits < 0.9 * out.factorized_bits


def test_latents_cost_less_where_they_follow(fitted: Fitted) -> None:
    prior, alone = fitted.fit.prior, factorized_of(fitted.codes).costs()
    assert 0 <= prior.cost.min() <= prior.cost.max() <= MAX_COST
    assert prior.costs().support[:N_CAUSES].mean() < 0.6 * alone.support[:N_CAUSES].mean()
    np.testing.assert_array_equal(prior.level_class, factorized_of(fitted.codes).level_class)


# -- from a network in floating point to integers ----------------------------------------------------------------------


def table_bits(bins: np.ndarray, nonzero: np.ndarray) -> float:
    """What the support costs, cells put in bins (T, F), under tables fitted on it. Columns one after the other."""
    counts = np.zeros((int(bins.max()) + 1, buckets.N_BUCKETS))
    for b in range(len(counts)):
        ranks = np.flatnonzero(nonzero.T[np.equal(bins.T, b)])
        counts[b] = np.bincount(buckets.bucket_of(np.diff(ranks, prepend=-1) - 1), minlength=buckets.N_BUCKETS)
    return float((counts * symbol_bits(fit_gap_tables(counts))).sum())


def float_logits(p: Parameters, batch: Batch) -> np.ndarray:
    """Logits of all cells, float32 (T, F), columns in the order of blocks."""
    hidden = list(hidden_units(p, batch))
    parts = [slice(a, b) for a, b in pairwise(p.shape.starts)]
    return np.concatenate(
        [(h @ p.out[s].T + p.out_bias[s]).numpy() for h, s in zip(hidden, parts, strict=True)], axis=1
    )


def test_bins_of_the_integer_network_are_worth_those_of_the_trained_one(fitted: Fitted) -> None:
    p, n, codes = fitted.parameters, fitted.fit.prior.network, fitted.codes
    nonzero = codes.to_dense()[:, n.layout.latent_of] > 0
    logits = float_logits(p, batch_of(codes, fitted.layout, fitted.gains, CPU))
    as_trained = np.floor((logits - np.quantile(logits[nonzero], 0.001)) / 0.25).clip(0, 127)
    places = np.zeros(nonzero.shape, np.int64)
    for start, end, bins in walked(fitted.fit.prior, codes):
        places[:, start:end] = bins.T
    assert table_bits(places, nonzero) == pytest.approx(table_bits(as_trained, nonzero), rel=0.01)
    gaps = gap_histogram(fitted.fit.prior.binned(codes), n.n_bins)
    assert float((gaps * symbol_bits(fit_gap_tables(gaps))).sum()) == pytest.approx(table_bits(places, nonzero))


def walked(prior: ContextPrior, codes: Codes) -> Iterator[tuple[int, int, np.ndarray]]:
    """First column, end and bins (columns, T) of each block."""
    n, cells = prior.network, prior.network.layout.cells(codes)
    walk = Walk(prior.arithmetic, linked_rows(codes.columns, codes.n_rows))
    for start, end in pairwise(n.starts):
        yield start, end, walk.bins(start, end).reshape(end - start, codes.n_rows)
        mine = slice(*np.searchsorted(cells.column, [start, end]))
        walk.enter(cells.column[mine], cells.row[mine], cells.level[mine])


# -- the same prior again ----------------------------------------------------------------------------------------------


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is short."""
    monkeypatch.setattr(train_network, "_STEPS", (40, 40))


@pytest.mark.usefixtures("few_steps")
def test_the_same_rows_give_the_same_prior_with_any_number_of_threads(torch_threads: Callable[[int], None]) -> None:
    codes = follow(1000, 2, after=True)
    first = fit(codes).prior.to_bytes()
    assert fit(codes).prior.to_bytes() == first
    for threads in (1, 2):
        torch_threads(threads)
        assert fit(codes).prior.to_bytes() == first


def test_a_network_that_is_given_gets_tables_alone(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Parameters:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train", never)
    again = fit(fitted.codes, network=fitted.fit.prior.network)
    assert again.prior.network is fitted.fit.prior.network
    assert again.prior.to_bytes() == fitted.fit.prior.to_bytes()


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_training_ends_with_its_time_and_leaves_a_prior(assert_same_codes: SameCodes) -> None:
    codes, reports = follow(1500, 3, after=False), []
    start = time.perf_counter()
    made = fit(codes, replace(RECIPE, passes=1e6), 0.3, report=lambda *told: reports.append(told))
    assert time.perf_counter() - start < 10
    assert made.heldout_bits < 1.1 * made.factorized_bits
    done, total, bits = reports[-1]
    assert done == total
    assert bits > 0
    codec = LatentCodec(made.prior)
    assert_same_codes(codec.unpack(codec.pack(codes)), codes)


def test_no_time_at_all_leaves_a_prior() -> None:
    codes = follow(1000, 4, after=False)
    made = fit(codes, seconds=1e-9)
    assert made.heldout_bits < 1.2 * made.factorized_bits


def test_too_few_rows_are_refused() -> None:
    codes = follow(1000, 5, after=False)
    with pytest.raises(InputError, match="at least 512 rows, got 511"):
        fit(codes[:511])
    with pytest.raises(InputError, match="at least 512 rows, got 0"):
        fit_context(lambda: [], factorized_of(codes), device=CPU, report=print, seconds=1)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("sequences", [False, True])
def test_fewer_rows_than_a_step_takes_are_enough(sequences: bool) -> None:
    """Windows then come more than once in a step."""
    codes = follow(600, 6, after=False)
    made = fit(codes if sequences else replace(codes, columns={}), replace(RECIPE, batch_rows=2048))
    assert made.heldout_rows > 0


EDGES = {
    "nothing fires": np.zeros((600, 5), np.int64),
    "everything fires": np.ones((600, 5), np.int64),
    "one latent": (np.arange(600) % 3 == 0)[:, None].astype(np.int64),
    "one nonzero": np.arange(3000).reshape(600, 5) == 777,
    "a latent that outweighs all others": np.concatenate([np.ones((600, 1)), np.eye(600, 4)], axis=1) > 0,
    "the largest levels": np.eye(600, 5, dtype=np.int64) * (1 << 20) - np.eye(600, 5, k=-9, dtype=np.int64),
}


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("dense", EDGES.values(), ids=EDGES.keys())
def test_odd_rows_give_a_prior_that_codes_them(assert_same_codes: SameCodes, dense: np.ndarray) -> None:
    codes = Codes.from_dense(dense.astype(np.int64))
    codec = LatentCodec.from_bytes(LatentCodec(fit(codes).prior).to_bytes())
    assert_same_codes(codec.unpack(codec.pack(codes)), codes)


# -- rows and latents are divided --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60), st.integers(1, 30))
def test_blocks_hold_about_equally_many_nonzeros_the_most_frequent_latents_first(counts: list[int], n: int) -> None:
    array = np.array(counts)
    block = blocks(array, n)
    n_blocks = block.max() + 1
    assert n_blocks <= n
    assert set(block.tolist()) == set(range(n_blocks))  # none is empty
    for a, b in pairwise(np.argsort(-array, kind="stable")):
        assert block[a] <= block[b]
    for g in range(n_blocks):
        assert array[block == g].sum() <= array.sum() / n + array[block == g].max()


def test_latents_that_never_fired_are_in_the_last_block() -> None:
    assert blocks(np.array([0, 5, 0, 5, 5, 0]), 3).tolist() == [2, 0, 2, 1, 2, 2]
    assert blocks(np.zeros(4, np.int64), 3).tolist() == [0, 0, 0, 0]


lengths_of_sequences = st.lists(st.one_of(st.integers(1, 20), st.integers(100, 700)), min_size=1, max_size=80)


def numbered(lengths: list[int] | None, n_rows: int) -> Codes:
    """Rows of one nonzero, whose level is the number of the row, from 1 on."""
    columns = {} if lengths is None else {SEQ: np.repeat(np.arange(len(lengths)) % 7, lengths)}  # ids may come again
    levels = np.arange(1, n_rows + 1).astype(np.int32)
    return Codes(np.arange(n_rows + 1), np.zeros(n_rows, np.int32), levels, 2, columns).check()


@given(lengths_of_sequences)
def test_windows_cut_long_sequences_alone(lengths: list[int]) -> None:
    cuts = windows(numbered(lengths, sum(lengths)))
    assert cuts[0] == 0
    assert cuts[-1] == sum(lengths)
    most = train_network._WINDOW
    assert 0 < np.diff(cuts).min() <= np.diff(cuts).max() <= most
    bounds = np.cumsum([0, *lengths])
    assert set(bounds.tolist()) <= set(cuts.tolist())
    for cut in set(cuts.tolist()) - set(bounds.tolist()):
        sequence = np.searchsorted(bounds, cut) - 1
        assert lengths[sequence] > most
        assert (cut - bounds[sequence]) % most == 0


def test_without_sequence_ids_windows_are_cut_from_the_first_row_on() -> None:
    most = train_network._WINDOW
    assert windows(numbered(None, 3 * most)).tolist() == [0, most, 2 * most, 3 * most]
    assert windows(numbered(None, most + 1)).tolist() == [0, most, most + 1]


@given(lengths_of_sequences, st.booleans())
def test_held_out_rows_are_whole_windows_that_are_not_trained_on(lengths: list[int], ids: bool) -> None:
    codes = numbered(lengths if ids else None, sum(lengths))
    rows, heldout = module._split(codes)
    assert sorted([*rows.levels.tolist(), *heldout.levels.tolist()]) == codes.levels.tolist()
    held = np.isin(codes.levels, heldout.levels)
    assert held.any()
    assert held.sum() <= max(codes.n_rows / 4, 8 * train_network._WINDOW)
    for a, b in pairwise(windows(codes)):
        assert held[a:b].all() or not held[a:b].any()
    linked = linked_rows(codes.columns, codes.n_rows)
    for part in (rows, heldout):
        assert (np.diff(part.levels) > 0).all()
        before = linked_rows(part.columns, part.n_rows)  # rows stay neighbours, and no others become so
        np.testing.assert_array_equal(before[1:], (np.diff(part.levels) == 1) & linked[part.levels[1:] - 1])


def test_a_small_share_of_many_rows_is_held_out_from_all_over() -> None:
    _, heldout = module._split(numbered(None, 200_000))
    assert 0.02 < heldout.n_rows / 200_000 < 0.1
    assert (np.bincount((heldout.levels - 1) * 5 // 200_000, minlength=5) > 0).all()


def test_the_network_is_trained_and_judged_on_the_rows_so_divided(fitted: Fitted, assert_same_codes: SameCodes) -> None:
    rows, heldout = module._split(fitted.codes)
    assert_same_codes(fitted.rows, rows)
    assert_same_codes(fitted.heldout, heldout)


def test_of_too_many_nonzeros_chunks_from_all_over_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = numbered(None, 1000)
    chunks = [codes[i : i + 50] for i in range(0, 1000, 50)]
    assert module._within_memory(lambda: chunks, 2).n_rows == 1000
    monkeypatch.setattr(module, "_MAX_NONZEROS", 510)
    some = module._within_memory(lambda: chunks, 2)
    assert np.bincount((some.levels - 1) // 200, minlength=5).tolist() == [100] * 5
