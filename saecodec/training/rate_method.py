"""Training for description length: distortion + pressure x bits.

Each step codes its rows twice. The codec's own *search* (`search.py`), charged with running costs, finds the codes that
a file would hold; the decoder learns from what they miss. The *encoder*, a JumpReLU whose straight-through thresholds
pay what a firing costs, learns to come as near to them as a linear encoder can; the decoder learns from its error, too,
so that the SAE can do without a search. The quantizer's step follows from the pressure, as the codec's search has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from saecodec.costs import DEFAULT_SLOPE
from saecodec.encoder import Encoder
from saecodec.nonlinearity import ReLU
from saecodec.quantizer import CENTROID_LEVELS, Quantizer
from saecodec.sae import SAE
from saecodec.search import Search
from saecodec.training.methods import Jump, Outcome, finite, reconstruction
from saecodec.training.parameters import Batch, Parameters
from saecodec.training.running_costs import RunningCosts
from saecodec.training.settings import Aim
from saecodec.training.sparse_products import Places

_OWN: Final = 0.5
"""Weight of the encoder's own loss beside the searched codes' error: how much the decoder listens to it."""
_NOISE: Final = 1 / (12 * DEFAULT_SLOPE)
"""Squared error that rounding adds to an active latent, step^2 / 12, in bits at the pressure."""
_SPAN: Final = math.log(256)  # of the pressure, either way, where its first value is looked for
_BISECTIONS: Final = 10


class Rate(Jump):
    """pressure: squared error that a bit may cost. costs: what firings cost, which the trainer keeps. aim: of kind
    "nmse" or "bits", at which the first batch sets the pressure. gap: tells how many times the mean squared error of a
    batch, over d, the NMSE is that is aimed at."""

    def __init__(self, pressure: float, costs: RunningCosts, aim: Aim, gap: Callable[[], float]) -> None:
        super().__init__(pressure)
        self._costs, self._aim, self._gap = costs, aim, gap
        self.calibrated = 0

    @property
    def step_size(self) -> float:
        """The quantizer's step that goes with the pressure."""
        return math.sqrt(max(self.pressure, self.least) / DEFAULT_SLOPE)

    def begin(self, parameters: Parameters, threshold: float) -> None:
        super().begin(parameters, threshold)
        bits = self._costs.bits_per_row(threshold) / max(self._costs.l0, 1e-9)
        self.pressure = self.possible(threshold**2 / (bits + _NOISE))

    def prices(self, near: Places, h: Tensor) -> Tensor | float:
        return self.pressure * (self._costs.of_activations(near, h, self.step_size) + _NOISE)

    @torch.no_grad()
    def _calibrate(self, batch: Batch) -> None:
        """Set the pressure at which the codes of a batch meet the aim, by bisection: steering alone takes long, and
        where a search finds next to nothing, firings become ever dearer meanwhile."""
        middle = math.log(self.pressure)
        low, high = middle - _SPAN, middle + _SPAN
        for _ in range(_BISECTIONS):
            self.pressure = self.possible(math.exp((low + high) / 2))
            places, values = self.codes(batch)
            if self._aim.kind == "nmse":
                missed = float(batch.error(batch.decoded(places, values))) / batch.x.shape[1]
                slack = self._gap() * missed < self._aim.value
            else:
                bits = self._costs.of_activations(places, values, self.step_size).sum()
                slack = float(bits) / len(batch.x) > self._aim.value
            middle = (low + high) / 2
            low, high = (middle, high) if slack else (low, middle)
        self.calibrated = 1

    def state(self) -> dict[str, Any]:
        return super().state() | {"calibrated": self.calibrated}

    def step(self, batch: Batch, nested: tuple[int, ...]) -> Outcome:
        if not self.calibrated:
            self._calibrate(batch)
        own = super().step(batch, nested)
        finite(own.missed)
        places, values = self.codes(batch)
        loss, missed = reconstruction(batch, places, values, nested)
        return Outcome(_OWN * own.loss + loss, places, values, missed)

    @torch.no_grad()
    def codes(self, batch: Batch) -> tuple[Places, Tensor]:
        p, n_latents, device = batch.parameters, batch.h.shape[1], batch.x.device
        finite(batch.h, p["w_dec"], p["b_dec"])
        encoder = Encoder(p["w_enc"].detach().t(), p["b_enc"].detach(), ReLU(), True)
        sae = SAE(p["w_dec"].detach(), p["b_dec"].detach(), encoder, self.kind)
        costs, step = self._costs.costs(self.step_size), self.step_size
        classes = int(costs.level_class.max()) + 1
        quantizer = Quantizer(step, np.zeros((classes, CENTROID_LEVELS), np.int64), costs.level_class)
        search = Search(sae, "pursuit", self._costs.l0)
        codes = search(batch.x.cpu().numpy(), quantizer, costs, DEFAULT_SLOPE).codes
        rows = np.repeat(np.arange(codes.n_rows), np.diff(codes.indptr))
        places = Places(torch.from_numpy(rows * n_latents + codes.latents).to(device), codes.n_rows, n_latents)
        return places, torch.from_numpy(codes.levels.astype(np.float32)).to(device) * step
