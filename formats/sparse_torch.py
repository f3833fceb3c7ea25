"""Torch's sparse tensors in `.pt` files: CSR and COO in, CSR out. torch loads and saves them whole."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.array_source import ITEM_BYTES, bad_dtype
from saecodec.formats.latent_source import MAX_ROWS, MemoryLatents, StoredBytes, check_density, with_latents

if TYPE_CHECKING:
    import torch


def open_sparse_torch(path: str, n_latents: int | None, key: str | None) -> MemoryLatents:
    """A sparse tensor (..., F) of a `.pt` file, alone or in a dict; InputError unless it is one."""
    from saecodec.formats.torch_arrays import load_torch_tensor

    with _quiet():
        tensor, _ = load_torch_tensor(path, key)
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in ITEM_BYTES:
            raise bad_dtype(path, dtype)
        layout = str(tensor.layout).removeprefix("torch.")
        shape = tuple(tensor.shape)
        if tensor.device.type != "cpu" or layout not in ("sparse_csr", "sparse_coo") or len(shape) < 2:
            raise InputError(
                f"{path}: holds a tensor of layout {layout} and shape {shape}; expected sparse_csr or sparse_coo with "
                "2 or more dimensions: tensor.to_sparse_csr() makes one"
            )
        if layout == "sparse_csr":
            if len(shape) != 2:
                raise InputError(f"{path}: a batch of CSR tensors, shape {shape}; flatten it to (rows, latents)")
            parts = tensor.crow_indices().numpy(), tensor.col_indices().numpy(), _values(tensor.values())
        else:
            parts = _coo(path, tensor, shape)
    stored = StoredBytes(os.path.getsize(path))
    wide = (*shape[:-1], with_latents(path, shape[-1], n_latents))
    source = MemoryLatents(*parts, wide, dtype=dtype, path=path, stored=stored)
    source.kind = "torch"
    return source


def _coo(
    path: str, tensor: torch.Tensor, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[Any]]:
    """The row pointers, latents and values of a COO tensor."""
    if tensor.dense_dim():
        raise InputError(f"{path}: a hybrid tensor with {tensor.dense_dim()} dense dimensions; make all of them sparse")
    if math.prod(shape[:-1]) >= MAX_ROWS:
        raise InputError(f"{path}: has shape {shape}; expected fewer than 2^38 rows")
    check_density(path, math.prod(shape[:-1]), tensor._nnz())
    indices, values = tensor._indices().numpy(), _values(tensor._values())
    sizes = np.array(shape)[:, None]
    if indices.size and ((indices < 0) | (indices >= sizes)).any():
        raise InputError(f"{path}: has indices outside its shape {shape}: the file is corrupt")
    rows = np.zeros(indices.shape[1], np.int64)
    for axis, size in zip(indices[:-1], shape[:-1], strict=True):
        rows = rows * size + axis
    order = np.argsort(rows, kind="stable")
    counts = np.bincount(rows, minlength=math.prod(shape[:-1]))
    return np.concatenate([[0], np.cumsum(counts)]), indices[-1][order], values[order]


def save_sparse_torch(
    file: BinaryIO,
    indptr: npt.NDArray[np.int64],
    latents: npt.NDArray[np.integer[Any]],
    values: npt.NDArray[Any],
    n_latents: int,
    dtype: str,
) -> None:
    """Write a CSR tensor (T, F). values: in numpy's form of the dtype (see `STORED`)."""
    import torch

    found = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16) if dtype == "bfloat16" else values
    with _quiet():
        tensor = torch.sparse_csr_tensor(
            torch.from_numpy(indptr),
            torch.from_numpy(latents.astype(np.int64)),
            torch.as_tensor(found),
            size=(len(indptr) - 1, n_latents),
            check_invariants=False,
        )
        torch.save(tensor, file)


def _values(values: torch.Tensor) -> npt.NDArray[Any]:
    import torch

    values = values.detach()
    if values.dtype == torch.bfloat16:
        return values.contiguous().view(torch.int16).numpy().view(np.uint16)
    return np.asarray(values.numpy())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings that sparse tensors are a beta, and that it does not check what we check."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]parse", category=UserWarning)
        yield
