"""How a training step chooses active latents, and the loss that it minimizes.

A `Method` has one dial, its pressure: the k of top-k kinds, else the weight of a penalty. `steer` turns it until what
is measured meets the aim.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from saecodec.nonlinearity import Gated, JumpReLU, Nonlinearity, ReLU, TopK
from saecodec.training.checked_state import number
from saecodec.training.parameters import Batch, Parameters
from saecodec.training.sparse_products import Places
from saecodec.training.straight_through import jump, step_up

_SPEED: Final = 0.02  # a step changes the pressure by so much at most, as a logarithm
_GAIN: Final = 8.0  # full speed from a miss of an eighth on
_MOST: Final = 1e12  # pressure of a penalty: no codes are left long before
_KERNEL: Final = 0.3  # width of the straight-through kernel, of the threshold


@dataclass(frozen=True, eq=False)
class Outcome:
    """Of a step. loss: a scalar. places, values (K,): the codes. missed: what they leave, x_hat - x, (B, d)."""

    loss: Tensor
    places: Places
    values: Tensor
    missed: Tensor


class Method(ABC):
    """pressure: see above, from `least` to `most`. sense: 1 where more pressure leaves fewer active latents, -1 where
    it leaves more."""

    kind: ClassVar[str]
    sense: ClassVar[int] = 1
    least: ClassVar[float] = 1e-6

    def __init__(self, pressure: float, most: float = _MOST) -> None:
        self.pressure, self.most = pressure, most

    def added(self, n_latents: int, device: torch.device) -> Parameters:
        """Parameters of its own, (F,) each."""
        return {}

    @abstractmethod
    def places(self, batch: Batch) -> Places:
        """Where latents of a batch are active."""

    def penalty(self, values: Tensor) -> Tensor | float:
        """Of the activations of a batch, summed."""
        return 0.0

    def step(self, batch: Batch, nested: tuple[int, ...]) -> Outcome:
        """The loss of a batch, and the codes that it is about."""
        places = self.places(batch)
        values = batch.encoded(places)
        loss, missed = reconstruction(batch, places, values, nested)
        return Outcome(loss + self.penalty(values) / len(batch.x), places, values.detach(), missed)

    @torch.no_grad()
    def codes(self, batch: Batch) -> tuple[Places, Tensor]:
        """What it makes of rows beside the training."""
        places = self.places(batch)
        return places, batch.h.view(-1)[places.flat]

    @abstractmethod
    def nonlinearity(self, parameters: Parameters, scale: float) -> Nonlinearity:
        """Of the trained SAE, in the units of the data: scaled ones divided by `scale`."""

    def steer(self, excess: float) -> None:
        """Turn the dial. excess: logarithm of how much more is active, or less is missed, than the aim allows."""
        turn = _SPEED * max(-1.0, min(1.0, _GAIN * excess))
        self.pressure = self.possible(self.pressure * math.exp(self.sense * turn))

    def possible(self, pressure: float) -> float:
        """The nearest pressure that there can be: where an aim is out of reach, the dial stops at an end."""
        return min(max(pressure, self.least), self.most)

    def state(self) -> dict[str, Any]:
        """Numbers of a checkpoint; `restore` is the inverse."""
        return {"pressure": self.pressure}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; KeyError or ValueError when it is none."""
        for key in self.state():
            setattr(self, key, number(state, key, self.most if key == "pressure" else math.inf))


def finite(*tensors: Tensor) -> None:
    """FloatingPointError where one holds NaN or infinity: the training has diverged."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise FloatingPointError("values are not finite any more")


def reconstruction(
    batch: Batch, places: Places, values: Tensor, nested: tuple[int, ...] = (), *, learn: bool = True
) -> tuple[Tensor, Tensor]:
    """The mean squared error of codes, and x_hat - x of all latents.

    nested: the error is the mean over the SAEs of the first so many latents, too (Matryoshka: Bussmann et al. 2025,
    arXiv 2503.17547).
    """
    missed: Tensor | None = None
    errors = []
    for start, stop in zip((0, *nested), (*nested, places.n_latents), strict=True):
        inside = (places.latents >= start) & (places.latents < stop) if nested else None
        part, of_part = (places, values) if inside is None else (places.kept(inside), values[inside])
        added = batch.decoded(part, of_part, learn=learn)
        if missed is None:
            missed = added - batch.x
        else:  # each part brings b_dec along
            b_dec = batch.parameters["b_dec"]
            missed = missed + added - (b_dec if learn else b_dec.detach())
        errors.append(missed.square().sum(1).mean())
    assert missed is not None
    return torch.stack(errors).mean(), missed.detach()


class BatchTopK(Method):
    """The k B largest activations of a batch (Bussmann et al. 2024, arXiv 2412.06410). pressure: k, any number; most:
    latents that there are.

    threshold: running mean of the least activation that stays, which the trained SAE goes by.
    """

    kind = "batchtopk"
    sense = -1
    least = 0.1

    def __init__(self, pressure: float, most: float = _MOST) -> None:
        super().__init__(pressure, most)
        self.threshold = 0.0

    def places(self, batch: Batch) -> Places:
        h = batch.h
        flat, wanted = h.view(-1), max(1, round(self.pressure * len(h)))
        # Those above half the last threshold are enough to look at, as long as there are enough of them.
        places = Places.where(h > 0.5 * self.threshold)
        if len(places) < wanted:
            places = Places.where(h > 0)
        if len(places) > wanted:
            largest = torch.topk(flat[places.flat], wanted, sorted=False).indices
            places = Places(places.flat[largest].sort().values, *h.shape)
        return places

    def step(self, batch: Batch, nested: tuple[int, ...]) -> Outcome:
        outcome = super().step(batch, nested)
        least = float(outcome.values.min()) if len(outcome.places) else 0.0
        self.threshold = 0.99 * self.threshold + 0.01 * least if self.threshold else least
        return outcome

    @torch.no_grad()
    def codes(self, batch: Batch) -> tuple[Places, Tensor]:
        places = Places.where(batch.h > self.threshold)
        return places, batch.h.view(-1)[places.flat]

    def nonlinearity(self, parameters: Parameters, scale: float) -> Nonlinearity:
        return JumpReLU(torch.full_like(parameters["b_enc"], self.threshold / scale))

    def state(self) -> dict[str, Any]:
        return super().state() | {"threshold": self.threshold}


class RowTopK(Method):
    """The k largest activations of a row (Gao et al. 2024, arXiv 2406.04093). pressure: k, rounded; most: latents that
    there are."""

    kind = "topk"
    sense = -1
    least = 0.6

    @property
    def k(self) -> int:
        """Latents that stay."""
        return max(1, round(self.pressure))

    def places(self, batch: Batch) -> Places:
        h = batch.h
        latents = torch.topk(h, min(self.k, h.shape[1]), dim=1, sorted=False).indices.sort(dim=1).values
        flat = (latents + torch.arange(len(h), device=h.device)[:, None] * h.shape[1]).view(-1)
        return Places(flat[h.view(-1)[flat] > 0], *h.shape)

    def nonlinearity(self, parameters: Parameters, scale: float) -> Nonlinearity:
        return TopK(min(self.k, len(parameters["b_enc"])))


class Standard(Method):
    """relu, and an L1 penalty: pressure x sum of activations; decoder rows have norm 1 (Bricken et al. 2023)."""

    kind = "standard"

    def places(self, batch: Batch) -> Places:
        return Places.where(batch.h > 0)

    def penalty(self, values: Tensor) -> Tensor | float:
        return self.pressure * values.sum()

    def nonlinearity(self, parameters: Parameters, scale: float) -> Nonlinearity:
        return ReLU()


class GatedSAE(Method):
    """z = 1[g > 0] relu(magnitude), g = h with b_gate; magnitude = (h - b_gate) exp(r_mag) + b_mag.

    Loss: error + pressure x sum relu(g) + error of relu(g) through the decoder as it is (Rajamanoharan et al. 2024,
    arXiv 2404.16014, equations 6 to 8). `b_enc` is b_gate.
    """

    kind = "gated"

    def added(self, n_latents: int, device: torch.device) -> Parameters:
        return {name: torch.zeros(n_latents, device=device) for name in ("r_mag", "b_mag")}

    def _active(self, batch: Batch, open_: Places, gates: Tensor) -> tuple[Places, Tensor]:
        """Where magnitudes are positive behind open gates, and what they are."""
        p, latents = batch.parameters, open_.latents
        magnitudes = (gates - p["b_enc"][latents]) * p["r_mag"].exp()[latents] + p["b_mag"][latents]
        positive = magnitudes.detach() > 0
        return open_.kept(positive), magnitudes[positive]

    def places(self, batch: Batch) -> Places:
        return Places.where(batch.h > 0)

    def step(self, batch: Batch, nested: tuple[int, ...]) -> Outcome:
        open_ = self.places(batch)
        gates = batch.encoded(open_)
        places, values = self._active(batch, open_, gates)
        loss, missed = reconstruction(batch, places, values, nested)
        through_gates, _ = reconstruction(batch, open_, gates, learn=False)
        loss = loss + through_gates + self.pressure * gates.sum() / len(batch.x)
        return Outcome(loss, places, values.detach(), missed)

    @torch.no_grad()
    def codes(self, batch: Batch) -> tuple[Places, Tensor]:
        open_ = self.places(batch)
        return self._active(batch, open_, batch.h.view(-1)[open_.flat])

    def nonlinearity(self, parameters: Parameters, scale: float) -> Nonlinearity:
        b_mag, b_gate = parameters["b_mag"] / scale, parameters["b_enc"] / scale
        return Gated(parameters["r_mag"].clone(), b_mag, b_gate)


class Jump(Method):
    """z = h 1[h > threshold], and a penalty of pressure x (number of active latents), whose gradients reach the
    thresholds through a straight-through kernel (Rajamanoharan et al. 2024, arXiv 2407.14435). The kernel's width is a
    share of the threshold, for thresholds differ."""

    kind = "jumprelu"

    def added(self, n_latents: int, device: torch.device) -> Parameters:
        return {"log_threshold": torch.zeros(n_latents, device=device)}

    def begin(self, parameters: Parameters, threshold: float) -> None:
        """Go on from a BatchTopK training: dropping an activation at the threshold saves as much as it costs."""
        with torch.no_grad():
            parameters["log_threshold"].fill_(math.log(max(threshold, 1e-6)))
        self.pressure = self.possible(threshold**2)

    def places(self, batch: Batch) -> Places:
        return Places.where(batch.h > batch.parameters["log_threshold"].detach().exp())

    def prices(self, near: Places, h: Tensor) -> Tensor | float:
        """What latents with pre-activations h would cost if they were active, in squared error: (K,), or the same for
        all."""
        return self.pressure

    def step(self, batch: Batch, nested: tuple[int, ...]) -> Outcome:
        threshold = batch.parameters["log_threshold"].exp()
        near = Places.where(batch.h > threshold.detach() * (1 - _KERNEL / 2))
        h, at = batch.encoded(near), threshold[near.latents]
        values, fires = jump(h, at, _KERNEL), step_up(h, at, _KERNEL)
        loss, missed = reconstruction(batch, near, values, nested)
        # Prices of h, not of values: these are 0 just below a threshold, and pass on gradients to it, as `fires` does.
        loss = loss + (self.prices(near, h) * fires).sum() / len(batch.x)
        active = fires.detach() > 0
        return Outcome(loss, near.kept(active), values.detach()[active], missed)

    def nonlinearity(self, parameters: Parameters, scale: float) -> Nonlinearity:
        return JumpReLU(parameters["log_threshold"].exp() / scale)
