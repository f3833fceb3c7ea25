"""Seeds of each target, made of the golden files and of small files that are written here."""

from __future__ import annotations

import json
from pathlib import Path

import make_golden
import numpy as np
import slots
import targets
from golden_codecs import GOLDEN, chunk_codecs, zarr_codecs

from saecodec.codec import Codec
from saecodec.filled_rows import FilledRows
from saecodec.formats.codecfile import save_codec
from saecodec.formats.encoding_latents import encode_latents
from saecodec.formats.latent_source import open_latents
from saecodec.frames import frames

FOUND = Path(__file__).parent / "found"


def corpus(target: str) -> list[bytes]:
    """Inputs of a target that are what they should be, in a fixed order."""
    return {
        "container": _containers,
        "codec": _codecs,
        "chunk": _chunks,
        "checkpoint": lambda: _slots(slots.checkpoints()),
        "zarr": _zarr,
        "manifest": _manifests,
        "arrays": lambda: _slots(slots.arrays()),
    }[target]()


def found(target: str) -> dict[str, bytes]:
    """Inputs that once failed, by the names of their files."""
    return {path.name: path.read_bytes() for path in sorted((FOUND / target).glob("*")) if path.is_file()}


def _golden(extension: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(GOLDEN.glob(f"*{extension}"))]


def _containers() -> list[bytes]:
    """The golden ones, and one of a delphi cache, whose layout lies in the metadata."""
    slot = next(slot for slot in slots.arrays() if slot.case == "delphi")
    folder, out = targets.scratch() / "delphi", targets.scratch() / "delphi.saec"
    folder.mkdir(exist_ok=True)
    for name, data in slot.files.items():
        (folder / name).write_bytes(data)
    encode_latents(open_latents(folder), out, step="0", force=True)
    return [*_golden(".saec"), out.read_bytes()]


def _codecs() -> list[bytes]:
    """The golden ones, and one of every other kind of tables, made of what files embed."""
    made = []
    for i, (_, codec, _) in enumerate(chunk_codecs()):
        if isinstance(codec, Codec):
            path = targets.scratch() / f"seed-{i}.saecodec"
            save_codec(codec, path, embed_sae=i % 2 == 0, force=True)
            made.append(path.read_bytes())
    return _golden(".saecodec") + made


def _chunks() -> list[bytes]:
    """All of the golden files, and the residual levels of the first."""
    out = []
    for i, (name, _, _) in enumerate(chunk_codecs()):
        data = (GOLDEN / name).read_bytes()
        parts = [(head.kind, bytes(payload)) for head, payload in frames(data[name.endswith(".saec") * 8 :], name)]
        out += [bytes([i]) + payload for kind, payload in parts if kind == "CHNK"]
        out += [bytes([i | 0x80]) + payload for kind, payload in parts if kind == "RCHK"][:1]
    return out


def _slots(choices: list[slots.Slot]) -> list[bytes]:
    return [slot.key + slot.files[slot.name] for slot in choices]


def _zarr() -> list[bytes]:
    from saecodec.formats.zarr import SaeCodec

    out = []
    for i, codec in enumerate(zarr_codecs()):
        x = make_golden.golden_rows(targets.ZARR_ROWS)
        x[3:5] = 0
        for where in (np.ones(len(x), bool), np.arange(len(x)) % 3 > 0, np.zeros(len(x), bool)):
            out.append(bytes([2 * i]) + FilledRows.of(codec, x, 0.0, where).to_bytes(codec))
        described = SaeCodec(codec.codec_id, 8, "c.saecodec", None if i else "sae").to_dict()
        out.append(bytes([2 * i + 1]) + json.dumps(described).encode())
    return out


def _manifests() -> list[bytes]:
    out = []
    for i, command in enumerate(("encode-dir", "decode-dir")):
        _, lines, _ = targets.folder_task(command)
        out += [bytes([i]) + lines, bytes([i | 2]) + lines + lines, bytes([i | 4]) + lines[: len(lines) // 2]]
    return out
