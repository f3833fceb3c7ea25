"""Rate-distortion curves: bits at an NMSE, crossings, the Pareto front, and the BD-rate.

Between two measured points a curve is a straight line of log bits over log NMSE. The BD-rate (Bjontegaard, "Calculation
of average PSNR differences between RD-curves", ITU-T VCEG-M33, 2001) is the mean difference of log rate between two
curves over the distortions that both reach; the curves are interpolated by piecewise cubic Hermite polynomials
(Fritsch & Carlson 1980), as JVET's common test conditions do since a single cubic through all points can oscillate. The
distortion axis is -10 log10 NMSE, in dB, as PSNR is up to a constant.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SAMPLES: Final = 512  # of the common range: the interpolants are smooth, so the mean is right to 1e-5

MAX_GAP: Final = 2.0
"""Ratio of the NMSE values of neighbouring points up to which a curve between them is known well enough."""

Array = NDArray[np.float64]


class RatePoint(NamedTuple):
    """A measured point: bits per row and NMSE, both positive."""

    bits: float
    nmse: float


def enclosing(nmses: Sequence[float], nmse: float) -> tuple[int, int] | None:
    """Two neighbouring points of a curve that enclose an NMSE, by their places; None where no two do. Nearest ones,
    where several do."""
    order = sorted(range(len(nmses)), key=lambda i: nmses[i])
    found = [(a, b) for a, b in itertools.pairwise(order) if nmses[a] <= nmse <= nmses[b]]
    return min(found, key=lambda pair: nmses[pair[1]] / max(nmses[pair[0]], 1e-300)) if found else None


def between(a: tuple[Array, Array], b: tuple[Array, Array], nmse: float) -> Array:
    """Bits at an NMSE on the line through two points, each given as bits and NMSE; arrays of points go through
    element by element."""
    (bits_a, nmse_a), (bits_b, nmse_b) = a, b
    width = np.log(nmse_b / nmse_a)
    share = np.where(width == 0, 0.0, np.log(nmse / nmse_a) / np.where(width == 0, 1.0, width))
    return np.asarray(np.exp((1 - share) * np.log(bits_a) + share * np.log(bits_b)))


def bits_at(points: Sequence[RatePoint], nmse: float) -> float | None:
    """Bits per row of a curve at an NMSE; None where no two points enclose it. The fewest, where it is not a function.

    >>> round(bits_at([RatePoint(400.0, 0.1), RatePoint(100.0, 0.4)], 0.2), 6)
    200.0
    """
    order = sorted(points, key=lambda point: point.nmse)
    found = [
        float(between((np.array(a.bits), np.array(a.nmse)), (np.array(b.bits), np.array(b.nmse)), nmse))
        for a, b in itertools.pairwise(order)
        if a.nmse <= nmse <= b.nmse
    ]
    return min(found, default=None)


def bits_in_draws(bits: Array, nmses: Array, nmse: float) -> Array:
    """Bits per row at an NMSE on the curve of each draw, float64 (B,).

    bits, nmses: of P points in each draw, float64 (P, B). A draw's curve is the `front` of its own points: noise moves
    an NMSE by more than two points may be apart, and a line through these two would run anywhere. Infinite where a
    draw has no point of so little error; the fewest bits of all where all its points have less; NaN where a draw has no
    NMSE.
    """
    out = np.full(bits.shape[1], np.nan)
    order = np.lexsort((bits, nmses), axis=0)
    with np.errstate(divide="ignore"):
        x, y = (np.log(np.take_along_axis(values, order, 0)).T for values in (nmses, bits))
    for i in np.flatnonzero(~np.isnan(x).any(axis=1)):
        kept = y[i] < np.concatenate([[np.inf], np.minimum.accumulate(y[i])[:-1]])
        out[i] = np.exp(np.interp(np.log(nmse), x[i][kept], y[i][kept], left=np.inf))
    return out


def front(points: Sequence[RatePoint]) -> list[int]:
    """Places of the points that no other undercuts in both bits and NMSE, by rising NMSE."""
    best, found = np.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i].nmse, points[i].bits)):
        if points[i].bits < best:
            best = points[i].bits
            found.append(i)
    return found


def crossings(a: Sequence[RatePoint], b: Sequence[RatePoint]) -> list[RatePoint]:
    """Where two curves, as `bits_at` has them, change places, by rising NMSE; not where one of them has a gap. Where
    they meet before they part again, it is at the first place that they share."""
    low, high = common_range(a, b)
    grid = sorted({point.nmse for point in (*a, *b) if low <= point.nmse <= high} | {low, high})
    pairs = [(nmse, bits_at(a, nmse), bits_at(b, nmse)) for nmse in grid]
    gaps = [(nmse, float(np.log(p / q))) for nmse, p, q in pairs if p is not None and q is not None and p != q]
    shared = [nmse for nmse, p, q in pairs if p is not None and p == q]
    found = []
    for (nmse_a, gap_a), (nmse_b, gap_b) in itertools.pairwise(gaps):
        if gap_a * gap_b < 0 and not gap(a, nmse_a, nmse_b) and not gap(b, nmse_a, nmse_b):
            share = gap_a / (gap_a - gap_b)
            nmse = float(np.exp((1 - share) * np.log(nmse_a) + share * np.log(nmse_b)))
            nmse = next((at for at in shared if nmse_a < at < nmse_b), nmse)
            bits = bits_at(a, nmse)
            if bits is not None:
                found.append(RatePoint(bits, nmse))
    return found


def common_range(a: Sequence[RatePoint], b: Sequence[RatePoint]) -> tuple[float, float]:
    """The NMSE values that both curves reach, as a range that is empty (low > high) where they share none."""
    if not a or not b:
        return 1.0, 0.0
    return max(min(p.nmse for p in a), min(p.nmse for p in b)), min(max(p.nmse for p in a), max(p.nmse for p in b))


def gap(points: Sequence[RatePoint], low: float = 0.0, high: float = np.inf) -> bool:
    """Whether two neighbouring points, in a range of NMSE or enclosing a part of it, are too far apart to say what is
    between them."""
    nmses = sorted(point.nmse for point in points)
    return any(b > MAX_GAP * a for a, b in itertools.pairwise(nmses) if b > low and a < high)


def bd_rate(reference: Sequence[RatePoint], other: Sequence[RatePoint]) -> float | None:
    """How many percent more bits `other` takes than `reference` at equal distortion, on average; negative is fewer.

    None where the curves share no range of distortion, one has fewer than two distinct points, or a gap in that range.
    """
    curves = [[curve[i] for i in reversed(front(curve))] for curve in (reference, other)]  # falling functions
    low, high = common_range(*curves)
    if not low < high or min(map(len, curves)) < 2 or any(gap(curve, low, high) for curve in curves):
        return None
    at = -10 * np.log10(np.geomspace(high, low, _SAMPLES))  # evenly spaced
    first, second = (
        _hermite(np.array([-10 * np.log10(p.nmse) for p in points]), np.log([p.bits for p in points]), at)
        for points in curves
    )
    gaps = second - first
    return float(100 * np.expm1((gaps[1:] + gaps[:-1]).mean() / 2))


def _hermite(x: Array, y: Array, at: Array) -> Array:
    """The monotone piecewise cubic Hermite interpolant of points with rising x, (n,), n >= 2 (Fritsch & Carlson)."""
    width, slope = np.diff(x), np.diff(y) / np.diff(x)
    tangent = np.concatenate([slope[:1], np.zeros(len(x) - 2), slope[-1:]])
    if len(x) > 2:
        w1, w2 = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
        same = slope[:-1] * slope[1:] > 0
        safe = np.where(same[None], np.stack([slope[:-1], slope[1:]]), 1.0)
        tangent[1:-1] = np.where(same, (w1 + w2) / (w1 / safe[0] + w2 / safe[1]), 0.0)
        tangent[0] = _end(width[0], width[1], slope[0], slope[1])
        tangent[-1] = _end(width[-1], width[-2], slope[-1], slope[-2])
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    t = (at - x[i]) / width[i]
    value = (1 + 2 * t) * (1 - t) ** 2 * y[i] + t * t * (3 - 2 * t) * y[i + 1]
    return np.asarray(value + width[i] * t * (1 - t) * ((1 - t) * tangent[i] - t * tangent[i + 1]))


def _end(width: float, beside: float, slope: float, next_slope: float) -> float:
    """Tangent at an end: of the parabola through three points, kept monotone."""
    found = ((2 * width + beside) * slope - width * next_slope) / (width + beside)
    if found * slope <= 0:
        return 0.0
    return 3 * slope if slope * next_slope <= 0 and abs(found) > 3 * abs(slope) else found
