"""CSR matrices of torch, made from their parts without checks."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor


@cache
def quieten() -> None:
    """torch says once a process that these are in beta: let it do so here, before there are threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.zeros(1, 1).to_sparse_csr()


def csr(indptr: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """The matrix with values (K,) in columns (K,), row i from indptr[i] to indptr[i + 1]."""
    quieten()
    return torch.sparse_csr_tensor(indptr, columns, values, shape, check_invariants=False)
