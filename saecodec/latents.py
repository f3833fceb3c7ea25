"""`LatentCodec`: codes <-> one self-delimiting chunk of bytes. It holds the prior and knows no SAE.

A chunk is: number of rows, the row-aligned columns, then the prior's streams (docs/format.md, "Chunks").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codes import MAX_CHUNK_ROWS, MAX_COLUMN, Codes
from saecodec.errors import FormatError, InputError
from saecodec.integers import pack_ints, unpack_ints, unzigzag, zigzag
from saecodec.limits import check_expansion
from saecodec.priors.factorized import MAX_LATENTS, NONZERO_BYTES
from saecodec.priors.registry import Prior, read_prior
from saecodec.wire import ByteReader, blob, varint

_MAX_COLUMNS: Final = 64
_MAX_COLUMN_VALUES: Final = 1 << 22


@dataclass(frozen=True)
class ChunkBytes:
    """Where a chunk's bytes go; they add up to its length. columns: by name, each with its name."""

    support: int
    levels: int
    columns: Mapping[str, int]
    head: int


@dataclass(frozen=True, eq=False)
class LatentCodec:
    """Packs chunks of codes under a prior.

    >>> import numpy as np
    >>> codes = Codes.from_dense(np.eye(100, 8, dtype=np.int64) * 3)
    >>> codec = LatentCodec.fit([codes])
    >>> int(codec.unpack(codec.pack(codes)).to_dense()[3, 3])
    3
    """

    prior: Prior

    @classmethod
    def fit(cls, chunks: list[Codes]) -> LatentCodec:
        """The factorized prior fitted on chunks of codes; signs are coded when a level is negative."""
        from saecodec.priors.fit_factorized import LatentStatistics, fit_factorized

        sizes = {codes.n_latents for codes in chunks}
        if len(sizes) != 1 or not 1 <= min(sizes) <= MAX_LATENTS:
            raise InputError(
                f"fitting needs chunks of one number of latents in [1, {MAX_LATENTS}], found {sorted(sizes)}"
            )
        statistics = LatentStatistics(chunks[0].n_latents)
        for codes in chunks:
            statistics.add(codes.check())
        return cls(fit_factorized(chunks, statistics, signed=statistics.signed))

    def pack(self, codes: Codes) -> bytes:
        """The chunk of `codes`: identical bytes for identical codes. InputError when they do not fit the prior."""
        if codes.n_latents != self.prior.n_latents:
            raise InputError(f"codes of {codes.n_latents} latents, but the prior is for {self.prior.n_latents}")
        if codes.n_rows > MAX_CHUNK_ROWS:
            raise InputError(f"a chunk holds at most {MAX_CHUNK_ROWS} rows, got {codes.n_rows}")
        codes.check()
        if len(codes.columns) > _MAX_COLUMNS or len(codes.columns) * codes.n_rows > _MAX_COLUMN_VALUES:
            raise InputError(
                f"a chunk holds at most {_MAX_COLUMNS} columns and {_MAX_COLUMN_VALUES} values in them, got "
                f"{len(codes.columns)} columns of {codes.n_rows} rows: use fewer rows a chunk"
            )
        head = varint(codes.n_rows) + varint(len(codes.columns))
        columns = [blob(name.encode()) + _pack_column(values) for name, values in sorted(codes.columns.items())]
        chunk = head + b"".join(columns) + self.prior.encode(codes)
        check_expansion(NONZERO_BYTES * codes.nnz, len(chunk), "a chunk (fewer rows in each, --chunk-rows, have fewer)")
        return chunk

    def unpack(self, chunk: bytes | memoryview, what: str = "chunk") -> Codes:
        """The codes of a chunk. FormatError when the bytes are not one; `what` names it there."""
        reader = ByteReader(chunk, what)
        n_rows, columns, _ = _read_columns(reader)
        codes = self.prior.decode(reader, n_rows, columns)
        reader.end()
        return Codes(codes.indptr, codes.latents, codes.levels, codes.n_latents, columns)

    def unpack_some(self, chunk: bytes | memoryview, latents: NDArray[np.int64], what: str = "chunk") -> Codes:
        """The codes of some latents of a chunk, int64 (n,) in [0, F); nonzeros of others are left out, and, where the
        prior allows it, not decoded. FormatError when what is decoded is not a chunk's."""
        reader = ByteReader(chunk, what)
        n_rows, columns, _ = _read_columns(reader)
        codes = self.prior.decode_some(reader, n_rows, columns, latents)
        reader.end()
        return Codes(codes.indptr, codes.latents, codes.levels, codes.n_latents, columns)

    def chunk_bytes(self, chunk: bytes | memoryview, what: str = "chunk") -> ChunkBytes:
        """Where the bytes of a chunk go, without decoding its streams."""
        reader = ByteReader(chunk, what)
        n_rows, _, columns = _read_columns(reader)
        support, levels = self.prior.stream_bytes(reader, n_rows)
        reader.end()
        return ChunkBytes(support, levels, columns, len(chunk) - support - levels - sum(columns.values()))

    def to_bytes(self) -> bytes:
        """The prior's name and tables."""
        return blob(self.prior.name.encode()) + self.prior.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, what: str = "latent codec") -> LatentCodec:
        """The inverse of `to_bytes`."""
        reader = ByteReader(data, what)
        codec = cls.read(reader)
        reader.end()
        return codec

    def __repr__(self) -> str:
        return f"LatentCodec({self.prior.name}, F={self.prior.n_latents})"

    @classmethod
    def read(cls, reader: ByteReader) -> LatentCodec:
        """Read what `to_bytes` wrote, from a byte string that goes on."""
        return cls(read_prior(bytes(reader.blob()).decode("ascii", "replace"), reader))


def column_names(chunk: bytes | memoryview, what: str = "chunk") -> tuple[str, ...]:
    """Names of the row-aligned columns of a chunk, which no tables are needed for."""
    return tuple(_read_columns(ByteReader(chunk, what))[1])


def _pack_column(values: NDArray[np.int64]) -> bytes:
    """A column as itself (mode 0) or as differences of successive rows (mode 1), whichever is shorter."""
    values = np.asarray(values, np.int64)
    plain = pack_ints(zigzag(values))
    steps = pack_ints(zigzag(np.diff(values, prepend=0)))
    return b"\1" + steps if len(steps) < len(plain) else b"\0" + plain


def _read_columns(reader: ByteReader) -> tuple[int, dict[str, NDArray[np.int64]], dict[str, int]]:
    """Rows, columns, and the bytes of each column."""
    n_rows, n_columns = reader.varint(MAX_CHUNK_ROWS), reader.varint(_MAX_COLUMNS)
    if n_columns * n_rows > _MAX_COLUMN_VALUES:
        raise FormatError(
            f"{reader.what}: {n_columns} columns of {n_rows} rows are more than {_MAX_COLUMN_VALUES} values"
        )
    columns: dict[str, NDArray[np.int64]] = {}
    sizes: dict[str, int] = {}
    for _ in range(n_columns):
        before = reader.left
        try:
            name = bytes(reader.blob()).decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{reader.what}: the name of a column is not UTF-8") from error
        mode = reader.varint(1)
        values = unzigzag(unpack_ints(reader, n_rows))
        if not name or (columns and name <= max(columns)):
            raise FormatError(f"{reader.what}: column {name!r} is not in the order of the names")
        columns[name] = np.cumsum(values) if mode else values
        sizes[name] = before - reader.left
        if n_rows and max(-int(columns[name].min()), int(columns[name].max())) >= MAX_COLUMN:
            raise FormatError(f"{reader.what}: column {name!r} holds values of magnitude 2^38 or more")
    return n_rows, columns, sizes
