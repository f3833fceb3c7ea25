"""SAE weights inside a file: the canonical tensors as one frame payload, byte-shuffled and zstd-compressed.

The payload is a length-prefixed msgpack record (config, name, source, names and shapes of the tensors) and one zstd
frame. Its content is the tensors' little-endian float32 values, one after the other, split into four planes of bytes:
exponents compress, mantissas of rounded weights do too. Normative: docs/format.md, "Weights".
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from saecodec.errors import FormatError
from saecodec.frames import field, pack_record, unpack_record
from saecodec.sae import SAE
from saecodec.wire import ByteReader, blob

MAX_WEIGHT_BYTES: Final = 1 << 36
_MAX_TENSORS: Final = 16
_LEVEL: Final = 6


def pack_weights(sae: SAE, *, decoder_only: bool) -> bytes:
    """The payload of a weights frame: the decoder, or the whole SAE."""
    tensors = sae.decoder_tensors() if decoder_only else sae.tensors()
    config = {"architecture": sae.architecture} | sae.decoder_config() if decoder_only else sae.config()
    shapes = {name: list(array.shape) for name, array in sorted(tensors.items())}
    record = {"config": config, "name": sae.name, "source": sae.source, "shapes": shapes}
    values = np.concatenate([tensors[name].ravel() for name in shapes]).astype("<f4")
    planes = np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T)
    return blob(pack_record(record)) + zstandard.ZstdCompressor(level=_LEVEL).compress(planes.tobytes())


def unpack_weights(payload: bytes | memoryview, what: str, *, n_latents: int, width: int | None = None) -> SAE:
    """The SAE (or the decoder of one) in a weights frame.

    n_latents, width: what the rest of the file says of F and d. FormatError when the payload is anything else.
    """
    reader = ByteReader(payload, what)
    record = unpack_record(reader.blob(), what)
    shapes = _shapes(record.get("shapes"), what)
    found = shapes.get("w_dec", ())
    if len(found) != 2 or found[0] != n_latents or found[1] != (width or found[1]):
        raise FormatError(f"{what}: w_dec has shape {found}, but the file is of {n_latents} latents, width {width}")
    n_values = sum(math.prod(shape) for shape in shapes.values())
    values = _planes(bytes(reader.take(reader.left)), n_values, what)
    tensors, start = {}, 0
    for name, shape in shapes.items():
        tensors[name] = values[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    name, source = str(field(record, "name", str, what)), str(field(record, "source", str, what))
    return replace(SAE.from_tensors(field(record, "config", dict, what), tensors, name), source=source)


def _shapes(found: object, what: str) -> dict[str, tuple[int, ...]]:
    if not isinstance(found, dict) or not 1 <= len(found) <= _MAX_TENSORS or not all(map(_is_text, found)):
        raise FormatError(f"{what}: the weights do not list 1 to {_MAX_TENSORS} tensors by name")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(found):
        shape = found[name]
        if not isinstance(shape, list) or len(shape) not in (1, 2) or not all(type(n) is int and n > 0 for n in shape):
            raise FormatError(f"{what}: tensor {name!r} has shape {shape!r}")
        shapes[name] = tuple(shape)
    if 4 * sum(math.prod(shape) for shape in shapes.values()) > MAX_WEIGHT_BYTES:
        raise FormatError(f"{what}: weights of shapes {shapes} are larger than {MAX_WEIGHT_BYTES} bytes")
    return shapes


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _planes(compressed: bytes, n_values: int, what: str) -> NDArray[np.float32]:
    try:
        # The size that zstd would allocate is written in its own header: it must be the one that the shapes give.
        if zstandard.frame_content_size(compressed) != 4 * n_values:
            raise FormatError(f"{what}: the weights do not unpack to {4 * n_values} bytes")
        planes = zstandard.ZstdDecompressor().decompress(compressed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"{what}: the weights are not valid zstd data ({error})") from error
    if len(planes) != 4 * n_values:
        raise FormatError(f"{what}: the weights do not unpack to {4 * n_values} bytes")
    bytes_of = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(4, n_values).T)
    return np.asarray(bytes_of.view("<f4").ravel(), np.float32)
