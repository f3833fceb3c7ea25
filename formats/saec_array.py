"""`SaecArray`: an open `.saec` file as an array that is decoded where it is looked at. `saecodec.open` makes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from saecodec.codes import Codes
from saecodec.errors import FormatError, InputError
from saecodec.formats.array_index import MOST_DIMENSIONS, row_index
from saecodec.formats.chunk_cache import ChunkCache
from saecodec.formats.damage import Lost
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.layers import Layers, batches_of
from saecodec.limits import check_limit
from saecodec.stored_floats import narrowed

if TYPE_CHECKING:
    from saecodec.codec import Codec
    from saecodec.formats.feature_view import FeatureView
    from saecodec.sae import SAE

CACHE_BYTES: Final = 64 << 20


class SaecArray:
    """The rows of a `.saec` file as an array of the shape that was encoded, indexed as numpy's.

    Only the chunks that hold what is asked for are read and decoded, each once; the last ones are kept. dtype: that of
    the input, of bfloat16 float32. It can be pickled (the file is opened again), read by several threads, and by
    processes that were forked. on_error: what rows of a damaged chunk do, "raise" FormatError, or be "nan"; feature
    activations and levels raise.

    >>> with saecodec.open("acts.saec", sae=sae) as f:        # doctest: +SKIP
    ...     f.shape, f[1000:2000], f[[5, 17, 3]], f[..., :10]
    ...     z = f.features[1000:2000]                         # scipy CSR
    ...     rows, activations = f.feature(123)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sae: SAE | None = None,
        codec: Codec | None = None,
        device: str = "auto",
        base_only: bool = False,
        cache_bytes: int = CACHE_BYTES,
        on_error: str = "raise",
    ) -> None:
        if on_error not in ("raise", "nan"):
            raise InputError(f"on_error is {on_error!r}, expected raise or nan: rows have their places in an array")
        self._arguments: dict[str, Any] = {"sae": sae, "codec": codec, "device": device}
        self._arguments |= {"base_only": base_only, "cache_bytes": cache_bytes, "on_error": on_error}
        self.file: SaecFile = open_saec(path, sae=sae, codec=codec, device=device)
        self.base_only, self.on_error, self._cache = base_only, on_error, ChunkCache(cache_bytes)

    def __reduce__(self) -> Any:
        return _reopen, (self.file.path, self._arguments)

    # -- the rows ------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """(*leading, *row)."""
        return self.file.shape

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that an index gives."""
        return np.dtype("float32" if self.file.dtype == "bfloat16" else self.file.dtype)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def n_rows(self) -> int:
        """T, over the flattened leading dimensions."""
        return self.file.n_rows

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        if self.ndim > MOST_DIMENSIONS:
            raise InputError(
                f"{self.file.path}: has {self.ndim} dimensions, and an array of numpy at most {MOST_DIMENSIONS}: take "
                "rows by their numbers (take), or iterate"
            )
        row_bytes = max(8, self.file.header.width * self.dtype.itemsize)  # rows have numbers, too
        rows, rest = row_index(index, self.file.index.leading, len(self.file.row_shape), row_bytes)
        found = self.take(rows.reshape(-1)).reshape(*rows.shape, *self.file.row_shape)
        return found if not rest else found[rest]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a .saec file is decoded, so its array is always a new one")
        return self[...].astype(dtype or self.dtype, copy=False)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """The rows chunk by chunk, (n, d), flattened leading dimensions, large chunks in parts; chunks are not kept."""
        self.file.check_rows()
        self.file.check_size()
        for part in self.file.salvaged_layers(base_only=self.base_only):
            for _, rows in self._pieces(part.error if isinstance(part, Lost) else part, part.n_rows):
                yield rows

    def take(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Rows by their numbers over the flattened leading dimensions, in [0, T), in any order: (n, d)."""
        self.file.check_rows()
        width = self.file.header.width
        if len(numbers):
            _ = self.file.decoder  # whose width is the header's: else that could claim any amount of memory
        check_limit("array_bytes", len(numbers) * width * self.dtype.itemsize, self.file.path)
        out = np.empty((len(numbers), width), self.dtype)
        for places, layers in self._pick(numbers):
            for piece, rows in self._pieces(layers, len(places)):
                out[places[piece]] = rows
        return out

    def take_codes(self, numbers: NDArray[np.int64]) -> Codes:
        """The codes of rows by their numbers, in [0, T), in any order; `file.codes` gives ranges, chunk by chunk."""
        order, parts = np.empty(len(numbers), np.int64), []
        at = 0
        for places, layers in self._pick(numbers, base_only=True):
            if isinstance(layers, FormatError):
                raise layers
            order[places] = np.arange(at, at + len(places))
            at += len(places)
            parts.append(layers.codes)
        return Codes.concatenate(parts, self.file.codec.latents.prior.n_latents).take(order)

    def _pieces(self, layers: Layers | FormatError, n_rows: int) -> Iterator[tuple[slice, NDArray[Any]]]:
        """The rows of a chunk's layers in parts of bounded size; NaN where they are lost, if they are to be that."""
        width = self.file.header.width
        for piece in batches_of(n_rows, width):
            try:
                if isinstance(layers, FormatError):
                    raise layers
                rows = narrowed(self.file.reconstruct(layers[piece]), self.dtype.name)
            except FormatError:
                if self.on_error == "raise":
                    raise
                rows = np.full((piece.stop - piece.start, width), np.nan, self.dtype)
            yield piece, rows

    # -- their feature activations -------------------------------------------------------------------------------------

    @cached_property
    def features(self) -> FeatureView:
        """The feature activations, (T, F): an index of rows gives a scipy CSR matrix. The SAE is not run; a file of
        rows needs it for the norms of its directions."""
        from saecodec.formats.feature_view import FeatureView

        return FeatureView(self)

    @cached_property
    def levels(self) -> FeatureView:
        """The integer levels of the latents, as `features` gives activations; for which no SAE is needed."""
        from saecodec.formats.feature_view import FeatureView

        return FeatureView(self, levels=True)

    def feature(self, latent: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Where a latent fires: numbers of rows, int64 (n,), ascending, and its activations, (n,).

        Only what is coded with it is decoded: of the factorized prior its group, about a sixteenth of a chunk; of the
        context prior its block and those before it. InputError when there is no such latent.
        """
        from saecodec.formats.feature_view import activations_of, codes_of_latents, scipy_dtype

        rows, values = [np.zeros(0, np.int64)], [np.zeros(0, scipy_dtype(self.file))]
        for first, codes in codes_of_latents(self.file, np.array([latent])):
            rows.append(first + codes.rows())
            values.append(activations_of(self.file, codes))
        return np.concatenate(rows), np.concatenate(values)

    def top(self, latent: int, k: int = 20) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The k rows in which a latent fires most, and its activations there, falling; of equal ones the first."""
        rows, values = self.feature(latent)
        order = np.argsort(-values, kind="stable")[: max(k, 0)]
        return rows[order], values[order]

    # -- chunks --------------------------------------------------------------------------------------------------------

    def _pick(
        self, numbers: NDArray[np.int64], *, base_only: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], Layers | FormatError]]:
        """Places in `numbers` (T rows in any order), and the layers of the rows there, chunk by chunk; of a damaged
        chunk what is wrong with it."""
        order = np.argsort(numbers, kind="stable")
        wanted = numbers[order]
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < self.n_rows:
            raise IndexError(f"rows are 0 to {self.n_rows - 1}, got {wanted[0]} to {wanted[-1]}")
        first = self.file.index.first_row
        chunk = np.searchsorted(first, wanted, side="right") - 1
        edges = np.flatnonzero(np.diff(chunk, prepend=-1, append=-1))
        chunks = chunk[edges[:-1]].tolist()
        for i, layers, a, b in zip(chunks, self._chunks(chunks, base_only), edges[:-1], edges[1:], strict=True):
            yield order[a:b], layers if isinstance(layers, FormatError) else layers.take(wanted[a:b] - first[i])

    def _chunks(self, chunks: list[int], base_only: bool) -> Iterator[Layers | FormatError]:
        """Chunks, numbers in ascending order, from the cache or else the file."""
        base_only = base_only or self.base_only
        held = {i: self._cache.get(i) for i in chunks}
        read = self.file.salvaged_chunks([i for i in chunks if held[i] is None], base_only=base_only)
        keep = not self.file.header.residual or base_only == self.base_only
        for i in chunks:
            layers = held[i] or next(read)
            if keep and isinstance(layers, Layers):
                self._cache.put(i, layers)
            yield layers

    # -- the file ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self) -> SaecArray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"SaecArray({self.file.path!r}, shape={self.shape}, dtype={self.dtype}, chunks={len(self.file.index.rows)})"
        )


def _reopen(path: str, arguments: dict[str, Any]) -> SaecArray:
    return SaecArray(path, **arguments)
