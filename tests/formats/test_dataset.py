"""Batches of rows for training: every row once, by whoever takes part, mixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils.data import DataLoader

import saecodec
from saecodec.errors import InputError
from saecodec.formats import dataset
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.dataset import SaecDataset
from saecodec.formats.encoding import encode_array
from saecodec.sae import SAE

Rows = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, sae: SAE) -> list[Path]:
    """Three files, of 150, 0 and 90 rows."""
    folder, rng = tmp_path_factory.mktemp("dataset"), np.random.default_rng(0)
    out = []
    for i, n in enumerate((150, 0, 90)):
        out.append(folder / f"{i}.saec")
        encode_array(MemoryArray(rng.normal(size=(n, 8)).astype(np.float32)), out[-1], sae=sae, chunk_rows=16)
    return out


@pytest.fixture(scope="module")
def rows(paths: list[Path], sae: SAE) -> Rows:
    return np.concatenate([np.asarray(saecodec.open(path, sae=sae)) for path in paths])


def in_order(rows: Rows) -> Rows:
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("batch_rows", [1, 7, 16, 64, 1000])
def test_without_shuffling_rows_come_as_they_lie(paths: list[Path], sae: SAE, rows: Rows, batch_rows: int) -> None:
    data = SaecDataset(paths, sae=sae, batch_rows=batch_rows, shuffle=False)
    batches = list(data)
    assert (data.n_rows, data.width) == (240, 8)
    assert {len(batch) for batch in batches[:-1]} <= {batch_rows}
    np.testing.assert_allclose(torch.cat(batches).numpy(), rows, rtol=0, atol=1e-5)


def test_shuffled_rows_are_all_there_once_and_far_from_where_they_were(paths: list[Path], sae: SAE, rows: Rows) -> None:
    data = SaecDataset(paths, sae=sae, batch_rows=32, seed=1)
    first, again = torch.cat(list(data)).numpy(), torch.cat(list(data)).numpy()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(in_order(first), in_order(rows), rtol=0, atol=1e-5)
    assert (np.abs(first - rows).max(axis=1) > 1e-3).mean() > 0.9
    data.set_epoch(1)
    assert (torch.cat(list(data)).numpy() != first).any()
    assert [len(batch) for batch in SaecDataset(paths, sae=sae, batch_rows=32, drop_last=True)] == [32] * 7


@pytest.mark.parametrize("world_size, workers", [(1, 2), (2, 0), (3, 0), (2, 2)])
def test_ranks_and_workers_share_the_rows(
    paths: list[Path], sae: SAE, rows: Rows, world_size: int, workers: int
) -> None:
    found = []
    for rank in range(world_size):
        data = SaecDataset(paths, sae=sae, batch_rows=10, rank=rank, world_size=world_size, even=False)
        context = "fork" if workers else None
        found += list(DataLoader(data, batch_size=None, num_workers=workers, multiprocessing_context=context))
    np.testing.assert_allclose(in_order(torch.cat(found).numpy()), in_order(rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_get_equally_many_batches(paths: list[Path], sae: SAE, drop_last: bool) -> None:
    options = {"sae": sae, "batch_rows": 20, "drop_last": drop_last, "world_size": 3}
    counts = [len(list(SaecDataset(paths, rank=rank, **options))) for rank in range(3)]  # type: ignore[arg-type]
    assert len(set(counts)) == 1
    assert counts[0] >= 3


def test_workers_that_stay_shuffle_each_epoch_anew(paths: list[Path], sae: SAE) -> None:
    data = SaecDataset(paths, sae=sae, batch_rows=50)
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    first = torch.cat(list(loader))
    data.set_epoch(1)
    assert (torch.cat(list(loader)) != first).any()


def test_many_files_share_an_sae_and_few_are_open(tmp_path: Path, sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_OPEN_FILES", 2)
    paths = [tmp_path / f"{i}.saec" for i in range(5)]
    for path in paths:
        encode_array(MemoryArray(np.ones((20, 8), np.float32)), path, sae=sae, embed="decoder", chunk_rows=8)
    data = SaecDataset(paths, batch_rows=7)
    batches = list(data)
    assert sum(map(len, batches)) == 100
    assert len(data._held) == 2
    assert len({id(file.decoder.sae.w_dec) for file in data._held.values()}) == 1  # type: ignore[union-attr]
    assert all(batch.untyped_storage().nbytes() == 4 * batch.numel() for batch in batches)


def test_spawned_workers_open_the_files_again(paths: list[Path], sae: SAE, rows: Rows) -> None:
    data = SaecDataset(paths, sae=sae, batch_rows=50)
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    np.testing.assert_allclose(in_order(torch.cat(list(loader)).numpy()), in_order(rows), rtol=0, atol=1e-5)


def test_what_makes_no_batches_is_refused(
    paths: list[Path], sae: SAE, make_sae: Callable[..., SAE], tmp_path: Path
) -> None:
    wide = make_sae(width=6)
    encode_array(MemoryArray(np.ones((4, 6), np.float32)), tmp_path / "wide.saec", sae=wide)
    with pytest.raises(InputError, match=r"these files have \[6, 8\]"):
        SaecDataset([*paths, tmp_path / "wide.saec"], sae=sae)
    with pytest.raises(InputError, match="expected 1 or more"):
        SaecDataset(paths, sae=sae, batch_rows=0)
    with pytest.raises(InputError, match="rank 2 of 2"):
        SaecDataset(paths, sae=sae, rank=2, world_size=2)
    with pytest.raises(InputError, match="one file or more"):
        SaecDataset([], sae=sae)


def test_an_sae_is_trained_from_it(paths: list[Path], sae: SAE) -> None:
    torch.manual_seed(0)
    encode, decode = torch.nn.Linear(8, 24), torch.nn.Linear(24, 8)
    optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], 1e-2)
    losses = []
    data = SaecDataset(paths, sae=sae, batch_rows=60)
    for epoch in range(40):
        data.set_epoch(epoch)
        for x in data:
            z = torch.relu(encode(x))
            loss = (decode(z) - x).square().mean() + 1e-4 * z.abs().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert np.mean(losses[-4:]) < 0.2 * np.mean(losses[:4])
