"""The header of a `.saec` file: what is in it, and what decoding it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from saecodec.codes import MAX_CHUNK_ROWS
from saecodec.errors import FormatError, InputError
from saecodec.formats.array_source import ITEM_BYTES
from saecodec.frames import field as record_field
from saecodec.frames import pack_record, unpack_record
from saecodec.value_code import EXACT, MAX_PATTERN, NO_DECODER, STEP, ValueCode
from saecodec.version import LATENTS, RESIDUAL, check_prior, check_version, required, versioned

EMBED: Final = ("none", "tables", "decoder")
_MAX_WIDTH: Final = 1 << 24
_SAE_FACTS: Final = {"name": str, "source": str, "architecture": str, "n_latents": int}


@dataclass(frozen=True)
class Header:
    """What a `.saec` file says of itself.

    width: d. dtype: of the input array. chunk_rows: most rows of a chunk. embed: what the file holds beside
    the rows ("none", "tables", or "decoder", which includes the tables). decoder_id, codec_id: sha256, hex.
    sae: name, source, architecture, n_latents. step: absolute. prior: its name. residual: whether there is a residual
    layer. user: free text by key. values: what levels stand for when the rows are latents themselves, without an SAE.
    """

    width: int
    dtype: str
    chunk_rows: int
    embed: str
    decoder_id: str
    codec_id: str
    sae: Mapping[str, Any]
    step: float
    prior: str
    made_by: str
    residual: bool = False
    user: Mapping[str, str] = field(default_factory=dict)
    values: ValueCode | None = None

    def to_bytes(self) -> bytes:
        """As a msgpack record. InputError when the user's metadata is not text."""
        check_user(self.user)
        requires = required(self.prior, residual=self.residual) + ([] if self.values is None else [LATENTS])
        record = versioned(requires) | {
            "width": self.width,
            "dtype": self.dtype,
            "chunk_rows": self.chunk_rows,
            "embed": self.embed,
            "decoder_id": bytes.fromhex(self.decoder_id),
            "codec_id": bytes.fromhex(self.codec_id),
            "sae": dict(self.sae),
            "step": self.step,
            "prior": self.prior,
            "made_by": self.made_by,
        }
        if self.values is not None:
            record["values"] = {"kind": self.values.kind, "base": self.values.base}
        return pack_record(record | ({"user": dict(self.user)} if self.user else {}))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, what: str) -> Header:
        """Parse and check; UnsupportedError when the file needs a later version or a feature this one lacks."""
        record = unpack_record(data, what)
        check_version(record, what)

        def get(key: str, kind: type) -> Any:
            return record_field(record, key, kind, what)

        ids = [get(key, bytes) for key in ("decoder_id", "codec_id")]
        sae, user = get("sae", dict), record.get("user", {})
        possible = {
            "width": 1 <= get("width", int) <= _MAX_WIDTH,
            "dtype": get("dtype", str) in ITEM_BYTES,
            "chunk_rows": 1 <= get("chunk_rows", int) <= MAX_CHUNK_ROWS,
            "embed": get("embed", str) in EMBED,
            "decoder_id": len(ids[0]) == 32,
            "codec_id": len(ids[1]) == 32,
            "step": 0 < get("step", float) < math.inf,
            "sae": all(type(sae.get(key)) is kind for key, kind in _SAE_FACTS.items()),
            "user": isinstance(user, dict) and all(isinstance(text, str) for pair in user.items() for text in pair),
        }
        wrong = [key for key, fine in possible.items() if not fine]
        if wrong:
            raise FormatError(f"{what}: header field {wrong[0]!r} is {record.get(wrong[0])!r}, which is not possible")
        check_prior(record, get("prior", str), what)
        numbers = {key: get(key, int) for key in ("width", "chunk_rows")}
        texts = {key: get(key, str) for key in ("dtype", "embed", "prior", "made_by")}
        identities = {"decoder_id": ids[0].hex(), "codec_id": ids[1].hex()}
        residual, values = RESIDUAL in record["requires"], _values(record, what)
        return cls(
            **numbers,
            **texts,
            **identities,
            sae=sae,
            step=get("step", float),
            user=user,
            residual=residual,
            values=values,
        )


def _values(record: dict[str, Any], what: str) -> ValueCode | None:
    """What the levels of a file of latents stand for; None for one of rows."""
    if LATENTS not in record["requires"]:
        return None
    found = record_field(record, "values", dict, what)
    kind, base = found.get("kind"), found.get("base")
    least, most = (-1, MAX_PATTERN - 1) if kind in EXACT else (0, 0)
    if kind not in (STEP, *EXACT) or type(base) is not int or not least <= base <= most:
        raise FormatError(f"{what}: header field 'values' is {found!r}, which is not possible")
    if RESIDUAL in record["requires"] or record["embed"] != "tables" or record["decoder_id"].hex() != NO_DECODER:
        raise FormatError(
            f"{what}: latents without an SAE have embed 'tables', a decoder id of zeros and no residual layer, found "
            f"{record['embed']!r}, {record['decoder_id'].hex()} and {record['requires']}"
        )
    return ValueCode(kind, base)


def check_user(user: Mapping[str, str]) -> None:
    """InputError unless metadata is text by text, which UTF-8 can hold."""
    for pair in user.items():
        try:
            fine = all(isinstance(text, str) and text.encode() is not None for text in pair)
        except UnicodeEncodeError:
            fine = False
        if not fine:
            raise InputError(f"user metadata is text by key, got {pair[0]!r}: {pair[1]!r}")
