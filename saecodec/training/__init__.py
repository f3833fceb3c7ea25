"""Training of sparse autoencoders: for sparsity, or for the bits that their codes cost.

`Trainer` trains on rows by `Settings`; `formats.training` does it for files. Rows are
centred, and scaled so that their mean square is d, which makes one learning rate fit all data; `Trainer.sae` gives
the SAE in the units of the data.
"""

from saecodec.training.settings import ARCHITECTURES, OBJECTIVES, Aim, Settings
from saecodec.training.trainer import Trainer

__all__ = ["ARCHITECTURES", "OBJECTIVES", "Aim", "Settings", "Trainer"]
