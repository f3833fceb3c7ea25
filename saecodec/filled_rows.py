"""Blocks of rows in which some hold nothing but a fill value, as the chunks of array stores do at their edges.

Rows of the fill value do not go through the SAE, which may not even take them (NaN), and come back exactly. The bytes
are a frame `ROWS`, which says where they are, and the frames of `Codec.encode` of all others (docs/format.md, "Chunks
in zarr arrays").
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.errors import FormatError, InputError
from saecodec.frames import HEAD_BYTES, FrameHead, frame
from saecodec.rows import needs_sequences
from saecodec.search import fitted_search
from saecodec.sequences import ids_of_shape
from saecodec.stored_floats import narrowed
from saecodec.wire import ByteReader, varint, varints

FILLED_ROWS: Final = "ROWS"
MOST_CHUNK_ROWS: Final = 1 << 16
"""Of the frames inside: a prior's limits on nonzeros and on hidden units leave room for no more than this."""


def pack_filled(codec: Codec, x: NDArray[np.floating[Any]], fill: Any) -> bytes:
    """A block x (..., d) as bytes; rows whose values all are `fill` (any NaN, where it is NaN) are left out.

    The context prior takes sequences from the shape (..., position, d). Codes are searched for as they were when the
    codec was fitted. InputError when a row that is coded holds NaN or infinity; it is counted in the flattened block.
    """
    rows = x.reshape(-1, x.shape[-1])
    left_out = (np.isnan(rows) if np.isnan(fill) else rows == fill).all(axis=1)
    broken = np.flatnonzero(~(left_out | np.isfinite(rows).all(axis=1)))
    if len(broken):
        raise InputError(
            f"row {broken[0]} of a block of shape {x.shape} holds NaN or infinity ({len(broken)} such rows): only a "
            f"row that holds nothing but the fill value, {fill}, may; drop or repair these rows"
        )
    ids = None
    if codec.sae is not None and needs_sequences(codec.latents.prior.name, codec.sae):
        ids = ids_of_shape(x.shape)
    data = codec.encode(
        rows[~left_out],
        chunk_rows=min(max(len(rows), 1), MOST_CHUNK_ROWS),
        search=fitted_search(codec.info),
        seq=None if ids is None else ids[~left_out],
    )
    runs = _runs(left_out)
    return frame(FILLED_ROWS, varint(len(rows)) + varint(len(runs)) + varints(runs)) + data


def unpack_filled(
    codec: Codec, data: bytes | memoryview, shape: tuple[int, ...], dtype: str, fill: Any
) -> NDArray[Any]:
    """The block (..., d) of `pack_filled`'s bytes as `dtype`; FormatError unless they hold one of this shape.

    dtype: float16, float32 or float64; finite values stay finite.
    """
    what = "a chunk"
    view = memoryview(data)
    head = FrameHead.parse(view[:HEAD_BYTES], len(view) - HEAD_BYTES, what)
    if head.kind != FILLED_ROWS:
        raise FormatError(f"{what}: begins with a frame {head.kind!r} where {FILLED_ROWS!r} is expected")
    end = HEAD_BYTES + head.length
    head.check(view[HEAD_BYTES:end], what)
    n_rows = math.prod(shape[:-1])
    coded = np.flatnonzero(_read_coded(ByteReader(view[HEAD_BYTES:end], what), n_rows))
    out = np.full((n_rows, shape[-1]), fill, dtype)
    done = 0
    for part in codec.chunks(view[end:]):
        if done + part.n_rows > len(coded):
            raise FormatError(f"{what}: {len(coded)} coded rows are announced, and it holds more")
        decoded = codec.reconstruct(part.codes, part.residual)
        out[coded[done : done + part.n_rows]] = narrowed(decoded, dtype)
        done += part.n_rows
    if done != len(coded):
        raise FormatError(f"{what}: {len(coded)} coded rows are announced, and it holds {done}")
    return out.reshape(shape)


def _runs(left_out: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs of rows that are coded, left out, coded, ...; the first may be 0.

    >>> _runs(np.array([True, True, False]))
    [0, 2, 1]
    """
    ends = np.flatnonzero(left_out[1:] != left_out[:-1]) + 1
    runs = np.diff(ends, prepend=0, append=len(left_out)).tolist()
    return [0, *runs] if left_out[:1].any() else runs


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
