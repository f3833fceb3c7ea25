"""Hostile files, each named for the one rule that it breaks: `python tests/attacks/make_attacks.py` writes the small
ones to `files/`; test_attacks.py makes the large ones when it needs them.

What is not said here of a file is as in a valid one.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

from hostile import (
    CERTAIN,
    certain_stream,
    chunk,
    column,
    ints,
    latents_file,
    rows_file,
    same,
    table,
    tables,
)
from on_chunks import dense, empty, on_chunks
from on_context import on_context, walk_chunk, walk_file
from on_frames import on_frames, on_index
from on_layers import on_layers
from on_other_files import on_codec_files, on_other_files
from on_records import on_records
from on_tables import on_tables, wide
from on_weights import on_weights

from saecodec.wire import varints

FOLDER = Path(__file__).parent / "files"
SMALL = 1900  # bytes of a file that is kept in the repository


ATTACKS = [
    *(on_frames() + on_index() + on_records() + on_tables() + on_chunks()),
    *(on_layers() + on_weights() + on_context() + on_codec_files() + on_other_files()),
]

WIDEST = varints([1, 16, 16]) + struct.pack("<dd", 1, 1) + same(256) + same(16) + table(16, CERTAIN) + ints(*[0] * 16)
"""A residual layer of 16 components."""

COSTLY = {
    "rows": lambda: rows_file(tables(), 256, ("CHNK", empty(1 << 20))),
    "latents": lambda: latents_file(wide(1 << 22), chunk(), n_latents=1 << 22),
    "nonzeros": lambda: latents_file(tables(16, codes=CERTAIN), dense(1 << 16, 16), n_latents=16),
    "columns": lambda: latents_file(
        tables(), chunk(1 << 16, [column(b"%02d" % i, same(1 << 16)) for i in range(64)], (), ())
    ),
    "residual": lambda: rows_file(
        tables(), 16, ("CHNK", empty(1 << 20)), ("RCHK", certain_stream(1 << 24)), layer=WIDEST
    ),
    "weights": lambda: rows_file(wide(4095), 1024, ("CHNK", empty(1)), n_latents=4095),
    "network": lambda: walk_file(1 << 16, 51, walk_chunk(4, 1)),
    "walk": lambda: walk_file(64, 16, walk_chunk(1 << 20, 1)),
}
"""Valid files of few bytes that cost as much as the limits allow, each for another thing."""


def main() -> int:
    """Write the small attacks, or the costly files to a folder that is named."""
    for folder in sys.argv[1:]:
        for name, make in COSTLY.items():
            (Path(folder) / f"{name}.saec").write_bytes(make())
        return 0
    FOLDER.mkdir(exist_ok=True)
    for attack in ATTACKS:
        data = attack.data()
        if len(data) <= SMALL:
            (FOLDER / attack.file).write_bytes(data)
    print(f"{len(ATTACKS)} attacks, {len(list(FOLDER.iterdir()))} of them in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
