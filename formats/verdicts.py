"""What follows from measured curves: who is the MDL-SAE at a target, ties, break-evens, the front, the BD-rate.

Bits at exactly a target lie on the curve through the measured files, one of which mostly is within half a percent of
it. Each draw of the bootstrap has a curve of its own, through the same files' figures on the rows drawn. Two SAEs tie
when the interval of their difference in the same draws holds 0. Where a draw's rows are too hard for any file of an
SAE, its bits are infinite: an end of an interval that is None.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.bootstrap import bounds, interval
from saecodec.curves import RatePoint, bd_rate, bits_at, crossings, front
from saecodec.formats.array_source import ITEM_BYTES
from saecodec.formats.point import Ground
from saecodec.formats.rate_curve import Measured, at_target, nearest
from saecodec.formats.two_part import break_even, shortest_by_rows, total_by_rows

Figures = NDArray[np.float64]
_BD_DRAWS: Final = 200  # enough for an interval of a mean over a whole curve
_FILE: Final = ("step", "file_bytes", "bits_per_row", "nmse", "nmse_median", "metric")
"""What is told of the measured file that is nearest to a target."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The measured curve of an SAE. decoder_bytes: of its decoder, as it is counted. floor: NMSE of the SAE when
    nothing is quantized, None where it is no bound, since codes are searched or a residual layer goes on top."""

    name: str
    points: list[Measured]
    decoder_bytes: int
    floor: float | None = None

    def rate_points(self) -> list[RatePoint]:
        """Bits per row and NMSE on all rows, of the files that no other undercuts in both."""
        points = [RatePoint(point.rate, point.nmse) for point in self.points]
        return [points[i] for i in front(points)]

    def drawn(self, i: int) -> list[RatePoint]:
        """The same in a draw."""
        return [RatePoint(float(point.bits[i]), float(point.nmses[i])) for point in self.points]


@dataclass(frozen=True, eq=False)
class AtTarget:
    """What curves take at a target, of `n_rows` rows. bits: per row in each draw, float64 (1 + B,), by name, of those
    that reach it. decoders, tables: bits that any number of rows share, of the decoder and of the nearest file's
    tables, which `bits` has in it."""

    target: float
    n_rows: int
    bits: dict[str, Figures]
    decoders: dict[str, float]
    tables: dict[str, float]

    @classmethod
    def of(cls, curves: Sequence[Curve], target: float, n_rows: int) -> AtTarget:
        """Of the curves that have files on both sides of the target."""
        bits, decoders, tables = {}, {}, {}
        for curve in curves:
            found = at_target(curve.points, target)
            if found is not None:
                bits[curve.name], decoders[curve.name] = found, 8.0 * curve.decoder_bytes
                tables[curve.name] = 8.0 * nearest(curve.points, target).facts["bytes"]["tables"]
        return cls(target, n_rows, bits, decoders, tables)

    @property
    def rates(self) -> dict[str, float]:
        """Bits per row on all rows, tables included, without the decoder."""
        return {name: float(found[0]) for name, found in self.bits.items()}

    @property
    def _shared(self) -> dict[str, float]:
        return {name: self.decoders[name] + self.tables[name] for name in self.bits}

    @property
    def _growing(self) -> dict[str, float]:
        return {name: rate - self.tables[name] / self.n_rows for name, rate in self.rates.items()}

    def of_curve(self, curve: Curve, ground: Ground, baselines: dict[str, Any] | None) -> dict[str, Any]:
        """What one curve takes, for programs."""
        if curve.name not in self.bits:
            return {"missing": _why(curve, self.target)}
        rate, decoder = self.rates[curve.name], self.decoders[curve.name]
        shared, growing = self._shared[curve.name], self._growing[curve.name]
        raw = 8 * ITEM_BYTES[ground.source.dtype] * ground.source.width
        out = {
            "bits_per_row": rate,
            "interval": interval(self.bits[curve.name][1:]),
            "not_reached": float(np.isinf(self.bits[curve.name][1:]).mean()),
            "file": {key: nearest(curve.points, self.target).facts[key] for key in _FILE},
            "tables_bits_per_row": self.tables[curve.name] / self.n_rows,
            "sae_bits_per_row": decoder / self.n_rows,
            "total_bits_per_row": rate + decoder / self.n_rows,
            "total_by_rows": total_by_rows(shared, growing),
            "rows_to_break_even_raw": break_even(shared, growing, 0.0, raw),
        }
        pca = None if baselines is None else baselines["pca"]
        if pca is not None:
            out["rows_to_break_even_pca"] = break_even(shared, growing, 8.0 * pca["model_bytes"], pca["bits_per_row"])
        return out

    def verdict(self) -> dict[str, Any]:
        """Who takes the fewest bits, and by how much, for programs."""
        rates = self.rates
        order = sorted(rates, key=lambda name: rates[name])
        pairs = [self._difference(a, b) for a, b in itertools.combinations(order, 2)]
        totals = {name: rate + self.decoders[name] / self.n_rows for name, rate in rates.items()}
        with_sae = min(totals, key=lambda name: totals[name], default=None)
        return {
            "mdl": order[0] if order else None,
            "ties": [pair["b"] for pair in pairs if pair["a"] == order[0] and pair["tie"]],
            "mdl_with_sae": with_sae,
            "ties_with_sae": [
                name for name in order if with_sae is not None and name != with_sae and self._ties(with_sae, name)
            ],
            "shortest_from_rows": shortest_by_rows(self._shared, self._growing),
            "differences": pairs,
        }

    def _gap(self, a: str, b: str) -> Figures:
        """How many more bits b takes than a in each draw; 0 in draws that neither reaches, which tell nothing."""
        a_bits, b_bits = self.bits[a], self.bits[b]
        neither = np.isinf(a_bits) & np.isinf(b_bits)
        with np.errstate(invalid="ignore"):
            return np.where(neither, 0.0, b_bits - a_bits)

    def _ties(self, a: str, b: str) -> bool:
        """Whether the decoders' bits, shared by the rows at hand, leave the difference open."""
        found = bounds((self._gap(a, b) + (self.decoders[b] - self.decoders[a]) / self.n_rows)[1:])
        return found is None or found[0] <= 0 <= found[1]

    def _difference(self, a: str, b: str) -> dict[str, Any]:
        gap, shared, growing = self._gap(a, b), self._shared, self._growing
        found = bounds(gap[1:])
        return {
            "a": a,
            "b": b,
            "bits": float(gap[0]),
            "interval": interval(gap[1:]),
            "tie": found is None or found[0] <= 0 <= found[1],
            "rows_to_break_even": break_even(shared[a], growing[a], shared[b], growing[b]),
        }


def _why(curve: Curve, target: float) -> str:
    nmses = [point.nmse for point in curve.points]
    if not nmses:
        return "no file was made"
    if curve.floor is not None and curve.floor >= target:
        return f"nothing quantized, its NMSE is {curve.floor:.4g}; its best file has {min(nmses):.4g}"
    return f"its finest file has NMSE {min(nmses):.4g}" if min(nmses) > target else "its coarsest file has less error"


def pareto(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """The files of all curves that no other undercuts in both bits and NMSE, for programs."""
    every = [(curve.name, point) for curve in curves for point in curve.points]
    found = front([RatePoint(point.rate, point.nmse) for _, point in every])
    return [
        {"sae": name, "step": point.facts["step"], "bits_per_row": point.rate, "nmse": point.nmse}
        for name, point in (every[i] for i in found)
    ]


def bd_rates(curves: Sequence[Curve]) -> dict[str, Any]:
    """BD-rates against the first curve, in percent, for programs."""
    first, *others = curves
    percent, intervals = {}, {}
    for curve in others:
        percent[curve.name] = bd_rate(first.rate_points(), curve.rate_points())
        if percent[curve.name] is not None:
            drawn = (bd_rate(first.drawn(i), curve.drawn(i)) for i in range(1, 1 + _BD_DRAWS))
            intervals[curve.name] = interval(np.array([np.nan if value is None else value for value in drawn]))
    return {"reference": first.name, "percent": percent, "interval": intervals}


def all_crossings(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Where curves change places, for programs. lowest: whether no other curve is below them there."""
    rated = {curve.name: curve.rate_points() for curve in curves}
    out = []
    for a, b in itertools.combinations(rated, 2):
        for point in crossings(rated[a], rated[b]):
            others = (bits_at(points, point.nmse) for name, points in rated.items() if name not in (a, b))
            lowest = all(bits is None or bits >= point.bits for bits in others)
            out.append({"a": a, "b": b, "nmse": point.nmse, "bits_per_row": point.bits, "lowest": lowest})
    return out
