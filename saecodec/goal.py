"""`Goal`: what an encoder is asked for: a step or a target, with or without search and residual layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from saecodec.errors import InputError
from saecodec.priors.factorized import FactorizedPrior
from saecodec.priors.registry import CONTEXT, PRIORS
from saecodec.quantizer import Step
from saecodec.rate_control import Target
from saecodec.search import MODES, Mode

if TYPE_CHECKING:
    from saecodec.sae import SAE

DEFAULT_STEP: Final = "0.4rms"
DEFAULT_FIT_SECONDS: Final = 420.0


@dataclass(frozen=True)
class Goal:
    """step: of the base layer; it decides where there is no target. target: what to reach, or None. search: mode.
    residual: with a residual layer, whose step is half the base layer's without a target, and chosen with it for one.
    prior: that a codec is fitted with. fit_seconds: bounds the training of the context prior. step_given, search_given:
    whether these are the user's, not the default."""

    step: Step
    target: Target | None
    search: Mode
    residual: bool
    prior: str
    fit_seconds: float
    step_given: bool
    search_given: bool

    @classmethod
    def of(
        cls,
        step: str | float | Step | None = None,
        nmse: float | None = None,
        bits: float | None = None,
        search: str | None = None,
        residual: bool = False,
        prior: str = FactorizedPrior.name,
        fit_seconds: float | None = None,
    ) -> Goal:
        """From what a user gives. InputError when several of step, nmse and bits are given, or a value is impossible.

        Without any, the step is 0.4rms. The default of search is "pursuit" with a target, else "none".
        """
        given = [name for name, value in (("step", step), ("nmse", nmse), ("bits", bits)) if value is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} exclude each other: give one of step, nmse, bits")
        if search not in (None, *MODES):
            raise InputError(f"search is {search!r}, expected one of {', '.join(MODES)}")
        target = Target("nmse", nmse) if nmse is not None else Target("bits", bits) if bits is not None else None
        mode: Mode = search or ("none" if target is None else "pursuit")  # type: ignore[assignment]
        if prior not in PRIORS:
            raise InputError(f"prior is {prior!r}, expected one of {', '.join(PRIORS)}")
        seconds = DEFAULT_FIT_SECONDS if fit_seconds is None else fit_seconds
        if not 0 < seconds < math.inf:
            raise InputError(f"the time of a fit is a positive number of seconds, got {seconds}")
        if fit_seconds is not None and prior == FactorizedPrior.name:
            raise InputError("the factorized prior takes no time to train: leave that out, or choose the context prior")
        wanted = Step.parse(DEFAULT_STEP if step is None else step)
        return cls(wanted, target, mode, residual, prior, seconds, step is not None, search is not None)

    def check_fit(self, sae: SAE) -> None:
        """InputError when a fit for a deterministic SAE would not be the same on every machine; it names the reason."""
        reasons = {
            f"what meets {self.target}": self.target is not None,
            f"what the search {self.search} finds": self.search != "none",
            "a residual layer": self.residual,
            "a context prior": self.prior == CONTEXT,
            f"the precision of side information, which the SAE {sae.name!r} needs,": sae.normalization != "none",
        }
        for reason, applies in reasons.items():
            if sae.deterministic and applies:
                raise InputError(
                    f"{reason} depends on sums of floats, which differ between machines: fit a codec without "
                    "--deterministic, and encode with that (-c CODEC)"
                )

    @property
    def plain(self) -> bool:
        """Whether it asks for the SAE's own activations at a step, which takes no sample."""
        return self.target is None and self.search == "none" and not self.residual
