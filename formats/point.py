"""A measured point: a file that was written and decoded again, with the uncertainty of its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.attribution import Attribution
from saecodec.bootstrap import LEVEL, RESAMPLES, Blocks, interval
from saecodec.distortion import Distortion
from saecodec.estimates import CodeStatistics
from saecodec.formats.array_source import ArraySource
from saecodec.formats.file_sizes import bytes_by_part
from saecodec.formats.read_back import Decoded, RowCollector, RowFigures, read_back, spread_of
from saecodec.formats.saec import SaecFile
from saecodec.sequences import positions as positions_of

Figures = NDArray[np.float64]
Observer = Callable[[Decoded], None]


class Ground:
    """What all measures on the same rows share: the rows' spread about their mean, and how they are resampled.

    ids: sequence ids, (T,), or None. numbers, positions: what rows are called in tables, and where they stand in their
    sequences, int64 (T,); by default their places in `source`, and what the ids say.
    """

    def __init__(
        self,
        source: ArraySource,
        ids: NDArray[np.integer[Any]] | None = None,
        *,
        numbers: NDArray[np.int64] | None = None,
        positions: NDArray[np.int64] | None = None,
    ) -> None:
        self.source, self.ids = source, ids
        self.numbers = np.arange(source.n_rows) if numbers is None else numbers
        self.positions = positions_of(np.asarray(ids)) if positions is None and ids is not None else positions
        self.blocks = Blocks.of(source.n_rows, ids)
        self.spread = spread_of(source)

    @cached_property
    def draws(self) -> Figures:
        """Draws of blocks, float64 (1 + B, N); the first is all rows once."""
        return self.blocks.draws()

    @cached_property
    def _rows(self) -> Figures:
        return self.draws @ self.blocks.counts

    @cached_property
    def _spreads(self) -> Figures:
        return self.draws @ self.blocks.sums(self.spread)

    @property
    def varies(self) -> bool:
        """Whether there is an NMSE: some row differs from the mean."""
        return bool(self.spread.sum() > 0)

    def means(self, values: Figures) -> Figures:
        """The mean over rows of values (T,), in each draw: float64 (1 + B,)."""
        return np.asarray(self.draws @ self.blocks.sums(values) / self._rows)

    def nmses(self, squared_error: Figures) -> Figures:
        """The NMSE of squared errors of rows (T,), in each draw: float64 (1 + B,). A draw's variance is about the mean
        of all rows. NaN in a draw of rows that are all at that mean."""
        spreads = np.where(self._spreads > 0, self._spreads, np.nan)
        return np.asarray(self.draws @ self.blocks.sums(squared_error) / spreads)

    def told(self) -> dict[str, Any]:
        """How intervals were made."""
        return {"unit": self.blocks.unit, "blocks": len(self.blocks), "resamples": RESAMPLES, "level": LEVEL}


@dataclass(frozen=True, eq=False)
class Point:
    """A file of all rows of a ground. parts: its bytes by what they are for, adding up. rows: figures of each row.
    ground: what it was measured on."""

    ground: Ground
    step: float
    residual_step: float | None
    file_bytes: int
    parts: dict[str, int]
    rows: RowFigures
    distortion: Distortion
    statistics: CodeStatistics
    attribution: Attribution

    @cached_property
    def bits(self) -> Figures:
        """Bits per row in each draw, float64 (1 + B,)."""
        return self.ground.means(self.rows.bits) + self.rows.shared / max(len(self.rows.bits), 1)

    @cached_property
    def nmses(self) -> Figures:
        """NMSE in each draw, float64 (1 + B,)."""
        return self.ground.nmses(self.rows.squared_error)

    @property
    def nmse_median(self) -> float | None:
        """Median over rows of |x - x_hat|^2 / |x - mean|^2: a typical row, where a few outliers rule the NMSE."""
        spread = self.ground.spread
        ratio = self.rows.squared_error[spread > 0] / spread[spread > 0]
        return float(np.median(ratio)) if len(ratio) else None

    def facts(self) -> dict[str, Any]:
        """For programs. None stands for what is not defined: no rows, or rows that do not vary."""
        n_rows = len(self.rows.bits)
        nmse = self.distortion.nmse
        return {
            "step": self.step,
            "residual_step": self.residual_step,
            "file_bytes": self.file_bytes,
            "bytes": self.parts,
            "bits_per_row": 8 * self.file_bytes / n_rows if n_rows else None,
            "bits_interval": interval(self.bits[1:]) if n_rows else None,
            "nmse": nmse,
            "nmse_interval": interval(self.nmses[1:]) if nmse is not None else None,
            "nmse_median": self.nmse_median,
            "cosine": self.distortion.cosine,
            "l0": self.statistics.l0,
            "estimates": {"l0_formula": self.statistics.l0_formula, "sum_entropy": self.statistics.sum_entropy},
        }


def read_point(file: SaecFile, ground: Ground, observers: Sequence[Observer] = ()) -> Point:
    """Decode a file of the rows of `ground`; observers see each chunk."""
    decoder = file.decoder
    attribution, rows = Attribution(decoder), RowCollector(file.header.width)
    statistics = CodeStatistics(decoder.latents.prior.n_latents)
    for chunk in read_back(file, ground.source, attribution):
        rows.add(chunk)
        statistics.add(chunk.layers.codes)
        for observe in observers:
            observe(chunk)
    return Point(
        ground,
        file.header.step,
        None if decoder.residual is None else decoder.residual.step,
        file.size,
        bytes_by_part(file),
        rows.figures(file.size),
        rows.distortion,
        statistics,
        attribution,
    )
