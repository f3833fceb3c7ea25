"""mutual-feature-regularization: N tied SAEs in one state dict, `encoders.<i>.weight` (F, d) and `.bias`.

h = x W^T + b; z keeps all h that are at least the k-th largest, ties and negative ones included; x_hat = z W / |W|, row
by row, without a bias. `path#i` picks one. Equation: luke-marks0/mutual-feature-regularization, `models/sae.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from saecodec.errors import CheckpointError
from saecodec.formats.checkpoint import Checkpoint, Family
from saecodec.formats.linear_sae import Maps, made

if TYPE_CHECKING:
    from saecodec.sae import SAE

_NAME: Final = re.compile(r"encoders\.(\d+)\.(weight|bias)")


def _parts(checkpoint: Checkpoint) -> list[str]:
    return sorted({match[1] for name in checkpoint.names if (match := _NAME.fullmatch(name))}, key=int)


def _load(checkpoint: Checkpoint) -> SAE:
    from torch.nn.functional import normalize

    from saecodec.nonlinearity import SignedTopKWithTies

    parts, part = _parts(checkpoint), checkpoint.options.part
    if part is None and len(parts) == 1:
        part = parts[0]
    if part not in parts:
        asked = "say which" if part is None else f"there is no {part!r}"
        raise CheckpointError(f"{checkpoint.path}: holds {len(parts)} SAEs: {asked}, {checkpoint.path}#{parts[0]} say")
    weight, bias = checkpoint.tensors(f"encoders.{part}.weight", f"encoders.{part}.bias")
    chosen = SignedTopKWithTies(checkpoint.k(None))
    maps = Maps(weight.t(), bias, normalize(weight, p=2, dim=1), None)
    return made(checkpoint, "mutual-feature-regularization", "topk", maps, nonlinearity=chosen, subtract=False)


MUTUAL_FEATURES: Final = Family(
    "mutual-feature-regularization",
    "a state dict of encoders.<i>.*; path#i picks one",
    "topk with signs and ties (k given by the user: --sae-k)",
    "none",
    "",
    lambda checkpoint: bool(checkpoint.names) and all(_NAME.fullmatch(name) for name in checkpoint.names),
    _load,
)
