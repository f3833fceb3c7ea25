"""Sequence ids from a file: one integer a row."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError


def load_sequence_ids(path: str | os.PathLike[str], n_rows: int) -> NDArray[np.integer[Any]]:
    """The ids in a `.npy` file of integers, one for each of `n_rows` rows, flattened: (T,), a memory map.

    InputError when the file is something else.
    """
    name = os.fspath(path)
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{name}: cannot be read as a .npy file of sequence ids ({error})") from error
    if not isinstance(ids, np.ndarray) or not np.issubdtype(ids.dtype, np.integer) or ids.size != n_rows:
        found = f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else "an archive of several arrays"
        raise InputError(f"{name}: holds {found}; expected a sequence id, an integer, for each of {n_rows} rows")
    return np.asarray(ids).reshape(-1)
