"""What the levels of feature activations stand for when there is no SAE: multiples of a step, or bit patterns.

Exact values are 16-bit floats without their sign: the pattern of a positive float16 or bfloat16 rises with its value
and is an integer below 2^15, so level = pattern - base is small, and the bucket code finds its octaves, which are those
of the float where patterns are large. Normative: docs/format.md, "Latents without an SAE".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import FormatError, InputError
from saecodec.stored_floats import as_float, narrowed

NO_DECODER: Final = bytes(32).hex()
"""The decoder id of a codec of latents: there is no decoder."""
STEP: Final = "step"
EXACT: Final = ("float16", "bfloat16")
_SIGN: Final = np.uint16(0x8000)
MAX_PATTERN: Final = 0x7FFF


@dataclass(frozen=True)
class ValueCode:
    """kind: "step", or the 16-bit float whose patterns levels are. base: what to add to |level| for the pattern, -1 to
    0x7ffe; -1 lets a level stand for zero. 0 for steps."""

    kind: str = STEP
    base: int = 0

    @property
    def exact(self) -> bool:
        """Whether values come back bit by bit."""
        return self.kind != STEP

    def levels(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Levels of values that this kind of float holds exactly, int32 (K,)."""
        bits = patterns(values, self.kind)
        magnitude = (bits & ~_SIGN).astype(np.int32) - self.base
        return np.asarray(np.where(bits & _SIGN, -magnitude, magnitude), np.int32)

    def values(self, levels: NDArray[np.int32], dtype: str, what: str) -> NDArray[Any]:
        """The values of levels as `dtype`, in numpy's form of it. FormatError when there are none."""
        pattern = np.abs(levels.astype(np.int64)) + self.base
        if len(pattern) and pattern.max() > MAX_PATTERN:
            raise FormatError(f"{what}: a level stands for the pattern {pattern.max():#x}, which no {self.kind} has")
        bits = pattern.astype(np.uint16)
        bits[levels < 0] |= _SIGN
        if dtype == self.kind:
            return bits if dtype == "bfloat16" else bits.view(np.float16)
        return narrowed(as_float(bits if self.kind == "bfloat16" else bits.view(np.float16), np.dtype("f4")), dtype)


def patterns(values: NDArray[Any], kind: str) -> NDArray[np.uint16]:
    """The bits of values as 16-bit floats, uint16 (K,)."""
    if values.dtype.kind == "u":
        return values
    if kind == "float16":
        return np.ascontiguousarray(as_float(values, np.dtype(np.float16))).view(np.uint16)
    return (np.ascontiguousarray(as_float(values, np.dtype(np.float32))).view(np.uint32) >> 16).astype(np.uint16)


class ExactStatistics:
    """Which 16-bit floats hold all values added, and how small their patterns are. dtype: of the values."""

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._least = dict.fromkeys((dtype,) if dtype in EXACT else EXACT, MAX_PATTERN)
        self._misfit: float | None = None

    def add(self, values: NDArray[Any]) -> None:
        """Add values in numpy's form of the dtype."""
        for kind in tuple(self._least):
            bits = patterns(values, kind)
            if self._dtype not in EXACT:
                wide = as_float(bits if kind == "bfloat16" else bits.view(np.float16), np.dtype(values.dtype))
                wrong = np.flatnonzero(_bits(wide) != _bits(values))
                if len(wrong):
                    self._misfit = float(values[wrong[0]])
                    del self._least[kind]
                    continue
            if len(bits):
                self._least[kind] = min(self._least[kind], int((bits & ~_SIGN).min()))

    def value_code(self) -> ValueCode:
        """The code for these values; InputError when neither float16 nor bfloat16 holds them all."""
        if not self._least:
            raise InputError(
                f"a step of 0 keeps 16-bit floats exactly, but {self._misfit!r} ({self._dtype}) is neither a float16 "
                "nor a bfloat16: give a step such as --step 0.4rms, or convert the values to float16 first"
            )
        kind, least = next(iter(self._least.items()))
        return ValueCode(kind, least - 1)


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
