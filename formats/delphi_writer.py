"""Writing delphi's cache: splits of latents and `config.json`, as delphi's own `save_splits` and loader have them.

Activations arrive row by row, and each split gets its own; they wait in temporary files, so that memory stays flat.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from typing import IO, Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from saecodec.errors import FormatError, OutputError
from saecodec.formats.delphi_layout import CONFIG, TOKEN, Layout, Split
from saecodec.formats.temporary import temporary_file
from saecodec.latent_rows import LatentRows
from saecodec.stored_floats import STORED

_COPY: Final = 1 << 22
_NUMPY: Final = {"U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "I64": "<i8", "U64": "<u8"}
FLOATS: Final = {"float16": "F16", "float32": "F32"}
"""The dtypes that activations may have, and what safetensors calls them."""
_ORDER: Final = ("I16", "U16", "F16", "I32", "U32", "F32", "I64", "U64")
"""Tensors of a file lie in the order of their dtypes, the last of these first, then of their names; safetensors does so
that each is aligned."""


class DelphiWriter:
    """Writes the cache of an array (sequences, positions, F) into an empty folder; a context. `finish` completes it.

    layout: of the cache; a split whose dtype of locations is "" has the smallest that delphi would take. dtype: of the
    activations, one of `FLOATS`.
    """

    def __init__(self, folder: str, shape: tuple[int, int], layout: Layout, dtype: str) -> None:
        self._folder, self._shape, self._layout, self._dtype = folder, shape, layout, dtype
        self._stack = ExitStack()
        self._splits = [_SplitSpool(split, self._temporary(), self._temporary()) for split in layout.splits]
        self._tokens = self._temporary() if layout.tokens else None
        self._row, self._nnz = 0, 0

    def __enter__(self) -> DelphiWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _temporary(self) -> BinaryIO:
        return self._stack.enter_context(temporary_file())

    def add(self, rows: LatentRows) -> None:
        """Write the next rows, whose values have the dtype of the file."""
        row = rows.rows() + self._row
        sequence, position = np.divmod(row, max(self._shape[1], 1))
        locations = np.stack([sequence, position, rows.latents.astype(np.int64)], axis=1)
        for spool in self._splits:
            spool.add(locations, rows.values)
        if self._tokens is not None:
            if TOKEN not in rows.columns:
                raise FormatError(f"a delphi cache with tokens needs the column {TOKEN!r}, which these rows lack")
            dtype = np.dtype(_NUMPY[self._layout.tokens])
            self._tokens.write(_integers(rows.columns[TOKEN], dtype, "tokens").tobytes())
        self._row += rows.n_rows
        self._nnz += rows.nnz

    def finish(self) -> None:
        """Write the files. FormatError when an activation is in no split."""
        lost = self._nnz - sum(spool.nnz for spool in self._splits)
        if lost:
            raise FormatError(
                f"{lost} activations are of latents that are in no split of the layout {self._layout.splits}"
            )
        for spool in self._splits:
            code = spool.dtype()
            tensors: dict[str, _Tensor] = {
                "locations": (code, (spool.nnz, 3), spool.locations, "<u4"),
                "activations": (FLOATS[self._dtype], (spool.nnz,), spool.activations, STORED[self._dtype]),
            }
            if self._tokens is not None:
                tensors["tokens"] = (self._layout.tokens, self._shape, self._tokens, _NUMPY[self._layout.tokens])
            with open(os.path.join(self._folder, spool.split.name), "wb") as file:
                _write_safetensors(file, tensors)
        if self._layout.config is not None:
            with open(os.path.join(self._folder, CONFIG), "w", encoding="utf-8", newline="") as text:
                text.write(self._layout.config)


class _SplitSpool:
    """The activations of a split so far, in two files: locations as uint32, and values."""

    def __init__(self, split: Split, locations: BinaryIO, activations: BinaryIO) -> None:
        self.split, self.locations, self.activations = split, locations, activations
        self.nnz = 0
        self._largest = np.zeros(3, np.int64)

    def add(self, locations: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
        mine = (locations[:, 2] >= self.split.first) & (locations[:, 2] <= self.split.last)
        found = locations[mine] - np.array([0, 0, self.split.first])
        if not len(found):
            return
        self._largest = np.maximum(self._largest, found.max(axis=0))
        self.locations.write(_integers(found, np.dtype("<u4"), "locations").tobytes())
        self.activations.write(np.ascontiguousarray(values[mine]).tobytes())
        self.nnz += len(found)

    def dtype(self) -> str:
        """Of the locations: as the layout says where that holds them, else as delphi chooses it."""
        code = self.split.locations
        if code and self._largest.max() <= np.iinfo(_NUMPY[code]).max:
            return code
        return "U16" if self._largest.max() < 1 << 16 else "U32"


_Tensor = tuple[str, tuple[int, ...], IO[bytes], str]
"""safetensors dtype, shape, and the file of its values in a numpy dtype."""


def _write_safetensors(file: BinaryIO, tensors: dict[str, _Tensor]) -> None:
    """Write tensors from files, byte for byte as the safetensors library would."""
    names = sorted(tensors, key=lambda name: (-_ORDER.index(tensors[name][0]), name))
    header, at = {}, 0
    for name in names:
        code, shape, _, _ = tensors[name]
        end = at + math.prod(shape) * (int(code[1:]) // 8)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": (at, end)}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        code, _, values, stored = tensors[name]
        values.seek(0)
        while block := values.read(_COPY):
            if code in _NUMPY and _NUMPY[code] != stored:
                block = np.frombuffer(block, stored).astype(_NUMPY[code]).tobytes()
            file.write(block)


def _integers(values: npt.NDArray[np.int64], dtype: np.dtype[Any], what: str) -> npt.NDArray[Any]:
    """The values in a narrower dtype; OutputError when they do not fit."""
    limits = np.iinfo(dtype)
    if values.size and not limits.min <= int(values.min()) <= int(values.max()) <= limits.max:
        raise OutputError(f"{what} from {values.min()} to {values.max()} do not fit the {dtype} of a delphi cache")
    return values.astype(dtype)


def default_config(shape: tuple[int, int], n_splits: int) -> str:
    """A `config.json` for a cache that does not come from one: what is known. delphi's loader opens a tokenizer by
    `model_name` unless it is given one."""
    sequences, positions = shape
    facts = {"cache_ctx_len": positions, "ctx_len": positions, "n_tokens": sequences * positions, "n_splits": n_splits}
    return json.dumps(facts | {"model_name": ""})
