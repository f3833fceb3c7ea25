"""A spool: feature activations in a temporary file, so that an array is sent through the SAE once in flat memory.

Fitting looks at all activations several times (step, classes, tables, coding); they are a tenth of the array's size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from types import TracebackType

import numpy as np

from saecodec.features import Features


class FeatureSpool:
    """Chunks of feature activations, appended once and then iterated as often as needed.

    The file has no name and vanishes when it is closed; `TMPDIR` says where it lies.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="saecodec-")  # noqa: SIM115 (__exit__ closes it)
        self._sizes: list[tuple[int, int]] = []  # rows and nonzeros of each chunk
        self.nnz = 0
        self.n_rows = 0

    def append(self, features: Features) -> None:
        """Add a chunk."""
        self._sizes.append((features.n_rows, features.nnz))
        self.n_rows += features.n_rows
        self.nnz += features.nnz
        self._file.seek(0, 2)
        for array in (features.indptr, features.latents, features.values):
            self._file.write(np.ascontiguousarray(array).data)

    def __iter__(self) -> Iterator[Features]:
        self._file.flush()
        self._file.seek(0)
        for n_rows, nnz in self._sizes:
            parts = (np.empty(n_rows + 1, np.int64), np.empty(nnz, np.int32), np.empty(nnz, np.float32))
            for part in parts:
                if self._file.readinto(part.data.cast("B")) != part.nbytes:
                    raise OSError("the temporary file of feature activations ended early")
            yield Features(*parts)

    def __enter__(self) -> FeatureSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
