"""Sums and products of floats that have one result, whatever the order of summation, the library, or the CPU.

A library adds in the order that suits its threads, its batches and the CPU's vectors, and each order rounds in its own
way. Numbers on a grid so coarse that float64 holds all their partial sums are added exactly, in any order. So values
are rounded to grids, which are powers of two and depend on the values alone, and what a first grid leaves goes to a
second one (the splitting of Ozaki et al. 2012, "Error-free transformations of matrix multiplication"). The rest is
+ - * / sqrt of single numbers, of which IEEE 754 has one result each. Of exp and its kind, libraries have several,
which differ in the last bits: these are rounded to what all agree on, and where they might not, decimals decide.

T rows, d values of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MANTISSA: Final = 53
_FACTOR_BITS: Final = 24
"""Of a factor, those of float32: what is lost is below half a unit in the last place of its column's largest entry."""
_BLOCK: Final = 1 << 20  # values that are copied at a time
_AGREED: Final = 2.0**-44  # relative error of any library's float64 exp, exp2, log2, tanh: some 256 times theirs
_DECIMALS: Final = Context(prec=120)  # what cancels in tanh of 1e-30 leaves enough of it

Floats = NDArray[np.float64]
OneDecimal = Callable[[int], Decimal]


def factor(w: NDArray[np.floating]) -> Floats:
    """What `product` takes for a matrix (d, F): its columns on grids of 24 bits, float64 (d, F)."""
    return _on_grid(w.astype(np.float64), _FACTOR_BITS, 0)


def product(x: Floats, w: Floats) -> Floats:
    """x @ w of rows float64 (T, d) and a `factor` (d, F): float64 (T, F). A row's result depends on no other row.

    Two exact products, and one rounding of their sum. Of a row's largest value 2 x (29 - log2 d) bits count at least:
    about as precise as float32 where d is at most 2^17, less where it is more.
    """
    import torch  # whose number of threads is what callers steer; the decoders' processes do without it

    high, low = _slices(x, _MANTISSA - _FACTOR_BITS - _bits(x.shape[1]))
    by = torch.from_numpy(w)
    return np.asarray(torch.mm(torch.from_numpy(high), by).add_(torch.mm(torch.from_numpy(low), by)).numpy())


def squares(x: NDArray[np.floating]) -> Floats:
    """sum of x^2 over each row of (T, d): float64 (T,)."""
    out, n = np.empty(len(x)), max(1, _BLOCK // max(x.shape[1], 1))
    for start in range(0, len(x), n):
        high, low = _slices(x[start : start + n].astype(np.float64), (_MANTISSA - _bits(x.shape[1])) // 2)
        out[start : start + n] = (high * high).sum(1) + 2 * (high * low).sum(1) + (low * low).sum(1)
    return out


def means(x: NDArray[np.floating]) -> Floats:
    """The mean of each row of (T, d): float64 (T,)."""
    width = x.shape[1]
    return np.asarray(_on_grid(x.astype(np.float64), _MANTISSA - _bits(width), 1).sum(1) / max(width, 1))


def weighted_sums(
    indptr: NDArray[np.int64], columns: NDArray[np.int32], values: NDArray[np.float32], w: NDArray[np.float32]
) -> Floats:
    """Rows of w (F, d), weighted and added in the order in which a CSR matrix (T, F) has them: float64 (T, d)."""
    counts = np.diff(indptr)
    order = np.argsort(-counts, kind="stable")
    starts, out = indptr[:-1][order], np.zeros((len(counts), w.shape[1]))
    for place in range(int(counts.max(initial=0))):
        at = starts[: np.count_nonzero(counts > place)] + place
        out[: len(at)] += values[at, None].astype(np.float64) * w[columns[at]]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return out[back]


def pseudo_inverse(vectors: Floats) -> Floats | None:
    """That of nearly orthonormal rows (m, w), some of which may be zero: float64 (w, m); None of any others.

    Newton's iteration (Schulz 1933) doubles the digits in each round.
    """
    there = np.diag(vectors.any(axis=1).astype(np.float64))
    inverse, by = np.ascontiguousarray(vectors.T), factor(vectors.T)
    for _ in range(8):
        # (I - V X) of the rows that are there, transposed: `product` wants what stays the same as its factor.
        left = there - product(np.ascontiguousarray(inverse.T), by)
        size = np.abs(left).max(initial=0)
        if size < 2.0**-20:
            return inverse
        if not size < 0.5:
            return None
        inverse = inverse + product(inverse, factor(left.T))
    return None


def exp(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """e^x, the nearest float32."""
    with np.errstate(over="ignore"):
        found = np.exp(x.astype(np.float64))
    return nearest(found, lambda i: _DECIMALS.exp(_decimal(x[i])))


def tanh(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """tanh of x, the nearest float32."""

    def exactly(i: int) -> Decimal:
        square = _DECIMALS.exp(_DECIMALS.multiply(Decimal(2), _decimal(x[i])))
        return _DECIMALS.divide(_DECIMALS.subtract(square, Decimal(1)), _DECIMALS.add(square, Decimal(1)))

    return nearest(np.tanh(x.astype(np.float64)), exactly)


def log2(x: float, base: float, times: int = 1) -> Decimal:
    """times log2(x / base) in decimals."""
    of, of_base, of_two = (_DECIMALS.ln(_decimal(value)) for value in (x, base, 2.0))
    octaves = _DECIMALS.divide(_DECIMALS.subtract(of, of_base), of_two)
    return _DECIMALS.multiply(Decimal(times), octaves)


def exp2(numerator: int, denominator: int, times: float) -> Decimal:
    """times 2^(numerator / denominator) in decimals."""
    power = _DECIMALS.power(Decimal(2), _DECIMALS.divide(Decimal(numerator), Decimal(denominator)))
    return _DECIMALS.multiply(_decimal(times), power)


def nearest(found: Floats, exactly: OneDecimal) -> NDArray[np.float32]:
    """The nearest float32 to what float64 (N,) found but for its last 8 bits; exactly: of the number at an index, where
    these decide."""
    with np.errstate(over="ignore"):
        low, high = ((found * (1 + share)).astype(np.float32) for share in (-_AGREED, _AGREED))
        for i in np.flatnonzero(low != high):
            low[i] = _to_odd(exactly(int(i)))
    return np.asarray(low)


def nearest_integer(found: Floats, exactly: OneDecimal) -> NDArray[np.int64]:
    """As `nearest`, of whole numbers below 2^36."""
    out = np.rint(found)
    # Between two whole numbers. Absolute: where they are large, `found` is a product with a logarithm of a few units.
    for i in np.flatnonzero(np.abs(np.abs(found - out) - 0.5) < 2.0**-20):
        out[i] = int(_DECIMALS.to_integral_value(exactly(int(i))))
    return out.astype(np.int64)


def _decimal(value: float | np.floating) -> Decimal:
    return Decimal(float(value))


def _to_odd(x: Decimal) -> float:
    """x, or of the float64 beside it the one whose last bit is 1: no tie, so it rounds to the float32 that x does."""
    near = float(x)
    if Decimal(near) != x and not np.float64(near).view(np.int64) & 1:
        near = math.nextafter(near, math.inf if x > Decimal(near) else -math.inf)
    return near


def _bits(n: int) -> int:
    """A sum of n numbers has so many bits more than they."""
    return max(n - 1, 0).bit_length()


def _slices(x: Floats, bits: int) -> tuple[Floats, Floats]:
    """Rows (T, d) as a sum of two, each of so many bits; what is left is dropped."""
    high = _on_grid(x, bits, 1)
    return high, _on_grid(x - high, bits, 1)


def _on_grid(x: Floats, bits: int, axis: int) -> Floats:
    """x rounded to multiples of a power of two, no more than 2^bits of them, where an axis has the largest |x|."""
    highest, lowest = x.max(axis=axis, keepdims=True, initial=0), x.min(axis=axis, keepdims=True, initial=0)
    unit = np.ldexp(1.0, np.frexp(np.maximum(highest, -lowest))[1] - bits)
    out = np.asarray(x / unit)
    np.rint(out, out=out)
    out *= unit
    return out
