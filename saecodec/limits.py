"""What a reader takes on the word of a file, and how to let it take more.

docs/format.md says what a file may hold at most. These bounds are lower: every real SAE and every file that this
package writes stays below them, and no file of a few bytes costs much memory. What exceeds one may be fine, so a
`LimitError` names the limit, what was found and the way out. The limits are kept in an environment variable, so
that processes which are started have the same; docs/security.md has the table.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Final

from saecodec.errors import InputError, LimitError

VARIABLE: Final = "SAECODEC_LIMITS"
FREE_BYTES: Final = 1 << 24
"""What a few bytes may stand for, whatever `expansion` says."""
_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Limits:
    """latents: F. width: values of a row. weights_bytes: weights of an SAE as float32, unpacked. array_bytes: an array
    that is made in memory at once. walk_cells: rows of a chunk times latents under the context prior, which looks at
    each. expansion: how many times larger than its bytes unpacked content may be where it is larger than 16 MiB.
    record_items: of an array or a map of a header; all together may have 16 times as many.

    >>> Limits.parse("latents=16M, weights_bytes=64G").latents
    16777216
    """

    latents: int = 1 << 22
    width: int = 1 << 20
    weights_bytes: int = 1 << 35
    array_bytes: int = 1 << 36
    walk_cells: int = 1 << 30
    expansion: int = 256
    record_items: int = 1 << 12

    @classmethod
    def parse(cls, text: str) -> Limits:
        """The defaults, changed as the environment variable has it: `name=value` with commas between, values with K, M,
        G or T for powers of 1024. InputError when it is something else."""
        names, changes = [field.name for field in fields(cls)], {}
        for part in filter(None, map(str.strip, text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            digits, unit = (value[:-1], _UNITS[value[-1:].upper()]) if value[-1:].upper() in _UNITS else (value, 1)
            fine = digits.isascii() and digits.isdigit() and len(digits) <= 18 and int(digits) > 0
            if name not in names:
                wrong = f"{name!r} is no limit: those are {', '.join(names)}"
            elif name in changes:
                wrong = f"{name!r} stands there twice"
            elif not fine:
                wrong = f"{value!r} is no positive whole number, with K, M, G or T for powers of 1024 if you like"
            else:
                changes[name] = int(digits) * unit
                continue
            raise InputError(f"the environment variable {VARIABLE} has {part!r}; expected name=value: {wrong}")
        return replace(cls(), **changes)

    def __str__(self) -> str:
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


_parsed = lru_cache(maxsize=8)(Limits.parse)


def limits() -> Limits:
    """Those of this process, by the environment variable."""
    return _parsed(os.environ.get(VARIABLE, ""))


def set_limits(**changes: int) -> None:
    """Change limits for this process and those that it starts: `set_limits(latents=1 << 24)`. InputError when there is
    none of a name, or a value is not possible."""
    names = [field.name for field in fields(Limits)]
    for name, value in changes.items():
        if name not in names:
            raise InputError(f"{name!r} is no limit: those are {', '.join(names)}")
        if type(value) is not int or not 0 < value < 10**18:
            raise InputError(f"the limit {name} is a positive whole number below 10^18, got {value!r}")
    os.environ[VARIABLE] = str(replace(limits(), **changes))


@contextmanager
def limited(**changes: int) -> Iterator[None]:
    """`set_limits` in the block."""
    before = os.environ.get(VARIABLE)
    set_limits(**changes)
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def check_limit(name: str, value: int, what: str) -> None:
    """LimitError when `value` exceeds the limit of this name; `what` names the input."""
    limit = int(getattr(limits(), name))
    if value > limit:
        raise LimitError(
            f"{what}: {value:,} {_TOLD[name]} are more than the limit of {limit:,}; {_way_out(name, value)}"
        )


def check_expansion(unpacked: int, packed: int, what: str) -> None:
    """LimitError when so many bytes of content claim to come from so few. packed: their number."""
    if unpacked > FREE_BYTES and unpacked > limits().expansion * packed:
        raise LimitError(
            f"{what}: {packed:,} bytes stand for {unpacked:,}, more than {limits().expansion} times as many, which no "
            f"trained SAE needs, nor codes of rows that differ; {_way_out('expansion', -(-unpacked // max(packed, 1)))}"
        )


_TOLD: Final = {
    "latents": "latents",
    "width": "values of a row",
    "weights_bytes": "bytes of weights",
    "array_bytes": "bytes of an array in memory",
    "walk_cells": "cells of a chunk (rows times latents, under the context prior)",
    "record_items": "items in an array or a map of a header, or a sixteenth of all,",
}


def _way_out(name: str, value: int) -> str:
    kept = {field.name: getattr(limits(), field.name) for field in fields(Limits)}
    kept = {key: old for key, old in kept.items() if old != getattr(Limits(), key)} | {name: value}
    told = ",".join(f"{key}={number}" for key, number in kept.items())
    return f"if you trust it, set {VARIABLE}={told} (saecodec.limits.set_limits({name}={value}))"
