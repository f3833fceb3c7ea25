"""The context prior's network as a byte string. Normative: docs/format.md, "Context network"."""

from __future__ import annotations

from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from saecodec.errors import FormatError
from saecodec.integers import pack_ints, unpack_ints, unzigzag, zigzag
from saecodec.limits import check_expansion, check_limit
from saecodec.priors.factorized import MAX_LATENTS
from saecodec.priors.network import (
    GAINS,
    MAX_BIAS,
    MAX_BINS,
    MAX_GAIN,
    MAX_RANK,
    MAX_SHIFT,
    MAX_WEIGHT,
    Network,
)
from saecodec.wire import ByteReader, blob, varints

MAX_BLOCKS: Final = 256
MAX_WEIGHTS: Final = 1 << 26
_ZSTD_LEVEL: Final = 9


def pack_network(network: Network) -> bytes:
    """Sizes, blocks, gains, biases and shifts, then all int8 weights under zstd, a blob."""
    n = network
    head = varints([len(n.block), n.n_blocks, n.rank, n.shift, n.level_shift, n.n_bins, n.n_level_bins])
    biases = [zigzag(bias.ravel()) for bias in (n.bias, n.out_bias, n.level_bias)]
    integers = b"".join(pack_ints(values) for values in (n.block, n.gains, n.shifts, *biases))
    weights = b"".join(array.tobytes() for array in (n.context, n.out, n.level_out))
    packed = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(weights)
    check_expansion(len(weights), len(packed), "the context prior's network")
    return head + integers + blob(packed)


def read_network(reader: ByteReader) -> Network:
    """Read what `pack_network` wrote."""
    f, g, r = (reader.varint(limit) for limit in (MAX_LATENTS, MAX_BLOCKS, MAX_RANK))
    shift, level_shift, n_bins, n_level_bins = (reader.varint(n) for n in (MAX_SHIFT, MAX_SHIFT, MAX_BINS, MAX_BINS))
    if not (f and g and r and n_bins and n_level_bins) or 5 * f * r > MAX_WEIGHTS:
        raise FormatError(f"{reader.what}: a network of {f} latents, {g} blocks and {r} units is not possible")
    check_limit("latents", f, reader.what)
    block = unpack_ints(reader, f, below=g)
    gains = unpack_ints(reader, GAINS, below=MAX_GAIN + 1)
    shifts = unpack_ints(reader, r, below=MAX_SHIFT + 1)
    bias, out_bias, level_bias = (unzigzag(unpack_ints(reader, n, below=2 * MAX_BIAS - 1)) for n in (g * r, f, f))
    n_context = int((block < g - 1).sum())
    sizes = [n_context * 3 * r, f * r, f * r]
    context, out, level_out = np.split(_read_weights(reader, sum(sizes)), np.cumsum(sizes)[:-1])
    return Network(
        block,
        gains,
        context.reshape(n_context, 3 * r),
        bias.reshape(g, r),
        shifts,
        out.reshape(f, r),
        out_bias,
        level_out.reshape(f, r),
        level_bias,
        shift,
        level_shift,
        n_bins,
        n_level_bins,
    )


def _read_weights(reader: ByteReader, size: int) -> NDArray[np.int8]:
    what, data = reader.what, reader.blob()
    check_expansion(size, len(data), what)
    try:
        if zstandard.frame_content_size(data) != size:
            raise FormatError(f"{what}: a network of these sizes has {size} weights")
        weights = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"{what}: the network's weights are damaged ({error})") from error
    values = np.frombuffer(bytearray(weights), np.int8)  # torch wants memory that it could write to
    if values.min(initial=0) < -MAX_WEIGHT:
        raise FormatError(f"{what}: a weight of the network is -128")
    return values
