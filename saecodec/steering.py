"""Coding all rows for a goal: on a sample a point is found, on all rows it is verified, and corrected where it missed.

Rows are read chunk by chunk as often as needed, and what is coded goes into stores, so that both may lie in files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.batches import stream_batches
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.costs import DEFAULT_SLOPE
from saecodec.distortion import Distortion
from saecodec.errors import InputError, TargetError
from saecodec.features import Features
from saecodec.fit_prior import ContextFitter
from saecodec.fitting import Point, Rows, SideAtStep, fit_features, fit_residual, fit_searched, joined
from saecodec.goal import Goal
from saecodec.layers import Layers
from saecodec.limits import check_limit
from saecodec.priors.fit_context import check_rows
from saecodec.priors.registry import CONTEXT
from saecodec.progress import Progress, no_progress
from saecodec.quantizer import Step
from saecodec.rate_control import NEAR_ENOUGH, Sample, Target, Trials, find_point, find_slope
from saecodec.residual import MAX_CELLS
from saecodec.row_coder import RowCoder
from saecodec.sae import SAE
from saecodec.sequences import Chunking
from saecodec.side import SideStatistics, scales_of, side_at, side_columns
from saecodec.solver import TOLERANCE
from saecodec.store import Store, Stores

_SAMPLE: Final = (4096, 16384, 8)  # rows: at least, at most, and one in so many in between
_BLOCK: Final = 128  # neighbouring rows are sampled together: the support's tables see bursts
_ATTEMPTS: Final = 4
_CONTEXT_BITS: Final = 0.65  # of the factorized prior's, about: where to aim first
_GOLDEN: Final = 0.618034


@dataclass(frozen=True, eq=False)
class Coded:
    """All rows, coded. codes, levels: chunk by chunk, levels only with a residual layer. chunking: of the rows, with
    the sequence ids that belong to the codes. reached: the figure that the goal's target is about, None without a
    target. slope: what a bit was allowed to cost."""

    codec: Codec
    codes: Store[Codes]
    levels: Store[NDArray[np.int32]] | None
    chunking: Chunking
    reached: float | None = None
    slope: float = DEFAULT_SLOPE

    def labelled(self) -> Iterator[Codes]:
        """The codes of each chunk, with their sequence ids."""
        return self.chunking.labels(iter(self.codes))

    def layers(self) -> Iterator[Layers]:
        """The layers of each chunk."""
        return joined(self.labelled(), self.levels)


@dataclass(frozen=True, eq=False)
class Activations:
    """What the SAE makes of all rows of an array, chunk by chunk, and how their side information is coded."""

    features: Store[Features]
    side_at_step: SideAtStep


class Steering:
    """Codes the rows of one array.

    rows: gives them in the chunks of `chunking`. overhead: bytes of a file with a codec beside its chunks. stores:
    where what is coded goes. activations: of these very rows and chunks by this SAE, where somebody has them already.
    """

    def __init__(
        self,
        sae: SAE,
        rows: Rows,
        goal: Goal,
        *,
        chunking: Chunking,
        stores: Stores,
        overhead: Callable[[Codec], float] = lambda codec: 0.0,
        progress: Progress = no_progress,
        activations: Activations | None = None,
    ) -> None:
        if goal.residual and chunking.chunk_rows * sae.width > MAX_CELLS:
            raise InputError(
                f"chunks of {chunking.chunk_rows} rows of {sae.width} values are too large for a residual layer: use "
                f"at most {MAX_CELLS // sae.width} rows a chunk"
            )
        if goal.prior == CONTEXT:
            check_rows(chunking.n_rows)
            cells = min(chunking.chunk_rows, chunking.n_rows) * sae.n_latents
            check_limit("walk_cells", cells, "chunks (fewer rows in each, --chunk-rows, have fewer)")
        self.sae, self.n_rows, self.goal = sae, chunking.n_rows, goal
        self._rows, self._stores, self._progress = rows, stores, progress
        self._chunking, self._overhead = chunking, overhead
        self._activations = activations
        self._scales = scales_of(sae, rows(), chunking.ids)
        self._fit_context: ContextFitter | None = None

    def fit(self, *, verify: bool = True, recode: bool = False) -> Coded:
        """Fit a codec for the goal, and code all rows with it. TargetError when a target is out of reach.

        verify: hold the target on all rows; else the sample's word is taken for it. recode: hold it on the rows as the
        fitted codec codes them anew, which is what a codec file is for, instead of on what is in the stores.
        """
        goal = self.goal
        goal.check_fit(self.sae)
        if goal.plain or (goal.target is None and not self.n_rows):
            codes, made = self._code_store(), self.activations()
            codec = fit_features(self.sae, made.features, goal.step, codes, made.side_at_step)
            return self._with_prior(Coded(codec, codes, None, self._chunking))
        trials = self._trials()
        if goal.target is None:
            step = goal.step.resolve(trials.rms)
            point = Point(step, residual_step=step / 2 if goal.residual else None)
            return self._with_prior(self._fit_at(trials, point, trials.base(Point(step), None, 3)[0]))
        start: Codec | None = None

        def attempt(aim: Target) -> Coded:
            nonlocal start
            point, start = find_point(trials, aim, residual=goal.residual, start=start)
            return self._with_prior(self._fit_at(trials, point, start))

        aim = goal.target
        if goal.prior == CONTEXT and aim.kind == "bits":
            aim = Target("bits", aim.value / _CONTEXT_BITS)
        if not verify and aim == goal.target:
            return attempt(aim)
        coded = self._steer(attempt, goal.target, self._again if recode else self._reached, aim)
        told = {"target": {goal.target.kind: goal.target.value, "reached": coded.reached}}
        return replace(coded, codec=replace(coded.codec, info={**coded.codec.info, **told}))

    def code(self, codec: Codec) -> Coded:
        """Code all rows with a codec that stays as it is; the goal's target is met by the slope alone."""
        target = self.goal.target
        assert target is not None
        if self.sae.deterministic:
            raise InputError(
                f"a codec meets {target} by a search among sums of floats, which differ between machines: leave "
                f"--{target.kind} out; a codec that was fitted for it without --deterministic has it in its step"
            )
        trials = self._trials()
        return self._steer(
            lambda aim: self._code_at(codec, find_slope(trials, aim, codec), trials.active), target, self._reached
        )

    def activations(self) -> Activations:
        """The feature activations of all rows; the SAE runs once."""
        if self._activations is None:
            store, statistics = self._stores.features(), SideStatistics(self.sae)
            for first, x in self._numbered("SAE"):
                features = self.sae.features(x, first, side_at(self._scales, first, len(x)))
                statistics.add(x, features)
                store.append(features)
            self._activations = Activations(store, statistics.quantizer)
        return self._activations

    def _code_store(self) -> Store[Codes]:
        return self._stores.codes(self.sae.n_latents, side_columns(self.sae.normalization))

    def _numbered(self, stage: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
        first = 0
        for x in self._rows():
            yield first, x
            first += len(x)
            self._progress(stage, first, self.n_rows)

    def _trials(self) -> Trials:
        sample = draw_sample(self._checked, self.n_rows)
        if self._scales is not None:
            scales = self._scales[:, None]
            cut = lambda: (scales[a:b] for a, b in self._chunking.spans())  # noqa: E731
            sample = replace(sample, scales=draw_sample(cut, self.n_rows).x[:, 0])
        shared = max(self.n_rows, 1)
        chunk_rows = self._chunking.chunk_rows
        target = self.goal.target
        nmse = target.value if target is not None and target.kind == "nmse" else None
        return Trials(self.sae, sample, self.goal.search, chunk_rows, lambda c: self._overhead(c) / shared, nmse)

    def _checked(self) -> Iterator[NDArray[np.float32]]:
        for first, x in self._numbered("sample"):
            self.sae.check_rows(x, first)
            yield x

    def _fit_at(self, trials: Trials, point: Point, start: Codec) -> Coded:
        codes = self._code_store()
        if trials.search is None:
            codec = fit_features(
                self.sae, self.activations().features, Step(point.step, False), codes, trials.side_at_step
            )
        else:
            rows_again: Rows = lambda: (x for _, x in self._numbered("search"))  # noqa: E731
            codec = fit_searched(trials.search, rows_again, start, point, codes, self._scales)
        if point.residual_step is None:
            return Coded(codec, codes, None, self._chunking)
        levels = self._stores.levels()
        rows: Rows = lambda: (x for _, x in self._numbered("residual"))  # noqa: E731
        return Coded(fit_residual(codec, rows, point, codes, levels), codes, levels, self._chunking)

    def _with_prior(self, coded: Coded) -> Coded:
        """The rows under the prior that the goal asks for; their codes stay."""
        if self.goal.prior != CONTEXT:
            return coded
        if self._fit_context is None:
            self._fit_context = ContextFitter(self.sae.device, self.goal.fit_seconds, self._progress)
        return replace(coded, codec=self._fit_context(coded.codec, coded.labelled))

    def _code_at(self, codec: Codec, slope: float, active: float | None) -> Coded:
        coder = RowCoder(codec, self.goal.search, slope, active, self._scales)
        codes, levels = self._code_store(), self._stores.levels()
        for first, x in self._numbered("code"):
            layers = coder(x, first)
            codes.append(layers.codes)
            if layers.residual is not None:
                levels.append(layers.residual)
        held = levels if codec.residual is not None else None
        return Coded(codec, codes, held, self._chunking, None, slope)

    def _steer(
        self,
        attempt: Callable[[Target], Coded],
        target: Target,
        reach: Callable[[Coded], float],
        aim: Target | None = None,
    ) -> Coded:
        """Aim at the target, and beside it by what the last attempt missed, until `reach` says that it is met.

        aim: the first, where it is known to differ.
        """
        aim, best, nearest = aim or target, None, 0.0
        for _ in range(_ATTEMPTS):
            try:
                coded = attempt(aim)
            except TargetError:
                if best is None and aim != target:
                    aim = target  # the first aim was a guess
                    continue
                if best is None:
                    raise
                break  # the corrected aim is out of reach: keep what came nearest
            reached = reach(coded)
            worse: Coded | None = coded
            if best is None or target.missed_by(reached) < target.missed_by(nearest):
                best, nearest, worse = coded, reached, best
            if worse is not None:
                self._discard(worse)
            if target.missed_by(reached) <= TOLERANCE / 2:
                break
            aim = Target(target.kind, aim.value * target.value / max(reached, 1e-30))
        assert best is not None
        if nearest > target.value * (1 + NEAR_ENOUGH):
            raise TargetError(
                f"{target} is not met on these rows: the nearest that was found is {nearest:.4g}; ask for that, or "
                "give a step"
            )
        return replace(best, reached=nearest)

    def _discard(self, coded: Coded) -> None:
        self._stores.discard(coded.codes)
        self._stores.discard(coded.levels)

    def _again(self, coded: Coded) -> float:
        """What the codec reaches when it codes the rows anew."""
        active = None if self.goal.search == "none" else coded.codec.info.get("active")
        again = self._code_at(coded.codec, DEFAULT_SLOPE, active)
        reached = self._reached(again)
        self._discard(again)
        return reached

    def _reached(self, coded: Coded) -> float:
        target = self.goal.target
        assert target is not None
        if target.kind == "bits":
            n_bytes = sum(sum(map(len, parts)) for parts in stream_batches(coded.codec.pack, coded.layers()))
            return 8 * (n_bytes + self._overhead(coded.codec)) / max(self.n_rows, 1)
        distortion = Distortion(self.sae.width)
        for (_, x), part in zip(self._numbered("verify"), coded.layers(), strict=True):
            distortion.add(x, coded.codec.reconstruct(part.codes, part.residual))
        # Rows that do not vary have no NMSE; their energy takes the place of their variance, as in `Sample`.
        return distortion.squared_error / (distortion.variance or distortion.energy or 1e-30)


def draw_sample(rows: Rows, n_rows: int) -> Sample:
    """Blocks of neighbouring rows from all over an array, and the variance of all of it."""
    least, most, share = _SAMPLE
    wanted = min(n_rows, max(least, min(most, n_rows // share)))
    begins, length = [0], n_rows
    if wanted < n_rows:
        # One block in each of so many equal parts of the array, not in step with sequences or chunks.
        part = n_rows * _BLOCK / wanted
        index = np.arange(wanted // _BLOCK)
        begins, length = (index * part + index * _GOLDEN % 1 * (part - _BLOCK)).astype(np.int64).tolist(), _BLOCK
    taken: list[NDArray[np.float32]] = []
    sums: Distortion | None = None
    first = 0
    for x in rows():
        sums = sums or Distortion(x.shape[1])
        sums.add(x, x)
        while begins and begins[0] < first + len(x):
            begin, stop = begins[0] - first, begins[0] + length - first
            taken.append(x[max(begin, 0) : stop].copy())
            if stop > len(x):
                break  # the rest of this block is in the next chunk
            begins.pop(0)
        first += len(x)
    if sums is None:
        raise TargetError("there are no rows, so no target can be met: give a step")
    return Sample(np.concatenate(taken), (sums.variance or sums.energy) / max(sums.n_rows, 1))
