"""Mutations of inputs that know what the input is, so that most of them get past checksums and parsers of others.

`mutate` takes apart what it is given (frames, archives, JSON, safetensors, npy), changes one thing inside, and puts it
together again with lengths and checksums that fit. What it does depends on the input and the state of `Random` alone.
"""

from __future__ import annotations

import io
import json
import math
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

from frame_mutations import mutated_frames
from integer_mutations import with_other_integers
from value_mutations import mutated_value

Bytes = Callable[[bytes, random.Random], bytes]
"""Changes bytes of which nothing is known."""

_NPY = b"\x93NUMPY"
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 1 << 10, 1 << 16, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 32, 1 << 48, (1 << 63) - 1)
_FLOATS = (0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e308, 1e-308, 5e-324)


def havoc(data: bytes, rng: random.Random) -> bytes:
    """One to four small changes: bits, bytes, numbers at the edge of their range, pieces gone, doubled or moved."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, n = rng.randint(0, len(out)), rng.choice((1, 1, 2, 4, 8, 32))
        what = rng.randrange(8)
        if what == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif what == 1 and out:
            out[at % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif what == 2:
            out[at : at + n] = b""
        elif what == 3:
            out[at:at] = rng.randbytes(n)
        elif what == 4:
            out[at:at] = out[max(at - n, 0) : at]
        elif what == 5:
            out[at : at + rng.choice((1, 2))] = _leb128(rng.choice(_EDGES) + rng.choice((-1, 0, 0, 1)))
        elif what == 6:
            out[at : at + 8] = struct.pack("<d", rng.choice(_FLOATS)) if rng.random() < 0.5 else rng.randbytes(8)
        elif what == 7:
            start = rng.randint(0, len(out))
            out[at : at + n] = out[start : start + n]
    if rng.random() < 0.03:
        del out[rng.randint(0, len(out)) :]
    return bytes(out)


def mutate(data: bytes, rng: random.Random, change: Bytes = havoc) -> bytes:
    """`data` with something changed. change: what is done to parts without a structure."""
    if rng.random() < 0.05:
        return change(data, rng)
    for parsed in (_frames, _archive, _safetensors, _npy, _json):
        out = parsed(data, rng, change)
        if out is not None:
            return out
    other = with_other_integers(data, rng) if rng.random() < 0.4 else None
    return change(data, rng) if other is None else other


def mutate_behind(n: int, data: bytes, rng: random.Random, change: Bytes = havoc) -> bytes:
    """The same for inputs whose first `n` bytes choose what the others are for; now and then these are changed."""
    head = data[:n].ljust(n, b"\0")
    if n and rng.random() < 0.05:
        return rng.randbytes(n) + data[n:]
    return head + mutate(data[n:], rng, change)


def _leb128(value: int) -> bytes:
    value, out = max(value, 0), bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _frames(data: bytes, rng: random.Random, change: Bytes) -> bytes | None:
    return mutated_frames(data, rng, change)


def _archive(data: bytes, rng: random.Random, change: Bytes) -> bytes | None:
    """A member of a zip archive (npz, torch) changed, with its checksum."""
    if not data.startswith(b"PK"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:  # an input that was damaged before
        return None
    if not members:
        return None
    i = rng.randrange(len(members))
    name, content = members[i]
    if rng.random() < 0.15:
        members[i] = (change(name.encode(), rng).decode("latin-1") or "x", content)
    else:
        members[i] = (name, mutate(content, rng, change))
    out = io.BytesIO()
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
            warnings.simplefilter("ignore")  # of names that are there twice
            for name, content in members:
                archive.writestr(name, content)
    except (ValueError, IndexError):  # no name of a member
        return None
    return out.getvalue()


def _safetensors(data: bytes, rng: random.Random, change: Bytes) -> bytes | None:
    """The header changed, with its length."""
    if len(data) < 10 or data[8:9] != b"{":
        return None
    n = int.from_bytes(data[:8], "little")
    head, rest = data[8 : 8 + n], data[8 + n :]
    if rng.random() < 0.2:
        return data[: 8 + n] + change(rest, rng)
    changed = _json(head, rng, change)
    return None if changed is None else len(changed).to_bytes(8, "little") + changed + rest


def _npy(data: bytes, rng: random.Random, change: Bytes) -> bytes | None:
    """The header changed, with its length, or the values."""
    if not data.startswith(_NPY) or len(data) < 12:
        return None
    n = int.from_bytes(data[8:10], "little")
    head, rest = data[10 : 10 + n], data[10 + n :]
    if rng.random() < 0.2:
        return data[: 10 + n] + change(rest, rng)
    if rng.random() < 0.5:
        head = change(head, rng)
    else:
        number = rng.choice(_EDGES) + rng.choice((-1, 0, 1))
        words = (b"<f4", b"<f8", b"|O", b"<U9", b"True", b"False", b"()", b"(%d,)" % number, b"%d" % number)
        at = rng.randint(0, max(len(head) - 4, 0))
        head = head[:at] + rng.choice(words) + head[at + rng.choice((0, 1, 3, 6)) :]
    return data[:8] + (len(head) & 0xFFFF).to_bytes(2, "little") + head[:0xFFFF] + rest


def _json(data: bytes, rng: random.Random, change: Bytes) -> bytes | None:
    """A value of a JSON object changed, or of one of several lines of objects."""
    if not data.lstrip().startswith(b"{"):
        return None
    if rng.random() < 0.1:
        return change(data, rng)
    lines = data.splitlines(keepends=True) if b"\n{" in data else [data]
    i = rng.randrange(len(lines))
    if rng.random() < 0.002:
        lines[i] = b"[" * 100_000
        return b"".join(lines)
    try:
        value: Any = json.loads(lines[i])
        lines[i] = json.dumps(mutated_value(value, rng)).encode()
    except (ValueError, TypeError, RecursionError):  # was damaged before, or a value that JSON has not
        return change(data, rng)
    return b"\n".join(line.rstrip(b"\n") for line in lines) + (b"\n" if data.endswith(b"\n") else b"")
