"""Precisions of a decoder: float32, or rounded directions, whose description is shorter.

An SAE is described too, and most of its description is w_dec. Rounding comes before all else: what is fitted, searched
and measured then goes by the decoder that the file gives back. b_dec stays as it is: it is one part in F of the bytes,
its error would be in every row, and encoders subtract it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError
from saecodec.stored_floats import as_float, narrowed

if TYPE_CHECKING:
    from saecodec.sae import SAE

FLOAT32: Final = "float32"
BFLOAT16: Final = "bfloat16"
INT8: Final = "int8"
PRECISIONS: Final = (FLOAT32, BFLOAT16, INT8)
MAX_INTEGER: Final = 127


def with_precision(sae: SAE, precision: str) -> SAE:
    """The SAE with directions as a file of this precision holds them; its encoder and b_dec are left alone.

    precision: "float32" (the SAE itself), "bfloat16" (to nearest, ties to even) or "int8" (see `to_integers`); twice
    is as once. A matching pursuit encodes with its directions, so with the rounded ones. InputError when there is no
    such precision.
    """
    import torch  # who asks for the names of precisions alone does not need it

    if precision not in PRECISIONS:
        raise InputError(f"the precision of weights is {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if precision == FLOAT32:
        return sae
    w_dec = sae.w_dec.cpu().numpy()
    rounded = from_integers(*to_integers(w_dec)) if precision == INT8 else _as_bfloat16(w_dec)
    return replace(sae, w_dec=torch.from_numpy(rounded).to(sae.device))


def to_integers(w_dec: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Directions (F, d) as integers int8 (F, d) and a scale of each, float32 (F,), with w = integer x scale.

    Symmetric quantization by the largest magnitude of a row, which becomes 127 (arXiv 2208.07339, section 2.1). The
    scale is max|w| / 127 in bfloat16: its 8 bits and the 7 of an integer make products that float32 holds exactly,
    which is why rounding twice changes nothing, and no product overflows (FLT_MAX / 127 rounds down). A row whose
    scale would be subnormal, below 2^-126, becomes zeros with scale 0.
    """
    scale = _as_bfloat16(np.abs(w_dec).max(axis=1) / np.float32(MAX_INTEGER))
    scale[scale < np.finfo(np.float32).tiny] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        integers = np.where(scale[:, None] > 0, np.rint(w_dec / scale[:, None]), 0)
    return integers.astype(np.int8), scale


def from_integers(integers: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse of `to_integers`, and the decoder's rule: products in float32, infinite where they overflow."""
    with np.errstate(over="ignore"):
        return integers * scale[:, None]


def _as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return as_float(narrowed(values, BFLOAT16), np.dtype(np.float32))
