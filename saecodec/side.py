"""Side information of rows in the bitstream: scales by their logarithm, means uniformly, as columns of integers.

Its precision is fitted: rounding adds at most about half a percent to the squared error that the SAE makes anyway.
Normative: docs/format.md, "Side information".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from saecodec import exact
from saecodec.codes import MAX_COLUMN, Codes
from saecodec.errors import FormatError, InputError
from saecodec.features import Features, Side
from saecodec.normalization import KINDS, has_mean, sequence_scales, unrestored
from saecodec.wire import ByteReader, varint

if TYPE_CHECKING:
    from saecodec.sae import SAE

SCALE: Final = "side.scale"
MEAN: Final = "side.mean"
MAX_RESOLUTION: Final = 1 << 20
_SHARE: Final = 0.005  # of the squared error, that rounding may add in all
_FINEST: Final = 2.0**-36  # step of means, of the largest mean: float32 knows it less well, and columns hold it
_FLOOR: Final = 1e-12  # of the rows' energy, that rounding may add at any rate


def side_columns(kind: str) -> tuple[str, ...]:
    """Names of the columns that hold side information of a kind."""
    return () if kind == "none" else (SCALE, MEAN) if has_mean(kind) else (SCALE,)


@dataclass(frozen=True)
class SideQuantizer:
    """Side information <-> columns of integers.

    kind: of `normalization.KINDS`, not "none". resolution: levels of an octave of scale. centre: the scale of level 0.
    mean_step, mean_centre: mean = mean_centre + column mean_step; for kinds without means 1, 0. Around its centre the
    grid is exact: rows that are all alike have no rounding error that they would share.
    """

    kind: str
    resolution: int
    centre: float
    mean_step: float = 1.0
    mean_centre: float = 0.0

    def columns(self, side: Side) -> dict[str, NDArray[np.int64]]:
        """The columns, int64 (T,), of side information; InputError when a mean cannot be stored."""
        scales, rows = np.unique(side.scale, return_inverse=True)  # decimals may decide: once for equal ones
        there = scales > 0
        octaves = np.log2(np.where(there, scales, self.centre), dtype=np.float64) - math.log2(self.centre)
        level = exact.nearest_integer(
            octaves * self.resolution, lambda i: exact.log2(float(scales[i]), self.centre, self.resolution)
        )
        out = {SCALE: np.where(there, level + (level >= 0), 0)[rows]}  # 0 is no scale at all
        if side.mean is not None:
            mean = np.rint((side.mean.astype(np.float64) - self.mean_centre) / self.mean_step)
            if len(mean) and not np.abs(mean).max() < MAX_COLUMN:
                raise InputError(
                    f"a row's mean is {np.abs(side.mean).max():g}: too large for this codec's steps of "
                    f"{self.mean_step:g}; drop such rows, or fit a codec on rows like them"
                )
            out[MEAN] = mean.astype(np.int64)
        return out

    def side(self, columns: Mapping[str, NDArray[np.int64]], what: str = "encoded rows") -> Side:
        """The side information that columns stand for. FormatError when they are missing or stand for no float32."""
        missing = [name for name in side_columns(self.kind) if name not in columns]
        if missing:
            raise FormatError(f"{what}: without their side information: column {missing[0]!r} is missing")
        stored, rows = np.unique(columns[SCALE], return_inverse=True)  # as above
        with np.errstate(over="ignore"):
            level = stored - (stored > 0)
            grid = self.centre * np.exp2(level / self.resolution)
            scale = exact.nearest(grid, lambda i: exact.exp2(int(level[i]), self.resolution, self.centre))
            scale[stored == 0] = 0
            scale = scale[rows]
            means = self.mean_centre + columns[MEAN] * self.mean_step if has_mean(self.kind) else np.zeros(0)
            mean = means.astype(np.float32)
        if not (np.isfinite(scale).all() and np.isfinite(mean).all()):
            raise FormatError(f"{what}: the side information stands for no float32")
        return Side(scale, mean if has_mean(self.kind) else None)

    def rounded(self, side: Side) -> Side:
        """What a decoder will know of side information."""
        return self.side(self.columns(side))

    def to_bytes(self) -> bytes:
        """Kind and precision."""
        head = varint(KINDS.index(self.kind)) + varint(self.resolution) + struct.pack("<d", self.centre)
        return head + (struct.pack("<dd", self.mean_step, self.mean_centre) if has_mean(self.kind) else b"")

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, what: str) -> SideQuantizer:
        """The inverse of `to_bytes`; FormatError when it is none."""
        reader = ByteReader(data, f"{what}, side information")
        kind, resolution = KINDS[reader.varint(len(KINDS) - 1)], reader.varint(MAX_RESOLUTION)
        (centre,) = struct.unpack("<d", reader.take(8))
        step, mean_centre = struct.unpack("<dd", reader.take(16)) if has_mean(kind) else (1.0, 0.0)
        reader.end()
        if kind == "none" or not resolution or not 0 < centre < math.inf:
            raise FormatError(f"{reader.what}: kind {kind!r}, resolution {resolution}, centre {centre}")
        if not 0 < step < math.inf or not math.isfinite(mean_centre):
            raise FormatError(f"{reader.what}: the step of means is {step}, their centre {mean_centre}")
        return cls(kind, resolution, centre, step, mean_centre)


class SideStatistics:
    """Sums over rows from which the precision of their side information comes."""

    def __init__(self, sae: SAE) -> None:
        self._sae, self._kind, self._width = sae, sae.normalization, sae.width
        self._n_rows = self._n_scales = 0
        self._error = self._energy = self._octaves = self._mean = self._largest = self._coded = 0.0

    def add(self, x: NDArray[np.float32], features: Features) -> None:
        """Add rows, float32 (T, d), and their feature activations; nothing for an SAE that does not normalize rows."""
        side = features.side
        if side is None:
            return
        x_hat = self._sae.rows(features).cpu().numpy()
        scaled = x_hat if side.mean is None else x_hat - side.mean[:, None]
        left = x - x_hat
        self._energy += float(np.einsum("td,td->", scaled, scaled, dtype=np.float64))
        self._error += float(np.einsum("td,td->", left, left, dtype=np.float64))
        self._n_rows += len(x)
        self._coded += float(np.diff(features.indptr) @ np.square(side.scale, dtype=np.float64))
        scales = side.scale[side.scale > 0]
        self._n_scales += len(scales)
        self._octaves += float(np.log2(scales, dtype=np.float64).sum())
        if side.mean is not None:
            self._mean += float(side.mean.sum(dtype=np.float64))
            self._largest = max(self._largest, float(np.abs(side.mean).max(initial=0)))

    def quantizer(self, step: float, error: float | None = None) -> SideQuantizer | None:
        """The precision for rows that are coded at a step, and with `error` a row, or about the SAE's own squared
        error; None for an SAE that does not normalize rows.

        Rounding may add half a percent of the error, and no more than rounding feature activations by `step` does. A
        uniform rounding by a step s adds s^2 / 12: to each of d values, the mean's; times the energy of what the scale
        multiplies, the scale's relative one, which is ln 2 / resolution; times the scale's square, an activation's.
        """
        if self._kind == "none":
            return None
        rows, parts = max(self._n_rows, 1), 2 if has_mean(self._kind) else 1
        energy = self._energy / rows or 1.0
        error = self._error / rows if error is None else error
        coded = self._coded / rows * min(step, 1e18) ** 2 / 12
        budget = max(min(_SHARE * error, coded), _FLOOR * energy) / parts
        resolution = min(math.ceil(math.log(2) * math.sqrt(energy / (12 * budget))), MAX_RESOLUTION)
        centre = 2.0 ** (self._octaves / max(self._n_scales, 1))
        if not has_mean(self._kind):
            return SideQuantizer(self._kind, resolution, centre)
        of_means = max(math.sqrt(12 * budget / self._width), _FINEST * self._largest)
        return SideQuantizer(self._kind, resolution, centre, of_means, self._mean / rows)


def with_side(codes: Codes, features: Features, quantizer: SideQuantizer | None) -> Codes:
    """Codes with the side information of the features that they were made of."""
    if quantizer is None or features.side is None:
        return codes
    return replace(codes, columns={**codes.columns, **quantizer.columns(features.side)})


def side_at(scales: NDArray[np.float32] | None, first_row: int, n_rows: int) -> Side | None:
    """The side information of rows from `first_row` on, where the scales of all rows (T,) are known beforehand."""
    return None if scales is None else Side(np.asarray(scales[first_row : first_row + n_rows]))


def scales_of(
    sae: SAE, rows: Iterable[NDArray[np.float32]], ids: NDArray[np.integer] | None
) -> NDArray[np.float32] | None:
    """The scales of all rows, float32 (T,), for an SAE that goes by their sequences' norms; None for any other.

    rows: chunk by chunk. ids: of the sequences, (T,); InputError without.
    """
    if sae.normalization != "sequence_norm":
        return None
    if ids is None:
        sae.side(np.zeros((0, sae.width), np.float32))  # says what is missing
    assert ids is not None
    norms = [np.sqrt(exact.squares(x)) for x in rows]
    return sequence_scales(np.concatenate([np.zeros(0), *norms]), np.asarray(ids), sae.width)


def targets(
    sae: SAE, quantizer: SideQuantizer | None, x: NDArray[np.float32], first_row: int, side: Side | None
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.int64]]]:
    """What a search is to reconstruct for rows x, float32 (T, d), and the columns of their side information.

    side: of the rows, where it is known beforehand. The rounded scale is undone here, so a search makes up for its
    rounding; not so the mean, whose rounding can be larger than all else that a row of nearly equal values has.
    """
    if quantizer is None:
        return x, {}
    sae.check_rows(x, first_row)
    side = sae.side(x) if side is None else side
    assert side is not None
    columns = quantizer.columns(side)
    undone = replace(side, scale=quantizer.side(columns).scale)
    return unrestored(torch.from_numpy(np.array(x)), undone).numpy(), columns
