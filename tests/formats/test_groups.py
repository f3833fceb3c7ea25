"""A group's bits, error and latents are those of its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from coded_rows import coded, identity_sae

from saecodec.errors import InputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.groups import MAX_GROUPS, Groups, GroupTable
from saecodec.formats.measuring import Extras, measure_array
from saecodec.formats.point import Ground, Point, read_point
from saecodec.formats.read_back import Decoded
from saecodec.formats.selection import Selection
from saecodec.goal import Goal
from saecodec.sae import SAE

Rows = npt.NDArray[np.float32]
N = 300


@pytest.fixture(scope="module")
def rows(sae: SAE) -> Rows:
    """The later, the larger."""
    x = np.random.default_rng(0).normal(size=(N, sae.width)).astype(np.float32)
    return x * np.linspace(0.2, 3, N, dtype=np.float32)[:, None]


def table(x: Rows, sae: SAE, labels: npt.NDArray[Any], **options: Any) -> tuple[dict[str, list[Any]], Point, Any]:
    """The columns, the point, and bits of each row's latents, (T, F)."""
    groups, ground = Groups(labels), Ground(MemoryArray(x))
    dense = np.zeros((len(x), sae.n_latents))

    def watch(chunk: Decoded) -> None:
        codes = chunk.layers.codes
        np.add.at(dense, (chunk.first_row + codes.rows(), codes.latents), chunk.support + chunk.levels)

    collected = GroupTable(groups, sae.n_latents)
    with coded(x, sae, **options) as file:
        point = read_point(file, ground, [collected.add, watch])
    return collected.columns(point, ground), point, dense


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("n_groups", [1, 4, 70])
def test_columns_are_those_of_the_rows(sae: SAE, rows: Rows, n_groups: int, residual: bool) -> None:
    labels = np.random.default_rng(n_groups).integers(0, n_groups, N)
    found, point, dense = table(rows, sae, labels, goal=Goal.of(residual=residual))
    names = [str(name) for name in np.unique(labels)]
    assert found["group"] == names
    spread = np.square(rows - rows.mean(0, dtype=np.float64)).sum(1)
    for i, name in enumerate(names):
        here = labels == int(name)
        assert found["rows"][i] == here.sum()
        assert found["bits"][i] == pytest.approx(point.rows.bits[here].mean())
        assert found["nmse"][i] == pytest.approx(point.rows.squared_error[here].sum() / spread[here].sum(), rel=1e-5)
        assert found["share_of_bits"][i] == pytest.approx(point.rows.bits[here].sum() / point.rows.bits.sum())
        beyond = dense[here].mean(0) - dense.mean(0)
        named = [int(latent) for latent in found["latents"][i].split()]
        best = np.sort(beyond)[::-1][: min(5, (beyond > 1e-9).sum())]
        np.testing.assert_allclose(beyond[named][: len(best)], best, rtol=1e-6)
        assert n_groups == 1 or named


def test_groups_add_up_to_all_rows(sae: SAE, rows: Rows) -> None:
    found, point, _ = table(rows, sae, np.arange(N) % 7)
    count = np.array(found["rows"])
    assert count.sum() == N
    assert count @ found["bits"] + point.rows.shared == pytest.approx(8 * point.file_bytes)
    assert sum(found["share_of_bits"]) == pytest.approx(1)
    assert np.corrcoef(table(rows, sae, np.arange(N) // 30)[0]["bits"], np.arange(10))[0, 1] > 0.9


def test_a_group_is_about_the_latents_that_fire_in_it_alone() -> None:
    sae = identity_sae()
    rng = np.random.default_rng(0)
    labels = np.array(["dogs", "cats"])[rng.integers(0, 2, 400)]
    x = np.full((400, 8), -1.0, np.float32)
    x[:, 7] = rng.random(400) + 1  # in all rows
    x[labels == "dogs", 3] = rng.random((labels == "dogs").sum()) + 1
    x[labels == "cats", 5] = rng.random((labels == "cats").sum()) + 1
    found, *_ = table(x, sae, labels)
    assert found["group"] == ["cats", "dogs"]
    assert [text.split()[0] for text in found["latents"]] == ["5", "3"]
    assert all("7" not in text.split()[:1] for text in found["latents"])


def test_a_group_of_rows_at_the_mean_has_no_nmse(sae: SAE) -> None:
    x = np.random.default_rng(0).integers(-3, 4, (40, sae.width)).astype(np.float32)
    x[20:] = -x[:20]  # the mean is 0
    x[0] = x[20] = 0
    found, *_ = table(x, sae, (np.arange(40) % 20 == 0).astype(int))
    assert found["nmse"][0] is not None
    assert found["nmse"][1] is None


# -- labels in files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, names",
    [
        (np.array([3, -1, 3, 10]), ["-1", "3", "10"]),
        (np.array([True, False, True, True]), ["False", "True"]),
        (np.array(["b", "ä", "b", ""]), ["", "b", "ä"]),
        (np.array(["b", "ä", "b", "a"]).astype("U").view(), ["a", "b", "ä"]),
        (np.array([b"b", "ä".encode(), b"b", b"\xff"]), ["b", "ä", "\ufffd"]),
        (np.array([[2, 1], [2, 0]], np.uint8), ["0", "1", "2"]),
    ],
)
def test_labels_of_any_kind(tmp_path: Path, labels: npt.NDArray[Any], names: list[str]) -> None:
    np.save(tmp_path / "labels", labels)
    groups = Groups.load(tmp_path / "labels.npy", 4, np.arange(4))
    assert groups.names == names
    assert groups.index.shape == (4,)
    assert groups.index[0] == groups.index[2]
    assert len(set(groups.index.tolist())) == 3 - (labels.dtype == bool)


def test_labels_of_rows_that_stay(tmp_path: Path) -> None:
    np.save(tmp_path / "labels", np.array(["gone", "a", "gone", "b", "a"]))
    groups = Groups.load(tmp_path / "labels.npy", 5, np.array([1, 3, 4]))
    assert (groups.names, groups.index.tolist()) == (["a", "b"], [0, 1, 0])


@pytest.mark.parametrize(
    "labels, message",
    [
        (np.arange(3), "holds int64 of shape \\(3,\\); expected a label, integer or string, for each of 4 rows"),
        (np.zeros(4), "holds float64"),
        (np.array([None] * 4), "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    if labels is not None:
        np.save(tmp_path / "labels", labels, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        Groups.load(tmp_path / "labels.npy", 4, np.arange(4))


def test_too_many_groups_are_refused() -> None:
    assert len(Groups(np.arange(MAX_GROUPS)).names) == MAX_GROUPS
    with pytest.raises(InputError, match=f"at most {MAX_GROUPS}"):
        Groups(np.arange(MAX_GROUPS + 1))


def test_a_measure_tells_groups_of_the_rows_that_stay(sae: SAE, rows: Rows, tmp_path: Path) -> None:
    labels = np.array(["a", "b", "c"])[np.arange(N) % 3]
    np.save(tmp_path / "labels", labels)
    np.save(tmp_path / "mask", labels != "a")
    extras = Extras(group=str(tmp_path / "labels.npy"))
    report = measure_array(
        MemoryArray(rows), sae=sae, extras=extras, selection=Selection(mask=str(tmp_path / "mask.npy"))
    )
    columns = report["detail"]["groups"]["columns"]
    assert (columns["group"], columns["rows"]) == (["b", "c"], [100, 100])
    assert np.mean(columns["bits"]) < report["bits_per_row"]
    assert np.mean(columns["bits"]) > report["bits_per_row"] - 8 * (report["bytes"]["tables"] + 500) / 200
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_no_rows_have_no_groups(sae: SAE, tmp_path: Path) -> None:
    np.save(tmp_path / "labels", np.zeros(0, np.int64))
    extras = Extras(group=str(tmp_path / "labels.npy"))
    report = measure_array(MemoryArray(np.zeros((0, sae.width), np.float32)), sae=sae, extras=extras)
    assert report["detail"] is None


def test_more_groups_of_latents_than_a_table_holds_are_refused_before_there_is_memory_for_them() -> None:
    groups = Groups(np.arange(MAX_GROUPS))
    for n_latents in ((1 << 17) + 1, 1 << 60):
        with pytest.raises(InputError, match=f"256 groups of {n_latents} latents are too many for a table"):
            GroupTable(groups, n_latents)
    GroupTable(Groups(np.arange(2)), (1 << 17) + 1)
