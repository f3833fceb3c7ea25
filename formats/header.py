"""The header of a `.saec` file: what is in it, and what decoding it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from saecodec.codes import MAX_CHUNK_ROWS
from saecodec.decoder_precision import FLOAT32, INT8, PRECISIONS
from saecodec.errors import FormatError, InputError
from saecodec.formats.array_source import ITEM_BYTES
from saecodec.frames import field as record_field
from saecodec.frames import pack_record, shown, unpack_record
from saecodec.limits import check_limit
from saecodec.value_code import EXACT, MAX_PATTERN, NO_DECODER, STEP, ValueCode
from saecodec.version import (
    INTEGER_WEIGHTS,
    LATENTS,
    RESIDUAL,
    SIDE,
    check_prior,
    check_version,
    required,
    table_kinds,
    versioned,
)

EMBED: Final = ("none", "tables", "decoder")
_MAX_WIDTH: Final = 1 << 24
MAX_ROW_DIMENSIONS: Final = 8
_SAE_FACTS: Final = {"name": str, "source": str, "architecture": str, "n_latents": int}


@dataclass(frozen=True)
class Header:
    """What a `.saec` file says of itself.

    width: d. dtype: of the input array. chunk_rows: most rows of a chunk. embed: what the file holds beside
    the rows ("none", "tables", or "decoder", which includes the tables). decoder_id, codec_id: sha256, hex.
    sae: name, source, architecture, n_latents. step: absolute. prior: its name. residual: whether there is a residual
    layer. side: whether rows have side information. user: free text by key. row_shape: of a
    row of the input, where that is not (d,). values: what levels stand for when rows are latents, without an SAE.
    weights: precision of the decoder that is embedded, one of `PRECISIONS`.
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
    side: bool = False
    user: Mapping[str, str] = field(default_factory=dict)
    row_shape: tuple[int, ...] = ()
    values: ValueCode | None = None
    weights: str = FLOAT32

    @property
    def requires(self) -> list[str]:
        """What a reader must know."""
        requires = required(self.prior, residual=self.residual, side=self.side)
        requires += [INTEGER_WEIGHTS] if self.weights == INT8 else []
        return requires if self.values is None else [*requires, LATENTS]

    @property
    def embedded(self) -> tuple[str, ...]:
        """Types of the frames between this header and the chunks, in their order."""
        tables = table_kinds(self.requires)
        return {"none": (), "tables": tables, "decoder": (*tables, "SAEW")}[self.embed]

    def to_bytes(self) -> bytes:
        """As a msgpack record. InputError when the user's metadata is not text."""
        check_user(self.user)
        record = versioned(self.requires) | {
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
        record |= {"row_shape": list(self.row_shape)} if self.row_shape else {}
        record |= {"weights": self.weights} if self.weights != FLOAT32 else {}
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
        sae, user, row_shape = get("sae", dict), record.get("user", {}), record.get("row_shape", [])
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
        possible["row_shape"] = "row_shape" not in record or (
            isinstance(row_shape, list)
            and 1 < len(row_shape) <= MAX_ROW_DIMENSIONS
            and all(type(n) is int and n > 0 for n in row_shape)
            and math.prod(row_shape) == record["width"]
        )
        weights = record.get("weights", FLOAT32)
        possible["weights"] = (
            weights in PRECISIONS
            and (weights == FLOAT32 or record["embed"] == "decoder")
            and (weights == INT8) == (INTEGER_WEIGHTS in record["requires"])
        )
        wrong = [key for key, fine in possible.items() if not fine]
        if wrong:
            found = shown(record.get(wrong[0]))
            raise FormatError(f"{what}: header field {wrong[0]!r} is {found}, which is not possible")
        check_prior(record, get("prior", str), what)
        sae = {key: sae[key] for key in _SAE_FACTS}
        numbers = {key: get(key, int) for key in ("width", "chunk_rows")}
        check_limit("latents" if LATENTS in record["requires"] else "width", numbers["width"], what)
        texts = {key: get(key, str) for key in ("dtype", "embed", "prior", "made_by")}
        texts |= {key: ids[i].hex() for i, key in enumerate(("decoder_id", "codec_id"))}
        residual, side = (name in record["requires"] for name in (RESIDUAL, SIDE))
        facts = {"sae": sae, "step": get("step", float), "user": user, "row_shape": tuple(row_shape)}
        values = _values(record, what)
        return cls(**numbers, **texts, **facts, residual=residual, side=side, values=values, weights=weights)


def _values(record: dict[str, Any], what: str) -> ValueCode | None:
    """What the levels of a file of latents stand for; None for one of rows."""
    if LATENTS not in record["requires"]:
        return None
    found = record_field(record, "values", dict, what)
    kind, base = found.get("kind"), found.get("base")
    least, most = (-1, MAX_PATTERN - 1) if kind in EXACT else (0, 0)
    if kind not in (STEP, *EXACT) or type(base) is not int or not least <= base <= most:
        raise FormatError(f"{what}: header field 'values' is {shown(found)}, which is not possible")
    others = [name for name in (RESIDUAL, SIDE) if name in record["requires"]]
    embed, decoder = record["embed"], record["decoder_id"].hex()
    if others or embed != "tables" or decoder != NO_DECODER or record.get("row_shape"):
        raise FormatError(
            f"{what}: latents without an SAE have embed 'tables', a decoder id of zeros, no row_shape and no other "
            f"layer, found {embed!r}, {decoder}, {record.get('row_shape')} and {others}"
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
