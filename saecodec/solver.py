"""`solve`: where a monotone measure takes a value, for measures that take seconds and are a little noisy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

TOLERANCE: Final = 0.01
"""How near to a target counts as met, relative."""
SOLVED: Final = 0.002
_MAX_TRIALS: Final = 14
_STALE: Final = 0.004  # a bracket this narrow (in logarithm) that holds no solution is not one
_MOVES: Final = (0.03, 2.0)  # least and largest step of the search for a bracket, in logarithm

Result = TypeVar("Result")


@dataclass(frozen=True)
class Solution(Generic[Result]):
    """Where a measure came nearest to what was wanted, what came with it there, and whether it met it. one_sided: it
    never was on the other side of what was wanted, which is then out of its reach."""

    at: float
    result: Result
    met: bool
    one_sided: bool


def solve(
    measure: Callable[[float], tuple[float, Result]],
    wanted: float,
    start: float,
    bounds: tuple[float, float],
    *,
    rising: bool,
) -> Solution[Result]:
    """Where a monotone, positive, somewhat noisy measure takes a value: bracketed, then by the Illinois algorithm.

    measure: of a positive number; also returns what is kept of the best one. rising: whether it grows with it.
    """
    low, high = (math.log(bound) for bound in bounds)
    at = min(max(math.log(start), low), high)
    below: tuple[float, float] | None = None  # (place, log ratio < 0), the nearest on this side
    above: tuple[float, float] | None = None
    before: tuple[float, float] | None = None
    sides: set[bool] = set()
    best: tuple[float, float, Any] | None = None
    for _ in range(_MAX_TRIALS):
        value, result = measure(math.exp(at))
        ratio = math.log(max(value, 1e-30) / wanted) * (1 if rising else -1)
        sides.add(ratio < 0)
        if best is None or abs(ratio) < best[0]:
            best = (abs(ratio), at, result)
        if abs(ratio) < SOLVED:
            break
        # The Illinois algorithm: a side that stays twice counts for half, so that the bracket closes from both sides.
        if ratio < 0:
            above = above and (above[0], above[1] / (2 if before is not None and before[1] < 0 else 1))
            below = (at, ratio)
        else:
            below = below and (below[0], below[1] / (2 if before is not None and before[1] >= 0 else 1))
            above = (at, ratio)
        if below is not None and above is not None and above[0] - below[0] < _STALE:
            # The measure depends a little on what was tried before: the older side no longer holds.
            below, above = (below, None) if ratio < 0 else (None, above)
        if below is not None and above is not None:
            share = min(max(below[1] / (below[1] - above[1]), 0.1), 0.9)
            following = below[0] + share * (above[0] - below[0])
        else:
            move = -ratio
            if before is not None and before[0] != at and (slope := (ratio - before[1]) / (at - before[0])) > 0:
                move /= slope  # beyond a bracket, along the line through the last two
            move = math.copysign(min(max(1.2 * abs(move), _MOVES[0]), _MOVES[1]), move)
            following = min(max(at + move, low), high)
        if following == at:
            break
        before, at = (at, ratio), following
    assert best is not None
    return Solution(math.exp(best[1]), best[2], best[0] <= TOLERANCE, len(sides) == 1)
