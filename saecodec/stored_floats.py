"""The floats that files hold, and how numpy holds them: bfloat16, which it does not know, as its bits."""

from __future__ import annotations

import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

STORED: Final = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"}
"""numpy's form of each dtype."""
_LARGEST_FINITE: Final = {"float16": np.float32(65504), "bfloat16": np.float32(3.3895313892515355e38)}


def as_float(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Stored values in a float dtype of numpy; uint16 means the bits of bfloat16, the upper half of a float32. What is
    too large becomes infinite."""
    if values.dtype.kind == "u":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values, dtype)


def narrowed(values: NDArray[np.floating[Any]], dtype: str) -> NDArray[Any]:
    """Values as a file stores them: C-contiguous, little-endian, rounded to nearest.

    Finite values stay finite: one beyond the range of float16 or bfloat16 becomes the largest finite value of its sign.
    """
    if dtype in _LARGEST_FINITE:
        largest = _LARGEST_FINITE[dtype]
        if (np.abs(values) > largest).any():
            values = np.where(np.isinf(values), values, np.clip(values, -largest, largest))
    if dtype == "bfloat16":
        return float32_to_bfloat16(np.asarray(values, np.float32)).astype(STORED[dtype], copy=False)
    if dtype == "float16" and "torch" in sys.modules:
        import torch  # numpy converts halves value by value, torch ten times faster; who codes rows has loaded it

        half: NDArray[Any] = torch.from_numpy(np.ascontiguousarray(values)).to(torch.float16).numpy()
        return half.astype(STORED[dtype], copy=False)
    return values.astype(STORED[dtype], order="C", copy=False)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16, ties to even; NaN stays NaN, and what is beyond the range becomes infinite.

    bfloat16 is the upper half of a float32, so adding half of a unit in the last place and cutting off rounds.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    upper = bits >> np.uint32(16)
    rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
    # Rounding could carry a NaN into an infinity, and cutting off could clear its mantissa: set its quiet bit instead.
    nearest: NDArray[np.uint32] = np.where(np.isnan(values), upper | np.uint32(0x0040), rounded)
    return nearest.astype(np.uint16)
