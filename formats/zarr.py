"""`saecodec.sae`: rows in zarr v3 arrays, each chunk coded by a fitted codec (zarr-python 3, an extra).

zarr finds `SaeCodec` by its entry point, so whoever opens such an array need not import saecodec. The array's metadata
name the codec by its hash; the codec itself is looked up when the first chunk is read or written.

>>> serializer = SaeCodec.of("l3.saecodec")                                                     # doctest: +SKIP
>>> zarr.create_array("acts.zarr", shape=(1_000_000, 384), chunks=(4096, 384), dtype="float32",
...                   serializer=serializer, compressors=None)                                  # doctest: +SKIP
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.common import parse_named_configuration

from saecodec.errors import FormatError, InputError
from saecodec.formats.codec_lookup import find_codec, register_codec, with_its_sae

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

    from saecodec.codec import Codec

__all__ = ["SaeCodec", "register_codec"]

NAME: Final = "saecodec.sae"
_DTYPES: Final = ("float16", "float32", "float64")


@dataclass(frozen=True)
class SaeCodec(ArrayBytesCodec):
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
        _, settings = parse_named_configuration(data, NAME)
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

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await asyncio.to_thread(self._encode_sync, chunk_data, chunk_spec)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        return await asyncio.to_thread(self._decode_sync, chunk_data, chunk_spec)

    def _encode_sync(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        from saecodec.filled_rows import pack_filled

        self._check(chunk_spec.shape, chunk_spec.dtype)
        data = pack_filled(self._found(), chunk_data.as_numpy_array(), chunk_spec.fill_value)
        packed: Buffer = chunk_spec.prototype.buffer.from_bytes(data)
        return packed

    def _decode_sync(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        from saecodec.filled_rows import unpack_filled

        dtype = self._check(chunk_spec.shape, chunk_spec.dtype)
        data, shape = chunk_data.to_bytes(), chunk_spec.shape
        rows = unpack_filled(self._found(), data, shape, dtype.name, chunk_spec.fill_value)
        unpacked: NDBuffer = chunk_spec.prototype.nd_buffer.from_numpy_array(rows.astype(dtype, copy=False))
        return unpacked

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
