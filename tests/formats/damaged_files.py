"""Small files, and damage in their chunks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import saecodec
from saecodec.codec import Codec
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.encoding import encode_array
from saecodec.formats.saec import open_saec
from saecodec.frames import HEAD_BYTES, frame

Array = NDArray[Any]
N, WIDTH = 60, 8


def write(path: Path, rows: Array, codec: Codec, *, chunk_rows: int = 7, appended: bool = False) -> Path:
    """An array (2, 5, 6, 8) of the rows, in two generations if `appended`, in a file that holds all that it needs."""
    x = rows.reshape(2, 5, 6, WIDTH)
    encode_array(MemoryArray(x[:1] if appended else x), path, codec=codec, chunk_rows=chunk_rows, embed="decoder")
    if appended:
        with saecodec.create(path, sae=codec.sae, append=True) as store:
            store.append(x[1:])
    return path


def extents(path: Path) -> list[tuple[int, int, int, int]]:
    """First byte, byte behind the last (the residual's included), and rows of each chunk."""
    with open_saec(path) as file:
        first, out = file.index.first_row.tolist(), []
        for i, block in enumerate(file.chunk_blocks(range(len(file.index.rows)))):
            end = block.offset + block.length
            if block.residual:
                end += HEAD_BYTES + file.head(end).length
            out.append((block.offset, end, first[i], first[i + 1]))
    return out


def lost_mask(ranges: Iterable[tuple[int, int]]) -> Array:
    lost = np.zeros(N, bool)
    for start, stop in ranges:
        lost[start:stop] = True
    return lost


def break_chunk(path: Path, i: int) -> None:
    """Make chunk i one that does not decode although its checksum is right."""
    content = bytearray(path.read_bytes())
    start, _, *_ = extents(path)[i]
    with open_saec(path) as file:
        payload = bytearray(file.frame(start)[1])
    payload[len(payload) // 2 :] = bytes(b ^ 0x5A for b in payload[len(payload) // 2 :])
    content[start : start + HEAD_BYTES + len(payload)] = frame("CHNK", bytes(payload))
    path.write_bytes(content)


def flip(path: Path, *spots: int) -> None:
    """Change the bytes at some offsets."""
    content = bytearray(path.read_bytes())
    for spot in spots:
        content[spot] ^= 1
    path.write_bytes(content)
