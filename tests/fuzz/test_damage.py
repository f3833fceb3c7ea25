"""Every byte of a file flipped, and every truncation of it, is detected; with checksums that fit, read or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import targets
from frame_mutations import joined, taken_apart, with_index
from golden_codecs import GOLDEN

from saecodec.codec import Codec
from saecodec.errors import SaecodecError
from saecodec.formats.codecfile import load_codec
from saecodec.formats.decoding import verify_file
from saecodec.formats.recovering import recover_file
from saecodec.formats.saec import open_saec

CONTAINERS = ["appended", "decoder", "empty", "latents_exact", "layer_norm", "residual", "weights_int8"]
CONTEXT = "context"  # its file is large and slow to decode: a part of the bytes are changed
CODECS = ["none", "residual_none"]
Read = Callable[[Path], object]


def verify(path: Path) -> None:
    """What `saecodec verify` looks at before anything is decoded: checksums and structure."""
    with open_saec(path) as file:
        verify_file(file, decode=False)


def load(path: Path) -> Codec:
    return load_codec(path, "cpu")


FILES = [(f"{name}.saec", verify) for name in (*CONTAINERS, CONTEXT)] + [(f"{name}.saecodec", load) for name in CODECS]


def noticed(read: Read, data: bytes) -> bool:
    """Whether a damaged file is refused."""
    path = targets.put("damaged", data)
    try:
        read(path)
    except SaecodecError:
        return True
    return False


def flipped(data: bytes, step: int = 1, masks: tuple[int, ...] = ()) -> Iterator[tuple[int, bytes]]:
    """`data` with one byte changed, and which: by one bit, which differs from byte to byte, or by `masks`."""
    for at in range(0, len(data), step):
        for mask in masks or (1 << at % 8,):
            yield at, data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


@pytest.mark.parametrize("name, read", FILES, ids=[name for name, _ in FILES])
def test_every_flipped_byte_is_detected(name: str, read: Read) -> None:
    data = (GOLDEN / name).read_bytes()
    assert not noticed(read, data)
    masks = (0x01, 0x20, 0x80, 0xFF) if name == "empty.saec" else ()
    assert [at for at, damaged in flipped(data, 1, masks) if not noticed(read, damaged)] == []


@pytest.mark.parametrize("name, read", FILES, ids=[name for name, _ in FILES])
def test_every_truncation_is_detected(name: str, read: Read) -> None:
    """But for one after a trailer, which leaves the file as it was before it grew."""
    data = (GOLDEN / name).read_bytes()
    whole = ends_of_generations(data) if name == "appended.saec" else [len(data)]
    assert [n for n in range(len(data) + 1) if not noticed(read, data[:n])] == whole


def ends_of_generations(data: bytes) -> list[int]:
    """Sizes that an appended file has had."""
    magic, parts = taken_apart(data) or (b"", [])
    return [len(joined(magic, parts[: i + 1])) for i, (kind, _, _) in enumerate(parts) if kind == "TAIL"]


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_is_recovered_of_a_damaged_file_is_a_file(name: str) -> None:
    data, out = (GOLDEN / f"{name}.saec").read_bytes(), targets.scratch() / "out.saec"
    damaged = [content for _, content in flipped(data, step=23)]
    recovered = 0
    for content in (*damaged, *(data[:n] for n in range(0, len(data), 23))):
        path = targets.put("damaged", content)
        if targets.refused(lambda path=path: recover_file(path, out, force=True)):
            verify(out)
            recovered += 1
    assert recovered > 0


def resealed(data: bytes, step: int) -> Iterator[bytes]:
    """`data` with one byte of a payload changed and its checksum made to fit; of every second one, the trailers too."""
    magic, parts = taken_apart(data) or (b"", [])
    for i, (kind, critical, payload) in enumerate(parts):
        for at, changed in flipped(payload, step):
            others = [*parts[:i], (kind, critical, changed), *parts[i + 1 :]]
            yield joined(magic, with_index(magic, others, anew=False) if at // step % 2 else others)


@pytest.mark.parametrize("name", [*CONTAINERS, CONTEXT])
def test_flipped_bytes_with_checksums_that_fit_are_read_or_refused(name: str) -> None:
    for data in resealed((GOLDEN / f"{name}.saec").read_bytes(), 151 if name == CONTEXT else 19):
        targets.container(data)


@pytest.mark.parametrize("name", CODECS)
def test_flipped_bytes_of_a_codec_with_checksums_that_fit_are_read_or_refused(name: str) -> None:
    for data in resealed((GOLDEN / f"{name}.saecodec").read_bytes(), 3):
        targets.codec(data)
