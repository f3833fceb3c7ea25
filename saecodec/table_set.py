"""`TableSet`: the frequency tables of a family of classes, and who is in which class.

Normative: docs/format.md, "Table sets".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec import buckets
from saecodec.errors import FormatError
from saecodec.integers import pack_ints, unpack_ints, unzigzag, zigzag
from saecodec.rangecoder import TOTAL, Model, model_of
from saecodec.tables import MAX_RESOLUTION, expand, max_code
from saecodec.wire import ByteReader, varints

MAX_CLASSES: Final = 1 << 10
_MIN_ALPHABET: Final = 2


@dataclass(frozen=True, eq=False)
class TableSet:
    """The tables of a family of classes.

    classes: class of each member (a latent, a component), int64 (F,). codes: frequency codes, int64 (C, A) with
    A >= 2. resolution: log2 of the frequency steps an octave.
    """

    classes: NDArray[np.int64]
    codes: NDArray[np.int64]
    resolution: int

    @cached_property
    def weights(self) -> NDArray[np.int64]:
        """Range-coder weights of each table over all buckets, int64 (C, 304)."""
        full = np.zeros((len(self.codes), buckets.N_BUCKETS), np.int64)
        full[:, : self.codes.shape[1]] = self.codes
        return expand(full, self.resolution)

    @cached_property
    def models(self) -> list[Model]:
        """Range-coder model of each class."""
        return [model_of(weights) for weights in self.weights]

    @cached_property
    def least_bits(self) -> NDArray[np.float64]:
        """What a class's likeliest symbol costs, in bits, float64 (C,): bounds how many symbols a stream can hold."""
        return np.asarray(-np.log2(self.weights.max(1) / TOTAL))

    def to_bytes(self) -> bytes:
        """Class names and tables (docs/format.md, "Table sets")."""
        steps = np.diff(self.codes, axis=1, prepend=0)
        head = varints([len(self.codes), self.codes.shape[1], self.resolution])
        return head + pack_ints(self.classes) + pack_ints(zigzag(steps.ravel()))

    @classmethod
    def read(cls, reader: ByteReader, n_members: int) -> TableSet:
        """Read what `to_bytes` wrote for a family of `n_members`."""
        n_classes, n_symbols = reader.varint(MAX_CLASSES), reader.varint(buckets.N_BUCKETS)
        resolution = reader.varint(MAX_RESOLUTION)
        if n_classes < 1 or n_symbols < _MIN_ALPHABET:
            raise FormatError(f"{reader.what}: {n_classes} tables of {n_symbols} symbols are not possible")
        classes = unpack_ints(reader, n_members, below=n_classes)
        steps = unpack_ints(reader, n_classes * n_symbols, below=2 * max_code(MAX_RESOLUTION) + 1)
        codes = np.cumsum(unzigzag(steps).reshape(n_classes, n_symbols), axis=1)
        if codes.min() < 0 or codes.max() > max_code(resolution):
            raise FormatError(f"{reader.what}: a frequency code lies outside 0..{max_code(resolution)}")
        return cls(classes, codes, resolution)
