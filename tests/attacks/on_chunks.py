"""Chunks under the factorized prior: columns, counts, streams, levels."""

from __future__ import annotations

from collections.abc import Callable

from attack import Attack
from hostile import (
    CERTAIN,
    certain_stream,
    chunk,
    column,
    ints,
    latents_file,
    rows_file,
    same,
    tables,
)
from on_tables import wide

from saecodec.wire import varints


def on_chunks() -> list[Attack]:
    def bad(name: str, match: str, data: Callable[[], bytes], error: str = "FormatError", **made: object) -> Attack:
        return Attack(name, error, match, lambda: latents_file(tables(**made), data()))

    word, rest = b"\xff" * 4, bytes(4)
    return [
        Attack(
            "cells beyond 2^40",
            "FormatError",
            "more than 1099511627776 cells",
            lambda: latents_file(wide(1 << 21), chunk(1 << 20), n_latents=1 << 21),
        ),
        bad("65 columns", "at most 64", lambda: chunk(head=varints([4, 65]))),
        bad("column values beyond 2^22", "more than 4194304 values", lambda: chunk(head=varints([1 << 20, 5]))),
        bad(
            "columns that do not rise",
            "not in the order",
            lambda: chunk(columns=[column(b"b", same(4)), column(b"a", same(4))]),
        ),
        bad("column without a name", "not in the order", lambda: chunk(columns=[column(b"", same(4))])),
        bad("column name of no UTF-8", "not UTF-8", lambda: chunk(columns=[column(b"\xff", same(4))])),
        bad("column mode of 2", "at most 1", lambda: chunk(columns=[column(b"a", same(4), 2)])),
        bad(
            "column values beyond 2^38",
            "magnitude 2\\^38",
            lambda: chunk(columns=[column(b"a", ints(0, 0, 0, 1 << 39))]),
        ),
        bad(
            "column sums beyond 2^38",
            "magnitude 2\\^38",
            lambda: chunk(columns=[column(b"a", ints(*[1 << 38] * 4), 1)]),
        ),
        bad("count that overflows", "at most 16777216", lambda: chunk(counts=[(1 << 63) - 1])),
        bad("more nonzeros than cells", "13 nonzeros cannot", lambda: chunk(counts=[13])),
        bad(
            "more nonzeros than the stream holds", "nonzeros cannot come from", lambda: chunk(1 << 20, counts=[1 << 20])
        ),
        Attack(
            "nonzeros of few bytes",
            "LimitError",
            "SAECODEC_LIMITS=expansion=",
            lambda: latents_file(tables(16, codes=CERTAIN), dense(1 << 20, 16), n_latents=16),
        ),
        bad("streams beyond the chunk", "at most", lambda: varints([4, 0, 1, 1 << 62, 0])),
        bad("gaps past the class", "past the end of a class", lambda: chunk(gaps=(12,))),
        bad("gap sums past the chunk", "past the end of the chunk", lambda: chunk(gaps=(7, 7), levels=(1, 1))),
        bad("gap sums that overflow", "past the end of the chunk", _overflowing, codes=_EVERY),
        bad("stream with a word left", "did not end", lambda: chunk(streams=[chunk()[4:8] + rest * 3, rest])),
        bad("stream without a word", "did not end", lambda: chunk(streams=[b"", rest])),
        bad("stream of no symbols", "did not end", lambda: chunk(gaps=(), levels=(), streams=[rest, b""])),
        bad(
            "quantile beyond the tables",
            "cannot decode this stream",
            lambda: chunk(streams=[word * 2, word * 2]),
            codes=_EVERY,
        ),
        bad("level beyond 2^20", "a level exceeds", lambda: chunk(levels=((1 << 20) + 1,), codes=_EVERY), codes=_EVERY),
        bad("bytes behind the chunk", "1 bytes left over", lambda: chunk() + b"\0"),
        bad("chunk of no bytes", "truncated", lambda: b""),
        Attack(
            "level that stands for no float",
            "FormatError",
            "stands for no float32",
            lambda: latents_file(tables(step=1e38), chunk(levels=(9,)), step=1e38),
        ),
        Attack(
            "pattern of no float16",
            "FormatError",
            "which no float16 has",
            lambda: latents_file(
                tables(codes=_EVERY),
                chunk(levels=(0x8000,), codes=_EVERY),
                dtype="float16",
                values={"kind": "float16", "base": 0},
            ),
        ),
        Attack(
            "base of no pattern",
            "FormatError",
            "'values' is",
            lambda: latents_file(tables(), chunk(), values={"kind": "float16", "base": 0x7FFF}),
        ),
        Attack(
            "latents with a row shape",
            "FormatError",
            "no row_shape",
            lambda: latents_file(tables(4), chunk(), n_latents=4, row_shape=[2, 2]),
        ),
        Attack(
            "rows that never end",
            "LimitError",
            "SAECODEC_LIMITS=array_bytes=",
            lambda: rows_file(tables(), 1024, *[("CHNK", empty(1 << 20))] * 17),
        ),
        Attack(
            "latents that are not the tables'",
            "FormatError",
            "tables of 3",
            lambda: latents_file(tables(), chunk(), n_latents=4),
        ),
    ]


_EVERY = (8,) * 304


def empty(n_rows: int) -> bytes:
    return chunk(n_rows, gaps=(), levels=())


def dense(n_rows: int, n_latents: int) -> bytes:
    """Every cell is nonzero: 16 million of them in 144 bytes."""
    n = n_rows * n_latents
    return chunk(n_rows, counts=[n], streams=[certain_stream(n)] * 2)


def _overflowing() -> bytes:
    return chunk(4, gaps=((1 << 40) - 1,) * 12, levels=(1,) * 12, codes=_EVERY)
