"""All that is damaged in a `.saec` file, once something is: chunk by chunk, and what lies between the chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from saecodec.chunk_coder import CHUNK, RESIDUAL_CHUNK
from saecodec.errors import FormatError, MissingPieceError, UnsupportedError
from saecodec.formats.damage import Lost, add_range
from saecodec.formats.frame_file import MAGIC
from saecodec.formats.latent_values import salvaged_latents
from saecodec.formats.saec import SaecFile
from saecodec.formats.structure import PREAMBLE, chunk_rows
from saecodec.frames import HEAD_BYTES
from saecodec.progress import Progress, no_progress

_CODEC: Final = "every row, unless the codec is given (-c CODEC)"
_SAE: Final = "every row, unless the SAE is given (-s SAE)"
_COSTS: Final = {"TABL": _CODEC, "SIDE": _CODEC, "RTAB": _CODEC, "SAEW": _SAE}
_NO_ROWS: Final = "no rows"
_CERTAINTY: Final = "the certainty that rows are those that were encoded"


@dataclass(frozen=True)
class Damage:
    """Bytes [start, stop) that are in no chunk of the index: what is wrong with them, and what that costs."""

    start: int
    stop: int
    reason: str
    cost: str


@dataclass(frozen=True)
class Survey:
    """What was found. decoded: "nothing" (checksums alone), "levels" or "rows". chunks: the damaged ones, by number."""

    decoded: str
    chunks: dict[int, Lost]
    elsewhere: list[Damage]

    @property
    def blocked(self) -> Damage | None:
        """What keeps every row from being decoded with what was given, whatever the chunks are like."""
        needed = {"nothing": tuple(_COSTS.values()), "levels": (_SAE,), "rows": ()}[self.decoded]
        return next((damage for damage in self.elsewhere if damage.cost in needed), None)

    @property
    def lost(self) -> list[Lost]:
        """The rows of damaged chunks, in order; ranges that touch are one."""
        ranges: list[Lost] = []
        for _, lost in sorted(self.chunks.items()):
            if lost.n_rows:
                add_range(ranges, lost)
        return ranges


def survey(
    file: SaecFile,
    met: FormatError | UnsupportedError,
    *,
    decode: bool = True,
    progress: Progress = no_progress,
    jobs: int | None = 1,
) -> Survey:
    """Look at every chunk and every frame of a file in which `verify_file` met an error.

    decode: whether chunks are decoded, as far as codec and SAE are there, or only their checksums looked at. jobs:
    processes that decode. Memory is flat. IdentityError when another codec or SAE is given than the file's.
    """
    decoded = _decodable(file) if decode else "nothing"
    chunks, done = dict(_checked(file, np.flatnonzero(file.index.rows == 0).tolist())), 0
    filled = np.flatnonzero(file.index.rows > 0).tolist()
    for i, lost in zip(filled, _lost(file, decoded, filled, jobs), strict=True):
        if lost is not None:
            chunks[i] = lost
        done += int(file.index.rows[i])
        progress("verify", done, file.n_rows)
    elsewhere = list(_between_chunks(file))
    if not chunks and not elsewhere:  # every frame is whole, but not where it may stand
        elsewhere = [Damage(0, file.size, _told(file, met), _CERTAINTY)]
    return Survey(decoded, chunks, elsewhere)


def _decodable(file: SaecFile) -> str:
    """How far chunks can be decoded with the pieces that are there and whole."""
    decoded = "nothing"
    try:
        if file.codec:
            decoded = "levels"
        if file.holds_latents or (file.has_sae and file.decoder):
            decoded = "rows"
    except (FormatError, MissingPieceError):
        pass
    return decoded


def _lost(file: SaecFile, decoded: str, filled: Sequence[int], jobs: int | None) -> Iterator[Lost | None]:
    """What each chunk that has rows has lost."""
    if decoded == "nothing":
        damaged = dict(_checked(file, filled))
        yield from (damaged.get(i) for i in filled)
        return
    parts: Iterator[Any]
    if decoded == "levels":
        parts = file.salvaged_layers(jobs=jobs)
    else:
        parts = salvaged_latents(file, jobs=jobs) if file.holds_latents else file.salvaged_batches(jobs=jobs)
    for i in filled:
        left, lost = int(file.index.rows[i]), None
        while left:  # a chunk may come in parts
            part = next(parts)
            left -= len(part) if isinstance(part, np.ndarray) else part.n_rows
            if isinstance(part, Lost):
                lost = part if lost is None else replace(lost, stop=part.stop)
        yield lost


def _checked(file: SaecFile, chunks: Sequence[int]) -> Iterator[tuple[int, Lost]]:
    """Those of some chunks that their checksums or the index show to be damaged."""
    for i, block in zip(chunks, file.chunk_blocks(chunks), strict=True):
        try:
            codes, _ = block.payloads()
            block.check_rows(chunk_rows(codes, block.what))
        except FormatError as error:
            yield i, Lost(int(file.index.first_row[i]), int(file.index.first_row[i + 1]), error)


def _between_chunks(file: SaecFile) -> Iterator[Damage]:
    """What is wrong with the frames before, between and behind the chunks of the index, and their residuals."""
    starts, at = file.index.offsets.tolist(), len(MAGIC)
    for i, stop in enumerate([*starts, file.size]):
        if i:
            at = _chunk_end(file, i - 1, stop)
        while at < stop:
            damage, at = _frame(file, at, stop, behind_chunk=i > 0)
            if damage is not None:
                yield damage


def _chunk_end(file: SaecFile, i: int, stop: int) -> int:
    """Where chunk i ends, its residual included; `stop` when the damage of that hides it."""
    end = int(file.index.offsets[i] + file.index.lengths[i])
    if not file.header.residual:
        return end
    try:
        head = file.head(end)
    except (FormatError, UnsupportedError):
        return stop
    return min(end + HEAD_BYTES + head.length, stop) if head.kind == RESIDUAL_CHUNK else end


def _frame(file: SaecFile, at: int, stop: int, *, behind_chunk: bool) -> tuple[Damage | None, int]:
    """What is wrong with the frame at an offset, and where the next one begins, `stop` at most."""
    try:
        head = file.head(at)
    except UnsupportedError as error:  # the frame may change what rows mean
        return Damage(at, stop, _told(file, error), _CERTAINTY), stop
    except FormatError as error:
        return Damage(at, stop, _told(file, error), _NO_ROWS), stop
    end = at + HEAD_BYTES + head.length
    if end > stop:
        return Damage(at, stop, f"offset {at}: frame {head.kind} reaches into the chunk behind it", _NO_ROWS), stop
    if head.kind == CHUNK:
        return Damage(at, end, f"offset {at}: a chunk that the index does not list", "rows that are not in it"), end
    if head.kind == RESIDUAL_CHUNK or (behind_chunk and head.kind in PREAMBLE):
        return Damage(at, end, f"offset {at}: frame {head.kind} may not stand here", _NO_ROWS), end
    try:
        file.frame(at)
    except FormatError as error:
        return Damage(at, end, _told(file, error), _COSTS.get(head.kind, _NO_ROWS)), end
    return None, end


def _told(file: SaecFile, error: Exception) -> str:
    return str(error).removeprefix(f"{file.path}, ").removeprefix(f"{file.path}: ")
