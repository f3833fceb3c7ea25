"""Chunks coded in processes: the same bytes and rows whatever their number, and no process left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pool_tasks import dies, fails, own_pid, packed, slow_first

from saecodec.chunk_coder import ChunkCoder
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.errors import FormatError, InputError, SaecodecError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.chunk_pool import jobs_for, map_chunks
from saecodec.formats.decoding import decode_file, verify_file
from saecodec.formats.encoding import encode_array
from saecodec.formats.processes import usable_cores
from saecodec.formats.saec import open_saec
from saecodec.goal import Goal
from saecodec.latents import LatentCodec
from saecodec.sae import SAE


def codec_of(seed: int = 0) -> tuple[ChunkCoder, list[Codes]]:
    rng = np.random.default_rng(seed)
    chunks = [Codes.from_dense(rng.integers(0, 3, (20, 10)) * (rng.random((20, 10)) < 0.3)) for _ in range(9)]
    return ChunkCoder(LatentCodec.fit(chunks)), chunks


def test_two_processes_give_what_one_gives_in_order() -> None:
    coder, chunks = codec_of()
    alone = list(map_chunks(packed, coder, chunks, 1))
    shared = list(map_chunks(packed, coder, chunks, 2))
    assert [data for data, _ in shared] == [data for data, _ in alone]
    assert {pid for _, pid in alone} == {os.getpid()}
    assert os.getpid() not in {pid for _, pid in shared}
    assert list(map_chunks(slow_first, coder, range(9), 2)) == list(range(9))


def test_items_are_made_only_a_few_ahead() -> None:
    coder, _ = codec_of()
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(1000):
            made.append(i)
            yield i

    results = map_chunks(fails, coder, items(), 2)
    assert next(results) == 0
    assert len(made) <= 6
    results.close()  # type: ignore[attr-defined]


def test_what_an_item_raises_is_raised_in_its_turn() -> None:
    coder, _ = codec_of()
    results = map_chunks(fails, coder, range(9), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(FormatError, match="item 3 is damaged"):
        next(results)


def test_a_process_that_is_killed_is_told() -> None:
    coder, _ = codec_of()
    with pytest.raises(SaecodecError, match="has ended, perhaps for want of memory: use fewer"):
        list(map_chunks(dies, coder, range(9), 2))


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "if __name__ == '__main__':\n"
        "    import numpy as np\n"
        "    from pool_tasks import own_pid\n"
        "    from saecodec.chunk_coder import ChunkCoder\n"
        "    from saecodec.codes import Codes\n"
        "    from saecodec.formats.chunk_pool import map_chunks\n"
        "    from saecodec.latents import LatentCodec\n"
        "    coder = ChunkCoder(LatentCodec.fit([Codes.from_dense(np.eye(4, dtype=int))]))\n"
        "    results = map_chunks(own_pid, coder, range(100), 2)\n"
        "    print(next(results), next(results), flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert children
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in children):
        assert time.monotonic() < deadline, "a process outlives the one that started it"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_how_many_processes_there_are() -> None:
    coder, _ = codec_of()
    assert jobs_for(1, coder, 10**6) == 1
    assert jobs_for(8, coder, 10**6) == 8
    assert jobs_for(8, coder, 3) == 3
    assert jobs_for(8, coder, 0) == 1
    assert jobs_for(None, coder, 127) == 1
    assert jobs_for(None, coder, 10**6) == usable_cores()
    with pytest.raises(InputError, match="0 jobs were asked for"):
        jobs_for(0, coder, 5)


def test_a_process_with_the_factorized_prior_needs_no_torch() -> None:
    check = "import sys, saecodec.formats.chunk_pool, saecodec.formats.chunk_block; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


@pytest.mark.parametrize("residual", [False, True])
def test_a_file_and_its_rows_do_not_depend_on_the_number(tmp_path: Path, sae: SAE, residual: bool) -> None:
    x = MemoryArray(np.random.default_rng(7).normal(size=(200, 8)).astype(np.float32))
    goal = Goal.of(step="0.4rms", residual=residual)
    paths = [tmp_path / f"{jobs}.saec" for jobs in (1, 2)]
    for jobs, path in zip((1, 2), paths, strict=True):
        encode_array(x, path, sae=sae, goal=goal, chunk_rows=16, jobs=jobs)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    outputs = [tmp_path / f"{jobs}.npy" for jobs in (1, 2)]
    for jobs, output in zip((1, 2), outputs, strict=True):
        with open_saec(paths[0], sae=sae) as file:
            decode_file(file, output, jobs=jobs)
            assert verify_file(file, against=x, jobs=jobs).rows == 200
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_damage_is_found_in_a_process_too(
    tmp_path: Path, sae: SAE, codec: Codec, saec: Callable[..., Path], frame_boundaries: Any
) -> None:
    path = saec(chunk_rows=4)
    data = bytearray(path.read_bytes())
    with open_saec(path, sae=sae) as file:
        data[int(file.index.offsets[6]) + 25] ^= 1
    path.write_bytes(data)
    with open_saec(path, sae=sae) as file, pytest.raises(FormatError, match=r"chunk 6.* is corrupted"):
        list(file.layers(jobs=2))


def test_threads_that_start_processes_leave_the_main_module_alone() -> None:
    coder, _ = codec_of()
    main = sys.modules["__main__"]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: len(list(map_chunks(own_pid, coder, range(4), 2))), range(4)))
    assert found == [4] * 4
    assert sys.modules["__main__"] is main
