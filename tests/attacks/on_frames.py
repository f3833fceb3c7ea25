"""Frames and the index: what holds a file together."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
from attack import BARE, RESIDUAL, TABLES, WHOLE, Attack
from hostile import ending, saec, with_index

from saecodec.formats.frame_file import MAGIC
from saecodec.formats.index import Index
from saecodec.frames import frame
from saecodec.integers import pack_ints
from saecodec.wire import varint, varints


def on_frames() -> list[Attack]:
    head, tabl, *rest = TABLES
    first = frame(*head)

    def preamble(name: str, error: str, match: str, replacement: bytes) -> Attack:
        return Attack(name, error, match, lambda: MAGIC + replacement + WHOLE[len(MAGIC) + len(first) :])

    note = frame("CHNK", rest[0][1])
    return [
        Attack("another magic", "FormatError", "not a .saec file", lambda: b"\x89PNG\r\n\x1a\n" + WHOLE[8:]),
        Attack("nothing but the magic", "FormatError", "truncated", lambda: MAGIC),
        preamble(
            "frame type of no letters", "FormatError", "not a frame: type b'HE4D'", first.replace(b"HEAD", b"HE4D")
        ),
        preamble("frame flags beyond 1", "FormatError", "flags 0x3", first[:4] + b"\3" + first[5:]),
        preamble(
            "frame length beyond the file",
            "FormatError",
            "frame HEAD has 9223372036854775807 bytes",
            first[:8] + struct.pack("<Q", (1 << 63) - 1) + first[16:],
        ),
        preamble("checksum mismatch", "FormatError", "frame HEAD is corrupted", first[:-1] + b"\0"),
        Attack(
            "unknown critical frame",
            "UnsupportedError",
            "'ZZZZ' is needed",
            lambda: saec([head, ("ZZZZ", b""), tabl, *rest]),
        ),
        Attack(
            "tables twice",
            "FormatError",
            r"embed 'tables', but frames \['TABL', 'TABL'\]",
            lambda: saec([head, tabl, tabl, *rest]),
        ),
        preamble("header missing", "FormatError", "the first frame is TABL, expected HEAD", b""),
        Attack("trailer missing", "FormatError", "no valid trailer at its end", lambda: WHOLE[:-28]),
        Attack("bytes behind the trailer", "FormatError", "no valid trailer at its end", lambda: WHOLE + b"\0"),
        Attack(
            "trailer beyond the file",
            "FormatError",
            "points to offset 18446744073709551615, outside",
            lambda: WHOLE[:-28] + frame("TAIL", b"\xff" * 8),
        ),
        Attack(
            "trailer to a chunk",
            "FormatError",
            "points to a HEAD frame, expected INDX",
            lambda: WHOLE[:-28] + frame("TAIL", struct.pack("<Q", 8)),
        ),
        Attack(
            "overlapping frames",
            "FormatError",
            "the index lists 1 chunks, the file has 0",
            lambda: _overlapping(MAGIC + first + frame(*tabl), note, len(rest[0][1])),
        ),
        Attack(
            "chunk behind its index",
            "FormatError",
            "stands between an index and its trailer",
            lambda: WHOLE[:-28] + note + WHOLE[-28:],
        ),
        Attack(
            "residual missing",
            "FormatError",
            "a INDX frame behind a CHNK frame",
            lambda: saec(RESIDUAL[:4]),
        ),
        Attack("heads that claim the rest", "FormatError", "too damaged, or made to look so", _claims, ".torn"),
        Attack(
            "residual where there is none",
            "FormatError",
            "a RCHK frame behind",
            lambda: saec([*TABLES[:3], ("RCHK", b"")]),
        ),
    ]


def _claims() -> bytes:
    """Heads of chunks of which each claims all that follows."""
    n = 400
    heads = (struct.pack("<4sIQI", b"CHNK", 1, 20 * (n - 1 - i), 0) for i in range(n))
    return MAGIC + frame(*BARE[0]) + frame(*BARE[1]) + b"".join(heads)


def _overlapping(start: bytes, note: bytes, n: int) -> bytes:
    """A chunk inside the payload of another frame."""
    data = start + frame("note", note, critical=False)
    at = len(data) - len(note)
    index = Index((100,), *(np.array([value]) for value in (100, at, 20 + n)))
    return data + ending(len(data), index.to_bytes())


def on_index() -> list[Attack]:
    def index(name: str, match: str, edit: Callable[[Index], bytes]) -> Attack:
        return Attack(name, "FormatError", match, lambda: with_index(TABLES, edit))

    def of(leading: tuple[int, ...], rows: bytes, lengths: bytes, distances: bytes, n: int = 3) -> bytes:
        return varints([len(leading), *leading, n]) + rows + lengths + distances

    def changed(i: Index, **values: list[int]) -> bytes:
        held = {"rows": i.rows, "lengths": i.lengths, "offsets": i.offsets}
        held |= {name: np.array(value, np.int64) for name, value in values.items()}
        return Index((int(held["rows"].sum()),), held["rows"], held["offsets"], held["lengths"]).to_bytes()

    none = varint(0) * 3
    return [
        index(
            "index lies about rows",
            "the index lists 3 chunks, the file has 3; chunk 0 differs",
            lambda i: changed(i, rows=[50, 150, 100]),
        ),
        index(
            "index lies about lengths",
            "the index lists 3 chunks, the file has 3; chunk 0 differs",
            lambda i: changed(i, lengths=[296, 297, 333]),
        ),
        index("index of more chunks than the file holds", "at most", lambda i: of((300,), none, b"", b"", n=1 << 40)),
        index("index out of the file", "points outside the file", lambda i: changed(i, lengths=[297, 297, 1 << 39])),
        index(
            "index of frames without a head", "points outside the file", lambda i: changed(i, lengths=[297, 297, 19])
        ),
        index("chunk rows beyond 2^20", "values below 1048577", lambda i: changed(i, rows=[100, 100, (1 << 20) + 1])),
        index("shape that is not the rows", "contradict each other", lambda i: of((299,), *_columns(i))),
        index(
            "leading dimensions that overflow",
            "contradict each other",
            lambda i: of((1 << 24, 1 << 24, 0), none[:1], none[:1], none[:1], n=0),
        ),
        index("64 leading dimensions", "at most 63", lambda i: of((1,) * 64, *_columns(i))),
        index("bytes behind the index", "1 bytes left over", lambda i: i.to_bytes() + b"\0"),
    ]


def _columns(index: Index) -> list[bytes]:
    distances = index.offsets - np.concatenate([[0], (index.offsets + index.lengths)[:-1]])
    return [pack_ints(values) for values in (index.rows, index.lengths, distances)]
