"""The header of a `.saec` file: what is in it, and what decoding it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from saecodec.errors import FormatError, UnsupportedError
from saecodec.frames import field as record_field
from saecodec.frames import pack_record, unpack_record

VERSION: Final = (1, 0)
FEATURES: Final = frozenset({"prior:factorized"})
EMBED: Final = ("none", "tables", "decoder")
_MAX_DIMENSIONS: Final = 32
_DTYPES: Final = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Header:
    """What a `.saec` file says of itself.

    shape: of the input array, (..., d). dtype: of the input. chunk_rows: rows of a chunk. embed: what the file holds
    beside the rows ("none", "tables", or "decoder", which includes the tables). decoder_id, codec_id: sha256, hex.
    sae: name, source, architecture, n_latents. step: absolute. requires: features a reader must know. user: free text
    by key.
    """

    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    embed: str
    decoder_id: str
    codec_id: str
    sae: Mapping[str, Any]
    step: float
    requires: tuple[str, ...]
    made_by: str
    user: Mapping[str, str] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """T."""
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """d."""
        return self.shape[-1]

    def to_bytes(self) -> bytes:
        """As a msgpack record."""
        record: dict[str, Any] = {
            "version": list(VERSION),
            "requires": list(self.requires),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "chunk_rows": self.chunk_rows,
            "embed": self.embed,
            "decoder_id": bytes.fromhex(self.decoder_id),
            "codec_id": bytes.fromhex(self.codec_id),
            "sae": dict(self.sae),
            "step": self.step,
            "made_by": self.made_by,
        }
        return pack_record(record | ({"user": dict(self.user)} if self.user else {}))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, what: str) -> Header:
        """Parse and check; UnsupportedError when the file needs a later version or a feature this one lacks."""
        record = unpack_record(data, what)

        def get(key: str, kind: type | tuple[type, ...]) -> Any:
            return record_field(record, key, kind, what)

        version, requires = get("version", list), get("requires", list)
        if not version or not all(type(n) is int for n in version):
            raise FormatError(f"{what}: version {version!r} is not a list of integers")
        if version[0] > VERSION[0]:
            found = ".".join(map(str, version))
            raise UnsupportedError(f"{what}: written in format version {found}, this reads up to {VERSION[0]}: update saecodec")
        unknown = [name for name in requires if name not in FEATURES]
        if unknown:
            raise UnsupportedError(f"{what}: needs {', '.join(map(repr, unknown))}, unknown to this version: update saecodec")
        shape, dtype, embed = get("shape", list), get("dtype", str), get("embed", str)
        if not 1 <= len(shape) <= _MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
            raise FormatError(f"{what}: shape {shape!r} is not possible")
        if shape[-1] < 1 or math.prod(shape) >= 1 << 62 or dtype not in _DTYPES or embed not in EMBED:
            raise FormatError(f"{what}: shape {shape!r}, dtype {dtype!r} or embed {embed!r} is not possible")
        ids = [get(key, bytes) for key in ("decoder_id", "codec_id")]
        user, step = record.get("user", {}), get("step", float)
        if any(len(identity) != 32 for identity in ids) or not isinstance(user, dict) or not step > 0:
            raise FormatError(f"{what}: the header's identities, step or user metadata are not possible")
        return cls(
            tuple(shape),
            dtype,
            get("chunk_rows", int),
            embed,
            ids[0].hex(),
            ids[1].hex(),
            get("sae", dict),
            step,
            tuple(map(str, requires)),
            get("made_by", str),
            {str(key): str(value) for key, value in user.items()},
        )
