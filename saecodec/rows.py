"""Rows as a caller of the library gives them: any real dtype, numpy or torch, any leading dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError
from saecodec.priors.registry import CONTEXT
from saecodec.sequences import ids_of_shape

if TYPE_CHECKING:
    from saecodec.sae import SAE

Ids = NDArray[np.integer[Any]]


def given_rows(
    x: NDArray[np.floating[Any]], sae: SAE, prior: str, seq: Ids | None = None
) -> tuple[NDArray[np.float32], Ids | None]:
    """Rows x (..., d), or (..., heads, d_head) of an SAE with such rows, as float32 (T, d), and their sequence ids.

    seq: ids as given, flat or (...,); without them, where they are needed, the second-to-last dimension of (..., d) is
    a sequence. InputError when x is not of the SAE's width, or holds no real numbers.
    """
    if hasattr(x, "detach"):  # a torch tensor, of which numpy knows no bfloat16
        x = x.detach().float().cpu().numpy()
    array = sae.joined(np.asarray(x))
    if array.dtype.kind not in "fiu":
        raise InputError(f"rows are real numbers, got {array.dtype}")
    if array.ndim < 1 or array.shape[-1] != sae.width:
        raise InputError(f"the SAE codes rows of {sae.width} values, got an array of shape {array.shape}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which the SAE refuses by row
        rows = np.ascontiguousarray(array.reshape(-1, sae.width), np.float32)
    if seq is None:
        return rows, ids_of_shape(array.shape) if needs_sequences(prior, sae) else None
    ids = np.asarray(seq)
    return rows, ids.reshape(-1) if ids.shape == array.shape[:-1] else ids


def needs_sequences(prior: str, sae: SAE) -> bool:
    """Whether sequence ids are taken from the shape of an array with positions, where none are given."""
    return prior == CONTEXT or sae.normalization == "sequence_norm"
