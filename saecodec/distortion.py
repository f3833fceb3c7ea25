"""Distortion between rows and their reconstruction, accumulated batch by batch in float64."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

ROUNDING: Final = 2.0**-48
"""Of the energy: rows whose variance is below this share of it are all alike, but for float32's rounding of them."""


class Distortion:
    """Sums over the rows added so far. T rows, d values.

    NMSE = sum |x - x_hat|^2 / sum |x - mean(x)|^2 (also called FVU), mean over all rows.

    >>> distortion = Distortion(2)
    >>> distortion.add(np.array([[0, 0], [2, 4]], np.float32), np.array([[0, 0], [2, 3]], np.float32))
    >>> distortion.nmse
    0.1
    """

    def __init__(self, width: int) -> None:
        self.n_rows = 0
        self.squared_error = 0.0
        self.max_error = 0.0
        self._cosine = 0.0
        self._pivot: NDArray[np.float64] | None = None  # near the mean, so that the sums below do not cancel
        self._sum = np.zeros(width)
        self._square = 0.0

    def add(self, x: NDArray[np.float32], x_hat: NDArray[np.float32]) -> None:
        """Add rows, float32 (n, d) each."""
        if not len(x):
            return
        a, b = x.astype(np.float64), x_hat.astype(np.float64)
        if self._pivot is None:
            self._pivot = a.mean(0)
        centred, error = a - self._pivot, a - b
        self.n_rows += len(a)
        self._sum += centred.sum(0)
        self._square += float(np.einsum("td,td->", centred, centred))
        self.squared_error += float(np.einsum("td,td->", error, error))
        self.max_error = max(self.max_error, float(np.abs(error).max()))
        norms = np.sqrt(np.einsum("td,td->t", a, a) * np.einsum("td,td->t", b, b))
        same = np.where(norms > 0, np.einsum("td,td->t", a, b) / np.where(norms > 0, norms, 1), 0)
        both_zero = ~a.any(axis=1) & ~b.any(axis=1)
        self._cosine += float(same.sum() + both_zero.sum())

    @property
    def energy(self) -> float:
        """sum |x|^2."""
        if self._pivot is None:
            return 0.0
        return self._square + 2 * float(self._sum @ self._pivot) + self.n_rows * float(self._pivot @ self._pivot)

    @property
    def variance(self) -> float:
        """sum |x - mean(x)|^2; 0 where that is the rounding of rows that are all alike."""
        found = self._square - float(self._sum @ self._sum) / max(self.n_rows, 1)
        return found if found > ROUNDING * self.energy else 0.0

    @property
    def nmse(self) -> float | None:
        """Squared error over variance; None when the rows do not vary."""
        return self.squared_error / self.variance if self.variance > 0 else None

    @property
    def cosine(self) -> float | None:
        """Mean cosine between a row and its reconstruction (1 when both are zero); None without rows."""
        return self._cosine / self.n_rows if self.n_rows else None
