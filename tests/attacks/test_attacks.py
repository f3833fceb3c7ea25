"""Every hostile file is refused by the error that says why, in no time and in little memory."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_attacks
import pytest
from attack import Attack
from make_attacks import ATTACKS, COSTLY, FOLDER, SMALL

MOST_SECONDS = 1.0
MOST_BYTES = 300_000_000
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures memory as Linux tells it")


def _read(paths: list[Path]) -> dict[str, Any]:
    script = Path(__file__).with_name("run_attacks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), *map(str, paths)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> dict[str, Any]:
    """What became of each attack, by its name. The first of pytest's workers finds out, the others read it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "attacks"
    folder.mkdir(exist_ok=True)
    kept = folder / "results.json"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_text(json.dumps(_read_all(folder)))
    found: dict[str, Any] = json.loads(kept.read_text())
    return found


def _read_all(folder: Path) -> dict[str, Any]:
    paths = {}
    for i, attack in enumerate(ATTACKS):
        (folder / str(i)).mkdir()
        paths[attack.name] = folder / str(i) / ("manifest.jsonl" if attack.suffix == ".jsonl" else attack.file)
        paths[attack.name].write_bytes(attack.data())
    found = _read(list(paths.values()))
    return {name: found[str(path)] for name, path in paths.items()}


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_an_attack_is_refused_by_name_in_no_time_and_little_memory(attack: Attack, results: dict[str, Any]) -> None:
    found = results[attack.name]
    assert found["error"] == attack.error, found["message"]
    assert re.search(attack.match, found["message"]), found["message"]
    assert found["seconds"] < MOST_SECONDS
    assert found["bytes"] < MOST_BYTES


def test_attacks_have_names_of_their_own() -> None:
    assert len({attack.file for attack in ATTACKS}) == len(ATTACKS)


def test_the_files_are_what_the_generator_makes() -> None:
    small = {attack.file: data for attack in ATTACKS if len(data := attack.data()) <= SMALL}
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(small)
    for name, data in small.items():
        assert (FOLDER / name).read_bytes() == data, f"{name}: run {make_attacks.__file__}"


def test_valid_files_of_few_bytes_cost_no_more_than_the_document_says(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.saec" for name in COSTLY]
    for path in paths:
        path.write_bytes(COSTLY[path.stem]())
        assert path.stat().st_size < 1300
    for path, found in _read(paths).items():
        assert found["error"] == "", f"{path}: {found['message']}"
        assert found["bytes"] < 450_000_000, path


LOADERS = ("eval", "exec", "load", "memmap", "read_array")


def test_nothing_is_ever_unpickled() -> None:
    for path in sorted(part for name in ("saecodec", "formats", "cli", "docs") for part in (ROOT / name).rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"} & set(names), where
            if (
                not isinstance(node, ast.Call)
                or getattr(node.func, "attr", getattr(node.func, "id", "")) not in LOADERS
            ):
                continue
            called, told = ast.unparse(node.func), {key.arg: ast.unparse(key.value) for key in node.keywords}
            assert called not in ("eval", "exec"), where
            if called == "torch.load":
                assert told.get("weights_only") == "True", where
            if called in ("np.load", "np.memmap", "npy_format.read_array"):
                assert told.get("allow_pickle", "False") == "False", where  # numpy's default
            if called == "yaml.load":
                assert "SafeLoader" in told.get("Loader", ""), where
