"""Codes without an SAE at a given distortion, to stand beside the size of a real file: dense, one-hot, and linear.

Ayonrinde, Pearce & Sharkey 2024, "Interpretability as Compression: MDL-SAEs" (arXiv 2410.11179), compares an SAE with
two extremes: the dense code, which sends every value of a row, and the one-hot code, which sends the index of an
exemplar. These two are estimates, in which nothing is encoded. The linear one is a real codec (`peers/pca.py`) and its
bytes decode. T rows, d values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.distortion import Distortion
from saecodec.errors import InputError, TargetError
from saecodec.peers.pca import PCA_FAMILY
from saecodec.peers.peer import Peer, checked_rows
from saecodec.solver import solve

_CHUNK: Final = 4096
_CLOSE: Final = 1e-3  # how far below its target the dense code's NMSE may stay, relative
_HALVINGS: Final = 60  # of the bracket's logarithm: no two steps of float64 are left between its ends
_MAX_LEVEL: Final = 1 << 30
_BLOCK_VALUES: Final = 1 << 22
_EXEMPLARS: Final = 8192
_RATIO: Final = 4  # of neighbouring numbers of exemplars
_PCA_TOLERANCE: Final = 0.005
_PCA_STEPS: Final = (1e-3, 100.0)  # rms deviations of a channel


@dataclass(frozen=True)
class DenseCode:
    """The dense code of T rows at a distortion: every value to the nearest multiple of one step away from the mean of
    its dimension. Both rates are estimates, and neither counts the means or, for the entropy, the tables.

    target: NMSE asked for. step: in the units of the rows. nmse: reached, at most the target. bits_per_scalar: B, the
    log2 of the number of levels between a dimension's lowest and highest, mean over dimensions. bits_per_row: of that
    fixed-length code, d B. entropy_per_row: sum over dimensions of the entropy of the level, bits.
    """

    target: float
    step: float
    nmse: float
    bits_per_scalar: float
    bits_per_row: float
    entropy_per_row: float
    n_rows: int


@dataclass(frozen=True)
class ExemplarCode:
    """The one-hot code: a row is the index of one of N exemplars, which the dense code stores. An estimate.

    n_exemplars: N. nmse: of rows that are no exemplars, decoded to the nearest. index_bits: log2 N, a row.
    dictionary_bits: N times the dense code's fixed-length bits per row. bits_per_row: of both, over n_rows.
    """

    n_exemplars: int
    nmse: float
    index_bits: float
    dictionary_bits: float
    bits_per_row: float
    n_rows: int


@dataclass(frozen=True)
class LinearCode:
    """Principal components and a range coder, fitted on the rows themselves, encoded and decoded.

    target: NMSE asked for. relative_step: in rms deviations of a channel. nmse: of the decoded rows. bits_per_row: of
    the encoded bytes. model_bytes: basis, mean, tables and centroids, which are not in bits_per_row. total_per_row:
    bits of both, over n_rows.
    """

    target: float
    relative_step: float
    nmse: float
    bits_per_row: float
    model_bytes: int
    total_per_row: float
    n_rows: int


def dense_at(rows: NDArray[np.float32], nmse: float) -> DenseCode:
    """The dense code of rows, float32 (T, d), at an NMSE in (0, 1).

    The step is found by bisection. InputError when the rows are not finite or do not vary; TargetError when the NMSE is
    none, or so small that levels exceed 2^30.
    """
    _check_target(nmse)
    rows = checked_rows(rows, "dense code")
    variance, centred = _variance(rows), rows - _mean(rows)
    # A squared error of at most T d (step / 2)^2 meets the target; with all levels zero, NMSE is 1 and does not.
    low = 2 * math.sqrt(nmse * variance / centred.size)
    high = 2.01 * float(np.abs(centred).max())
    if high > low * _MAX_LEVEL:
        raise TargetError(f"NMSE {nmse:g} takes levels above 2^30 in a dense code: ask for a larger one")
    reached = _dense_error(centred, low) / variance
    for _ in range(_HALVINGS):
        if reached >= nmse * (1 - _CLOSE):
            break
        middle = math.sqrt(low * high)
        found = _dense_error(centred, middle) / variance
        low, high, reached = (middle, high, found) if found <= nmse else (low, middle, reached)
    fixed, entropy = _level_bits(centred, low)
    return DenseCode(nmse, low, reached, fixed / rows.shape[1], fixed, entropy, len(rows))


def exemplar_codes(rows: NDArray[np.float32], dense: DenseCode, *, seed: int = 0) -> list[ExemplarCode]:
    """One-hot codes of rows, float32 (T, d), with N = 4, 16, ... exemplars, up to min(8192, T / 2).

    Exemplars are drawn from the first half of the rows, larger sets with the smaller ones in them, and rounded as
    `dense` stores them, so NMSE has their rounding in it. It is measured on the other half. dense: `dense_at` of the
    same rows. InputError when T is below 8 or not `dense.n_rows`, or the other half does not vary.
    """
    rows = checked_rows(rows, "one-hot code")
    half = len(rows) // 2
    if half < _RATIO:
        raise InputError(f"one-hot code: {len(rows)} rows, at least {2 * _RATIO} are needed")
    if len(rows) != dense.n_rows:
        raise InputError(f"one-hot code: {len(rows)} rows, but the dense code is of {dense.n_rows}")
    sizes = [_RATIO**i for i in range(1, 1 + int(math.log2(min(_EXEMPLARS, half)) / math.log2(_RATIO)))]
    mean = _mean(rows)
    drawn = rows[np.random.default_rng(seed).permutation(half)[: sizes[-1]]] - mean
    exemplars = (np.rint(drawn / dense.step) * dense.step).astype(np.float32)
    distortions = [Distortion(rows.shape[1]) for _ in sizes]
    for chunk in _chunks(rows[half:]):
        centred = chunk - mean
        for nearest, distortion in zip(_nearest(centred, exemplars, sizes), distortions, strict=True):
            distortion.add(centred, exemplars[nearest])
    return [
        _exemplar_code(size, _nmse(distortion, "one-hot code"), dense)
        for size, distortion in zip(sizes, distortions, strict=True)
    ]


def one_hot_at(dense: DenseCode) -> ExemplarCode:
    """The one-hot code with every row an exemplar of its own, at the dense code's NMSE: log2 T more than the dense code
    costs, bits per row."""
    return _exemplar_code(dense.n_rows, dense.nmse, dense)


def pca_at(rows: NDArray[np.float32], nmse: float) -> LinearCode:
    """The best linear codec of rows, float32 (T, d), at an NMSE in (0, 1), to within 0.5 %.

    Fitted on the rows themselves, as a two-part code may be: the model's bytes count. InputError when the rows are not
    finite or do not vary; TargetError when the NMSE is none, or cannot be met.
    """
    _check_target(nmse)
    rows = checked_rows(rows, "linear code")

    def measure(relative: float) -> tuple[float, tuple[float, int, Peer]]:
        peer = PCA_FAMILY.fit(rows, relative)
        data, distortion = peer.encode(rows), Distortion(rows.shape[1])
        decoded = peer.decode(data)
        for chunk, part in zip(_chunks(rows), _chunks(decoded), strict=True):
            distortion.add(chunk, part)
        reached = _nmse(distortion, "linear code")
        return reached, (reached, len(data), peer)

    # Where every component is finer than the step's error, NMSE is step^2 / 12.
    found = solve(measure, nmse, math.sqrt(12 * nmse), _PCA_STEPS, rising=True)
    reached, n_bytes, peer = found.result
    if abs(reached / nmse - 1) > _PCA_TOLERANCE:
        raise TargetError(f"NMSE {nmse:g} is not met by PCA on these rows: the nearest that was found is {reached:.4g}")
    bits, total = 8 * n_bytes / len(rows), 8 * (n_bytes + peer.model_bytes) / len(rows)
    return LinearCode(nmse, found.at, reached, bits, peer.model_bytes, total, len(rows))


def _mean(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows.mean(0, dtype=np.float64), np.float32)


def _variance(rows: NDArray[np.float32]) -> float:
    """Sum of the squares of rows less their mean; InputError when that is zero."""
    distortion = Distortion(rows.shape[1])
    for chunk in _chunks(rows):
        distortion.add(chunk, chunk)
    _nmse(distortion, "dense code")
    return distortion.variance


def _check_target(nmse: float) -> None:
    if not 0 < nmse < 1:
        raise TargetError(f"an NMSE between 0 and 1 is needed to compare codes at, got {nmse:g}")


def _chunks(rows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK))


def _nmse(distortion: Distortion, what: str) -> float:
    if distortion.nmse is None:
        raise InputError(f"{what}: the rows do not vary, so there is no NMSE to compare at")
    return distortion.nmse


def _dense_error(centred: NDArray[np.float32], step: float) -> float:
    """Squared error of values to the nearest multiple of `step`."""
    total = 0.0
    for chunk in _chunks(centred):
        levels = chunk.astype(np.float64) / step  # float32 would add its own rounding to that of a fine step
        error = levels - np.rint(levels)
        total += float(np.einsum("td,td->", error, error))
    return total * step**2


def _level_bits(centred: NDArray[np.float32], step: float) -> tuple[float, float]:
    """Bits per row of levels: sums over dimensions of the log2 of the number of levels, and of the entropy."""
    n_rows, n_dims = centred.shape
    fixed, entropy, block = 0.0, 0.0, max(1, _BLOCK_VALUES // n_rows)
    for start in range(0, n_dims, block):
        part = centred[:, start : start + block].T.astype(np.float64)
        # Sorted and not counted in bins: a dimension may have far more levels than there are rows.
        ordered = np.sort(np.rint(part / step).astype(np.int64), axis=1)
        fixed += float(np.log2(ordered[:, -1] - ordered[:, 0] + 1).sum())
        starts = np.diff(ordered, axis=1, prepend=ordered[:, :1] - 1) > 0
        counts = np.diff(np.flatnonzero(starts), append=ordered.size)
        entropy += len(part) * math.log2(n_rows) - float((counts * np.log2(counts)).sum()) / n_rows
    return fixed, entropy


def _nearest(
    centred: NDArray[np.float32], exemplars: NDArray[np.float32], sizes: list[int]
) -> Iterator[NDArray[np.int64]]:
    """Index of the nearest among the first N exemplars, int64 (T,), for each N of `sizes`, which rise."""
    best, index, start = np.full(len(centred), np.inf, np.float32), np.zeros(len(centred), np.int64), 0
    for stop in sizes:
        part = exemplars[start:stop]
        # Half the squared distance, less half the row's own square, which all exemplars share.
        distance = np.einsum("nd,nd->n", part, part) / 2 - centred @ part.T
        here = distance.argmin(1)
        value = distance[np.arange(len(centred)), here]
        closer = value < best
        best, index, start = np.where(closer, value, best), np.where(closer, here + start, index), stop
        yield index


def _exemplar_code(n_exemplars: int, nmse: float, dense: DenseCode) -> ExemplarCode:
    index, dictionary = math.log2(n_exemplars), n_exemplars * dense.bits_per_row
    return ExemplarCode(n_exemplars, nmse, index, dictionary, index + dictionary / dense.n_rows, dense.n_rows)
