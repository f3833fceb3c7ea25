"""The promise of an atomic folder: the final name shows all of it, or what was there before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from saecodec.errors import OutputError
from saecodec.formats import atomic_folder as module
from saecodec.formats.atomic_folder import atomic_folder


def write(path: Path, text: str, then: BaseException | None = None, force: bool = False) -> None:
    with atomic_folder(path, force=force, mine=lambda name: name == "part") as folder:
        Path(folder, "part").write_text(text)
        assert not path.exists() or force
        if then is not None:
            raise then


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["swap", "two renames"], autouse=True)
def _system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the system call that swaps two names."""
    if request.param == "two renames":
        monkeypatch.setattr(module, "_exchange", lambda a, b: False)


def test_a_folder_appears_when_it_is_complete_and_force_replaces_it(tmp_path: Path) -> None:
    write(tmp_path / "out", "first")
    with pytest.raises(OutputError, match="already exists; pass --force"):
        write(tmp_path / "out", "second")
    assert contents(tmp_path) == {"out/part": "first"}
    write(tmp_path / "out", "second", force=True)
    assert contents(tmp_path) == {"out/part": "second"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failed_block_keeps_what_is_there(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "out", "first")
    with pytest.raises(type(error)):
        write(tmp_path / "out", "second", then=error, force=True)
    with pytest.raises(type(error)):
        write(tmp_path / "new", "third", then=error)
    assert contents(tmp_path) == {"out/part": "first"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_appears_at_the_last_moment_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def overtaken(source: str, target: str) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("theirs")
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    with pytest.raises(OutputError, match="already exists; pass --force"):
        write(tmp_path / "out", "mine")
    assert contents(tmp_path) == {"out/theirs": "theirs"}


def test_what_holds_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("theirs")
    with pytest.raises(OutputError, match="holds 'theirs'"):
        write(tmp_path / "out", "mine", force=True)
    assert contents(tmp_path) == {"out/theirs": "theirs"}


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "first")
    monkeypatch.setattr(module, "_exchange", lambda a, b: False)
    rename = os.rename

    def fails(source: str, target: str) -> None:
        if source.endswith(".tmp"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", "second", force=True)
    assert contents(tmp_path) == {"out/part": "first"}
