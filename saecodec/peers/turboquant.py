"""TurboQuant-style: a random rotation makes every coordinate Gaussian, so one scalar quantizer fits them all.

The MSE form of TurboQuant (arXiv 2504.19874, Algorithm 1), with what rows of activations need around it: the mean of
the calibration rows is taken off, and the norm of each row, which the paper leaves to the caller, is a float16. Levels
are those of the Lloyd-Max quantizer of a unit Gaussian, the limit of the paper's Beta density for large d.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.peers.peer import PeerFamily, checked_rows, read_shape, write_shape

NAME: Final = "TurboQuant-style"
_SEED: Final = 0
_FLOAT16_MAX: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class TurboQuantPeer:
    """bits: b, 1 or more a value.

    mean: float32 (d,). scale: rms of the centred calibration rows, which norms are stored relative to, so that they fit
    a float16 whatever the activations' unit. rotation: orthogonal, float32 (d, d), made from a seed.
    """

    name: ClassVar[str] = NAME
    bits: int
    mean: NDArray[np.float32]
    scale: np.float32
    rotation: NDArray[np.float32]

    @classmethod
    def fit(cls, rows: NDArray[np.float32], bits: int) -> TurboQuantPeer:
        """Mean and scale of calibration rows, float32 (N, d)."""
        mean = rows.mean(0, dtype=np.float64)
        scale = np.sqrt(rows.var(0, dtype=np.float64).mean())
        return cls(bits, mean.astype(np.float32), np.float32(scale or 1.0), random_rotation(rows.shape[1]))

    @property
    def setting(self) -> str:
        """Bits a value, to which 16 bits a row come for its norm."""
        return f"{self.bits} bits"

    @property
    def model_bytes(self) -> int:
        """The mean and the scale; the rotation is a seed and the levels follow from b."""
        return self.mean.nbytes + self.scale.nbytes

    def encode(self, x: NDArray[np.float32]) -> bytes:
        """T, d, the norms as float16 (T,), then b bit planes of the codes, row by row."""
        x = checked_rows(x, NAME, len(self.mean))
        rotated = (x - self.mean) @ self.rotation
        rms = np.sqrt(np.square(rotated, dtype=np.float64).mean(1)) / self.scale
        norms = np.minimum(rms, _FLOAT16_MAX).astype("<f2")
        unit = rotated / np.where(norms > 0, norms.astype(np.float32) * self.scale, 1)[:, None]
        levels = lloyd_max(self.bits)
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, unit.ravel()).astype(np.uint8)
        planes = [np.packbits(codes >> bit & 1).tobytes() for bit in range(self.bits)]
        return b"".join([write_shape(x.shape), norms.tobytes(), *planes])

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """norm level, rotated back, plus the mean, float32 (T, d)."""
        n_rows, width, reader = read_shape(data, NAME, len(self.mean))
        norms = np.frombuffer(reader.take(2 * n_rows), "<f2").astype(np.float32)
        size = n_rows * width
        codes = np.zeros(size, np.uint8)
        for bit in range(self.bits):
            plane = np.frombuffer(reader.take(-(-size // 8)), np.uint8)
            codes |= np.unpackbits(plane, count=size) << np.uint8(bit)
        reader.end()
        unit = lloyd_max(self.bits).astype(np.float32)[codes].reshape(n_rows, width)
        return np.asarray((unit * (norms * self.scale)[:, None]) @ self.rotation.T + self.mean, np.float32)


def random_rotation(width: int) -> NDArray[np.float32]:
    """A uniformly random orthogonal matrix, float32 (d, d), the same at every call.

    The Q of a Gaussian matrix's QR decomposition, with the signs that make it Haar-distributed (Mezzadri,
    arXiv math-ph/0609050, section 5).
    """
    q, r = np.linalg.qr(np.random.default_rng(_SEED).normal(size=(width, width)))
    return np.asarray(q * np.where(np.diagonal(r) < 0, -1, 1), np.float32)


@cache
def lloyd_max(bits: int) -> NDArray[np.float64]:
    """Levels of the 2^bits-level quantizer of N(0, 1) with the least squared error, float64, ascending.

    Max, "Quantizing for minimum distortion" (1960): boundaries halfway between levels, every level the mean of its
    cell, iterated until nothing moves.
    """
    normal = NormalDist()
    n = 2**bits
    levels: NDArray[np.float64] = np.array([normal.inv_cdf((i + 0.5) / n) for i in range(n)])
    while True:
        cuts = (levels[1:] + levels[:-1]) / 2
        density = np.array([0.0, *map(normal.pdf, cuts), 0.0])
        below = np.array([0.0, *map(normal.cdf, cuts), 1.0])
        means = np.asarray((density[:-1] - density[1:]) / np.diff(below))
        moved, levels = float(np.abs(means - levels).max()), means
        if moved < 1e-7:
            return levels


TURBOQUANT: Final = PeerFamily(
    NAME, lambda width: (1, 2, 3, 4, 5), lambda rows, bits: TurboQuantPeer.fit(rows, int(bits))
)
