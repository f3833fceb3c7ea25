"""Random networks and priors for the tests of the context prior, and the network written down once more, in integers.

Fixtures of the same names give them to tests (`conftest.py`); code outside pytest may load this file by its path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import MAX_LEVEL, Codes
from saecodec.priors.context import ContextPrior
from saecodec.priors.network import GAINS, MAX_BIAS, MAX_WEIGHT, Arithmetic, Network, Walk
from saecodec.sequences import SEQUENCE, linked_rows
from saecodec.table_set import TableSet
from saecodec.tables import max_code

Integers = NDArray[np.int64]

# -- random networks, priors and codes ---------------------------------------------------------------------------------


def random_network(
    seed: int,
    *,
    n_latents: int = 20,
    n_blocks: int = 4,
    rank: int = 8,
    n_bins: int = 24,
    n_level_bins: int = 6,
    extreme: bool = False,
) -> Network:
    """An integer network within the limits of the format, whose bins are all in use on codes of a few nonzeros a row.

    Blocks may be empty. extreme: weights, gains and biases are at their limits, with random signs; shifts are anything.
    """
    rng = np.random.default_rng(seed)
    f, g, r = n_latents, n_blocks, rank
    block = rng.integers(0, g, f)
    n_context = int((block < g - 1).sum())

    def weights(*shape: int) -> NDArray[np.int8]:
        if extreme:
            return rng.choice([-MAX_WEIGHT, MAX_WEIGHT], shape).astype(np.int8)
        return rng.integers(-MAX_WEIGHT, MAX_WEIGHT + 1, shape).astype(np.int8)

    def biases(middle: float, spread: float, *shape: int) -> Integers:
        if extreme:
            return rng.choice([1 - MAX_BIAS, MAX_BIAS - 1, -1, 0, 1 << 20], shape)
        values = middle + rng.normal(0, max(spread, 1), shape)
        return np.rint(values).clip(1 - MAX_BIAS, MAX_BIAS - 1).astype(np.int64)

    spread = 64 * 73 * r**0.5  # of a sum over hidden units
    shift, level_shift = (int(np.clip(np.round(np.log2(3 * spread / n)), 0, 23)) for n in (n_bins, n_level_bins))
    if extreme:
        gains = np.full(GAINS, 127)
        shift, level_shift = int(rng.integers(0, 24)), int(rng.integers(0, 24))
        shifts = rng.integers(0, 24, r)
    else:
        gains = rng.integers(0, 20, GAINS)
        shifts = rng.integers(2, 7, r)
    return Network(
        block=block,
        gains=gains,
        context=weights(n_context, 3 * r),
        bias=biases(0, 2000, g, r),
        shifts=shifts,
        out=weights(f, r),
        out_bias=biases(n_bins / 2 * 2**shift, spread / 2, f),
        level_out=weights(f, r),
        level_bias=biases(n_level_bins / 2 * 2**level_shift, spread / 2, f),
        shift=shift,
        level_shift=level_shift,
        n_bins=n_bins,
        n_level_bins=n_level_bins,
    )


def random_tables(rng: np.random.Generator, n_members: int) -> TableSet:
    """Tables of a few classes; most are of falling frequencies, as fitted ones are."""
    n_classes, n_symbols, resolution = int(rng.integers(1, 6)), int(rng.integers(2, 60)), int(rng.integers(0, 4))
    codes = rng.integers(0, max_code(resolution) + 1, (n_classes, n_symbols))
    codes[1:] = -np.sort(-codes[1:], axis=1)
    return TableSet(rng.integers(0, n_classes, n_members), codes, resolution)


def random_context_prior(seed: int, *, signed: bool = False, **sizes: Any) -> ContextPrior:
    """A prior of a random network and random tables. sizes: see `random_network`."""
    rng = np.random.default_rng([seed, 1])
    n = random_network(seed, **sizes)
    f = len(n.block)
    return ContextPrior(
        n,
        random_tables(rng, n.n_bins),
        random_tables(rng, n.n_level_bins),
        rng.integers(0, 3, f),
        rng.integers(0, 321, f),
        rng.integers(0, n.n_level_bins, f),
        signed,
    )


def random_codes(
    seed: int, n_rows: int, n_latents: int, *, rate: float = 0.2, signed: bool = False, sequences: bool = False
) -> Codes:
    """Independent nonzeros, of small, middling and the largest levels. sequences: of a few rows, with ids."""
    rng = np.random.default_rng([seed, 2])
    kind, shape = rng.random((n_rows, n_latents)), (n_rows, n_latents)
    levels = np.where(kind < 0.9, rng.geometric(0.3, shape), rng.integers(1, 40, shape))
    levels = np.where(kind > 0.99, rng.integers(MAX_LEVEL - 5, MAX_LEVEL + 1, shape), levels)
    levels *= rng.random(shape) < rate
    if signed:
        levels *= rng.choice([-1, 1], shape)
    ids = np.cumsum(rng.random(n_rows) < 0.2)
    return Codes.from_dense(levels, {SEQUENCE: ids} if sequences else {})


# -- the network, in integers, from docs/format.md ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Told:
    """What a network says of a chunk. sums: in front of the shift of hidden units, int64 (G, T, r); logits, scores:
    in front of theirs, int64 (F, T), by column; bins, level_bins: of all cells."""

    sums: Integers
    logits: Integers
    scores: Integers
    bins: Integers
    level_bins: Integers


def reference(n: Network, codes: Codes) -> Told:
    """The network over a chunk, step by step as "Context network" says, in 64-bit integers."""
    t, f, r = codes.n_rows, len(n.block), n.rank
    columns = sorted(range(f), key=lambda latent: (n.block[latent], latent))
    dense, seq = codes.to_dense().astype(np.int64), codes.columns.get(SEQUENCE)
    a, gain_sum = np.zeros((t, r), np.int64), [0] * t
    sums, logits, scores = (
        np.zeros((n.n_blocks, t, r), np.int64),
        np.zeros((f, t), np.int64),
        np.zeros((f, t), np.int64),
    )
    context, out, level_out = (values.astype(np.int64) for values in (n.context, n.out, n.level_out))

    def continues(row: int) -> bool:
        return 0 < row < t and (seq is None or seq[row] == seq[row - 1])

    for g in range(n.n_blocks):
        sums[g] = a + n.bias[g]
        h = (sums[g] >> n.shifts).clip(0, 127)
        block = [j for j in range(f) if n.block[columns[j]] == g]
        for j in block:
            logits[j] = n.out_bias[j] + (h * out[j]).sum(1)
            scores[j] = n.level_bias[j] + (h * level_out[j]).sum(1)
        if g == n.n_blocks - 1:
            break
        for row in range(t):
            found = [(j, int(dense[row, columns[j]])) for j in block if dense[row, columns[j]]]
            gains = [int(n.gains[min(abs(level), 16) - 1]) for _, level in found]
            gain_sum[row] += sum(gains)
            if gain_sum[row] > 1 << 15:
                continue
            for (j, _), gain in zip(found, gains, strict=True):
                a[row] += gain * context[j, :r]
                if continues(row + 1):
                    a[row + 1] += gain * context[j, r : 2 * r]
                if continues(row):
                    a[row - 1] += gain * context[j, 2 * r :]
    bins = (logits >> n.shift).clip(0, n.n_bins - 1)
    return Told(sums, logits, scores, bins, (scores >> n.level_shift).clip(0, n.n_level_bins - 1))


# -- the network as the codec runs it ----------------------------------------------------------------------------------


def walk_blocks(arithmetic: Arithmetic, codes: Codes) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Of each block the bins, uint8 (F_g, T), and the level bins of its nonzeros in the order of their cells."""
    n, t = arithmetic.network, codes.n_rows
    cells = n.layout.cells(codes)
    walk = Walk(arithmetic, linked_rows(codes.columns, t))
    for start, end in zip(n.starts[:-1], n.starts[1:], strict=True):
        a, b = np.searchsorted(cells.column, [start, end])
        bins = [walk.bins(c, stop).reshape(stop - c, t) for c, stop in walk.slabs()]
        level_bins = walk.level_bins(cells.column[a:b], cells.row[a:b])
        yield np.concatenate([np.zeros((0, t), np.uint8), *bins]), level_bins
        walk.enter(cells.column[a:b], cells.row[a:b], cells.level[a:b])


def walk_bins(arithmetic: Arithmetic, codes: Codes) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bins of all cells, uint8 (F, T), by column, and of the levels of the nonzeros in the order of their cells."""
    bins, level_bins = zip(*walk_blocks(arithmetic, codes), strict=True)
    return np.concatenate(bins), np.concatenate(level_bins)


def assert_bins(arithmetic: Arithmetic, codes: Codes, told: Told) -> None:
    """Asserts that the codec's bins are those of the reference."""
    bins, level_bins = walk_bins(arithmetic, codes)
    np.testing.assert_array_equal(bins, told.bins)
    cells = arithmetic.network.layout.cells(codes)
    np.testing.assert_array_equal(level_bins, told.level_bins[cells.column, cells.row])
