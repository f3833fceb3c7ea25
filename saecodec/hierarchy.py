"""A joint code of latents that fire together, in the bitstream as it is: a child's column is cut in two by its parent.

A forest names a parent for some latents, the children. Inside a chunk, the rows of a child's column are sorted: first
those in which its parent fires, then the others, both in their old order, so that bursts stay bursts. Whoever has a
parent's rows can undo this, so a decoder goes down from the roots.

Sorted codes have the latents of the old ones, and a child's nonzeros lie close together at the head of its column. But
one gap table serves both parts. Split codes have the two parts as two latents, each with classes of its own.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.co_occurrence import CoOccurrence, parent_child, strongest
from saecodec.codes import Codes
from saecodec.errors import FormatError, InputError
from saecodec.integers import pack_ints, unpack_ints
from saecodec.priors.layout import Cells, Layout
from saecodec.wire import ByteReader, varint

Forest = NDArray[np.int32]
"""The parent of each latent, int32 (F,), -1 for a root; no latent is among its own ancestors."""
Integers = NDArray[np.int64]

_ROOT: Final = -1


def depths(forest: Forest) -> Integers:
    """How many ancestors each latent has, int64 (F,). InputError when `forest` is not one.

    >>> depths(np.array([-1, 0, 1, 0, -1], np.int32)).tolist()
    [0, 1, 2, 1, 0]
    """
    n = len(forest)
    if forest.ndim != 1 or not np.issubdtype(forest.dtype, np.integer):
        raise InputError(f"a forest is one integer a latent, got {forest.dtype} of shape {forest.shape}")
    if n and not _ROOT <= forest.min() <= forest.max() < n:
        raise InputError(f"parents must be in [-1, {n}), found {forest.min()}..{forest.max()}")
    # Every round doubles how far up `ancestor` is, so a chain takes log2 F rounds. The last entry is above all roots.
    ancestor = np.append(np.where(forest < 0, n, forest), n).astype(np.int64)
    depth = (ancestor < n).astype(np.int64)
    for _ in range(n.bit_length()):
        depth, ancestor = depth + depth[ancestor], ancestor[ancestor]
    if (ancestor < n).any():
        raise InputError(f"the ancestors of latent {int(np.flatnonzero(ancestor < n)[0])} go round in a circle")
    return depth[:n]


def sorted_by_parent(codes: Codes, forest: Forest) -> Codes:
    """A chunk whose children's rows are sorted: those in which the parent fires, then the others.

    Row-aligned columns stay as they are. InputError when `forest` is none of the chunk's latents.
    """
    _check(codes, forest)
    cells, start = _by_latent(codes)
    parent = forest[cells.column].astype(np.int64)
    child = np.flatnonzero(parent >= 0)
    parent, row = parent[child], cells.row[child]
    # Both are sorted, so a search among all nonzeros finds the parent's rows before this one.
    place = cells.column * codes.n_rows + cells.row
    wanted = parent * codes.n_rows + row
    at = np.searchsorted(place, wanted)
    fires = np.append(place, -1)[at] == wanted
    before = at - start[parent]
    sorted_row = cells.row.copy()
    sorted_row[child] = np.where(fires, before, start[parent + 1] - start[parent] + row - before)
    return _coded(codes, sorted_row, cells.column, cells.level, codes.n_latents)


def unsorted(codes: Codes, forest: Forest) -> Codes:
    """The inverse of `sorted_by_parent`."""
    depth = _check(codes, forest)
    t = codes.n_rows
    cells, start = _by_latent(codes)
    row, level = cells.row.copy(), cells.level.copy()
    index = np.arange(len(row)) - start[cells.column]
    # The r-th row without latent p is r + j, where j of p's rows, row_0 < row_1 < ..., have row_i - i <= r. These
    # differences rise inside a column, in old and in sorted rows, so one sorted array holds those of all columns.
    rest = cells.column * t + row - index
    of_depth = depth[cells.column]
    order = np.argsort(of_depth, kind="stable")
    ends = np.cumsum(np.bincount(of_depth))
    for first, last in pairwise(ends.tolist()):  # children of parents whose rows are known by now
        here = order[first:last]
        column = cells.column[here]
        parent = forest[column].astype(np.int64)
        n_fires = start[parent + 1] - start[parent]
        left = row[here] - n_fires
        fires = left < 0
        old = np.empty(len(here), np.int64)
        old[fires] = row[start[parent[fires]] + row[here][fires]]
        others = ~fires
        passed = np.searchsorted(rest, parent[others] * t + left[others], side="right") - start[parent[others]]
        old[others] = left[others] + passed
        ascending = np.argsort(column * t + old)
        row[here], level[here] = old[ascending], level[here][ascending]
        rest[here] = column * t + row[here] - index[here]
    return _coded(codes, row, cells.column, level, codes.n_latents)


def split_by_parent(codes: Codes, forest: Forest) -> Codes:
    """A chunk of F + C latents, C the number of children: column f of a child holds the rows in which its parent fires,
    from row 0 on, and column F + c, of the c-th child, all others.

    Row-aligned columns stay as they are. InputError when `forest` is none of the chunk's latents.
    """
    stacked = sorted_by_parent(codes, forest)
    child_of, rest_of = _parts(forest)
    n_fires = _parent_rows(np.bincount(codes.latents, minlength=len(forest)), forest)
    latent, row = stacked.latents, stacked.rows()
    rest = (forest[latent] >= 0) & (row >= n_fires[latent])
    row[rest] -= n_fires[latent[rest]]
    return _coded(codes, row, np.where(rest, rest_of[latent], latent), stacked.levels, len(child_of))


def joined(codes: Codes, forest: Forest) -> Codes:
    """The inverse of `split_by_parent`. InputError when no codes would be split into these."""
    depths(forest)
    child_of, _ = _parts(forest)
    f, t = len(forest), codes.n_rows
    if codes.n_latents != len(child_of):
        raise InputError(f"codes split by this forest have {len(child_of)} latents, got {codes.n_latents}")
    latent, row, rest = child_of[codes.latents], codes.rows(), codes.latents >= f
    n_fires = _parent_rows(np.bincount(latent, minlength=f), forest)[latent]
    if (row >= np.where(rest, t - n_fires, np.where(forest[latent] >= 0, n_fires, t))).any():
        raise InputError("split codes hold a nonzero behind the rows of its part")
    return unsorted(_coded(codes, row + np.where(rest, n_fires, 0), latent, codes.levels, f), forest)


def _parts(forest: Forest) -> tuple[Integers, Integers]:
    """The latent that each column of split codes belongs to (F + C,), and the column of each latent's rows without its
    parent (F,), -1 for a root."""
    children = np.flatnonzero(forest >= 0)
    rest_of = np.full(len(forest), -1)
    rest_of[children] = len(forest) + np.arange(len(children))
    return np.concatenate([np.arange(len(forest)), children]), rest_of


def _parent_rows(counts: Integers, forest: Forest) -> Integers:
    """Rows in which each latent's parent fires, of counts (F,); 0 for a root."""
    return np.append(counts, 0)[forest]  # -1 is the last


def _check(codes: Codes, forest: Forest) -> Integers:
    """Depths of the latents."""
    if len(forest) != codes.n_latents:
        raise InputError(f"a forest of {len(forest)} latents, but codes of {codes.n_latents}")
    return depths(forest)


def _by_latent(codes: Codes) -> tuple[Cells, Integers]:
    """Nonzeros in the order of latents, and the first of each latent (F + 1,)."""
    identity = np.arange(codes.n_latents)
    start = np.concatenate([[0], np.cumsum(np.bincount(codes.latents, minlength=codes.n_latents))])
    return Layout(identity, np.zeros_like(identity), (codes.n_latents,)).cells(codes), start


def _coded(codes: Codes, row: Integers, latent: Integers, level: NDArray[np.int32], n_latents: int) -> Codes:
    """Nonzeros in any order as codes, with the rows and columns of `codes`."""
    order = np.argsort(row * n_latents + latent)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=codes.n_rows))])
    return Codes(indptr, latent[order].astype(np.int32), level[order], n_latents, codes.columns)


# -- which forest ------------------------------------------------------------------------------------------------------


def best_forest(co: CoOccurrence, min_bits: float) -> Forest:
    """The forest in which a latent's parent is the more frequent latent that shares most bits with it, if these are
    more than `min_bits` in all rows counted. Of the forests with parents more frequent than their children, it shares
    most bits altogether (as the trees of Chow & Liu 1968 do among all)."""
    latents, shared = strongest(co, 1)
    return np.where(shared[:, 0] * co.n_rows > min_bits, latents[:, 0], _ROOT).astype(np.int32)


def containment_forest(co: CoOccurrence, min_probability: float = 0.95) -> Forest:
    """The forest of the pairs that `parent_child` finds: children that fire only where their parent does."""
    found = parent_child(co, min_probability)
    forest = np.full(co.n_latents, _ROOT, np.int32)
    forest[found.child] = found.parent
    return forest


# -- bytes -------------------------------------------------------------------------------------------------------------


def forest_to_bytes(forest: Forest) -> bytes:
    """The number of children, the steps between them, and their parents."""
    children = np.flatnonzero(forest >= 0)
    return (
        varint(len(children))
        + pack_ints(np.diff(children, prepend=-1) - 1)
        + pack_ints(forest[children].astype(np.int64))
    )


def read_forest(reader: ByteReader, n_latents: int) -> Forest:
    """Read what `forest_to_bytes` wrote for `n_latents`; FormatError when it is no forest."""
    n_children = reader.varint(n_latents)
    steps = unpack_ints(reader, n_children, below=max(n_latents, 1))
    parents = unpack_ints(reader, n_children, below=max(n_latents, 1))
    children = np.cumsum(steps + 1) - 1
    if n_children and children[-1] >= n_latents:
        raise FormatError(f"{reader.what}: latent {children[-1]} of a forest of {n_latents}")
    forest = np.full(n_latents, _ROOT, np.int32)
    forest[children] = parents
    try:
        depths(forest)
    except InputError as error:
        raise FormatError(f"{reader.what}: {error}") from error
    return forest
