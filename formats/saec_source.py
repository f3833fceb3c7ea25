"""Rows of `.saec` files as an array source: what is coded is read as arrays are, decoded chunk by chunk.

`open_array` leaves such files out on purpose. Encoding or measuring takes the rows that were there before; those of a
file are near them, and a figure taken on them would look better than it is. Who can use them says so: `open_rows`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from saecodec.errors import InputError
from saecodec.formats.array_blocks import BlockArray
from saecodec.formats.array_source import ArraySource, FloatRows
from saecodec.formats.arrays import EXTENSIONS, is_array_folder, open_array
from saecodec.formats.byte_source import is_url
from saecodec.formats.codecfile import ROWS_EXTENSION
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.formats.shards import ShardedArray, natural_order

if TYPE_CHECKING:
    from saecodec.codec import Codec
    from saecodec.sae import SAE


class SaecRows(BlockArray):
    """The rows of a `.saec` file, of a path or URL, in the shape that was encoded, as `SaecFile.batches` gives them.

    They are float32, not rounded to the `dtype` of the input; memory holds a chunk, or a part of a large one, and the
    decoder. sae, codec: what the file does not embed. device: where a decoder that it embeds goes. jobs: processes that
    decode, see `SaecFile.batches`. The file is open while it is read.

    Raises:
        InputError: it cannot be opened, holds latents, or has changed since. MissingPieceError, IdentityError: it needs
        an SAE or a codec, or another one. FormatError: it is damaged, where it is read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sae: SAE | None = None,
        codec: Codec | None = None,
        device: str = "auto",
        jobs: int | None = 1,
    ) -> None:
        with open_saec(path, sae=sae, codec=codec, device=device) as file:
            self._decoder = file.decoder  # now, for it may be missing; and once, for it may have to be unpacked
            self._identity = _identity(file)
            super().__init__(file.path, file.shape, file.dtype)
        self._jobs = jobs

    def _blocks(self) -> Iterator[FloatRows]:
        with open_saec(self.path, codec=self._decoder) as file:
            if _identity(file) != self._identity:
                raise InputError(f"{self.path}: has changed since it was opened")
            for rows in file.batches(jobs=self._jobs):
                yield rows.reshape(-1, self.width)  # which cuts rows of several heads


def _identity(file: SaecFile) -> tuple[tuple[int, ...], str, str, str | None]:
    return file.shape, file.dtype, file.header.codec_id, file.header.decoder_id


def open_rows(
    path: str | os.PathLike[str],
    key: str | None = None,
    *,
    sae: SAE | None = None,
    codec: Codec | None = None,
    device: str = "auto",
    jobs: int | None = 1,
) -> ArraySource:
    """Open rows, be they stored or coded: a `.saec` file as `SaecRows`, any other input as `open_array` does.

    A pattern that ends in .saec is one array, and so is a folder that holds such files and no array file. Of what
    encode-dir made in several folders, give the pattern 'folder/**/*.saec'. key: of arrays alone. sae, codec, device,
    jobs: of `.saec` files alone, see `SaecRows`.

    Raises:
        InputError: see `open_array` and `SaecRows`, whose other errors this raises, too.
    """
    name = os.fspath(path)
    shards = _shards(name)
    if shards is None and not _is_saec(name):
        return open_array(name, key)
    if key is not None:
        raise InputError(f"{name}: a {ROWS_EXTENSION} file holds one array, which has no key; {key!r} was given")

    def opener(name: str, key: str | None = None) -> ArraySource:
        return SaecRows(name, sae=sae, codec=codec, device=device, jobs=jobs)

    return opener(name) if shards is None else ShardedArray(name, sorted(shards, key=natural_order), None, opener)


def is_saec_rows(path: str | os.PathLike[str]) -> bool:
    """Whether `open_rows` takes a path, a pattern or a folder for `.saec` files."""
    name = os.fspath(path)
    return _is_saec(name) or _shards(name) is not None


def _is_saec(path: str) -> bool:
    name = urlsplit(path).path if is_url(path) else path  # without what a URL asks for
    return os.path.splitext(name)[1].lower() == ROWS_EXTENSION


def _shards(path: str) -> list[str] | None:
    """The `.saec` files that a pattern or folder stands for; None when it is neither, or one of arrays."""
    if is_url(path):
        return None
    if os.path.isdir(path):
        names = [name for name in os.listdir(path) if not name.startswith(".")]
        found = [os.path.join(path, name) for name in names if _is_saec(name)]
        arrays = is_array_folder(path) or any(os.path.splitext(name)[1].lower() in EXTENSIONS for name in names)
        return found if found and not arrays else None
    if glob.has_magic(path) and not os.path.exists(path) and _is_saec(path):
        return glob.glob(path, recursive=True)
    return None
