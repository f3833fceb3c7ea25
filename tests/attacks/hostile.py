"""Pieces of hostile files: frames, records, tables, chunks and zstd frames, of which every one may lie.

Checksums, identities, the index and the trailer are made to fit what is written, so that a file breaks one rule.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch

from saecodec.codec import Codec
from saecodec.errors import SaecodecError
from saecodec.formats.codecfile import MAGIC as CODEC_MAGIC
from saecodec.formats.frame_file import MAGIC
from saecodec.formats.index import Index
from saecodec.frames import HEAD_BYTES, frame, frames
from saecodec.integers import pack_ints, zigzag
from saecodec.rangecoder import StreamEncoder
from saecodec.runs import encode_levels, encode_runs
from saecodec.sae import SAE
from saecodec.table_set import TableSet
from saecodec.value_code import NO_DECODER
from saecodec.wire import blob, varint, varints

GOLDEN = Path(__file__).parent.parent / "golden"
Frame = tuple[str, bytes]
Edit = Callable[[bytes], bytes]


def ints(*values: int) -> bytes:
    """An integer array."""
    return pack_ints(np.array(values, np.int64))


# -- files -------------------------------------------------------------------------------------------------------------


def golden(name: str) -> list[Frame]:
    """The frames of a golden file."""
    data = (GOLDEN / name).read_bytes()
    start = 0 if name.endswith(".frames") else len(MAGIC)
    return [(head.kind, bytes(payload)) for head, payload in frames(data[start:], name)]


def edited(parts: list[Frame], kind: str, edit: Edit, nth: int = 0) -> list[Frame]:
    """Frames of which one, the n-th of a kind, has another payload."""
    at = [i for i, part in enumerate(parts) if part[0] == kind][nth]
    return [*parts[:at], (kind, edit(parts[at][1])), *parts[at + 1 :]]


def saec(parts: Sequence[Frame], leading: Sequence[int] | None = None) -> bytes:
    """A `.saec` file of frames; index and trailer are made anew. leading: its leading dimensions, by default (T,)."""
    data, rows, offsets, lengths = MAGIC, [], [], []
    for kind, payload in parts:
        if kind in ("INDX", "TAIL"):
            continue
        if kind == "CHNK":
            rows.append(rows_of(payload))
            offsets.append(len(data))
            lengths.append(HEAD_BYTES + len(payload))
        data += frame(kind, payload, critical=kind not in ("RCHK", "note"))
    columns = (np.array(values, np.int64) for values in (rows, offsets, lengths))
    index = Index(tuple(leading if leading is not None else (sum(rows),)), *columns)
    return data + ending(len(data), index.to_bytes())


def ending(at: int, index: bytes) -> bytes:
    """The index that stands at an offset, and its trailer."""
    return frame("INDX", index) + frame("TAIL", struct.pack("<Q", at))


def with_index(parts: Sequence[Frame], edit: Callable[[Index], bytes]) -> bytes:
    """A file whose index is what `edit` makes of the right one."""
    whole = saec(parts)
    (at,) = struct.unpack("<Q", whole[-8:])
    payload = whole[at + HEAD_BYTES : -HEAD_BYTES - 8]
    return whole[:at] + ending(at, edit(Index.from_bytes(payload, at, "index")))


def codec_file(parts: Sequence[Frame]) -> bytes:
    """A codec file of frames."""
    return CODEC_MAGIC + b"".join(frame(kind, payload) for kind, payload in parts)


def rows_of(chunk: bytes) -> int:
    """Rows of a chunk, as far as they can be read."""
    from saecodec.wire import ByteReader

    try:
        return ByteReader(chunk, "chunk").varint(1 << 20)
    except SaecodecError:
        return 0


def record(**changes: Any) -> Edit:
    """A header with other fields."""
    return lambda data: msgpack.packb(msgpack.unpackb(data) | changes)


def prefixed(n: int, replacement: bytes) -> Edit:
    """A payload whose first n bytes are others."""
    return lambda data: replacement + data[n:]


# -- latents without an SAE --------------------------------------------------------------------------------------------


def table(n_members: int, codes: Sequence[int], resolution: int = 0, classes: bytes | None = None) -> bytes:
    """A table set of one class."""
    steps = zigzag(np.diff(np.array(codes, np.int64), prepend=0))
    held = classes if classes is not None else pack_ints(np.zeros(n_members, np.int64))
    return varints([1, len(codes), resolution]) + held + pack_ints(steps)


FLAT = (8,) * 40
CERTAIN = (20, 0)
"""A table whose first symbol costs nothing."""


def tables(
    n_latents: int = 3,
    signed: int = 0,
    groups: Sequence[int] = (1,),
    support: bytes | None = None,
    levels: bytes | None = None,
    step: float = 1.0,
    centroids: bytes | None = None,
    codes: Sequence[int] = FLAT,
    name: bytes = b"factorized",
) -> bytes:
    """The payload of `TABL`, of the factorized prior."""
    head = blob(name) + varints([n_latents, signed, len(groups), *groups])
    sets = [table(n_latents, codes) if part is None else part for part in (support, levels)]
    ending = ints(*[0] * 16) if centroids is None else centroids
    return head + b"".join(sets) + struct.pack("<d", step) + ending


def latents_file(tabl: bytes, *chunks: bytes, n_latents: int = 3, **changes: Any) -> bytes:
    """A file of latents with tables and chunks."""
    head = header(tabl, n_latents, n_latents) | {"requires": ["prior:factorized", "content:latents"]}
    head |= {"values": {"kind": "step", "base": 0}}
    return saec([("HEAD", msgpack.packb(head | changes)), ("TABL", tabl), *(("CHNK", chunk) for chunk in chunks)])


def rows_file(tabl: bytes, width: int, *chunks: Frame, n_latents: int = 3, layer: bytes | None = None) -> bytes:
    """A file of rows with tables, a decoder of zeros, chunks and perhaps a residual layer."""
    zero = SAE(torch.zeros(n_latents, width), torch.zeros(width), None, "standard")
    shapes = {"b_dec": [width], "w_dec": [n_latents, width]}
    head = header(tabl, n_latents, width, zero.decoder_id, layer) | {"embed": "decoder"}
    head |= {"requires": ["prior:factorized", *([] if layer is None else ["layer:residual"])]}
    tables = [("TABL", tabl), *([] if layer is None else [("RTAB", layer)])]
    packed = weights(shapes, zeros(4 * (n_latents + 1) * width))
    return saec([("HEAD", msgpack.packb(head)), *tables, ("SAEW", packed), *chunks])


def header(
    tabl: bytes, n_latents: int, width: int, decoder_id: str = NO_DECODER, layer: bytes | None = None
) -> dict[str, Any]:
    """The fields of a header, with the identities of what the file holds."""
    try:
        codec_id = bytes.fromhex(Codec.from_tables(tabl, decoder_id, {}, "tables", layer).codec_id)
    except SaecodecError:
        codec_id = bytes(32)
    return {
        "version": [1, 4],
        "width": width,
        "dtype": "float32",
        "chunk_rows": 4096,
        "embed": "tables",
        "decoder_id": bytes.fromhex(decoder_id),
        "codec_id": codec_id,
        "sae": {"name": "", "source": "", "architecture": "latents", "n_latents": n_latents},
        "step": 1.0,
        "prior": "factorized",
        "made_by": "attack",
    }


def chunk(
    n_rows: int = 4,
    columns: Sequence[bytes] = (),
    gaps: Sequence[int] = (0,),
    levels: Sequence[int] = (1,),
    counts: Sequence[int] | None = None,
    streams: Sequence[bytes] | None = None,
    codes: Sequence[int] = FLAT,
    head: bytes | None = None,
) -> bytes:
    """A chunk of one class of latents, under tables of `codes`."""
    streams = streams_of(gaps, levels, codes) if streams is None else streams
    start = varints([n_rows, len(columns)]) if head is None else head
    sizes = varints([len(gaps)] if counts is None else counts) + varints(len(stream) // 4 for stream in streams)
    return start + b"".join(columns) + sizes + b"".join(streams)


def streams_of(gaps: Sequence[int], levels: Sequence[int], codes: Sequence[int] = FLAT) -> list[bytes]:
    """The streams of the nonzeros of one class."""
    models, first = TableSet(np.zeros(1, np.int64), np.array([codes]), 0).models, np.array([0, len(gaps)])
    support = encode_runs(np.array(gaps, np.int64), first, [0, 1], models)
    return [*support, *encode_levels(np.array(levels, np.int32), first, [0, 1], models, False)]


def column(name: bytes, values: bytes, mode: int = 0) -> bytes:
    """A column of a chunk."""
    return blob(name) + varint(mode) + values


def same(n: int) -> bytes:
    """n zeros as an integer array: five bytes."""
    return varint(n) + b"\0\1\0" if n else varint(0)


def certain_stream(n: int) -> bytes:
    """n times the first symbol of `CERTAIN`."""
    stream = StreamEncoder()
    stream.put(np.zeros(n, np.int32), TableSet(np.zeros(1, np.int64), np.array([CERTAIN]), 0).models[0])
    return stream.finish()


# -- zstd --------------------------------------------------------------------------------------------------------------

_BLOCK = 1 << 17
_ZSTD = bytes.fromhex("28b52ffde0")  # magic, and that the size follows in eight bytes


def zeros(n: int, announced: int | None = None) -> bytes:
    """A zstd frame of n zeros, in four bytes for 128 KiB, that announces its size, or another one."""
    sizes = [min(_BLOCK, n - start) for start in range(0, n, _BLOCK)] or [0]
    blocks = (
        (int(i == len(sizes) - 1) | 1 << 1 | size << 3).to_bytes(3, "little") + b"\0" for i, size in enumerate(sizes)
    )
    return _ZSTD + struct.pack("<Q", n if announced is None else announced) + b"".join(blocks)


def stored(data: bytes) -> bytes:
    """A zstd frame of one block that is not compressed."""
    return _ZSTD + struct.pack("<Q", len(data)) + (1 | len(data) << 3).to_bytes(3, "little") + data


def weights(shapes: dict[str, list[int]], packed: bytes, **config: Any) -> bytes:
    """The payload of `SAEW`."""
    head = {"name": "w", "source": "", "config": {"architecture": "standard"} | config, "shapes": shapes}
    return blob(msgpack.packb(head)) + packed
