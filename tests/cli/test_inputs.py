"""Every kind of input through the commands: the same rows make the same file, whatever they are stored in."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from saecodec.cli.app import app

BUNDLED = Path(str(files("saecodec") / "bundled"))
SAE = str(BUNDLED / "minilm_l3_sae")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def column(x: Any) -> Any:
    arrow = pytest.importorskip("pyarrow")
    values = arrow.FixedSizeListArray.from_arrays(arrow.array(x.reshape(-1)), x.shape[2])
    ids = arrow.array([[0] * x.shape[1]] * len(x), arrow.list_(arrow.int32(), x.shape[1]))
    return arrow.table({"hook": arrow.FixedSizeListArray.from_arrays(values, x.shape[1]), "token_ids": ids})


def dataset(folder: Path, x: Any) -> str:
    (folder / "cache").mkdir()
    arrow, table = pytest.importorskip("pyarrow"), column(x)
    with arrow.ipc.new_stream(folder / "cache" / "data-00000-of-00001.arrow", table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "cache" / "state.json").write_text(json.dumps(state))
    (folder / "cache" / "dataset_info.json").write_text("{}")
    return "cache"


def parquet(folder: Path, x: Any) -> str:
    pytest.importorskip("pyarrow.parquet").write_table(column(x), folder / "acts.parquet")
    return "acts.parquet"


def hdf5(folder: Path, x: Any) -> str:
    with pytest.importorskip("h5py").File(folder / "acts.h5", "w") as file:
        file["hook"] = x
    return "acts.h5"


def zarr(folder: Path, x: Any) -> str:
    pytest.importorskip("zarr", exc_type=Exception).create_array(str(folder / "acts.zarr"), data=x)
    return "acts.zarr"


def shards(folder: Path, x: Any) -> str:
    for number, part in enumerate(np.array_split(x, 3), start=9):
        torch.save(
            {"states": torch.from_numpy(part.copy()), "input_ids": torch.zeros(2)}, folder / f"shard_{number}.pt"
        )
    return "shard_*.pt"


@pytest.mark.parametrize("store", [dataset, parquet, hdf5, zarr, shards])
def test_an_input_of_any_kind_is_encoded_decoded_and_verified(
    tmp_path: Path, store: Callable[[Path, Any], str]
) -> None:
    x = np.load(BUNDLED / "minilm_l3_rows.npy")[:300].reshape(6, 50, 384)
    np.save(tmp_path / "x.npy", x)
    source = tmp_path / store(tmp_path, x)
    run("encode", tmp_path / "x.npy", "-s", SAE, "-o", tmp_path / "x.saec")
    run("encode", source, "-s", SAE, "-o", tmp_path / "acts.saec")
    assert (tmp_path / "acts.saec").read_bytes() == (tmp_path / "x.saec").read_bytes()
    run("decode", tmp_path / "acts.saec", "-s", SAE, "-o", tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == x.shape
    assert "NMSE" in run("verify", tmp_path / "acts.saec", "-s", SAE, "--against", source)
