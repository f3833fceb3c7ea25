"""Reading `.pt` files: tensors only, no pickle code is ever run.

A `.pt` from before torch 1.6 is loaded whole, the others are memory-mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.array_keys import Listed, choose, refuse_key
from saecodec.formats.array_source import ITEM_BYTES, ArraySource, FloatRows, bad_dtype, rows_of, to_float32
from saecodec.formats.zip_members import check_zip

if TYPE_CHECKING:
    import torch

_BYTES_PER_MAP = 1 << 28  # pages that were read count as resident until they are unmapped


class TorchArray(ArraySource):
    """A tensor of a `.pt` file, memory-mapped where the file allows it."""

    def __init__(self, path: str, key: str | None) -> None:
        array, dtype, mapped = _load_torch(path, key)
        super().__init__(path, array.shape, dtype)
        self._key = key
        self._loaded = None if mapped else array

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[FloatRows]:
        array, seen = self._loaded, 0
        for start, stop in spans:
            if array is None or (self._loaded is None and seen >= _BYTES_PER_MAP):
                array, seen = _load_torch(self.path, self._key)[0], 0
            yield to_float32(rows_of(array, start, stop))
            seen += (stop - start) * self.width * array.itemsize


def load_torch_tensor(path: str, key: str | None) -> tuple[torch.Tensor, bool]:
    """The tensor of a `.pt` file, alone or in a dict, of any dtype and layout, and whether it is mapped."""
    import torch  # half a second: only for who has a .pt file

    mapped = True
    check_zip(path)
    try:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError, OSError):  # not a zip (before torch 1.6), or a file system without maps
            mapped = False
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # corrupt files make the unpickler raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: cannot be loaded as tensors only: {reason}") from error
    if isinstance(loaded, dict):
        tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
        named = [name for name in tensors if isinstance(name, str)]
        loaded = tensors[choose(path, named, key, lambda n: Listed.of(_dtype(tensors[n]), tuple(tensors[n].shape)))]
    else:
        refuse_key(path, key)
    if not isinstance(loaded, torch.Tensor):
        raise InputError(f"{path}: holds a {type(loaded).__name__}; expected a tensor or a dict of tensors")
    return loaded, mapped


def _load_torch(path: str, key: str | None) -> tuple[npt.NDArray[Any], str, bool]:
    """A tensor of a `.pt` file as an array (bfloat16 as its bits, uint16), its dtype, and whether it is mapped."""
    import torch

    loaded, mapped = load_torch_tensor(path, key)
    dtype = _dtype(loaded)
    if dtype not in ITEM_BYTES:
        raise bad_dtype(path, dtype)
    if loaded.layout != torch.strided or loaded.is_nested or loaded.device.type != "cpu":
        raise InputError(
            f"{path}: holds a sparse, nested or meta tensor; save a dense one (--latents takes sparse ones)"
        )
    dense = loaded.detach().resolve_neg()
    if dtype == "bfloat16":
        return dense.view(torch.int16).numpy().view(np.uint16), dtype, mapped
    return dense.numpy(), dtype, mapped


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
