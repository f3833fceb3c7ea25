"""Measures what coding a delphi cache costs: `make latents DATA=path/to/data` (a minute); writes docs/latents.json.

DATA holds `minilm_l3_test.npy`, its `_seq` and `_tok`, and `saes/<name>/`. The cache is made of the SAE's activations
of all whole sequences as delphi's `save_splits` makes it: 5 splits, 16-bit locations, float16 activations, and the
tokens, int64, in every split. Every size is that of a file that was written and decoded again; "ratio" leaves tokens
out on both sides, and counts everything else.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.numpy import load_file, save_file

import saecodec
from saecodec.formats.decoding_latents import decode_latents
from saecodec.formats.delphi_layout import default_splits
from saecodec.formats.encoding_latents import encode_latents
from saecodec.formats.latent_source import open_latents
from saecodec.formats.measuring_latents import measure_latents
from saecodec.formats.saec import open_saec

SAE = "minilm_l3_batchtopk_3072_k32"
STEPS = ("0", "0.1rms", "0.2rms", "0.4rms")
TARGETS = {"0": 0.33, "0.4rms": 0.13}
ZSTD_LEVEL = 19


def make_cache(data: Path, folder: Path) -> dict[str, Any]:
    """Write the cache; returns what it is."""
    sae = saecodec.load_sae(data / "saes" / SAE)
    sequence = np.load(data / "minilm_l3_test_seq.npy")
    length = int(np.bincount(sequence - sequence.min()).max())
    n_sequences = int((np.bincount(sequence - sequence.min()) == length).sum())
    rows = n_sequences * length  # only the last sequence is cut short
    assert len(np.unique(sequence[:rows])) == n_sequences
    x = np.load(data / "minilm_l3_test.npy")[:rows]
    tokens = np.load(data / "minilm_l3_test_tok.npy")[:rows].astype(np.int64).reshape(n_sequences, length)
    features = sae.features(x.astype(np.float32))
    kept = np.abs(features.values) > 1e-5  # as delphi does
    row = np.repeat(np.arange(rows), np.diff(features.indptr))[kept]
    latents, values = features.latents[kept], features.values[kept].astype(np.float16)
    for split in default_splits(sae.n_latents, 5):
        mine = (latents >= split.first) & (latents <= split.last)
        locations = np.stack([row[mine] // length, row[mine] % length, latents[mine] - split.first], axis=1)
        tensors = {"locations": locations.astype(np.uint16), "activations": values[mine], "tokens": tokens}
        save_file(tensors, folder / split.name)
    config = {"cache_ctx_len": length, "n_tokens": rows, "n_splits": 5, "model_name": "all-MiniLM-L6-v2"}
    (folder / "config.json").write_text(json.dumps(config))
    return {
        "sae": SAE,
        "sequences": n_sequences,
        "positions": length,
        "latents": sae.n_latents,
        "nonzeros": len(values),
    }


def round_trip(cache: Path, step: str, folder: Path) -> dict[str, bool]:
    """Whether the cache comes back: files byte for byte, and all but the activations tensor for tensor."""
    encode_latents(open_latents(cache), folder / "x.saec", step=step, force=True)
    with open_saec(folder / "x.saec") as file:
        decode_latents(file, folder / "back", force=True)
    names = sorted(path.name for path in cache.iterdir())
    same, _, _ = filecmp.cmpfiles(cache, folder / "back", names, shallow=False)
    splits = [name for name in names if name.endswith(".safetensors")]
    places = all(
        np.array_equal(a[key], b[key]) and a[key].dtype == b[key].dtype
        for a, b in ((load_file(cache / name), load_file(folder / "back" / name)) for name in splits)
        for key in ("locations", "tokens")
    )
    return {"files_byte_identical": same == names, "locations_and_tokens_equal": places}


def by_zstd(cache: Path) -> dict[str, float]:
    """What a general compressor makes of the files, and of their locations and activations."""
    paths = sorted(cache.glob("*.safetensors"))
    pack = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress
    tensors = [load_file(path) for path in paths]
    parts = [t[key].tobytes() for t in tensors for key in ("locations", "activations")]
    columns = [np.ascontiguousarray(t["locations"].T).tobytes() for t in tensors]
    values = [t["activations"].tobytes() for t in tensors]
    stored = sum(map(len, parts))
    return {
        "level": ZSTD_LEVEL,
        "ratio": sum(len(pack(part)) for part in parts) / stored,
        "ratio_columns_apart": sum(len(pack(part)) for part in columns + values) / stored,
        "ratio_with_tokens": sum(len(pack(p.read_bytes())) for p in paths) / sum(p.stat().st_size for p in paths),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    data: Path = parser.parse_args().data
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name, "cache")
        cache.mkdir()
        report: dict[str, Any] = {"machine": f"{platform.machine()}, 2 threads", "cache": make_cache(data, cache)}
        report["cache"]["bytes"] = sum(path.stat().st_size for path in cache.glob("*.safetensors"))
        report["zstd"] = by_zstd(cache)
        report["steps"] = {}
        for step in STEPS:
            measured = measure_latents(open_latents(cache), step=step) | round_trip(cache, step, Path(name))
            del measured["seconds"]
            report["steps"][step] = measured
            target = f" (at most {TARGETS[step]} wanted)" if step in TARGETS else ""
            print(
                f"step {step}: {measured['ratio']:.4f} of the stored bytes{target}, "
                f"{measured['ratio_with_columns']:.4f} with tokens; {measured['bits_per_nonzero']:.2f} bits per "
                f"activation, NMSE {measured['nmse']:.5f}, files byte-identical: {measured['files_byte_identical']}"
            )
        zstd = report["zstd"]
        print(f"zstd -{ZSTD_LEVEL}: {zstd['ratio']:.4f}; columns apart {zstd['ratio_columns_apart']:.4f}")
    Path(__file__).with_name("latents.json").write_text(json.dumps(report, indent=1) + "\n")
    for step, limit in TARGETS.items():
        assert report["steps"][step]["ratio"] <= limit, step
    assert report["steps"]["0"]["files_byte_identical"]
    assert all(found["locations_and_tokens_equal"] for found in report["steps"].values())


if __name__ == "__main__":
    main()
