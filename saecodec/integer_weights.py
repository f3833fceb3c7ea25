"""The integers of a decoder as bytes: blocks of latents, each an integer matrix under common tables.

A value of a row (a column of the matrix) has its own spread in all directions, so columns have tables by class; what is
special about a latent is in its scale. Normative: docs/format.md, "Integer weights".
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.decoder_precision import MAX_INTEGER
from saecodec.errors import FormatError, InputError
from saecodec.fit_tables import fit_matrix
from saecodec.integers import zigzag
from saecodec.matrices import check_room, decode_matrix, encode_matrix
from saecodec.table_set import TableSet
from saecodec.wire import ByteReader, blob, varint

MAX_CELLS: Final = 1 << 22  # latents x values of a block
_CELLS: Final = 1 << 20  # coded at a time: the range coder wants 20 bytes of memory for each


def pack_integers(integers: NDArray[np.int8], block: int | None = None) -> bytes:
    """Integers int8 (F, d), none of them -128, as bytes. block: latents that are coded together. InputError when rows
    are wider than a block may be."""
    n_latents, width = integers.shape
    if width > MAX_CELLS:
        raise InputError(f"directions of {width} values cannot be stored as int8, at most {MAX_CELLS}")
    block = block or min(n_latents, max(1, _CELLS // width))
    tables = _fitted(integers, block)
    parts = (encode_matrix(integers[i : i + block], tables) for i in range(0, n_latents, block))
    return varint(block) + tables.to_bytes() + b"".join(map(blob, parts))


def read_integers(reader: ByteReader, n_latents: int, width: int) -> NDArray[np.int8]:
    """Read what `pack_integers` wrote of F latents and rows of d; FormatError when the bytes are not that."""
    block = reader.varint(n_latents)
    if not 1 <= block * width <= MAX_CELLS:
        raise FormatError(f"{reader.what}: blocks of {block} latents of {width} weights are not possible")
    tables = TableSet.read(reader, width)
    starts = range(0, n_latents, block)
    if len(starts) > reader.left:  # every block takes a byte
        raise FormatError(f"{reader.what}: truncated: {len(starts)} blocks of weights, {reader.left} bytes left")
    parts = [(start, min(block, n_latents - start), reader.blob()) for start in starts]
    for _, n_rows, data in parts:
        check_room(len(data), n_rows, tables, reader.what)
    out = np.empty((n_latents, width), np.int8)
    for start, n_rows, data in parts:
        out[start : start + n_rows] = decode_matrix(data, n_rows, tables, MAX_INTEGER, reader.what)
    return out


def _fitted(integers: NDArray[np.int8], block: int) -> TableSet:
    width = integers.shape[1]
    counts, column = np.zeros(width * buckets.N_BUCKETS), np.arange(width) * buckets.N_BUCKETS
    for i in range(0, len(integers), block):
        part = buckets.bucket_of(zigzag(integers[i : i + block].astype(np.int64)))
        counts += np.bincount((part + column).ravel(), minlength=counts.size)
    return fit_matrix(counts.reshape(width, buckets.N_BUCKETS))
