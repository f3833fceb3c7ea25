"""The promise of an atomic output: the final name shows the complete file, or what was there before."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from saecodec.errors import OutputError
from saecodec.formats import atomic
from saecodec.formats.atomic import atomic_output, check_output_path


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Writes beyond `size` bytes of a file fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(path: Path, data: bytes, then: BaseException | None = None, force: bool = False) -> None:
    with atomic_output(path, force=force) as file:
        file.write(data)
        if then is not None:
            raise then


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_name_appears_only_when_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with atomic_output(path) as file:
        file.write(b"all of it")
        assert not path.exists()
        assert all(name.startswith(".") for name in names(tmp_path))  # none, where a file can be without a name
    assert path.read_bytes() == b"all of it"
    assert names(tmp_path) == ["out.bin"]


def test_the_file_can_be_sought_read_and_patched(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "out.bin") as file:
        file.write(b"????body")
        file.seek(4)
        assert file.read() == b"body"
        file.seek(0)
        file.write(b"head")
    assert (tmp_path / "out.bin").read_bytes() == b"headbody"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), FileNotFoundError("an input")])
def test_a_failed_block_leaves_nothing_behind_and_its_error_passes(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        write(tmp_path / "out.bin", b"half", then=error)
    assert caught.value is error
    assert names(tmp_path) == []


def test_a_failed_block_keeps_the_file_that_was_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.bin").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "out.bin", b"half", then=ZeroDivisionError(), force=True)
    assert (tmp_path / "out.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["out.bin"]


def test_an_existing_file_is_refused_before_the_block_runs(tmp_path: Path) -> None:
    (tmp_path / "out.bin").write_bytes(b"old")
    with (
        pytest.raises(OutputError, match=r"out\.bin: already exists; pass --force"),
        atomic_output(tmp_path / "out.bin"),
    ):
        pytest.fail("the block ran")
    assert (tmp_path / "out.bin").read_bytes() == b"old"


def test_force_replaces_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "out.bin").write_bytes(b"old")
    with atomic_output(tmp_path / "out.bin", force=True) as file:
        file.write(b"new")
    assert (tmp_path / "out.bin").read_bytes() == b"new"
    assert names(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", _no_links)

    def overtaken() -> None:
        with atomic_output(tmp_path / "out.bin") as file:
            file.write(b"mine")
            (tmp_path / "out.bin").write_bytes(b"theirs")

    with pytest.raises(OutputError, match="already exists"):
        overtaken()
    assert (tmp_path / "out.bin").read_bytes() == b"theirs"
    assert names(tmp_path) == ["out.bin"]


def test_file_systems_without_hard_links_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", _no_links)
    with atomic_output(tmp_path / "out.bin") as file:
        file.write(b"all of it")
    assert (tmp_path / "out.bin").read_bytes() == b"all of it"
    assert names(tmp_path) == ["out.bin"]


def test_an_output_that_replaces_nothing_never_has_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, seen = os.link, []

    def watched(source: str, target: str, **options: Any) -> None:
        link(source, target, **options)
        seen.append(names(tmp_path))

    monkeypatch.setattr(os, "link", watched)
    with atomic_output(tmp_path / "out.bin") as file:
        if names(tmp_path):
            pytest.skip("files must have a name here")
        file.write(b"all of it")
    assert seen == [["out.bin"]]
    write(tmp_path / "new.bin", b"all of it", force=True)
    assert seen == [["out.bin"], ["new.bin", "out.bin"]]


def test_writers_that_replace_a_file_at_the_same_time_all_do(tmp_path: Path) -> None:
    path, refused = tmp_path / "out.bin", []
    path.write_bytes(b"old")

    def replace(content: bytes) -> None:
        for _ in range(50):
            try:
                write(path, content, force=True)
            except OutputError as error:
                refused.append(error)

    writers = [Thread(target=replace, args=(content,)) for content in (b"one", b"two")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert refused == []
    assert path.read_bytes() in (b"one", b"two")
    assert names(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("where", ["nowhere", "here"])
def test_systems_without_files_that_have_no_name_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "nowhere":  # there is no /proc
        monkeypatch.setattr(atomic, "_DESCRIPTORS", str(tmp_path / "none"))
    else:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY, raising=False)  # which cannot be written
    with atomic_output(tmp_path / "out.bin") as file:
        file.write(b"all of it")
        assert [name.endswith(".tmp") for name in names(tmp_path)] == [True]
    assert (tmp_path / "out.bin").read_bytes() == b"all of it"
    assert names(tmp_path) == ["out.bin"]


def test_an_interrupt_that_a_library_turns_into_its_own_error_is_an_interrupt(tmp_path: Path) -> None:
    def library() -> None:
        with atomic_output(tmp_path / "out.bin"):
            try:
                raise KeyboardInterrupt
            finally:
                raise RuntimeError("unexpected position")

    with pytest.raises(KeyboardInterrupt):
        library()
    assert names(tmp_path) == []


def _no_links(source: str, target: str, **options: object) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_final_file_has_the_permissions_of_the_umask(tmp_path: Path, mask: int) -> None:
    with umask(mask), atomic_output(tmp_path / "out.bin") as file:
        file.write(b"x")
    path = tmp_path / "out.bin"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert path.stat().st_nlink == 1


def test_a_folder_as_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        check_output_path(tmp_path, force=True)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=rf"there is no folder {tmp_path}/new; create it"):
        check_output_path(tmp_path / "new" / "out.bin")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="is not writable"):
            check_output_path(tmp_path / "out.bin")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_the_system_calls_unwritable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="is not writable; choose another place"):
        check_output_path(tmp_path / "out.bin")


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(OutputError, match="/dev/null: is a device"):
        check_output_path("/dev/null", force=True)


def test_a_pipe_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe"):
        check_output_path(tmp_path / "pipe", force=True)


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out.bin").symlink_to(tmp_path / "disk" / "real.bin")
    with atomic_output(tmp_path / "out.bin") as file:
        file.write(b"first")
    with atomic_output(tmp_path / "out.bin", force=True) as file:
        file.write(b"second")
    assert (tmp_path / "out.bin").is_symlink()
    assert (tmp_path / "disk" / "real.bin").read_bytes() == b"second"


def test_a_name_in_the_current_folder_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_output("out.bin") as file:
        file.write(b"x")
    assert names(tmp_path) == ["out.bin"]


def test_a_name_too_long_for_the_file_system_is_an_output_error(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="cannot be written \\(File name too long\\)"),
        atomic_output(tmp_path / ("n" * 300)),
    ):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_is_an_output_error_with_path_and_reason(tmp_path: Path, size: int) -> None:
    # 10 bytes still fit the buffer, so that they fail when it is flushed; 100,000 fail in the block.
    with disk_of(5), pytest.raises(OutputError, match=r"out\.bin: cannot be written \(File too large\)") as caught:
        write(tmp_path / "out.bin", bytes(size))
    assert isinstance(caught.value.__cause__, OSError)
    assert names(tmp_path) == []


@pytest.mark.parametrize("wrap", [True, False], ids=["wraps", "ignores"])
def test_a_full_disk_is_told_even_if_a_library_hides_its_error(tmp_path: Path, wrap: bool) -> None:
    def library() -> None:
        with atomic_output(tmp_path / "out.bin") as file:
            try:
                file.write(bytes(100_000))
            except OSError as error:
                if wrap:
                    raise RuntimeError("the writer of a library failed") from error

    with disk_of(5), pytest.raises(OutputError, match="File too large"):
        library()
    assert names(tmp_path) == []


# -- path.partial ------------------------------------------------------------------------------------------------------


def write_partial(path: Path, data: bytes, force: bool = False) -> None:
    with atomic_output(path, force=force, partial=True) as file:
        file.write(data)
        file.flush()
        assert (path.parent / "out.bin.partial").read_bytes() == data


def test_a_partial_output_is_seen_beside_its_name_until_it_is_complete(tmp_path: Path) -> None:
    write_partial(tmp_path / "out.bin", b"all of it")
    assert names(tmp_path) == ["out.bin"]
    assert (tmp_path / "out.bin").read_bytes() == b"all of it"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_failed_block_leaves_no_partial_output(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with atomic_output(tmp_path / "out.bin", partial=True):
            raise error

    with pytest.raises(type(error)):
        fail()
    assert names(tmp_path) == []


def test_what_a_killed_run_left_is_discarded_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "out.bin.partial").write_bytes(b"rows")
    with pytest.raises(OutputError, match=r"saecodec recover .*out\.bin\.partial -o"):
        write_partial(tmp_path / "out.bin", b"new")
    assert (tmp_path / "out.bin.partial").read_bytes() == b"rows"
    write_partial(tmp_path / "out.bin", b"new", force=True)
    assert names(tmp_path) == ["out.bin"]


def test_a_killed_run_that_wrote_nothing_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "out.bin.partial").touch()
    write_partial(tmp_path / "out.bin", b"new")
    assert names(tmp_path) == ["out.bin"]


def test_a_second_writer_is_refused_even_by_force(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "out.bin", partial=True) as file:
        file.write(b"mine")
        with pytest.raises(OutputError, match=r"out\.bin\.partial: is being written by another process"):
            write_partial(tmp_path / "out.bin", b"theirs", force=True)
    assert (tmp_path / "out.bin").read_bytes() == b"mine"


def test_the_partial_output_of_a_link_lies_beside_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out.bin").symlink_to(tmp_path / "disk" / "real.bin")
    with atomic_output(tmp_path / "out.bin", partial=True) as file:
        file.write(b"x")
        assert names(tmp_path / "disk") == ["real.bin.partial"]
    assert names(tmp_path / "disk") == ["real.bin"]
