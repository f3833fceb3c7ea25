"""Every prior packs any codes into bytes and back, exactly, repeatably and close to the ideal size."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.codes import MAX_LEVEL, Codes
from saecodec.errors import FormatError, InputError, SaecodecError, UnsupportedError
from saecodec.integers import pack_ints
from saecodec.latents import MAX_CHUNK_ROWS, LatentCodec
from saecodec.wire import ByteReader, blob, varint, varints

FitPrior = Callable[[list[Codes]], LatentCodec]
BurstyCodes = Callable[..., Codes]
AnyCodes = Callable[..., st.SearchStrategy[Codes]]
SameCodes = Callable[[Codes, Codes], None]


def reread(codec: LatentCodec) -> LatentCodec:
    """The codec after a trip through its bytes, as a reader has it."""
    reader = ByteReader(codec.to_bytes(), "codec")
    out = LatentCodec.read(reader)
    reader.end()
    return out


def sparse(n_rows: int, n_latents: int, per_row: int, seed: int = 0) -> Codes:
    """Codes too wide to be made from a dense array."""
    rng = np.random.default_rng(seed)
    latents = np.concatenate([np.sort(rng.choice(n_latents, per_row, replace=False)) for _ in range(n_rows)])
    levels = rng.geometric(0.3, len(latents))
    return Codes(np.arange(n_rows + 1) * per_row, latents.astype(np.int32), levels.astype(np.int32), n_latents).check()


def diagonal(levels: list[int], n_latents: int = 8) -> Codes:
    dense = np.zeros((len(levels), n_latents), np.int64)
    dense[np.arange(len(levels)), np.arange(len(levels)) % n_latents] = levels
    return Codes.from_dense(dense)


def always_on() -> np.ndarray:
    dense = np.zeros((200, 5), int)
    dense[:, 2] = 1 + np.arange(200) % 3
    dense[::50, 0] = 1
    return dense


WIDEST = (1 << 38) - 1
CASES: dict[str, Codes] = {
    "no rows": Codes.from_dense(np.zeros((0, 5), int)),
    "one row": Codes.from_dense(np.array([[0, 3, 0, 1]])),
    "one row with nothing active": Codes.from_dense(np.zeros((1, 4), int)),
    "rows with no active latent between others": Codes.from_dense(np.diag([1, 0, 0, 2, 0, 3, 0])),
    "all latents dead": Codes.from_dense(np.zeros((100, 6), int)),
    "a latent that is always on": Codes.from_dense(always_on()),
    "everything on": Codes.from_dense(np.ones((40, 30), int)),
    "one latent": Codes.from_dense(np.array([[1], [0], [0], [7], [1]])),
    "one latent and one row": Codes.from_dense(np.array([[1]])),
    "one dead latent": Codes.from_dense(np.zeros((3, 1), int)),
    "70,000 latents": sparse(60, 70_000, 20),
    "signed levels": diagonal([1, -1, 2, -2, 30, -30, -MAX_LEVEL]),
    "only negative levels": diagonal([-1, -2, -1]),
    "levels beyond the direct range": diagonal([15, 16, 17, 18, 1000, 1 << 19, MAX_LEVEL - 1, MAX_LEVEL]),
    "columns": Codes.from_dense(
        np.eye(6, 4, dtype=int),
        {
            "seq": np.repeat([0, 1, 2], 2),
            "position": np.array([0, 1, 0, 1, 0, 1], np.int16),
            "negative": np.array([-1, -5, 0, 3, -1_000_000, 2]),
            "extremes": np.array([WIDEST, -WIDEST, WIDEST, 0, -WIDEST, -WIDEST]),
            "Z": np.full(6, 7),
            "ünï ☃": np.arange(6),
        },
    ),
    "columns of no rows": Codes.from_dense(np.zeros((0, 4), int), {"seq": np.zeros(0, np.int64)}),
}


@pytest.mark.parametrize("codes", CASES.values(), ids=CASES.keys())
def test_codes_come_back(fit_prior: FitPrior, assert_same_codes: SameCodes, codes: Codes) -> None:
    codec = fit_prior([codes])
    chunk = codec.pack(codes)
    assert_same_codes(codec.unpack(chunk), codes)
    assert_same_codes(reread(codec).unpack(chunk), codes)
    assert reread(codec).pack(codes) == chunk


@pytest.mark.parametrize("fitted", ["all latents dead", "one row", "a latent that is always on", "no rows"])
@pytest.mark.parametrize("signed", [True, False])
def test_chunks_unlike_the_fitted_ones_come_back(
    fit_prior: FitPrior, assert_same_codes: SameCodes, bursty_codes: BurstyCodes, fitted: str, signed: bool
) -> None:
    """Gaps and levels never seen in fitting are coded by the tables' tails."""
    codes = CASES[fitted]
    seen = [codes, diagonal([-1], codes.n_latents)] if signed else [codes]
    codec = reread(fit_prior(seen))
    n = codes.n_latents
    far = np.zeros((30_000, n), np.int64)
    far[[0, 29_999], n - 1] = MAX_LEVEL, 17
    far[15_000, 0] = 1000
    for other in (bursty_codes(300, n, signed=signed), Codes.from_dense(far), diagonal([MAX_LEVEL] * 20, n)):
        assert_same_codes(codec.unpack(codec.pack(other)), other)


@given(st.data())
def test_any_codes_come_back_under_tables_fitted_on_any_others(
    fit_prior: FitPrior, any_codes: AnyCodes, assert_same_codes: SameCodes, data: st.DataObject
) -> None:
    fitted, codes = data.draw(any_codes(6)), data.draw(any_codes(6))
    codec = reread(fit_prior([fitted, diagonal([-1], 6)]))
    assert_same_codes(codec.unpack(codec.pack(codes)), codes)


def test_several_chunks_share_a_prior(
    fit_prior: FitPrior, assert_same_codes: SameCodes, bursty_codes: BurstyCodes
) -> None:
    whole = bursty_codes(700, 40)
    parts = [whole[a : a + 256] for a in range(0, 700, 256)]
    codec = fit_prior(parts)
    assert_same_codes(Codes.concatenate([codec.unpack(codec.pack(part)) for part in parts], 40), whole)


# -- the same bytes, everywhere ----------------------------------------------------------------------------------------


def test_packing_again_gives_the_same_bytes(fit_prior: FitPrior, bursty_codes: BurstyCodes) -> None:
    codes = bursty_codes(500, 40)
    codec = fit_prior([codes])
    assert codec.pack(codes) == codec.pack(codes) == fit_prior([codes]).pack(codes)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_byte(
    fit_prior: FitPrior, bursty_codes: BurstyCodes, torch_threads: Callable[[int], None], threads: int
) -> None:
    codes = bursty_codes(500, 40)
    before = fit_prior([codes])
    torch_threads(threads)
    after = fit_prior([codes])
    assert after.to_bytes() == before.to_bytes()
    assert after.pack(codes) == before.pack(codes)


CHILD = """
import hashlib, sys
import numpy as np
from saecodec import Codes, LatentCodec
held = np.load(sys.argv[1])
codes = Codes(held["indptr"], held["latents"], held["levels"], 40, {"seq": held["seq"]})
codec = LatentCodec.fit([codes])
print(hashlib.sha256(codec.to_bytes() + codec.pack(codes)).hexdigest())
"""


def test_a_fresh_process_fits_and_packs_the_same_bytes(bursty_codes: BurstyCodes, tmp_path: Path) -> None:
    made = bursty_codes(500, 40)
    seq = np.arange(500) // 7
    codes = replace(made, columns={"seq": seq})
    np.savez(tmp_path / "codes.npz", indptr=codes.indptr, latents=codes.latents, levels=codes.levels, seq=seq)
    codec = LatentCodec.fit([codes])
    for threads in ("1", "2"):
        environment = os.environ | {
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "PYTHONHASHSEED": threads,
        }
        command = [sys.executable, "-c", CHILD, str(tmp_path / "codes.npz")]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()
        assert printed == hashlib.sha256(codec.to_bytes() + codec.pack(codes)).hexdigest()


# -- size --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
def test_the_coded_size_is_close_to_the_ideal(fit_prior: FitPrior, bursty_codes: BurstyCodes, signed: bool) -> None:
    codes = bursty_codes(4000, 256, signed=signed)
    codec = fit_prior([codes])
    sizes = codec.chunk_bytes(codec.pack(codes))
    n_streams = len(getattr(codec.prior, "group_sizes", (1,)))
    for coded, ideal in zip((sizes.support, sizes.levels), codec.prior.ideal_bits(codes), strict=True):
        assert ideal - 32 * n_streams <= 8 * coded <= 1.003 * ideal + 64 * n_streams


def test_the_parts_of_a_chunk_add_up(fit_prior: FitPrior, bursty_codes: BurstyCodes) -> None:
    made = bursty_codes(300, 20)
    codes = replace(made, columns={"seq": np.arange(300) // 9, "noise": np.arange(300) ** 3 % 1009})
    codec = fit_prior([codes])
    chunk, bare = codec.pack(codes), codec.pack(made)
    sizes, bare_sizes = codec.chunk_bytes(chunk), codec.chunk_bytes(bare)
    columns = sum(sizes.columns.values())
    assert sizes.support + sizes.levels + columns + sizes.head == len(chunk)
    assert (sizes.support, sizes.levels, sizes.head) == (bare_sizes.support, bare_sizes.levels, bare_sizes.head)
    assert columns == len(chunk) - len(bare) > 0 == len(bare_sizes.columns)
    assert set(sizes.columns) == {"seq", "noise"}
    assert 300 < sizes.columns["noise"] < 600 > 10 * sizes.columns["seq"] > 0


def test_sequence_ids_that_rise_slowly_take_next_to_nothing(fit_prior: FitPrior) -> None:
    ids = 1_000_000 + np.arange(4096) // 128
    codes = Codes.from_dense(np.zeros((4096, 2), int), {"seq": ids})
    codec = fit_prior([codes])
    assert codec.chunk_bytes(codec.pack(codes)).columns["seq"] < 200


# -- what cannot be packed ---------------------------------------------------------------------------------------------


def test_codes_of_another_width_are_refused(fit_prior: FitPrior) -> None:
    codec = fit_prior([diagonal([1, 2], 8)])
    with pytest.raises(InputError, match="codes of 9 latents, but the prior is for 8"):
        codec.pack(diagonal([1, 2], 9))


def test_a_chunk_of_too_many_rows_is_refused(fit_prior: FitPrior) -> None:
    codec = fit_prior([diagonal([1], 2)])
    nothing = np.zeros(0, np.int32)
    with pytest.raises(InputError, match=f"at most {MAX_CHUNK_ROWS} rows, got {MAX_CHUNK_ROWS + 1}"):
        codec.pack(Codes(np.zeros(MAX_CHUNK_ROWS + 2, np.int64), nothing, nothing, 2))
    full = Codes(np.zeros(MAX_CHUNK_ROWS + 1, np.int64), nothing, nothing, 2)
    assert codec.unpack(codec.pack(full)).n_rows == MAX_CHUNK_ROWS


def test_more_columns_than_can_be_read_are_refused(fit_prior: FitPrior) -> None:
    codes = Codes.from_dense(np.eye(2, dtype=int), {f"c{i}": np.zeros(2, np.int64) for i in range(65)})
    codec = fit_prior([codes])
    with pytest.raises(InputError, match="64"):
        codec.pack(codes)


def test_a_column_out_of_range_is_refused(fit_prior: FitPrior) -> None:
    codec = fit_prior([diagonal([1], 2)])
    with pytest.raises(InputError, match="column 'seq'"):
        codec.pack(replace(Codes.from_dense(np.zeros((1, 2), int)), columns={"seq": np.array([1 << 45])}))


def test_broken_codes_are_refused(fit_prior: FitPrior) -> None:
    codec = fit_prior([diagonal([1], 2)])
    unsorted = Codes(np.array([0, 2]), np.array([1, 0], np.int32), np.ones(2, np.int32), 2)
    with pytest.raises(InputError, match="strictly ascending"):
        codec.pack(unsorted)
    with pytest.raises(InputError, match="found 1048577"):
        codec.pack(Codes(np.array([0, 1]), np.zeros(1, np.int32), np.array([MAX_LEVEL + 1], np.int32), 2))


def test_an_unknown_prior_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"unknown prior 'markov'.*factorized, context"):
        LatentCodec.read(ByteReader(blob(b"markov") + b"tables", "codec"))


# -- hostile chunks ----------------------------------------------------------------------------------------------------


def survives(codec: LatentCodec, chunk: bytes) -> bool:
    """Whether a chunk decodes; if so to valid codes. Anything but codes or a SaecodecError fails the test."""
    start = time.perf_counter()
    try:
        codes = codec.unpack(chunk)
    except SaecodecError:
        return False
    finally:
        assert time.perf_counter() - start < 1
    codes.check()
    return True


@pytest.mark.parametrize("signed", [False, True])
def test_every_truncation_and_every_changed_byte_decodes_or_is_refused(
    fit_prior: FitPrior, bursty_codes: BurstyCodes, signed: bool
) -> None:
    made = bursty_codes(6, 4, signed=signed)
    codes = replace(made, columns={"s": np.arange(6) // 5})
    codec = fit_prior([bursty_codes(300, 4, seed=1, signed=signed)])
    chunk = codec.pack(codes)
    assert survives(codec, chunk)
    for cut in range(len(chunk)):
        assert not survives(codec, chunk[:cut])
    for i in range(len(chunk)):
        for byte in range(0, 256, 1 if signed else 5):
            survives(codec, chunk[:i] + bytes([byte]) + chunk[i + 1 :])
    tracemalloc.start()  # slow, so only for flips of single bits
    for i in range(len(chunk)):
        for bit in range(8):
            survives(codec, chunk[:i] + bytes([chunk[i] ^ 1 << bit]) + chunk[i + 1 :])
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    for rest in (b"\0", b"\0" * 4, chunk):
        assert not survives(codec, chunk + rest)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_chunk_or_are_refused(fit_prior: FitPrior, data: bytes) -> None:
    survives(fit_prior([diagonal([1, 2, -3], 4)]), data)


COLUMN = blob(b"seq") + b"\0" + pack_ints(np.array([2, 4]))


@pytest.mark.parametrize(
    "data, complaint",
    [
        (varint(MAX_CHUNK_ROWS + 1), "at most 1048576"),
        (varint(1 << 62), "at most 1048576"),
        (b"\x82\x00", "shortest form"),
        (varints([2, 65]), "at most 64"),
        (varints([2, 1]), "truncated"),
        (varints([2, 1, 1 << 40]) + b"seq", "at most"),
        (varints([2, 1]) + blob(b"seq") + b"\2" + pack_ints(np.array([2, 4])), "found 2 where at most 1"),
        (varints([3, 1]) + COLUMN, "an array of 3 integers was expected, found 2"),
        (varints([1, 1]) + COLUMN, "at most 1"),
        (varints([2, 2]) + COLUMN * 2, "column 'seq' is not in the order"),
        (varints([2, 2]) + COLUMN + COLUMN.replace(b"seq", b"sep"), "column 'sep' is not in the order"),
        (varints([2, 1]) + blob(b"") + COLUMN[4:], "column '' is not in the order"),
        (varints([2, 1]) + blob(b"\xff") + COLUMN[4:], "not UTF-8"),
        (varints([2, 1]) + blob(b"seq") + b"\0" + pack_ints(np.array([0, 1 << 39])), "magnitude 2\\^38"),
        (varints([2, 1]) + blob(b"seq") + b"\1" + pack_ints(np.array([(1 << 39) - 2, 2])), "magnitude 2\\^38"),
    ],
    ids=str,
)
def test_a_hostile_head_is_refused(fit_prior: FitPrior, data: bytes, complaint: str) -> None:
    with pytest.raises(FormatError, match=f"chunk 5: .*{complaint}"):
        fit_prior([diagonal([1, 2], 4)]).unpack(data, "chunk 5")
