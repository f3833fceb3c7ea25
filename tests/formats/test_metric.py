"""A distortion of the user's own sees all rows, once, in order, as the file decodes."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from coded_rows import coded

from saecodec.bootstrap import interval
from saecodec.errors import InputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.measuring import Extras, measure_array
from saecodec.formats.metric import Function, Metric
from saecodec.formats.point import Ground, read_point
from saecodec.formats.selection import Selection
from saecodec.sae import SAE

Rows = npt.NDArray[np.float32]


def squared_error(x: Rows, x_hat: Rows) -> Any:
    return np.square(x.astype(np.float64) - x_hat).sum(1)


def facts(
    x: Rows, sae: SAE, function: Function, ids: npt.NDArray[np.int64] | None = None
) -> tuple[dict[str, Any], Ground]:
    ground = Ground(MemoryArray(x), ids)
    watch = Metric("mine", function).watch(ground)
    with coded(x, sae, chunk_rows=16) as file:
        read_point(file, ground, [watch.add])
    return watch.facts(), ground


def test_it_sees_the_rows_and_what_the_file_gives(sae: SAE, x: Rows) -> None:
    seen: list[Rows] = []
    facts(x, sae, lambda *both: seen.extend(both) or 1.0)
    with coded(x, sae, chunk_rows=16) as file:
        np.testing.assert_array_equal(seen[1], file.rows())
    np.testing.assert_array_equal(seen[0], x)
    assert [part.dtype for part in seen] == [np.float32, np.float32]


def test_one_number_a_row_has_an_interval(sae: SAE, x: Rows) -> None:
    ids = np.repeat(np.arange(8), 5)
    found, ground = facts(x, sae, squared_error, ids)
    with coded(x, sae, chunk_rows=16) as file:
        error = squared_error(x, file.rows())
    assert found["metric"] == pytest.approx(error.mean())
    assert found["metric_interval"] == interval(ground.means(error)[1:])
    assert found["metric_interval"][0] < found["metric"] < found["metric_interval"][1]


@pytest.mark.parametrize("one", [lambda x, y: 3, lambda x, y: np.float32(3), lambda x, y: torch.tensor(3.0)])
def test_one_number_of_all_has_none(sae: SAE, x: Rows, one: Function) -> None:
    assert facts(x, sae, one)[0] == {"metric": 3.0, "metric_interval": None}


def test_a_tensor_of_rows_and_one_row(sae: SAE, x: Rows) -> None:
    found, _ = facts(x, sae, lambda a, b: (torch.from_numpy(a) - torch.from_numpy(b)).square().sum(1))
    assert found["metric"] == pytest.approx(facts(x, sae, squared_error)[0]["metric"], rel=1e-5)
    assert facts(x[:1], sae, lambda a, b: np.ones(1))[0] == {"metric": 1.0, "metric_interval": [1.0, 1.0]}


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: np.ones(len(x) + 1),
        lambda x, y: np.ones((len(x), 1)),
        lambda x, y: x,
        lambda x, y: np.nan,
        lambda x, y: np.where(np.arange(len(x)) == 3, np.inf, 1.0),
        lambda x, y: None,
        lambda x, y: "low",
        lambda x, y: {"loss": 1.0},
        lambda x, y: [1.0, [2.0]],
        lambda x, y: torch.ones(len(x), requires_grad=True),
    ],
)
def test_what_is_no_number_and_not_one_a_row_is_refused(sae: SAE, x: Rows, function: Function) -> None:
    with pytest.raises(InputError, match="metric 'mine'"):
        facts(x, sae, function)


@pytest.mark.parametrize("error", [ValueError("no luck"), KeyError("no luck"), ZeroDivisionError("no luck")])
def test_a_function_that_fails_is_named(sae: SAE, x: Rows, error: Exception) -> None:
    def fails(x: Rows, x_hat: Rows) -> float:
        raise error

    with pytest.raises(InputError, match=rf"metric 'mine': failed \({type(error).__name__}: .*no luck"):
        facts(x, sae, fails)


def test_it_is_told_which_rows_it_sees_where_it_asks(sae: SAE, x: Rows, tmp_path: Path) -> None:
    ids = np.repeat(np.arange(8), 5)
    np.save(tmp_path / "mask", np.arange(40) % 3 > 0)
    keep = (np.arange(40) % 3 > 0) & (np.arange(40) % 5 >= 2)
    seen: dict[str, Any] = {}

    def asks(x: Rows, x_hat: Rows, ids: Any, rows: Any = None, weight: float = 2.0) -> float:
        seen.update(x=x, ids=ids, rows=rows)
        return weight

    def by_name(x: Rows, x_hat: Rows, *, rows: Any) -> float:
        seen.update(named=rows)
        return 0.0

    selection = Selection(2, str(tmp_path / "mask.npy"))
    for function in (asks, by_name):
        measured = {"sae": sae, "seq": ids, "selection": selection, "extras": Extras(metric=Metric("mine", function))}
        assert measure_array(MemoryArray(x), **measured)["metric"]["metric"] == (2 if function is asks else 0)
    assert seen["rows"].tolist() == seen["named"].tolist() == np.flatnonzero(keep).tolist()
    np.testing.assert_array_equal(seen["x"], x[keep])
    np.testing.assert_array_equal(seen["ids"], ids[keep])
    facts(x, sae, asks)
    assert (seen["ids"], seen["rows"].tolist()) == (None, list(range(40)))


def test_the_first_two_parameters_get_rows_whatever_their_names(sae: SAE, x: Rows) -> None:
    def loss(rows: Rows, ids: Rows) -> Any:
        return squared_error(rows, ids)

    assert facts(x, sae, loss)[0] == facts(x, sae, squared_error)[0]
    assert facts(x, sae, lambda *both, rows: len(both) * len(rows))[0]["metric"] == 80
    assert facts(x, sae, lambda rows, x_hat, **more: len(more))[0]["metric"] == 0


def test_no_rows_have_no_metric(sae: SAE) -> None:
    metric = Metric("mine", lambda x, y: pytest.fail("there is nothing to judge"))
    report = measure_array(MemoryArray(np.zeros((0, sae.width), np.float32)), sae=sae, extras=Extras(metric=metric))
    assert report["metric"] == {"name": "mine", "metric": None, "metric_interval": None}


def test_a_measure_tells_it(sae: SAE, x: Rows) -> None:
    report = measure_array(MemoryArray(x), sae=sae, extras=Extras(metric=Metric("mine", squared_error)))
    spread = np.square(x - x.mean(0, dtype=np.float64)).sum(1)
    assert report["metric"]["metric"] == pytest.approx(report["nmse"] * spread.mean(), rel=1e-5)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


# -- where functions come from -----------------------------------------------------------------------------------------

SOURCE = """
from __future__ import annotations

from dataclasses import dataclass

NUMBER = 3

@dataclass
class Loss:
    value: float

def loss(x, x_hat):
    return Loss(float(len(x))).value
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `a_metric_of_mine.py`."""
    (tmp_path / "a_metric_of_mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("a_metric_of_mine", "saecodec_metric"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["a_metric_of_mine:loss", "a_metric_of_mine.py:loss", "{folder}/a_metric_of_mine.py:loss"]
)
def test_of_a_module_in_the_working_folder_or_a_file(folder: Path, name: str) -> None:
    name, before = name.format(folder=folder), list(sys.path)
    metric = Metric.load(name)
    assert metric.name == name
    assert metric.function(np.zeros((7, 2)), None) == 7
    assert sys.path == before


def test_of_a_module_that_is_installed() -> None:
    assert Metric.load("math:hypot").function(3, 4) == 5
    assert Metric.load("os.path:join").function("a", "b")


@pytest.mark.parametrize(
    "source, message",
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def loss(", "SyntaxError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("{}['key']", "KeyError: 'key'"),
    ],
)
@pytest.mark.parametrize("place", ["bad_metric", "bad_metric.py"])
def test_a_module_that_fails_is_named(folder: Path, source: str, message: str, place: str) -> None:
    (folder / "bad_metric.py").write_text(source)
    importlib.invalidate_caches()  # the folder was looked into before
    with pytest.raises(InputError, match=rf"metric '{place}:loss': cannot be imported \({message}"):
        Metric.load(f"{place}:loss")


@pytest.mark.parametrize(
    "name, message",
    [
        ("loss", "expected module:function"),
        (":loss", "expected module:function"),
        ("a_metric_of_mine:", "expected module:function"),
        ("no_such_module:loss", "cannot be imported .*no_such_module"),
        ("a_metric_of_mine.deeper:loss", "cannot be imported"),
        (".a_metric_of_mine:loss", "cannot be imported"),
        ("no_such_file.py:loss", "cannot be imported .*no such file: no_such_file.py"),
        ("a_metric_of_mine:los", "has no function 'los'"),
        ("a_metric_of_mine.py:NUMBER", "has no function 'NUMBER'"),
    ],
)
def test_names_of_nothing_are_refused(folder: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Metric.load(name)
