"""Codec files (`.saecodec`): a fitted codec, with its SAE's weights where they were asked for.

Magic, then the frames of `Codec.to_bytes`, then optionally a weights frame `SAEW`.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from saecodec.errors import FormatError, InputError, MissingPieceError
from saecodec.formats.atomic import atomic_output
from saecodec.formats.byte_source import is_url, open_bytes, size_of
from saecodec.frames import HEAD_BYTES, FrameHead, field, frame, known_frames, unpack_record
from saecodec.version import check_version

if TYPE_CHECKING:
    from saecodec.codec import Codec

MAGIC: Final = b"\x89SAEM\r\n\x1a"
WEIGHTS: Final = "SAEW"
EMBED: Final = ("none", "sae")
ROWS_EXTENSION: Final = ".saec"
_MEASURED: Final = ("embeds_sae", "table_bytes", "residual_bytes")
"""Facts that are never taken from what a codec file says."""


def save_codec(codec: Codec, path: str | os.PathLike[str], *, embed_sae: bool = False, force: bool = False) -> None:
    """Write a codec file.

    embed_sae: put the whole SAE in, so that the file encodes without it. force: overwrite. Raises OutputError when
    the file cannot be written, InputError when there is no SAE to embed.
    """
    data = MAGIC + codec.to_bytes(embed="sae" if embed_sae else "none")
    if embed_sae:
        from saecodec.formats.weights import pack_weights

        if codec.sae is None:
            raise InputError("there is no SAE to embed: use codec.with_sae(sae) first")
        data += frame(WEIGHTS, pack_weights(codec.sae, decoder_only=codec.sae.encoder is None))
    with atomic_output(path, force=force) as file:
        file.write(data)


def load_codec(path: str | os.PathLike[str], device: str = "auto") -> Codec:
    """Read a codec file, from a path or a URL (of fsspec); its SAE is set when the file embeds it, on `device` ("auto":
    cuda where there is one). Of a `.saec` file, the codec whose tables it holds.

    InputError when it cannot be read, FormatError when it is not a codec file, MissingPieceError when it is a `.saec`
    file without tables.
    """
    from saecodec.codec import Codec

    name = os.fspath(path)
    if name.endswith(ROWS_EXTENSION):
        return _codec_of_rows(name)
    parts = read_codec_file(path)
    codec = Codec.from_frames([part for part in parts if part[0] != WEIGHTS], name)
    head = dict(parts)["CHED"]
    embed, found = field(unpack_record(head, name), "embed", str, name), [kind for kind, _ in parts].count(WEIGHTS)
    if embed not in EMBED or found != EMBED.index(embed) or (found and parts[-1][0] != WEIGHTS):
        raise FormatError(f"{name}: says that it embeds {embed!r}, but holds {found} weights frames: damaged")
    if found:
        from saecodec.formats.weights import unpack_weights

        sae = unpack_weights(parts[-1][1], name, n_latents=codec.latents.prior.n_latents)
        codec = codec.with_sae(sae.to(device))
    return codec


def _codec_of_rows(name: str) -> Codec:
    """The codec in a `.saec` file."""
    from saecodec.formats.saec import open_saec

    with open_saec(name) as file:
        if file.header.embed == "none":
            raise MissingPieceError(f"{name}: holds no tables: give the codec that it was encoded with itself")
        return file.codec


def codec_bytes(path: str | os.PathLike[str]) -> int:
    """Size of a codec's file; of a `.saec` file, what its tables alone would take as one."""
    name = os.fspath(path)
    return len(MAGIC) + len(_codec_of_rows(name).to_bytes()) if name.endswith(ROWS_EXTENSION) else size_of(name)


def codec_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a codec file says of itself; tables and weights are skipped, not read."""
    name = os.fspath(path)
    sizes: dict[str, int] = {}
    facts: dict[str, Any] = {}
    with _opened(path) as file:
        left = file.seek(0, os.SEEK_END) - len(MAGIC)
        file.seek(len(MAGIC))
        while left:
            head = FrameHead.parse(file.read(HEAD_BYTES), left - HEAD_BYTES, name)
            sizes[head.kind] = head.length
            left -= HEAD_BYTES + head.length
            if head.kind != "CHED":
                file.seek(head.length, os.SEEK_CUR)
                continue
            payload = file.read(head.length)
            head.check(payload, name)
            record = unpack_record(payload, name)
            check_version(record, name)
            for key, kind in (("codec_id", bytes), ("decoder_id", bytes), ("prior", str), ("step", float)):
                value = field(record, key, kind, name)
                facts[key] = value.hex() if isinstance(value, bytes) else _finite(value)
            info = _plain(field(record, "info", dict, name), name)
            facts = {key: value for key, value in info.items() if key not in _MEASURED} | facts
    if not facts:
        raise FormatError(f"{name}: a codec file without a CHED frame")
    layer = {"residual_bytes": sizes["RTAB"]} if "RTAB" in sizes else {}
    return facts | {"embeds_sae": WEIGHTS in sizes, "table_bytes": sizes.get("TABL", 0)} | layer


def _plain(info: dict[str, Any], name: str) -> dict[str, Any]:
    """What a codec file says for people; FormatError when it is more than JSON can say."""
    try:
        json.dumps(info)
    except TypeError as error:
        raise FormatError(f"{name}: header field 'info' holds what is no text or number ({error})") from error
    return {key: _finite(value) for key, value in info.items()}


def _finite(value: Any) -> Any:
    """A value with text for NaN and infinity, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The file, or what a URL names, behind its magic."""
    name = os.fspath(path)
    file: BinaryIO
    if is_url(name):
        with closing(open_bytes(name)) as source:
            file = io.BytesIO(source.read([(0, source.size)])[0])
    else:
        try:
            file = open(path, "rb")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror})") from error
    with file:
        if file.read(len(MAGIC)) != MAGIC:
            raise FormatError(f"{name}: not a codec file (it does not begin with the magic {MAGIC!r})")
        yield file


def read_codec_file(path: str | os.PathLike[str]) -> list[tuple[str, memoryview]]:
    """Types and payloads of the frames of a codec file, unknown ancillary ones left out."""
    from saecodec.codec import CODEC_FRAMES

    with _opened(path) as file:
        data = file.read()
    return list(known_frames(data, (*CODEC_FRAMES, WEIGHTS), os.fspath(path)))
