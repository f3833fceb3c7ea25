"""The context prior: its network, and chunks that it is walked over."""

from __future__ import annotations

import struct
from collections.abc import Callable

from attack import CONTEXT, Attack
from hostile import (
    FLAT,
    edited,
    ints,
    latents_file,
    record,
    saec,
    same,
    streams_of,
    table,
    zeros,
)

from saecodec.wire import blob, varint, varints


def on_context() -> list[Attack]:
    network = _network

    def bad(name: str, match: str, made: Callable[[], bytes], error: str = "FormatError") -> Attack:
        return Attack(name, error, match, lambda: _context_file(made(), 3, walk_chunk(1, 1)))

    def walk(name: str, match: str, f: int, r: int, data: Callable[[], bytes], error: str = "FormatError") -> Attack:
        return Attack(name, error, match, lambda: walk_file(f, r, data()))

    return [
        bad("network of 781 units", "at most 780", lambda: network(r=781)),
        bad("network of 257 blocks", "at most 256", lambda: network(g=257)),
        bad("network of 129 bins", "at most 128", lambda: network(bins=129)),
        bad("network without bins", "is not possible", lambda: network(bins=0)),
        bad("network beyond 2^26 weights", "is not possible", lambda: varints([1 << 24, 1, 780, 1, 1, 2, 2])),
        bad("block beyond the network", "values below 2", lambda: network(block=ints(0, 2, 0))),
        bad("gain beyond the exact range", "values below 128", lambda: network(gain=128)),
        bad("bias beyond the exact range", "values below 8388607", lambda: network(bias=1 << 23)),
        bad("shift beyond 23", "values below 24", lambda: network(shift=24)),
        bad("weight of -128", "is -128", lambda: network(packed=_minus(60))),
        bad("network of another size", "has 60 weights", lambda: network(packed=zeros(61))),
        bad(
            "decompression bomb of 64 MB in the network",
            "SAECODEC_LIMITS=expansion=",
            lambda: network(1 << 20, r=12),
            "LimitError",
        ),
        walk("rows beyond the activations", "rows are too many", 3, 32, lambda: walk_chunk(1 << 20, 1)),
        walk("cells of a walk beyond 2^32", "rows are too many", 1 << 17, 1, lambda: walk_chunk(1 << 16, 1)),
        walk(
            "cells of a walk beyond the limit",
            "SAECODEC_LIMITS=walk_cells=",
            1 << 16,
            1,
            lambda: walk_chunk(1 << 15, 1),
            "LimitError",
        ),
        walk("levels that are not the nonzeros", "1 nonzeros and 2 levels", 3, 4, lambda: walk_chunk(4, 1, (0, 2))),
        walk("level bins that are not the network's", "level", 3, 4, lambda: walk_chunk(4, 1, (0, 1))),
        walk("ranks past the end of a bin", "past the end of a bin", 3, 4, lambda: walk_chunk(4, 1, (1, 0), gap=12)),
        Attack(
            "context tables that are not the header's",
            "IdentityError",
            "encoded with the codec",
            lambda: saec(edited(CONTEXT[:2], "HEAD", record(codec_id=bytes(32)))),
        ),
    ]


def _network(
    f: int = 3,
    g: int = 2,
    r: int = 4,
    bins: int = 2,
    block: bytes | None = None,
    gain: int = 1,
    bias: int = 0,
    shift: int = 0,
    packed: bytes | None = None,
) -> bytes:
    """A network of zeros."""
    held = same(f) if block is None else block
    arrays = [held, ints(*[gain] * 16), ints(*[shift] * r), ints(*[bias] * (g * r)), same(f), same(f)]
    packed = zeros(5 * f * r) if packed is None else packed
    return varints([f, g, r, 1, 1, bins, 2]) + b"".join(arrays) + blob(packed)


def _context_file(network: bytes, f: int, data: bytes) -> bytes:
    """A file of latents under a context prior."""
    sets = table(2, FLAT) + table(2, FLAT) + same(f) * 3
    tabl = blob(b"context") + varint(0) + network + sets + struct.pack("<d", 1) + ints(*[0] * 16)
    requires = ["prior:context", "content:latents"]
    return latents_file(tabl, data, n_latents=f, requires=requires, prior="context")


def walk_file(f: int, r: int, data: bytes) -> bytes:
    return _context_file(_network(f, r=r), f, data)


def _minus(n: int) -> bytes:
    """n times -128 in a zstd frame."""
    data = bytearray(zeros(n))
    data[-1] = 0x80
    return bytes(data)


def walk_chunk(n_rows: int, n: int, level_counts: tuple[int, int] = (1, 0), gap: int = 0) -> bytes:
    """A chunk of n nonzeros under the context prior, all of bin 0."""
    streams = streams_of((gap,) * n, (1,) * n)
    lengths = [len(stream) // 4 for stream in streams]
    return varints([n_rows, 0, n, 0, *level_counts, *lengths]) + b"".join(streams)
