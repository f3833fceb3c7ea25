"""Typed frames: what every saecodec byte string is made of after its magic.

A frame is a 20-byte head (type: 4 ASCII letters; flags: uint32, bit 0 = critical; length: uint64; CRC-32 of type,
flags, length and payload: uint32; all little-endian) and its payload. A reader skips ancillary frames it does not
know and refuses critical ones by name. Normative: docs/format.md, "Frames".
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from reprlib import Repr
from typing import Any, Final

import msgpack

from saecodec.errors import FormatError, InputError, LimitError, SaecodecError, UnsupportedError
from saecodec.limits import check_limit, limits

_HEAD: Final = struct.Struct("<4sIQ")
_CRC: Final = struct.Struct("<I")
HEAD_BYTES: Final = _HEAD.size + _CRC.size
CRITICAL: Final = 1

MAX_RECORD_BYTES: Final = 1 << 24
_MAX_DEPTH: Final = 16
_ALL: Final = 16  # times as many items may all arrays and maps of a record have as one of them

_shown = Repr()
_shown.maxstring = _shown.maxother = 100
_shown.maxlevel = 2
_MOST_SHOWN: Final = 200


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
    try:
        unpack_record(data, "metadata")
    except SaecodecError as error:
        raise InputError(f"metadata that no reader takes ({error})") from error
    return data


def unpack_record(data: bytes | memoryview, what: str) -> dict[str, Any]:
    """The map that `pack_record` packed; FormatError when it is anything else, LimitError when it holds more than a
    header need."""
    if len(data) > MAX_RECORD_BYTES:
        raise FormatError(f"{what}: a header of {len(data)} bytes (limit {MAX_RECORD_BYTES})")
    most = limits().record_items
    held = _Containers(most)
    try:
        record = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=len(data),
            max_bin_len=len(data),
            max_array_len=most,  # memory is taken on the word of a length
            max_map_len=most,
            max_ext_len=0,
            ext_hook=_no_extension,
            list_hook=held.array,
            object_pairs_hook=held.map,
        )
    except LimitError as error:
        raise LimitError(f"{what}: {error}") from error
    except Exception as error:  # of the unpacker, of UTF-8, of the hooks
        announced = re.match(r"(\d+) exceeds max_(array|map)_len", str(error))
        if announced and int(announced[1]) <= len(data):  # every item takes a byte
            check_limit("record_items", int(announced[1]), what)
        raise FormatError(f"{what}: a header is not valid msgpack ({error})") from error
    if not isinstance(record, dict):
        raise FormatError(f"{what}: a header is not a map with text keys")
    if _depth(record) > _MAX_DEPTH:
        raise FormatError(f"{what}: a header is nested more than {_MAX_DEPTH} deep")
    return record


class _Containers:
    """Sees every array and map of a record as it is completed: 16 MB could hold millions, at a hundred bytes of memory
    each."""

    def __init__(self, most: int) -> None:
        self._most, self._items = most, 0

    def array(self, items: list[Any]) -> list[Any]:
        self._items += 1 + len(items)
        check_limit("record_items", self._items // _ALL, "the header")
        return items

    def map(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        self.array(pairs)
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key appears twice")
        if not all(isinstance(key, str) for key in found):
            raise ValueError("a key is not text")
        return found


def _no_extension(code: int, data: bytes) -> None:
    raise ValueError(f"an extension type, {code}")


def _depth(value: Any) -> int:
    """How deep arrays and maps are nested."""
    level, depth = [value], 0
    while level:
        items = (item for held in level for item in (held.values() if isinstance(held, dict) else held))
        level, depth = [item for item in items if isinstance(item, (dict, list))], depth + 1
    return depth


def shown(value: Any) -> str:
    """A value of a record for an error: it may be megabytes."""
    text = _shown.repr(value)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


def field(record: dict[str, Any], key: str, kind: type | tuple[type, ...], what: str) -> Any:
    """record[key], which must be of `kind`; FormatError names the field."""
    value = record.get(key)
    wrong_bool = isinstance(value, bool) and kind is int
    if key not in record or wrong_bool or not isinstance(value, kind):
        raise FormatError(f"{what}: header field {key!r} is {shown(value)}, expected {kind}")
    return value
