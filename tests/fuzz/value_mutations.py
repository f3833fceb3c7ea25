"""Mutations of records: maps, lists, numbers and texts, as JSON and MessagePack have them."""

from __future__ import annotations

import copy
import json
import math
import random
from contextlib import suppress
from typing import Any

_NUMBERS = (0, 1, -1, 2, 3, 255, 1 << 16, 1 << 24, (1 << 31) - 1, 1 << 32, 1 << 48, (1 << 63) - 1, 1 << 70, 10**400)
_FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e300, math.inf, -math.inf, math.nan)
_OTHERS = (None, True, False, "", "x", "\ud800", "\0", "é" * 100, [], {}, [[]], {"": {}}, [1, 2], b"", b"\0" * 32)


def mutated_value(value: Any, rng: random.Random) -> Any:
    """A copy of `value` in which one thing is another: a number, a type, a key that is gone or new."""
    out = copy.deepcopy(value)
    places = list(_places(out))
    if not places or rng.random() < 0.01:
        return _instead(out, rng, [])
    holder, key = rng.choice(places)
    values = [place[0][place[1]] for place in places]
    what = rng.randrange(10)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[rng.choice(("", "k", "x" * 300, str(key).upper(), "shape", "dtype"))] = _instead(None, rng, values)
    elif what == 1:
        holder.insert(key, copy.deepcopy(rng.choice(values)))
    else:
        holder[key] = _instead(holder[key], rng, values)
    return out


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) in nested maps and lists."""
    out: list[tuple[Any, Any]] = []
    todo = [value]
    while todo:
        holder = todo.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        out += [(holder, key) for key in keys]
        todo += [holder[key] for key in keys]
    return out


def _instead(value: Any, rng: random.Random, others: list[Any]) -> Any:
    """Something in the place of `value`: often of its type, sometimes one of the values beside it."""
    what = rng.random()
    if what < 0.15 and others:
        return copy.deepcopy(rng.choice(others))
    if what < 0.3:
        return rng.choice(_OTHERS)
    if what < 0.6 and isinstance(value, str) and value.startswith("{"):  # JSON in a text
        with suppress(ValueError, TypeError, RecursionError):
            return json.dumps(mutated_value(json.loads(value), rng))
    if what < 0.6 and isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(("", "_", "/", "..", "0", "\n", "%s")) + value[at + rng.randrange(2) :]
    if what < 0.6 and isinstance(value, bytes) and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.randbytes(1) + value[at + rng.randrange(3) :]
    if what < 0.6 and isinstance(value, (int, float)) and abs(value) < 1 << 64:
        return value + rng.choice((-1, 1)) if rng.random() < 0.5 else value * rng.choice((-1, 2, 0.5, 1 << 20))
    return rng.choice(_FLOATS if rng.random() < 0.3 else _NUMBERS)
