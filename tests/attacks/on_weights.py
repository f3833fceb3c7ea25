"""Weights: zstd, shapes, integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from attack import DECODER, INFINITY, INT8, Attack
from hostile import (
    FLAT,
    edited,
    saec,
    stored,
    table,
    weights,
    zeros,
)

from saecodec.wire import blob, varint


def on_weights() -> list[Attack]:
    shapes = {"w_dec": [48, 8], "b_dec": [8]}
    n = 4 * (48 * 8 + 8)

    def sae(name: str, match: str, data: Callable[[], bytes], error: str = "FormatError") -> Attack:
        return Attack(name, error, match, lambda: saec(edited(DECODER, "SAEW", lambda _: data())))

    def rounded(name: str, match: str, edit: Callable[[bytes], bytes]) -> Attack:
        return Attack(name, "FormatError", match, lambda: saec(edited(INT8, "SAEW", edit)))

    floats = weights({"b_dec": [8], "w_dec": [48, 8]}, b"")

    def scales(value: float, n_more: bytes = b"") -> bytes:
        planes = np.array([0.0] * 8 + [value] * 48, "<f4").view(np.uint8).reshape(-1, 4).T
        return floats + blob(stored(planes.tobytes())) + n_more

    one = table(8, FLAT)
    return [
        sae("w_dec of another shape", "w_dec has shape", lambda: weights(shapes | {"w_dec": [47, 8]}, zeros(n))),
        sae("17 tensors", "1 to 16 tensors", lambda: weights({f"t{i}": [1] for i in range(17)}, zeros(68))),
        sae(
            "tensor of three dimensions",
            "tensor 'b_dec' has shape",
            lambda: weights(shapes | {"b_dec": [2, 2, 2]}, zeros(n)),
        ),
        sae("tensor of negative size", "tensor 'b_dec' has shape", lambda: weights(shapes | {"b_dec": [-8]}, zeros(n))),
        sae(
            "weights beyond 2^36 bytes",
            "larger than 68719476736",
            lambda: weights(shapes | {"t": [1 << 30, 1 << 30]}, zeros(n)),
        ),
        sae("zstd of another size", "do not unpack to 1568 bytes", lambda: weights(shapes, zeros(n + 1))),
        sae(
            "zstd that holds less than it announces",
            "not valid zstd|do not unpack",
            lambda: weights(shapes, zeros(n - 8, n)),
        ),
        sae(
            "zstd that holds more than it announces",
            "not valid zstd|do not unpack",
            lambda: weights(shapes, zeros(n + (1 << 20), n)),
        ),
        sae("zstd without a size", "do not unpack", lambda: weights(shapes, b"\x28\xb5\x2f\xfd\x00\x58" + b"\1\0\0")),
        sae("bytes behind the zstd frame", "not valid zstd", lambda: weights(shapes, zeros(n) + b"\0")),
        sae("weights of no zstd", "not valid zstd|do not unpack", lambda: weights(shapes, b"\0" * 99)),
        sae(
            "weights without b_dec",
            "b_dec are needed",
            lambda: weights({"w_dec": [48, 8]}, zeros(1536)),
            "CheckpointError",
        ),
        sae(
            "weights of a kind of nothing known",
            "is none of",
            lambda: weights(shapes, zeros(n), normalization="magic"),
            "CheckpointError",
        ),
        sae(
            "decompression bomb of 1 GB in the weights",
            "SAECODEC_LIMITS=expansion=",
            lambda: weights(shapes | {"t": [1 << 14, 1 << 14]}, zeros(n + (1 << 30))),
            "LimitError",
        ),
        sae(
            "weights beyond the limit",
            "SAECODEC_LIMITS=weights_bytes=",
            lambda: weights(shapes | {"t": [1 << 17, 1 << 16 | 1]}, zeros(n)),
            "LimitError",
        ),
        rounded("integer weights in blocks of none", "blocks of 0 latents", lambda _: scales(1, varint(0))),
        rounded("scale that is negative", "not finite, or negative", lambda _: scales(-1.0)),
        rounded("scale that is infinite", "not finite, or negative", lambda _: scales(INFINITY)),
        rounded("blocks beyond the bytes", "48 blocks of weights", lambda _: scales(1, varint(1) + one)),
        rounded(
            "block of more integers than it holds",
            "integers cannot come from",
            lambda _: scales(1, varint(48) + one + blob(b"")),
        ),
        rounded("bytes behind the integer weights", "left over", lambda data: data + b"\0"),
    ]
