"""The context prior: a latent's odds come from the other latents of its row, and of the rows beside it.

A network (`network`) puts every cell, a latent in a row, into a bin of cells about equally likely to be nonzero. In a
bin, the gaps between nonzeros are coded as the factorized prior codes those of a class: under a table fitted on rows
that the network has not seen. So the network's confidence is never taken at its word, and no probability is computed.
Levels likewise: a bin for each nonzero, a table for each bin. Normative: docs/format.md, "Context prior".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.codes import Codes
from saecodec.costs import COST_LEVELS, Costs, bucket_bits, value_bits
from saecodec.errors import FormatError, InputError
from saecodec.integers import pack_ints, unpack_ints
from saecodec.limits import check_expansion, check_limit
from saecodec.priors.binned import Binned, BinQueues, first_of_bins, ranks_of
from saecodec.priors.factorized import MAX_NONZEROS, NONZERO_BYTES
from saecodec.priors.layout import Cells
from saecodec.priors.network import Arithmetic, Network, Walk, full_precision
from saecodec.priors.network_bytes import pack_network, read_network
from saecodec.priors.ranks import BinnedCells
from saecodec.rangecoder import can_hold
from saecodec.runs import check_signs, decode_levels, decode_runs, encode_levels, encode_runs
from saecodec.sequences import linked_rows
from saecodec.table_set import MAX_CLASSES, TableSet
from saecodec.wire import ByteReader, varint, varints

Integers = NDArray[np.int64]
MAX_ACTIVATIONS: Final = 1 << 24
"""Rows of a chunk times hidden units: what a walk holds in memory, several times over."""
MAX_WALK_CELLS: Final = 1 << 32
"""Cells of a chunk: each is looked at, however few are nonzero."""
COST_UNIT: Final = 8  # of the stored costs, per bit
MAX_COST: Final = 40 * COST_UNIT


@dataclass(frozen=True, eq=False)
class ContextPrior:
    """A network, and tables of its bins.

    support: tables of gaps; its members are the bins of logits. levels: tables of levels; its members are the bins of
    scores. level_class: class of each latent that its centroids go by, int64 (F,). cost, cost_bin: what a nonzero of a
    latent's support costs typically, in 1/8 bit, and the typical bin of its level, int64 (F,): they steer searches, and
    decide no symbol. signed: levels carry a sign bit.
    """

    name: ClassVar[str] = "context"

    network: Network
    support: TableSet
    levels: TableSet
    level_class: Integers
    cost: Integers
    cost_bin: Integers
    signed: bool

    @property
    def n_latents(self) -> int:
        """F."""
        return len(self.network.block)

    @cached_property
    def n_level_classes(self) -> int:
        """How many classes there are that centroids go by."""
        return int(self.level_class.max()) + 1

    @cached_property
    def arithmetic(self) -> Arithmetic:
        """What the network is run with: float32 on the CPU. Another gives the same bytes."""
        return self.network.arithmetic

    # -- coding --------------------------------------------------------------------------------------------------------

    def encode(self, codes: Codes) -> bytes:
        """Support and levels of a chunk: counts of nonzeros by bin, then by level bin; the lengths of two streams in
        words; the streams."""
        self._check(codes)
        binned = self.binned(codes)
        (support,) = encode_runs(binned.gaps, binned.first_gap, [0, self.network.n_bins], self._models(self.support))
        level, bounds = binned.cells.level[binned.level_order], [0, self.network.n_level_bins]
        (levels,) = encode_levels(level, binned.first_level, bounds, self._models(self.levels), self.signed)
        counts = varints(np.diff(binned.first_gap)) + varints(np.diff(binned.first_level))
        return counts + varints([len(support) // 4, len(levels) // 4]) + support + levels

    def binned(self, codes: Codes, *, neighbours: bool = True) -> Binned:
        """The symbols of a chunk. neighbours: let the rows beside a row be context, as in the bitstream."""
        n, t = self.network, codes.n_rows
        cells = n.layout.cells(codes)
        linked = linked_rows(codes.columns, t) & neighbours
        walk = Walk(self.arithmetic, linked)
        rank, bins = np.empty(codes.nnz, np.int64), np.empty(codes.nnz, np.uint8)
        level_bins, base = np.empty(codes.nnz, np.uint8), np.zeros(n.n_bins, np.int64)
        with full_precision(self.arithmetic.device):
            for block in _slices(cells.column, n.starts):
                for start, end in walk.slabs():
                    a, b = np.searchsorted(cells.column[block], [start, end]) + block.start
                    binned = BinnedCells(walk.bins(start, end), n.n_bins)
                    where = (cells.column[a:b] - start) * t + cells.row[a:b]
                    bins[a:b] = binned.bins[where]
                    rank[a:b] = base[bins[a:b]] + binned.ranks(where)
                    base += binned.counts
                level_bins[block] = walk.level_bins(cells.column[block], cells.row[block])
                walk.enter(cells.column[block], cells.row[block], cells.level[block])
        order = np.argsort(bins, kind="stable")
        first = first_of_bins(bins, n.n_bins)
        gaps = np.diff(rank[order], prepend=-1) - 1
        heads = first[:-1][first[:-1] < first[1:]]
        gaps[heads] = rank[order[heads]]
        level_order = np.argsort(level_bins, kind="stable")
        return Binned(cells, gaps, first, level_order, first_of_bins(level_bins, n.n_level_bins), bins, level_bins)

    def decode(self, reader: ByteReader, n_rows: int, columns: Mapping[str, Integers]) -> Codes:
        """The inverse of `encode`; FormatError when the bytes are not a chunk of `n_rows` rows."""
        return self.network.layout.codes(self._cells(reader, n_rows, columns, self.network.n_blocks), n_rows)

    def decode_some(self, reader: ByteReader, n_rows: int, columns: Mapping[str, Integers], latents: Integers) -> Codes:
        """What `decode` gives of some latents alone, numbers (n,): the blocks behind the last of theirs are not
        decoded."""
        n_blocks = int(self.network.block[latents].max(initial=-1)) + 1
        cells, layout = self._cells(reader, n_rows, columns, n_blocks), self.network.layout
        wanted = np.zeros(self.n_latents, bool)
        wanted[np.asarray(layout.column_of)[latents]] = True
        return layout.codes(cells.take(wanted[cells.column]), n_rows)

    def _cells(self, reader: ByteReader, n_rows: int, columns: Mapping[str, Integers], n_blocks: int) -> Cells:
        """The nonzeros of the first blocks, in the order of their positions."""
        what, n = reader.what, self.network
        counts, level_counts, lengths = self._read_head(reader, n_rows)
        streams = [reader.take(4 * length) for length in lengths]
        first = np.concatenate([[0], np.cumsum(counts)])
        gaps, _ = decode_runs(streams[:1], first, [0, n.n_bins], self._models(self.support), what, False)
        ranks = BinQueues(ranks_of(gaps, first, n_rows * self.n_latents, what), first)
        first = np.concatenate([[0], np.cumsum(level_counts)])
        models = self._models(self.levels)
        levels = BinQueues(decode_levels(streams[1:], first, [0, n.n_level_bins], models, what, self.signed), first)
        parts: list[Cells] = []
        walk, base = Walk(self.arithmetic, linked_rows(columns, n_rows)), np.zeros(n.n_bins, np.int64)
        with full_precision(self.arithmetic.device):
            for _ in range(n_blocks):
                if not ranks.left:
                    break
                found = [np.zeros(0, np.int64)]
                for start, end in walk.slabs():
                    binned = BinnedCells(walk.bins(start, end), n.n_bins)
                    rank, bins = ranks.take_below(base + binned.counts)
                    found.append(np.sort(binned.cells(rank - base[bins], bins)) + start * n_rows)
                    base += binned.counts
                where = np.concatenate(found)
                column = where // max(n_rows, 1)
                row = where - column * n_rows
                level = levels.take(walk.level_bins(column, row), what).astype(np.int32)
                parts.append(Cells(column, row, level))
                walk.enter(column, row, level)
        if n_blocks == n.n_blocks and (ranks.left or levels.left):
            raise FormatError(f"{what}: the gaps of the support lead past the end of a bin")
        return Cells.concatenate(parts)

    def _models(self, tables: TableSet) -> list[object]:
        return [tables.models[c] for c in tables.classes]

    def _check(self, codes: Codes) -> None:
        t, limit = codes.n_rows, MAX_ACTIVATIONS // self.network.rank
        if codes.nnz > MAX_NONZEROS or t * self.n_latents > MAX_WALK_CELLS or t > limit:
            raise InputError(
                f"a chunk of {t} rows and {codes.nnz} nonzeros is too large for this prior (limits: "
                f"{min(limit, MAX_WALK_CELLS // self.n_latents)} rows, {MAX_NONZEROS} nonzeros): use fewer rows a chunk"
            )
        check_limit("walk_cells", t * self.n_latents, "the chunk (fewer rows in each, --chunk-rows, have fewer)")
        check_signs(codes, self.signed)

    def _read_head(self, reader: ByteReader, n_rows: int) -> tuple[Integers, Integers, list[int]]:
        """Counts of nonzeros by bin and by level bin, and lengths of the streams in words, checked for each other."""
        n = self.network
        if n_rows * self.n_latents > MAX_WALK_CELLS or n_rows * n.rank > MAX_ACTIVATIONS:
            raise FormatError(f"{reader.what}: {n_rows} rows are too many for {self.n_latents} latents")
        check_limit("walk_cells", n_rows * self.n_latents, reader.what)
        counts = np.array(reader.varints(n.n_bins, MAX_NONZEROS), np.int64)
        level_counts = np.array(reader.varints(n.n_level_bins, MAX_NONZEROS), np.int64)
        lengths = reader.varints(2, reader.left)
        total = int(counts.sum())
        if total > min(MAX_NONZEROS, n_rows * self.n_latents) or total != level_counts.sum():
            raise FormatError(f"{reader.what}: {total} nonzeros and {level_counts.sum()} levels are not possible")
        for found, tables, length in zip((counts, level_counts), (self.support, self.levels), lengths, strict=True):
            if not can_hold(4 * length, float((found * tables.least_bits[tables.classes]).sum())):
                raise FormatError(f"{reader.what}: {total} nonzeros cannot come from streams of these lengths")
        check_expansion(NONZERO_BYTES * total, reader.size, reader.what)
        return counts, level_counts, lengths

    def stream_bytes(self, reader: ByteReader, n_rows: int) -> tuple[int, int]:
        """Bytes of a chunk's support stream and of its levels stream, without decoding them."""
        _, _, (support, levels) = self._read_head(reader, n_rows)
        reader.take(4 * (support + levels))
        return 4 * support, 4 * levels

    # -- figures -------------------------------------------------------------------------------------------------------

    def ideal_bits(self, codes: Codes) -> tuple[float, float]:
        """Ideal code length of a chunk's support and levels under the tables, in bits, counts not included."""
        support, levels = self.nonzero_bits(codes)
        return float(support.sum()), float(levels.sum())

    def nonzero_bits(self, codes: Codes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ideal code lengths of each nonzero's place and level in bits, float64 (K,) each."""
        out, order = np.empty((2, codes.nnz)), self.network.layout.order(codes)
        out[:, order] = self.cell_bits(self.binned(codes))
        return out[0], out[1]

    def cell_bits(self, binned: Binned) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ideal code lengths of each nonzero's gap and level in bits, float64 (K,) each, in the order of the cells."""
        place = np.argsort(binned.bins, kind="stable")
        support = np.empty(len(place))
        support[place] = symbol_bits(self.support)[binned.bins[place], buckets.bucket_of(binned.gaps)]
        magnitude = np.abs(binned.cells.level).astype(np.int64) - 1
        return support, symbol_bits(self.levels)[binned.level_bins, buckets.bucket_of(magnitude)] + self.signed

    def costs(self) -> Costs:
        """What a nonzero costs: of its support and its level's bin, what is typical of the latent."""
        levels = np.pad(value_bits(self.levels.weights, COST_LEVELS - 1) + self.signed, ((0, 0), (1, 0)))
        support = (self.cost / COST_UNIT).astype(np.float32)
        return Costs(support, levels.astype(np.float32), self.levels.classes[self.cost_bin])

    # -- storage -------------------------------------------------------------------------------------------------------

    def content(self) -> dict[str, NDArray[Any]]:
        """Everything that decides a symbol, as integer arrays."""
        return {
            "signed": np.array([int(self.signed)]),
            "bin_classes": self.support.classes,
            "bin_weights": self.support.weights,
            "level_bin_classes": self.levels.classes,
            "level_bin_weights": self.levels.weights,
            "level_classes": self.level_class,
        } | {f"network_{name}": array for name, array in self.network.content().items()}

    def to_bytes(self) -> bytes:
        """The prior as a byte string (docs/format.md, "Context prior")."""
        tables = self.support.to_bytes() + self.levels.to_bytes()
        latents = b"".join(pack_ints(values) for values in (self.level_class, self.cost, self.cost_bin))
        return varint(int(self.signed)) + pack_network(self.network) + tables + latents

    @classmethod
    def read(cls, reader: ByteReader) -> ContextPrior:
        """Read what `to_bytes` wrote."""
        signed = bool(reader.varint(1))
        network = read_network(reader)
        support, levels = (TableSet.read(reader, n) for n in (network.n_bins, network.n_level_bins))
        below = (MAX_CLASSES, MAX_COST + 1, network.n_level_bins)
        level_class, cost, cost_bin = (unpack_ints(reader, len(network.block), below=limit) for limit in below)
        return cls(network, support, levels, level_class, cost, cost_bin, signed)


def _slices(column: Integers, starts: list[int]) -> list[slice]:
    """The nonzeros of each block."""
    cuts = np.searchsorted(column, starts).tolist()
    return [slice(a, b) for a, b in pairwise(cuts)]


def symbol_bits(tables: TableSet) -> NDArray[np.float64]:
    """Bits of a value of each bucket, offset included, under the table of each member: float64 (B, 304)."""
    return bucket_bits(tables.weights)[tables.classes]
