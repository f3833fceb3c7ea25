"""What the bytes of a `.saec` file are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from saecodec.frames import HEAD_BYTES

if TYPE_CHECKING:
    from saecodec.formats.saec import SaecFile
    from saecodec.latents import ChunkBytes


@dataclass(frozen=True)
class ChunkSizes:
    """Bytes of a chunk. parts: of its codes, which add up to `codes`. residual: of the residual levels. frames: of both
    with the heads of their frames."""

    parts: ChunkBytes
    codes: int
    residual: int
    frames: int


def bytes_by_part(file: SaecFile) -> dict[str, int]:
    """Bytes of the file by what they are for; they add up to its size.

    support, levels, side, columns, residual: of the chunks. tables: the embedded codec. decoder: embedded weights.
    headers: header, frame heads, chunk heads, index, trailer, magic, and frames this version does not know.
    """
    from saecodec.side import side_columns

    names = ("support", "levels", "side", "columns", "residual", "tables", "decoder", "headers")
    parts = dict.fromkeys(names, 0)
    named = {"TABL": "tables", "SIDE": "tables", "RTAB": "tables", "SAEW": "decoder", "RCHK": "residual"}
    side = side_columns(file.codec.side.kind) if file.codec.side is not None else ()
    for offset, head, payload in file.frames():
        if head.kind in named:
            parts[named[head.kind]] += head.length
        elif head.kind == "CHNK":
            split = file.codec.latents.chunk_bytes(payload, f"{file.path}, offset {offset}")
            parts["support"] += split.support
            parts["levels"] += split.levels
            for name, n_bytes in split.columns.items():
                parts["side" if name in side else "columns"] += n_bytes
    parts["headers"] = file.size - sum(parts.values())
    return parts


def chunk_sizes(file: SaecFile, i: int) -> ChunkSizes:
    """Bytes of chunk i by what they are for."""
    _, payload = file.frame(int(file.index.offsets[i]))
    parts = file.codec.latents.chunk_bytes(payload, file.chunk_name(i))
    if file.codec.residual is None:
        return ChunkSizes(parts, len(payload), 0, HEAD_BYTES + len(payload))
    behind = residual_bytes(file, i)
    return ChunkSizes(parts, len(payload), behind - HEAD_BYTES, HEAD_BYTES + len(payload) + behind)


def residual_bytes(file: SaecFile, i: int) -> int:
    """Size of the residual frame behind chunk i, by its head alone."""
    return HEAD_BYTES + file.head(int(file.index.offsets[i] + file.index.lengths[i])).length
