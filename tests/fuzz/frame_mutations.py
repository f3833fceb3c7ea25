"""Mutations of frames: `.saec` and codec files, and chunks in memory.

What is changed gets the checksum that it should have, and mostly the index, the trailer and the identities that go
with it: without these no change reaches more than the outermost layer of a reader.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import zstandard
from integer_mutations import with_other_integers
from value_mutations import mutated_value

from saecodec.codec import Codec
from saecodec.formats.codecfile import MAGIC as CODEC_MAGIC
from saecodec.formats.frame_file import MAGIC
from saecodec.formats.index import Index
from saecodec.formats.structure import chunk_rows
from saecodec.formats.weights import unpack_weights
from saecodec.frames import HEAD_BYTES, FrameHead, frame
from saecodec.wire import ByteReader, blob

Frame = tuple[str, bool, bytes]
"""Type, whether it is critical, and payload."""
Bytes = Callable[[bytes, random.Random], bytes]

_RECORDS = ("HEAD", "CHED")
_IDENTIFIED = ("TABL", "SIDE", "RTAB", "SAEW")
_KINDS = ("HEAD", "CHED", "TABL", "SIDE", "RTAB", "SAEW", "CHNK", "RCHK", "INDX", "TAIL", "ROWS", "XtRa")


def taken_apart(data: bytes) -> tuple[bytes, list[Frame]] | None:
    """The magic, if there is one, and the frames, whatever their checksums; None where the bytes are no frames."""
    magic = data[:8] if data[:8] in (MAGIC, CODEC_MAGIC) else b""
    at, found = len(magic), []
    while at < len(data):
        try:
            head = FrameHead.parse(data[at : at + HEAD_BYTES], len(data) - at - HEAD_BYTES, "")
        except Exception:
            break
        found.append((head.kind, head.critical, data[at + HEAD_BYTES : at + HEAD_BYTES + head.length]))
        at += HEAD_BYTES + head.length
    return (magic, found) if found else None


def joined(magic: bytes, parts: list[Frame]) -> bytes:
    """The inverse, with checksums that are right."""
    return magic + b"".join(frame(kind, payload, critical=critical) for kind, critical, payload in parts)


def mutated_frames(data: bytes, rng: random.Random, change: Bytes) -> bytes | None:
    """Frames with one of them changed; None where `data` is none."""
    apart = taken_apart(data)
    if apart is None:
        return None
    magic, parts = apart
    i = rng.randrange(len(parts))
    kind, critical, payload = parts[i]
    what = rng.random()
    if what < 0.75:
        parts[i] = (kind, critical, _payload(kind, payload, rng, change))
    elif what < 0.8:
        del parts[i]
    elif what < 0.85:
        parts.insert(rng.randint(0, len(parts)), parts[i])
    elif what < 0.9:
        parts[i] = (rng.choice(_KINDS), critical, payload)
    elif what < 0.93:
        parts[i] = (kind, not critical, payload)
    elif what < 0.97:
        j = rng.randrange(len(parts))
        parts[i], parts[j] = parts[j], parts[i]
    else:
        parts.insert(i, (rng.choice(_KINDS), rng.random() < 0.5, rng.randbytes(rng.randrange(40))))
    if kind in _IDENTIFIED and rng.random() < 0.8:
        parts = _with_identities(parts)
    if magic == MAGIC and rng.random() < 0.8:
        parts = with_index(magic, parts, anew=kind != "INDX" and rng.random() < 0.8)
    out = joined(magic, parts)
    return change(out, rng) if rng.random() < 0.02 else out


def with_index(magic: bytes, parts: list[Frame], *, anew: bool = True) -> list[Frame]:
    """The frames with trailers that point to the index before them; anew: with indices of the chunks before them."""
    out, at, index_at = [], len(magic), 0
    chunks: list[tuple[int, int, int]] = []
    for kind, critical, payload in parts:
        if kind == "CHNK":
            try:
                chunks.append((chunk_rows(payload, ""), at, HEAD_BYTES + len(payload)))
            except Exception:
                chunks.append((0, at, HEAD_BYTES + len(payload)))
        elif kind == "INDX":
            index_at = at
            if anew:
                columns = (np.array([chunk[j] for chunk in chunks], np.int64) for j in range(3))
                payload = Index((sum(rows for rows, _, _ in chunks),), *columns).to_bytes()
        elif kind == "TAIL":
            payload = struct.pack("<Q", index_at)
        out.append((kind, critical, payload))
        at += HEAD_BYTES + len(payload)
    return out


def _payload(kind: str, payload: bytes, rng: random.Random, change: Bytes) -> bytes:
    try:
        if kind in _RECORDS and rng.random() < 0.9:
            return bytes(msgpack.packb(mutated_value(msgpack.unpackb(payload), rng), use_bin_type=True))
        if kind == "SAEW" and rng.random() < 0.9:
            return _weights(payload, rng, change)
    except Exception:  # was damaged before, or a value that MessagePack has not
        pass
    other = with_other_integers(payload, rng) if rng.random() < 0.6 else None
    return change(payload, rng) if other is None else other


def _weights(payload: bytes, rng: random.Random, change: Bytes) -> bytes:
    """The record of a weights frame, or the values behind it, changed; a plain zstd frame is packed again."""
    reader = ByteReader(payload, "")
    record = bytes(reader.blob())
    rest = bytes(reader.take(reader.left))
    if rng.random() < 0.6:
        return blob(bytes(msgpack.packb(mutated_value(msgpack.unpackb(record), rng), use_bin_type=True))) + rest
    if rng.random() < 0.5 and rest.startswith(zstandard.FRAME_HEADER):
        values = zstandard.ZstdDecompressor().decompress(rest, max_output_size=1 << 20)
        return blob(record) + zstandard.ZstdCompressor().compress(change(values, rng))
    return blob(record) + change(rest, rng)


def _with_identities(parts: list[Frame]) -> list[Frame]:
    """The frames with the identities of tables and weights in the header, as far as these can be read."""
    held = {kind: payload for kind, _, payload in parts}
    try:
        at = next(i for i, part in enumerate(parts) if part[0] in _RECORDS)
        kind, critical, payload = parts[at]
        record: dict[str, Any] = msgpack.unpackb(payload)
        codec = Codec.from_tables(held["TABL"], record["decoder_id"].hex(), {}, "", held.get("RTAB"), held.get("SIDE"))
        if "SAEW" in held:
            n_latents, precision = codec.latents.prior.n_latents, record.get("weights", "float32")
            sae = unpack_weights(held["SAEW"], "", n_latents=n_latents, precision=precision)
            codec = replace(codec, decoder_id=sae.decoder_id)
        record |= {"decoder_id": bytes.fromhex(codec.decoder_id), "codec_id": bytes.fromhex(codec.codec_id)}
        record["step"] = codec.quantizer.step
        parts[at] = (kind, critical, bytes(msgpack.packb(record, use_bin_type=True)))
    except BaseException as error:  # of a panic too: it is the target's to find
        if isinstance(error, KeyboardInterrupt):
            raise
    return parts
