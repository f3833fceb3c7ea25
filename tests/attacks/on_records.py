"""Headers: msgpack, and what its fields say."""

from __future__ import annotations

import struct
from collections.abc import Callable

from attack import BARE, DECODER, NAN, Attack
from hostile import (
    edited,
    prefixed,
    record,
    saec,
)


def on_records() -> list[Attack]:
    def head(name: str, error: str, match: str, edit: Callable[[bytes], bytes]) -> Attack:
        return Attack(name, error, match, lambda: saec(edited(BARE, "HEAD", edit)))

    def more(data: bytes) -> Callable[[bytes], bytes]:
        """One key more."""
        return lambda held: bytes([held[0] + 1]) + held[1:] + data

    invalid = "FormatError"
    fields = {
        "step that is no number": ("step", NAN),
        "step of zero": ("step", 0.0),
        "step that is an integer": ("step", 1),
        "width of zero": ("width", 0),
        "width that is true": ("width", True),
        "width beyond 2^24": ("width", (1 << 24) + 1),
        "rows of a chunk beyond 2^20": ("chunk_rows", (1 << 20) + 1),
        "embed of nothing known": ("embed", "all"),
        "dtype of nothing known": ("dtype", "object"),
        "identity of 31 bytes": ("codec_id", bytes(31)),
        "row shape that is not the width": ("row_shape", [2, 3]),
        "row shape of 9 dimensions": ("row_shape", [1] * 8 + [8]),
        "user metadata that is no text": ("user", {"a": 1}),
        "SAE without a name": ("sae", {}),
        "weights of nothing known": ("weights", "int4"),
    }
    return [
        *(
            head(name, invalid, f"header field '{key}' is", record(**{key: value}))
            for name, (key, value) in fields.items()
        ),
        head("record of no msgpack", invalid, "not valid msgpack", prefixed(1, b"\xc1")),
        head("bytes behind the record", invalid, "not valid msgpack", lambda data: data + b"\0"),
        head("record that is an array", invalid, "not a map with text keys", lambda data: b"\x90"),
        head(
            "record nested 20 deep",
            invalid,
            "nested more than 16 deep",
            more(b"\xa1z" + b"\x91" * 20 + b"\xc0"),
        ),
        head("record with an empty extension", invalid, "an extension type, 5", more(b"\xa1z\xc7\x00\x05")),
        head("record nested 2000 deep", invalid, "not valid msgpack", more(b"\xa1z" + b"\x91" * 2000 + b"\xc0")),
        head("record key twice", invalid, "a key appears twice", more(b"\xa4step\xcb" + bytes(8))),
        head("record key that is no text", invalid, "not valid msgpack", more(b"\x01\xc0")),
        head(
            "record array of 2^32 items",
            invalid,
            "exceeds max_array_len",
            more(b"\xa1z\xdd" + b"\xff" * 4),
        ),
        head(
            "record map of 2^32 items",
            invalid,
            "exceeds max_map_len",
            more(b"\xa1z\xdf" + b"\xff" * 4),
        ),
        head(
            "record arrays that announce and nest", invalid, "not valid msgpack", more(b"\xa1z" + b"\xdc\x0f\xff" * 900)
        ),
        head(
            "record items beyond the limit",
            "LimitError",
            "SAECODEC_LIMITS=record_items=4097",
            more(b"\xa1z\xdc\x10\x01" + b"\xc0" * 4097),
        ),
        head("record text beyond its end", invalid, "not valid msgpack", more(b"\xa1z\xdb" + b"\xff" * 4)),
        head("record with a timestamp", invalid, "not valid msgpack", more(b"\xa1z\xd6\xff" + bytes(4))),
        head("record text of no UTF-8", invalid, "not valid msgpack", more(b"\xa1z\xa1\xff")),
        head(
            "record of millions of items",
            "LimitError",
            "SAECODEC_LIMITS=record_items=4097",
            more(b"\xa1z" + b"\xdc\x01\x00" + (b"\xdc\x0f\xff" + b"\x80" * 4095) * 256),
        ),
        head(
            "record beyond 2^24 bytes",
            invalid,
            "a header of 16777",
            more(b"\xa1z\xc6" + struct.pack(">I", 1 << 24) + bytes(1 << 24)),
        ),
        head("version from the future", "UnsupportedError", "format version 2.0", record(version=[2, 0])),
        head("version of one number", invalid, "not a pair", record(version=[1])),
        head("feature from the future", "UnsupportedError", "needs prior:quantum", record(requires=["prior:quantum"])),
        head("prior that is not required", invalid, "where the prior is 'context'", record(prior="context")),
        head("width beyond the limit", "LimitError", "SAECODEC_LIMITS=width=", record(width=1 << 24)),
        head("codec hash mismatch", "IdentityError", "encoded with the codec", record(codec_id=bytes(32))),
        Attack(
            "decoder hash mismatch",
            "IdentityError",
            "encoded with",
            lambda: saec(edited(DECODER, "HEAD", record(decoder_id=bytes(32)))),
        ),
    ]
