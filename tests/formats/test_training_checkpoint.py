"""Checkpoints of trainings: what is written is read back, and whatever else a file holds is refused."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from saecodec.errors import CheckpointError, InputError
from saecodec.formats.training_checkpoint import checkpoint_of, load_checkpoint, save_checkpoint

TENSORS = {"a": torch.randn(3, 2), "t": torch.randn(4, 3).t(), "n": torch.arange(4), "s": torch.tensor(0.1).double()}
NUMBERS = {"trainer": {"steps_done": 3, "gap": 0.1 + 0.2}, "told": {"seconds": 1e-300, "curve": [[1, 2.5]]}}
OF = {"settings": {"n_latents": 8, "nested": [2]}, "rows": (10, 3, 9), "mean": 1 / 3, "threads": 1}


def saved(folder: Path) -> str:
    path = str(folder / "sae.checkpoint")
    save_checkpoint(path, TENSORS, NUMBERS, OF)
    return path


def test_a_state_comes_back(tmp_path: Path) -> None:
    tensors, numbers = load_checkpoint(saved(tmp_path), OF)
    assert numbers == NUMBERS
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    save_checkpoint(saved(tmp_path), {"b": torch.zeros(1)}, {}, OF)
    assert load_checkpoint(saved(tmp_path), OF)[1] == NUMBERS, "the newest one replaces the others"
    assert [path.name for path in tmp_path.iterdir()] == ["sae.checkpoint"]


@pytest.mark.parametrize(
    "key, value", [("settings", {"n_latents": 9}), ("rows", (10, 3, 8)), ("mean", 0.33), ("threads", 2), ("new", 1)]
)
def test_a_state_of_another_training_is_refused_by_what_differs(tmp_path: Path, key: str, value: Any) -> None:
    told = "of other rows, or with another memory" if key in ("rows", "mean") else f"its {key} was .*now it is"
    with pytest.raises(InputError, match=rf"{told} .*--force"):
        load_checkpoint(saved(tmp_path), OF | {key: value})


def test_cut_files_are_refused(tmp_path: Path) -> None:
    path = Path(saved(tmp_path))
    whole = path.read_bytes()
    for n in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:n])
        with pytest.raises(CheckpointError, match=r"sae\.checkpoint: is no checkpoint of a training"):
            load_checkpoint(str(path), OF)


def of_header(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def telling(told: Any) -> bytes:
    return save({"a": torch.zeros(1)}, {"saecodec_training": told if isinstance(told, str) else json.dumps(told)})


GOOD = {"version": 1, "of": OF, "numbers": NUMBERS}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04\x95" + bytes(50),
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", 100) + b"{",
        of_header(b"[" * 100_000),
        of_header(b"{}"),
        of_header(b"[]"),
        of_header(b'{"__metadata__": 3}'),
        of_header(json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}).encode()),
        of_header(json.dumps({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}).encode()) + bytes(4),
        save({"a": torch.zeros(1)}),
        telling(""),
        telling("{"),
        telling("[" * 200_000),
        telling([]),
        telling(3),
        telling(None),
        telling({}),
        telling({"version": 1}),
        telling(GOOD | {"of": None}),
        telling(GOOD | {"of": 7}),
        telling(GOOD | {"of": ["settings"]}),
        telling(GOOD | {"numbers": "x"}),
        telling(GOOD | {"numbers": [1]}),
    ],
    ids=lambda content: repr(content[:20]),
)
def test_whatever_else_a_file_holds_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sae.checkpoint"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"sae\.checkpoint: is no checkpoint of a training, or a damaged one"):
        load_checkpoint(str(path), OF)


@pytest.mark.parametrize("version", [0, 2, "1", None, [], math.nan])
def test_another_version_is_named(tmp_path: Path, version: Any) -> None:
    path = tmp_path / "sae.checkpoint"
    path.write_bytes(telling(GOOD | {"version": version}))
    with pytest.raises(CheckpointError, match=r"has version .*, this one reads 1"):
        load_checkpoint(str(path), OF)


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError):
            load_checkpoint(str(path), OF)


def test_it_lies_beside_the_output(tmp_path: Path) -> None:
    expected = str(tmp_path / "sae.checkpoint")
    assert checkpoint_of(tmp_path / "sae") == checkpoint_of(f"{tmp_path}/sae/") == expected
