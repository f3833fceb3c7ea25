"""`create`: a new `.saec` file to write rows into as they come, or one that exists to append to."""

from __future__ import annotations

import math
import os

from saecodec.codec import DEFAULT_CHUNK_ROWS, Codec
from saecodec.decoder_precision import FLOAT32
from saecodec.errors import InputError, MissingPieceError, OutputError, UnsupportedError
from saecodec.formats.array_source import ITEM_BYTES
from saecodec.formats.frame_writer import FrameWriter
from saecodec.formats.saec import open_saec
from saecodec.formats.saec_writer import SaecWriter
from saecodec.formats.store_file import StoreFile
from saecodec.formats.store_writer import StoreWriter
from saecodec.formats.structure import columns_of
from saecodec.row_coder import RowCoder
from saecodec.sae import SAE
from saecodec.search import MODES, Mode, fitted_search
from saecodec.sequences import SEQUENCE
from saecodec.side import side_columns


def create(
    path: str | os.PathLike[str],
    codec: Codec | None = None,
    *,
    sae: SAE | None = None,
    dtype: str | None = None,
    chunk_rows: int | None = None,
    embed: str | None = None,
    weights: str | None = None,
    row_shape: tuple[int, ...] | None = None,
    user: dict[str, str] | None = None,
    search: Mode | None = None,
    append: bool = False,
    force: bool = False,
) -> StoreWriter:
    """A `.saec` file to write rows into as they come.

    codec: fitted before, with its SAE or beside `sae`. dtype: that decoding gives, "float32" by default. chunk_rows:
    4096. embed: "none" (default), "tables" or "decoder". weights: precision of an embedded decoder, which the codec
    must be fitted for. row_shape: of a row, where that is not (d,). user: free text by key. search: "none", "refit" or
    "pursuit", by default what the codec was fitted with. force: replace a file, and what a killed run has left of one.

    append: add rows to a complete file instead, under its own header and codec; `codec` only if it embeds none, and the
    SAE. search is not in a file: give it again.

    Raises InputError (options, contradictions), MissingPieceError, IdentityError, OutputError (the file exists, or is
    being written by another process), FormatError (append: the file is damaged).

    >>> with saecodec.create("acts.saec", codec) as store:         # doctest: +SKIP
    ...     for block in blocks:  # (n, d) or (n, S, d)
    ...         store.append(block)
    """
    if append:
        decided: dict[str, object] = {"dtype": dtype, "chunk_rows": chunk_rows, "embed": embed, "weights": weights}
        decided |= {"row_shape": row_shape, "user": user, "force": force or None}
        given = [name for name, value in decided.items() if value is not None]
        if given:
            raise InputError(f"{os.fspath(path)}: the file decides {', '.join(given)}: leave it out to append")
        return _appending(path, codec, sae, search)
    if codec is None:
        raise InputError("a new file needs a codec: fit one (saecodec.Codec.fit), or read one (saecodec.load_codec)")
    codec = codec if sae is None else codec.with_sae(sae)
    coder = _coder(codec, search)
    if dtype not in (None, *ITEM_BYTES):
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(ITEM_BYTES)}")
    row_shape = row_shape or (coder.sae.width,)
    chunk_rows = DEFAULT_CHUNK_ROWS if chunk_rows is None else chunk_rows
    if math.prod(row_shape) != coder.sae.width:
        raise InputError(f"rows of shape {row_shape} are not the {coder.sae.width} values that the SAE codes")
    file = StoreFile(path, append=False, force=force)
    try:
        writer = SaecWriter(
            file.raw,
            codec,
            shape=(0, coder.sae.width),
            dtype=dtype or "float32",
            chunk_rows=chunk_rows,
            embed=embed or "none",
            user=user,
            row_shape=row_shape,
            weights=weights or FLOAT32,
        )
        return StoreWriter(file, writer.frames, coder, chunk_rows=chunk_rows, row_shape=row_shape)
    except BaseException:
        file.discard()
        raise


def _appending(path: str | os.PathLike[str], codec: Codec | None, sae: SAE | None, search: Mode | None) -> StoreWriter:
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise OutputError(f"{path}: may not be written, or lies on a read-only disk: nothing was appended")
    file = StoreFile(path, append=True, force=False)
    try:
        with open_saec(path, sae=sae, codec=codec) as found:
            coder = _coder(found.decoder, search, codec)
            columns = columns_of(found)
            if columns is not None:
                known = {SEQUENCE, *side_columns(coder.sae.normalization)}
                others = [name for name in columns if name not in known]
                if others:
                    raise InputError(f"{found.path}: its rows have the column {others[0]!r}, which these have not")
            return StoreWriter(
                file,
                FrameWriter(file.raw, found.size, found.index),
                coder,
                chunk_rows=found.header.chunk_rows,
                row_shape=found.row_shape,
                inner=found.index.leading[1:] if found.n_rows else None,
                with_ids=None if columns is None else SEQUENCE in columns,
            )
    except BaseException:
        file.close()
        raise


def _coder(codec: Codec, search: Mode | None, fitted: Codec | None = None) -> RowCoder:
    """What codes rows; search: by default what the codec was fitted with."""
    if codec.sae is None or codec.sae.encoder is None:
        raise MissingPieceError("coding rows needs the whole SAE, with its encoder: give it (sae=, -s SAE)")
    if codec.sae.normalization == "sequence_norm":
        raise UnsupportedError(
            f"the SAE {codec.sae.name!r} scales rows by their whole sequence, which is not known before it ends: "
            "encode the complete array (saecodec encode)"
        )
    if search not in (None, *MODES):
        raise InputError(f"search is {search!r}, expected one of {', '.join(MODES)}")
    return RowCoder(codec, search or fitted_search((fitted or codec).info))
