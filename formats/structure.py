"""What the frames of a whole `.saec` file must be to each other: their order, and indices that list the chunks."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final

import numpy as np

from saecodec.codes import MAX_CHUNK_ROWS
from saecodec.errors import FormatError
from saecodec.formats.frame_file import TRAILER
from saecodec.formats.index import Index
from saecodec.formats.saec import SaecFile
from saecodec.frames import HEAD_BYTES, FrameHead
from saecodec.latents import column_names
from saecodec.wire import ByteReader

PREAMBLE: Final = ("HEAD", "TABL", "SIDE", "RTAB", "SAEW")
Chunk = tuple[int, int, int]
"""Rows, offset and length of a chunk's frame, as an index has them."""


def checked_frames(file: SaecFile) -> Iterator[tuple[int, FrameHead, bytes]]:
    """Offset, head and payload of every frame; FormatError at the first one that is damaged or out of place.

    Each index must list the chunks before it, and be followed by its trailer before the next chunk: so the bytes up to
    any trailer are a file.
    """
    chunks = array("q")  # rows, offset and length of each
    before, indexed = "", -1  # kind of the frame before; offset of the index whose trailer is still to come
    for offset, head, payload in file.frames():
        what, kind = f"{file.path}, offset {offset}", head.kind
        if (file.header.residual and before == "CHNK") != (kind == "RCHK"):
            raise FormatError(
                f"{what}: a {kind} frame behind a {before} frame: where there is a residual "
                "layer every chunk, and nothing else, is followed by its residual, RCHK"
            )
        if kind == "CHNK":
            chunks.extend((chunk_rows(payload, what), offset, HEAD_BYTES + head.length))
        elif kind in PREAMBLE and (chunks or indexed >= 0):
            raise FormatError(f"{what}: a {kind} frame stands behind the first chunk")
        if kind == "TAIL":
            if indexed < 0 or payload != TRAILER.pack(indexed):
                raise FormatError(f"{what}: a trailer that does not point to the index before it")
            indexed = -1
        elif indexed >= 0 and kind in ("CHNK", "INDX"):
            raise FormatError(f"{what}: a {kind} frame stands between an index and its trailer")
        elif kind == "INDX":
            _check_index(Index.from_bytes(payload, offset, f"{what}, index"), chunks, file.path)
            indexed = offset
        before = kind
        yield offset, head, payload
    if before != "TAIL":
        raise FormatError(f"{file.path}: the last frame is {before}, expected TAIL")
    _check_index(file.index, chunks, file.path)


def chunk_rows(payload: bytes | memoryview, what: str) -> int:
    """Rows of a chunk, by its first bytes."""
    return ByteReader(payload, what).varint(MAX_CHUNK_ROWS)


def columns_of(file: SaecFile) -> tuple[str, ...] | None:
    """Names of the columns beside the rows, which all chunks share; None when there is no chunk."""
    if not len(file.index.rows):
        return None
    offset, _, payload = next(file.frames(start=int(file.index.offsets[0])))
    return column_names(payload, f"{file.path}, offset {offset}")


def listed(index: Index) -> list[Chunk]:
    """The chunks of an index."""
    return list(zip(index.rows.tolist(), index.offsets.tolist(), index.lengths.tolist(), strict=True))


def _check_index(index: Index, chunks: array[int], path: str) -> None:
    found = np.stack((index.rows, index.offsets, index.lengths), axis=1)
    there = np.frombuffer(chunks, np.int64).reshape(-1, 3)
    n = min(len(found), len(there))
    if not np.array_equal(found, there):
        differs = np.flatnonzero((found[:n] != there[:n]).any(axis=1))
        wrong = int(differs[0]) if len(differs) else n
        raise FormatError(
            f"{path}: the index lists {len(found)} chunks, the file has {len(there)}; chunk {wrong} differs"
        )
