"""The bytes of a joint code are those of real chunks, tables and forest, and fall where latents fire together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest

from saecodec.co_occurrence import CoOccurrence
from saecodec.codes import Codes
from saecodec.errors import InputError
from saecodec.hierarchy import Forest, best_forest, depths, forest_to_bytes, split_by_parent
from saecodec.joint_code import coded_forest, joint_code
from saecodec.latents import LatentCodec

F = 60


def chunked(codes: Codes, rows: int = 1000) -> Callable[[], list[Codes]]:
    return lambda: [codes[i : i + rows] for i in range(0, codes.n_rows, rows)]


def pairs_of(codes: Codes) -> CoOccurrence:
    out = CoOccurrence(codes.n_latents)
    out.add(codes)
    return out


def codes_of(related: bool, *, n_rows: int = 4000, seed: int = 0, signed: bool = False) -> Codes:
    """Latent i of 0 to 29 fires at random; i + 30 does so, too, or where i does in most cases, and rarely elsewhere."""
    rng = np.random.default_rng(seed)
    fires = rng.random((n_rows, F)) < 0.06
    if related:
        fires[:, 30:] = (fires[:, :30] & (rng.random((n_rows, 30)) < 0.8)) | (rng.random((n_rows, 30)) < 0.004)
    levels = rng.geometric(0.6, fires.shape) * (rng.choice([-1, 1], fires.shape) if signed else 1)
    return Codes.from_dense(fires * levels, {"seq": np.arange(n_rows) // 50})


PLANTED = np.concatenate([np.full(30, -1), np.arange(30)]).astype(np.int32)


@pytest.mark.parametrize("signed", [False, True])
def test_bytes_are_those_of_chunks_tables_and_forest(signed: bool) -> None:
    chunks = chunked(codes_of(True, signed=signed))
    found = joint_code(chunks, PLANTED)
    split = [split_by_parent(codes, PLANTED) for codes in chunks()]
    expected = {"n_children": 30, "forest": len(forest_to_bytes(PLANTED))}
    for name, parts in (("independent", chunks()), ("joint", split)):
        codec = LatentCodec.fit(parts)
        expected |= {f"chunks_{name}": sum(len(codec.pack(codes)) for codes in parts)}
        expected |= {f"tables_{name}": len(codec.to_bytes())}
    assert asdict(found) == expected
    assert found.bytes_independent == found.chunks_independent + found.tables_independent
    assert found.bytes_joint == found.chunks_joint + found.tables_joint + found.forest


def test_latents_that_fire_together_are_cheaper_together() -> None:
    codes = codes_of(True)
    pairs, chunks = pairs_of(codes), chunked(codes)
    forest = coded_forest(pairs, chunks)
    np.testing.assert_array_equal(forest, PLANTED)
    found = joint_code(chunks, forest)
    rate = codes.nnz / codes.n_rows / F
    shared = 30 * codes.n_rows * (-rate * np.log2(rate)) / 8  # bytes, most of a child's support
    assert 0.7 * shared < found.bytes_independent - found.bytes_joint < shared


def test_independent_latents_save_nothing() -> None:
    codes = codes_of(False)
    pairs, chunks = pairs_of(codes), chunked(codes)
    forest = coded_forest(pairs, chunks)
    assert (forest >= 0).sum() <= 2
    for some in (forest, best_forest(pairs, 12)):
        found = joint_code(chunks, some)
        assert 0.995 * found.bytes_independent < found.bytes_joint < 1.01 * found.bytes_independent
    wrong = joint_code(chunks, PLANTED)
    assert found.bytes_independent < wrong.bytes_joint < 1.03 * wrong.bytes_independent


def test_a_parent_that_shares_bits_but_saves_none_is_not_taken() -> None:
    """Two latents that are on in the same tenth of the rows: the bursts of each tell so without the other."""
    rng = np.random.default_rng(0)
    burst = (np.arange(4000) % 1000 < 100)[:, None]
    codes = Codes.from_dense((burst & (rng.random((4000, 2)) < [0.5, 0.4])).astype(int))
    pairs = pairs_of(codes)
    assert best_forest(pairs, 100).tolist() == [-1, 0]
    assert coded_forest(pairs, chunked(codes)).tolist() == [-1, -1]


def test_a_parent_that_saves_less_than_its_name_costs_is_not_taken() -> None:
    """All of 30 latents follow from others a little: more than their names cost in shared bits, hardly in gaps."""
    taken = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        fires = rng.random((4000, F)) < 0.06
        fires[:, 30:] |= fires[:, :30] & (rng.random((4000, 30)) < 0.15)
        codes = Codes.from_dense(fires * rng.geometric(0.6, fires.shape))
        pairs = pairs_of(codes)
        assert (best_forest(pairs, np.log2(F) + 8) >= 0).sum() == 30
        taken += int((coded_forest(pairs, chunked(codes)) >= 0).sum())
    assert taken < 18


@pytest.mark.parametrize("n_rows", [0, 1, 30])
def test_few_rows_and_no_nonzeros_are_coded(n_rows: int) -> None:
    codes = codes_of(True, n_rows=n_rows)
    pairs, chunks = pairs_of(codes), chunked(codes, 7)
    depths(coded_forest(pairs, chunks))
    assert joint_code(chunks, PLANTED).n_children == 30


def test_a_forest_without_children_costs_its_byte() -> None:
    roots: Forest = np.full(F, -1, np.int32)
    found = joint_code(chunked(codes_of(True)), roots)
    assert (found.n_children, found.bytes_joint) == (0, found.bytes_independent + found.forest)
    assert found.forest <= 3


def test_a_forest_of_other_latents_is_refused() -> None:
    with pytest.raises(InputError, match="a forest of 5 latents, but codes of 60"):
        joint_code(chunked(codes_of(True)), np.full(5, -1, np.int32))
