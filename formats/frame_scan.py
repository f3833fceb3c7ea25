"""The frames of a file that may be torn or damaged anywhere: those that are whole, found again behind what is not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import BinaryIO, Final

from saecodec.errors import FormatError, InputError
from saecodec.frames import HEAD_BYTES, FrameHead

_PIECE: Final = 1 << 20
_STARTS: Final = re.compile(rb"CHNK|INDX|TAIL")  # what can stand behind damage and be of use
_START_BYTES: Final = 4
_PASSES: Final = 64  # over the file, of checksums that are wrong: thousands of heads could each claim the rest of it


class FrameScan:
    """Reads `file`, which is `name` in messages, in pieces of a megabyte: no frame has to fit in memory."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._descriptor, self.name = file.fileno(), name
        self.size = os.fstat(self._descriptor).st_size
        self._in_vain = 0  # bytes whose checksum was wrong

    def read(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), as many as there are. InputError when the disk cannot read them."""
        try:
            return os.pread(self._descriptor, max(min(stop, self.size) - start, 0), start)
        except OSError as error:
            raise InputError(
                f"{self.name}: cannot be read at offset {start} ({error.strerror}): copy it first with what "
                "passes over that (ddrescue, dd conv=noerror,sync)"
            ) from error

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes [start, stop) in pieces."""
        for at in range(start, stop, _PIECE):
            yield self.read(at, min(at + _PIECE, stop))

    def head(self, offset: int) -> FrameHead | None:
        """The head of a frame at an offset, which may have a wrong checksum; None when there is none."""
        try:
            data = self.read(offset, offset + HEAD_BYTES)
            return FrameHead.parse(data, self.size - offset - HEAD_BYTES, self.name)
        except FormatError:
            return None

    def whole(self, offset: int) -> FrameHead | None:
        """The head of the frame at an offset, whose checksum is right; None when there is no such frame.

        FormatError when looking for frames would not end in reasonable time.
        """
        head, start = self.head(offset), offset + HEAD_BYTES
        if head is None:
            return None
        if head.fits(self.pieces(start, start + head.length)):
            return head
        self._in_vain += head.length
        if self._in_vain > _PASSES * self.size:
            raise FormatError(
                f"{self.name}: is too damaged, or made to look so: heads of frames that are not whole claim more than "
                f"{_PASSES} times its bytes"
            )
        return None

    def next_whole(self, offset: int) -> int:
        """Where the next whole frame begins that may follow damage, from `offset` on; the size when there is none."""
        while offset < self.size:
            window = self.read(offset, offset + _PIECE)
            for match in _STARTS.finditer(window):
                if self.whole(offset + match.start()) is not None:
                    return offset + match.start()
            if len(window) < _PIECE:
                break
            offset += _PIECE - (_START_BYTES - 1)  # a type may lie across the border of windows
        return self.size
