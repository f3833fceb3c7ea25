"""delphi's cache of feature activations: a folder of splits `<first>_<last>.safetensors` and `config.json`.

A split holds the activations of the latents first..last: `locations` (K, 3), integers (sequence, position, latent -
first), sorted; `activations` (K,), float16; and perhaps `tokens` (sequences, positions), the same in every split.
From delphi's sources: latents/cache.py (`save_splits`, `save_config`) and latents/loader.py (`TensorBuffer.load`).
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.delphi_layout import CONFIG, INTEGERS, SPLIT, TOKEN, USER_KEY, Layout, Split, check_splits
from saecodec.formats.latent_source import LatentSource, StoredBytes, check_chunk, check_density, with_latents
from saecodec.latent_rows import LatentRows

_DTYPES: Final = {"F16": "float16", "F32": "float32"}
_MAX_CONFIG: Final = 1 << 20
_SCAN: Final = 1 << 16


class DelphiSource(LatentSource):
    """A cache folder; F is the last latent of its splits and one, unless more is given.

    Sequences are all of one length: that of the tokens, or `ctx_len` of the config (`cache_ctx_len` in later versions).
    """

    kind = "delphi"

    def __init__(self, path: str, n_latents: int | None) -> None:
        names = sorted(os.listdir(path))
        matches = [match for name in names if (match := SPLIT.fullmatch(name))]
        other = [name for name in names if name.endswith(".safetensors") and not SPLIT.fullmatch(name)]
        if other or not matches:
            raise InputError(_not_a_cache(path, other, names))
        parts = [(int(match[1]), int(match[2]), _Split(os.path.join(path, match[0]))) for match in matches]
        parts.sort(key=lambda part: part[0])
        splits = tuple(Split(first, last, part.locations) for first, last, part in parts)
        check_splits(splits, path)
        self._parts = [(split, part) for split, (_, _, part) in zip(splits, parts, strict=True)]
        opened = [part for _, part in self._parts]
        for what in ("dtype", "tokens", "token_shape"):
            found = {getattr(part, what) for part in opened}
            if len(found) > 1:
                raise InputError(f"{path}: its splits differ in {what.replace('_', ' ')}: {sorted(map(str, found))}")
        config = _read_config(path)
        sequences, positions = opened[0].token_shape or self._guessed_shape(path, config)
        wide = (sequences, positions, with_latents(path, splits[-1].last + 1, n_latents))
        total = sum(os.path.getsize(part.path) for part in opened)
        token_bytes = sum(part.token_bytes for part in opened)
        layout = Layout(splits, opened[0].tokens, config)
        user = {USER_KEY: layout.to_text()}
        super().__init__(path, wide, opened[0].dtype, StoredBytes(total, token_bytes), user)
        self.columns = (TOKEN,) if layout.tokens else ()

    def _guessed_shape(self, path: str, config: str | None) -> tuple[int, int]:
        """Sequences and positions of a cache without tokens."""
        facts = json.loads(config) if config else {}
        length = facts.get("ctx_len", facts.get("cache_ctx_len"))
        sequences, positions = 0, 0
        for _, part in self._parts:
            with part.opened() as tensors:
                for at in range(0, part.nnz, _SCAN):
                    block = tensors.locations(at, min(at + _SCAN, part.nnz))
                    sequences = max(sequences, int(block[:, 0].max()) + 1)
                    positions = max(positions, int(block[:, 1].max()) + 1)
        if type(length) is int and length > 0:
            positions = max(positions, length)
        check_density(path, sequences * positions, sum(part.nnz for _, part in self._parts))
        return sequences, positions

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[LatentRows]:
        positions = self.shape[1]
        with ExitStack() as stack:
            opened = [(split, part.nnz, stack.enter_context(part.opened())) for split, part in self._parts]
            at = [0] * len(opened)
            for start, stop in spans:
                found = []
                for i, (split, nnz, tensors) in enumerate(opened):

                    def row_of(k: int, tensors: _Tensors = tensors) -> int:
                        sequence, position, _ = tensors.locations(k, k + 1)[0].tolist()
                        return int(sequence * positions + position)

                    end = nnz if stop == self.n_rows else bisect_left(range(nnz), stop, at[i], key=row_of)
                    check_chunk(self.path, start, stop, end - at[i])
                    found.append(self._part(split, tensors, (at[i], end), (start, stop)))
                    at[i] = end
                rows, latents, values = (np.concatenate(column) for column in zip(*found, strict=True))
                check_chunk(self.path, start, stop, len(rows))
                order = np.argsort(rows, kind="stable")  # splits follow each other, so latents rise in each row
                indptr = np.concatenate([[0], np.cumsum(np.bincount(rows - start, minlength=stop - start))])
                columns = {TOKEN: self._tokens(opened, start, stop)} if self.columns else {}
                yield LatentRows(indptr, latents[order].astype(np.int32), values[order], columns)

    def _part(
        self, split: Split, tensors: _Tensors, places: tuple[int, int], rows: tuple[int, int]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Row, latent and value of the activations of a split at some places, which are those of rows start:stop."""
        sequences, positions = self.shape[:2]
        where, (start, stop) = os.path.join(self.path, split.name), rows
        sequence, position, latent = tensors.locations(*places).T
        limits = ((sequence, sequences, "sequences"), (position, positions, "positions"))
        for values, limit, name in (*limits, (latent, split.last - split.first + 1, "latents in this split")):
            if len(values) and not 0 <= values.min() <= values.max() < limit:
                bad = int(values.max()) if values.max() >= limit else int(values.min())
                raise InputError(f"{where}: a location is {bad}, but there are {limit} {name}")
        row = sequence * positions + position
        key = (row - start) * self.n_latents + latent
        if len(row) and (not start <= row.min() <= row.max() < stop or (np.diff(key) <= 0).any()):
            raise InputError(
                f"{where}: locations {places[0]} to {places[1]} are not in the order of sequence, position and latent, "
                "or one is there twice: delphi writes them sorted; sort all tensors of the split alike"
            )
        return row, latent + split.first, tensors.activations(*places)

    def _tokens(self, opened: list[tuple[Split, int, _Tensors]], start: int, stop: int) -> npt.NDArray[np.int64]:
        """The tokens of rows start:stop; InputError when the splits have different ones."""
        n = self.shape[1]
        first = start // n if n else 0
        blocks = [tensors.tokens(first, -(-stop // n) if n else 0) for _, _, tensors in opened]
        for (split, _, _), block in zip(opened, blocks, strict=True):
            if not np.array_equal(block, blocks[0]):
                raise InputError(
                    f"{self.path}: {split.name} has other tokens than {opened[0][0].name}: is it of another run?"
                )
        return blocks[0].reshape(-1)[start - first * n : stop - first * n]


class _Split:
    """What the header of a split's file says."""

    def __init__(self, path: str) -> None:
        self.path = path
        with self.opened() as tensors:
            shapes = tensors.shapes()
            codes = tensors.dtypes()
        wanted = {"locations", "activations"}
        if not wanted <= shapes.keys() <= wanted | {"tokens"}:
            raise InputError(f"{path}: holds {sorted(shapes)}; expected locations, activations and perhaps tokens")
        self.locations, self.tokens = codes["locations"], codes.get("tokens", "")
        self.nnz = shapes["activations"][0] if len(shapes["activations"]) == 1 else -1
        self.token_shape = shapes.get("tokens", ())
        fine = shapes["locations"] == (self.nnz, 3) and self.locations in INTEGERS
        fine = fine and codes["activations"] in _DTYPES and self.tokens in ("", *INTEGERS)
        if not fine or len(self.token_shape) not in (0, 2):
            found = ", ".join(f"{name} {codes[name]} {shapes[name]}" for name in sorted(shapes))
            raise InputError(
                f"{path}: {found}; expected integer locations (K, 3), activations (K,) of {' or '.join(_DTYPES)}, and "
                "integer tokens (sequences, positions)"
            )
        self.dtype = _DTYPES[codes["activations"]]
        self.token_bytes = math.prod(self.token_shape) * (int(self.tokens[1:]) // 8) if self.tokens else 0

    def opened(self) -> _Tensors:
        """The tensors of the file; a context."""
        return _Tensors(self.path)


class _Tensors:
    """A split's file, open: slices of its tensors, which are read when they are asked for."""

    def __init__(self, path: str) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            file: Any = safe_open(path, framework="numpy")  # Any: it has no type information
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a safetensors file that can be read ({error})") from error
        self._file = file
        self._slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 (not a dict)

    def __enter__(self) -> _Tensors:
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._slices = {}
        self._file.__exit__(*error)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each tensor."""
        return {name: tuple(part.get_shape()) for name, part in self._slices.items()}

    def dtypes(self) -> dict[str, str]:
        """Of each tensor, as safetensors calls it."""
        return {name: str(part.get_dtype()) for name, part in self._slices.items()}

    def locations(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """(stop - start, 3)."""
        return np.asarray(self._take("locations", start, stop), np.int64)

    def activations(self, start: int, stop: int) -> npt.NDArray[Any]:
        """(stop - start,)."""
        return self._take("activations", start, stop)

    def tokens(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Of sequences start:stop."""
        return np.asarray(self._take("tokens", start, stop), np.int64)

    def _take(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        if start == stop:  # safetensors refuses such a slice at the end of a tensor, and any of an empty one
            some = self._slices[name][:1] if self._slices[name].get_shape()[0] else self._file.get_tensor(name)
            return np.asarray(some[:0])
        return np.asarray(self._slices[name][start:stop])


def _read_config(path: str) -> str | None:
    """The text of `config.json`, None when there is none; InputError unless it is a JSON object."""
    name = os.path.join(path, CONFIG)
    if not os.path.isfile(name):
        return None
    if os.path.getsize(name) > _MAX_CONFIG:
        raise InputError(f"{name}: has {os.path.getsize(name)} bytes; expected a small JSON object")
    try:
        with open(name, encoding="utf-8", newline="") as file:
            text = file.read()
        if not isinstance(json.loads(text), dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: is not a JSON object ({error})") from error
    return text


def _not_a_cache(path: str, other: list[str], names: list[str]) -> str:
    inside = [
        name
        for name in names
        if os.path.isdir(os.path.join(path, name)) and any(map(SPLIT.fullmatch, os.listdir(os.path.join(path, name))))
    ]
    if inside:
        return f"{path}: holds the caches of several modules; code each of its own: {', '.join(inside[:20])}"
    found = f"holds {other[0]}" if other else "holds no splits"
    return f"{path}: {found}; expected a delphi cache: files <first latent>_<last latent>.safetensors"
