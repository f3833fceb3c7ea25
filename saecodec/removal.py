"""What removing a latent would cost: the squared error that each latent's nonzeros keep away.

Row t's error is e = x - x_hat. Without latent f, whose contribution to x_hat is v = s_t z_tf d_f (s_t: the row's
scale, where the SAE normalizes rows), it is e + v: |e + v|^2 - |e|^2 = 2 <e, v> + |v|^2 more, all others as they are.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from saecodec.features import Features
from saecodec.sae import SAE

_CELLS: Final = 1 << 22  # of inner products at a time


@torch.no_grad()
def removal_errors(
    sae: SAE, features: Features, x: NDArray[np.float32], x_hat: NDArray[np.float32]
) -> NDArray[np.float64]:
    """How much the squared error of its row would rise without each nonzero: float64 (K,); negative where it falls.

    features: those that x_hat, float32 (T, d), is made of. x: the rows.
    """
    error = torch.from_numpy(x - x_hat).to(sae.device)
    n = features.n_rows
    rows = np.repeat(np.arange(n), np.diff(features.indptr))
    inner = np.empty(features.nnz)
    batch = max(1, _CELLS // sae.n_latents)
    for start in range(0, n, batch):
        a, b = features.indptr[start], features.indptr[min(start + batch, n)]
        products = (error[start : start + batch] @ sae.w_dec.T).cpu().numpy()
        inner[a:b] = products[rows[a:b] - start, features.latents[a:b]]
    value = features.values.astype(np.float64)
    if features.side is not None:
        value *= features.side.scale[rows]
    return np.asarray(2 * value * inner + (value * sae.norms[features.latents]) ** 2)
