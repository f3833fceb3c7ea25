"""Rate control: the point on the rate-distortion curve where a target is met, found on a sample of rows.

The base layer has one knob, its step: the slope, the squared error that a bit may cost, goes with the step's square.
With a residual layer there are two steps; the split with the fewest bits at the target is looked for. With a codec that
is fitted already, steps and tables stay, and the slope alone is steered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.costs import DEFAULT_SLOPE
from saecodec.errors import InputError, TargetError
from saecodec.features import Features
from saecodec.fit_residual import RESIDUAL_SLOPE, ResidualMoments, fit_layer, moments_of
from saecodec.fitting import Point, SideAtStep, activity, fit_features, fit_searched, joined
from saecodec.layers import Layers
from saecodec.quantizer import Step
from saecodec.row_coder import RowCoder
from saecodec.sae import SAE
from saecodec.search import Mode, Search
from saecodec.side import SideStatistics, side_at
from saecodec.solver import SOLVED, Solution, solve

_LEAST_RMS: Final = 1e-15
_FIRST_STEP: Final = 0.8  # rms
_STEPS: Final = (0.02, 40.0)  # rms: finer gains nothing, coarser leaves nothing
_RESIDUAL_BASE: Final = 0.6  # rms: about the best base step under a residual layer, at any target
_RESIDUAL_STEPS: Final = (1e-3, 16.0)  # rms of a component of what the base layer leaves
_SLOPES: Final = (1e-4, 30.0)
_SPLIT: Final = 2**0.5
_MAX_SPLITS: Final = 4
_NEAR: Final = 1.5  # of the target: a base layer that comes this near at a tried step may meet it at a finer one
NEAR_ENOUGH: Final = 0.05
"""What is missed by no more than this, on few rows whose errors leave gaps, is told instead of refused."""
_ROUNDS: Final = 3  # of search and tables in turn, until codes and tables agree


@dataclass(frozen=True)
class Target:
    """What to reach. kind: "nmse" (squared error over variance), or "bits" per row. value: positive."""

    kind: Literal["nmse", "bits"]
    value: float

    def __post_init__(self) -> None:
        if not 0 < self.value < math.inf:
            raise TargetError(f"a target is a positive number, got {self.kind} {self.value}")

    def __str__(self) -> str:
        return f"NMSE {self.value:g}" if self.kind == "nmse" else f"{self.value:g} bits per row"

    def missed_by(self, reached: float) -> float:
        """|reached / target - 1|."""
        return abs(reached / self.value - 1)


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows to find a point on. x: float32 (n, d). variance: mean of |x - mean|^2 over all rows that they stand for; of
    |x|^2 when that is zero. scales: of the rows, where they are known beforehand (`side_at`)."""

    x: NDArray[np.float32]
    variance: float
    scales: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """A codec fitted on a sample, what it makes of it, and what that costs: bits per row, NMSE."""

    codec: Codec
    layers: list[Layers]
    bits: float
    nmse: float

    def of(self, kind: str) -> float:
        """The figure that a target of `kind` is about."""
        return self.nmse if kind == "nmse" else self.bits


class Trials:
    """Trial codings of a sample.

    search: mode. chunk_rows: as in the real encoding. overhead: bytes of a file beside its chunks, and the number of
    rows that share them. nmse: what is aimed at, where that is known: side information is made fine enough for it.
    """

    def __init__(
        self,
        sae: SAE,
        sample: Sample,
        search: Mode,
        chunk_rows: int,
        overhead: Callable[[Codec], float],
        nmse: float | None = None,
    ) -> None:
        self.sae, self.sample, self._overhead = sae, sample, overhead
        self._parts = [sample.x[i : i + chunk_rows] for i in range(0, len(sample.x), chunk_rows)]
        self._features: list[Features] = []
        statistics = SideStatistics(sae)
        for i, part in enumerate(self._parts):
            self._features.append(sae.features(part, 0, side_at(sample.scales, i * chunk_rows, len(part))))
            statistics.add(part, self._features[-1])
        error = None if nmse is None else nmse * sample.variance
        self.side_at_step: SideAtStep = lambda step: statistics.quantizer(step, error)
        rms, self.active = activity(sae, self._features)
        self.rms = rms or math.sqrt(sample.variance) or 1.0
        if search != "none" and self.rms < _LEAST_RMS:
            raise InputError(
                f"activations have a length of {self.rms:.3g}, whose square is 0 in float32, and a search compares "
                "such squares: scale the rows up, or give a step (--step) and no search (--search none)"
            )
        self.search = None if search == "none" else Search(sae, search, self.active)
        self._mode = search
        self._left: tuple[Codec, list[NDArray[np.float32]], ResidualMoments] | None = None  # by the last base layer

    def base(self, point: Point, start: Codec | None, rounds: int = 1) -> tuple[Codec, list[Codes]]:
        """The base layer at a point. start: a codec fitted near it, where there is one."""
        codes: list[Codes] = []
        if self.search is None or start is None:
            start = fit_features(self.sae, self._features, Step(point.step, False), codes, self.side_at_step)
        for _ in range(rounds if self.search is not None else 0):
            assert self.search is not None
            codes = []
            quantizer = replace(start.quantizer, step=point.step)
            start = replace(start, quantizer=quantizer, side=self.side_at_step(point.step))
            start = fit_searched(self.search, lambda: iter(self._parts), start, point, codes, self.sample.scales)
        return start, codes

    def judge(self, codec: Codec, layers: list[Layers]) -> Trial:
        """What layers cost, as they would lie in a file."""
        n_bytes, error, n = self._overhead(codec), 0.0, max(len(self.sample.x), 1)
        for x, part in zip(self._parts, layers, strict=True):
            n_bytes += sum(map(len, codec.pack(part))) / n
            missed = (x - codec.reconstruct(part.codes, part.residual)).astype(np.float64)
            error += float(np.einsum("td,td->", missed, missed))
        variance = self.sample.variance * n
        return Trial(codec, layers, 8 * n_bytes, error / variance if variance > 0 else 0.0)

    def at(self, point: Point, start: Codec | None, rounds: int = 1) -> Trial:
        """The base layer alone."""
        codec, codes = self.base(point, start, rounds)
        return self.judge(codec, list(joined(codes, None)))

    def with_residual(self, point: Point, codec: Codec, codes: list[Codes]) -> Trial:
        """A base layer with a residual layer on top."""
        levels: list[NDArray[np.int32]] = []
        if self._left is None or self._left[0] is not codec:
            residuals = [x - codec.reconstruct(part) for x, part in zip(self._parts, codes, strict=True)]
            self._left = (codec, residuals, moments_of(iter(residuals), self.sae.width))
        _, residuals, moments = self._left
        assert point.residual_step is not None
        slope = RESIDUAL_SLOPE * point.slope
        layer = fit_layer(lambda: iter(residuals), self.sae.width, point.residual_step, slope, levels, moments)
        both = replace(codec, residual=layer)
        return self.judge(both, list(joined(codes, levels)))

    def coded(self, codec: Codec, slope: float) -> Trial:
        """The sample under a codec that stays as it is."""
        coder = RowCoder(codec, self._mode, slope, self.active)
        layers = [coder(x, 0, features) for x, features in zip(self._parts, self._features, strict=True)]
        return self.judge(codec, layers)


def find_point(trials: Trials, target: Target, *, residual: bool, start: Codec | None = None) -> tuple[Point, Codec]:
    """The point at which the sample meets a target, and the codec fitted there.

    residual: with a residual layer, where it pays. start: a codec fitted near the point. TargetError names what can be
    reached.
    """
    if residual:
        return _split_point(trials, target, start)
    found = _base_point(trials, target, start)
    if not found.met and target.missed_by(found.result.of(target.kind)) > NEAR_ENOUGH:
        raise _unreachable(target, found, "--residual adds a layer that goes below it")
    return Point(found.at), found.result.codec


def find_slope(trials: Trials, target: Target, codec: Codec) -> float:
    """The slope at which the sample meets a target under a codec that stays as it is; TargetError when none does."""
    found = solve(
        lambda slope: _of(trials.coded(codec, slope), target.kind),
        target.value,
        DEFAULT_SLOPE,
        _SLOPES,
        rising=target.kind == "nmse",
    )
    if not found.met and target.missed_by(found.result.of(target.kind)) > NEAR_ENOUGH:
        raise _unreachable(target, found, "fit a codec for this target (saecodec fit)")
    return found.at


def _base_point(trials: Trials, target: Target, start: Codec | None) -> Solution[Trial]:
    held = start

    def measure(step: float) -> tuple[float, Trial]:
        nonlocal held
        trial = trials.at(Point(step), held, 1 if held is not None else _ROUNDS)
        held = trial.codec
        return _of(trial, target.kind)

    first = start.quantizer.step if start is not None else _FIRST_STEP * trials.rms
    bounds = (_STEPS[0] * trials.rms, _STEPS[1] * trials.rms)
    found = solve(measure, target.value, first, bounds, rising=target.kind == "nmse")
    if found.met and start is None:  # codes and tables have come from other steps: let them agree
        again = trials.at(Point(found.at), held, _ROUNDS - 1)
        held = again.codec
        if target.missed_by(again.of(target.kind)) > SOLVED:
            found = solve(measure, target.value, found.at, bounds, rising=target.kind == "nmse")
    return found


def _split_point(trials: Trials, target: Target, start: Codec | None) -> tuple[Point, Codec]:
    """The split between the steps of both layers with the fewest bits at an NMSE, or the least NMSE at a rate.

    Where the base layer alone goes beyond the target at its usual step, it does without a residual layer.
    """
    rival = "bits" if target.kind == "nmse" else "nmse"
    held = start
    tried: dict[int, tuple[float, Point, Codec]] = {}
    centre = _RESIDUAL_BASE * trials.rms
    near = False  # whether the base layer alone may meet the target

    def attempt(index: int) -> float:
        """What the best residual layer on the base layer of a step costs."""
        nonlocal held, near
        if index not in tried:
            point = Point(centre * _SPLIT**index)
            held, codes = trials.base(point, held, _ROUNDS if held is None else 2)
            alone = trials.judge(held, list(joined(codes, None)))
            near = near or target.kind == "bits" or alone.nmse < _NEAR * target.value
            enough = alone.nmse <= target.value if target.kind == "nmse" else alone.bits >= target.value
            tried[index] = (math.inf, point, held)
            if not enough:
                found = _residual_point(trials, target, point, alone, codes)
                cost = found.result.of(rival) if found.met else math.inf
                tried[index] = (cost, replace(point, residual_step=found.at), found.result.codec)
        return tried[index][0]

    best = min((0, 1, -1), key=attempt)
    while best in (min(tried), max(tried)) and abs(best) < _MAX_SPLITS and math.isfinite(attempt(best)):
        beyond = best + (1 if best > 0 else -1)
        if attempt(beyond) >= attempt(best):
            break
        best = beyond
    cost, point, codec = tried[best]
    if near or math.isinf(cost):
        found = _base_point(trials, target, held)
        if found.met and found.result.of(rival) <= cost:
            return Point(found.at), found.result.codec
        if math.isinf(cost):
            raise _unreachable(target, found, "more rows would share the tables' bits")
    return point, codec


def _residual_point(trials: Trials, target: Target, point: Point, alone: Trial, codes: list[Codes]) -> Solution[Trial]:
    """The step of the residual layer at which a target is met, on the base layer `alone`."""
    scale = math.sqrt(alone.nmse * trials.sample.variance / trials.sae.width) or trials.rms * 1e-3
    first = math.sqrt(12 * min(target.value / max(alone.nmse, 1e-30), 1.0)) if target.kind == "nmse" else 2.0
    low, high = (edge * scale for edge in _RESIDUAL_STEPS)

    def measure(step: float) -> tuple[float, Trial]:
        return _of(trials.with_residual(replace(point, residual_step=step), alone.codec, codes), target.kind)

    return solve(measure, target.value, first * scale, (low, high), rising=target.kind == "nmse")


def _of(trial: Trial, kind: str) -> tuple[float, Trial]:
    return trial.of(kind), trial


def _unreachable(target: Target, found: Solution[Trial], way_out: str) -> TargetError:
    trial = found.result
    reached = f"NMSE {trial.nmse:.4g} at {trial.bits:.4g} bits per row"
    finer = trial.of(target.kind) > target.value if target.kind == "nmse" else trial.of(target.kind) < target.value
    if not found.one_sided:
        told = f"is not met on these rows: the nearest that was found is {reached}; ask for that, or give a step"
    elif finer:
        told = f"is out of reach: the finest step tried gives {reached}; take an SAE with a lower floor, or: {way_out}"
    else:
        told = f"is out of reach: the fewest bits give {reached}; ask for less error, or more bits, than that"
    return TargetError(f"{target} {told}")
