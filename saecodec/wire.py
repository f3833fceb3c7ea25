"""Bounded reading and writing of the byte strings inside a frame: varints, blobs and small text.

Every read checks the bytes that are left before anything is allocated, so a count that lies costs an error and no
memory. Varints are unsigned LEB128 of at most 9 bytes (63 bits), in their shortest form.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from saecodec.errors import FormatError

_MAX_VARINT_BYTES = 9
_SHORT = 4  # bytes of a varint that is read together with others
_MANY = 16  # for which that is faster


def varint(value: int) -> bytes:
    """`value` (0 <= value < 2^63) as LEB128.

    >>> varint(300).hex()
    'ac02'
    """
    if not 0 <= value < 1 << 63:
        raise ValueError(f"a varint holds 0 <= value < 2^63, got {value}")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def varints(values: Iterable[int]) -> bytes:
    """The varints of `values`, one after the other."""
    return b"".join(varint(int(value)) for value in values)


def blob(data: bytes) -> bytes:
    """`data` preceded by its length as a varint."""
    return varint(len(data)) + data


class ByteReader:
    """Reads what this module writes; `what` names the input in errors."""

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self.what = what

    @property
    def size(self) -> int:
        """Bytes of the whole string."""
        return len(self._data)

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self._data) - self._at

    def take(self, n: int) -> memoryview:
        """The next `n` bytes."""
        if n > self.left:
            raise FormatError(f"{self.what}: truncated: {n} bytes needed at offset {self._at}, {self.left} left")
        out = self._data[self._at : self._at + n]
        self._at += n
        return out

    def varint(self, limit: int = (1 << 63) - 1) -> int:
        """The next varint; FormatError when it exceeds `limit` or is not in its shortest form."""
        value, start = 0, self._at
        for i, byte in enumerate(self._data[start : start + _MAX_VARINT_BYTES]):
            value |= (byte & 0x7F) << (7 * i)
            if byte < 0x80:
                self._at = start + i + 1
                if byte == 0 and i > 0:
                    raise FormatError(f"{self.what}: a varint at offset {start} is not in its shortest form")
                if value > limit:
                    raise FormatError(f"{self.what}: found {value} where at most {limit} is possible")
                return value
        if self.left < _MAX_VARINT_BYTES:
            self._at = len(self._data)
            self.take(1)
        raise FormatError(f"{self.what}: a varint is longer than {_MAX_VARINT_BYTES} bytes")

    def varints(self, count: int, limit: int = (1 << 63) - 1) -> list[int]:
        """The next `count` varints, each at most `limit`."""
        if count > self.left:  # every varint takes a byte
            raise FormatError(f"{self.what}: truncated: {count} varints announced, {self.left} bytes left")
        return self._short_varints(count, limit) or [self.varint(limit) for _ in range(count)]

    def _short_varints(self, count: int, limit: int) -> list[int]:
        """The next varints where there are many, all of them short and valid: a tenth of the time. Else none."""
        if count < _MANY:
            return []
        window = np.frombuffer(self._data[self._at : self._at + _SHORT * count], np.uint8)
        ends = np.flatnonzero(window < 0x80)[:count]
        if len(ends) < count:
            return []
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
        more = ends - starts
        if more.max() >= _SHORT or (more[window[ends] == 0] > 0).any():
            return []
        values = (window[starts] & 0x7F).astype(np.int64)
        for i in range(1, int(more.max()) + 1):
            long = np.flatnonzero(more >= i)
            values[long] |= (window[starts[long] + i] & 0x7F).astype(np.int64) << (7 * i)
        if values.max() > limit:
            return []
        self._at += int(ends[-1]) + 1
        return list(values.tolist())

    def blob(self) -> memoryview:
        """The next length-prefixed byte string."""
        return self.take(self.varint(self.left))

    def end(self) -> None:
        """FormatError unless everything was read."""
        if self.left:
            raise FormatError(f"{self.what}: {self.left} bytes left over at the end")
