"""What the commands read, and the process that runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from faulty import FIXTURES, SAE, Machine, words


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """name -> path: rows of digits, their SAE, files that hold them and their latents, one of these torn."""
    from saecodec.cli.app import app

    folder = tmp_path_factory.mktemp("files")
    np.save(folder / "rows.npy", (np.load(FIXTURES / "rows.npz")["pixels"][:200] / 255).astype(np.float16))
    np.save(folder / "more.npy", np.tile(np.load(folder / "rows.npy"), (10, 1)))
    names = ("rows.npy", "more.npy", "a.saec", "z.npz", "torn.saec", "c.saecodec", "shards", "coded")
    found = {name: str(folder / name) for name in names} | {"sae": SAE}
    for command in (
        "fit {sae} {rows.npy} --embed-sae -o {c.saecodec}",
        "encode {rows.npy} -s {sae} --chunk-rows 20 --embed decoder -o {a.saec}",
        "decode --latents {a.saec} -o {z.npz}",
    ):
        app(words(command, found), standalone_mode=False)
    data = (folder / "a.saec").read_bytes()
    (folder / "torn.saec").write_bytes(data[:-300])
    (folder / "shards").mkdir()
    for i in range(3):
        np.save(folder / "shards" / f"{i}.npy", np.load(folder / "rows.npy")[60 * i : 60 * (i + 1)])
    app(words("encode-dir {shards} {coded} -c {c.saecodec} --jobs 1", found), standalone_mode=False)
    return found


@pytest.fixture(scope="session")
def machine(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Where faults happen."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "zygote.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        yield Machine(process, files, tmp_path_factory.mktemp("faults"))
        assert process.stdin is not None
        process.stdin.close()
