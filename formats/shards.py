"""Shards: array files of one kind that follow each other along the first axis, as one array."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from saecodec.errors import InputError
from saecodec.formats.array_blocks import BLOCK_BYTES, BlockArray
from saecodec.formats.array_source import ITEM_BYTES, ArraySource, FloatRows


class ShardedArray(BlockArray):
    """The arrays in `files`, concatenated in this order; only the one that is being read is open.

    Raises:
        InputError: there are no files; a file cannot be opened; an array has fewer than two dimensions, or another
            dtype or trailing shape than the first, whose file the message names too.
    """

    def __init__(
        self, path: str, files: Sequence[str], key: str | None, opener: Callable[[str, str | None], ArraySource]
    ) -> None:
        if not files:
            raise InputError(f"{path}: holds no array files; expected at least one")
        self._opener, self._key = opener, key
        lengths: list[int] = []
        parts: list[str] = []
        first: ArraySource | None = None
        for file in files:
            shard = opener(file, key)
            first = first or shard
            if len(shard.shape) < 2:
                raise InputError(f"{path}: {file} has shape {shard.shape}; expected shards (n, ..., width)")
            if (shard.dtype, shard.shape[1:]) != (first.dtype, first.shape[1:]):
                raise InputError(
                    f"{path}: {file} holds {shard.dtype} {shard.shape}, but {first.path} {first.dtype} {first.shape}: "
                    "the shards of one array have one dtype, and one shape but for the first dimension"
                )
            lengths.append(shard.shape[0])
            parts.extend(shard.files)
        assert first is not None
        super().__init__(path, (sum(lengths), *first.shape[1:]), first.dtype)
        self.files = tuple(parts)
        self._shards = list(zip(files, lengths, strict=True))

    def _blocks(self) -> Iterator[FloatRows]:
        rows = max(1, BLOCK_BYTES // (self.width * ITEM_BYTES[self.dtype]))
        for file, length in self._shards:
            shard = self._opener(file, self._key)
            if (shard.dtype, shard.shape) != (self.dtype, (length, *self.shape[1:])):
                raise InputError(f"{file}: changed to {shard.dtype} {shard.shape} since {self.path} was opened")
            yield from shard.batches(rows)


def natural_order(name: str) -> list[str | int]:
    """A sort key under which shard_2 comes before shard_10."""
    return [int(part) if n % 2 else part for n, part in enumerate(re.split(r"([0-9]+)", name))]
