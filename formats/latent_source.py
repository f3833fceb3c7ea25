"""Sources of feature activations: what `encode --latents` takes, whichever file or memory they lie in.

A source of shape (..., F) is T rows of F latents, T the product of the leading dimensions, of which only the nonzeros
(and explicit zeros) are stored.
"""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.array_source import float_dtype
from saecodec.formats.array_streams import reading_file
from saecodec.latent_rows import LatentRows
from saecodec.priors.factorized import MAX_LATENTS, MAX_NONZEROS

MAX_ROWS: Final = 1 << 38
"""Most rows of a source: sequence and position fit one integer."""
_EMPTY_ROWS: Final = 1 << 20
_ROWS_PER_NONZERO: Final = 1 << 10


@dataclass(frozen=True)
class StoredBytes:
    """What a source takes on the disk. columns: of it, what stands beside the activations, such as tokens."""

    total: int
    columns: int = 0


class LatentSource(ABC):
    """Feature activations; `path` names them in messages, `kind` says where they are from ("delphi"...).

    shape: (..., F). dtype: "float16", "bfloat16", "float32" or "float64". columns: names of the row-aligned integers
    that come with each row. user: text that a file made from it keeps, for who writes it back. stored: its size.

    Raises InputError when the shape is impossible.
    """

    kind: str
    columns: tuple[str, ...] = ()

    def __init__(
        self,
        path: str,
        shape: tuple[int, ...],
        dtype: str,
        stored: StoredBytes,
        user: Mapping[str, str] | None = None,
    ) -> None:
        if not shape or not 1 <= shape[-1] <= MAX_LATENTS or math.prod(shape[:-1]) >= MAX_ROWS or min(shape) < 0:
            raise InputError(
                f"{path}: has shape {shape}; expected rows of 1 to {MAX_LATENTS} latents, (..., F), fewer than 2^38"
            )
        self.path, self.shape, self.dtype, self.stored = path, shape, dtype, stored
        self.user = dict(user or {})

    @property
    def n_latents(self) -> int:
        """F."""
        return self.shape[-1]

    @property
    def n_rows(self) -> int:
        """T."""
        return math.prod(self.shape[:-1])

    def chunks(self, sizes: Sequence[int]) -> Iterator[LatentRows]:
        """Yield all rows in order, so many at a time as `sizes` lists; every call starts again.

        InputError while iterating: the file is truncated or corrupt, a latent is out of range or twice in a row.
        """
        edges = list(accumulate(sizes, initial=0))
        if edges[-1] != self.n_rows:
            raise InputError(f"{self.path}: chunks of {edges[-1]} rows were asked for, it has {self.n_rows}")
        with reading_file(self.path):
            yield from self._read(pairwise(edges))

    @abstractmethod
    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[LatentRows]:
        """Yield the rows [start, stop) of each span; the spans follow each other."""


class MemoryLatents(LatentSource):
    """Feature activations in memory, as compressed sparse rows: indptr (T + 1,), latents and values (K,).

    values: float16, float32 or float64, or uint16 with dtype="bfloat16". Latents inside a row come in any order.
    columns: integers beside the rows, (T,) each.
    """

    kind = "memory"

    def __init__(
        self,
        indptr: npt.NDArray[np.integer[Any]],
        latents: npt.NDArray[np.integer[Any]],
        values: npt.NDArray[Any],
        shape: tuple[int, ...],
        *,
        dtype: str | None = None,
        columns: Mapping[str, npt.NDArray[np.int64]] | None = None,
        path: str = "<memory>",
        stored: StoredBytes | None = None,
    ) -> None:
        size = StoredBytes(sum(int(array.nbytes) for array in (indptr, latents, values)))
        super().__init__(path, shape, dtype or float_dtype(values.dtype, path), stored or size)
        self._indptr, self._latents, self._values = np.asarray(indptr, np.int64), latents, values
        self._columns = dict(columns or {})
        self.columns = tuple(self._columns)
        check_pointers(self._indptr, self.n_rows, len(latents), len(values), path)

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[LatentRows]:
        for start, stop in spans:
            a, b = int(self._indptr[start]), int(self._indptr[stop])
            check_chunk(self.path, start, stop, b - a)
            indptr = self._indptr[start : stop + 1] - a
            rows = LatentRows.sorted(indptr, self._latents[a:b], self._values[a:b], self.n_latents, self.path, start)
            columns = {name: np.asarray(values[start:stop], np.int64) for name, values in self._columns.items()}
            yield replace(rows, columns=columns)


def check_pointers(indptr: npt.NDArray[np.int64], n_rows: int, n_latents: int, n_values: int, path: str) -> None:
    """InputError unless row pointers are those of `n_rows` rows of so many latent numbers and values."""
    if indptr.shape != (n_rows + 1,) or indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise InputError(
            f"{path}: row pointers of shape {indptr.shape}; expected ({n_rows + 1},), from 0 on and never falling"
        )
    if not n_latents == n_values == indptr[-1]:
        raise InputError(
            f"{path}: the row pointers end at {indptr[-1]}, but there are {n_latents} latent numbers and {n_values} "
            "values: the file is truncated or corrupt"
        )


def check_chunk(path: str, start: int, stop: int, nnz: int) -> None:
    """InputError when rows start:stop hold too many activations for one chunk."""
    if nnz > MAX_NONZEROS:
        raise InputError(
            f"{path}: rows {start}:{stop} hold {nnz} activations, a chunk at most {MAX_NONZEROS}: use fewer rows a "
            "chunk (--chunk-rows)"
        )


def check_density(path: str, n_rows: int, nnz: int) -> None:
    """InputError when a shape claims far more rows than there are activations: a few bytes would cost much memory."""
    if n_rows > _EMPTY_ROWS + _ROWS_PER_NONZERO * nnz:
        raise InputError(
            f"{path}: has {nnz} activations in {n_rows} rows, so nearly all rows are empty: is its shape right?"
        )


def with_latents(path: str, found: int, given: int | None) -> int:
    """F: as the file says or as given; InputError when the file needs more."""
    if given is None:
        return found
    if given < found:
        raise InputError(f"{path}: has {found} latents or more, but --n-latents says {given}")
    return given


def open_latents(path: str | os.PathLike[str], n_latents: int | None = None, key: str | None = None) -> LatentSource:
    """Open stored feature activations.

    A scipy CSR `.npz`, a torch sparse `.pt` (CSR, or COO without duplicates), a folder of delphi's cache
    (`<start>_<end>.safetensors` and `config.json`), or one of saerch's `topk_indices...npy`, `topk_values...npy`, whose
    other half lies beside it. n_latents: F, where the file does not say it or says too little. key: which tensor of a
    `.pt` that holds several.

    Raises InputError: no such file, of another kind, truncated or corrupt; F is not known; a dtype that is no float.
    """
    name = os.fspath(path)
    if key is not None and not name.lower().endswith((".pt", ".pth")):
        raise InputError(f"{name}: a key (--key) chooses a tensor of a .pt file; leave it out here")
    if not os.path.exists(name):
        raise InputError(f"{name}: no such file or folder; expected feature activations ({_KINDS})")
    opener = _opener(name)
    if opener is None:
        raise InputError(f"{name}: not a kind of feature activations that is known; expected {_KINDS}")
    with reading_file(name):
        return opener(name, n_latents, key)


_KINDS: Final = "a scipy CSR .npz, a torch sparse .pt, a delphi cache folder, or saerch's topk_indices/topk_values .npy"


def _opener(name: str) -> Callable[[str, int | None, str | None], LatentSource] | None:
    # Each is imported when it is needed: torch for `.pt` alone.
    if os.path.isdir(name):
        from saecodec.formats.delphi import DelphiSource

        return lambda name, n_latents, key: DelphiSource(name, n_latents)
    extension = os.path.splitext(name)[1].lower()
    if extension == ".npz":
        from saecodec.formats.sparse_npz import SparseNpz

        return lambda name, n_latents, key: SparseNpz(name, n_latents)
    if extension in (".pt", ".pth"):
        from saecodec.formats.sparse_torch import open_sparse_torch

        return open_sparse_torch
    if re.match(r"topk_(indices|values).*\.npy$", os.path.basename(name)):
        from saecodec.formats.saerch import SaerchPair

        return lambda name, n_latents, key: SaerchPair(name, n_latents)
    return None
