"""Tolerances of error-bounded peers, relative to the calibration rows so that one number suits every layer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError


def absolute_tolerance(rows: NDArray[np.float32], relative: float, name: str) -> float:
    """`relative` times the rms over channels of their standard deviation; InputError when the rows do not vary."""
    tolerance = relative * float(np.sqrt(rows.var(0, dtype=np.float64).mean()))
    if not tolerance > 0:
        raise InputError(f"{name}: the calibration rows do not vary, so a relative tolerance means nothing")
    return tolerance
