"""Several `.saec` files as one, without coding any row again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from saecodec.errors import FormatError, InputError, OutputError
from saecodec.formats.atomic import atomic_output, check_output_path
from saecodec.formats.frame_file import MAGIC
from saecodec.formats.frame_writer import FrameWriter
from saecodec.formats.header import Header
from saecodec.formats.index import leading_of
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.formats.structure import checked_frames, chunk_rows, columns_of
from saecodec.frames import frame, pack_record, unpack_record
from saecodec.progress import Progress, no_progress

_MAY_DIFFER: Final = ("chunk_rows", "embed", "sae", "made_by", "user")


@dataclass(frozen=True)
class Concatenation:
    """What was written. shape: of the array. warnings: metadata that was left out, for people."""

    chunks: int
    rows: int
    shape: tuple[int, ...]
    warnings: tuple[str, ...]


def concatenate_files(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    progress: Progress = no_progress,
) -> Concatenation:
    """Write the chunks of files of one codec into a new file, in order, with one index; they are copied byte by byte.

    The header and what is embedded are those of the first file; metadata of the others is added where its key is new.
    Arrays (n, S, d) with the same S make one (N, S, d), others one (T, d). Neither SAE nor codec is needed. Memory is
    flat but for what a file embeds. A single file loses its older indices, and nothing else.

    Raises InputError when files differ in what decides how rows are decoded, FormatError when one is damaged,
    OutputError. `out` appears only when it is complete.
    """
    if not paths:
        raise InputError("no files to concatenate: give one or more")
    check_output_path(out, force=force)
    for path in paths:
        if os.path.exists(out) and os.path.exists(path) and os.path.samefile(path, out):
            raise OutputError(f"{os.fspath(out)}: is an input; choose another output")
    facts, warnings = _Facts(), []
    for path in paths:
        with open_saec(path) as file:
            warnings += facts.add(file)
    done, first = 0, True
    with atomic_output(out, force=force) as target:
        writer = FrameWriter(target)
        for path, size in zip(paths, facts.sizes, strict=True):
            with open_saec(path) as file:
                if (file.n_rows, file.size) != size:
                    raise FormatError(f"{file.path}: changed while it was read; run again when it is complete")
                for n_rows, parts in _parts(file, facts, preamble=first):
                    if n_rows is None:
                        writer.write(b"".join(parts))
                    else:
                        writer.add(n_rows, parts)
                        done += n_rows
                        progress("copy", done, facts.n_rows)
            first = False
        leading = facts.leading()
        writer.finish(leading)
    return Concatenation(writer.n_chunks, writer.n_rows, (*leading, *facts.row_shape), tuple(warnings))


class _Facts:
    """What the files have in common, and the sum of what they have not."""

    def __init__(self) -> None:
        self.user: dict[str, str] = {}
        self.n_rows = self.chunk_rows = 0
        self.row_shape: tuple[int, ...] = ()
        self._first: SaecFile | None = None
        self._columns: tuple[str, tuple[str, ...]] | None = None  # of the first file that has chunks
        self._leading: list[tuple[int, ...]] = []
        self.sizes: list[tuple[int, int]] = []  # rows and bytes of each file

    def add(self, file: SaecFile) -> list[str]:
        """Take a file's header and shape; returns what is left out of its metadata. InputError when it differs."""
        first = self._first = self._first or file
        for fact in fields(Header):
            ours, theirs = (getattr(header, fact.name) for header in (first.header, file.header))
            if fact.name not in _MAY_DIFFER and ours != theirs:
                raise _differs(file.path, fact.name, theirs, first.path, ours)
        columns = columns_of(file)
        if columns is not None:
            self._columns = self._columns or (file.path, columns)
            if columns != self._columns[1]:
                raise _differs(file.path, "columns", columns, *self._columns)
        self.n_rows += file.n_rows
        self.chunk_rows = max(self.chunk_rows, file.header.chunk_rows)
        self.row_shape = file.row_shape
        self._leading.append(file.index.leading)
        self.sizes.append((file.n_rows, file.size))
        kept = {key: self.user.setdefault(key, text) for key, text in file.header.user.items()}
        return [
            f"{file.path}: its {key!r} {text!r} is left out: {kept[key]!r} came first"
            for key, text in file.header.user.items()
            if kept[key] != text
        ]

    def leading(self) -> tuple[int, ...]:
        """Leading dimensions of all rows."""
        if len(self._leading) == 1:
            return self._leading[0]
        inner = {leading[1:] for leading in self._leading if 0 not in leading}
        return leading_of(self.n_rows, inner.pop() if len(inner) == 1 else ())

    def header(self, payload: bytes, path: str) -> bytes:
        """The first file's header, with everybody's metadata; what it says beside stays, known here or not."""
        record = unpack_record(payload, path)
        added = {"chunk_rows": self.chunk_rows} | ({"user": self.user} if self.user else {})
        return payload if record | added == record else pack_record(record | added)


def _parts(file: SaecFile, facts: _Facts, *, preamble: bool) -> Iterator[tuple[int | None, list[bytes]]]:
    """The frames of a file, those of a chunk together with its rows; without the indices.

    preamble: with the magic, the header and what is embedded.
    """
    if preamble:
        yield None, [MAGIC]
    chunk: tuple[int, list[bytes]] | None = None
    inside = False
    for offset, head, payload in checked_frames(file):
        data = frame(head.kind, payload, critical=head.critical)
        inside |= head.kind in ("CHNK", "INDX")
        if head.kind == "RCHK" and chunk is not None:
            chunk[1].append(data)
            continue
        if chunk is not None:
            yield chunk
            chunk = None
        if head.kind == "CHNK":
            chunk = chunk_rows(payload, f"{file.path}, offset {offset}"), [data]
        elif head.kind == "HEAD" and preamble:
            yield None, [frame("HEAD", facts.header(payload, file.path))]
        elif (inside or preamble) and head.kind not in ("INDX", "TAIL"):
            yield None, [data]


def _differs(path: str, fact: str, theirs: Any, first: str, ours: Any) -> InputError:
    return InputError(
        f"{path}: {fact} is {theirs!r}, that of {first} is {ours!r}: files of one codec and one kind of rows can be "
        "concatenated; decode the others and encode their rows with that codec"
    )
