"""`StoreWriter`: a `.saec` file that grows as rows come, chunk by chunk, and keeps them when its program ends."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError, named
from saecodec.formats.array_source import ArraySource, rows_for
from saecodec.formats.frame_writer import FrameWriter
from saecodec.formats.index import leading_of
from saecodec.formats.row_buffer import RowBuffer
from saecodec.formats.store_file import StoreFile
from saecodec.progress import Progress, no_progress
from saecodec.row_coder import RowCoder
from saecodec.rows import given_rows, needs_sequences
from saecodec.sequences import check_ids, ids_of_shape

Ids = NDArray[np.integer[Any]]


class StoreWriter:
    """Writes rows into a `.saec` file; made by `create`, and best used as a context.

    Each chunk is handed to the system as soon as it is complete. Until `close` a new file is `path.partial`, and one
    that is appended to has no trailer at its end; `saecodec recover` makes a file of either, so a process that is
    killed loses the rows of the chunk that was not complete. After an append or flush that failed while rows were coded
    only `close` or `discard` are left. After an exception, or without `close`, the chunks so far
    get an index: `path.partial` is then a file of them, and a file that was appended to has them.
    """

    def __init__(
        self,
        file: StoreFile,
        frames: FrameWriter,
        coder: RowCoder,
        *,
        chunk_rows: int,
        row_shape: tuple[int, ...],
        inner: tuple[int, ...] | None = None,
        with_ids: bool | None = None,
    ) -> None:
        self._file, self._frames, self._coder = file, frames, coder
        self._buffer, self._row_shape = RowBuffer(chunk_rows), row_shape
        self._inner, self._with_ids = inner, with_ids  # None until rows tell
        self._accepted, self._closed, self._process = frames.n_rows, False, os.getpid()
        self._end = file.end  # of the last generation
        self._failed = False

    @property
    def n_rows(self) -> int:
        """Rows taken so far, those of the file that is appended to included."""
        return self._accepted

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array so far."""
        return (*leading_of(self._accepted, self._inner or ()), *self._row_shape)

    def append(self, rows: NDArray[np.floating[Any]], seq: Ids | None = None) -> None:
        """Take rows, a numpy array or torch tensor (..., d) of any number of rows.

        Blocks (n, S, d) with the same S make an array (N, S, d), blocks (n, d) one (T, d). seq: sequence id of each
        row, for all blocks or for none; without, and where the codec goes by sequences, those of (..., position, d) are
        counted on. InputError when a block does not go with those before it or holds NaN; none of it is taken then.
        """
        self._check_open()
        sae, shape = self._coder.sae, tuple(np.shape(rows))
        of_row = len(self._row_shape)
        if of_row > 1:
            if shape[-of_row:] != self._row_shape:
                raise InputError(f"rows of shape {self._row_shape} go into this file, got an array of shape {shape}")
            rows = rows.reshape(*shape[:-of_row], sae.width)
        leading = shape[:-of_row] or (1,)
        x, ids = given_rows(rows, sae, self._coder.codec.latents.prior.name, seq)
        if math.prod(leading) != len(x):  # heads were joined
            raise InputError(f"an array of shape {shape} has rows with heads: say so (row_shape={shape[-2:]})")
        if seq is None and ids is not None:
            ids = ids + self._sequences_before(leading)
        sae.check_rows(x, self._accepted)
        self._begin(leading, ids, len(x))
        self._take(x, ids)

    def append_array(self, source: ArraySource, seq: Ids | None = None, progress: Progress = no_progress) -> None:
        """Take all rows of an array file, in flat memory; seq: flat, (T,). As `append`, but rows before the first that
        holds NaN have been taken when that is raised."""
        self._check_open()
        codec, sae = self._coder.codec, self._coder.sae
        source = rows_for(source, sae.width, sae.row_dims)
        if source.row_shape != self._row_shape:
            raise InputError(f"{source.path}: rows of shape {source.row_shape}, the file has {self._row_shape}")
        leading = source.shape[:-1] or (1,)
        if seq is None and needs_sequences(codec.latents.prior.name, sae) and len(leading) > 1:
            counted = ids_of_shape(source.shape)
            seq = None if counted is None else counted + self._sequences_before(leading)
        self._begin(leading, seq, source.n_rows)
        done = 0
        for x in source.batches(self._buffer.chunk_rows):
            with named(source.path):
                sae.check_rows(x, done)
            self._take(x, None if seq is None else seq[done : done + len(x)])
            done += len(x)
            progress("append", done, source.n_rows)

    def flush(self) -> None:
        """Code the rows that wait, as a shorter chunk, and see that all chunks are on the disk."""
        self._check_open()
        self._code_rest()
        self._file.sync()

    def close(self, *, keep: bool = True) -> None:
        """Complete the file: it appears under its name. What has waited is coded; after an error, if it can be. keep:
        whether the rows stay where they are when that fails, or all is taken back."""
        if self._closed:
            return
        try:
            if self._failed:
                self._keep_rest()
                self._accepted = self._frames.n_rows
            else:
                self._code_rest()
            self._finish()
            self._file.publish()
        except BaseException:
            if keep:
                self._leave()
            else:
                self.discard()
            raise
        self._closed = True

    def discard(self) -> None:
        """Take back all that was written: no file, or the file as it was before."""
        if not self._closed:
            self._closed = True
            self._file.discard()

    # -- chunks --------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise InputError(f"{self._file.path}: is closed; saecodec.create(path, append=True) adds rows to a file")
        if self._failed:
            raise InputError(
                f"{self._file.path}: an error came before a block was written whole, and no rows can follow: close() "
                "keeps the rows before it, discard() none"
            )

    def _sequences_before(self, leading: tuple[int, ...]) -> int:
        return self._accepted // max(leading[-1], 1)

    def _begin(self, leading: tuple[int, ...], ids: Ids | None, n_rows: int) -> None:
        """InputError unless rows with these leading dimensions and ids go with those before them."""
        if self._inner not in (None, leading[1:]):
            held, given = (", ".join(map(str, ("n", *inner, "d"))) for inner in (self._inner or (), leading[1:]))
            raise InputError(
                f"{self._file.path}: holds blocks ({held}), which one of shape ({given}) does not continue: reshape "
                "it, or write another file"
            )
        if self._with_ids not in (None, ids is not None):
            has = "have sequence ids: give them for these too (seq, --seq)"
            raise InputError(
                f"{self._file.path}: its rows {has if self._with_ids else 'have no sequence ids: leave them out'}"
            )
        if ids is not None:
            check_ids(ids, n_rows)
        self._inner, self._with_ids = leading[1:], ids is not None

    def _take(self, x: NDArray[np.float32], ids: Ids | None) -> None:
        at = 0
        while at < len(x):
            taken = self._buffer.put(x[at:], None if ids is None else ids[at:])
            self._accepted += taken
            at += taken
            if n := self._buffer.complete():
                self._code(n)

    def _code(self, n: int) -> None:
        """Code the first n rows that wait. What fails here fails in the middle of a block: it cannot be given again."""
        try:
            self._write(n)
        except BaseException:
            self._failed = True
            raise

    def _write(self, n: int) -> None:
        rows, chunking = self._buffer.first(n)
        layers = self._coder(rows, self._frames.n_rows).labelled(chunking, 0)
        parts = self._coder.codec.pack(layers)
        with self._file.writing():
            try:
                self._frames.add(n, parts)
            except BaseException:
                self._file.cut(self._frames.at)  # without the half of a chunk
                raise
        self._buffer.drop(n)

    def _code_rest(self) -> None:
        while self._buffer.n_rows:
            self._code(self._buffer.next())

    def _finish(self) -> None:
        if self._frames.at > self._end:
            with self._file.writing():
                self._frames.finish(leading_of(self._frames.n_rows, self._inner or ()))
            self._end = self._frames.at

    def _keep_rest(self) -> None:
        """Code what waits, if that is possible."""
        with contextlib.suppress(Exception):
            # Not what may be in the file already: an interrupt can come between writing a chunk and dropping its rows.
            if self._accepted == self._frames.n_rows + self._buffer.n_rows and not sys.is_finalizing():
                self._code_rest()

    def _leave(self) -> None:
        """Keep what can be kept: code what waits if that is possible, and give all chunks their index."""
        self._closed = True
        self._keep_rest()
        with contextlib.suppress(Exception):
            self._file.cut(self._frames.at)
            self._finish()
            self._file.sync()
        self._file.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif not self._closed and not self._accepted:
            self.discard()  # there is nothing to keep, and it would be in the way of the next try
        elif not self._closed:
            self._leave()
            note = getattr(error, "add_note", None)  # from Python 3.11 on
            if note is not None:
                note(f"{self._file.left} has the {self._frames.n_rows} rows written before that")

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        if self._process == os.getpid():
            self._leave()
        else:  # a fork's copy is not the writer
            self._file.close()

    def __repr__(self) -> str:
        return f"StoreWriter({self._file.path!r}, shape={self.shape})"
