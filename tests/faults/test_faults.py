"""Whatever goes wrong, what was there stays, and nothing half written has the name of an output.

Real faults, each of which happens to a process of its own: see zygote.py.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty import BY_OUTPUT, COMMANDS, FOLDERS, SAE, Answer, Command, Machine

from saecodec.formats.recovering import recover_file

_PAGE = 4096
_LARGE = 1 << 26  # a disk that does not get full
_SMALL = ("z.saec", "grown.saec", "table.csv")  # outputs that take a page or two


def commands(*outputs: str) -> pytest.MarkDecorator:
    """The commands that write these, or all."""
    chosen = [BY_OUTPUT[output] for output in outputs] or COMMANDS
    return pytest.mark.parametrize("command", chosen, ids=str)


def assert_failed(answer: Answer, command: Command, existing: Iterable[str] = ()) -> None:
    """The status and the message are those of an error, and nothing is there but what was there."""
    assert answer["status"] == 1, answer["stderr"]
    assert "Traceback" not in answer["stderr"]
    last = answer["stderr"].strip().splitlines()[-1]
    assert last.startswith("Error: "), answer["stderr"]
    assert any(output in last for output in command.outputs), last
    assert_unchanged(answer, existing)


def assert_unchanged(answer: Answer, existing: Iterable[str] = ()) -> None:
    assert sorted(answer["files"]) == sorted(existing)


def in_the_way(command: Command) -> dict[str, str]:
    """Something else under the names of the outputs."""
    return dict.fromkeys(command.outputs, "z.npz")


def test_faults_that_cannot_be_made_are_skipped_only_where_they_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    answers = 'while input(): print(\'{"skip": "no disk"}\', flush=True)'
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", answers], **pipes) as process:
        machine = Machine(process, {}, tmp_path)
        for told, outcome in (("", pytest.skip.Exception), ("1", pytest.fail.Exception)):
            monkeypatch.setenv("SAECODEC_FAULTS", told)
            with pytest.raises(outcome, match="no disk"):
                machine.run("info")
        process.kill()


# -- full disks --------------------------------------------------------------------------------------------------------


@commands()
def test_a_full_disk_leaves_nothing_and_the_output_is_named(machine: Machine, command: Command) -> None:
    room = 0 if command.outputs[0] in _SMALL else 2 * _PAGE  # part of the output
    answer = machine.run(command.words, existing=command.existing, room=room)
    assert_failed(answer, command, command.existing)
    for name, held in command.existing.items():  # an append cuts off what it wrote, which is a new time
        assert bytes.fromhex(answer["files"][name]) == Path(machine.files[held]).read_bytes()
    assert "No space left on device" in answer["stderr"]


@commands("out.saec", "x.npy", "x.parquet", "out.saecodec")
def test_what_was_to_be_replaced_is_there_when_the_disk_is_full(machine: Machine, command: Command) -> None:
    existing = in_the_way(command)
    answer = machine.run(f"{command.words} --force", existing=existing, room=_PAGE)
    assert_failed(answer, command, existing)
    assert "nothing was left" not in answer["stderr"]
    assert all(answer["untouched"].values())


@commands("x.npz", "x.pt", "z.saec", "z.npz", "cache", "grown.saec")
def test_a_limit_of_the_size_of_files_is_a_full_disk(machine: Machine, command: Command) -> None:
    limit = {"grown.saec": Path(machine.files["a.saec"]).stat().st_size + 5000}.get(command.outputs[0], 1200)
    answer = machine.run(command.words, existing=command.existing, limit=limit)
    assert answer["status"] == 1
    assert "File too large" in answer["stderr"]
    if command.outputs[0].startswith(("z", "cache")):  # what waits in temporary files is larger
        assert "a temporary file in" in answer["stderr"]
        assert "set TMPDIR" in answer["stderr"]
        assert_unchanged(answer)
    else:
        assert_failed(answer, command, command.existing)


@pytest.mark.parametrize(
    "output, fails",
    [("out.saec", "fsync"), ("x.npy", "fsync"), ("grown.saec", "fsync"), ("x.zarr", "fsync"), ("x.zarr", "rename")],
)
def test_a_disk_that_is_full_at_the_last_moment_leaves_nothing(machine: Machine, output: str, fails: str) -> None:
    command = BY_OUTPUT[output]
    answer = machine.run(command.words, existing=command.existing, fails=fails)
    assert_failed(answer, command, command.existing)
    assert ("it is as it was" if command.existing else "nothing was left under that name") in answer["stderr"]
    for name, held in command.existing.items():
        assert bytes.fromhex(answer["files"][name]) == Path(machine.files[held]).read_bytes()


def test_where_no_temporary_file_can_be_made_it_is_said(machine: Machine, tmp_path: Path) -> None:
    program = f"""
import tempfile
tempfile.tempdir = None
tempfile._candidate_tempdir_list = lambda: [{str(tmp_path / "missing")!r}]
from saecodec.formats.temporary import temporary_file
temporary_file()
"""
    answer = machine.run(["-c", program])
    assert "OutputError: a temporary file cannot be written" in answer["stderr"]
    assert "set TMPDIR" in answer["stderr"]
    assert "FileNotFoundError" not in answer["stderr"].splitlines()[-1]


def test_an_append_that_finds_no_room_for_temporary_files_does_not_blame_the_store(
    machine: Machine, tmp_path: Path
) -> None:
    np.savez(tmp_path / "columns.npz", np.asfortranarray(np.load(machine.files["more.npy"])))  # is unpacked to be read
    answer = machine.run(
        ["encode", str(tmp_path / "columns.npz"), "-s", SAE, "--append", "-o", "grown.saec"],
        existing={"grown.saec": "a.saec"},
        limit=Path(machine.files["a.saec"]).stat().st_size + 5000,
    )
    assert answer["status"] == 1
    assert "Error: a temporary file in" in answer["stderr"]
    assert "set TMPDIR" in answer["stderr"]
    assert answer["files"]["grown.saec"] == Path(machine.files["a.saec"]).read_bytes().hex()


# -- places that are taken or cannot be written ------------------------------------------------------------------------


@commands()
def test_a_disk_that_is_read_only_is_named(machine: Machine, command: Command) -> None:
    answer = machine.run(command.words, existing=command.existing, room=_LARGE, read_only=True)
    assert_failed(answer, command, command.existing)
    assert all(answer["untouched"].values())


@commands(*(output for output in BY_OUTPUT if output != "grown.saec"))
def test_what_is_there_is_not_touched_without_force(machine: Machine, command: Command) -> None:
    existing = in_the_way(command)
    answer = machine.run(command.words, existing=existing)
    assert_failed(answer, command, existing)
    assert all(answer["untouched"].values())
    folder = command.outputs[0] in ("x.zarr", "cache", "trained")
    assert ("expected the name of a folder" if folder else "--force") in answer["stderr"]


# -- processes that are killed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed", [signal.SIGINT, signal.SIGTERM])
@commands("out.saec", "x.npy", "x.pt", "x.zarr", "grown.saec", "cache", "trained")
def test_a_command_that_is_told_to_end_leaves_nothing(
    machine: Machine, command: Command, killed: signal.Signals
) -> None:
    hold = "sync" if command.outputs[0] in ("x.zarr", "cache", "trained", "grown.saec") else "write"
    left, passing = left_of(command)
    answer = machine.run(command.words, existing=command.existing, hold=hold, passing=passing, signal=killed)
    assert answer["status"] == (1 if killed == signal.SIGINT else 128 + signal.SIGTERM), answer["stderr"]
    assert "Traceback" not in answer["stderr"]
    assert_unchanged(answer, [*command.existing, *left])
    for name, held in command.existing.items():
        assert bytes.fromhex(answer["files"][name]) == Path(machine.files[held]).read_bytes()


def left_of(command: Command) -> tuple[list[str], int]:
    """What a command leaves that is told to end while it writes its output, and how often it syncs for that before: a
    training goes on from a checkpoint, which it made of its last step."""
    return (["trained.checkpoint"], 2) if command.outputs[0] == "trained" else ([], 0)


@commands("x.npy", "x.pt", "x.parquet", "z.npz", "out.saecodec", "joined.saec", "table.csv", "page.html")
def test_a_command_that_is_killed_leaves_nothing(machine: Machine, command: Command) -> None:
    existing = in_the_way(command)
    for hold in ("write", "sync"):
        faults = {"room": _LARGE, "hold": hold, "signal": signal.SIGKILL}
        answer = machine.run(f"{command.words} --force", existing=existing, **faults)
        assert answer["status"] == -signal.SIGKILL
        assert_unchanged(answer, existing)
        assert all(answer["untouched"].values())


@commands("out.saec", "z.saec", "grown.saec")
def test_the_rows_of_an_encode_that_is_killed_can_be_recovered(
    machine: Machine, command: Command, tmp_path: Path
) -> None:
    answer = machine.run(command.words, existing=command.existing, hold="sync", signal=signal.SIGKILL)
    left = command.outputs[0] + ("" if command.existing else ".partial")
    assert_unchanged(answer, [left])
    (tmp_path / "left").write_bytes(bytes.fromhex(answer["files"][left]))
    assert recover_file(tmp_path / "left", tmp_path / "out.saec").rows == (2200 if command.existing else 200)
    for held in command.existing.values():
        assert (tmp_path / "left").read_bytes().startswith(Path(machine.files[held]).read_bytes())


@commands("x.zarr", "cache", "trained")
def test_a_folder_whose_writer_is_killed_is_left_under_a_hidden_name(machine: Machine, command: Command) -> None:
    left, passing = left_of(command)
    answer = machine.run(command.words, hold="sync", passing=passing, signal=signal.SIGKILL)
    hidden = [name for name in answer["files"] if name not in left]
    assert len(hidden) == len(answer["files"]) - len(left) > 0
    assert all(name.startswith(".saecodec-") for name in hidden)


# -- two writers -------------------------------------------------------------------------------------------------------


@commands("out.saec", "z.saec", "grown.saec", "x.npy", "x.zarr", "cache", "joined.saec")
def test_of_two_writers_one_is_refused_and_the_output_is_the_others(machine: Machine, command: Command) -> None:
    normal = machine.normal(command)
    answer = machine.run(command.words, existing=command.existing, hold="sync", second=command.words)
    locked = command.outputs[0] in ("out.saec", "z.saec", "grown.saec")  # the second knows of the first
    winner, loser = (answer, answer["second"]) if locked else (answer["second"], answer)
    assert (winner["status"], loser["status"]) == (0, 1)
    assert ("is being written by another process" if locked else "already exists; pass --force") in loser["stderr"]
    assert "Traceback" not in loser["stderr"]
    assert answer["files"].keys() == normal.keys()
    if command.outputs[0] != "x.zarr":
        assert answer["files"] == normal


@commands("out.saecodec", "x.npy", "joined.saec")
def test_of_two_writers_with_force_the_last_has_the_name(machine: Machine, command: Command) -> None:
    existing = in_the_way(command)
    forced = f"{command.words} --force"
    answer = machine.run(forced, existing=existing, hold="sync", second=forced)
    assert (answer["status"], answer["second"]["status"]) == (0, 0), answer
    assert answer["files"] == machine.normal(command)


# -- folders, and programs ---------------------------------------------------------------------------------------------


folders = pytest.mark.parametrize("command", FOLDERS, ids=str)


def shards_of(answer: Answer, command: Command) -> list[str]:
    """The shards under their names, which are whole, and are those that the manifest has."""
    (folder,), found = command.outputs, answer["files"]
    lines = map(json.loads, bytes.fromhex(found.get(f"{folder}/manifest.jsonl", "")).splitlines())
    sizes = {f"{folder}/{line['output']}": line["output_bytes"] for line in lines}
    shards = [name for name in found if name.endswith((".saec", ".npy")) and "staging" not in name]
    assert {name: len(found[name]) // 2 for name in shards} == sizes
    return shards


@folders
def test_shards_that_find_no_room_fail_and_the_others_are_there(machine: Machine, command: Command) -> None:
    room = (3 if command.outputs[0] == "coded" else 50) * _PAGE  # for one or two
    answer = machine.run(command.words, room=room)
    assert "Traceback" not in answer["stderr"]
    assert answer["status"] == 1
    assert "No space left on device" in answer["stderr"] or "has room for" in answer["stderr"]
    assert not any("staging" in name for name in answer["files"])
    assert len(shards_of(answer, command)) < 3


@pytest.mark.parametrize("killed", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@folders
def test_of_a_folder_whose_writer_is_told_to_end_the_whole_shards_are_there(
    machine: Machine, command: Command, killed: signal.Signals
) -> None:
    answer = machine.run(command.words, hold="sync", signal=killed)
    statuses = {signal.SIGINT: 1, signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}
    assert answer["status"] == statuses[killed], answer["stderr"]
    assert "Traceback" not in answer["stderr"]
    assert len(shards_of(answer, command)) < 3


@folders
def test_a_folder_on_a_disk_that_is_read_only_is_named(machine: Machine, command: Command) -> None:
    assert_failed(machine.run(command.words, room=_LARGE, read_only=True), command)


@folders
def test_the_second_writer_of_a_folder_is_refused_at_once(machine: Machine, command: Command) -> None:
    answer = machine.run(command.words, hold="sync", second=command.words)
    assert (answer["status"], answer["second"]["status"]) == (0, 1), answer
    assert "is being written by another process" in answer["second"]["stderr"]
    assert len(shards_of(answer, command)) == 3


STORE = """
import numpy as np, saecodec
codec = saecodec.load_codec({codec!r}, "cpu")
rows = np.load({rows!r})
with saecodec.create("grown.saec", codec, chunk_rows=20) as store:
    while True:
        store.append(rows)
"""


def test_a_store_whose_disk_gets_full_leaves_a_file_of_its_chunks(machine: Machine, tmp_path: Path) -> None:
    program = STORE.format(codec=machine.files["c.saecodec"], rows=machine.files["rows.npy"])
    answer = machine.run(["-c", program], room=5 * _PAGE)
    assert "OutputError: grown.saec: cannot be written (No space left on device)" in answer["stderr"]
    assert list(answer["files"]) == ["grown.saec.partial"]
    (tmp_path / "left").write_bytes(bytes.fromhex(answer["files"]["grown.saec.partial"]))
    result = recover_file(tmp_path / "left", tmp_path / "out.saec")
    assert result.rows >= 20
    assert result.rows % 20 == 0
