"""`FrameFile`: the frames of a `.saec` file, its header and its index, as they lie in the file.

Normative: docs/format.md, "The .saec file".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from saecodec.chunk_coder import CHUNK
from saecodec.errors import FormatError
from saecodec.formats.byte_source import ByteSource
from saecodec.formats.header import Header
from saecodec.formats.index import Index
from saecodec.frames import HEAD_BYTES, MAX_RECORD_BYTES, FrameHead
from saecodec.prefetch import prefetched

MAGIC: Final = b"\x89SAEC\r\n\x1a"
TRAILER: Final = struct.Struct("<Q")
TRAILER_FRAME: Final = HEAD_BYTES + TRAILER.size
_PIECE: Final = 1 << 20
_MOST_CHUNKS: Final = 256  # that are read at a time
_KNOWN: Final = ("HEAD", "TABL", "SIDE", "RTAB", "SAEW", "CHNK", "RCHK", "INDX", "TAIL")


class FrameFile:
    """An open file, checked as far as its structure goes. embedded_at: offsets of the frames of tables and weights, by
    type."""

    def __init__(self, source: ByteSource) -> None:
        self.path, self.size, self._source = source.path, source.size, source
        if self.read(0, min(len(MAGIC), self.size)) != MAGIC:
            raise FormatError(f"{self.path}: not a .saec file (it does not begin with the magic {MAGIC!r})")
        self.header, at = self._read_header()
        self.index, self._index_at = self._read_index()
        self.embedded_at = self._read_embedded(at)

    def frames(self, *, start: int = len(MAGIC)) -> Iterator[tuple[int, FrameHead, bytes]]:
        """Offset, head and checked payload of every frame from `start` to the end of the file."""
        while start < self.size:
            head, payload = self.frame(start)
            yield start, head, payload
            start += HEAD_BYTES + head.length

    def head(self, offset: int) -> FrameHead:
        """The head of the frame at an offset; FormatError when there is none."""
        left, what = self.size - offset, f"{self.path}, offset {offset}"
        head = FrameHead.parse(self.read(offset, min(HEAD_BYTES, left)), left - HEAD_BYTES, what)
        if head.critical and head.kind not in _KNOWN:  # an ancillary one is skipped, whole or not
            if not head.fits(self._pieces(offset + HEAD_BYTES, head.length)):  # damage is not a frame of the future
                raise FormatError(f"{what}: frame {head.kind} is corrupted (CRC-32 mismatch)")
            head.unknown(what)
        return head

    def frame(self, offset: int) -> tuple[FrameHead, bytes]:
        """Head and checked payload of the frame at an offset."""
        head = self.head(offset)
        payload = self.read(offset + HEAD_BYTES, head.length)
        head.check(payload, f"{self.path}, offset {offset}")
        return head, payload

    def _pieces(self, offset: int, n: int) -> Iterator[bytes]:
        return (self.read(at, min(_PIECE, offset + n - at)) for at in range(offset, offset + n, _PIECE))

    def embedded(self, kind: str) -> bytes:
        """The payload of a frame of tables or weights."""
        return self.frame(self.embedded_at[kind])[1]

    def read(self, offset: int, n: int) -> bytes:
        """n bytes at an offset."""
        return self._source.read([(offset, offset + n)])[0]

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    # -- chunks --------------------------------------------------------------------------------------------------------

    def blocks(self, chunks: Iterable[int], *, base_only: bool = False) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of each of some chunks: of its frame and, unless base_only, of all up to the next one, where
        the frame of its residual is first. Nothing else is read; of a remote file much at a time, and ahead."""
        groups = _groups(((i, *self._extent(i, base_only)) for i in chunks), self._source.ahead)
        read = ((group, self._source.read([(a, b) for _, a, b in group])) for group in groups)
        for group, found in prefetched(read) if self._source.ahead else read:
            for (i, _, _), data in zip(group, found, strict=True):
                yield i, data

    def _extent(self, i: int, base_only: bool) -> tuple[int, int]:
        index = self.index
        start, stop = int(index.offsets[i]), int(index.offsets[i] + index.lengths[i])
        if base_only or not self.header.residual:
            return start, stop
        after = int(index.offsets[i + 1]) if i + 1 < len(index.offsets) else self._index_at
        return start, after if after >= stop else self.size

    # -- what is read on opening ---------------------------------------------------------------------------------------

    def _read_index(self) -> tuple[Index, int]:
        try:
            return self._checked_index(self._trailer())
        except FormatError as error:
            raise FormatError(f"{error}; saecodec recover {self.path} -o OUT.saec keeps its complete chunks") from error

    def _trailer(self) -> int:
        """Where the index is."""
        at = self.size - TRAILER_FRAME
        try:
            head, payload = self.frame(max(at, 0))
            if head.kind != "TAIL" or head.length != TRAILER.size:
                raise FormatError(f"the last frame is {head.kind}, expected TAIL")
        except FormatError as error:
            raise FormatError(f"{self.path}: no valid trailer at its end: truncated or damaged ({error})") from error
        (offset,) = TRAILER.unpack(payload)
        if not len(MAGIC) <= offset < at:
            raise FormatError(f"{self.path}: the trailer points to offset {offset}, outside the file")
        return int(offset)

    def _checked_index(self, offset: int) -> tuple[Index, int]:
        head, payload = self.frame(offset)
        if head.kind != "INDX":
            raise FormatError(f"{self.path}: the trailer points to a {head.kind} frame, expected INDX")
        return Index.from_bytes(payload, self.size, f"{self.path}, index"), offset

    def _read_header(self) -> tuple[Header, int]:
        """The header, and where the next frame begins."""
        head = self.head(len(MAGIC))
        if head.kind != "HEAD":
            raise FormatError(f"{self.path}: the first frame is {head.kind}, expected HEAD")
        if head.length > MAX_RECORD_BYTES:
            raise FormatError(f"{self.path}: a header of {head.length} bytes (limit {MAX_RECORD_BYTES})")
        head, payload = self.frame(len(MAGIC))
        return Header.from_bytes(payload, self.path), len(MAGIC) + HEAD_BYTES + head.length

    @property
    def preamble_end(self) -> int:
        """Where the first chunk begins, or the index where there is none."""
        return int(self.index.offsets[0]) if len(self.index.offsets) else self._index_at

    def _read_embedded(self, at: int) -> dict[str, int]:
        """The offsets of the frames that stand between the header, which ends at `at`, and the chunks."""
        found = []
        # The head of the first chunk may be damaged, and costs no other's rows.
        while at < self.preamble_end and (head := self.head(at)).kind not in (CHUNK, "INDX"):
            if head.kind in _KNOWN:
                found.append((head.kind, at))
            at += HEAD_BYTES + head.length
        kinds = [kind for kind, _ in found]
        if tuple(kinds) != self.header.embedded:
            raise FormatError(f"{self.path}: the header says embed {self.header.embed!r}, but frames {kinds} follow it")
        return dict(found)


Extent = tuple[int, int, int]
"""Number of a chunk, and its first and last byte, the latter not included."""


def _groups(extents: Iterable[Extent], most: int) -> Iterator[list[Extent]]:
    """Extents in groups of at most so many bytes, or of one."""
    group: list[Extent] = []
    total = 0
    for extent in extents:
        n_bytes = extent[2] - extent[1]
        if group and (total + n_bytes > most or len(group) == _MOST_CHUNKS):
            yield group
            group, total = [], 0
        group.append(extent)
        total += n_bytes
    if group:
        yield group
