"""Training of sparse autoencoders: for sparsity, or for the bits that their codes cost.

`Trainer` trains on rows by `Settings`; `formats.training` does it for files. Rows are centred, and scaled so that their
mean square is d, which makes one learning rate fit all data; `Trainer.sae` gives the SAE in the units of the data.

torch is not imported until there is a `Trainer`, for the command line tells of settings without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saecodec.training.settings import ARCHITECTURES, OBJECTIVES, Aim, Settings

if TYPE_CHECKING:
    from saecodec.training.trainer import Trainer

__all__ = ["ARCHITECTURES", "OBJECTIVES", "Aim", "Settings", "Trainer"]


def __getattr__(name: str) -> Any:
    if name == "Trainer":
        from saecodec.training.trainer import Trainer

        return Trainer
    raise AttributeError(f"module 'saecodec.training' has no attribute {name!r}")
