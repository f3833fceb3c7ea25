"""The errors of saecodec.

Every error a user can act on derives from `SaecodecError`; its message names the input, what was found, what
was expected, and the way out. Each subclass is one kind of thing that a caller may want to handle.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SaecodecError(Exception):
    """Base class of every error that saecodec raises on purpose."""


class InputError(SaecodecError):
    """The activations, codes or options given cannot be coded (shape, dtype, NaN, a step that is too small)."""


class TargetError(InputError):
    """The distortion or rate asked for cannot be reached; the message says what can."""


class OutputError(SaecodecError):
    """The output cannot be written as asked (it exists, its format cannot hold the dtype, its folder is missing)."""


class FormatError(SaecodecError):
    """The bytes read are not what the format demands: truncated, corrupted, or inconsistent."""


class UnsupportedError(SaecodecError):
    """The input is well-formed, but needs something this version does not do; the message names it."""


class LimitError(SaecodecError):
    """The input asks for more memory or time than a reader gives unasked (`saecodec.limits`); the message says how to
    raise the limit. The input may be fine."""


class CheckpointError(SaecodecError):
    """An SAE checkpoint is incomplete or contradicts itself."""


class IdentityError(SaecodecError):
    """The SAE or codec given is not the one the file was made with; the message names both identities."""


class MissingPieceError(SaecodecError):
    """Decoding or encoding needs an SAE or a codec that was not given; the message names it."""


@contextmanager
def named(path: str) -> Iterator[None]:
    """Puts the name of an input before what is wrong with its rows, or with what they come to."""
    try:
        yield
    except (InputError, LimitError) as error:
        if str(error).startswith(path):
            raise
        raise type(error)(f"{path}: {error}") from error
