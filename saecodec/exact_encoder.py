"""An SAE whose integers depend on rows and weights alone: not on threads, batches, library versions, or the CPU.

What a level depends on is computed by `exact`: the encoder's product, the side information of rows, and, where there is
a residual layer, what the base layer gives back. Whatever else an encoder does is single operations, or is done here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saecodec import exact
from saecodec.encoder import Encoder, check_finite
from saecodec.errors import InputError, MissingPieceError, UnsupportedError
from saecodec.nonlinearity import Gated, SignedTopKWithTies, TanhReLU, TopK

if TYPE_CHECKING:
    from saecodec.codec import Codec
    from saecodec.sae import SAE


def deterministic(sae: SAE) -> SAE:
    """The same SAE, whose feature activations are the same bits on every machine; it takes several times as long.

    So are its reconstructions, whether of `features` by `rows` or of `encode` by `decode`. InputError when it is not on
    the CPU; UnsupportedError names what has no such arithmetic; MissingPieceError when only the decoder is at hand.
    """
    encoder, name = sae.encoder, sae.name
    if encoder is None:
        raise MissingPieceError(f"encoding needs the whole SAE {name!r}; only its decoder is at hand")
    if sae.device.type != "cpu":
        raise InputError(
            f"the SAE {name!r} is on {sae.device}; deterministic arithmetic is the CPU's: use --device cpu"
        )
    if not isinstance(encoder, Encoder):
        raise UnsupportedError(
            f"the SAE {name!r} picks its latents by {encoder.kind}, step by step in floats: there is no deterministic "
            "arithmetic for that; leave --deterministic out"
        )
    if encoder.w_glu is not None:
        raise UnsupportedError(
            f"the SAE {name!r} has a gated linear unit, for which there is no deterministic arithmetic; leave "
            "--deterministic out"
        )
    if isinstance(encoder, ExactEncoder):
        return sae
    return replace(sae, encoder=ExactEncoder(**{part.name: getattr(encoder, part.name) for part in fields(encoder)}))


def deterministic_pieces(sae: SAE | None, codec: Codec | None) -> tuple[SAE | None, Codec | None]:
    """An SAE and a codec, of which the one that holds the encoder is made `deterministic`."""
    if sae is not None:
        return deterministic(sae), codec
    if codec is not None and codec.sae is not None:
        return None, codec.with_sae(deterministic(codec.sae))
    return sae, codec


@dataclass(frozen=True, eq=False)
class ExactEncoder(Encoder):
    """An `Encoder` whose u W_enc is an `exact.product`, to which b_enc is added in float64 before rounding to float32.

    In half precision the product is rounded before that, too, as that of an `Encoder` is.
    """

    deterministic: ClassVar[bool] = True

    def active(self, x: Tensor, w_dec: Tensor, b_dec: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Encoder.active`: the first of equal ones where only some are taken, and no library's exp or tanh."""
        h, nonlinearity = self._preactivations(x, b_dec), self.nonlinearity
        if isinstance(nonlinearity, TopK) and not isinstance(nonlinearity, SignedTopKWithTies):
            return nonlinearity.active(h, _first_largest)
        if isinstance(nonlinearity, Gated):
            return nonlinearity.active(h, self._gain)
        if isinstance(nonlinearity, TanhReLU):
            index, values = super(TanhReLU, nonlinearity).active(h)
            return index, torch.from_numpy(exact.tanh(values.numpy()))
        return nonlinearity.active(h)

    def _preactivations(self, x: Tensor, b_dec: Tensor, out: Tensor | None = None) -> Tensor:
        dtype = self.w_enc.dtype
        u = x.to(dtype).double()
        if self.apply_b_dec_to_input:
            u = u.sub_(b_dec.to(dtype).double())
            u = u if dtype == torch.float32 else _rounded(u, dtype).double()
        h = torch.from_numpy(exact.product(u.numpy(), self._factor))
        if dtype == torch.float32:
            return h.add_(self.b_enc.double()).float()
        h = _rounded(_rounded(h, dtype).add_(self.b_enc.float()), dtype)  # twice, as in SAELens
        check_finite(h, dtype)
        return h

    @cached_property
    def _factor(self) -> NDArray[np.float64]:
        return exact.factor(self.w_enc.float().numpy())

    @cached_property
    def _gain(self) -> Tensor:
        """exp(r_mag) of a gated one."""
        assert isinstance(self.nonlinearity, Gated)
        return torch.from_numpy(exact.exp(self.nonlinearity.r_mag.numpy()))

    def to(self, device: torch.device) -> Encoder:
        """Itself; InputError on a device that is not the CPU."""
        if device.type != "cpu":
            raise InputError(f"deterministic arithmetic is the CPU's, not that of {device}: use --device cpu")
        return self


def _rounded(h: Tensor, dtype: torch.dtype) -> Tensor:
    """h in half precision, by way of float32 on every CPU; float32."""
    return h.float().to(dtype).float()


def _first_largest(order: Tensor, k: int) -> Tensor:
    """Columns of the k largest of each row, int64 (T, k); the first ones of those that are equal."""
    values, chosen = torch.topk(order, k, dim=1, sorted=False)
    least = values.amin(1, keepdim=True)
    for row in ((order >= least).sum(1) > k).nonzero()[:, 0]:
        above = (order[row] > least[row]).nonzero()[:, 0]
        equal = (order[row] == least[row]).nonzero()[:, 0]
        chosen[row] = torch.cat([above, equal[: k - len(above)]])
    return chosen
