"""The factorized prior: latents are independent; each is coded with the tables of its classes.

Support: the gaps between a class's nonzeros (`gaps`), under a table per support class. Levels: under a table per level
class. Both use the bucket code. A chunk is one support stream and one levels stream per group of support classes, so
that a reader who wants one latent decodes one group. Normative: docs/format.md, "Factorized prior".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.codes import Codes
from saecodec.costs import COST_LEVELS, Costs, bucket_bits, mean_bits, value_bits
from saecodec.errors import FormatError, InputError
from saecodec.limits import check_expansion, check_limit
from saecodec.priors.gaps import gaps_of, positions_of
from saecodec.priors.layout import Cells, Layout
from saecodec.rangecoder import can_hold
from saecodec.runs import check_signs, decode_levels, decode_runs, encode_levels, encode_runs
from saecodec.table_set import MAX_CLASSES, TableSet
from saecodec.wire import ByteReader, varint, varints

MAX_LATENTS: Final = 1 << 24
MAX_NONZEROS: Final = 1 << 24  # of a chunk
NONZERO_BYTES: Final = 16
"""What the codes of a chunk hold of each: `limits.check_expansion`."""
MAX_CELLS: Final = 1 << buckets.MAX_BITS  # of a chunk: a gap has to fit the bucket code


@dataclass(frozen=True, eq=False)
class FactorizedPrior:
    """Tables of the support and of the levels.

    group_sizes: number of support classes in each group. signed: levels carry a sign bit.
    """

    name: ClassVar[str] = "factorized"

    support: TableSet
    levels: TableSet
    group_sizes: tuple[int, ...]
    signed: bool

    @property
    def n_latents(self) -> int:
        """F."""
        return len(self.support.classes)

    @property
    def level_class(self) -> NDArray[np.int64]:
        """Class of each latent that its centroids go by, int64 (F,)."""
        return self.levels.classes

    @property
    def n_level_classes(self) -> int:
        """How many of these classes there are."""
        return len(self.levels.codes)

    @cached_property
    def layout(self) -> Layout:
        """The order of a chunk's cells."""
        return Layout(self.support.classes, self.levels.classes, self.group_sizes)

    def encode(self, codes: Codes) -> bytes:
        """The support and levels of one chunk.

        Counts of nonzeros per class, then the byte lengths of the groups' support and levels streams in words, then
        the streams: all of the support, then all of the levels.
        """
        if codes.nnz > MAX_NONZEROS or codes.n_rows * self.n_latents > MAX_CELLS:
            raise InputError(
                f"a chunk of {codes.n_rows} rows and {codes.nnz} nonzeros is too large (limits: {MAX_NONZEROS} "
                f"nonzeros, {MAX_CELLS} cells): use fewer rows a chunk"
            )
        check_signs(codes, self.signed)
        layout = self.layout
        cells = layout.cells(codes)
        gaps, first = gaps_of(cells, codes.n_rows, layout.class_start)
        order, run = layout.level_order(cells.column)
        support = encode_runs(gaps, first, layout.class_bounds, self.support.models)
        models = [self.levels.models[c] for c in layout.run_class]
        levels = encode_levels(cells.level[order], run, layout.run_bounds, models, self.signed)
        lengths = [len(stream) // 4 for pair in zip(support, levels, strict=True) for stream in pair]
        return varints(np.diff(first)) + varints(lengths) + b"".join(support) + b"".join(levels)

    def decode(self, reader: ByteReader, n_rows: int, columns: Mapping[str, NDArray[np.int64]]) -> Codes:
        """The inverse of `encode`; FormatError when the bytes are not a chunk of `n_rows` rows. Ignores columns."""
        what, layout = reader.what, self.layout
        counts, lengths = self._read_head(reader, n_rows)
        streams = [reader.take(4 * n) for n in (*lengths[::2], *lengths[1::2])]
        n_groups = len(self.group_sizes)
        first = np.concatenate([[0], np.cumsum(counts)])
        gaps, _ = decode_runs(streams[:n_groups], first, layout.class_bounds, self.support.models, what, False)
        column, row = positions_of(gaps, counts, n_rows, layout.class_start, what)
        order, run = layout.level_order(column)
        models = [self.levels.models[c] for c in layout.run_class]
        level = np.empty(int(run[-1]), np.int32)
        level[order] = decode_levels(streams[n_groups:], run, layout.run_bounds, models, what, self.signed)
        return layout.codes(Cells(column, row, level), n_rows)

    def decode_some(
        self, reader: ByteReader, n_rows: int, columns: Mapping[str, NDArray[np.int64]], latents: NDArray[np.int64]
    ) -> Codes:
        """What `decode` gives of some latents alone, numbers (n,): only the groups of their classes are decoded."""
        what, layout = reader.what, self.layout
        counts, lengths = self._read_head(reader, n_rows)
        streams = [reader.take(4 * n) for n in (*lengths[::2], *lengths[1::2])]
        wanted = np.zeros(self.n_latents, bool)
        wanted[np.asarray(layout.column_of)[latents]] = True
        bounds, runs, n_groups = layout.class_bounds, layout.run_bounds, len(self.group_sizes)
        groups = np.unique(np.searchsorted(bounds, self.support.classes[latents], side="right") - 1)
        parts: list[Cells] = []
        for g in groups.tolist():
            a, b = bounds[g], bounds[g + 1]
            start = layout.class_start[a : b + 1]
            ours = np.flatnonzero(wanted[start[0] : start[-1]]) + start[0]
            first = np.concatenate([[0], np.cumsum(counts[a:b])])
            gaps, _ = decode_runs([streams[g]], first, [0, b - a], self.support.models[a:b], what, False)
            column, row = positions_of(gaps, counts[a:b], n_rows, start, what)
            order, run = layout.level_order(column)
            first = run[runs[g] : runs[g + 1] + 1]
            models = [self.levels.models[c] for c in layout.run_class[runs[g] : runs[g + 1]]]
            needed = layout.last_run(ours) + 1 - runs[g]
            stream = [streams[n_groups + g]]
            found = decode_levels(stream, first, [0, len(models)], models, what, self.signed, needed)
            level = np.zeros(len(column), np.int32)
            level[order[: len(found)]] = found
            parts.append(Cells(column, row, level).take(wanted[column]))
        return layout.codes(Cells.concatenate(parts), n_rows)

    def _read_head(self, reader: ByteReader, n_rows: int) -> tuple[NDArray[np.int64], list[int]]:
        """Counts of nonzeros per class and lengths of the streams in words, checked against each other."""
        if n_rows * self.n_latents > MAX_CELLS:
            raise FormatError(
                f"{reader.what}: {n_rows} rows of {self.n_latents} latents are more than {MAX_CELLS} cells"
            )
        sizes = np.diff(self.layout.class_start)
        counts = np.array(reader.varints(len(sizes), MAX_NONZEROS), np.int64)
        lengths = reader.varints(2 * len(self.group_sizes), reader.left)
        least = np.add.reduceat(counts * self.support.least_bits, self.layout.class_bounds[:-1])
        fits = can_hold(4.0 * np.array(lengths[::2]), least).all()
        if counts.sum() > MAX_NONZEROS or (counts > sizes * n_rows).any() or not fits:
            raise FormatError(f"{reader.what}: {counts.sum()} nonzeros cannot come from streams of these lengths")
        check_expansion(NONZERO_BYTES * int(counts.sum()), reader.size, reader.what)
        return counts, lengths

    def stream_bytes(self, reader: ByteReader, n_rows: int) -> tuple[int, int]:
        """Bytes of a chunk's support streams and of its levels streams, without decoding them."""
        _, lengths = self._read_head(reader, n_rows)
        support, levels = 4 * sum(lengths[::2]), 4 * sum(lengths[1::2])
        reader.take(support + levels)
        return support, levels

    def ideal_bits(self, codes: Codes) -> tuple[float, float]:
        """Ideal code length of a chunk's support and levels under the tables, in bits, counts not included."""
        support, levels = self.nonzero_bits(codes)
        return float(support.sum()), float(levels.sum())

    def nonzero_bits(self, codes: Codes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ideal code lengths of each nonzero's place and level in bits, float64 (K,) each. A gap is charged to the
        nonzero that ends it."""
        gaps, _ = gaps_of(self.layout.cells(codes), codes.n_rows, self.layout.class_start)
        support = np.empty(codes.nnz)
        order = self.layout.order(codes)
        classes = self.support.classes[codes.latents[order]]
        support[order] = bucket_bits(self.support.weights)[classes, buckets.bucket_of(gaps)]
        magnitude = np.abs(codes.levels).astype(np.int64) - 1
        levels = bucket_bits(self.levels.weights)[self.levels.classes[codes.latents], buckets.bucket_of(magnitude)]
        return support, levels + self.signed

    def latent_bits(self, codes: Codes) -> NDArray[np.float64]:
        """Ideal code length of each latent's nonzeros in a chunk, in bits, float64 (F,), counts not included."""
        return np.asarray(np.bincount(codes.latents, sum(self.nonzero_bits(codes)), self.n_latents), np.float64)

    def costs(self) -> Costs:
        """What a nonzero costs: of its gap the mean over its class, of its level the code length."""
        levels = np.pad(value_bits(self.levels.weights, COST_LEVELS - 1) + self.signed, ((0, 0), (1, 0)))
        support = mean_bits(self.support.weights)[self.support.classes]
        return Costs(support.astype(np.float32), levels.astype(np.float32), self.levels.classes)

    def content(self) -> dict[str, NDArray[np.int64]]:
        """Everything that decides a symbol, as integer arrays."""
        return {
            "group_sizes": np.array(self.group_sizes, np.int64),
            "signed": np.array([int(self.signed)]),
            "support_classes": self.support.classes,
            "support_weights": self.support.weights,
            "level_classes": self.levels.classes,
            "level_weights": self.levels.weights,
        }

    def to_bytes(self) -> bytes:
        """The prior as a byte string (docs/format.md, "Factorized prior")."""
        groups = varint(len(self.group_sizes)) + varints(self.group_sizes)
        return varints([self.n_latents, int(self.signed)]) + groups + self.support.to_bytes() + self.levels.to_bytes()

    @classmethod
    def read(cls, reader: ByteReader) -> FactorizedPrior:
        """Read what `to_bytes` wrote."""
        n_latents, signed = reader.varint(MAX_LATENTS), bool(reader.varint(1))
        check_limit("latents", n_latents, reader.what)
        group_sizes = tuple(reader.varints(reader.varint(MAX_CLASSES), MAX_CLASSES))
        support, levels = TableSet.read(reader, n_latents), TableSet.read(reader, n_latents)
        if n_latents < 1 or 0 in group_sizes or sum(group_sizes) != len(support.codes):
            raise FormatError(f"{reader.what}: groups {group_sizes} do not divide {len(support.codes)} support classes")
        if support.classes.max() != len(support.codes) - 1:
            raise FormatError(f"{reader.what}: the last support class has no latent")
        return cls(support, levels, group_sizes, signed)
