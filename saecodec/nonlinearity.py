"""The nonlinearity of an SAE's encoder: which latents are active, and how strongly.

One class per architecture, all with the same two faces: `active(h)` returns the nonzero activations of
pre-activations h (T, F) as flat indices (row * F + latent, ascending) and float32 values; `config`/`tensors` and
`from_config` are mirror images. Equations: SAELens 6 (`sae_lens/saes/*.py`), all comparisons strict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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
        try:
            if kind == ReLU.kind:
                return ReLU()
            if kind == JumpReLU.kind:
                return JumpReLU(tensors["threshold"])
            if kind == TopK.kind:
                return TopK(config["k"], tensors.get("scale"))
            if kind == Gated.kind:
                return Gated(tensors["r_mag"], tensors["b_mag"], tensors["b_gate"])
        except KeyError as error:
            raise CheckpointError(f"nonlinearity {kind!r} needs {error}") from error
        raise UnsupportedError(f"unknown nonlinearity {kind!r}: this version knows relu, jumprelu, topk, gated")


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


@dataclass(frozen=True, eq=False)
class JumpReLU(Nonlinearity):
    """z = relu(h) 1[h > threshold]."""

    kind = "jumprelu"
    threshold: Tensor

    def active(self, h: Tensor) -> tuple[Tensor, Tensor]:
        return _above(h, self.threshold.clamp(min=0))

    def tensors(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}


@dataclass(frozen=True, eq=False)
class TopK(Nonlinearity):
    """The k largest h (or h scale) of a row, then relu: at most k are active."""

    kind = "topk"
    k: int
    scale: Tensor | None = None

    def active(self, h: Tensor) -> tuple[Tensor, Tensor]:
        ranked = h if self.scale is None else h * self.scale
        values, latents = torch.topk(ranked, min(self.k, h.shape[1]), dim=1, sorted=False)
        latents, order = latents.sort(dim=1)
        keep = values.gather(1, order) > 0
        index = (latents + torch.arange(len(h), device=h.device)[:, None] * h.shape[1])[keep]
        return index, h.reshape(-1)[index]

    def config(self) -> dict[str, Any]:
        return {"kind": self.kind, "k": self.k}

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.scale is None else {"scale": self.scale}


@dataclass(frozen=True, eq=False)
class Gated(Nonlinearity):
    """z = 1[h + b_gate > 0] relu(h exp(r_mag) + b_mag), where h = u W_enc (b_enc is zero)."""

    kind = "gated"
    r_mag: Tensor
    b_mag: Tensor
    b_gate: Tensor

    def active(self, h: Tensor) -> tuple[Tensor, Tensor]:
        index, projection = _above(h, -self.b_gate)
        latent = index % h.shape[1]
        values = projection * self.r_mag.exp()[latent] + self.b_mag[latent]
        keep = values > 0
        return index[keep], values[keep]

    def magnitudes(self, h: Tensor) -> Tensor:
        return h * self.r_mag.exp() + self.b_mag

    def tensors(self) -> dict[str, Tensor]:
        return {"r_mag": self.r_mag, "b_mag": self.b_mag, "b_gate": self.b_gate}
