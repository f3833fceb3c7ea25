"""The residual layer: what the SAE leaves, by transform coding.

A row's residual r = x - x_hat, x_hat from the codes alone, is turned into the coordinates of an orthonormal basis (its
principal components), which are quantized with one step and coded each under the table of its class. With one step for
all components the error is spread as reverse water-filling has it (Cover & Thomas, 10.3.3).

No symbol, table or step depends on x_hat, which is a float and differs between machines in its last bits: what is
coded is integers under tables known beforehand. The basis is integers too, so that it has an identity. T rows, d values
of a row, M components. Normative: docs/format.md, "Residual layer".
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets, exact
from saecodec.codes import MAX_LEVEL
from saecodec.costs import bucket_bits
from saecodec.errors import FormatError, InputError, UnsupportedError
from saecodec.integers import pack_ints, unpack_ints, unzigzag, zigzag
from saecodec.limits import check_expansion, check_limit
from saecodec.matrices import decode_matrix, encode_matrix
from saecodec.quantizer import CENTROID_LEVELS, CENTROID_UNIT
from saecodec.table_set import TableSet
from saecodec.wire import ByteReader, varint, varints

MEAN_UNIT: Final = 16
"""The mean residual is stored in units of step / 16."""
MAX_CELLS: Final = 1 << 26  # T x M of a chunk
MAX_ENTRY: Final = 1 << 15  # of the basis
MAX_BASIS: Final = 1 << 25
_MAX_WIDTH: Final = 1 << 24


@dataclass(frozen=True, eq=False)
class Block:
    """Basis vectors of some neighbouring values of a row: integers (m, w), whose unit is `ResidualLayer.unit`."""

    vectors: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ResidualLayer:
    """A fitted transform coder of residuals.

    step: of the quantizer. unit: what an integer of the basis stands for. blocks: the basis, block-diagonal; widths add
    up to d. mean: of the residual, int64 (d,), in step / 16. tables: a table per class of components, for zigzag
    levels. centroids: int64 (C, 16), in 1/256 step, of levels 1..16 of a class.
    """

    step: float
    unit: float
    blocks: tuple[Block, ...]
    mean: NDArray[np.int64]
    tables: TableSet
    centroids: NDArray[np.int64]

    @property
    def width(self) -> int:
        """d."""
        return len(self.mean)

    @property
    def n_components(self) -> int:
        """M."""
        return len(self.tables.classes)

    # -- rows ----------------------------------------------------------------------------------------------------------

    def coordinates(self, residual: NDArray[np.float32], *, deterministic: bool = False) -> NDArray[np.float32]:
        """Coordinates of residuals (T, d), in steps: float32 (T, M). InputError when float32 does not know the step.

        deterministic: the same ones on every machine; UnsupportedError when the basis is far from orthonormal.
        """
        step = np.float32(self.step)
        if not 0 < step < np.inf:
            raise InputError(f"the step of the residual layer, {self.step:g}, is beyond float32: scale the rows")
        centred = residual - self._mean
        if deterministic:
            whole = centred.astype(np.float64)
            exactly = zip(self._basis, self._exact_analysis, strict=True)
            found = [exact.product(np.ascontiguousarray(whole[:, values]), factor) for (values, _), factor in exactly]
            return np.asarray(np.concatenate(found, axis=1) / self.step, np.float32)
        parts = [
            centred[:, values] @ analysis for (values, _), analysis in zip(self._basis, self._analysis, strict=True)
        ]
        return np.asarray(np.concatenate(parts, axis=1) / step, np.float32)

    def rows(self, levels: NDArray[np.int32]) -> NDArray[np.float32]:
        """What levels, int32 (T, M), add to x_hat: float32 (T, d). FormatError when that is no float32."""
        size = np.abs(levels)
        cell = self.tables.classes * (CENTROID_LEVELS + 2) + np.minimum(size, CENTROID_LEVELS + 1)
        offset = np.pad(self.centroids, ((0, 0), (1, 1))).astype(np.float32) / np.float32(CENTROID_UNIT)
        out, at = np.empty((len(levels), self.width), np.float32), 0
        with np.errstate(over="ignore", invalid="ignore"):
            value = np.copysign((size + offset.ravel()[cell]) * self.step, levels).astype(np.float32)
            for values, basis in self._basis:
                out[:, values] = value[:, at : at + len(basis)] @ basis
                at += len(basis)
            out += self._mean
        if not np.isfinite(out).all():
            raise FormatError("a residual level stands for no float32: the layer's step, unit or mean is too large")
        return out

    @cached_property
    def _mean(self) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            return np.asarray(self.mean * (self.step / MEAN_UNIT), np.float32)

    @cached_property
    def _basis(self) -> list[tuple[slice, NDArray[np.float32]]]:
        out, at = [], 0
        for block in self.blocks:
            n, width = block.vectors.shape
            with np.errstate(over="ignore"):
                out.append((slice(at, at + width), (block.vectors * self.unit).astype(np.float32).reshape(n, width)))
            at += width
        return out

    @cached_property
    def _analysis(self) -> list[NDArray[np.float32]]:
        """Pseudo-inverse of each block's basis, whose integers are only nearly orthonormal: (w, m)."""
        return [np.linalg.pinv(basis.astype(np.float64)).astype(np.float32) for _, basis in self._basis]

    @cached_property
    def _exact_analysis(self) -> list[NDArray[np.float64]]:
        """As `_analysis`, as factors of `exact.product`."""
        out = []
        for _, basis in self._basis:
            inverse = exact.pseudo_inverse(basis.astype(np.float64))
            if inverse is None:
                raise UnsupportedError(
                    "the basis of this codec's residual layer is too far from orthonormal for deterministic "
                    "arithmetic: fit another codec, or leave --deterministic out"
                )
            out.append(exact.factor(inverse))
        return out

    # -- bytes ---------------------------------------------------------------------------------------------------------

    def encode(self, levels: NDArray[np.int32]) -> bytes:
        """One chunk's levels, int32 (T, M): class by class, component by component.

        InputError when they are too many or too large, or of another number of components.
        """
        if levels.ndim != 2 or levels.shape[1] != self.n_components:
            raise InputError(f"residual levels of shape {levels.shape} for {self.n_components} components")
        if levels.size > MAX_CELLS:
            raise InputError(
                f"a chunk of {len(levels)} rows has {levels.size} residual levels, more than {MAX_CELLS}: use fewer "
                "rows a chunk"
            )
        if levels.size and not -MAX_LEVEL <= levels.min() <= levels.max() <= MAX_LEVEL:
            raise InputError("a residual level exceeds 2^20")
        data = encode_matrix(levels, self.tables)
        check_expansion(levels.size, len(data), "the residual of a chunk (of fewer rows it would be fine)")
        return data

    def decode(self, data: bytes | memoryview, n_rows: int, what: str) -> NDArray[np.int32]:
        """The inverse of `encode` for a chunk of `n_rows` rows; FormatError when the bytes are not that."""
        if n_rows * self.n_components > MAX_CELLS:
            raise FormatError(f"{what}: {n_rows * self.n_components} residual levels, more than {MAX_CELLS}")
        check_expansion(n_rows * self.n_components, len(data), what)
        return decode_matrix(data, n_rows, self.tables, MAX_LEVEL, what)

    def row_bits(self, levels: NDArray[np.int32]) -> NDArray[np.float64]:
        """Ideal code length of each row's levels, int32 (T, M), under the tables: float64 (T,)."""
        bits = bucket_bits(self.tables.weights)
        return np.asarray(bits[self.tables.classes, buckets.bucket_of(zigzag(levels.astype(np.int64)))].sum(1))

    def content(self) -> dict[str, NDArray[np.int64]]:
        """Everything that decides a value, as integer arrays."""
        return {
            "residual_basis": np.concatenate([block.vectors.ravel() for block in self.blocks]),
            "residual_blocks": np.array([block.vectors.shape for block in self.blocks], np.int64),
            "residual_mean": self.mean,
            "residual_classes": self.tables.classes,
            "residual_weights": self.tables.weights,
            "residual_centroids": self.centroids,
        }

    def scales(self) -> bytes:
        """Step and unit, as they are stored."""
        return struct.pack("<dd", self.step, self.unit)

    def to_bytes(self) -> bytes:
        """The layer as a byte string (docs/format.md, "Residual layer"). InputError when its basis is too large."""
        shapes = [size for block in self.blocks for size in block.vectors.shape]
        basis = np.concatenate([block.vectors.ravel() for block in self.blocks])
        if basis.size > MAX_BASIS or self.width > _MAX_WIDTH:
            raise InputError(f"rows of {self.width} are too wide for a residual layer: {basis.size} entries of a basis")
        data = b"".join(
            [
                varint(len(self.blocks)),
                varints(shapes),
                self.scales(),
                pack_ints(zigzag(basis)),
                pack_ints(zigzag(self.mean)),
                self.tables.to_bytes(),
                pack_ints(zigzag(self.centroids.ravel())),
            ]
        )
        check_expansion(4 * basis.size, len(data), "the basis of the residual layer")
        return data

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, what: str) -> ResidualLayer:
        """The inverse of `to_bytes`; FormatError when the bytes are not that."""
        reader = ByteReader(data, what)
        n_blocks = reader.varint(reader.left)
        sizes = reader.varints(2 * n_blocks, _MAX_WIDTH)
        shapes = list(zip(sizes[::2], sizes[1::2], strict=True))
        step, unit = struct.unpack("<dd", reader.take(16))
        n_entries, width = sum(m * w for m, w in shapes), sum(w for _, w in shapes)
        n_components = sum(m for m, _ in shapes)
        if not (0 < step < math.inf and 0 < unit < math.inf):
            raise FormatError(f"{what}: the residual's step is {step}, the unit of its basis {unit}")
        if any(not 0 < w >= m for m, w in shapes) or not 1 <= n_entries <= MAX_BASIS or width > _MAX_WIDTH:
            raise FormatError(f"{what}: a residual basis of blocks {shapes[:8]} is not possible")
        check_limit("width", width, what)
        check_expansion(4 * n_entries, len(data), what)
        basis = unzigzag(unpack_ints(reader, n_entries, below=2 * MAX_ENTRY + 1))
        mean = unzigzag(unpack_ints(reader, width, below=2 * MAX_LEVEL * MEAN_UNIT + 1))
        tables = TableSet.read(reader, n_components)
        packed = unpack_ints(reader, len(tables.codes) * CENTROID_LEVELS, below=CENTROID_UNIT)
        reader.end()
        blocks = tuple(Block(part) for part in _split(basis, shapes))
        return cls(step, unit, blocks, mean, tables, unzigzag(packed).reshape(-1, CENTROID_LEVELS))


def _split(basis: NDArray[np.int64], shapes: list[tuple[int, int]]) -> Iterator[NDArray[np.int64]]:
    at = 0
    for m, w in shapes:
        yield basis[at : at + m * w].reshape(m, w)
        at += m * w
