"""A folder of shards on Ray: the files of a local run, even if an actor dies."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from deadly_folder import DeadlyFolder

from saecodec.codec import Codec
from saecodec.errors import MissingPieceError
from saecodec.formats.codecfile import save_codec
from saecodec.formats.folder_pool import ATTEMPTS
from saecodec.formats.folder_ray import _Actor
from saecodec.formats.folder_work import EncodeFolder
from saecodec.formats.folders import run

NAMES = ("a", "b", "c", "nan", "once")


@pytest.fixture
def task(tmp_path: Path, codec: Codec) -> EncodeFolder:
    """Five shards, of which one cannot be coded."""
    (tmp_path / "acts").mkdir()
    for i, name in enumerate(NAMES):
        rows = np.random.default_rng(i).normal(size=(20, 8)).astype(np.float32)
        np.save(tmp_path / "acts" / f"{name}.npy", rows * (np.nan if name == "nan" else 1))
    save_codec(codec, tmp_path / "tiny.saecodec", embed_sae=True)
    return EncodeFolder(src=str(tmp_path / "acts"), dst=str(tmp_path / "local"), codec=str(tmp_path / "tiny.saecodec"))


@pytest.fixture
def quiet() -> Iterator[None]:
    """Ray Data's logger, which would report the death that is wanted, to a stream that pytest has closed by then."""
    logger = logging.getLogger("ray")
    disabled, logger.disabled = logger.disabled, True
    yield
    logger.disabled = disabled


@pytest.mark.filterwarnings("ignore")  # Ray's own: of files left open, and of what it will change
def test_an_actor_that_is_killed_is_replaced_and_the_files_are_those_of_a_local_run(
    task: EncodeFolder, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for actors, where the task's module lies
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    seen: list[int] = []
    on_ray = DeadlyFolder(src=task.src, dst=f"{task.dst}_ray", codec=task.codec)
    found = run(on_ray, engine="ray", jobs=2, progress=lambda stage, done, *_: seen.append(done))
    assert not ray.is_initialized()
    assert Path(f"{on_ray.dst}.once.npy").exists()  # it died
    assert (found["done"], found["failed"]) == (4, 1)
    assert "row 0" in found["failures"][0]["error"]
    assert seen[-5:] == [1, 2, 3, 4, 5]
    local = run(task, jobs=1)
    assert local["failures"] == found["failures"]
    for name in ("a", "b", "c", "once"):
        assert Path(task.dst, f"{name}.saec").read_bytes() == Path(on_ray.dst, f"{name}.saec").read_bytes()
    assert found["nmse"] == pytest.approx(local["nmse"], rel=1e-12)


def test_a_shard_that_kills_every_actor_is_given_up(task: EncodeFolder, tmp_path: Path) -> None:
    Path(task.dst).mkdir()
    row = {"source": "a.npy", "output": "a.saec"}
    for _ in range(ATTEMPTS):  # each time it is begun, as by an actor that is new
        assert "error" not in json.loads(_Actor(task)(row)["line"])
    assert "died 3 times" in json.loads(_Actor(task)(row)["line"])["error"]


def test_without_ray_the_extra_is_named(task: EncodeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPieceError, match=r"saecodec\[ray\]"):
        run(task, engine="ray")
