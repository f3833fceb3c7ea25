"""Rows in a file that is read back, for tests of what is measured on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from saecodec.formats.array_source import MemoryArray
from saecodec.formats.encoding import encode_array
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.goal import Goal
from saecodec.nonlinearity import ReLU
from saecodec.sae import SAE, Encoder


@contextmanager
def coded(
    x: NDArray[Any], sae: SAE, goal: Goal | None = None, chunk_rows: int = 64, **options: Any
) -> Iterator[SaecFile]:
    """The open file of rows x; options are those of `encode_array`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.saec"
        encode_array(MemoryArray(x), path, sae=sae, goal=goal, chunk_rows=chunk_rows, **options)
        with open_saec(path, sae=sae) as file:
            yield file


def identity_sae(width: int = 8) -> SAE:
    """Latent i is value i of a row, where that is positive."""
    return SAE(
        torch.eye(width),
        torch.zeros(width),
        Encoder(torch.eye(width), torch.zeros(width), ReLU(), True),
        "relu",
        "identity",
    )
