"""The encoder of an SAE: feature activations of rows that are normalized already.

Two kinds. `Encoder` takes one linear map and a `Nonlinearity`; `MatchingPursuit` picks decoder directions one by one.
Both answer `active` (the nonzero activations), `magnitudes` (whom a search considers), and `config`/`tensors`, which
`encoder_of` mirrors. Arithmetic is float32, except that an encoder made for half precision multiplies in it, as its own
library does: its thresholds were chosen for those roundings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from saecodec.errors import CheckpointError, InputError
from saecodec.nonlinearity import GroupMax, Nonlinearity

HALF: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPES: Final = {"float32": torch.float32, **HALF}
MOST_STEPS: Final = 1 << 16
"""Of matching pursuit: each is a product with all directions, and a file could ask for any number of them."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """h = u W_enc + b_enc, of u = x - b_dec or x, and a nonlinearity of it.

    w_enc: (d, F) and b_enc: (F,), float32 or the half precision that the product is taken in. nonlinearity: of h.
    apply_b_dec_to_input: subtract b_dec from x first. w_glu, b_glu: like w_enc, b_enc; h is then multiplied by
    sigmoid(u w_glu + b_glu) (Language-Model-SAEs, `use_glu_encoder`).
    """

    w_enc: Tensor
    b_enc: Tensor
    nonlinearity: Nonlinearity
    apply_b_dec_to_input: bool
    w_glu: Tensor | None = None
    b_glu: Tensor | None = None
    deterministic: ClassVar[bool] = False

    @property
    def signed(self) -> bool:
        """Whether feature activations can be negative."""
        return self.nonlinearity.signed

    @property
    def scale(self) -> Tensor | None:
        """See `Nonlinearity.scale`."""
        return self.nonlinearity.scale

    def active(self, x: Tensor, w_dec: Tensor, b_dec: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The nonzero activations of rows x, float32 (T, d): flat indices (row * F + latent, ascending), int64 (K,),
        and values, float32 (K,). out: float32 (T, F), may be written to."""
        return self.nonlinearity.active(self._preactivations(x, b_dec, out))

    def magnitudes(self, x: Tensor, w_dec: Tensor, b_dec: Tensor) -> Tensor:
        """What each latent's activation would be if it were active, float32 (T, F)."""
        return self.nonlinearity.magnitudes(self._preactivations(x, b_dec))

    def _preactivations(self, x: Tensor, b_dec: Tensor, out: Tensor | None = None) -> Tensor:
        dtype = self.w_enc.dtype
        u = x.to(dtype) - b_dec.to(dtype) if self.apply_b_dec_to_input else x.to(dtype)
        if dtype == torch.float32:
            h = torch.addmm(self.b_enc, u, self.w_enc, out=out)
        else:
            h = (u @ self.w_enc + self.b_enc).float()  # rounded twice, as in SAELens
        if self.w_glu is not None and self.b_glu is not None:
            h = h * torch.sigmoid(u @ self.w_glu + self.b_glu).float()
        if dtype != torch.float32:
            check_finite(h, dtype)
        return h

    def tensors(self) -> dict[str, Tensor]:
        """w_enc, b_enc and the parameters of the nonlinearity."""
        glu = {"w_glu": self.w_glu, "b_glu": self.b_glu}
        held = {name: tensor for name, tensor in glu.items() if tensor is not None}
        return {"w_enc": self.w_enc, "b_enc": self.b_enc, **held, **self.nonlinearity.tensors()}

    def config(self) -> dict[str, Any]:
        """What it is beside its tensors."""
        return {
            "nonlinearity": self.nonlinearity.config(),
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "dtype": str(self.w_enc.dtype).removeprefix("torch."),
        }

    def to(self, device: torch.device) -> Encoder:
        """Itself on another device."""
        moved = {
            name: tensor.to(device)
            for name, tensor in self.tensors().items()
            if name in ("w_enc", "b_enc", "w_glu", "b_glu")
        }
        return replace(self, nonlinearity=self.nonlinearity.to(device), **moved)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class MatchingPursuit:
    """The direction that correlates most with what is left of the row is taken away, again and again (Mallat & Zhang
    1993; SAELens `matching_pursuit_sae.py`).

    A row is done when what is left has a norm below `residual_threshold` (0: never), when a step adds no latent
    (`stop_on_duplicate_support`), or after `max_iterations` steps. dtype: of the products.
    """

    kind: ClassVar[str] = "matching_pursuit"
    signed: ClassVar[bool] = False
    scale: ClassVar[None] = None
    deterministic: ClassVar[bool] = False
    max_iterations: int
    residual_threshold: float
    stop_on_duplicate_support: bool
    apply_b_dec_to_input: bool
    dtype: str = "float32"

    def active(self, x: Tensor, w_dec: Tensor, b_dec: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Encoder.active`."""
        left = self._input(x, b_dec)
        directions = w_dec.to(left.dtype)
        z = torch.zeros(len(x), len(w_dec), dtype=left.dtype, device=x.device)
        rows = torch.arange(len(x), device=x.device)  # not done yet
        for _ in range(self.max_iterations):
            here = left[rows]
            latent = (here @ directions.T).relu().argmax(1)
            chosen = directions[latent]
            value = (here * chosen).sum(1).relu()
            known = z[rows, latent] != 0
            z[rows, latent] += value
            here = here - value[:, None] * chosen
            left[rows] = here
            done = value == 0  # nothing changes any more
            if self.stop_on_duplicate_support:
                done |= known
            if self.residual_threshold > 0:
                done |= here.norm(dim=1) < self.residual_threshold
            rows = rows[~done]
            if not len(rows):
                break
        flat = z.float().reshape(-1)
        check_finite(flat.reshape(len(x), -1), left.dtype)
        index = flat.nonzero().reshape(-1)
        return index, flat[index]

    def magnitudes(self, x: Tensor, w_dec: Tensor, b_dec: Tensor) -> Tensor:
        """What a first step would give each latent."""
        return self._input(x, b_dec).float() @ w_dec.T

    def _input(self, x: Tensor, b_dec: Tensor) -> Tensor:
        dtype = DTYPES[self.dtype]
        return x.to(dtype) - b_dec.to(dtype) if self.apply_b_dec_to_input else x.to(dtype, copy=True)

    def tensors(self) -> dict[str, Tensor]:
        """None: it goes by the decoder's."""
        return {}

    def config(self) -> dict[str, Any]:
        """What it is."""
        steps = {"kind": self.kind, "max_iterations": self.max_iterations}
        stops = {
            "residual_threshold": self.residual_threshold,
            "stop_on_duplicate_support": self.stop_on_duplicate_support,
        }
        subtract = {"apply_b_dec_to_input": self.apply_b_dec_to_input}
        return {"nonlinearity": steps | stops, **subtract, "dtype": self.dtype}

    def to(self, device: torch.device) -> MatchingPursuit:
        """Itself."""
        return self


AnyEncoder = Encoder | MatchingPursuit


def check_finite(h: Tensor, dtype: torch.dtype) -> None:
    """InputError naming the first row of h (T, F) that `dtype` could not hold."""
    if not torch.isfinite(h).all():
        row = int(torch.nonzero(~torch.isfinite(h).all(dim=1))[0])
        raise InputError(f"row {row} of a batch overflows {dtype}, in which this SAE computes: scale the rows down")


def encoder_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> AnyEncoder | None:
    """The encoder that `config()` and `tensors()` describe, among other things; None where there is none of one."""
    described: Any = config.get("nonlinearity")
    pursuit = isinstance(described, Mapping) and described.get("kind") == MatchingPursuit.kind
    if not pursuit and "w_enc" not in tensors:
        return None
    if not pursuit and (described is None or "b_enc" not in tensors):
        raise CheckpointError(f"{name}: an encoder needs b_enc and a nonlinearity")
    nonlinearity = None if pursuit else Nonlinearity.from_config(described, tensors)
    dtype, subtract = str(config.get("dtype")), config.get("apply_b_dec_to_input")
    if dtype not in DTYPES or not isinstance(subtract, bool):
        raise CheckpointError(f"{name}: an encoder needs a dtype ({', '.join(DTYPES)}) and apply_b_dec_to_input")
    if nonlinearity is None:
        return _pursuit_of(described, subtract, dtype, name)
    if isinstance(nonlinearity, GroupMax) and len(tensors["b_enc"]) % nonlinearity.k:
        raise CheckpointError(f"{name}: {len(tensors['b_enc'])} latents are not {nonlinearity.k} groups of as many")
    half = {key: tensors[key].to(DTYPES[dtype]) for key in ("w_enc", "b_enc", "w_glu", "b_glu") if key in tensors}
    if ("w_glu" in half) != ("b_glu" in half):
        raise CheckpointError(f"{name}: a gated linear unit needs both w_glu and b_glu")
    glu = {"w_glu": half.get("w_glu"), "b_glu": half.get("b_glu")}
    return Encoder(half["w_enc"], half["b_enc"], nonlinearity, subtract, **glu)


def _pursuit_of(described: Mapping[str, Any], subtract: bool, dtype: str, name: str) -> MatchingPursuit:
    steps, threshold = described.get("max_iterations"), described.get("residual_threshold")
    stop = described.get("stop_on_duplicate_support")
    fine = type(steps) is int and 0 < steps <= MOST_STEPS and isinstance(stop, bool)
    fine = fine and type(threshold) is float and threshold >= 0
    if not fine:
        raise CheckpointError(
            f"{name}: matching pursuit of {steps!r} steps, threshold {threshold!r}, stop {stop!r}; "
            f"expected 1 to {MOST_STEPS} steps, a threshold of 0 or more, true or false"
        )
    return MatchingPursuit(int(steps or 0), float(threshold or 0.0), bool(stop), subtract, dtype)
