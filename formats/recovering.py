"""What can be read of a file that was not completed, or was damaged: its whole chunks, in a new file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from saecodec.errors import FormatError, InputError, OutputError
from saecodec.formats.atomic import atomic_output, check_output_path
from saecodec.formats.frame_file import MAGIC, TRAILER, TRAILER_FRAME
from saecodec.formats.frame_scan import FrameScan
from saecodec.formats.frame_writer import FrameWriter
from saecodec.formats.header import Header
from saecodec.formats.index import Index, leading_of
from saecodec.formats.structure import PREAMBLE, Chunk, chunk_rows, listed
from saecodec.frames import HEAD_BYTES, FrameHead

_BEHIND: Final = ("CHNK", "RCHK", "INDX", "TAIL")
_VARINT: Final = 9  # bytes at most


@dataclass(frozen=True)
class Recovery:
    """What was kept. chunks, rows: of the new file; shape: of its array. kept_bytes: header, tables and chunks.
    skipped: ranges [start, stop) of bytes that belong to no whole frame, or to a chunk that is not whole. complete:
    whether nothing was missing, and the last trailer told of all chunks. lost: ranges [start, stop) of rows, over the
    flattened leading dimensions, that the last whole index lists and that are not there now. lost_known: whether these
    are all; else skipped bytes may have held rows that no index tells of."""

    chunks: int
    rows: int
    shape: tuple[int, ...]
    kept_bytes: int
    skipped: tuple[tuple[int, int], ...]
    complete: bool
    lost: tuple[tuple[int, int], ...]
    lost_known: bool

    @property
    def skipped_bytes(self) -> int:
        """Bytes of all ranges that were skipped."""
        return sum(stop - start for start, stop in self.skipped)


def recover_file(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
) -> Recovery:
    """Write the whole chunks of a `.saec` file, or of a `.partial` one, into a new file with one index.

    Frames are copied byte by byte; neither SAE nor codec is needed. The array keeps its leading dimensions where an
    index told them and nothing was lost behind which rows would lie elsewhere, and else is (T, d). Memory is flat.

    Raises FormatError when the header, or tables that the file should hold, are not whole: then nothing can be
    recovered. InputError, OutputError. `out` appears only when it is complete.
    """
    name = os.fspath(path)
    check_output_path(out, force=force)
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"{name}: cannot be opened ({error.strerror})") from error
    with file:
        if os.path.exists(out) and os.path.samefile(path, out):
            raise OutputError(f"{os.fspath(out)}: is the input; choose another output")
        scan = FrameScan(file, name)
        found = _Found()
        header, start = _preamble(scan, found)
        with atomic_output(out, force=force) as target:
            writer, begin = FrameWriter(target), 0
            for skipped, end in (*found.skipped, (start, start)):
                for piece in scan.pieces(begin, skipped):
                    writer.write(piece)
                begin = end
            _copy(scan, start, header, writer, found)
            kept, leading = writer.at, found.leading()
            writer.finish(leading)
        shape = (*leading, *(header.row_shape or (header.width,)))
        kept_rows = (writer.n_chunks, writer.n_rows, shape, kept)
        return Recovery(*kept_rows, tuple(found.skipped), found.complete, *found.lost())


def _preamble(scan: FrameScan, found: _Found) -> tuple[Header, int]:
    """The header, and where the frames that it announces end. Damaged ancillary ones between them are skipped."""
    if scan.read(0, len(MAGIC)) != MAGIC:
        raise FormatError(f"{scan.name}: not a .saec file (it does not begin with the magic {MAGIC!r})")
    at, kinds, header = len(MAGIC), [], None
    while (head := scan.head(at)) is not None:
        end = at + HEAD_BYTES + head.length
        whole = scan.whole(at) is not None
        if head.kind in _BEHIND or (header is None and not (whole and head.kind == "HEAD")):
            break
        if not whole:
            if head.critical or head.kind in PREAMBLE or scan.whole(end) is None:
                break
            found.skip(at, end)
        elif header is None:
            header = Header.from_bytes(scan.read(at + HEAD_BYTES, end), scan.name)
        elif head.kind in PREAMBLE:
            kinds.append(head.kind)
        else:
            head.unknown(f"{scan.name}, offset {at}")
        at = end
    if header is None:
        raise FormatError(f"{scan.name}: its header is damaged or missing: nothing can be recovered")
    if tuple(kinds) != header.embedded:
        raise FormatError(
            f"{scan.name}: the header says embed {header.embed!r}, but of {', '.join(header.embedded)} only "
            f"{', '.join(kinds) or 'nothing'} is whole: nothing can be recovered"
        )
    return header, at


@dataclass
class _Found:
    """What a scan has met: chunks, with their offsets in the input, and the last index."""

    chunks: list[Chunk] = field(default_factory=list)
    skipped: list[tuple[int, int]] = field(default_factory=list)
    index: Index | None = None
    indexed_at: int = -1
    index_end: int = -1
    complete: bool = False

    def skip(self, start: int, stop: int) -> None:
        if self.skipped and self.skipped[-1][1] == start:
            start = self.skipped.pop()[0]
        self.skipped.append((start, stop))

    def lost(self) -> tuple[tuple[tuple[int, int], ...], bool]:
        """Rows that the last index lists and that are not there, and whether no others can be lost."""
        if self.index is None:
            return (), not self.skipped
        there, known, first = set(self.chunks), listed(self.index), self.index.first_row.tolist()
        if any(offset < self.indexed_at for _, offset, _ in there.difference(known)):
            return (), False  # chunks have moved, and may be some of those that seem to be lost
        lost: list[tuple[int, int]] = []
        for chunk, start, stop in zip(known, first, first[1:], strict=False):
            if chunk not in there and start < stop:
                lost.append((lost.pop()[0] if lost and lost[-1][1] == start else start, stop))
        trailer = (self.index_end, self.index_end + TRAILER_FRAME)  # which holds no rows
        behind = [part for part in self.skipped if part[1] > self.index_end]
        return tuple(lost), all(trailer[0] <= start < stop <= trailer[1] for start, stop in behind)

    def leading(self) -> tuple[int, ...]:
        """Leading dimensions of the chunks: by the index, if all of its chunks and all behind them are there."""
        n_rows, known = sum(rows for rows, _, _ in self.chunks), [] if self.index is None else listed(self.index)
        if self.index is None or self.chunks[: len(known)] != known:
            return (n_rows,)
        if len(self.chunks) == len(known):
            return self.index.leading
        lost = self.skipped and self.skipped[0][0] < self.chunks[-1][1]
        return (n_rows,) if lost else leading_of(n_rows, self.index.leading[1:])


def _copy(scan: FrameScan, at: int, header: Header, writer: FrameWriter, found: _Found) -> None:
    """Copy the whole chunks from an offset on."""
    while at < scan.size:
        head = scan.whole(at)
        if head is None:
            end = scan.next_whole(at + 1)
            found.skip(at, end)
        else:
            end = _frame(scan, at, head, header, writer, found)
        if head is None or head.kind != "TAIL":
            found.complete = False
        at = end


def _frame(scan: FrameScan, at: int, head: FrameHead, header: Header, writer: FrameWriter, found: _Found) -> int:
    """Deal with a whole frame; returns where it ends, its residual included."""
    start, end = at + HEAD_BYTES, at + HEAD_BYTES + head.length
    if head.kind == "CHNK":
        parts = [(at, end)]
        if header.residual:
            behind = scan.whole(end)
            if behind is None or behind.kind != "RCHK":
                found.skip(at, end)
                return end
            parts.append((end, end + HEAD_BYTES + behind.length))
        try:
            rows = chunk_rows(scan.read(start, min(start + _VARINT, end)), scan.name)
        except FormatError:
            found.skip(at, parts[-1][1])
            return parts[-1][1]
        writer.add(rows, [scan.read(*part) for part in parts])
        found.chunks.append((rows, at, end - at))
        return parts[-1][1]
    if head.kind == "INDX":
        try:
            found.index = Index.from_bytes(scan.read(start, end), at, scan.name)
            found.indexed_at, found.index_end = at, end
        except FormatError:
            found.skip(at, end)
    elif head.kind == "TAIL":
        told = scan.read(start, end) == TRAILER.pack(max(found.indexed_at, 0)) and not found.skipped
        found.complete = told and found.index is not None and listed(found.index) == found.chunks
    elif head.critical or head.kind in (*PREAMBLE, "RCHK"):
        found.skip(at, end)
    else:
        for piece in scan.pieces(at, end):  # ancillary, of a later version
            writer.write(piece)
    return end
