"""The tensors that a training changes, and how it begins."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from saecodec.training.sparse_products import Places, Products, decode_at, encode_at

Parameters = dict[str, Tensor]
"""float32 leaves: w_enc, w_dec (F, d), both with latents in rows; b_enc (F,), b_dec (d,); and what an architecture
adds, (F,) each. In the units of `Scaling`: rows around zero, with a mean square of d."""


def initial(n_latents: int, width: int, generator: torch.Generator, device: torch.device) -> Parameters:
    """Random unit directions, which encoder and decoder share, around the mean row, which is zero in these units (Gao
    et al. 2024, section A.1).

    Rows of the data as directions were tried, too: they are too alike, and learnt worse (NMSE 0.194 against 0.160 after
    1.5 M tokens at k 16).
    """
    w = torch.nn.functional.normalize(torch.randn(n_latents, width, generator=generator)).to(device)
    b_enc, b_dec = torch.zeros(n_latents, device=device), torch.zeros(width, device=device)
    return {"w_enc": w.clone(), "b_enc": b_enc, "w_dec": w, "b_dec": b_dec}


def with_gradients(parameters: Mapping[str, Tensor]) -> Parameters:
    """The same values as leaves that take gradients."""
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}


class Batch:
    """Rows of a step, float32 (B, d), scaled, with the pre-activations that the parameters give them."""

    def __init__(self, x: Tensor, parameters: Parameters, products: Products) -> None:
        self.x, self.parameters, self._products = x, parameters, products
        with torch.no_grad():
            w_enc = parameters["w_enc"]
            self.h = products.dense(x, w_enc.t()).add_(parameters["b_enc"] - w_enc @ parameters["b_dec"])
            """float32 (B, F), without gradients."""

    def encoded(self, places: Places) -> Tensor:
        """Pre-activations at places, with gradients: (K,)."""
        p = self.parameters
        return encode_at(places, self.h, self.x, p["w_enc"], p["b_enc"], p["b_dec"], self._products)

    def decoded(self, places: Places, values: Tensor, *, learn: bool = True) -> Tensor:
        """Reconstructions of values at places: (B, d). learn: whether the decoder takes gradients."""
        p = self.parameters
        w_dec, b_dec = (p["w_dec"], p["b_dec"]) if learn else (p["w_dec"].detach(), p["b_dec"].detach())
        return decode_at(places, values, w_dec, b_dec, self._products)

    def error(self, x_hat: Tensor) -> Tensor:
        """Mean squared error of rows, summed over their values: a scalar."""
        return (x_hat - self.x).square().sum(1).mean()


@torch.no_grad()
def stay_on_sphere(w_dec: Tensor) -> None:
    """Takes from the gradient of unit rows what would only lengthen them, so that it does not move Adam's moments."""
    assert w_dec.grad is not None
    w_dec.grad -= (w_dec.grad * w_dec).sum(1, keepdim=True) * w_dec


@torch.no_grad()
def to_unit_rows(w_dec: Tensor) -> None:
    """Rows of norm 1 again, after a step."""
    w_dec.div_(w_dec.norm(dim=1, keepdim=True))
