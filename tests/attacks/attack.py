"""What an attack is, and the valid files that are made hostile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hostile import (
    golden,
    saec,
)

NAN, INFINITY = float("nan"), float("inf")


@dataclass(frozen=True)
class Attack:
    """A file that a reader must refuse. error: the class of the error; match: a pattern of its message."""

    name: str
    error: str
    match: str
    data: Callable[[], bytes]
    suffix: str = ".saec"

    @property
    def file(self) -> str:
        """Its name in `files/`."""
        return self.name.replace(" ", "_") + self.suffix


TABLES, DECODER, RESIDUAL = (golden(f"{name}.saec") for name in ("tables", "decoder", "residual"))
LAYER_NORM, CONTEXT, INT8 = (golden(f"{name}.saec") for name in ("layer_norm", "context", "weights_int8"))


BARE = [part for part in TABLES if part[0] != "CHNK"]


CODEC = golden("none.saecodec")


WHOLE = saec(TABLES, (300,))
