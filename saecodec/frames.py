"""Typed frames: what every saecodec byte string is made of after its magic.

A frame is a 20-byte head (type: 4 ASCII letters; flags: uint32, bit 0 = critical; length: uint64; CRC-32 of type,
flags, length and payload: uint32; all little-endian) and its payload. A reader skips ancillary frames it does not
know and refuses critical ones by name. Normative: docs/format.md, "Frames".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from saecodec.errors import FormatError, InputError, UnsupportedError

_HEAD: Final = struct.Struct("<4sIQ")
_CRC: Final = struct.Struct("<I")
HEAD_BYTES: Final = _HEAD.size + _CRC.size
CRITICAL: Final = 1

MAX_RECORD_BYTES: Final = 1 << 24


@dataclass(frozen=True)
class FrameHead:
    """Type, criticality and payload length of a frame, and the CRC-32 its content must have."""

    kind: str
    critical: bool
    length: int
    crc: int

    @classmethod
    def parse(cls, head: bytes | memoryview, left: int, what: str) -> FrameHead:
        """Parse a head. `left`: bytes that follow it, which its length may not exceed."""
        if len(head) < HEAD_BYTES:
            raise FormatError(f"{what}: truncated: a frame head takes {HEAD_BYTES} bytes, {len(head)} are left")
        kind, flags, length = _HEAD.unpack_from(head)
        (crc,) = _CRC.unpack_from(head, _HEAD.size)
        if not (kind.isalpha() and kind.isascii()) or flags > CRITICAL:
            raise FormatError(f"{what}: not a frame: type {bytes(kind)!r}, flags {flags:#x}")
        if length > left:
            raise FormatError(f"{what}: truncated: frame {kind.decode()} has {length} bytes, {left} are left")
        return cls(kind.decode(), bool(flags), length, crc)

    def check(self, payload: bytes | memoryview, what: str) -> None:
        """FormatError unless the payload has the head's CRC-32."""
        if not self.fits([payload]):
            raise FormatError(f"{what}: frame {self.kind} is corrupted (CRC-32 mismatch)")

    def fits(self, pieces: Iterable[bytes | memoryview]) -> bool:
        """Whether a payload, which comes in pieces, has the head's CRC-32."""
        crc = zlib.crc32(_HEAD.pack(self.kind.encode(), int(self.critical), self.length))
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
        return crc == self.crc

    def unknown(self, what: str) -> None:
        """What a reader does with a frame whose type it does not know: nothing, or UnsupportedError when critical."""
        if self.critical:
            raise UnsupportedError(
                f"{what}: frame {self.kind!r} is needed to read it, and unknown to this version: update saecodec"
            )


def frame(kind: str, payload: bytes, *, critical: bool = True) -> bytes:
    """A frame of type `kind` (4 ASCII letters)."""
    head = _HEAD.pack(kind.encode("ascii"), CRITICAL if critical else 0, len(payload))
    return head + _CRC.pack(_crc(head, payload)) + payload


def frames(data: bytes | memoryview, what: str) -> Iterator[tuple[FrameHead, memoryview]]:
    """The frames of `data`, checked, in order. `what` names the input in errors."""
    view = memoryview(data)
    while view:
        head = FrameHead.parse(view[:HEAD_BYTES], len(view) - HEAD_BYTES, what)
        payload = view[HEAD_BYTES : HEAD_BYTES + head.length]
        head.check(payload, what)
        yield head, payload
        view = view[HEAD_BYTES + head.length :]


def known_frames(data: bytes | memoryview, kinds: tuple[str, ...], what: str) -> Iterator[tuple[str, memoryview]]:
    """Types and payloads of the frames of `kinds` in `data`; of the others, critical ones are refused by name."""
    for head, payload in frames(data, what):
        if head.kind in kinds:
            yield head.kind, payload
        else:
            head.unknown(what)


def _crc(head: bytes, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(head))


def pack_record(record: dict[str, Any]) -> bytes:
    """A msgpack map with text keys; "?" stands for what UTF-8 cannot hold, as surrogates in the name of a folder.
    InputError when it is too large to be read again."""
    data = bytes(msgpack.packb(record, use_bin_type=True, unicode_errors="replace"))
    if len(data) > MAX_RECORD_BYTES:
        raise InputError(f"metadata of {len(data)} bytes does not fit a header (limit {MAX_RECORD_BYTES})")
    return data


def unpack_record(data: bytes | memoryview, what: str) -> dict[str, Any]:
    """The map that `pack_record` packed; FormatError when it is anything else."""
    if len(data) > MAX_RECORD_BYTES:
        raise FormatError(f"{what}: a header of {len(data)} bytes (limit {MAX_RECORD_BYTES})")
    try:
        record = msgpack.unpackb(data, raw=False, strict_map_key=True)
    except Exception as error:
        raise FormatError(f"{what}: a header is not valid msgpack ({error})") from error
    if not isinstance(record, dict) or not all(isinstance(key, str) for key in record):
        raise FormatError(f"{what}: a header is not a map with text keys")
    return record


def field(record: dict[str, Any], key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """record[key], which must be of `kind`; FormatError names the field."""
    value = record.get(key)
    wrong_bool = isinstance(value, bool) and kind is int
    if key not in record or wrong_bool or not isinstance(value, kind):
        raise FormatError(f"{what}: header field {key!r} is {value!r}, expected {kind}")
    return value
