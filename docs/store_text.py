"""The section of docs/results.md on files as a store, from docs/store.json, recovery.json and folders.json."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from make_context import table

_RUNS = {
    ("coding", "pack"): "levels to bytes",
    ("coding", "unpack"): "bytes to levels",
    ("factorized", "encode"): "encode, factorized prior",
    ("factorized", "decode"): "decode to .npy, factorized prior",
    ("factorized", "latents"): "decode --latents, factorized prior",
    ("context", "encode"): "encode, context prior",
    ("context", "decode"): "decode to .npy, context prior",
    ("stored_latents", "encode"): "encode --latents, tables fitted on them",
}


def section(folder: Path) -> str:
    """The text."""
    store, recovery, folders = (json.loads((folder / f"{name}.json").read_text()) for name in _PARTS)
    parts = [_access(store), _features(store["features"]), _jobs(store["jobs"]), _memory(store["memory"])]
    return "\n\n".join([*parts, _recovery(recovery), _folders(folders)])


_PARTS = ("store", "recovery", "folders")


def _access(store: dict[str, Any]) -> str:
    access, part = store["access"], store["slices"]
    single = access["one_row_ms"]
    return (
        f"*Random access*, a file of {access['rows']:,} rows in {access['chunks']} chunks ({access['file_bytes']:,} "
        f"bytes), nothing decoded before: 1,000 random rows in **{access['thousand_rows_seconds']:.2f} s**, for which "
        f"{access['chunks_decoded']} chunks are decoded{', each once' if access['each_once'] else ''}; one row in "
        f"**{single['median']:.1f} ms** (the slowest of 50: {single['largest']:.1f}), opening included. A slice of "
        f"{part['rows']:,} rows reads {part['bytes_read']:,} bytes in {part['requests']} request, of which its "
        f"{part['chunks']} chunks have {part['bytes_of_its_chunks']:,}; opening read {part['bytes_on_opening']:,}."
    )


def _features(features: dict[str, Any]) -> str:
    rows = []
    for prior, found in features.items():
        for i, latent in enumerate(found["latents"]):
            block = f", blocks 1 to {found['blocks_decoded'][i]}" if found["blocks_decoded"] else ""
            cells = [f"{prior}, latent {latent}{block}", f"{found['feature_seconds'][i]:.3f}"]
            rows.append([*cells, f"{found['faster_than_npy'][i]:.1f}", f"{found['faster_than_memory'][i]:.1f}"])
    told = ", ".join(
        f"{prior}: {found['rows']:,} rows, {found['decode_to_npy_seconds']:.2f} s to .npy, "
        f"{found['decode_in_memory_seconds']:.2f} in memory"
        for prior, found in features.items()
    )
    head = ["where a latent fires", "seconds", "times faster than decoding to .npy", "than decoding in memory"]
    return f"*One latent* beside all rows, in one process ({told}):\n\n{table(head, rows)}"


def _jobs(jobs: dict[str, Any]) -> str:
    rows = []
    for (case, run), name in _RUNS.items():
        found = jobs[case][run]
        one, two = (f"{statistics.median(found[key]):.2f}" for key in ("one", "two"))
        equal = "equal" if found["equal"] else "**differ**"
        rows.append([name, f"{jobs[case]['rows']:,}", one, two, f"**{found['ratio']:.2f}**", equal])
    head = ["", "rows", "one process, s", "two, s", "ratio", "output"]
    return (
        f"*Processes* (`--jobs 1` and `--jobs 2`, in turn, starting them included):\n\n{table(head, rows)}\n\n"
        "On two cores there is little to gain where the SAE works too: one process already runs its products on both. "
        "Where nothing but the range coder works, decoding gains what two cores can give, and encoding, which takes "
        "a third of the time, less: handing over the levels costs as much as a quarter of coding them."
    )


def _memory(memory: dict[str, Any]) -> str:
    rows = []
    for name, found in memory.items():
        few, many = (n for n in found if n != "growth")
        rows.append(
            [name.replace("_", " "), *(f"{found[n]:.0f}" for n in (few, many)), f"{100 * found['growth']:.1f} %"]
        )
    few, many = (n for n in next(iter(memory.values())) if n != "growth")
    head = ["peak resident MB", f"{int(few):,} rows", f"{int(many):,} rows", "growth"]
    return (
        f"*Memory* of the process that was asked:\n\n{table(head, rows)}\n\n"
        "Slices keep the last decoded chunks, in 64 MiB: the larger file fills them, the smaller has 14 MB of chunks."
    )


def _recovery(recovery: dict[str, Any]) -> str:
    rows = recovery["rows_recovered"]
    return (
        f"*Kills*: of {recovery['killed']} encodes that were killed (SIGKILL) at random moments of their writing, "
        f"{recovery['recovered_all_complete_chunks_bit_by_bit']} gave back every complete chunk bit by bit "
        f"({rows['least']:,} to {rows['most']:,} of {recovery['rows']:,} rows; `make recovery`)."
    )


def _folders(folders: dict[str, Any]) -> str:
    rows = [
        [name, f"{run['seconds']:.1f}", f"{run['first_to_last']:.1f}", str(run["done"])]
        for name, run in folders["runs"].items()
    ]
    head = ["encode-dir", "seconds", "first to last shard", "shards done"]
    equal = "all runs wrote the same bytes" if folders["outputs_equal"] else "**the runs differ**"
    more = folders["ray_over_local"]
    return (
        f"*Folders*: {folders['input']['shards']} shards, {folders['input']['rows']:,} rows, every one read back; "
        f"{equal} (`make folders`):\n\n{table(head, rows)}\n\n"
        f"Ray takes {more['seconds']:.2f} times what two local processes take, most of it for starting and stopping a "
        f"cluster; from the first shard to the last, {more['first_to_last']:.2f} times."
    )
