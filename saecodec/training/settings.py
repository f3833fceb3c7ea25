"""What a training is asked for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

from saecodec.errors import InputError

ARCHITECTURES: Final = ("batchtopk", "topk", "jumprelu", "gated", "standard")
OBJECTIVES: Final = ("sparsity", "rate")
TOP_K: Final = ("batchtopk", "topk")
DEFAULT_TOKENS: Final = 4_000_000
DEFAULT_K: Final = 32
_LEARNING_RATE: Final = 4e-3
_NARROW: Final = 4096  # latents; wider SAEs learn at rates that fall with the square root (Gao et al. 2024, figure 4)


@dataclass(frozen=True)
class Aim:
    """What the pressure of a training is steered to. kind: "l0" (active latents a row), "nmse" or "bits" (a row)."""

    kind: str
    value: float

    def __post_init__(self) -> None:
        """InputError when it cannot be."""
        most = 1.0 if self.kind == "nmse" else math.inf
        if self.kind not in ("l0", "nmse", "bits") or not 0 < self.value < most:
            range_ = "between 0 and 1" if self.kind == "nmse" else "positive"
            raise InputError(f"{self.kind} {self.value:g}: a training aims at l0, nmse or bits, {range_}")

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"


@dataclass(frozen=True)
class Settings:
    """n_latents: F. architecture: one of ARCHITECTURES; the objective "rate" trains "jumprelu". aim: see `Aim`.

    tokens: rows seen, repeats counted. batch: rows of a step. learning_rate: of Adam at its height; None is 4e-3, less
    for more than 4096 latents. nested: widths of the SAEs that are the first latents of this one (Matryoshka), rising,
    below F; not with "topk" or "rate". seed: of all draws. InputError names what is impossible.
    """

    n_latents: int
    architecture: str = "batchtopk"
    objective: str = "sparsity"
    aim: Aim = Aim("l0", DEFAULT_K)
    tokens: int = DEFAULT_TOKENS
    batch: int = 1024
    learning_rate: float | None = None
    nested: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(f"architecture {self.architecture!r}: expected one of {', '.join(ARCHITECTURES)}")
        if self.objective not in OBJECTIVES:
            raise InputError(f"objective {self.objective!r}: expected one of {', '.join(OBJECTIVES)}")
        if self.objective == "rate" and self.architecture != "jumprelu":
            raise InputError(f"the objective rate trains jumprelu SAEs, which {self.architecture} ones are not")
        if self.objective == "rate" and self.aim.kind == "l0":
            raise InputError("the objective rate aims at an NMSE or at bits a row (--nmse, --bits), not at a k")
        if min(self.n_latents, self.tokens, self.batch) < 1 or self.tokens < self.batch:
            raise InputError(
                f"{self.n_latents} latents, {self.tokens:,} tokens in batches of {self.batch:,}: not possible; at "
                "least one batch is needed"
            )
        if self.aim.kind == "l0" and self.aim.value > self.n_latents:
            raise InputError(f"k = {self.aim.value:g} of {self.n_latents} latents: expected at most as many")
        if self.architecture == "topk" and self.aim.kind == "l0" and self.aim.value != int(self.aim.value):
            raise InputError(f"k = {self.aim.value:g}: topk keeps a whole number; batchtopk takes any")
        rate = self.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise InputError(f"learning rate {rate:g}: expected a positive number")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"seed {self.seed}: expected a number from 0 to 2^63 - 1")
        if self.architecture == "jumprelu" and self.n_steps < 2:
            raise InputError(
                f"{self.tokens:,} tokens in batches of {self.batch:,}: jumprelu begins as batchtopk, and needs two "
                "steps at least: more tokens, or smaller batches"
            )
        edges = (0, *self.nested, self.n_latents)
        if self.nested and self.objective == "rate":
            raise InputError("the objective rate trains no nested widths: its search knows one SAE only")
        if self.nested and self.architecture == "topk":
            raise InputError(
                "topk trains no nested widths: alone, the first latents would keep the k largest of their own, and not "
                "those of the k largest of all, which they are trained with; batchtopk does"
            )
        if any(a >= b for a, b in pairwise(edges)):
            raise InputError(f"nested widths {self.nested} must rise, from above 0 to below {self.n_latents}")

    @property
    def n_steps(self) -> int:
        """Steps of the training."""
        return self.tokens // self.batch

    @property
    def peak_rate(self) -> float:
        """Learning rate at its height."""
        return self.learning_rate or _LEARNING_RATE * min(1.0, math.sqrt(_NARROW / self.n_latents))

    def to_json(self) -> dict[str, Any]:
        """For files: a list and a dict in place of the tuple and the `Aim`."""
        return asdict(self) | {"nested": list(self.nested)}
