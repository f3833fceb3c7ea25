"""Blocks of rows in which some hold nothing but a fill value, as the chunks of array stores do at their edges.

Rows of the fill value do not go through the SAE, which may not even take them (NaN), and come back exactly. The bytes
are a frame `ROWS`, which says where they are, and the frames of `Codec.encode` of all others (docs/format.md, "Chunks
in zarr arrays"). A block is changed by putting codes in place of others: to code again what was decoded would cost
quality each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.errors import FormatError, InputError
from saecodec.frames import HEAD_BYTES, FrameHead, frame
from saecodec.layers import Layers
from saecodec.rows import needs_sequences
from saecodec.search import fitted_search
from saecodec.sequences import ids_of_shape
from saecodec.stored_floats import narrowed
from saecodec.wire import ByteReader, varint, varints

FILLED_ROWS: Final = "ROWS"
_CHUNK_ROWS: Final = 1 << 16  # of a frame: a prior's limits on nonzeros and hidden units leave room for few more


@dataclass(frozen=True, eq=False)
class FilledRows:
    """A block of T rows. coded: bool (T,); other rows hold the fill value. parts: the layers of the rows coded."""

    coded: NDArray[np.bool_]
    parts: tuple[Layers, ...]

    @classmethod
    def of(cls, codec: Codec, x: NDArray[np.floating[Any]], fill: Any, where: NDArray[np.bool_]) -> FilledRows:
        """The rows `where`, bool (T,), of a block x (..., d); the others, and those whose values all are `fill` (any
        NaN, where it is NaN), are not coded.

        The context prior takes sequences from the shape (..., position, d). Codes are searched for as they were when
        the codec was fitted. InputError when a row that is coded holds NaN or infinity; it is counted in the block.
        """
        rows = x.reshape(-1, x.shape[-1])
        coded = where & ~(np.isnan(rows) if np.isnan(fill) else rows == fill).all(axis=1)
        broken = np.flatnonzero(coded & ~np.isfinite(rows).all(axis=1))
        if len(broken):
            raise InputError(
                f"row {broken[0]} of a block of shape {x.shape} holds NaN or infinity ({len(broken)} such rows): only "
                f"a row that holds nothing but the fill value, {fill}, may; drop or repair these rows"
            )
        ids = None
        if codec.sae is not None and needs_sequences(codec.latents.prior.name, codec.sae):
            ids = ids_of_shape(x.shape)
        seq, search = None if ids is None else ids[coded], fitted_search(codec.info)
        return cls(coded, tuple(codec.layers(rows[coded], chunk_rows=_CHUNK_ROWS, search=search, seq=seq)))

    @classmethod
    def read(cls, codec: Codec, data: bytes | memoryview, n_rows: int) -> FilledRows:
        """The inverse of `to_bytes`; FormatError unless they are those of a block of so many rows."""
        what, view = "a chunk", memoryview(data)
        head = FrameHead.parse(view[:HEAD_BYTES], len(view) - HEAD_BYTES, what)
        if head.kind != FILLED_ROWS:
            raise FormatError(f"{what}: begins with a frame {head.kind!r} where {FILLED_ROWS!r} is expected")
        end = HEAD_BYTES + head.length
        head.check(view[HEAD_BYTES:end], what)
        coded = _read_coded(ByteReader(view[HEAD_BYTES:end], what), n_rows)
        parts: list[Layers] = []
        left = int(coded.sum())
        for part in codec.chunks(view[end:]):
            left -= part.n_rows
            if left < 0:
                break
            parts.append(part)
        if left:
            raise FormatError(
                f"{what}: {coded.sum()} coded rows are announced, and it holds {'more' if left < 0 else 'fewer'}"
            )
        return cls(coded, tuple(parts))

    def overlaid(self, other: FilledRows, where: NDArray[np.bool_]) -> FilledRows:
        """This block with the rows `where` of another one in their places; no row is coded again."""
        coded = np.where(where, other.coded, self.coded)
        if not coded.any():
            return FilledRows(coded, ())
        before = int(self.coded.sum())
        places = np.where(where, before + np.cumsum(other.coded), np.cumsum(self.coded)) - 1
        return FilledRows(coded, (Layers.concatenate([*self.parts, *other.parts]).take(places[coded]),))

    def to_bytes(self, codec: Codec) -> bytes:
        """The frames."""
        runs = _runs(self.coded)
        out = [frame(FILLED_ROWS, varint(len(self.coded)) + varint(len(runs)) + varints(runs))]
        for part in self.parts:
            for start in range(0, part.n_rows, _CHUNK_ROWS):
                out += codec.pack(part[start : start + _CHUNK_ROWS])
        return b"".join(out)

    def values(self, codec: Codec, shape: tuple[int, ...], dtype: str, fill: Any) -> NDArray[Any]:
        """The block (..., d) as float16, float32 or float64; finite values stay finite."""
        out = np.full((len(self.coded), shape[-1]), fill, dtype)
        places, done = np.flatnonzero(self.coded), 0
        for part in self.parts:
            rows = codec.reconstruct(part.codes, part.residual)
            out[places[done : done + part.n_rows]] = narrowed(rows, dtype)
            done += part.n_rows
        return out.reshape(shape)


def _runs(coded: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs of rows that are coded, not coded, coded, ...; the first may be 0.

    >>> _runs(np.array([False, False, True]))
    [0, 2, 1]
    """
    ends = np.flatnonzero(coded[1:] != coded[:-1]) + 1
    runs: list[int] = np.diff(ends, prepend=0, append=len(coded)).tolist()
    return runs if coded[0] else [0, *runs]


def _read_coded(reader: ByteReader, n_rows: int) -> NDArray[np.bool_]:
    """Whether each row is coded, bool (T,), of the payload of a frame `ROWS`."""
    found = reader.varint()
    if found != n_rows:
        raise FormatError(f"{reader.what}: holds {found} rows where {n_rows} are expected")
    runs = reader.varints(reader.varint(n_rows + 1), n_rows)
    reader.end()
    if sum(runs) != n_rows or not all(runs[1:]) or not runs:
        raise FormatError(f"{reader.what}: its runs of rows do not make up {n_rows} rows")
    return np.repeat(np.arange(len(runs)) % 2 == 0, runs)
