"""The nonlinearity of an SAE's encoder: which latents are active, and how strongly.

One class per architecture, all with the same two faces: `active(h)` returns the nonzero activations of
pre-activations h (T, F) as flat indices (row * F + latent, ascending) and float32 values; `config`/`tensors` and
`from_config` are mirror images. Equations: SAELens 6 (`sae_lens/saes/*.py`), all comparisons strict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from saecodec.errors import CheckpointError, UnsupportedError


class Nonlinearity(ABC):
    """Selects and values the active latents of pre-activations."""

    kind: ClassVar[str]
    signed: ClassVar[bool] = False
    scale: Tensor | None = None
    """What a library multiplies feature activations by, and divides out again in its decoder, float32 (F,)."""

    @abstractmethod
    def active(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Flat indices int64 (K,) and activations float32 (K,) of pre-activations float32 (T, F)."""

    def magnitudes(self, h: Tensor) -> Tensor:
        """What each latent's activation would be if it were active, float32 (T, F): whom a search considers."""
        return h

    def tensors(self) -> dict[str, Tensor]:
        """Its parameters, each float32 (F,)."""
        return {}

    def config(self) -> dict[str, Any]:
        """What it is beside its parameters."""
        return {"kind": self.kind}

    def to(self, device: str | torch.device) -> Nonlinearity:
        """Itself on another device."""
        return Nonlinearity.from_config(self.config(), {key: value.to(device) for key, value in self.tensors().items()})

    @staticmethod
    def from_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Nonlinearity:
        """The nonlinearity that `config()` and `tensors()` describe; UnsupportedError names an unknown kind."""
        if not isinstance(config, Mapping):
            raise CheckpointError(f"a nonlinearity is a map with its kind, found {config!r}")
        kind, k = config.get("kind"), config.get("k", 1)
        if type(k) is not int or k < 1:
            raise CheckpointError(f"nonlinearity {kind!r}: k is {k!r}, expected a positive integer")
        known = {cls.kind: cls for cls in NONLINEARITIES}
        if not isinstance(kind, str) or kind not in known:
            raise UnsupportedError(f"unknown nonlinearity {kind!r}: this version knows {', '.join(known)}")
        try:
            return known[kind].made(config, tensors)
        except KeyError as error:
            raise CheckpointError(f"nonlinearity {kind!r} needs {error}") from error

    @classmethod
    @abstractmethod
    def made(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Nonlinearity:
        """The one of this class that `config()` and `tensors()` describe; KeyError names what is missing."""


def _above(h: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices, ascending, and values of the cells of h (T, F) that exceed their latent's threshold (F,)."""
    if h.device.type == "cpu":  # numpy compares and searches several times faster than torch on the CPU
        values = h.numpy()
        index = np.flatnonzero(values > threshold.numpy())
        return torch.from_numpy(index), torch.from_numpy(values.reshape(-1)[index])
    index_t = (h > threshold).reshape(-1).nonzero().reshape(-1)
    return index_t, h.reshape(-1)[index_t]


@dataclass(frozen=True, eq=False)
class ReLU(Nonlinearity):
    """z = relu(h)."""

    kind = "relu"

    def active(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return _above(h, torch.zeros(1, device=h.device))

    @classmethod
    def made(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ReLU:
        return cls()


@dataclass(frozen=True, eq=False)
class TanhReLU(ReLU):
    """z = tanh(relu(h)) (SAELens before version 6)."""

    kind = "tanh_relu"

    def active(self, h: Tensor) -> tuple[Tensor, Tensor]:
        index, values = super().active(h)
        return index, values.tanh()

    def magnitudes(self, h: Tensor) -> Tensor:
        return h.tanh()


@dataclass(frozen=True, eq=False)
class JumpReLU(Nonlinearity):
    """z = relu(h) 1[h > threshold]."""

    kind = "jumprelu"
    threshold: Tensor

    def active(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return _above(h, self.threshold.clamp(min=0))

    @classmethod
    def made(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> JumpReLU:
        return cls(tensors["threshold"])

    def tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}


def _largest(order: Tensor, k: int) -> Tensor:
    """Columns of the k largest of each row, int64 (T, k); any of those that are equal."""
    return torch.topk(order, k, dim=1, sorted=False).indices


@dataclass(frozen=True, eq=False)
class TopK(Nonlinearity):
    """The k largest h of a row, then relu: at most k are active.

    rank: they are the k largest of h rank, float32 (F,). scaled: a library's feature activations are h rank, too.
    """

    kind = "topk"
    k: int
    rank: Tensor | None = None
    scaled: bool = True

    @property
    def scale(self) -> Tensor | None:  # type: ignore[override]
        return self.rank if self.scaled else None

    def _order(self, ranked: Tensor) -> Tensor:
        """What the largest are taken of."""
        return ranked

    def _kept(self, values: Tensor) -> Tensor:
        """Which of the chosen are active."""
        return values > 0

    def active(self, h: Tensor, largest: Callable[[Tensor, int], Tensor] = _largest) -> tuple[Tensor, Tensor]:
        ranked = h if self.rank is None else h * self.rank
        latents = largest(self._order(ranked), min(self.k, h.shape[1])).sort(dim=1).values
        keep = self._kept(ranked.gather(1, latents))
        index = (latents + torch.arange(len(h), device=h.device)[:, None] * h.shape[1])[keep]
        return index, h.reshape(-1)[index]

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "k": self.k} | ({} if self.scaled else {"scaled": False})

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.rank is None else {"scale": self.rank}

    @classmethod
    def made(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TopK:
        return cls(config["k"], tensors.get("scale"), config.get("scaled") is not False)


@dataclass(frozen=True, eq=False)
class SignedTopK(TopK):
    """The k largest h of a row, negative ones too (openai/sparse_autoencoder, `postact_fn` Identity)."""

    kind = "signed_topk"
    signed = True

    def _kept(self, values: Tensor) -> Tensor:
        return values != 0


@dataclass(frozen=True, eq=False)
class AbsTopK(SignedTopK):
    """The k largest |h| of a row, with their signs (SAELens `abstopk_sae.py`)."""

    kind = "abstopk"

    def _order(self, ranked: Tensor) -> Tensor:
        return ranked.abs()


@dataclass(frozen=True, eq=False)
class SignedTopKWithTies(SignedTopK):
    """All h of a row that are at least its k-th largest (mutual-feature-regularization, `_topk_activation`)."""

    kind = "signed_topk_with_ties"

    def active(self, h: Tensor, largest: Callable[[Tensor, int], Tensor] = _largest) -> tuple[Tensor, Tensor]:
        ranked = h if self.rank is None else h * self.rank
        least = torch.topk(ranked, min(self.k, h.shape[1]), dim=1).values[:, -1:]
        index = ((ranked >= least) & (h != 0)).reshape(-1).nonzero().reshape(-1)
        return index, h.reshape(-1)[index]


@dataclass(frozen=True, eq=False)
class GroupMax(Nonlinearity):
    """The largest h of each of k groups of F / k neighbouring latents, then relu (sparsify, `groupmax`)."""

    kind = "groupmax"
    k: int

    def active(self, h: Tensor) -> tuple[Tensor, Tensor]:
        n_rows, n_latents = h.shape
        values, place = h.reshape(n_rows * self.k, n_latents // self.k).max(1)
        keep = values > 0
        index = (torch.arange(n_rows * self.k, device=h.device) * (n_latents // self.k) + place)[keep]
        return index, values[keep]

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "k": self.k}

    @classmethod
    def made(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GroupMax:
        return cls(config["k"])


@dataclass(frozen=True, eq=False)
class Gated(Nonlinearity):
    """z = 1[h + b_gate > 0] relu(h exp(r_mag) + b_mag), where h = u W_enc (b_enc is zero)."""

    kind = "gated"
    r_mag: Tensor
    b_mag: Tensor
    b_gate: Tensor

    def active(self, h: Tensor, gain: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """gain: exp(r_mag), where somebody has it."""
        index, projection = _above(h, -self.b_gate)
        latent = index % h.shape[1]
        gain = self.r_mag.exp() if gain is None else gain
        values = projection * gain[latent] + self.b_mag[latent]
        keep = values > 0
        return index[keep], values[keep]

    def magnitudes(self, h: Tensor) -> Tensor:
        return h * self.r_mag.exp() + self.b_mag

    def tensors(self) -> dict[str, Tensor]:
        return {"r_mag": self.r_mag, "b_mag": self.b_mag, "b_gate": self.b_gate}

    @classmethod
    def made(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Gated:
        return cls(tensors["r_mag"], tensors["b_mag"], tensors["b_gate"])


NONLINEARITIES: Final[tuple[type[Nonlinearity], ...]] = (
    ReLU,
    TanhReLU,
    JumpReLU,
    TopK,
    SignedTopK,
    SignedTopKWithTies,
    AbsTopK,
    GroupMax,
    Gated,
)
"""Every nonlinearity; a new one joins here."""
