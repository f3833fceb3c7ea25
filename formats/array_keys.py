"""Which of the arrays of a file a key means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from saecodec.errors import InputError

_LISTED = 20  # names in a message


def choose(path: str, names: Sequence[str], key: str | None, describe: Callable[[str], str]) -> str:
    """The name that `key` means; `describe` gives dtype and shape of a name, for the message."""
    if key is None and len(names) == 1:
        return names[0]
    if key is not None and key in names:
        return key
    listing = ", ".join(f"{name!r} {describe(name)}" for name in names[:_LISTED])
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    if not names:
        raise InputError(f"{path}: holds no arrays; expected at least one")
    if key is None:
        raise InputError(f"{path}: holds {len(names)} arrays; choose one with key (--key): {listing}{more}")
    raise InputError(f"{path}: holds no array named {key!r}; expected one of: {listing}{more}")


def refuse_key(path: str, key: str | None) -> None:
    """InputError when there is a key for an array without a name."""
    if key is not None:
        raise InputError(f"{path}: holds one array without a name, so the key {key!r} fits nothing; leave it out")
