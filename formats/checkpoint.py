"""An SAE checkpoint on disk, before it is known whose it is: a weights file, the names in it, and configs beside it.

Nothing is unpickled: `.pt` files are read through `torch.load(weights_only=True)` alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saecodec.errors import CheckpointError, LimitError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from saecodec.sae import SAE

_TORCH: Final = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES: Final = (".safetensors", ".npz", *_TORCH)
_LARGEST_CONFIG: Final = 1 << 23
_NESTED: Final = ("sae", "state_dict", "model", "model_state_dict")
"""Where a `.pt` file keeps its state dict, if not at its top."""


@dataclass(frozen=True)
class Options:
    """What a user says of a checkpoint that does not say it itself. k: of top-k. part: which SAE of a file of several
    (`path#part`)."""

    k: int | None = None
    part: str | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A weights file. path: what was asked for. file: the weights. options: see `Options`."""

    path: Path
    file: Path
    options: Options = Options()

    def config(self, *names: str) -> dict[str, Any] | None:
        """The first JSON object of these names beside the weights, or in the folder above; None without one.

        CheckpointError when it is none.
        """
        for folder in (self.file.parent, self.file.parent.parent):
            for name in names:
                if (folder / name).is_file():
                    return read_config(folder / name)
        return None

    @cached_property
    def values(self) -> Mapping[str, Any]:
        """What is in the file, by name: tensors, and of `.pt` files numbers and texts too."""
        return _read(self.file)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of what is in the file, without reading more than has to be."""
        if self.file.suffix == ".safetensors":
            return frozenset(_safetensors_names(self.file))
        return frozenset(self.values)

    def tensors(self, *names: str) -> list[Tensor]:
        """Tensors of the file as float32. CheckpointError names what is missing or no tensor of real numbers."""
        import torch

        out = []
        for name in names:
            value = self.values.get(name)
            if not isinstance(value, torch.Tensor) or value.is_complex():
                found = sorted(map(str, self.values))[:20]
                raise CheckpointError(f"{self.file}: tensor {name!r} is missing (found {', '.join(found)})")
            out.append(value.to(torch.float32))
        return out

    def scalar(self, name: str) -> float | None:
        """A number of the file, be it a tensor of one value or a plain number; None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.file}: {name} is {value!r}, expected one number") from error

    def k(self, found: Any) -> int:
        """k of a top-k: what the checkpoint says (`found`), else what the user says. CheckpointError when both do and
        differ, or neither does."""
        asked = self.options.k
        if found is None:
            if asked is None:
                raise CheckpointError(
                    f"{self.path}: the checkpoint does not say how many latents are active: give it (--sae-k K, or "
                    "load_sae(path, k=K))"
                )
            found = asked
        if isinstance(found, bool) or not isinstance(found, (int, float)) or found < 1 or found % 1 != 0:
            raise CheckpointError(f"{self.path}: k is {found!r}, expected a positive integer")
        if asked is not None and asked != found:
            raise CheckpointError(f"{self.path}: k = {asked} was given, but the checkpoint says {int(found)}")
        return int(found)

    @property
    def name(self) -> str:
        """For people: the folder's name, or the file's."""
        path = self.path.resolve()
        return path.name if path.is_dir() else f"{path.parent.name}/{path.name}"


@dataclass(frozen=True)
class Family:
    """Checkpoints of one library, and what `docs/checkpoints.md` says of them.

    name, layout, architectures, side, refused: for people; layout: the files and what tells them apart. matches:
    whether a checkpoint is one of them, by content. load: CheckpointError when it is damaged, UnsupportedError when it
    is of a kind that cannot be coded.
    """

    name: str
    layout: str
    architectures: str
    side: str
    refused: str
    matches: Callable[[Checkpoint], bool]
    load: Callable[[Checkpoint], SAE]


def transcoder(path: Path, told: str) -> UnsupportedError:
    """The error for SAEs that do not reconstruct what they encode. told: what the checkpoint says of it."""
    return UnsupportedError(
        f"{path}: {told}: a transcoder, whose latents stand for another activation than the one they are computed "
        "from, so rows cannot be coded; the latents can, on their own (encode --latents)"
    )


def skip_connection(path: Path, told: str) -> UnsupportedError:
    """The error for SAEs whose decoder would need x. told: what the checkpoint says of it."""
    return UnsupportedError(
        f"{path}: {told}: a skip connection adds x W_skip to what the latents say, which a decoder without x cannot; "
        "the latents can be coded on their own (encode --latents)"
    )


def candidates(path: Path, options: Options) -> Iterator[list[Checkpoint]]:
    """The weights files that a path may stand for: itself, or those in a folder, then those further down."""
    if path.is_file():
        yield [Checkpoint(path, path, options)]
        return
    for pattern in ("*", "*/*", "*/*/*", "*/*/*/*"):
        found = sorted(file for file in path.glob(pattern) if file.suffix in SUFFIXES and file.is_file())
        yield [Checkpoint(path, file, options) for file in found]


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object; CheckpointError when it is none."""
    try:
        if path.stat().st_size > _LARGEST_CONFIG:
            raise ValueError("it is larger than 8 MiB")
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return raw


def _safetensors_names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error
    return _read_npz(path) if path.suffix == ".npz" else _read_torch(path)


def _read_npz(path: Path) -> dict[str, Any]:
    import numpy as np
    import torch

    from saecodec.formats.zip_members import check_members

    try:
        # Opened here: numpy leaves a file open that is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            check_members(archive.zip, str(path))
            return {name: torch.from_numpy(np.array(archive[name])) for name in archive.files}
    except LimitError:
        raise
    except Exception as error:  # headers are parsed as Python literals, and members by zipfile: nearly anything
        raise CheckpointError(f"{path}: cannot be read as an npz archive of arrays ({error})") from error


def _read_torch(path: Path) -> dict[str, Any]:
    import torch

    from saecodec.formats.zip_members import check_zip

    try:
        check_zip(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except LimitError:
        raise
    except Exception as error:  # corrupt files make the unpickler raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnsupportedError(
            f"{path}: cannot be loaded as tensors alone, and nothing that would run code is: {reason}; save its "
            "state_dict() instead"
        ) from error
    for name in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, expected a state dict")
    return {str(name): value for name, value in loaded.items()}
