"""How a cache of delphi is laid out: which splits there are, and what is beside them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from saecodec.errors import InputError

CONFIG: Final = "config.json"
TOKEN: Final = "token"
"""Name of the column of token ids."""
MAX_SPLITS: Final = 128
"""Each is an open file or two."""
USER_KEY: Final = "delphi"
"""Where a file made from a cache keeps its `Layout`, among the user's metadata."""
SPLIT: Final = re.compile(r"(0|[1-9]\d*)_(\d+)\.safetensors")
INTEGERS: Final = ("U16", "I16", "U32", "I32", "I64", "U64")


@dataclass(frozen=True)
class Split:
    """The file of the latents first..last, and the safetensors dtype of its locations."""

    first: int
    last: int
    locations: str

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.first}_{self.last}.safetensors"


@dataclass(frozen=True)
class Layout:
    """How a cache is laid out, so that it can be written back as it was. tokens: their safetensors dtype, "" for none.
    config: the text of `config.json`, None when there is none."""

    splits: tuple[Split, ...]
    tokens: str
    config: str | None

    def to_text(self) -> str:
        """As JSON."""
        splits = [[split.first, split.last, split.locations] for split in self.splits]
        return json.dumps({"splits": splits, "tokens": self.tokens, "config": self.config})

    @classmethod
    def of_text(cls, text: str, n_latents: int, what: str) -> Layout:
        """The inverse of `to_text`; InputError unless it is a layout of `n_latents` latents."""
        try:
            found = json.loads(text)
            splits = tuple(Split(int(first), int(last), str(code)) for first, last, code in found["splits"])
            tokens, config = found["tokens"], found["config"]
            check_splits(splits, what)
            fine = splits[-1].last < n_latents and {split.locations for split in splits} <= set(INTEGERS)
            if not fine or tokens not in ("", *INTEGERS) or not isinstance(config, (str, type(None))):
                raise ValueError("values out of range")
            (config or "").encode()  # JSON can hold surrogates, which a file cannot
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"{what}: its metadata {USER_KEY!r} is not the layout of a delphi cache ({error})"
            ) from error
        return cls(splits, tokens, config)


def check_splits(splits: tuple[Split, ...], what: str) -> None:
    """InputError unless there are splits, in order, that do not overlap."""
    ends = [-1, *(split.last for split in splits)]
    bad = next((s for s, end in zip(splits, ends, strict=False) if s.first <= end or s.last < s.first - 1), None)
    if len(splits) > MAX_SPLITS:
        raise InputError(f"{what}: has {len(splits)} splits; at most {MAX_SPLITS} are supported")
    if not splits or bad is not None:
        found = f"{bad.name} overlaps another split or is empty" if bad else "there is no split"
        raise InputError(f"{what}: {found}; expected files <first latent>_<last latent>.safetensors")


def is_cache_file(name: str) -> bool:
    """Whether a name is one of a file in a cache folder."""
    return name == CONFIG or SPLIT.fullmatch(name) is not None


def default_splits(n_latents: int, n_splits: int) -> tuple[Split, ...]:
    """Ranges of latents as delphi makes them; the dtype of locations is chosen when they are known ("")."""
    import torch

    edges = torch.linspace(0, n_latents, steps=n_splits + 1).long().tolist()
    ranges = [(first, end - 1) for first, end in pairwise(edges) if end > first]
    return tuple(Split(first, last, "") for first, last in ranges)
