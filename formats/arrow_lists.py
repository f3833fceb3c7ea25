"""Columns of lists in Arrow data: nested lists of floats that all have the same lengths are rows of activations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.array_blocks import BLOCK_BYTES, BlockArray
from saecodec.formats.array_keys import Listed, choose
from saecodec.formats.array_source import ITEM_BYTES, bad_dtype

SHAPE = "saecodec.shape"
"""Key of a schema's metadata: the shape, as JSON, of an array whose rows are the lists of a column."""

_DTYPES = {"halffloat": "float16", "float": "float32", "double": "float64"}


class ListColumn(BlockArray):
    """A column of `n_rows` nested lists, (n_rows, *lengths); the lengths are those of its first row.

    first: a column of one row, or of none. pieces: yields the column, in pieces of about so many rows. metadata: the
    schema's, which may say how the rows of another shape were flattened.
    """

    def __init__(
        self,
        path: str,
        where: str,
        n_rows: int,
        first: Any,
        pieces: Callable[[int], Iterator[Any]],
        metadata: Mapping[bytes, bytes] | None = None,
    ) -> None:
        lengths, dtype = _lengths(first, where), _dtype(value_type(first.type), where)
        shape = (n_rows, *lengths)
        super().__init__(path, _unflattened(shape, metadata or {}), dtype)
        self._lengths = lengths
        self._where = where
        self._pieces = pieces

    def _blocks(self) -> Iterator[npt.NDArray[Any]]:
        lengths, row = self._lengths, 0
        row_bytes = math.prod(lengths) * ITEM_BYTES[self.dtype]
        for piece in self._pieces(max(1, BLOCK_BYTES // max(1, row_bytes))):
            yield _values(piece, lengths, self._where, row)
            row += len(piece)


def _unflattened(shape: tuple[int, ...], metadata: Mapping[bytes, bytes]) -> tuple[int, ...]:
    """The shape of an array before its rows became a column (T, d); `shape` where nothing, or nonsense, is said."""
    try:
        said = json.loads(metadata.get(SHAPE.encode(), b"null"))
    except (ValueError, RecursionError):
        return shape
    if not (isinstance(said, list) and said and all(type(n) is int and n >= 0 for n in said)):
        return shape
    return tuple(said) if (math.prod(said[:-1]), said[-1]) == shape else shape


def choose_column(path: str, schema: Any, key: str | None) -> int:
    """The position of the column that `key` means in an Arrow schema; columns of other types are only listed."""
    names = list(schema.names)
    name = choose(path, names, key, lambda name: _listed(schema, name))
    if names.count(name) > 1:
        raise InputError(f"{path}: has {names.count(name)} columns named {name!r}; expected one")
    return names.index(name)


def storage(kind: Any) -> Any:
    """The type without its name, where a library has registered one for it ("Array2D" of `datasets`, say)."""
    return getattr(kind, "storage_type", kind)


def value_type(kind: Any) -> Any:
    """The type of what the lists hold, however deep."""
    kind = storage(kind)
    while _is_list(kind):
        kind = storage(kind.value_type)
    return kind


def _is_list(kind: Any) -> bool:
    return str(storage(kind)).startswith(("list<", "large_list<", "fixed_size_list<"))


def _dtype(kind: Any, where: str) -> str:
    if str(kind) not in _DTYPES:
        raise bad_dtype(where, str(kind))
    return _DTYPES[str(kind)]


def _listed(schema: Any, name: str) -> Listed:
    kind = schema.field(schema.names.index(name)).type
    return Listed(str(storage(kind)), _is_list(kind) and str(value_type(kind)) in _DTYPES)


def _lengths(first: Any, where: str) -> tuple[int, ...]:
    """The lengths of the nested lists of the first row, outermost first; known without rows if the type has them."""
    lengths: list[int] = []
    array = _plain(first)
    if not _is_list(array.type):
        raise InputError(f"{where}: is a column of {array.type}; expected lists of floats, or lists of such lists")
    while _is_list(array.type):
        fixed = getattr(array.type, "list_size", None)
        if fixed is None and not len(array):
            raise InputError(f"{where}: holds no rows, or empty ones, so that the length of its lists is not known")
        if len(array) and not array.is_valid()[0].as_py():
            raise _null(where, 0)
        lengths.append(len(array[0]) if fixed is None else int(fixed))
        array = _plain(array.slice(0, 1).flatten())
    return tuple(lengths)


def _values(array: Any, lengths: tuple[int, ...], where: str, row: int) -> npt.NDArray[Any]:
    """The values of whole rows, (n, lengths[-1]); InputError names the first row that is ragged or holds a null."""
    array = _plain(array)
    array.validate(full=True)  # a corrupt file may have offsets that point beyond the values
    per_row = 1
    for length in lengths:
        _refuse_nulls(array, where, row, per_row)
        if getattr(array.type, "list_size", None) is None and len(array):
            sizes = np.diff(array.offsets.to_numpy())
            ragged = np.flatnonzero(sizes != length)
            if len(ragged):
                raise InputError(
                    f"{where}: row {row + int(ragged[0]) // per_row} has a list of {sizes[ragged[0]]} values, the "
                    f"first one of {length}: lists of different lengths are no array; pad them, or drop such rows"
                )
        array = _plain(array.flatten())
        per_row *= length
    _refuse_nulls(array, where, row, per_row)
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False).reshape(-1, lengths[-1])
    return values


def _refuse_nulls(array: Any, where: str, row: int, per_row: int) -> None:
    if array.null_count:
        valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False))
        raise _null(where, row + int(np.flatnonzero(~valid)[0]) // per_row)


def _null(where: str, row: int) -> InputError:
    return InputError(f"{where}: row {row} holds a null; drop such rows, or fill them")


def _plain(array: Any) -> Any:
    """The array below a registered type."""
    return getattr(array, "storage", array)
