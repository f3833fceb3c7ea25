"""Side information and the residual layer."""

from __future__ import annotations

import struct

from attack import LAYER_NORM, NAN, RESIDUAL, Attack
from hostile import (
    edited,
    ints,
    saec,
    same,
)

from saecodec.wire import varint, varints


def on_layers() -> list[Attack]:
    def side(name: str, match: str, data: bytes) -> Attack:
        return Attack(name, "FormatError", match, lambda: saec(edited(LAYER_NORM[:4], "SIDE", lambda _: data)))

    def layer(name: str, match: str, data: bytes, error: str = "FormatError") -> Attack:
        return Attack(name, error, match, lambda: saec(edited(RESIDUAL[:3], "RTAB", lambda _: data)))

    def figures(centre: float = 1.0, step: float = 1.0, mean: float = 0.0, kind: int = 1, p: int = 8) -> bytes:
        return varints([kind, p]) + struct.pack("<ddd", centre, step, mean)

    floats = struct.pack("<dd", 1.0, 1.0)
    return [
        side("side information of kind 0", "kind 'none'", varints([0, 8]) + struct.pack("<d", 1)),
        side("side information of kind 4", "at most 3", figures(kind=4)),
        side("side resolution of zero", "resolution 0", figures(p=0)),
        side("side resolution beyond 2^20", "at most 1048576", figures(p=(1 << 20) + 1)),
        side("side centre that is no number", "centre nan", figures(centre=NAN)),
        side("side step of zero", "the step of means is 0.0", figures(step=0.0)),
        side("bytes behind the side information", "left over", figures() + b"\0"),
        Attack(
            "side information that is not the header's",
            "IdentityError",
            "encoded with the codec",
            lambda: saec(edited(LAYER_NORM[:4], "SIDE", lambda _: figures())),
        ),
        layer("residual blocks beyond the bytes", "at most", varint(1 << 40)),
        layer("residual block wider than 2^24", "at most 16777216", varints([1, 1, (1 << 24) + 1]) + floats),
        layer("more components than values", "is not possible", varints([1, 9, 8]) + floats + b"\0"),
        layer("residual basis beyond 2^25", "is not possible", varints([1, 8192, 8192]) + floats),
        layer(
            "residual basis of few bytes",
            "SAECODEC_LIMITS=expansion=",
            varints([1, 4096, 8192]) + floats + same(1 << 25),
            "LimitError",
        ),
        layer(
            "residual rows beyond the limit",
            "SAECODEC_LIMITS=width=",
            varints([1, 1, 1 << 24]) + floats + same(1 << 24),
            "LimitError",
        ),
        layer(
            "residual step of no number", "the residual's step is nan", varints([1, 1, 8]) + struct.pack("<dd", NAN, 1)
        ),
        layer("residual unit of zero", "the unit of its basis 0.0", varints([1, 1, 8]) + struct.pack("<dd", 1, 0)),
        layer("entry of the basis beyond 2^15", "values below 65537", varints([1, 1, 8]) + floats + ints(*[65537] * 8)),
        Attack(
            "residual of more integers than it holds",
            "FormatError",
            "integers cannot come from 0 bytes",
            lambda: saec(edited(RESIDUAL[:5], "RCHK", lambda _: b"")),
        ),
        Attack(
            "residual with a word left",
            "FormatError",
            "did not end",
            lambda: saec(edited(RESIDUAL[:5], "RCHK", lambda data: data + bytes(12))),
        ),
    ]
