"""Runs of values in streams: how the bucket code and the range coder meet.

A stream holds the values of some runs; each run is coded under a model of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.codes import MAX_LEVEL, Codes
from saecodec.errors import FormatError, InputError
from saecodec.rangecoder import Model, StreamDecoder, StreamEncoder


def encode_runs(
    values: NDArray[np.int64],
    first: NDArray[np.int64],
    bounds: list[int],
    models: list[Model],
    signs: NDArray[np.int64] | None = None,
) -> list[bytes]:
    """One stream per group: the buckets run by run, then all offsets, then all signs.

    first: first value of each run (R + 1,); bounds: first run of each group (G + 1,); models: one per run.
    """
    buckets_of = buckets.bucket_of(values)
    wide = np.flatnonzero(buckets_of >= buckets.DIRECT)
    offsets = values[wide] - buckets.BASE[buckets_of[wide]]
    bits = buckets.OFFSET_BITS[buckets_of[wide]]
    symbols = buckets_of.astype(np.int32)
    runs = first.tolist()
    cuts = np.searchsorted(wide, first[bounds]).tolist()
    streams = []
    for g in range(len(bounds) - 1):
        stream = StreamEncoder()
        for run in range(bounds[g], bounds[g + 1]):
            stream.put(symbols[runs[run] : runs[run + 1]], models[run])
        stream.put_bits(offsets[cuts[g] : cuts[g + 1]], bits[cuts[g] : cuts[g + 1]])
        if signs is not None:
            sign = signs[runs[bounds[g]] : runs[bounds[g + 1]]]
            stream.put_bits(sign, np.ones_like(sign))
        streams.append(stream.finish())
    return streams


def decode_runs(
    streams: list[memoryview],
    first: NDArray[np.int64],
    bounds: list[int],
    models: list[Model],
    what: str,
    signed: bool,
    wanted: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The values and signs (1 = negative; empty unless `signed`) that `encode_runs` coded.

    wanted: of one stream, the number of its first runs that are wanted: when these need no more, the rest is not
    decoded, and the values end with them.
    """
    runs = first.tolist()
    values = np.empty(runs[-1], np.int64)
    negative = np.zeros(runs[-1] if signed else 0, np.int64)
    for g, data in enumerate(streams):
        stream = StreamDecoder(data, what)
        a, b = runs[bounds[g]], runs[bounds[g + 1]]
        symbols = np.empty(b - a, np.int16)
        for run in range(bounds[g], bounds[g + 1]):
            if run == wanted and not signed and not (symbols[: runs[run]] >= buckets.DIRECT).any():
                return buckets.BASE[symbols[: runs[run]]], negative
            if runs[run] < runs[run + 1]:
                symbols[runs[run] - a : runs[run + 1] - a] = stream.get(models[run], runs[run + 1] - runs[run])
        np.take(buckets.BASE, symbols, out=values[a:b], mode="clip")  # "raise" would make a copy
        wide = np.flatnonzero(symbols >= buckets.DIRECT)
        values[a + wide] += stream.get_bits(buckets.OFFSET_BITS[symbols[wide]])
        if signed:
            negative[a:b] = stream.get_bits(np.ones(b - a, np.int64))
        stream.end()
    return values, negative


def check_signs(codes: Codes, signed: bool) -> None:
    """InputError when a level is negative under a prior without signs."""
    if not signed and codes.nnz and codes.levels.min() < 0:
        raise InputError("this prior was fitted on activations that are never negative, but a level is")


def encode_levels(
    levels: NDArray[np.int32], first: NDArray[np.int64], bounds: list[int], models: list[Model], signed: bool
) -> list[bytes]:
    """`encode_runs` of nonzero levels: their magnitudes, less one, and their signs where they have any."""
    magnitude, negative = np.abs(levels).astype(np.int64) - 1, (levels < 0).astype(np.int64)
    return encode_runs(magnitude, first, bounds, models, negative if signed else None)


def decode_levels(
    streams: list[memoryview],
    first: NDArray[np.int64],
    bounds: list[int],
    models: list[Model],
    what: str,
    signed: bool,
    wanted: int | None = None,
) -> NDArray[np.int64]:
    """The levels that `encode_levels` coded. wanted: see `decode_runs`."""
    magnitude, negative = decode_runs(streams, first, bounds, models, what, signed, wanted)
    if len(magnitude) and magnitude.max() >= MAX_LEVEL:
        raise FormatError(f"{what}: a level exceeds 2^20")
    return (magnitude + 1) * (1 - 2 * negative) if signed else magnitude + 1
