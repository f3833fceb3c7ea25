"""Sequences of rows: which row continues the one before it, and where chunks end.

A sequence is a run of rows that belong together in time, a document say. Its id is a row-aligned column of the codes;
a prior that looks at neighbouring rows never looks across a boundary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import MAX_CHUNK_ROWS, MAX_COLUMN, Codes
from saecodec.errors import InputError

SEQUENCE: Final = "seq"
"""Name of the column that holds sequence ids."""


def linked_rows(columns: Mapping[str, NDArray[np.int64]], n_rows: int) -> NDArray[np.bool_]:
    """Whether each row continues the sequence of the row before it, bool (T,); the first row of a chunk never does.

    Without a column of sequence ids, all rows are one sequence.
    """
    linked = np.ones(n_rows, np.bool_)
    if SEQUENCE in columns:
        linked[1:] = columns[SEQUENCE][1:] == columns[SEQUENCE][:-1]
    linked[:1] = False
    return linked


def ids_of_shape(shape: tuple[int, ...]) -> NDArray[np.int64] | None:
    """Sequence ids of the rows of an array (..., position, d), flattened; None for one without positions."""
    if len(shape) < 3:
        return None
    n_sequences, n_positions = math.prod(shape[:-2]), shape[-2]
    return np.repeat(np.arange(n_sequences), n_positions)


def positions(ids: NDArray[Any]) -> NDArray[np.int64]:
    """Position of each row in its sequence, the run of equal ids that holds it, from 0: int64 (T,).

    >>> positions(np.array([7, 7, 7, 8, 7]))
    array([0, 1, 2, 0, 0])
    """
    new = np.ones(len(ids), np.bool_)
    new[1:] = ids[1:] != ids[:-1]
    starts = np.flatnonzero(new)
    return np.asarray(np.arange(len(ids)) - np.repeat(starts, np.diff(starts, append=len(ids))))


@dataclass(frozen=True, eq=False)
class Chunking:
    """How rows are cut into chunks, and the sequence ids that their codes carry.

    chunk_rows: most rows of a chunk. sizes: rows of each. ids: integers (T,), or None when the codes carry none.
    """

    chunk_rows: int
    sizes: tuple[int, ...]
    ids: NDArray[Any] | None = None

    @classmethod
    def of(cls, n_rows: int, chunk_rows: int, ids: NDArray[Any] | None = None) -> Chunking:
        """Chunks of at most `chunk_rows` rows; one ends at the last boundary of sequences in its second half, if any.

        ids: of any integer type, (T,); may be a memory map. InputError when they are not one small integer a row, or a
        chunk cannot have so many rows.

        >>> Chunking.of(10, 4).sizes
        (4, 4, 2)
        >>> Chunking.of(10, 4, np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])).sizes
        (3, 3, 4)
        """
        if not 1 <= chunk_rows <= MAX_CHUNK_ROWS:
            raise InputError(f"a chunk holds 1 to {MAX_CHUNK_ROWS} rows, got {chunk_rows}")
        if ids is None:
            full, rest = divmod(n_rows, chunk_rows)
            return cls(chunk_rows, (chunk_rows,) * full + ((rest,) if rest else ()))
        ids = np.asarray(ids)
        check_ids(ids, n_rows)
        sizes, start = [], 0
        while n_rows - start > chunk_rows:
            half = start + (chunk_rows + 1) // 2
            window = np.asarray(ids[half - 1 : start + chunk_rows + 1])
            ends = np.flatnonzero(window[1:] != window[:-1])
            stop = half + int(ends[-1]) if len(ends) else start + chunk_rows
            sizes.append(stop - start)
            start = stop
        return cls(chunk_rows, (*sizes, n_rows - start) if n_rows > start else tuple(sizes), ids)

    @property
    def n_rows(self) -> int:
        """T."""
        return sum(self.sizes)

    def spans(self) -> Iterator[tuple[int, int]]:
        """First row of each chunk, and the row behind its last."""
        return pairwise(accumulate(self.sizes, initial=0))

    def label(self, codes: Codes, first_row: int) -> Codes:
        """Codes of the rows from `first_row` on, with their sequence ids."""
        if self.ids is None:
            return codes
        ids = np.asarray(self.ids[first_row : first_row + codes.n_rows], np.int64)
        return replace(codes, columns={**codes.columns, SEQUENCE: ids})

    def labels(self, chunks: Iterator[Codes]) -> Iterator[Codes]:
        """`label` of the chunks of all rows, one after the other."""
        first = 0
        for codes in chunks:
            yield self.label(codes, first)
            first += codes.n_rows


def check_ids(ids: NDArray[Any], n_rows: int) -> None:
    """InputError unless `ids` is one integer a row, of a magnitude that a column can hold."""
    if ids.shape != (n_rows,) or not np.issubdtype(ids.dtype, np.integer):
        raise InputError(f"sequence ids are one integer a row: expected shape ({n_rows},), got {ids.dtype} {ids.shape}")
    if n_rows and max(-int(ids.min()), int(ids.max())) >= MAX_COLUMN:
        raise InputError("sequence ids of magnitude 2^38 or more cannot be stored: number the sequences anew")
