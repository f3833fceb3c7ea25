"""Which of the arrays of a file a key means, and which one is meant without a key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from saecodec.errors import InputError
from saecodec.formats.array_source import ITEM_BYTES

_LISTED = 20  # names in a message


class Listed(NamedTuple):
    """An array in a file: what messages say of it, and whether it may be activations."""

    text: str
    likely: bool

    @classmethod
    def of(cls, dtype: str, shape: tuple[int, ...]) -> Listed:
        """By its dtype and shape: activations are floats of two dimensions or more."""
        return cls(f"{dtype} {shape}", dtype in ITEM_BYTES and len(shape) >= 2)


def choose(path: str, names: Sequence[str], key: str | None, describe: Callable[[str], Listed]) -> str:
    """The name that `key` means; without a key the only array, or the only one that may be activations.

    Raises:
        InputError: there is no such array, or more than one; the message lists them all.
    """
    if key is not None and key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    if key is None:
        likely = [name for name in names if describe(name).likely]
        if len(likely) == 1:
            return likely[0]
    if not names:
        raise InputError(f"{path}: holds no arrays; expected at least one")
    listing = ", ".join(f"{name!r} {describe(name).text}" for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    if key is None:
        raise InputError(f"{path}: holds {len(names)} arrays; choose one with key (--key): {listing}{more}")
    raise InputError(f"{path}: holds no array named {key!r}; expected one of: {listing}{more}")


def refuse_key(path: str, key: str | None) -> None:
    """InputError when there is a key for an array without a name."""
    if key is not None:
        raise InputError(f"{path}: holds one array without a name, so the key {key!r} fits nothing; leave it out")
