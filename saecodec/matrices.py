"""Integer matrices: one stream, each column under the table of its class.

Residual levels are such a matrix (a column is a component of the transform), and so are the integers of a decoder (a
column is a value of a row). Normative: docs/format.md, "Integer matrices".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import FormatError
from saecodec.integers import unzigzag, zigzag
from saecodec.rangecoder import can_hold
from saecodec.runs import decode_runs, encode_runs
from saecodec.table_set import TableSet


def encode_matrix(values: NDArray[np.signedinteger], tables: TableSet) -> bytes:
    """The stream of integers (T, M), of magnitudes below 2^39: class by class, column by column.

    tables: of M members.
    """
    order = np.argsort(tables.classes, kind="stable")
    coded = zigzag(values.T[order].ravel().astype(np.int64))
    return encode_runs(coded, _runs(len(values), tables), [0, len(tables.codes)], tables.models)[0]


def check_room(n_bytes: int, n_rows: int, tables: TableSet, what: str) -> None:
    """FormatError when a stream of so many bytes cannot hold so many rows, which then take no memory."""
    runs = _runs(n_rows, tables)
    if not can_hold(n_bytes, float(np.diff(runs) @ tables.least_bits)):
        raise FormatError(f"{what}: {runs[-1]} integers cannot come from {n_bytes} bytes")


def decode_matrix(data: bytes | memoryview, n_rows: int, tables: TableSet, limit: int, what: str) -> NDArray[np.int32]:
    """The inverse of `encode_matrix`, int32 (T, M).

    limit: largest magnitude, below 2^30. FormatError when the bytes are not that.
    """
    check_room(len(data), n_rows, tables, what)
    bounds = [0, len(tables.codes)]
    coded, _ = decode_runs([memoryview(data)], _runs(n_rows, tables), bounds, tables.models, what, False)
    if len(coded) and coded.max() > 2 * limit:
        raise FormatError(f"{what}: an integer exceeds {limit} in magnitude")
    values = unzigzag(coded.astype(np.int32))
    del coded
    out = np.empty((n_rows, len(tables.classes)), np.int32)
    order = np.argsort(tables.classes, kind="stable")
    out[:, order] = values.reshape(len(order), n_rows).T
    return out


def _runs(n_rows: int, tables: TableSet) -> NDArray[np.int64]:
    """First value of each class's run, and the number of values: int64 (C + 1,)."""
    members = np.bincount(tables.classes, minlength=len(tables.codes))
    return np.concatenate([[0], np.cumsum(members)]) * n_rows
