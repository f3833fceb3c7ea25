"""Codecs by their id, for arrays that name their codec: where it is looked for, and one copy in memory of each."""

from __future__ import annotations

import glob
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from saecodec.errors import IdentityError, InputError, MissingPieceError, SaecodecError, UnsupportedError

if TYPE_CHECKING:
    from saecodec.codec import Codec

PATH_VARIABLE: Final = "SAECODEC_PATH"
"""Environment variable: folders, separated as in PATH, that hold codec files."""
_EXTENSION: Final = ".saecodec"

_known: dict[str, Codec] = {}
_lock = threading.Lock()  # held while a codec is loaded, so that threads that need the same one do not load it twice


def register_codec(codec: Codec) -> None:
    """Make a codec known to all arrays of this process that name its id; it comes before any file."""
    with _lock:
        _known[codec.codec_id] = codec


def find_codec(codec_id: str, path: str | None = None, sae: str | None = None) -> Codec:
    """The codec of this id, with its SAE: one that is registered, or was found before; else that of a file in the
    folders of `SAECODEC_PATH`; else that of the file or URL `path`.

    sae: path of its SAE, for a codec whose file does not hold it. Relative paths are relative to the current folder.
    Raises MissingPieceError when there is none, or no SAE; IdentityError when `path` holds another codec.
    """
    with _lock:
        codec = _known.get(codec_id)
        if codec is None:
            codec = _in_folders(codec_id)
        if codec is None or (codec.sae is None and sae is None and path is not None):
            codec = _in_file(codec_id, path)  # which may hold the SAE that the other lacks
        _known[codec_id] = codec = with_its_sae(codec, sae)
        return codec


def with_its_sae(codec: Codec, sae: str | None) -> Codec:
    """The codec with the SAE that it holds, else that of the path `sae`; MissingPieceError when there is neither,
    UnsupportedError when the SAE scales rows by sequences that chunks may cut."""
    if codec.side is not None and codec.side.kind == "sequence_norm":
        raise UnsupportedError(
            f"the SAE {codec.info.get('sae', '?')!r} scales rows by their whole sequence, and a part of a chunk may be "
            "written without the rest: encode the complete array (saecodec encode)"
        )
    if codec.sae is not None:
        return codec
    if sae is None:
        raise MissingPieceError(
            f"the codec {codec.codec_id} lacks its SAE {codec.info.get('sae', '?')!r} (decoder id "
            f"{codec.decoder_id[:16]}...): fit the codec with --embed-sae (save_codec(..., embed_sae=True)), or name "
            "the SAE in the array (SaeCodec.of(..., sae=PATH)), or call register_codec(codec.with_sae(sae))"
        )
    from saecodec.formats.checkpoints import load_sae

    return codec.with_sae(load_sae(sae))


def _in_folders(codec_id: str) -> Codec | None:
    from saecodec.formats.codecfile import codec_facts, load_codec

    for folder in filter(None, os.environ.get(PATH_VARIABLE, "").split(os.pathsep)):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), f"*{_EXTENSION}"))):
            with suppress(SaecodecError):  # a file that cannot be read is not the one looked for
                if codec_facts(path)["codec_id"] == codec_id and (codec := load_codec(path)).codec_id == codec_id:
                    return codec
    return None


def _in_file(codec_id: str, path: str | None) -> Codec:
    from saecodec.formats.codecfile import load_codec

    ways_out = (
        f"put its file ({_EXTENSION}) into a folder that the environment variable {PATH_VARIABLE} names, or load it "
        "and call saecodec.formats.zarr.register_codec(codec)"
    )
    if path is None:
        raise MissingPieceError(f"the codec {codec_id} is not at hand, and the array names no file of it: {ways_out}")
    try:
        codec = load_codec(path)
    except InputError as error:
        raise MissingPieceError(f"the codec {codec_id} is not at hand ({error}): {ways_out}") from error
    if codec.codec_id != codec_id:
        raise IdentityError(
            f"{path}: has codec id {codec.codec_id}, but the array was written with {codec_id}: {ways_out}"
        )
    return codec
