"""The targets: what is done with an input that anybody may have written. README.md says what each promises.

A target returns, whatever the bytes, or raises what is a bug: anything but `SaecodecError`. First bytes of some inputs
choose what the others are for (`SELECTORS`).
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import make_golden
import numpy as np
import slots
from golden_codecs import GOLDEN, chunk_codecs, pieces, zarr_codecs

from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.errors import SaecodecError
from saecodec.filled_rows import FilledRows
from saecodec.formats import folders
from saecodec.formats.codecfile import codec_facts, load_codec, save_codec
from saecodec.formats.decoding import verify_file
from saecodec.formats.decoding_latents import decode_latents
from saecodec.formats.describe import describe
from saecodec.formats.file_sizes import bytes_by_part, chunk_sizes
from saecodec.formats.folder_work import DecodeFolder, EncodeFolder, Task
from saecodec.formats.header import Header
from saecodec.formats.recovering import recover_file
from saecodec.formats.saec import open_saec
from saecodec.formats.saec_array import SaecArray
from saecodec.latents import LatentCodec, column_names

T = TypeVar("T")


def refused(read: Callable[[], T]) -> T | None:
    """What `read` returns, or None where it refuses what it was given."""
    try:
        return read()
    except SaecodecError:
        return None


@functools.cache
def scratch() -> Path:
    """A folder for inputs, in memory where there is one, that goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="saecodec-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def put(name: str, data: bytes) -> Path:
    """Write a file into `scratch`."""
    path = scratch() / name
    path.write_bytes(data)
    return path


# -- files of rows and of latents --------------------------------------------------------------------------------------


def _given(path: Path) -> dict[str, Any]:
    """The arguments with which a file is opened: the SAE and the codec that it names, if they are there."""
    with open_saec(path) as file:
        header: Header = file.header
    saes, codecs = pieces()
    sae = None if header.embed == "decoder" else saes.get(header.decoder_id)
    return {"sae": sae, "codec": codecs.get(header.codec_id)}


def container(data: bytes) -> None:
    """A `.saec` file, read in every way; and what `recover` makes of it, which must be a file."""
    path, out = put("f.saec", data), scratch() / "recovered.saec"
    refused(lambda: describe(path))
    given = refused(lambda: _given(path)) or {}
    verified = refused(lambda: _verified(path, given))
    refused(lambda: _looked_at(path, given))
    if refused(lambda: recover_file(path, out, force=True)):
        with open_saec(out) as file:
            verify_file(file, decode=False)
        if verified:
            assert out.stat().st_size <= 2 * len(data) + 256


def _verified(path: Path, given: dict[str, Any]) -> bool:
    with open_saec(path, **given, device="cpu") as file:
        refused(lambda: bytes_by_part(file))
        refused(lambda: [chunk_sizes(file, i) for i in range(len(file.index.rows))])
        verify_file(file)
    return True


_MOST_ROWS: Final = 1 << 20
"""Of a file that is read whole: empty rows cost a file nothing, and an array what they take."""


def _looked_at(path: Path, given: dict[str, Any]) -> None:
    """As an array, whole and in part, by latent, and as what it was made from."""
    with SaecArray(path, **given, device="cpu") as array:
        n = array.n_rows
        refused(lambda: array.feature(0))
        refused(lambda: array.levels[: n // 2])
        if array.file.holds_latents:
            refused(lambda: decode_latents(array.file, scratch() / "z.npz", dtype="float32", force=True))
            shutil.rmtree(scratch() / "cache", ignore_errors=True)
            refused(lambda: decode_latents(array.file, scratch() / "cache", dtype="float32"))
            return
        refused(lambda: array.take(np.arange(n - 1, max(n - 3, -1), -1)))
        if n <= _MOST_ROWS:
            assert array[...].shape == array.shape


def codec(data: bytes) -> None:
    """A codec file; what is read of it must come back when it is written."""
    path = put("c.saecodec", data)
    refused(lambda: codec_facts(path))
    found = refused(lambda: load_codec(path, "cpu"))
    if found is None:
        return
    save_codec(found, scratch() / "again.saecodec", embed_sae=found.sae is not None, force=True)
    again = load_codec(scratch() / "again.saecodec", "cpu")
    assert (again.codec_id, again.decoder_id) == (found.codec_id, found.decoder_id)
    repr(found)


# -- payloads of chunks ------------------------------------------------------------------------------------------------


def chunk(data: bytes) -> None:
    """The payload of a chunk under a codec that the first byte chooses; its top bit: residual levels of the first."""
    if not data:
        return
    choices = chunk_codecs()
    _, found, rows = choices[(data[0] & 0x7F) % len(choices)]
    payload = data[1:]
    latents = found if isinstance(found, LatentCodec) else found.latents
    if isinstance(found, Codec) and found.residual is not None and data[0] & 0x80:
        layer = found.residual
        levels = refused(lambda: layer.decode(payload, rows, "chunk"))
        if levels is not None:
            refused(lambda: layer.rows(levels))
        return
    refused(lambda: column_names(payload))
    refused(lambda: latents.chunk_bytes(payload))
    codes = refused(lambda: latents.unpack(payload))
    some = np.array([0, latents.prior.n_latents - 1])
    part = refused(lambda: latents.unpack_some(payload, some))
    if codes is None:
        return
    codes.check()
    again = latents.unpack(latents.pack(codes))
    _assert_same(again, codes)
    assert part is not None
    assert part.nnz == np.isin(codes.latents, some).sum()
    if isinstance(found, Codec) and found.residual is None:
        refused(lambda: found.reconstruct(codes))


def _assert_same(a: Codes, b: Codes) -> None:
    for name in ("indptr", "latents", "levels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.columns.keys() == b.columns.keys()


# -- what other programs wrote -----------------------------------------------------------------------------------------


def checkpoint(data: bytes) -> None:
    """A file of an SAE checkpoint, by the first two bytes."""
    _fill(slots.checkpoints(), "checkpoint", data)


def arrays(data: bytes) -> None:
    """A file of activations or feature activations, by the first two bytes."""
    _fill(slots.arrays(), "array", data)


def _fill(choices: list[slots.Slot], kind: str, data: bytes) -> None:
    if len(data) < 2:
        return
    slot = next((slot for slot in choices if slot.key == data[:2]), choices[data[0] % len(choices)])
    folder = scratch() / f"{kind}-{slot.key.hex()}"
    if not folder.exists():
        for name, content in slot.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    (folder / slot.name).write_bytes(data[2:])
    refused(lambda: slot.read(folder))


# -- zarr --------------------------------------------------------------------------------------------------------------

ZARR_ROWS: Final = 12


def zarr(data: bytes) -> None:
    """A chunk of a zarr array, through zarr; or, if the first byte is odd, the configuration in its metadata."""
    import zarr as zarr_python
    from zarr.core.array_spec import ArrayConfig, ArraySpec
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.dtype import Float32

    from saecodec.formats.zarr import SaeCodec, register_codec

    if not data:
        return
    if data[0] & 1:
        try:
            content = json.loads(data[1:])
        except (ValueError, RecursionError):
            return
        found = refused(lambda: SaeCodec.from_dict(content))
        if found is not None:
            assert SaeCodec.from_dict(found.to_dict()) == found
            spec = ArraySpec((4, 8), Float32(), 0.0, ArrayConfig("C", False), default_buffer_prototype())
            refused(lambda: found.evolve_from_array_spec(spec))
        return
    chosen = zarr_codecs()[data[0] // 2 % 2]
    register_codec(chosen)
    store: dict[str, Any] = {}
    array = zarr_python.create_array(
        zarr_python.storage.MemoryStore(store),
        shape=(ZARR_ROWS, 8),
        chunks=(ZARR_ROWS, 8),
        dtype="float32",
        serializer=SaeCodec(chosen.codec_id, 8),
        compressors=None,
    )
    store["c/0/0"] = default_buffer_prototype().buffer.from_bytes(data[1:])
    if refused(lambda: array[:]) is not None:
        refused(lambda: array.__setitem__((slice(2, 4), slice(None)), 0.5))
        block = FilledRows.read(chosen, data[1:], ZARR_ROWS)
        assert FilledRows.read(chosen, block.to_bytes(chosen), ZARR_ROWS).coded.tolist() == block.coded.tolist()


# -- folders -----------------------------------------------------------------------------------------------------------


@functools.cache
def folder_task(command: str) -> tuple[Task, bytes, dict[str, bytes]]:
    """A folder that was coded or decoded: the task, its manifest, and its outputs."""
    place = scratch() / command
    source, coded, decoded = (str(place / name) for name in ("rows", "coded", "decoded"))
    os.makedirs(source)
    np.save(f"{source}/a.npy", make_golden.golden_rows(6))
    task: Task = EncodeFolder(src=source, dst=coded, codec=str(GOLDEN / "none.saecodec"), device="cpu")
    folders.run(task, jobs=1)
    if command == "decode-dir":
        task = DecodeFolder(src=coded, dst=decoded, codec=str(GOLDEN / "none.saecodec"), device="cpu")
        folders.run(task, jobs=1)
    outputs = {path.name: path.read_bytes() for path in Path(task.dst).iterdir() if path.is_file()}
    return task, outputs.pop("manifest.jsonl"), outputs


def manifest(data: bytes) -> None:
    """The manifest of `encode-dir`, or of `decode-dir` if the first byte is odd; what is there must stay unless it is
    made again."""
    if not data:
        return
    task, _, outputs = folder_task("decode-dir" if data[0] & 1 else "encode-dir")
    for name, content in outputs.items():
        Path(task.dst, name).write_bytes(content)
    Path(task.dst, "manifest.jsonl").write_bytes(data[1:])
    refused(lambda: folders.run(task, jobs=1, check=bool(data[0] & 2), force=bool(data[0] & 4)))
    assert all(Path(task.dst, name).exists() for name in outputs)
    assert {path.name for path in Path(task.dst).iterdir()} <= {*outputs, "manifest.jsonl"}


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target for target in (container, codec, chunk, checkpoint, zarr, manifest, arrays)
}
SELECTORS: Final = {"chunk": 1, "checkpoint": 2, "zarr": 1, "manifest": 1, "arrays": 2}
"""How many bytes of an input choose what the others are for."""
