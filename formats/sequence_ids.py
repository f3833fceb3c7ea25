"""Sequence ids from a file: one integer a row."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.errors import InputError


def load_sequence_ids(path: str | os.PathLike[str], leading: tuple[int, ...]) -> NDArray[np.integer[Any]]:
    """The ids in a `.npy` file of integers, one for each row of an array of shape (*leading, d): (T,), a memory map.

    They have the shape `leading`, or are flat.
    InputError when the file is something else.
    """
    name, n_rows = os.fspath(path), math.prod(leading)
    shapes = (leading, (n_rows,), (n_rows, 1))
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{name}: cannot be read as a .npy file of sequence ids ({error})") from error
    if not isinstance(ids, np.ndarray) or not np.issubdtype(ids.dtype, np.integer) or ids.shape not in shapes:
        found = f"{ids.dtype} of shape {ids.shape}" if isinstance(ids, np.ndarray) else "an archive of several arrays"
        expected = f"a sequence id, an integer, for each of {n_rows} rows: shape {leading}"
        raise InputError(f"{name}: holds {found}; expected {expected}")
    return np.asarray(ids).reshape(-1)
