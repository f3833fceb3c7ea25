"""Measures how fast each kind of input is read: `make inputs`; writes the table of docs/inputs.md between its markers.

One array of 100 MB is stored in every kind, then read in batches of 4,096 rows on one core, kinds in turn, the best of
several times: multiples of the time for `.npy` in the same run.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import zarr
from safetensors.numpy import save_file

from saecodec.formats.arrays import open_array

BYTES, WIDTH, BATCH, TIMES = 100 << 20, 512, 4096, 5
PAGE = Path(__file__).parent / "inputs.md"
BEGIN, END = "<!-- speed -->\n", "<!-- end of speed -->"


def _shards(path: Path, x: np.ndarray) -> None:
    path.mkdir()
    for i, part in enumerate(np.array_split(x, 10)):
        np.save(path / f"shard_{i}.npy", part)


def _hdf5(path: Path, x: np.ndarray, **options: Any) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=x, **options)


def _parquet(path: Path, x: np.ndarray) -> None:
    lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(x.reshape(-1)), WIDTH)
    pyarrow.parquet.write_table(pyarrow.table({"x": lists}), path, row_group_size=16384)


KINDS: dict[str, tuple[str, Callable[[Path, np.ndarray], Any]]] = {
    ".npy": ("a.npy", np.save),
    ".safetensors": ("a.safetensors", lambda path, x: save_file({"x": x}, path)),
    ".pt": ("a.pt", lambda path, x: torch.save(torch.from_numpy(x), path)),
    "10 .npy shards": ("shards", _shards),
    "HDF5 contiguous": ("a.h5", _hdf5),
    "HDF5 in chunks of 1,024 rows": ("b.h5", lambda path, x: _hdf5(path, x, chunks=(1024, WIDTH))),
    "zarr (zstd, 1,024 rows)": ("a.zarr", lambda path, x: zarr.create_array(path, data=x, chunks=(1024, WIDTH))),
    "Parquet (snappy)": ("a.parquet", _parquet),
}


def seconds(path: Path) -> float:
    """Of reading all rows once."""
    started = time.perf_counter()
    for _ in open_array(path).batches(BATCH):
        pass
    return time.perf_counter() - started


def main() -> None:
    """Measure, and write the table."""
    torch.set_num_threads(1)
    columns: dict[str, list[float]] = {}
    rates = []
    for dtype in (np.float32, np.float16):
        x = np.random.default_rng(0).normal(size=(BYTES // np.dtype(dtype).itemsize // WIDTH, WIDTH)).astype(dtype)
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: Path(folder) / file for name, (file, _) in KINDS.items()}
            for name, (_, save) in KINDS.items():
                save(paths[name], x)
            best = dict.fromkeys(KINDS, float("inf"))
            for _ in range(TIMES):
                for name, path in paths.items():
                    best[name] = min(best[name], seconds(path))
        rates.append(f"{np.dtype(dtype).name} {x.nbytes / best['.npy'] / 1e9:.1f} GB/s")
        for name in KINDS:
            columns.setdefault(name, []).append(best[name] / best[".npy"])
    lines = ["| | float32 | float16 |", "| --- | --- | --- |"]
    lines += [f"| {name} | {' | '.join(f'{ratio:.2g}' for ratio in found)} |" for name, found in columns.items()]
    told = f"`.npy` itself: {', '.join(rates)} ({platform.machine()}, one core, warm cache)."
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}{told}\n\n" + "\n".join(lines) + f"\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
