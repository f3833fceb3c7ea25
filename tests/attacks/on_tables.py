"""Tables, and the integer arrays that they consist of."""

from __future__ import annotations

from attack import INFINITY, Attack
from hostile import (
    FLAT,
    chunk,
    ints,
    latents_file,
    same,
    table,
    tables,
)

from saecodec.wire import blob, varint, varints


def on_tables() -> list[Attack]:
    def tabl(name: str, match: str, data: bytes, error: str = "FormatError") -> Attack:
        return Attack(name, error, match, lambda: latents_file(data, chunk()))

    def support(name: str, match: str, data: bytes) -> Attack:
        return tabl(name, match, tables(support=data))

    classes = ints(0, 0, 0)
    codes = ints(*[0] * 4)
    return [
        tabl("prior of nothing known", "unknown prior 'magic'", tables(name=b"magic"), "UnsupportedError"),
        tabl("no latents", "groups .* do not divide|expected", tables(0)),
        tabl(
            "latents beyond 2^24",
            "at most 16777216",
            tables(3).replace(b"\x03\0\1\1", varint((1 << 24) + 1) + b"\0\1\1", 1),
        ),
        Attack(
            "latents beyond the limit",
            "LimitError",
            "SAECODEC_LIMITS=latents=16777216",
            lambda: latents_file(wide(1 << 24), width=3),
        ),
        tabl("groups that do not sum", "do not divide", tables(groups=(2,))),
        tabl("group of no class", "do not divide", tables(groups=(1, 0))),
        tabl("groups beyond 2^10", "at most 1024", blob(b"factorized") + varints([3, 0, 1025])),
        tabl("groups beyond the bytes", "1024 varints announced", blob(b"factorized") + varints([3, 0, 1024])),
        support("alphabet of no symbol", "1 tables of 0 symbols", varints([1, 0, 0]) + classes + ints()),
        support("alphabet of one symbol", "1 tables of 1 symbols", varints([1, 1, 0]) + classes + ints(0)),
        support("alphabet beyond 304", "at most 304", varints([1, 305, 0])),
        support("resolution beyond 3", "at most 3", varints([1, 4, 4])),
        support("classes beyond 2^10", "at most 1024", varints([1025, 4, 0])),
        support("class beyond the tables", "values below 1", varints([1, 4, 0]) + ints(0, 1, 0) + codes),
        tabl(
            "class without a latent",
            "the last support class has no latent",
            tables(groups=(2,), support=varints([2, 2, 0]) + classes + codes),
        ),
        support(
            "frequency code beyond its resolution",
            "a frequency code lies outside",
            varints([1, 4, 0]) + classes + ints(42, 0, 0, 0),
        ),
        support(
            "frequency code below zero",
            "a frequency code lies outside",
            varints([1, 4, 0]) + classes + ints(1, 0, 0, 0),
        ),
        support(
            "integer array of another length",
            "an array of 3 integers was expected, found 2",
            varints([1, 4, 0]) + ints(0, 0),
        ),
        support("integer array of no symbols", "without symbols", varints([1, 4, 0]) + varints([3, 0, 0])),
        support("integer array beyond bucket 303", "at most 4", varints([1, 4, 0]) + varints([3, 300, 5])),
        support(
            "table that does not begin at a symbol",
            "does not begin and end at a symbol",
            varints([1, 4, 0]) + varints([3, 0, 2]) + b"\xf0",
        ),
        support("varint not in its shortest form", "not in its shortest form", b"\x81\0"),
        support("varint of ten bytes", "longer than 9 bytes", b"\x81" * 9 + b"\1"),
        tabl("step of the tables that is infinite", "the step is inf", tables(step=INFINITY)),
        tabl("centroid beyond a step", "values below 256", tables(centroids=ints(256, *[0] * 15))),
        tabl("bytes behind the tables", "1 bytes left over", tables() + b"\0"),
        tabl("stream of half a word", "whole 32-bit words", tables(centroids=b"\x10\x00\x02\x11\x03abc")),
    ]


def wide(n: int) -> bytes:
    """Tables of so many latents, all of one class: a few bytes."""
    return tables(n, support=table(n, FLAT, classes=same(n)), levels=table(n, FLAT, classes=same(n)))
