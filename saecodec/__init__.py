"""saecodec: a lossy compression codec for neural-network activations whose model is a sparse autoencoder.

>>> import saecodec
>>> sae = saecodec.load_sae("path/to/sae")                     # doctest: +SKIP
>>> codec = saecodec.Codec.fit(sae, x, step="0.4rms")          # doctest: +SKIP
>>> x_hat = codec.decode(codec.encode(x))                      # doctest: +SKIP

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saecodec.codec import Codec
    from saecodec.codes import Codes
    from saecodec.decoder_precision import with_precision
    from saecodec.errors import SaecodecError
    from saecodec.exact_encoder import deterministic
    from saecodec.formats.checkpoints import load_sae
    from saecodec.formats.codecfile import load_codec, save_codec
    from saecodec.formats.create import create
    from saecodec.formats.saec_array import SaecArray as open
    from saecodec.latents import LatentCodec
    from saecodec.sae import SAE

__version__ = "0.1.0"

_EXPORTS = {
    "Codec": ("saecodec.codec", "Codec"),
    "Codes": ("saecodec.codes", "Codes"),
    "LatentCodec": ("saecodec.latents", "LatentCodec"),
    "SAE": ("saecodec.sae", "SAE"),
    "SaecodecError": ("saecodec.errors", "SaecodecError"),
    "create": ("saecodec.formats.create", "create"),
    "deterministic": ("saecodec.exact_encoder", "deterministic"),
    "load_codec": ("saecodec.formats.codecfile", "load_codec"),
    "load_sae": ("saecodec.formats.checkpoints", "load_sae"),
    "open": ("saecodec.formats.saec_array", "SaecArray"),
    "save_codec": ("saecodec.formats.codecfile", "save_codec"),
    "with_precision": ("saecodec.decoder_precision", "with_precision"),
}

__all__ = [
    "SAE",
    "Codec",
    "Codes",
    "LatentCodec",
    "SaecodecError",
    "__version__",
    "create",
    "deterministic",
    "load_codec",
    "load_sae",
    "open",
    "save_codec",
    "with_precision",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'saecodec' has no attribute {name!r}")
    module, attribute = _EXPORTS[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
