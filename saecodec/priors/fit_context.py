"""Fitting the context prior: blocks of latents, a network trained on most rows, tables on the rows held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.codes import Codes
from saecodec.errors import InputError
from saecodec.fit_tables import COARSE, class_histogram, coarse_symbols, fit_classes, fit_table_set
from saecodec.priors.binned import Binned
from saecodec.priors.context import COST_UNIT, MAX_COST, ContextPrior
from saecodec.priors.context_rows import batch_of
from saecodec.priors.factorized import FactorizedPrior
from saecodec.priors.layout import Layout
from saecodec.priors.network import GAINS, Network, full_precision
from saecodec.priors.quantize_network import GAIN_UNIT, quantize_network
from saecodec.priors.train_network import Recipe, Report, train, windows
from saecodec.sequences import SEQUENCE, linked_rows
from saecodec.table_set import TableSet

LEAST_ROWS: Final = 512
_HELDOUT: Final = (10, 20)  # one in so many rows: of few, of many
_HELDOUT_RUN: Final = 8  # windows that are held out together
_MAX_NONZEROS: Final = 1 << 26  # that are trained on; of more, chunks from all over are taken
_FULL_ROWS: Final = 1 << 16  # that a network of full size takes
_RANKS: Final = (32, 128)
_RANK_STEP: Final = 16
_SAMPLE: Final = 2048  # rows that ranges are taken from
_CHUNK: Final = 4096
_TABLE_CANDIDATES: Final = [1, 2, 4, 8, 16, 32, 64]
_COARSE_GAP: Final = coarse_symbols(4)
_COARSE_LEVEL: Final = coarse_symbols(buckets.DIRECT)
_BACKED_OFF: Final = 4.0  # nonzeros that a latent's cost in the factorized prior counts as


@dataclass(frozen=True)
class ContextFit:
    """sequences: whether the rows had sequence ids. heldout_rows: how many. heldout_bits: ideal bits per held-out row,
    support and levels, with the context prior. factorized_bits: with the factorized prior."""

    prior: ContextPrior
    sequences: bool
    heldout_rows: int
    heldout_bits: float
    factorized_bits: float


def fit_context(
    chunks: Callable[[], Iterable[Codes]],
    factorized: FactorizedPrior,
    *,
    device: torch.device,
    report: Report,
    seconds: float,
    recipe: Recipe | None = None,
    network: Network | None = None,
) -> ContextFit:
    """The context prior of rows.

    chunks: gives codes with their columns, chunk by chunk, twice. factorized: the factorized prior of the same rows:
    its level classes stay those of the centroids, and its costs back up those of rare latents. seconds: bounds the
    training. network: trained on much the same rows; then only tables are fitted. InputError when the rows are too few
    to hold any out.
    """
    codes = _within_memory(chunks, factorized.n_latents)
    check_rows(codes.n_rows)
    rows, heldout = _split(codes)
    if network is None:
        network = _trained(rows, heldout, recipe or recipe_of(rows), device, seconds, report)
    prior, bits = _with_tables(network, heldout, factorized)
    factorized_bits = sum(sum(factorized.ideal_bits(part)) for part in _chunks(heldout))
    n = heldout.n_rows
    return ContextFit(prior, SEQUENCE in codes.columns, n, bits / n, factorized_bits / n)


def recipe_of(codes: Codes) -> Recipe:
    """The recipe for rows of codes: few rows fill no large network, and pay for none."""
    share = min(1.0, codes.n_rows / _FULL_ROWS)
    return Recipe(rank=max(_RANKS[0], _RANK_STEP * round(_RANKS[1] * share**0.5 / _RANK_STEP)))


def _trained(
    rows: Codes, heldout: Codes, recipe: Recipe, device: torch.device, seconds: float, report: Report
) -> Network:
    block = blocks(np.bincount(rows.latents, minlength=rows.n_latents), recipe.n_blocks)
    layout = Layout(block, np.zeros_like(block), (int(block.max()) + 1,))
    gains = context_gains(recipe.gain_power)
    with full_precision(device):
        parameters = train(rows, heldout, layout, gains, recipe, device, seconds, report)
    return quantize_network(parameters, block, gains, batch_of(rows[:_SAMPLE], layout, gains, device))


def check_rows(n_rows: int) -> None:
    """InputError when rows are too few to fit on."""
    if n_rows < LEAST_ROWS:
        raise InputError(f"the context prior is fitted on at least {LEAST_ROWS} rows, got {n_rows}: give more")


def blocks(counts: NDArray[np.int64], n_blocks: int) -> NDArray[np.int64]:
    """Block of each latent, int64 (F,): by falling count, so that blocks hold about equally many nonzeros."""
    order = np.argsort(-counts, kind="stable")
    middle = np.cumsum(counts[order]) - counts[order] / 2
    share = np.minimum((middle * (n_blocks / max(int(counts.sum()), 1))).astype(np.int64), n_blocks - 1)
    out = np.empty(len(counts), np.int64)
    out[order] = np.unique(share, return_inverse=True)[1].reshape(-1)  # blocks that a frequent latent overleaps go
    return out


def context_gains(power: float) -> NDArray[np.float32]:
    """What levels 1 to 16 and above weigh as context: level^power, to a quarter, float32 (16,)."""
    return np.asarray(np.rint(GAIN_UNIT * np.arange(1, GAINS + 1) ** power) / GAIN_UNIT, np.float32)


def _within_memory(chunks: Callable[[], Iterable[Codes]], n_latents: int) -> Codes:
    nnz = sum(part.nnz for part in chunks())
    share = min(1.0, _MAX_NONZEROS / max(nnz, 1))
    kept = (part for i, part in enumerate(chunks()) if math.floor((i + 1) * share) > math.floor(i * share))
    return Codes.concatenate(kept, n_latents)


def _split(codes: Codes) -> tuple[Codes, Codes]:
    """Rows to train on, and rows held out: runs of neighbouring windows from all over, with new sequence ids."""
    cuts = windows(codes)
    n_windows = len(cuts) - 1
    one_in = _HELDOUT[0] if codes.n_rows < _FULL_ROWS else _HELDOUT[1]
    run = max(1, min(_HELDOUT_RUN, n_windows // (2 * one_in)))
    held = (np.arange(n_windows) // run) % one_in == one_in // 2
    if n_windows < one_in:
        held = np.arange(n_windows) == n_windows // 2
    linked = linked_rows(codes.columns, codes.n_rows)
    row_held = np.repeat(held, np.diff(cuts))
    linked[1:] &= row_held[1:] == row_held[:-1]
    numbered = replace(codes, columns={SEQUENCE: np.cumsum(~linked)})
    edges = [0, *(np.flatnonzero(np.diff(row_held)) + 1).tolist(), codes.n_rows]
    parts = [(numbered[a:b], bool(row_held[a])) for a, b in pairwise(edges)]
    train_rows, heldout = (
        Codes.concatenate([part for part, out in parts if out is wanted], codes.n_latents) for wanted in (False, True)
    )
    return train_rows, heldout


def _chunks(codes: Codes) -> Iterator[Codes]:
    return (codes[i : i + _CHUNK] for i in range(0, codes.n_rows, _CHUNK))


def _with_tables(network: Network, heldout: Codes, factorized: FactorizedPrior) -> tuple[ContextPrior, float]:
    """The prior of a network, its tables and costs fitted on held-out rows, and the ideal bits of these."""
    f, nothing = len(network.block), np.zeros(len(network.block), np.int64)
    flat = _flat_tables(network.n_bins), _flat_tables(network.n_level_bins)
    start = ContextPrior(network, *flat, factorized.level_class, nothing, nothing, factorized.signed)
    binned = [start.binned(part) for part in _chunks(heldout)]
    gaps, levels = np.zeros((network.n_bins, buckets.N_BUCKETS)), np.zeros((network.n_level_bins, buckets.N_BUCKETS))
    for part in binned:
        gaps += gap_histogram(part, network.n_bins)
        magnitude = np.abs(part.cells.level).astype(np.int64) - 1
        levels += class_histogram(part.level_bins.astype(np.int64), magnitude, network.n_level_bins)
    prior = replace(start, support=fit_gap_tables(gaps), levels=_tables(levels, _COARSE_LEVEL))
    total, bits, bin_sum, count = 0.0, np.zeros(f), np.zeros(f), np.zeros(f)
    for part in binned:
        latent, (support, of_levels) = network.layout.latent_of[part.cells.column], prior.cell_bits(part)
        total += float(support.sum()) + float(of_levels.sum())
        bits += np.bincount(latent, support, f)
        bin_sum += np.bincount(latent, part.level_bins, f)
        count += np.bincount(latent, minlength=f)
    alone = factorized.costs().support
    ratio = bits.sum() / max(float(alone @ count), 1e-9) if count.any() else 1.0
    cost = (bits + _BACKED_OFF * ratio * alone) / (count + _BACKED_OFF)
    mean_bin = bin_sum.sum() / max(count.sum(), 1)
    cost_bin = np.rint((bin_sum + _BACKED_OFF * mean_bin) / (count + _BACKED_OFF)).astype(np.int64)
    units = np.rint(cost * COST_UNIT).astype(np.int64).clip(0, MAX_COST)
    return replace(prior, cost=units, cost_bin=cost_bin), total


def gap_histogram(binned: Binned, n_bins: int) -> NDArray[np.int64]:
    """How often each bucket occurs among the gaps of each bin, int64 (B, 304)."""
    return class_histogram(np.sort(binned.bins).astype(np.int64), binned.gaps, n_bins)


def fit_gap_tables(gaps: NDArray[np.float64]) -> TableSet:
    """Tables of gaps, from their histogram in each bin, float64 (B, 304)."""
    return _tables(gaps, _COARSE_GAP)


def _flat_tables(n_members: int) -> TableSet:
    return TableSet(np.zeros(n_members, np.int64), np.zeros((1, 2), np.int64), 0)


def _tables(histogram: NDArray[np.float64], coarse: NDArray[np.int64]) -> TableSet:
    """Tables of bins (B, 304); bins that are alike share one."""
    merged = np.zeros((len(histogram), COARSE))
    np.add.at(merged.T, coarse, histogram.T)
    classes = fit_classes(merged, coarse, _TABLE_CANDIDATES, 0.0)
    counts = np.zeros((int(classes.max()) + 1, histogram.shape[1]))
    np.add.at(counts, classes, histogram)
    return fit_table_set(classes, counts)
