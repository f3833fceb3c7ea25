"""The checkpoint of a training that is not done: one safetensors file, whose header tells what it is of.

Reading runs no code from it: tensors, and JSON. A checkpoint goes with the settings, the rows and the number of threads
that it tells, for only with these does a training go on as if it had not stopped.
"""

from __future__ import annotations

import json
import os
from typing import Any, Final

from torch import Tensor

from saecodec.errors import CheckpointError, InputError, OutputError
from saecodec.formats.atomic import atomic_output, check_output_path

SUFFIX: Final = ".checkpoint"
_KEY: Final = "saecodec_training"
_VERSION: Final = 1
_OF_ROWS: Final = ("rows", "mean")  # the latter is the squared norm of their mean
_HEADER: Final = 8 << 20  # bytes, of what a checkpoint tells: settings, and a curve of a hundred points


def save_checkpoint(path: str, tensors: dict[str, Tensor], numbers: dict[str, Any], of: dict[str, Any]) -> None:
    """Write a state of `Trainer.state`, in place of an older one. of: what it belongs to, for JSON."""
    from safetensors.torch import save

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = json.dumps({"version": _VERSION, "of": of, "numbers": numbers})
    with atomic_output(path, force=True) as file:
        file.write(save(held, {_KEY: told}))


def load_checkpoint(path: str, of: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state, where it belongs to the same as `of`.

    Raises CheckpointError when the file is none of these, InputError that names what differs when it is of another
    training.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        version, found, numbers = told["version"], dict(told["of"]), dict(told["numbers"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no checkpoint of a training, or a damaged one ({error})") from error
    if version != _VERSION:
        raise CheckpointError(f"{path}: has version {version!r}, this one reads {_VERSION}")
    different = [key for key in of if found.get(key) != json.loads(json.dumps(of[key]))]
    if different:
        key = different[0]
        what = f"its {key} was {found.get(key)!r}, now it is {of[key]!r}"
        if key in _OF_ROWS:
            what = "of other rows, or with another memory for them"
        raise InputError(f"{path}: is of another training: {what}. Resume with what it was, or begin anew (--force)")
    return tensors, numbers


def check_checkpoint(path: str) -> None:
    """Raise OutputError, before any work, when there can be no checkpoint under a name, or when something has it that
    begins as no checkpoint does: that is not replaced, not by force either."""
    check_output_path(path, force=True)
    if os.path.lexists(path) and not _is_checkpoint(path):
        raise OutputError(
            f"{path}: is no checkpoint of a training, and has the name of one; move it, or choose another output"
        )


def _is_checkpoint(path: str) -> bool:
    """Whether a file has the header of a checkpoint, whatever follows it."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _HEADER)))
        return _KEY in header["__metadata__"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return False


def checkpoint_of(output: str | os.PathLike[str]) -> str:
    """Where the checkpoint of an output folder lies: beside it."""
    return os.path.realpath(output) + SUFFIX
