"""Coded integer arrays: how small side tables (classes, frequency codes, centroids, row columns) are stored.

An array is bucket-coded under one order-0 table of its own. The table's 4-bit frequencies, the array and its length
come in one self-delimiting byte string (docs/format.md, "Integer arrays").
"""

from __future__ import annotations

from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.errors import FormatError
from saecodec.rangecoder import TOTAL, StreamDecoder, StreamEncoder, model_of
from saecodec.wire import ByteReader, blob, varint

_Integer = TypeVar("_Integer", np.int32, np.int64)

_NIBBLES: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192], np.int64)


def zigzag(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Signed to unsigned: 0, -1, 1, -2, ... -> 0, 1, 2, 3, ..."""
    return (values << 1) ^ (values >> 63)


def unzigzag(values: NDArray[_Integer]) -> NDArray[_Integer]:
    """The inverse of `zigzag`."""
    return np.asarray((values >> 1) ^ -(values & 1))


def _weights(nibbles: NDArray[np.int64]) -> NDArray[np.int64]:
    frequency = _NIBBLES[nibbles]
    weights = 1 + frequency * (TOTAL - frequency.size) // int(frequency.sum())
    weights[np.argmax(frequency)] += TOTAL - int(weights.sum())
    return weights


def pack_ints(values: NDArray[np.int64]) -> bytes:
    """Code a 1-D array of integers in [0, 2^40) into a self-delimiting byte string."""
    values = np.asarray(values, np.int64)
    if values.size and not 0 <= values.min() <= values.max() < 1 << buckets.MAX_BITS:
        raise ValueError(f"integers outside [0, 2^{buckets.MAX_BITS}) cannot be packed")
    head = varint(values.size)
    if not values.size:
        return head
    symbols = buckets.bucket_of(values)
    first = int(symbols.min())
    counts = np.bincount(symbols - first)
    head += varint(first) + varint(counts.size)
    stream = StreamEncoder()
    scaled = counts * (_NIBBLES[-1] / counts.max())
    nibbles = np.searchsorted(np.sqrt(_NIBBLES[1:] * _NIBBLES[:-1].clip(1)), scaled, side="right")
    nibbles = np.where(counts > 0, np.maximum(nibbles, 1), 0)
    padded = np.append(nibbles, 0)[: nibbles.size + nibbles.size % 2]
    if counts.size > 1:  # else the bucket is known
        head += (padded[::2] | padded[1::2] << 4).astype(np.uint8).tobytes()
        stream.put((symbols - first).astype(np.int32), model_of(_weights(nibbles)))
    bits = buckets.OFFSET_BITS[symbols]
    wide = bits > 0
    stream.put_bits((values - buckets.BASE[symbols])[wide], bits[wide])
    return head + blob(stream.finish())


def unpack_ints(reader: ByteReader, size: int, *, below: int = 1 << buckets.MAX_BITS) -> NDArray[np.int64]:
    """Read an array that `pack_ints` wrote.

    size: the length it must have (a few bytes can stand for many equal integers, so the caller says how many are
    possible); below: every value must be smaller. Returns int64 (size,). FormatError when the bytes say otherwise.
    """
    n = reader.varint(size)
    if n != size:
        raise FormatError(f"{reader.what}: an array of {size} integers was expected, found {n}")
    if n == 0:
        return np.zeros(0, np.int64)
    first = reader.varint(buckets.N_BUCKETS - 1)
    n_symbols = reader.varint(buckets.N_BUCKETS - first)
    if n_symbols == 0:
        raise FormatError(f"{reader.what}: an integer array without symbols")
    nibbles = _read_nibbles(reader, n_symbols) if n_symbols > 1 else None
    stream = StreamDecoder(reader.blob(), reader.what)
    if nibbles is None:
        symbols = np.broadcast_to(np.int32(first), n)  # of which there may be millions, in five bytes
    else:
        symbols = stream.get(model_of(_weights(nibbles)), n) + np.int32(first)
    values = np.asarray(buckets.BASE[symbols])
    wide = np.flatnonzero(symbols >= buckets.DIRECT)
    values[wide] += stream.get_bits(buckets.OFFSET_BITS[symbols[wide]])
    stream.end()
    if values.max() >= below:
        raise FormatError(f"{reader.what}: found {values.max()} where values below {below} are possible")
    return values


def _read_nibbles(reader: ByteReader, n_symbols: int) -> NDArray[np.int64]:
    packed = np.frombuffer(reader.take((n_symbols + 1) // 2), np.uint8).astype(np.int64)
    nibbles = np.stack([packed & 15, packed >> 4], 1).ravel()
    if nibbles[n_symbols:].any() or not (nibbles[0] and nibbles[n_symbols - 1]):
        raise FormatError(f"{reader.what}: the table of an integer array does not begin and end at a symbol in use")
    return nibbles[:n_symbols]
