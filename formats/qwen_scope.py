"""Qwen Scope: `layer<n>.sae.pt` of W_enc (F, d), W_dec (d, F), b_enc, b_dec; k is told by the name of the repository
alone.

h = x W_enc^T + b_enc, the k largest, then relu; x_hat = z W_dec^T + b_dec: b_dec is not subtracted. Equation: SAELens
6.54, `qwen_scope_sae_huggingface_loader`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from saecodec.formats.checkpoint import Checkpoint, Family
from saecodec.formats.linear_sae import Maps, made

if TYPE_CHECKING:
    from saecodec.sae import SAE

_NAMES: Final = frozenset({"W_enc", "b_enc", "W_dec", "b_dec"})


def _load(checkpoint: Checkpoint) -> SAE:
    from saecodec.nonlinearity import TopK

    w_enc, b_enc, w_dec, b_dec = checkpoint.tensors("W_enc", "b_enc", "W_dec", "b_dec")
    # A repository, and so its copy in a cache, is named SAE-Res-<model>-W<n>K-L0_<k>.
    told = re.search(r"-L0_(\d+)(?!\d)", str(checkpoint.file.parent.absolute()))
    k = checkpoint.options.k or (int(told[1]) if told else None)
    k = checkpoint.k(k)
    maps = Maps(w_enc.t(), b_enc, w_dec.t(), b_dec)
    return made(checkpoint, "Qwen Scope", "topk", maps, nonlinearity=TopK(k), subtract=False)


QWEN_SCOPE: Final = Family(
    "Qwen Scope",
    "layer<n>.sae.pt of transposed W_enc, W_dec",
    "topk (k from the repository's name, or --sae-k)",
    "none",
    "",
    lambda checkpoint: checkpoint.names == _NAMES and checkpoint.file.suffix in (".pt", ".pth"),
    _load,
)
