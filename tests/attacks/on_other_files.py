"""Codec files, checkpoints, arrays, manifests and chunks of zarr arrays, as far as our code reads them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial

import torch
from attack import CODEC, Attack
from hostile import (
    codec_file,
    edited,
    record,
    weights,
    zeros,
)

from saecodec.frames import frame
from saecodec.wire import varints


def on_codec_files() -> list[Attack]:
    def codec(name: str, match: str, data: Callable[[], bytes], error: str = "FormatError") -> Attack:
        return Attack(name, error, match, data, ".saecodec")

    def nonlinearity(**changes: object) -> Callable[[], bytes]:
        described = {"kind": "topk", "k": 2} | changes
        shapes = {"b_dec": [8], "b_enc": [48], "w_dec": [48, 8], "w_enc": [8, 48]}
        settings = {"nonlinearity": described, "apply_b_dec_to_input": False, "dtype": "float32"}
        packed = zeros(4 * (8 + 48 + 2 * 384))
        return lambda: codec_file(edited(CODEC, "SAEW", lambda _: weights(shapes, packed, **settings)))

    head = partial(edited, CODEC, "CHED")
    return [
        codec("codec of another magic", "not a codec file", lambda: b"\x89SAEC\r\n\x1a" + codec_file(CODEC)[8:]),
        codec(
            "codec from the future",
            "format version 9.9",
            lambda: codec_file(head(record(version=[9, 9]))),
            "UnsupportedError",
        ),
        codec("codec that lies about what it embeds", "damaged", lambda: codec_file(head(record(embed="none")))),
        codec("codec without tables", "found", lambda: codec_file([CODEC[0], CODEC[2]])),
        codec("codec with tables twice", "found", lambda: codec_file([CODEC[0], CODEC[1], *CODEC[1:]])),
        codec(
            "codec of another hash", "not those of the codec id", lambda: codec_file(head(record(codec_id=bytes(32))))
        ),
        codec(
            "codec of another decoder",
            "not those of the codec id",
            lambda: codec_file(head(record(decoder_id=bytes(32)))),
        ),
        codec(
            "codec with what is for files alone",
            "which is for .saec files",
            lambda: codec_file(head(record(requires=["prior:factorized", "content:latents"]))),
        ),
        codec("codec of half a frame", "truncated", lambda: codec_file(CODEC)[:-1]),
        codec(
            "groups that do not divide the latents",
            "are not 7 groups",
            nonlinearity(kind="groupmax", k=7),
            "CheckpointError",
        ),
        codec("k of zero", "k is 0", nonlinearity(k=0), "CheckpointError"),
        codec("k that is no integer", "k is 2.5", nonlinearity(k=2.5), "CheckpointError"),
        codec("nonlinearity of nothing known", "unknown nonlinearity", nonlinearity(kind="eval"), "UnsupportedError"),
        codec("threshold missing", "needs 'threshold'", nonlinearity(kind="jumprelu"), "CheckpointError"),
        codec(
            "steps of a pursuit that are negative",
            "matching pursuit of -1 steps",
            nonlinearity(kind="matching_pursuit", max_iterations=-1),
            "CheckpointError",
        ),
    ]


class _Opens:
    """What a pickle may do when it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("was-run", "w")


def on_other_files() -> list[Attack]:
    """Checkpoints and arrays, as far as our code reads them."""
    return [
        Attack(
            "checkpoint that runs code",
            "UnsupportedError",
            "nothing that would run code is",
            lambda: pickle.dumps({"w": _Opens()}, 2),
            ".pt",
        ),
        Attack("checkpoint of a bomb", "LimitError", "SAECODEC_LIMITS=expansion=", lambda: _npz(1 << 26), ".sae.npz"),
        Attack(
            "checkpoint of a bzip2 bomb",
            "CheckpointError",
            "'w_dec.npy' is unusually compressed",
            lambda: _npz(1 << 26, method=zipfile.ZIP_BZIP2),
            ".sae.npz",
        ),
        Attack(
            "checkpoint that torch alone can unpack",
            "UnsupportedError",
            "a zip archive that cannot be read",
            lambda: _of_later_zip(_torch_bomb(1 << 26)),
            ".pt",
        ),
        Attack("array of objects", "InputError", "a pickle, which is never loaded", _objects, ".npy"),
        Attack("array of 2^60 values", "InputError", "needs", lambda: _npy((1 << 30, 1 << 30)), ".npy"),
        Attack("array header that nests", "InputError", "not an .npy file", lambda: _npy_header(b"(" * 9000), ".npy"),
        Attack(
            "column-major array of a bomb",
            "LimitError",
            "SAECODEC_LIMITS=expansion=",
            lambda: _npz(1 << 26, fortran=True),
            ".npz",
        ),
        Attack(
            "safetensors header beyond the file",
            "InputError",
            "its header would have",
            lambda: struct.pack("<Q", 1 << 62),
            ".safetensors",
        ),
        Attack(
            "safetensors header that nests",
            "InputError",
            "header is corrupt",
            lambda: _safetensors(b'{"a":' * 100000),
            ".safetensors",
        ),
        Attack(
            "safetensors header of millions of items",
            "InputError",
            "corrupt",
            lambda: _safetensors(b"[" + b"{}," * 2_700_000 + b"0]"),
            ".safetensors",
        ),
        Attack(
            "safetensors header beyond 8 MB",
            "InputError",
            "its header would have",
            lambda: _safetensors(b" " * ((1 << 23) + 1)),
            ".safetensors",
        ),
        Attack("config that nests", "CheckpointError", "cannot be read as JSON", lambda: b'{"a":' * 100000, ".json"),
        Attack("config beyond 8 MB", "CheckpointError", "larger than 8 MiB", lambda: b" " * ((1 << 23) + 1), ".json"),
        Attack("manifest that nests", "FormatError", "is not JSON", lambda: b'{"a":' * 100000 + b"\n{}\n", ".jsonl"),
        Attack(
            "zarr chunk of more rows",
            "FormatError",
            "holds 5 rows where 4 are expected",
            lambda: frame("ROWS", varints([5, 1, 5])),
            ".zarr-chunk",
        ),
        Attack(
            "zarr runs that do not sum",
            "FormatError",
            "do not make up 4 rows",
            lambda: frame("ROWS", varints([4, 2, 1, 2])),
            ".zarr-chunk",
        ),
        Attack(
            "zarr runs beyond the rows",
            "FormatError",
            "at most 5",
            lambda: frame("ROWS", varints([4, 6] + [1] * 6)),
            ".zarr-chunk",
        ),
        Attack(
            "zarr chunk of fewer rows than it codes",
            "FormatError",
            "it holds fewer",
            lambda: frame("ROWS", varints([4, 1, 4])),
            ".zarr-chunk",
        ),
    ]


def _npy_header(text: bytes) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def _npy(shape: tuple[int, ...], fortran: bool = False) -> bytes:
    return _npy_header(f"{{'descr': '<f4', 'fortran_order': {fortran}, 'shape': {shape}}}\n".encode())


def _objects() -> bytes:
    header = _npy_header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1)}\n")
    return header + pickle.dumps([_Opens()], protocol=3)  # numpy's own is another in each version


def _npz(n_bytes: int, fortran: bool = False, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """An archive of an array of zeros, packed a thousandfold or more."""
    return _zip({"w_dec.npy": _npy((n_bytes // 4096, 1024), fortran) + bytes(n_bytes)}, method)


def _zip(members: dict[str, bytes], method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(name)  # of no time: the bytes are always the same
            member.compress_type = method
            archive.writestr(member, data)
    return out.getvalue()


def _torch_bomb(n_bytes: int) -> bytes:
    """A checkpoint of zeros as torch saves it, but deflated."""
    saved = io.BytesIO()
    torch.save({"W_dec": torch.zeros(n_bytes // 4096, 1024)}, saved)
    with zipfile.ZipFile(saved) as archive:
        return _zip({info.filename: archive.read(info) for info in archive.infolist()}, zipfile.ZIP_DEFLATED)


def _of_later_zip(archive: bytes) -> bytes:
    """An archive that says of its members that version 6.4 of the format is needed, which zipfile does not know."""
    out = bytearray(archive)
    at = out.find(b"PK\1\2")
    while at >= 0:
        out[at + 6] = 64
        at = out.find(b"PK\1\2", at + 4)
    return bytes(out)


def _safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header
