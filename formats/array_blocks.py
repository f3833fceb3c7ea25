"""Arrays that a library hands out in blocks of its own choice, cut anew into the batches asked for."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource, FloatRows, to_float32
from saecodec.formats.optional_library import library_errors

BLOCK_BYTES = 1 << 22
"""What a block should have: enough that a call of the library costs nothing, little beside the batch."""

_MOST_BLOCK_BYTES = 1 << 28


class BlockArray(ArraySource):
    """An array whose rows come in blocks; memory holds a batch and the block that it is cut from."""

    @abstractmethod
    def _blocks(self) -> Iterator[npt.NDArray[Any]]:
        """All rows in order, as (n, d) of the stored dtype, n as it comes; one that is writeable is given away."""

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[FloatRows]:
        with library_errors(self.path):
            blocks, block = self._blocks(), np.empty((0, self.width), np.float32)
            for start, stop in spans:
                parts, missing = [], stop - start
                while missing:
                    if not len(block):
                        block = self._next(blocks)
                    parts.append(to_float32(block[:missing], copy=not block.flags.writeable))
                    block = block[missing:]
                    missing -= len(parts[-1])
                yield parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, self.width), np.float32), *parts])

    def _next(self, blocks: Iterator[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        block = next(blocks, None)
        if block is None:
            raise InputError(f"{self.path}: ends before the last of its {self.n_rows} rows; the file is truncated")
        return block


def block_slices(shape: tuple[int, ...], chunks: tuple[int, ...] | None, item_bytes: int) -> Iterator[tuple[Any, ...]]:
    """Indices that cut an array (..., d) into blocks of whole rows, in order.

    A block has about `BLOCK_BYTES`, or whole chunks where the array is stored in larger ones, so that no chunk is
    unpacked twice; but at most 256 MiB, or one row.
    """
    leading = shape[:-1]
    if not leading:
        yield (slice(None),)
    if not math.prod(leading) or not leading:
        return
    sizes = [math.prod(shape[axis + 1 :]) * item_bytes for axis in range(len(leading))]
    axis = next((axis for axis, size in enumerate(sizes) if size <= BLOCK_BYTES), len(leading) - 1)
    step, chunk = max(1, BLOCK_BYTES // sizes[axis]), chunks[axis] if chunks else 1
    if step >= chunk:
        step -= step % chunk
    else:
        step = max(1, min(chunk, _MOST_BLOCK_BYTES // sizes[axis]))
    for outer in np.ndindex(*leading[:axis]):
        for start in range(0, leading[axis], step):
            yield (*outer, slice(start, min(start + step, leading[axis])))
