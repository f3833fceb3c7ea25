"""The rate-distortion curve of an SAE on an array: real files at a ladder of steps, and at the targets."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import DEFAULT_CHUNK_ROWS
from saecodec.curves import RatePoint, between, bits_in_draws, enclosing, front
from saecodec.decoder_precision import FLOAT32
from saecodec.errors import TargetError
from saecodec.formats.detail import DetailCollector
from saecodec.formats.encoding import encode_array, shared_activations
from saecodec.formats.groups import Groups
from saecodec.formats.metric import Metric
from saecodec.formats.point import Ground, read_point
from saecodec.formats.saec import open_saec
from saecodec.goal import Goal
from saecodec.priors.factorized import FactorizedPrior
from saecodec.quantizer import Step
from saecodec.rows import needs_sequences
from saecodec.sae import SAE
from saecodec.steering import Activations

Figures = NDArray[np.float64]
_FIRST: Final = 0.25  # rms: about as good as no quantization
_UP: Final = math.sqrt(2)
_MAX_STEPS: Final = 14
_MAX_FINER: Final = 4  # halvings of the first step, for targets just above the floor
_CEILING: Final = 0.4  # the curve goes on to this NMSE at least, for curves to share a range
_NEAR: Final = 0.005  # of a target: a point this near stands for it
_BESIDE: Final = (0.97, 1.03)  # of a target, where a file is made for each: it is missed by 1 % at most
_BEYOND: Final = 1.4  # of the outer targets

Log = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Measured:
    """A point, reduced to what comparisons need. goal: what its file was made for. bits, nmses: in each draw of the
    ground, the first being all rows: float64 (1 + B,). facts: for programs. path: of the file, which goes with its
    maker."""

    goal: Goal
    bits: Figures
    nmses: Figures
    facts: dict[str, Any]
    path: str = ""

    @property
    def rate(self) -> float:
        """Bits per row, of all rows."""
        return float(self.facts["bits_per_row"])

    @property
    def nmse(self) -> float:
        """Of all rows."""
        return float(self.facts["nmse"])


@dataclass(frozen=True)
class Setting:
    """How files are made. search, residual: see `Goal`. weights: precision of the decoder, in the files and as it is
    counted. chunk_rows: of the files."""

    search: str = "none"
    residual: bool = False
    weights: str = FLOAT32
    chunk_rows: int = DEFAULT_CHUNK_ROWS


class CurveMaker:
    """Measures points of one SAE on the rows of a ground; a context, in which the files of the points stay.

    name: of the SAE, in the log. metric: another distortion.
    """

    def __init__(
        self, name: str, sae: SAE, ground: Ground, setting: Setting, log: Log, metric: Metric | None = None
    ) -> None:
        self._name, self._sae, self._ground, self._setting = name, sae, ground, setting
        self._log, self._metric = log, metric
        # Ids are in a file only where the SAE cannot do without: they are no part of its explanation.
        self._ids = ground.ids if needs_sequences(FactorizedPrior.name, sae) else None
        self._stack, self._n_files = ExitStack(), 0
        self._activations: Activations | None = None

    def __enter__(self) -> CurveMaker:
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="saecodec-"))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _encode(self, goal: Goal) -> str:
        """The path of a file for a goal; TargetError when that is out of reach."""
        rows, chunk_rows = self._ground.source, self._setting.chunk_rows
        if self._activations is None and goal.search == "none":
            shared = shared_activations(rows, self._sae, seq=self._ids, chunk_rows=chunk_rows)
            self._activations = self._stack.enter_context(shared)
        path = os.path.join(self._folder, f"{self._n_files}.saec")
        made = self._activations if goal.search == "none" else None
        encode_array(rows, path, sae=self._sae, goal=goal, seq=self._ids, chunk_rows=chunk_rows, activations=made)
        self._n_files += 1
        return path

    def measure(self, goal: Goal) -> Measured:
        """The point at a goal."""
        watch, path = None if self._metric is None else self._metric.watch(self._ground), self._encode(goal)
        with open_saec(path, sae=self._sae) as file:
            point = read_point(file, self._ground, [] if watch is None else [watch.add])
        facts = point.facts() | {"metric": None, "metric_interval": None}
        if watch is not None:
            facts |= watch.facts()
        rate, nmse = facts["bits_per_row"], facts["nmse"]
        self._log(f"{self._name}: step {point.step:.4g}, {rate:.1f} bits/row at NMSE {nmse:.4f}")
        return Measured(goal, point.bits, point.nmses, facts, path)

    def detail(self, measured: Measured, groups: Groups | None) -> dict[str, Any]:
        """Where the bits go in the file of a point; see `DetailCollector.facts`."""
        with ExitStack() as stack:
            file = stack.enter_context(open_saec(measured.path, sae=self._sae))
            collector = stack.enter_context(DetailCollector(file.decoder, self._ground, groups))
            return collector.facts(read_point(file, self._ground, [collector.add]))

    def curve(self, targets: Sequence[float], floor: float) -> list[Measured]:
        """Points by rising NMSE, with two that enclose each target that is in reach.

        floor: NMSE of the SAE when nothing is quantized.
        """
        if self._setting.residual:
            points = self._aimed(targets)
        else:
            # A search goes below the SAE's own floor, how far is not known beforehand.
            least = floor if self._setting.search == "none" else 0.0
            points = self._ladder(targets, least)
        return sorted(points, key=lambda point: point.nmse)

    def _at_step(self, step: Step) -> Measured:
        return self.measure(Goal.of(step, search=self._setting.search))

    def _ladder(self, targets: Sequence[float], least: float) -> list[Measured]:
        within = [target for target in targets if target > least]
        points = [self._at_step(Step(_FIRST, True))]
        ceiling = max([_CEILING, *(_BESIDE[1] * target for target in targets)])
        while points[-1].nmse < ceiling and len(points) < _MAX_STEPS:
            points.append(self._at_step(Step(_FIRST * _UP ** len(points), True)))
            if points[-1].facts["l0"] == 0:
                break  # nothing is left to code
        for halvings in range(1, _MAX_FINER + 1):
            finest = min(point.nmse for point in points)
            if finest <= min(within, default=1.0):
                break
            points.append(self._at_step(Step(_FIRST / 2**halvings, True)))
            if points[-1].nmse > finest * (1 - 1e-4):
                break  # finer ones are as good
        for target in targets:  # levels shrink activations, which may take a file a little below the floor
            for _ in range(2):
                best = efficient(points)
                pair = enclosing([point.nmse for point in best], target)
                if pair is None or min(abs(point.nmse / target - 1) for point in best) <= _NEAR:
                    break
                a, b = ((np.array(best[i].facts["step"]), np.array(best[i].nmse)) for i in pair)
                points.append(self._at_step(Step(float(between(a, b, target)), False)))
        return points

    def _aimed(self, targets: Sequence[float]) -> list[Measured]:
        aims = {target * beside for target in targets for beside in _BESIDE}
        aims |= {min(targets) / _BEYOND, max(targets) * _BEYOND}
        points = self._aimed_at(aims)
        # A target below which another is out of reach, or that few rows miss, may have files on one side only.
        nmses = [point.nmse for point in efficient(points)]
        bare = [target for target in targets if enclosing(nmses, target) is None]
        beyond = {aim for target in bare for aim in (target / _BEYOND, target * _BEYOND)} - aims
        return points + self._aimed_at(beyond)

    def _aimed_at(self, aims: Iterable[float]) -> list[Measured]:
        points = []
        for aim in sorted(aims, reverse=True):
            try:
                goal = Goal.of(nmse=min(aim, 0.95), search=self._setting.search, residual=True)
                points.append(self.measure(goal))
            except TargetError as error:
                self._log(f"{self._name}: {error}")
        return points


def efficient(points: Sequence[Measured]) -> list[Measured]:
    """The points that no other undercuts in both bits and NMSE, by rising NMSE and falling bits.

    Coarse steps leave out small activations, which may do harm, so finer files can be worse in both.
    """
    return [points[i] for i in front([RatePoint(point.rate, point.nmse) for point in points])]


def at_target(points: Sequence[Measured], target: float) -> Figures | None:
    """Bits per row at an NMSE in each draw, float64 (1 + B,), see `curves.bits_in_draws`. None where no two `efficient`
    points enclose it on all rows."""
    if enclosing([point.nmse for point in efficient(points)], target) is None:
        return None
    return bits_in_draws(
        np.stack([point.bits for point in points]), np.stack([point.nmses for point in points]), target
    )


def nearest(points: Sequence[Measured], target: float) -> Measured:
    """The `efficient` point whose NMSE is nearest to a target, in logarithms."""
    return min(efficient(points), key=lambda point: abs(math.log(max(point.nmse, 1e-300) / target)))
