"""numpy's indexing of an array that is not in memory: which of its rows an index asks for.

The array has shape (*leading, *row). What an index says of the leading dimensions becomes numbers of rows; what it says
of the row's own is left for numpy, once the rows are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.limits import check_limit

Integers = NDArray[np.int64]

MOST_DIMENSIONS: Final = 64 if int(np.__version__.partition(".")[0]) >= 2 else 32
"""Of an array of numpy; a file may have more."""


def row_index(
    index: Any, leading: tuple[int, ...], n_row_dims: int, row_bytes: int = 8
) -> tuple[Integers, tuple[Any, ...]]:
    """What an index of an array (*leading, *row) asks for, as numpy understands it: numbers of rows, int64, of any
    shape; and the index of the array (*numbers.shape, *row) of these rows that gives the result.

    row_bytes: what a row takes in memory. LimitError when slices ask for more than `limits` has for an array.
    IndexError when numpy would raise it, and when index arrays pick rows or values while other parts that are no slices
    pick the other, so that numpy's result may have its dimensions in another order: take the rows first.
    """
    ours: list[Any] = []
    rest: list[Any] = []
    left = len(leading)
    for part in _parts(index, len(leading) + n_row_dims):
        taken = _dims(part)
        if taken > left > 0:
            raise IndexError("a mask covers rows and their values at once: take the rows first, f[rows][..., values]")
        (ours if left or (part is None and not rest) else rest).append(part)
        left -= min(taken, left)
    if _mixed(ours, rest, index):
        raise IndexError("an index picks rows and their values one by one: take the rows first, f[rows][..., values]")
    slices = (len(range(*part.indices(n))) for part, n in _along(ours, leading) if isinstance(part, slice))
    check_limit("array_bytes", math.prod(slices) * row_bytes, "the rows of this index")
    rows = _rows(ours, leading)
    return rows, (*[slice(None)] * rows.ndim, *rest)


def _mixed(ours: list[Any], rest: list[Any], index: Any) -> bool:
    """Whether arrays and integers pick rows and values together, so that numpy broadcasts them or moves dimensions."""
    picks = [[i for i, part in enumerate(parts) if isinstance(part, int) or _is_array(part)] for parts in (ours, rest)]
    arrays = [any(map(_is_array, parts)) for parts in (ours, rest)]
    if not any(arrays) or not all(picks):
        return False
    apart = len(ours) + picks[1][-1] - picks[0][0] >= len(picks[0]) + len(picks[1])
    return all(arrays) or apart or (isinstance(index, tuple) and any(part is Ellipsis for part in index))


def _parts(index: Any, n_dims: int) -> list[Any]:
    """The parts of an index that cover n_dims dimensions: int, slice, None, or an array of integers or bools."""
    parts = [_part(part) for part in (index if isinstance(index, tuple) else (index,))]
    left = n_dims - sum(_dims(part) for part in parts if part is not Ellipsis)
    if left < 0:
        raise IndexError(f"too many indices: the array has {n_dims} dimensions, {n_dims - left} were indexed")
    at = [i for i, part in enumerate(parts) if part is Ellipsis] or [len(parts)]
    if len(at) > 1:
        raise IndexError("an index can have one ellipsis (...)")
    return [*parts[: at[0]], *[slice(None)] * left, *parts[at[0] + 1 :]]


def _part(part: Any) -> Any:
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    array = np.asarray(part)
    if array.size == 0 and isinstance(part, (list, tuple)):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iub" or (array.ndim == 0 and array.dtype.kind == "b"):
        raise IndexError(f"an index is integers, slices, arrays of integers or bools, ... or None, not {part!r}")
    return int(array) if array.ndim == 0 else array


def _is_array(part: Any) -> bool:
    return isinstance(part, np.ndarray)


def _dims(part: Any) -> int:
    """How many dimensions a part covers."""
    return 0 if part is None else part.ndim if _is_array(part) and part.dtype == bool else 1


def _along(parts: list[Any], leading: tuple[int, ...]) -> Iterator[tuple[Any, int]]:
    """The parts of an index, each with the first dimension that it covers."""
    at = 0
    for part in parts:
        if part is not None:
            yield part, leading[at]
            at += _dims(part)


def _rows(parts: list[Any], leading: tuple[int, ...]) -> Integers:
    """Numbers of rows by the parts of an index that cover the leading dimensions.

    Along each dimension only the coordinates that its part names are made, and the part becomes one that picks them
    all, so that memory goes by what is asked for; numpy then puts them together as it would the array's values.
    """
    picks: list[Any] = []
    coordinates: list[Integers] = []
    for part in parts:
        if part is None:
            picks.append(None)
            continue
        n = leading[len(coordinates)]
        if _is_array(part) and part.dtype == bool:
            covered = leading[len(coordinates) : len(coordinates) + part.ndim]
            if part.shape != covered:
                raise IndexError(f"a mask of shape {part.shape} does not match dimensions {covered}")
            found = part.nonzero()
        elif isinstance(part, slice):
            coordinates.append(np.arange(*part.indices(n), dtype=np.int64))
            picks.append(slice(None))
            continue
        else:
            found = (np.asarray(part, np.int64),)
        for places in found:
            n = leading[len(coordinates)]
            if places.size and not -n <= places.min() <= places.max() < n:
                wrong = places[(places < -n) | (places >= n)].flat[0]
                raise IndexError(f"index {wrong} is out of bounds for a dimension of {n}")
            coordinates.append(np.where(places < 0, places + n, places).reshape(-1))
            own = np.arange(places.size).reshape(places.shape)
            picks.append(own if places.ndim else 0)
    shape = [len(values) for values in coordinates]
    rows = np.zeros((), np.int64)
    for i, values in enumerate(coordinates):
        axes = [1] * len(shape)
        axes[i] = shape[i]
        spread = np.broadcast_to(values.reshape(axes), shape)
        rows = rows + spread[tuple(picks)] * math.prod(leading[i + 1 :])
    return np.asarray(rows if coordinates else np.zeros((), np.int64)[tuple(picks)], np.int64)
