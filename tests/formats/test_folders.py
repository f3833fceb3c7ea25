"""A folder of shards: all of it is coded, whatever dies meanwhile, and what is done is neither done again nor lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deadly_folder import DeadlyFolder
from hypothesis import given, settings
from hypothesis import strategies as st

from saecodec.codec import Codec
from saecodec.distortion import Distortion
from saecodec.errors import FormatError, IdentityError, InputError, MissingPieceError, OutputError
from saecodec.formats import folder_pool, folders
from saecodec.formats.arrays import open_array
from saecodec.formats.codecfile import save_codec
from saecodec.formats.decoding import compare
from saecodec.formats.encoding import encode_array
from saecodec.formats.folder_manifest import STAGING
from saecodec.formats.folder_plan import Shard
from saecodec.formats.folder_work import DecodeFolder, EncodeFolder
from saecodec.formats.folders import run
from saecodec.formats.saec import open_saec

NAMES = ("a.npy", "b.npy", "deep/er/c.npy", "deep/d.npy")


def rows(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def codec_path(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A codec file that holds its SAE (d = 8)."""
    path = tmp_path_factory.mktemp("codec") / "tiny.saecodec"
    save_codec(codec, path, embed_sae=True)
    return str(path)


@pytest.fixture
def encode(tmp_path: Path, codec_path: str) -> EncodeFolder:
    """A task of four shards in three folders."""
    for i, name in enumerate(NAMES):
        path = tmp_path / "acts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rows(20 + i, i))
    return EncodeFolder(src=str(tmp_path / "acts"), dst=str(tmp_path / "out"), codec=codec_path, chunk_rows=16)


def files(folder: str | Path) -> dict[str, bytes]:
    """What a folder holds, without what tells of runs."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name not in ("manifest.jsonl", "summary.json")}


def manifest(task: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(task.dst, "manifest.jsonl").read_text().splitlines()]


def counts(summary: dict[str, Any]) -> tuple[int, int, int]:
    return summary["done"], summary["skipped"], summary["failed"]


# -- what is written -----------------------------------------------------------------------------------------------


def test_every_shard_becomes_the_file_that_encode_array_makes(encode: EncodeFolder, codec: Codec) -> None:
    summary = run(encode, jobs=1)
    assert counts(summary) == (4, 0, 0)
    assert sorted(files(encode.dst)) == ["a.saec", "b.saec", "deep/d.saec", "deep/er/c.saec"]
    for name in NAMES:
        one = Path(encode.dst).parent / "one.saec"
        encode_array(open_array(Path(encode.src, name)), one, codec=codec, chunk_rows=16, force=True)
        assert one.read_bytes() == Path(encode.dst, name).with_suffix(".saec").read_bytes()
    assert not Path(encode.dst, STAGING).exists()
    assert json.loads(Path(encode.dst, "summary.json").read_text()) == summary


def test_lines_and_summary_say_what_the_files_are(encode: EncodeFolder, codec: Codec) -> None:
    summary = run(encode, jobs=1)
    lines = manifest(encode)
    assert [line["source"] for line in lines] == sorted(NAMES)
    whole = 0.0
    for line in lines:
        output = Path(encode.dst, line["output"])
        with open_saec(output, codec=codec) as file:
            found: Distortion = compare(file, open_array(Path(encode.src, line["source"])))
            assert (line["rows"], line["width"], line["dtype"]) == (file.n_rows, 8, "float32")
        assert line["nmse"] == found.nmse
        assert line["output_bytes"] == output.stat().st_size
        assert line["bits_per_row"] == 8 * line["output_bytes"] / line["rows"]
        assert (line["codec_id"], line["decoder_id"]) == (codec.codec_id, codec.decoder_id)
        whole += found.squared_error
    assert summary["rows"] == sum(line["rows"] for line in lines) == 86
    assert summary["bytes_out"] == sum(len(data) for data in files(encode.dst).values())
    assert summary["nmse"] == pytest.approx(whole / sum(line["variance"] for line in lines))
    assert summary["bits_per_row_with_codec"] > summary["bits_per_row"] == 8 * summary["bytes_out"] / 86


def test_without_verification_there_is_no_nmse(encode: EncodeFolder) -> None:
    summary = run(replace(encode, verify=False), jobs=1)
    assert summary["nmse"] is None
    assert summary["read_back"] == 0
    assert {line["nmse"] for line in manifest(encode)} == {None}


@pytest.mark.parametrize("embed", ["tables", "decoder"])
def test_files_may_hold_tables_or_decoder(encode: EncodeFolder, embed: str) -> None:
    run(replace(encode, embed=embed), jobs=1)
    decode = DecodeFolder(src=encode.dst, dst=encode.dst + "_hat", codec=None if embed == "decoder" else encode.codec)
    assert counts(run(decode, jobs=1)) == (4, 0, 0)


@pytest.mark.parametrize("extension, dtype", [(".npy", None), (".safetensors", "bfloat16"), (".pt", "float16")])
def test_a_folder_decodes_into_a_folder(encode: EncodeFolder, extension: str, dtype: str | None) -> None:
    nmse = run(encode, jobs=1)["nmse"]
    decode = DecodeFolder(src=encode.dst, dst=encode.dst + "_hat", codec=encode.codec, extension=extension, dtype=dtype)
    assert counts(run(decode, jobs=1)) == (4, 0, 0)
    assert counts(run(decode, jobs=1)) == (0, 4, 0)
    found = [Distortion(8) for _ in NAMES]
    for name, distortion in zip(NAMES, found, strict=True):
        x_hat = open_array(Path(decode.dst, name).with_suffix(extension))
        assert x_hat.dtype == (dtype or "float32")
        distortion.add(np.load(Path(encode.src, name)), next(x_hat.batches(100)))
    error, variance = sum(d.squared_error for d in found), sum(d.variance for d in found)
    assert error / variance == pytest.approx(nmse, rel=1e-3)


def test_the_bytes_do_not_depend_on_the_number_of_processes(
    encode: EncodeFolder, torch_threads: Callable[[int], None]
) -> None:
    np.save(Path(encode.src, "bad.npy"), np.full((3, 8), np.nan, np.float32))
    torch_threads(2)
    alone = run(encode, jobs=1)
    assert torch.get_num_threads() == 2
    other = replace(encode, dst=encode.dst + "2")
    together = run(other, jobs=2)
    assert counts(alone) == counts(together) == (4, 0, 1)
    assert alone["failures"] == together["failures"]
    assert files(encode.dst) == files(other.dst)


# -- what is done already ------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing(encode: EncodeFolder) -> None:
    first = run(encode, jobs=1)
    before = {name: os.stat(Path(encode.dst, name)).st_mtime_ns for name in files(encode.dst)}
    again = run(encode, jobs=1, check=True)
    assert counts(again) == (0, 4, 0)
    assert {name: os.stat(Path(encode.dst, name)).st_mtime_ns for name in files(encode.dst)} == before
    for key in ("rows", "bytes_in", "bytes_out", "bits_per_row", "nmse"):
        assert again[key] == first[key]


def test_only_what_is_new_changed_or_missing_is_coded(encode: EncodeFolder) -> None:
    run(encode, jobs=1)
    np.save(Path(encode.src, "a.npy"), rows(33, 9))
    np.save(Path(encode.src, "new.npy"), rows(5, 10))
    Path(encode.dst, "b.saec").unlink()
    assert counts(run(encode, jobs=1)) == (3, 2, 0)
    assert [line["source"] for line in manifest(encode)[4:]] == ["a.npy", "b.npy", "new.npy"]
    fresh = replace(encode, dst=encode.dst + "2")
    run(fresh, jobs=1)
    assert files(encode.dst) == files(fresh.dst)


def test_a_changed_source_of_the_same_size_is_seen_and_a_touched_one_is_hashed_once(encode: EncodeFolder) -> None:
    run(encode, jobs=1)
    source = Path(encode.src, "a.npy")
    os.utime(source, ns=(1, 1))
    assert counts(run(encode, jobs=1)) == (0, 4, 0)
    assert manifest(encode)[-1]["source_mtime_ns"] == 1
    np.save(source, rows(20, 11))
    assert counts(run(encode, jobs=1)) == (1, 3, 0)


def test_damage_is_found_and_nothing_is_replaced_without_force(encode: EncodeFolder) -> None:
    run(encode, jobs=1)
    good = files(encode.dst)
    shorter, flipped = Path(encode.dst, "a.saec"), Path(encode.dst, "b.saec")
    shorter.write_bytes(good["a.saec"][:-1])
    flipped.write_bytes(good["b.saec"][:-1] + bytes([good["b.saec"][-1] ^ 1]))
    with pytest.raises(OutputError, match=r"a\.saec is not what was written"):
        run(encode, jobs=1)
    with pytest.raises(OutputError, match=r"a\.saec is not .*; b\.saec is not what was written"):
        run(encode, jobs=1, check=True)
    assert counts(run(encode, jobs=1, check=True, force=True)) == (2, 2, 0)
    assert files(encode.dst) == good


def test_a_file_that_the_manifest_does_not_know_stays(encode: EncodeFolder) -> None:
    Path(encode.dst, "deep").mkdir(parents=True)
    mine = Path(encode.dst, "deep", "d.saec")
    mine.write_text("mine")
    with pytest.raises(OutputError, match=r"deep/d\.saec is there, and the manifest does not know it"):
        run(encode, jobs=1)
    assert mine.read_text() == "mine"
    assert sorted(files(encode.dst)) == ["deep/d.saec"]
    assert counts(run(encode, jobs=1, force=True)) == (4, 0, 0)


def test_outputs_of_other_settings_are_not_replaced_without_force(encode: EncodeFolder, other_codec: Codec) -> None:
    run(encode, jobs=1)
    other = encode.dst + ".saecodec"
    save_codec(other_codec, other, embed_sae=True)
    for task in (replace(encode, chunk_rows=8), replace(encode, codec=other), replace(encode, search="refit")):
        with pytest.raises(OutputError, match="another codec, SAE or settings"):
            run(task, jobs=1)
    assert counts(run(replace(encode, codec=other), jobs=1, force=True)) == (4, 0, 0)
    assert counts(run(replace(encode, codec=other), jobs=1)) == (0, 4, 0)


def test_a_folder_belongs_to_one_command_and_one_run(encode: EncodeFolder) -> None:
    run(encode, jobs=1)
    with pytest.raises(OutputError, match="holds what encode-dir wrote"):
        run(DecodeFolder(src=encode.dst, dst=encode.dst, codec=encode.codec), jobs=1)
    np.save(Path(encode.src, "new.npy"), rows(5, 1))

    def meanwhile(*_: Any) -> None:
        with pytest.raises(OutputError, match="is being written by another process"):
            run(encode, jobs=1)

    assert counts(run(encode, jobs=1, progress=meanwhile)) == (1, 4, 0)


# -- the manifest --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(codec_path: str, tmp_path_factory: pytest.TempPathFactory) -> EncodeFolder:
    """A folder of two shards that is done."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "acts").mkdir()
    for i in range(2):
        np.save(folder / "acts" / f"{i}.npy", rows(5, i))
    task = EncodeFolder(src=str(folder / "acts"), dst=str(folder / "out"), codec=codec_path)
    run(task, jobs=1)
    return task


@settings(max_examples=12, deadline=None)
@given(data=st.data(), zeros=st.integers(0, 8))
def test_a_crash_at_any_point_of_settling_leaves_a_folder_that_is_completed(
    finished: EncodeFolder, data: st.DataObject, zeros: int
) -> None:
    """Killed while the second line was written, or behind it and before the output got its name."""
    good = files(finished.dst)
    dst = finished.dst + "_crashed"
    shutil.rmtree(dst, ignore_errors=True)
    shutil.copytree(finished.dst, dst)
    lines = Path(dst, "manifest.jsonl").read_bytes()
    start = lines.index(b"\n") + 1
    cut = data.draw(st.integers(start, len(lines)))
    torn = b"\0" * zeros if cut < len(lines) - 1 else b""
    Path(dst, "manifest.jsonl").write_bytes(lines[:cut] + torn)
    Path(dst, STAGING).mkdir()
    os.rename(Path(dst, "1.saec"), Path(dst, STAGING, "1.saec"))
    found = run(replace(finished, dst=dst), jobs=1)
    assert counts(found) == ((0, 2, 0) if cut >= len(lines) - 1 else (1, 1, 0))
    assert files(dst) == good
    assert Path(dst, "manifest.jsonl").read_bytes().count(b"\n") == 2


def test_a_crash_before_an_old_output_was_replaced_is_seen(encode: EncodeFolder) -> None:
    run(encode, jobs=1)
    old = Path(encode.dst, "a.saec").read_bytes()
    np.save(Path(encode.src, "a.npy"), rows(20, 5))
    run(encode, jobs=1)
    new = Path(encode.dst, "a.saec")
    Path(encode.dst, STAGING).mkdir()
    Path(encode.dst, STAGING, "a.saec").write_bytes(new.read_bytes())
    expected, _ = new.read_bytes(), new.write_bytes(old)
    assert counts(run(encode, jobs=1)) == (0, 4, 0)
    assert new.read_bytes() == expected


@pytest.mark.parametrize(
    "text", [b"nonsense", b"nonsense\n{}\n", b"{}\n{}\n", b'{"command": "encode-dir"}\n[]\n', b"\xff\n\n"]
)
def test_what_is_no_manifest_is_refused_and_left_as_it_is(encode: EncodeFolder, text: bytes) -> None:
    Path(encode.dst).mkdir()
    path = Path(encode.dst, "manifest.jsonl")
    path.write_bytes(text)
    with pytest.raises(FormatError, match=r"manifest\.jsonl, line 1: "):
        run(encode, jobs=1)
    assert path.read_bytes() == text


def test_a_summary_of_somebody_else_stays(encode: EncodeFolder) -> None:
    Path(encode.dst).mkdir()
    Path(encode.dst, "summary.json").write_text("mine")
    with pytest.raises(OutputError, match=r"summary\.json, but no manifest"):
        run(encode, jobs=1)
    assert Path(encode.dst, "summary.json").read_text() == "mine"


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_shard_that_fails_does_not_stop_the_others(encode: EncodeFolder) -> None:
    bad = rows(20, 0)
    bad[7, 1] = np.nan
    np.save(Path(encode.src, "a.npy"), bad)
    np.save(Path(encode.src, "b.npy"), np.zeros((3, 9), np.float32))
    Path(encode.src, "deep", "cut.npy").write_bytes(b"\x93NUMPY")
    summary = run(encode, jobs=1)
    assert counts(summary) == (2, 0, 3)
    errors = {failed["source"]: failed["error"] for failed in summary["failures"]}
    assert "row 7" in errors["a.npy"]
    assert "rows of 8 values" in errors["b.npy"]
    assert "deep/cut.npy" in errors
    assert sorted(files(encode.dst)) == ["deep/d.saec", "deep/er/c.saec"]
    np.save(Path(encode.src, "a.npy"), rows(20, 0))
    assert counts(run(encode, jobs=1)) == (1, 2, 2)


def test_names_that_clash_are_told_before_any_work(encode: EncodeFolder) -> None:
    np.savez(Path(encode.src, "deep", "d.npz"), x=rows(3, 0))
    with pytest.raises(InputError, match=r"deep/d\.npy and deep/d\.npz would both become deep/d\.saec"):
        run(encode, jobs=1)
    assert not Path(encode.dst).exists()
    assert counts(run(encode, jobs=1, pattern="*.npy")) == (4, 0, 0)
    other = replace(encode, dst=encode.dst + "2")
    assert counts(run(other, jobs=1, pattern="deep/*.npy")) == (2, 0, 0)


def test_hidden_files_and_stores_are_no_shards(encode: EncodeFolder) -> None:
    np.save(Path(encode.src, ".hidden.npy"), rows(3, 0))
    store = Path(encode.src, "x.zarr")
    store.mkdir()
    (store / "zarr.json").write_text("{}")
    np.save(store / "inside.npy", rows(3, 0))
    with pytest.raises(InputError, match=r"x\.zarr: is an array in a folder"):
        run(encode, jobs=1)
    assert counts(run(encode, jobs=1, pattern="*.npy")) == (4, 0, 0)


def test_what_is_missing_or_wrong_is_told_before_any_work(encode: EncodeFolder, minilm: Any, codec: Codec) -> None:
    bare = encode.dst + ".saecodec"
    save_codec(codec, bare)
    sae = str(Path(sys.modules["saecodec"].__path__[0]) / "bundled" / "minilm_l3_sae")
    for task, error, message in (
        (replace(encode, codec=None), MissingPieceError, "-c CODEC"),
        (replace(encode, codec=bare), MissingPieceError, "-s SAE"),
        (replace(encode, codec=bare, sae=sae), IdentityError, "give that SAE"),
        (replace(encode, weights="int8"), InputError, "embed"),
        (replace(encode, weights="int8", embed="decoder"), InputError, "int8"),
        (replace(encode, src=encode.src + "?"), InputError, "no such folder"),
        (replace(encode, dst=encode.dst + "/x/y"), OutputError, "is not there"),
    ):
        with pytest.raises(error, match=message):
            run(task, jobs=2)
        assert not Path(encode.dst).exists()
    with pytest.raises(InputError, match="no file that matches"):
        run(encode, jobs=1, pattern="*.pt")


def test_a_source_that_vanished_is_a_failure(encode: EncodeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run(encode, jobs=1)
    found = folders.plan(encode.src, ".saec", encode.kinds)
    monkeypatch.setattr(folders, "plan", lambda *_: found)
    Path(encode.src, "a.npy").unlink()
    summary = run(encode, jobs=1)
    assert counts(summary) == (0, 3, 1)
    assert "a.npy" in summary["failures"][0]["error"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_not_waited_for(encode: EncodeFolder) -> None:
    pipe = Path(encode.src, "pipe.npy")
    os.mkfifo(pipe)
    Path(encode.src, "link.npy").symlink_to(pipe)
    Path(encode.src, "nowhere.npy").symlink_to("missing.npy")
    found = [shard.source for shard in folders.plan(encode.src, ".saec", encode.kinds)]
    assert found == sorted([*NAMES, "nowhere.npy"])  # whose failure is told
    held = os.open(pipe, os.O_RDWR)  # opening it does not wait then
    try:
        with pytest.raises(InputError, match="is a device, pipe or socket"):
            open_saec(pipe)
    finally:
        os.close(held)


def test_an_output_whose_folder_a_crash_kept_from_being_made_gets_its_name(encode: EncodeFolder) -> None:
    run(encode, jobs=1)
    staged = Path(encode.dst, STAGING, "deep", "er", "c.saec")
    staged.parent.mkdir(parents=True)
    Path(encode.dst, "deep", "er", "c.saec").rename(staged)
    Path(encode.dst, "deep", "er").rmdir()
    assert counts(run(encode, jobs=1)) == (0, 4, 0)


def test_a_codec_of_a_url_is_counted(encode: EncodeFolder) -> None:
    fsspec = pytest.importorskip("fsspec")
    assert encode.codec is not None
    here = run(encode, jobs=1)
    with fsspec.open("memory://folders.saecodec", "wb") as file:
        file.write(Path(encode.codec).read_bytes())
    there = run(replace(encode, codec="memory://folders.saecodec", dst=encode.dst + "2"), jobs=1)
    assert there["bits_per_row_with_codec"] == here["bits_per_row_with_codec"]


# -- who is killed -------------------------------------------------------------------------------------------------


def test_a_process_that_is_killed_is_replaced_and_its_shard_done_again(encode: EncodeFolder) -> None:
    killed: list[int] = []

    def kill(stage: str, *_: Any) -> None:
        if stage == "encode" and not killed:
            killed.extend(child.pid for child in multiprocessing.active_children() if child.pid)
            os.kill(killed[0], signal.SIGKILL)

    assert counts(run(encode, jobs=2, progress=kill)) == (4, 0, 0)
    assert killed
    other = replace(encode, dst=encode.dst + "2")
    run(other, jobs=1)
    assert files(encode.dst) == files(other.dst)


def test_a_shard_that_kills_its_process_fails_alone(encode: EncodeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_pool, "ATTEMPTS", 2)
    np.save(Path(encode.src, "deadly.npy"), rows(4, 1))
    task = DeadlyFolder(**{key: value for key, value in vars(encode).items() if key != "extension"})
    summary = run(task, jobs=2)
    assert counts(summary) == (4, 0, 1)
    assert [failed["source"] for failed in summary["failures"]] == ["deadly.npy"]
    assert "died 2 times" in summary["failures"][0]["error"]


class StubPool:
    """A pool whose futures the test completes; one that is broken takes nothing."""

    def __init__(self, *, broken: bool = False) -> None:
        self.futures: list[Future[Any]] = []
        self.broken = broken

    def submit(self, *_: Any) -> Future[Any]:
        if self.broken:
            raise BrokenProcessPool
        self.futures.append(Future())
        return self.futures[-1]


def test_shards_that_finish_while_a_line_is_settled_are_no_deaths() -> None:
    pool, waiting = StubPool(), deque(Shard(f"{i}.npy", f"{i}.saec") for i in range(3))
    lines = folder_pool._until_a_death(pool, waiting, 2)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(next, lines)
        while len(pool.futures) < 2:
            time.sleep(0.001)
        pool.futures[0].set_result({"n": 0})
        assert first.result() == {"n": 0}
        pool.futures[1].set_result({"n": 1})
        assert thread.submit(next, lines).result() == {"n": 1}
        assert len(pool.futures) == 3
        pool.futures[2].set_result({"n": 2})
        assert thread.submit(list, lines).result() == [{"n": 2}]
    assert not waiting


def test_processes_that_die_before_they_begin_do_not_make_it_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_pool, "_pool", lambda *_: nullcontext(StubPool(broken=True)))
    shards = [Shard(f"{i}.npy", f"{i}.saec") for i in range(3)]
    lines = list(folder_pool.side_by_side(None, shards, 2))  # type: ignore[arg-type]
    assert [line["source"] for line in lines] == ["0.npy", "1.npy", "2.npy"]
    assert all("before they began" in line["error"] for line in lines)


def test_what_is_being_coded_is_not_waited_for_when_a_run_ends(encode: EncodeFolder) -> None:
    np.save(Path(encode.src, "slow.npy"), rows(4, 1))
    task = DeadlyFolder(**{key: value for key, value in vars(encode).items() if key != "extension"})
    lines = folder_pool.side_by_side(task, [Shard("slow.npy", "slow.saec"), Shard("a.npy", "a.saec")], 2)
    assert next(lines)["source"] == "a.npy"
    started = time.perf_counter()
    lines.close()
    assert time.perf_counter() - started < 30


def test_a_line_without_a_distortion_does_not_stop_a_run(encode: EncodeFolder) -> None:
    run(encode, jobs=1)
    path = Path(encode.dst, "manifest.jsonl")
    lines = [{key: value for key, value in line.items() if key != "squared_error"} for line in manifest(encode)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = run(encode, jobs=1)
    assert (summary["skipped"], summary["read_back"], summary["nmse"]) == (4, 0, None)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_run_that_is_ended_leaves_no_process_and_is_taken_up_again(tmp_path: Path, minilm: Any) -> None:
    sae, x = minilm
    (tmp_path / "acts").mkdir()
    for i in range(12):
        np.save(tmp_path / "acts" / f"{i}.npy", x[160 * i : 160 * (i + 1)])
    codec, out = tmp_path / "c.saecodec", tmp_path / "out"
    save_codec(Codec.fit(sae, x[:512]), codec, embed_sae=True)
    command = [sys.executable, "-c", "from saecodec.cli import main; main()"]
    command += ["encode-dir", tmp_path / "acts", out, "-c", codec, "--jobs", "2", "--search", "pursuit"]
    manifest, lines = out / "manifest.jsonl", 0
    for how in (signal.SIGINT, signal.SIGKILL):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            while not manifest.exists() or manifest.read_bytes().count(b"\n") <= lines:
                time.sleep(0.01)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if how == signal.SIGINT:
                os.killpg(process.pid, how)  # as a terminal does
            else:
                process.send_signal(how)
            assert process.wait(30) != 0
            while any(is_running(int(pid)) for pid in children):
                time.sleep(0.01)
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
        lines = manifest.read_bytes().count(b"\n")
    assert 2 <= lines < 12
    task = EncodeFolder(src=str(tmp_path / "acts"), dst=str(out), codec=str(codec), search="pursuit")
    done, skipped, failed = counts(run(task, jobs=1))
    assert (done + skipped, failed) == (12, 0)
    assert skipped >= lines
    names = [path.name for path in out.iterdir()]
    assert sorted(names) == sorted([*(f"{i}.saec" for i in range(12)), "manifest.jsonl", "summary.json"])
