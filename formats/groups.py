"""Labels of rows, such as a domain or a class: what each group of rows costs, and which latents it is about."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError
from saecodec.formats.point import Ground, Point
from saecodec.formats.read_back import Decoded
from saecodec.formats.row_values import load_row_values

MAX_GROUPS: Final = 256
_LATENTS: Final = 5  # named for each group
_MAX_CELLS: Final = 1 << 25  # groups x latents: 256 MB

Figures = NDArray[np.float64]


class Groups:
    """Labels of T rows. names: of the groups, sorted. index: group of each row, int64 (T,)."""

    def __init__(self, labels: NDArray[Any], what: str = "labels") -> None:
        names, index = np.unique(labels, return_inverse=True)
        if len(names) > MAX_GROUPS:
            raise InputError(f"{what}: {len(names)} different labels; a table of groups has at most {MAX_GROUPS}")
        self.names, self.index = [str(name) for name in names], index.reshape(-1)

    @classmethod
    def load(cls, path: str | os.PathLike[str], n_rows: int, rows: NDArray[np.int64]) -> Groups:
        """The labels of `rows`, from a `.npy` file of integers or strings, one for each of `n_rows` rows."""
        labels = load_row_values(path, n_rows, "iubUS", "a label, integer or string, for each")
        if labels.dtype.kind == "S":
            labels = np.char.decode(labels, "utf-8", "replace")
        return cls(labels[rows], os.fspath(path))


class GroupTable:
    """Collects bits of latents by group from the chunks of a file."""

    def __init__(self, groups: Groups, n_latents: int) -> None:
        self._groups, self._n_latents = groups, n_latents
        cells = len(groups.names) * n_latents
        if cells > _MAX_CELLS:
            raise InputError(f"{len(groups.names)} groups of {n_latents} latents are too many for a table: give fewer")
        self._bits = np.zeros(cells)

    def add(self, chunk: Decoded) -> None:
        """Add a chunk."""
        codes = chunk.layers.codes
        group = self._groups.index[chunk.first_row + codes.rows()]
        cell = group * self._n_latents + codes.latents
        np.add.at(self._bits, cell, chunk.support + chunk.levels)

    def columns(self, point: Point, ground: Ground) -> dict[str, list[Any]]:
        """The table. bits: per row of the group. nmse: of its rows, about the mean of all rows. latents: those with the
        most bits per row beyond what they take in all rows."""
        index, n = self._groups.index, len(self._groups.names)
        rows = np.bincount(index, minlength=n)
        bits, error, spread = (
            np.bincount(index, values, n) for values in (point.rows.bits, point.rows.squared_error, ground.spread)
        )
        by_latent = self._bits.reshape(n, self._n_latents)
        beyond = by_latent / rows[:, None] - by_latent.sum(0) / max(len(index), 1)
        best = np.argsort(-beyond, axis=1, kind="stable")[:, :_LATENTS]
        latents = [" ".join(str(latent) for latent in best[g] if beyond[g, latent] > 0) for g in range(n)]
        return {
            "group": self._groups.names,
            "rows": rows.tolist(),
            "bits": (bits / rows).tolist(),
            "nmse": [e / s if s > 0 else None for e, s in zip(error.tolist(), spread.tolist(), strict=True)],
            "share_of_bits": (bits / bits.sum()).tolist(),
            "latents": latents,
        }
