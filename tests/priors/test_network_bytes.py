"""A network is read back as it was, and every number that breaks a limit is refused before memory is taken."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from saecodec.errors import FormatError
from saecodec.integers import pack_ints, zigzag
from saecodec.priors.factorized import MAX_LATENTS
from saecodec.priors.network import MAX_BIAS, MAX_BINS, MAX_GAIN, MAX_RANK, MAX_SHIFT, Network
from saecodec.priors.network_bytes import MAX_BLOCKS, MAX_WEIGHTS, pack_network, read_network
from saecodec.wire import ByteReader, blob, varints


def read(data: bytes) -> Network:
    reader = ByteReader(data, "the network")
    out = read_network(reader)
    reader.end()
    return out


def assert_same_networks(a: Network, b: Network) -> None:
    for name, array in a.content().items():
        np.testing.assert_array_equal(b.content()[name], array, err_msg=name)
    for name in ("context", "out", "level_out"):
        assert getattr(b, name).dtype == np.int8
        assert getattr(b, name).flags.writeable  # or torch would warn


@given(st.data())
def test_a_network_is_read_back(cases: ModuleType, data: st.DataObject) -> None:
    n = cases.random_network(
        data.draw(st.integers(0, 1 << 30)),
        n_latents=data.draw(st.integers(1, 60)),
        n_blocks=data.draw(st.integers(1, 9)),
        rank=data.draw(st.integers(1, 20)),
        n_bins=data.draw(st.integers(1, 128)),
        n_level_bins=data.draw(st.integers(1, 128)),
        extreme=data.draw(st.booleans()),
    )
    assert_same_networks(n, read(pack_network(n)))


def test_a_network_at_all_limits_is_read_back(cases: ModuleType) -> None:
    n = cases.random_network(1, n_latents=300, n_blocks=MAX_BLOCKS, rank=MAX_RANK, n_bins=128, n_level_bins=128)
    n = replace(n, shift=23, level_shift=23, gains=np.full(16, 127), shifts=np.full(MAX_RANK, 23))
    n = replace(n, out_bias=np.full(300, MAX_BIAS - 1), level_bias=np.full(300, 1 - MAX_BIAS))
    assert_same_networks(n, read(pack_network(n)))


# -- numbers beyond their limits ---------------------------------------------------------------------------------------

HEAD = [3, 2, 2, 1, 1, 4, 4]
"""Latents, blocks, units, shifts, bins."""
N_WEIGHTS = 2 * 3 * 2 + 2 * 3 * 2  # of two latents before the last block, and of three


def network_of(
    head: list[int] = HEAD,
    block: tuple[int, ...] = (0, 1, 0),
    gains: tuple[int, ...] = tuple(range(16)),
    shifts: tuple[int, ...] = (1, 2),
    bias: tuple[int, ...] = (1, 2, 3, 4),
    out_bias: tuple[int, ...] = (1, 2, 3),
    level_bias: tuple[int, ...] = (-1, -2, -3),
    weights: bytes | None = None,
) -> bytes:
    integers = [np.array(values, np.int64) for values in (block, gains, shifts)]
    integers += [zigzag(np.array(values, np.int64)) for values in (bias, out_bias, level_bias)]
    packed = b"".join(pack_ints(values) for values in integers)
    return varints(head) + packed + blob(zstd(bytes(range(N_WEIGHTS))) if weights is None else weights)


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def announcing(size: int) -> bytes:
    """A zstd frame of zeros that says it holds `size` bytes."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x03\x00\x00\x00"


def changed(at: int, value: int) -> bytes:
    return network_of([*HEAD[:at], value, *HEAD[at + 1 :]])


HOSTILE = {
    "no latents": changed(0, 0),
    "more latents than allowed": varints([MAX_LATENTS + 1]),
    "no blocks": changed(1, 0),
    "more blocks than allowed": changed(1, MAX_BLOCKS + 1),
    "no units": changed(2, 0),
    "more units than allowed": changed(2, MAX_RANK + 1),
    "too large a shift": changed(3, MAX_SHIFT + 1),
    "too large a shift of scores": changed(4, MAX_SHIFT + 1),
    "no bins": changed(5, 0),
    "more bins than allowed": changed(5, MAX_BINS + 1),
    "no level bins": changed(6, 0),
    "more level bins than allowed": changed(6, MAX_BINS + 1),
    "more weights than allowed": varints([MAX_WEIGHTS // 5 // 16 + 1, 2, 16, 1, 1, 4, 4]),
    "latents that are not there": changed(0, MAX_LATENTS),
    "a block beyond the last": network_of(block=(0, 2, 0)),
    "blocks of too few latents": network_of(block=(0, 1)),
    "too few gains": network_of(gains=tuple(range(15))),
    "too large a gain": network_of(gains=(*range(15), MAX_GAIN + 1)),
    "too large a shift of a unit": network_of(shifts=(1, MAX_SHIFT + 1)),
    "shifts of too many units": network_of(shifts=(1, 2, 3)),
    "too large a bias": network_of(bias=(1, 2, 3, MAX_BIAS)),
    "too small a bias": network_of(bias=(1, 2, 3, -MAX_BIAS)),
    "biases of too few blocks": network_of(bias=(1, 2)),
    "too large a bias of a logit": network_of(out_bias=(1, MAX_BIAS, 2)),
    "too small a bias of a score": network_of(level_bias=(1, 2, -MAX_BIAS)),
    "a weight of -128": network_of(weights=zstd(b"\x80" + bytes(N_WEIGHTS - 1))),
    "too few weights": network_of(weights=zstd(bytes(N_WEIGHTS - 1))),
    "too many weights": network_of(weights=zstd(bytes(N_WEIGHTS + 1))),
    "weights of unknown number": network_of(weights=zstd(bytes(N_WEIGHTS), write_content_size=False)),
    "weights beside a second frame": network_of(weights=zstd(bytes(N_WEIGHTS)) + zstd(b"")),
    "weights that are no zstd": network_of(weights=b"weights"),
    "no weights": network_of(weights=b""),
    "weights behind a skippable frame": network_of(weights=b"\x50\x2a\x4d\x18\0\0\0\0" + zstd(bytes(N_WEIGHTS))),
    "truncated weights": network_of(weights=zstd(bytes(range(N_WEIGHTS)))[:-3]),
    "fewer weights than announced": network_of(weights=announcing(N_WEIGHTS)),
    "a huge number of weights": network_of(weights=announcing(1 << 40)),
    "the hugest number of weights": network_of(weights=announcing((1 << 64) - 2)),
    "a bomb": network_of(weights=zstd(bytes(1 << 26))),
    "something behind it": network_of() + b"\0",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_network_is_refused_quickly_and_without_memory(data: bytes) -> None:
    assert read(network_of()).rank == 2
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(FormatError, match="the network"):
        read(data)
    assert time.perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_sizes_that_are_too_large_together_are_refused_before_anything_of_that_size_is_read() -> None:
    most = MAX_WEIGHTS // 5 // 16
    for f, complaint in ((most, "truncated"), (most + 1, f"{most + 1} latents, 2 blocks and 16 units is not possible")):
        with pytest.raises(FormatError, match=complaint):
            read(varints([f, 2, 16, 1, 1, 4, 4]))


def test_numbers_at_their_limits_are_read() -> None:
    n = read(
        network_of(
            [3, 2, 2, MAX_SHIFT, MAX_SHIFT, MAX_BINS, MAX_BINS],
            gains=(MAX_GAIN,) * 16,
            shifts=(MAX_SHIFT, 0),
            bias=(MAX_BIAS - 1, 1 - MAX_BIAS, 0, 0),
            weights=zstd(b"\x81\x7f" + bytes(N_WEIGHTS - 2)),
        )
    )
    assert n.context[0, :2].tolist() == [-127, 127]
    assert n.bias[0].tolist() == [MAX_BIAS - 1, 1 - MAX_BIAS]


def test_weights_stand_in_the_order_context_out_level_out() -> None:
    n = read(network_of())
    assert n.context.tolist() == [list(range(6)), list(range(6, 12))]
    assert n.out.tolist() == [[12, 13], [14, 15], [16, 17]]
    assert n.level_out.tolist() == [[18, 19], [20, 21], [22, 23]]
    assert n.layout.latent_of.tolist() == [0, 2, 1]
