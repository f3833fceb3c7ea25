"""Exact integer models for constriction's range coder, and guards around it.

A table is a vector of integer weights w_s >= 1 that sum to 2^24. Passed to constriction as `w - 1` with
`perfect=False`, its cumulative distribution is exactly cumsum(w): the library scales by
(2^24 - n) / sum(w - 1) = 1 and adds one per symbol. So the bitstream is specified in integers and can be decoded
without constriction (docs/format.md, "Range coder").

constriction reads past the end of a stream silently and reports bad data with a `PanicException`, which
`except Exception` does not catch; both become `FormatError` here.
"""

from __future__ import annotations

from typing import Any, Final

import constriction
import numpy as np
from numpy.typing import NDArray

from saecodec.errors import FormatError

PRECISION: Final = 24
TOTAL: Final = 1 << PRECISION
_PIECE_BITS: Final = 16  # constriction's Uniform takes at most 2^24 - 1 values; wider offsets go in pieces
_WORD: Final = np.dtype("<u4")

Model = Any  # constriction's models carry no types


def model_of(weights: NDArray[np.int64]) -> Model:
    """The constriction model whose cumulative distribution is exactly cumsum(weights).

    weights: int64 (A,), A >= 2, every weight >= 1, summing to 2^24; ValueError otherwise.
    """
    if weights.ndim != 1 or weights.size < 2 or weights.min() < 1 or int(weights.sum()) != TOTAL:
        raise ValueError(f"a table needs two or more weights >= 1 that sum to {TOTAL}, got {weights!r}")
    return constriction.stream.model.Categorical((weights - 1).astype(np.float64), perfect=False)


def can_hold(n_bytes: Any, least_bits: Any) -> Any:
    """Whether streams of so many bytes can hold symbols that cost at least so many bits; numbers or float arrays.

    The range coder may undercut the ideal code length by its last word; 1 % is for the rounding of the bound.
    """
    return 0.99 * least_bits <= 8.0 * n_bytes + 64


class StreamEncoder:
    """One range-coded stream."""

    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()

    def put(self, symbols: NDArray[np.int32], model: Model) -> None:
        """Code `symbols` (int32, 1-D, contiguous) under one model."""
        if symbols.size:
            self._coder.encode(symbols, model)

    def put_bits(self, values: NDArray[np.int64], bits: NDArray[np.int64]) -> None:
        """Code values[i] < 2^bits[i] uniformly: the low 16 bits of all, then the next 16 of those that have them."""
        while values.size:
            width = np.minimum(bits, _PIECE_BITS)
            self._coder.encode((values & ((1 << width) - 1)).astype(np.int32), _UNIFORM, (1 << width).astype(np.int32))
            more = bits > _PIECE_BITS
            values, bits = values[more] >> _PIECE_BITS, bits[more] - _PIECE_BITS

    def finish(self) -> bytes:
        """The stream as little-endian 32-bit words."""
        return bytes(np.asarray(self._coder.get_compressed()).astype(_WORD).tobytes())


_UNIFORM: Final = constriction.stream.model.Uniform()


class StreamDecoder:
    """Reads what `StreamEncoder` wrote; `what` names the stream in errors."""

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        if len(data) % _WORD.itemsize:
            raise FormatError(f"{what}: a stream is whole 32-bit words, got {len(data)} bytes")
        words = np.frombuffer(data, dtype=_WORD).astype(np.uint32)
        self._n_words = words.size
        self._what = what
        self._used = False
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def get(self, model: Model, n: int) -> NDArray[np.int32]:
        """The next `n` symbols under one model, int32 (n,)."""
        return self._guarded(model, n) if n else np.zeros(0, np.int32)

    def get_bits(self, bits: NDArray[np.int64]) -> NDArray[np.int64]:
        """The next uniform values, one of bits[i] bits each; int64."""
        values = np.zeros(bits.shape, np.int64)
        active, shift = np.arange(bits.size), 0
        while active.size:
            width = np.minimum(bits[active] - shift, _PIECE_BITS)
            values[active] |= self._guarded(_UNIFORM, (1 << width).astype(np.int32)).astype(np.int64) << shift
            shift += _PIECE_BITS
            active = active[bits[active] > shift]
        return values

    def end(self) -> None:
        """FormatError when the stream was left unread, as far as can be told: a stream of symbols has words, one of
        none has none, and constriction says when words are certainly left."""
        if self._used != bool(self._n_words) or not self._coder.maybe_exhausted():
            raise FormatError(f"{self._what}: the range coder did not end where its stream ends")

    def _guarded(self, *args: Any) -> NDArray[np.int32]:
        self._used = True
        try:
            return np.asarray(self._coder.decode(*args))
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # pyo3's PanicException derives from BaseException
            raise FormatError(f"{self._what}: the range coder cannot decode this stream ({error})") from error
