"""The training loop: steps, learning rate, dead latents, and the state that a checkpoint holds."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from saecodec.encoder import Encoder
from saecodec.errors import InputError
from saecodec.sae import SAE
from saecodec.training.checked_state import number, tensor_like
from saecodec.training.methods import BatchTopK, GatedSAE, Jump, Method, Outcome, RowTopK, Standard, finite
from saecodec.training.parameters import Batch, initial, stay_on_sphere, to_unit_rows, with_gradients
from saecodec.training.rate_method import Rate
from saecodec.training.running_costs import RunningCosts
from saecodec.training.scaling import Scaling
from saecodec.training.settings import DEFAULT_K, TOP_K, Settings
from saecodec.training.sparse_products import Products

_WARM_UP: Final = 0.05  # of the steps, up to the peak of the learning rate
_DECAY: Final = 0.3  # and down from it
_BEGIN_AS_TOPK: Final = {"jumprelu": 0.25, "rate": 0.5}  # of the steps, by objective or architecture
_AUXILIARY: Final = 1 / 32  # weight of the loss that revives dead latents (Gao et al. 2024, section A.2)
_DEAD_ROWS: Final = 20_000  # a latent that did not fire in so many rows is dead
_MAX_REVIVED: Final = 256  # dead latents in a step, drawn at random: the auxiliary loss is to stay cheap
_LOOSEN_FROM: Final = 0.3  # of the steps: until then the error falls by itself, and more active latents are no answer
_BEFORE_SEARCH: Final = 1.25  # of an NMSE aimed at: what a search of as many latents takes away again, about
_SMOOTH: Final = 0.9  # of running figures, at a step
_AHEAD: Final = 3.0  # times the difference of two running means, of 10 and of 50 steps, that steering looks ahead
_HELD_OUT_EVERY: Final = 25  # steps
_MOST_GAP: Final = 100.0  # of held-out to trained NMSE, either way: one look at few rows must not turn all


@dataclass(frozen=True)
class Meter:
    """Where a training stands. nmse: of held-out rows, as far as the last steps tell. l0, bits: a row. dead: share."""

    step: int
    nmse: float
    l0: float
    bits: float
    dead: float
    pressure: float

    def __str__(self) -> str:
        return f"NMSE {self.nmse:.4f}, L0 {self.l0:.1f}, {self.bits:.0f} bits/row, {100 * self.dead:.1f} % dead"


class Trainer:
    """Trains on batches that `train` is given, one after another.

    scaling: of the rows. held_out: rows beside the training, float32 (H, d) in the units of the data, on which the aim
    is meant. device: where it runs. What it does depends on these, on the batches, and on nothing else: on the CPU of
    one machine, with one number of threads, the same ones give the same weights. On cuda some sums have no fixed order.
    """

    def __init__(self, settings: Settings, scaling: Scaling, held_out: Tensor, device: torch.device) -> None:
        self.settings, self._scaling, self._device = settings, scaling, device
        self._products = Products.on(device)
        self._draws = torch.Generator().manual_seed(settings.seed)
        values = initial(settings.n_latents, len(scaling.mean), self._draws, device)
        self._costs = RunningCosts(settings.n_latents, device)
        self._methods = self._plan()
        for _, method in self._methods:
            values |= method.added(settings.n_latents, device)
        self.parameters = with_gradients(values)
        self._adam = torch.optim.Adam(list(self.parameters.values()), lr=settings.peak_rate, fused=True)
        self._silent = torch.zeros(settings.n_latents, dtype=torch.int64, device=device)  # rows since a latent fired
        self._held_out = scaling.scaled(held_out.to(device))
        self._train_nmse: float | None = None
        self._l0: float | None = None  # of the last steps: what RunningCosts know comes too late to steer by
        self._held_variance = _variance(self._held_out)
        self._gap = 1.0  # NMSE of held-out rows over that of trained ones
        self.steps_done = 0

    def _plan(self) -> list[tuple[int, Method]]:
        """From which step on which method is used, in rising order."""
        settings = self.settings
        width = len(self._scaling.mean)
        k = settings.aim.value if settings.aim.kind == "l0" else min(DEFAULT_K, settings.n_latents / 4, width / 4)
        if settings.architecture == "topk":
            return [(0, RowTopK(k, settings.n_latents))]
        if settings.architecture in ("gated", "standard"):
            return [(0, GatedSAE(1.0) if settings.architecture == "gated" else Standard(1.0))]
        first: list[tuple[int, Method]] = [(0, BatchTopK(k, settings.n_latents))]
        if settings.architecture == "batchtopk":
            return first
        rate = settings.objective == "rate"
        begin = max(1, int(_BEGIN_AS_TOPK["rate" if rate else "jumprelu"] * settings.n_steps))
        second = Rate(1.0, self._costs, settings.aim, lambda: self._gap) if rate else Jump(1.0)
        return [*first, (begin, second)]

    @property
    def method(self) -> Method:
        """That of the next step."""
        at = min(self.steps_done, self.settings.n_steps - 1)
        return [method for begin, method in self._methods if begin <= at][-1]

    def train(self, batches: Iterator[Tensor]) -> Iterator[int]:
        """Take the steps that are left, one for each of `batches`, float32 (B, d); yields how many are done after each.
        `meter` tells then where it stands. InputError when it diverges."""
        for x in itertools.islice(batches, self.settings.n_steps - self.steps_done):
            try:
                self._step(self._scaling.scaled(x.to(self._device, torch.float32)))
            except FloatingPointError as error:
                raise InputError(
                    f"the training diverged at step {self.steps_done:,}: try a learning rate below "
                    f"{self.settings.peak_rate:g}"
                ) from error
            yield self.steps_done

    def _step(self, x: Tensor) -> None:
        batch, method = Batch(x, self.parameters, self._products), self.method
        outcome = method.step(batch, self.settings.nested)
        loss = outcome.loss + self._revival(x, outcome.missed)
        self._adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        stay_on_sphere(self.parameters["w_dec"])
        for group in self._adam.param_groups:
            group["lr"] = self.settings.peak_rate * self._share()
        self._adam.step()
        to_unit_rows(self.parameters["w_dec"])
        self._take_note(outcome)
        self.steps_done += 1
        if self.steps_done == self.settings.n_steps:  # before, the next step's error tells
            finite(*self.parameters.values())
        if self.steps_done % _HELD_OUT_EVERY == 0:
            self._look_at_held_out(method)
        self._steer(method)
        self._go_over(method)

    def _go_over(self, before: Method) -> None:
        """The method of the next step goes on from that of the last one, where it is another."""
        method = self.method
        if method is not before and isinstance(method, Jump):
            assert isinstance(before, BatchTopK)
            method.begin(self.parameters, before.threshold)

    def _share(self) -> float:
        """Of the learning rate's height."""
        done, n = self.steps_done, self.settings.n_steps
        return min((done + 1) / (_WARM_UP * n), (n - done) / (_DECAY * n), 1.0)

    def _revival(self, x: Tensor, missed: Tensor) -> Tensor | float:
        """The loss of dead latents that are to reconstruct what the others leave."""
        dead = torch.nonzero(self._silent >= _DEAD_ROWS).view(-1)
        if not len(dead):
            return 0.0
        chosen = torch.randperm(len(dead), generator=self._draws)[:_MAX_REVIVED].to(self._device)
        dead, p = dead[chosen], self.parameters
        revived = torch.addmm(p["b_enc"][dead], x - p["b_dec"].detach(), p["w_enc"][dead].t()).relu()
        return _AUXILIARY * (revived @ p["w_dec"][dead] + missed).square().sum(1).mean()

    @torch.no_grad()
    def _take_note(self, outcome: Outcome) -> None:
        places = outcome.places
        self._costs.add(places, outcome.values)
        fired = torch.zeros_like(self._silent, dtype=torch.bool)
        fired[places.latents] = True
        self._silent = torch.where(fired, 0, self._silent + places.n_rows)
        error = outcome.missed.square().sum(1).mean()
        finite(error)
        nmse = float(error) / outcome.missed.shape[1]
        before = self._train_nmse
        self._train_nmse = nmse if before is None else _SMOOTH * before + (1 - _SMOOTH) * nmse
        l0 = len(places) / places.n_rows
        self._l0 = l0 if self._l0 is None else _SMOOTH * self._l0 + (1 - _SMOOTH) * l0

    @torch.no_grad()
    def _look_at_held_out(self, method: Method) -> None:
        """How much worse held-out rows are than trained ones. Their NMSE is the one that is told in the end: over their
        own variance, which need not be that of the trained rows."""
        if not len(self._held_out):
            return
        first = self.steps_done // _HELD_OUT_EVERY * self.settings.batch % len(self._held_out)
        x = self._held_out[first : first + self.settings.batch]
        batch = Batch(x, self.parameters, self._products)
        places, values = method.codes(batch)
        error = batch.error(batch.decoded(places, values))
        finite(error)
        nmse = float(error) / self._held_variance
        assert self._train_nmse is not None
        ratio = nmse / max(self._train_nmse, 1e-9)
        self._gap = 0.8 * self._gap + 0.2 * min(max(ratio, 1 / _MOST_GAP), _MOST_GAP)

    def _steer(self, method: Method) -> None:
        aim = self.settings.aim
        if aim.kind == "l0":
            if self.settings.architecture not in TOP_K and not isinstance(method, BatchTopK):
                method.steer(math.log(max(self._costs.l0, 1e-3) / aim.value) + self._ahead())
        elif aim.kind == "nmse":
            value = aim.value * (
                _BEFORE_SEARCH if self.settings.objective == "rate" and not isinstance(method, Rate) else 1.0
            )
            excess = math.log(value / max(self.nmse, 1e-9))
            early = self.steps_done < _LOOSEN_FROM * self.settings.n_steps
            method.steer(max(excess, 0.0) if early else excess)
        else:
            method.steer(math.log(max(self.bits, 1e-3) / aim.value) + self._ahead())

    def _ahead(self) -> float:
        """Where active latents are going: logarithm of how many more there will be than running costs know of.

        Weights answer to the pressure late, and running means later: steered by these alone, the two swing. The last
        steps' mean is ahead of the running one, by the means' ages; as much again, and more, is the weights' lag.
        """
        assert self._l0 is not None
        return _AHEAD * math.log(max(self._l0, 1e-3) / max(self._costs.l0, 1e-3))

    @property
    def nmse(self) -> float:
        """Of held-out rows, as far as the last steps tell."""
        return (1.0 if self._train_nmse is None else self._train_nmse) * self._gap

    @property
    def bits(self) -> float:
        """A row, estimated, at the step that goes with the pressure, or 0.4 of the activations' mean."""
        method = self.method
        step = method.step_size if isinstance(method, Rate) else 0.4 * self._costs.mean_activation
        return self._costs.bits_per_row(step)

    @property
    def price(self) -> float:
        """Squared error of a row, in the units of the data, that a bit may cost: of a training for rate."""
        return self.method.pressure / self._scaling.scale**2

    def meter(self) -> Meter:
        """Where it stands."""
        dead = float((self._silent >= _DEAD_ROWS).float().mean())
        return Meter(self.steps_done, self.nmse, self._costs.l0, self.bits, dead, self.method.pressure)

    def sae(self) -> SAE:
        """The SAE as it is now, in the units of the data, on the CPU. Encoder subtracts b_dec."""
        p = {name: tensor.detach().cpu() for name, tensor in self.parameters.items()}
        scale = self._scaling.scale
        nonlinearity = self.method.nonlinearity(p, scale)
        gated = isinstance(self.method, GatedSAE)
        b_enc = torch.zeros_like(p["b_enc"]) if gated else p["b_enc"] / scale  # a gated SAE's is its b_gate
        encoder = Encoder(p["w_enc"].t().contiguous(), b_enc, nonlinearity, True)
        kind = "jumprelu" if isinstance(self.method, BatchTopK) else self.method.kind
        return SAE(p["w_dec"].clone(), p["b_dec"] / scale + self._scaling.mean, encoder, kind)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and numbers from which `restore` goes on as if nothing had happened."""
        tensors = {f"parameter.{name}": tensor.detach() for name, tensor in self.parameters.items()}
        for name, tensor in self.parameters.items():
            for key, value in self._adam.state.get(tensor, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        tensors |= {f"costs.{name}": tensor for name, tensor in self._costs.state().items()}
        tensors |= {"silent": self._silent, "draws": self._draws.get_state()}
        numbers = {
            "steps_done": self.steps_done,
            "train_nmse": self._train_nmse,
            "gap": self._gap,
            "l0": self._l0,
            "methods": [method.state() for _, method in self._methods],
        }
        return tensors, numbers

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from a `state` of the same settings, rows and device; KeyError, RuntimeError, TypeError or ValueError
        when it is of others, or none at all."""
        for name, tensor in self.parameters.items():
            tensor.copy_(tensor_like(tensors, f"parameter.{name}", tensor))
            if any(key.startswith(f"adam.{name}.") for key in tensors):
                likes = {"step": torch.zeros(()), "exp_avg": tensor, "exp_avg_sq": tensor}
                self._adam.state[tensor] = {  # where Adam is fused, its step is on the device, too
                    key: tensor_like(tensors, f"adam.{name}.{key}", like, signed=key == "exp_avg").to(
                        self._device, copy=True
                    )
                    for key, like in likes.items()
                }
        self._costs.restore({key.removeprefix("costs."): t for key, t in tensors.items() if key.startswith("costs.")})
        self._silent.copy_(tensor_like(tensors, "silent", self._silent, signed=False))
        self._draws.set_state(tensors["draws"].cpu())
        self.steps_done = operator.index(numbers["steps_done"])
        number(numbers, "steps_done", self.settings.n_steps)
        self._gap = number(numbers, "gap", _MOST_GAP)
        self._train_nmse = number(numbers, "train_nmse") if self.steps_done else None
        self._l0 = number(numbers, "l0") if self.steps_done else None
        for (_, method), state in zip(self._methods, numbers["methods"], strict=True):
            method.restore(state)


def _variance(x: Tensor) -> float:
    """Mean squared distance of rows, float32 (H, d), from their mean; d where they do not vary."""
    if not len(x):
        return float(x.shape[1])
    variance = float((x - x.mean(0)).double().square().sum()) / len(x)
    return variance if variance > 1e-12 * float(x.double().square().sum()) / len(x) else float(x.shape[1])
