"""One value for each row of an array, from a `.npy` file: masks and labels."""

from __future__ import annotations

import os
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError


def load_row_values(path: str | os.PathLike[str], n_rows: int, kinds: str, expected: str) -> NDArray[Any]:
    """The values of a file, (T,), whatever its shape.

    kinds: of dtypes, as numpy names them. expected: for people, with "of {n_rows} rows" to follow. InputError when the
    file holds something else, or another number of values.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:  # numpy leaves one that it opened open when it fails
            values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{name}: cannot be read as a .npy file; expected {expected} of {n_rows} rows ({error})"
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds or values.size != n_rows:
        found = f"{values.dtype} of shape {values.shape}" if isinstance(values, np.ndarray) else "several arrays"
        raise InputError(f"{name}: holds {found}; expected {expected} of {n_rows} rows")
    return values.reshape(-1)
