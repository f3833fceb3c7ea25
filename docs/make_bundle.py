"""Make `saecodec/bundled/`: the real activations and the SAE that the demo and the tests use.

    python docs/make_bundle.py --rows test.npy --seq test_seq.npy --sae path/to/sae -o saecodec/bundled

`--rows` holds a (T, d) activation array and `--seq` the sequence id of each of its T rows; the first 2,048 rows are
kept, as float16 and as the smallest integer dtype that holds the ids. `--sae` is a folder in SAELens layout
(`cfg.json`, `sae_weights.safetensors`). A tensor is stored as float16 where that changes no value, and as it is
otherwise, so the bundled SAE has exactly the weights of its source; SAELens casts both to the cfg's dtype on loading.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

ROWS = 2048
NAME = "minilm_l3"


def half_if_exact(a: np.ndarray) -> np.ndarray:
    """Return `a` as float16 if every value survives the cast, else `a` itself."""
    with np.errstate(over="ignore"):
        half = a.astype(np.float16)
    return half if np.array_equal(half.astype(a.dtype), a) else a


def bundle_rows(rows: Path, seq: Path, out: Path) -> None:
    """Write the first `ROWS` rows and their sequence ids."""
    x = np.load(rows, mmap_mode="r")
    ids = np.load(seq, mmap_mode="r")
    if x.ndim != 2 or len(x) < ROWS or ids.shape != (len(x),):
        raise SystemExit(f"{rows}: expected (T >= {ROWS}, d) rows with T ids, found {x.shape} and {ids.shape}")
    x, ids = x[:ROWS], ids[:ROWS]
    if ids.min() < 0:
        raise SystemExit(f"{seq}: expected sequence ids >= 0, found {ids.min()}")
    np.save(out / f"{NAME}_rows.npy", x.astype(np.float16))
    np.save(out / f"{NAME}_seq.npy", ids.astype(np.min_scalar_type(ids.max())))


def bundle_sae(sae: Path, out: Path) -> None:
    """Write the SAE, in SAELens layout, with the tensors narrowed where that loses nothing."""
    out.mkdir(exist_ok=True)
    shutil.copyfile(sae / "cfg.json", out / "cfg.json")
    tensors = {name: half_if_exact(a) for name, a in load_file(sae / "sae_weights.safetensors").items()}
    (out / "sae_weights.safetensors").write_bytes(save(tensors))
    for name, a in sorted(tensors.items()):
        print(f"{name:10} {a.dtype!s:8} {a.shape}")


def main() -> None:
    """Read the arguments and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="activations, .npy, (T, d)")
    parser.add_argument("--seq", type=Path, required=True, help="sequence id per row, .npy, (T,)")
    parser.add_argument("--sae", type=Path, required=True, help="folder in SAELens layout")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    bundle_rows(args.rows, args.seq, args.output)
    bundle_sae(args.sae, args.output / f"{NAME}_sae")


if __name__ == "__main__":
    main()
