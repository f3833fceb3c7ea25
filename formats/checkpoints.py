"""`load_sae`: SAE checkpoints of every family that is known, told apart by their content."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from saecodec.errors import UnsupportedError
from saecodec.formats.saelens import is_saelens, load_saelens

if TYPE_CHECKING:
    from saecodec.sae import SAE


def load_sae(path: str | os.PathLike[str], device: str = "auto") -> SAE:
    """Load a trained SAE from a checkpoint folder.

    device: where its weights go; "auto" is cuda where there is one. Raises CheckpointError when the checkpoint is
    incomplete, UnsupportedError when it is of a kind that this version does not know.
    """
    folder = Path(path)
    if is_saelens(folder):
        return load_saelens(folder).to(device)
    found = "no such path" if not folder.exists() else "not a SAELens folder (cfg.json and sae_weights.safetensors)"
    raise UnsupportedError(f"{folder}: {found}; this version loads SAELens checkpoints")
