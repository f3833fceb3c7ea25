"""The version of the bitstream, the features a reader must know, and the check that every header goes through."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from saecodec.errors import FormatError, UnsupportedError
from saecodec.frames import field, shown

MAJOR_VERSION: Final = 1
RESIDUAL: Final = "layer:residual"
LATENTS: Final = "content:latents"
SIDE: Final = "side:rows"
INTEGER_WEIGHTS: Final = "weights:int8"
_PRIOR: Final = "prior:"
FEATURES: Final = {"prior:factorized": 0, RESIDUAL: 1, "prior:context": 2, SIDE: 3, LATENTS: 4, INTEGER_WEIGHTS: 5}
"""The minor version that each feature came with."""


def required(prior: str, *, residual: bool, side: bool = False) -> list[str]:
    """What a reader must know of a codec: its prior, the residual layer and side information where it has them."""
    return [_PRIOR + prior, *([RESIDUAL] if residual else []), *([SIDE] if side else [])]


def table_kinds(requires: Collection[str]) -> tuple[str, ...]:
    """Types of the frames that hold a codec's tables, in their order."""
    return ("TABL", *(["SIDE"] if SIDE in requires else []), *(["RTAB"] if RESIDUAL in requires else []))


def versioned(requires: list[str]) -> dict[str, Any]:
    """The header fields that `check_version` reads: the oldest version that has all of `requires`."""
    return {"version": [MAJOR_VERSION, max(FEATURES[name] for name in requires)], "requires": requires}


def check_prior(record: dict[str, Any], prior: str, what: str) -> None:
    """FormatError unless `requires` names this prior and no other."""
    named = [name for name in record["requires"] if name.startswith(_PRIOR)]
    if named != [_PRIOR + prior]:
        raise FormatError(f"{what}: requires {shown(named)} where the prior is {prior!r}")


def check_version(record: dict[str, Any], what: str) -> None:
    """UnsupportedError when a file was written in a later major version, or needs a feature this one lacks."""
    version, requires = field(record, "version", list, what), field(record, "requires", list, what)
    if len(version) != 2 or not all(type(n) is int and n >= 0 for n in version) or version[0] < 1:
        raise FormatError(f"{what}: version {shown(version)} is not a pair [major, minor]")
    if not all(isinstance(name, str) for name in requires):
        raise FormatError(f"{what}: requires {shown(requires)} is not a list of names")
    if version[0] > MAJOR_VERSION:
        found = f"{version[0]}.{version[1]}"
        raise UnsupportedError(
            f"{what}: written in format version {found}, this reads up to {MAJOR_VERSION}: update saecodec"
        )
    unknown = [name for name in requires if name not in FEATURES]
    if unknown:
        raise UnsupportedError(f"{what}: needs {', '.join(unknown)}, unknown to this version: update saecodec")
