"""`saecodec.sae`: rows in zarr v3 arrays, each chunk coded by a fitted codec (zarr-python 3, an extra).

zarr finds `SaeCodec` by its entry point, so whoever opens such an array need not import saecodec. The array's metadata
name the codec by its hash; the codec itself is looked up when the first chunk is read or written.

>>> serializer = SaeCodec.of("l3.saecodec")                                                     # doctest: +SKIP
>>> zarr.create_array("acts.zarr", shape=(1_000_000, 384), chunks=(4096, 384), dtype="float32",
...                   serializer=serializer, compressors=None)                                  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec, ArrayBytesCodecPartialEncodeMixin
from zarr.core.common import parse_named_configuration

from saecodec.errors import FormatError, InputError
from saecodec.formats.codec_lookup import find_codec, register_codec, with_its_sae
from saecodec.limits import check_limit

if TYPE_CHECKING:
    from zarr.abc.store import ByteSetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

    from saecodec.codec import Codec

__all__ = ["SaeCodec", "register_codec"]

NAME: Final = "saecodec.sae"
_DTYPES: Final = ("float16", "float32", "float64")


@dataclass(frozen=True)
class SaeCodec(ArrayBytesCodec, ArrayBytesCodecPartialEncodeMixin):
    """The serializer of an array (..., d) of float16, float32 or float64.

    codec_id: of the codec, in hex. width: d. codec, sae: where the codec's file is, and its SAE where that file does
    not hold it, or None: paths, relative to the current folder of whoever reads, or URLs. `codec_lookup.find_codec`
    says where a codec is looked for.
    """

    is_fixed_size = False

    codec_id: str
    width: int
    codec: str | None = None
    sae: str | None = None

    @classmethod
    def of(cls, codec: str | os.PathLike[str] | Codec, sae: str | os.PathLike[str] | None = None) -> SaeCodec:
        """The serializer of a codec file, by path or URL, or of a codec in memory, which is registered and named by its
        id alone.

        sae: path of the SAE, needed where the codec does not hold it. Raises InputError, FormatError, IdentityError;
        MissingPieceError without an SAE.
        """
        from saecodec.codec import Codec
        from saecodec.formats.codecfile import load_codec

        path = None if isinstance(codec, Codec) else os.fspath(codec)
        sae_path = None if sae is None else os.fspath(sae)
        found = with_its_sae(codec if isinstance(codec, Codec) else load_codec(codec), sae_path)
        assert found.sae is not None
        register_codec(found)
        return cls(found.codec_id, found.sae.width, path, sae_path)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SaeCodec:
        """Of the metadata of an array; FormatError when they are not those of this codec."""
        try:
            _, settings = parse_named_configuration(data, NAME)
        except (TypeError, ValueError) as error:
            raise FormatError(f"the configuration of {NAME} in an array's metadata is damaged: {error}") from error
        codec_id, width = settings.get("codec_id"), settings.get("width")
        where: list[Any] = [settings.get(key) for key in ("codec", "sae")]
        named = all(value is None or isinstance(value, str) for value in where)
        if not (isinstance(codec_id, str) and type(width) is int and named):
            raise FormatError(f"the configuration of {NAME} in an array's metadata is damaged: {settings}")
        return cls(codec_id, width, *where)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the metadata of an array."""
        settings = {"codec_id": self.codec_id, "width": self.width, "codec": self.codec, "sae": self.sae}
        return {"name": NAME, "configuration": {key: value for key, value in settings.items() if value is not None}}

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> SaeCodec:
        """Itself; InputError when an array, or a chunk of a shard, does not consist of rows that it codes."""
        self._check(array_spec.shape, array_spec.dtype)
        return self

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """InputError unless array and chunks consist of whole rows."""
        self._check(shape, dtype)
        self._check(chunk_grid.chunk_shape, dtype)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """NotImplementedError: chunks differ in size."""
        raise NotImplementedError

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode, chunk_data, chunk_spec)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        raise InputError(
            f"{NAME} has to be the only codec of an array, or of the chunks in its shards: create it with "
            "compressors=None and without filters. With others zarr would code the rows of a chunk again whenever it "
            "writes to a part of it, which costs quality each time"
        )

    async def _encode_partial_single(
        self, byte_setter: ByteSetter, chunk_array: NDBuffer, selection: Any, chunk_spec: ArraySpec
    ) -> None:
        written = np.zeros(chunk_spec.shape, np.bool_)
        written[selection] = True
        old = None if written.all() else await byte_setter.get(prototype=chunk_spec.prototype)
        data = await asyncio.to_thread(self._merged, old, chunk_array, selection, written, chunk_spec)
        if data is None:
            await byte_setter.delete()
        else:
            await byte_setter.set(chunk_spec.prototype.buffer.from_bytes(data))

    def _decode(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        from saecodec.filled_rows import FilledRows

        dtype, shape = self._check(chunk_spec.shape, chunk_spec.dtype), chunk_spec.shape
        check_limit("array_bytes", math.prod(shape) * dtype.itemsize, "a chunk of the array")
        codec = self._found()
        block = FilledRows.read(codec, chunk_data.to_bytes(), math.prod(shape[:-1]))
        values = block.values(codec, shape, dtype.name, chunk_spec.fill_value).astype(dtype, copy=False)
        unpacked: NDBuffer = chunk_spec.prototype.nd_buffer.from_numpy_array(values)
        return unpacked

    def _merged(
        self, old: Buffer | None, values: NDBuffer, selection: Any, written: NDArray[np.bool_], chunk_spec: ArraySpec
    ) -> bytes | None:
        """The bytes of a chunk after `values` were put into it, None for no chunk. Rows that were not `written` keep
        their codes; one that was in part is coded again."""
        from saecodec.filled_rows import FilledRows

        dtype, shape, fill = self._check(chunk_spec.shape, chunk_spec.dtype), chunk_spec.shape, chunk_spec.fill_value
        codec = self._found()
        by_row = written.reshape(-1, self.width)
        rows, whole = np.asarray(by_row.any(axis=1)), np.asarray(by_row.all(axis=1))
        block = None if old is None else FilledRows.read(codec, old.to_bytes(), len(rows))
        if block is None or (rows == whole).all():
            x = np.full(shape, fill, dtype)
        else:
            x = block.values(codec, shape, dtype.name, fill).astype(dtype, copy=False)
        given = values.as_numpy_array()
        # An index of one dimension may be a list of one, which zarr has dropped from the values.
        x[selection] = given if given.ndim == 0 else given.reshape(x[selection].shape)
        new = FilledRows.of(codec, x, fill, rows)
        if block is not None:
            new = block.overlaid(new, rows)
        return new.to_bytes(codec) if new.coded.any() or chunk_spec.config.write_empty_chunks else None

    def _found(self) -> Codec:
        return find_codec(self.codec_id, self.codec, self.sae)

    def _check(self, shape: tuple[int, ...], dtype: Any) -> np.dtype[Any]:
        """numpy's dtype; InputError unless shape and dtype are those of rows that this codec codes."""
        native: np.dtype[Any] = dtype.to_native_dtype()
        if native.name not in _DTYPES:
            raise InputError(f"{NAME} codes {', '.join(_DTYPES)}, the array has dtype {native.name}")
        if len(shape) < 1 or shape[-1] != self.width:
            raise InputError(
                f"{NAME} codes rows of {self.width} values, which have to be the whole last dimension of the array and "
                f"of its chunks (and of those in shards), (..., {self.width}); got {tuple(shape)}"
            )
        return native
