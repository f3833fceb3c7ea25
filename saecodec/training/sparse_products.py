"""The two products of an SAE, and their gradients, at the few places of a batch where latents are active.

Of B x F pre-activations only those at `Places` matter for the loss, so that a training step costs one dense product,
x W_enc, and sparse ones. Where dense products are cheap (a GPU's tensor cores), or places many (half of all are, when
a gated or relu SAE begins), the same gradients are taken densely.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from saecodec.sparse_csr import csr


@dataclass(frozen=True, eq=False)
class Places:
    """Cells of pre-activations (n_rows, n_latents). flat: row * n_latents + latent, int64 (K,), ascending."""

    flat: Tensor
    n_rows: int
    n_latents: int

    @classmethod
    def where(cls, chosen: Tensor) -> Places:
        """The true ones of a bool (B, F)."""
        if chosen.device.type == "cpu":  # numpy searches several times faster than torch on the CPU
            flat = torch.from_numpy(np.flatnonzero(chosen.numpy()))
        else:
            flat = chosen.reshape(-1).nonzero().reshape(-1)
        return cls(flat, *chosen.shape)

    def __len__(self) -> int:
        return len(self.flat)

    @cached_property
    def rows(self) -> Tensor:
        """int64 (K,)."""
        return torch.div(self.flat, self.n_latents, rounding_mode="floor")

    @cached_property
    def latents(self) -> Tensor:
        """int64 (K,)."""
        return self.flat - self.rows * self.n_latents

    @cached_property
    def indptr(self) -> Tensor:
        """Where rows start and end, int64 (B + 1,)."""
        edges = torch.arange(self.n_rows + 1, device=self.flat.device) * self.n_latents
        return torch.searchsorted(self.flat, edges)

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """Order of places by latent, their rows in this order, and where latents start and end."""
        latents, order = self.latents.sort(stable=True)
        edges = torch.arange(self.n_latents + 1, device=self.flat.device)
        return order, self.rows[order], torch.searchsorted(latents, edges)

    def kept(self, keep: Tensor) -> Places:
        """Those of a bool (K,)."""
        return Places(self.flat[keep], self.n_rows, self.n_latents)

    def matrix(self, values: Tensor) -> Tensor:
        """CSR (B, F)."""
        shape = (self.n_rows, self.n_latents)
        return csr(self.indptr, self.latents, values, shape)

    def transposed(self, values: Tensor) -> Tensor:
        """CSR (F, B)."""
        order, rows, indptr = self.by_latent
        shape = (self.n_latents, self.n_rows)
        return csr(indptr, rows, values[order], shape)

    def dense(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """(B, F), zero elsewhere."""
        out = torch.zeros(self.n_rows * self.n_latents, dtype=dtype, device=values.device)
        return out.index_copy_(0, self.flat, values.to(dtype)).view(self.n_rows, self.n_latents)

    def per_latent(self, values: Tensor) -> Tensor:
        """Sums of values (K,) over the places of each latent, float32 (F,)."""
        return torch.bincount(self.latents, values, minlength=self.n_latents).to(torch.float32)


_DENSE_FROM: Final = 1 / 6
"""Share of all cells from which on dense products in float32 are faster than sparse ones. One thread, 1,024 x 3,072,
d = 768, both products and their gradients: sparse 333 ms at a quarter, 209 at a sixth, 157 at an eighth; dense 220."""


@dataclass(frozen=True)
class Products:
    """How products are computed. dtype: of what a dense product multiplies; None: float32, and sparse products where
    places are few."""

    dtype: torch.dtype | None = None

    @classmethod
    def on(cls, device: torch.device) -> Products:
        """What is fast on a device: mixed precision in tensor cores, or sparse."""
        return cls(torch.bfloat16 if device.type == "cuda" else None)

    def dense(self, a: Tensor, b: Tensor) -> Tensor:
        """a @ b, float32."""
        return a @ b if self.dtype is None else (a.to(self.dtype) @ b.to(self.dtype)).to(torch.float32)

    def dense_codes(self, places: Places, values: Tensor) -> Tensor | None:
        """Z, the values at places, (B, F), where products with it are dense, else None."""
        dtype = self._dense_at(places)
        return None if dtype is None else places.dense(values, dtype)

    def spread(self, places: Places, values: Tensor, w: Tensor, z: Tensor | None) -> Tensor:
        """Z w, for Z the values at places: (B, d). z: their `dense_codes`."""
        if z is None:
            return places.matrix(values) @ w
        return (z @ w.to(z.dtype)).to(torch.float32)

    def gathered(self, places: Places, values: Tensor, x: Tensor, z: Tensor | None) -> Tensor:
        """Z' x: (F, d). z: as above."""
        if z is None:
            return places.transposed(values) @ x
        return (z.t() @ x.to(z.dtype)).to(torch.float32)

    def at(self, places: Places, x: Tensor, w: Tensor) -> Tensor:
        """x w' at places: (K,)."""
        dtype = self._dense_at(places)
        if dtype is None:
            pattern = places.matrix(torch.zeros(len(places)))
            products: Tensor = torch.sparse.sampled_addmm(pattern, x, w.t(), beta=0.0).values()
            return products
        return (x.to(dtype) @ w.to(dtype).t()).reshape(-1)[places.flat].to(torch.float32)

    def _dense_at(self, places: Places) -> torch.dtype | None:
        """What a product with codes at places multiplies; None: it is sparse."""
        many = len(places) > _DENSE_FROM * places.n_rows * places.n_latents
        return torch.float32 if self.dtype is None and many else self.dtype


def encode_at(
    places: Places, h: Tensor, x: Tensor, w_enc: Tensor, b_enc: Tensor, b_dec: Tensor, products: Products
) -> Tensor:
    """h = (x - b_dec) W_enc' + b_enc at places, float32 (K,), for gradients of the three weights.

    h: (B, F), already computed. x: (B, d). w_enc: (F, d).
    """
    out: Tensor = _Encode.apply(h, x, w_enc, b_enc, b_dec, places, products)  # type: ignore[no-untyped-call]
    return out


def decode_at(places: Places, values: Tensor, w_dec: Tensor, b_dec: Tensor, products: Products) -> Tensor:
    """x_hat = Z W_dec + b_dec, float32 (B, d), for Z the values (K,) at places. w_dec: (F, d)."""
    out: Tensor = _Decode.apply(values, w_dec, b_dec, places, products)  # type: ignore[no-untyped-call]
    return out


class _Encode(Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        x: Tensor,
        w_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        places: Places,
        products: Products,
    ) -> Tensor:
        ctx.save_for_backward(x, w_enc, b_dec)
        ctx.places, ctx.products = places, products
        return h.reshape(-1)[places.flat]

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, w_enc, b_dec = ctx.saved_tensors
        places, products = ctx.places, ctx.products
        b_enc = places.per_latent(slope)
        w = products.gathered(places, slope, x, products.dense_codes(places, slope)).addr_(b_enc, b_dec, alpha=-1)
        return None, None, w, b_enc, -(b_enc @ w_enc), None, None


class _Decode(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, w_dec: Tensor, b_dec: Tensor, places: Places, products: Products) -> Tensor:
        ctx.save_for_backward(values, w_dec)
        z = products.dense_codes(places, values)
        ctx.places, ctx.products, ctx.z = places, products, z if ctx.needs_input_grad[1] else None
        return products.spread(places, values, w_dec, z) + b_dec

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        values, w_dec = ctx.saved_tensors
        places, products = ctx.places, ctx.products
        back = products.at(places, slope, w_dec) if ctx.needs_input_grad[0] else None
        w = products.gathered(places, values, slope, ctx.z) if ctx.needs_input_grad[1] else None
        return back, w, slope.sum(0) if ctx.needs_input_grad[2] else None, None, None
