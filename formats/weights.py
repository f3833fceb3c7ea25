"""SAE weights inside a file: the canonical tensors as one frame payload, byte-shuffled and zstd-compressed.

The payload is a length-prefixed msgpack record (config, name, source, names and shapes of the tensors) and one zstd
frame. Its content is the tensors' little-endian float32 values, one after the other, split into four planes of bytes:
exponents compress, mantissas of rounded weights do too (bfloat16's two planes of zeros take a thousandth). With
precision int8 the decoder's directions are range-coded integers behind it, and their scales are in it.
Normative: docs/format.md, "Weights".
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from saecodec.decoder_precision import FLOAT32, INT8, from_integers, to_integers, with_precision
from saecodec.errors import FormatError
from saecodec.frames import field, pack_record, shown, unpack_record
from saecodec.integer_weights import pack_integers, read_integers
from saecodec.limits import check_expansion, check_limit
from saecodec.sae import SAE
from saecodec.wire import ByteReader, blob

MAX_WEIGHT_BYTES: Final = 1 << 36
_MAX_TENSORS: Final = 16
_LEVEL: Final = 6


def pack_weights(sae: SAE, *, decoder_only: bool, precision: str = FLOAT32) -> bytes:
    """The payload of a weights frame: the decoder, or the whole SAE, of `with_precision(sae, precision)`."""
    sae = with_precision(sae, precision)
    tensors = sae.decoder_tensors() if decoder_only else sae.tensors()
    config = {"architecture": sae.architecture} | sae.decoder_config() if decoder_only else sae.config()
    shapes = {name: list(array.shape) for name, array in sorted(tensors.items())}
    record = {"config": config, "name": sae.name, "source": sae.source, "shapes": shapes}
    head, floats = blob(pack_record(record)), [tensors[name] for name in shapes]
    if precision != INT8:
        return _checked(head + _compressed(floats), sae)
    integers, scale = to_integers(tensors["w_dec"])
    others = [tensors[name] for name in shapes if name != "w_dec"]
    return _checked(head + blob(_compressed([*others, scale])) + pack_integers(integers), sae)


def _checked(payload: bytes, sae: SAE) -> bytes:
    """LimitError when no reader would take the weights, which are zeros nearly all."""
    check_expansion(sae.nbytes, len(payload), sae.name)
    return payload


def unpack_weights(
    payload: bytes | memoryview, what: str, *, n_latents: int, width: int | None = None, precision: str = FLOAT32
) -> SAE:
    """The SAE (or the decoder of one) in a weights frame.

    n_latents, width, precision: what the rest of the file says of F, d and w_dec. FormatError when the payload is
    anything else.
    """
    reader = ByteReader(payload, what)
    record = unpack_record(reader.blob(), what)
    shapes = _shapes(record.get("shapes"), what)
    found = shapes.get("w_dec", ())
    if len(found) != 2 or found[0] != n_latents or found[1] != (width or found[1]):
        raise FormatError(f"{what}: w_dec has shape {found}, but the file is of {n_latents} latents, width {width}")
    n_bytes = 4 * sum(math.prod(shape) for shape in shapes.values())
    check_limit("weights_bytes", n_bytes, what)
    check_expansion(n_bytes, len(payload), what)
    if precision == INT8:
        floats = {name: shape for name, shape in shapes.items() if name != "w_dec"}
        tensors, scale = _tensors(reader.blob(), floats, n_latents, what)
        if not (np.isfinite(scale) & ~np.signbit(scale)).all():
            raise FormatError(f"{what}: the scales of the weights are not finite, or negative")
        tensors["w_dec"] = from_integers(read_integers(reader, n_latents, found[1]), scale)
        if not np.isfinite(tensors["w_dec"]).all():
            raise FormatError(f"{what}: the scales of the weights are so large that products are no float32")
        reader.end()
    else:
        tensors, _ = _tensors(reader.take(reader.left), shapes, 0, what)
    name, source = str(field(record, "name", str, what)), str(field(record, "source", str, what))
    return replace(SAE.from_tensors(field(record, "config", dict, what), tensors, name), source=source)


def _shapes(found: object, what: str) -> dict[str, tuple[int, ...]]:
    if not isinstance(found, dict) or not 1 <= len(found) <= _MAX_TENSORS or not all(map(_is_text, found)):
        raise FormatError(f"{what}: the weights do not list 1 to {_MAX_TENSORS} tensors by name")
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(found):
        shape = found[name]
        if not isinstance(shape, list) or len(shape) not in (1, 2) or not all(type(n) is int and n > 0 for n in shape):
            raise FormatError(f"{what}: tensor {name!r} has shape {shown(shape)}")
        shapes[name] = tuple(shape)
    if 4 * sum(math.prod(shape) for shape in shapes.values()) > MAX_WEIGHT_BYTES:
        raise FormatError(f"{what}: weights of shapes {shapes} are larger than {MAX_WEIGHT_BYTES} bytes")
    return shapes


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _compressed(tensors: list[NDArray[np.float32]]) -> bytes:
    values = np.concatenate([tensor.ravel() for tensor in tensors]).astype("<f4")
    planes = np.ascontiguousarray(values.view(np.uint8).reshape(-1, 4).T)
    return zstandard.ZstdCompressor(level=_LEVEL).compress(planes.tobytes())


def _tensors(
    compressed: memoryview, shapes: dict[str, tuple[int, ...]], n_more: int, what: str
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Tensors of these shapes, and `n_more` values behind them."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    *parts, more = np.split(_planes(bytes(compressed), sum(sizes) + n_more, what), np.cumsum(sizes))
    return {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}, more


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
