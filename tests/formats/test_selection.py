"""Rows that are left out are as if they had never been there, in whatever form an array comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.codec import Codec
from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource, JoinedHeads, MemoryArray
from saecodec.formats.arrays import open_array
from saecodec.formats.measuring import measure_array
from saecodec.formats.selection import SelectedRows, Selection
from saecodec.sae import SAE
from saecodec.sequences import positions

Array = np.ndarray[Any, Any]
MakeSAE = Callable[..., SAE]
WIDTH = 3


def numbered(*leading: int) -> Array:
    """Rows that hold their own number."""
    n = int(np.prod(leading))
    return np.repeat(np.arange(n, dtype=np.float32), WIDTH).reshape(*leading, WIDTH)


def memory(x: Array, folder: Path) -> ArraySource:
    return MemoryArray(x)


def strided(x: Array, folder: Path) -> ArraySource:
    return MemoryArray(np.asfortranarray(x))


def npy(x: Array, folder: Path) -> ArraySource:
    np.save(folder / "x.npy", x)
    return open_array(folder / "x.npy")


def packed(x: Array, folder: Path) -> ArraySource:
    np.savez_compressed(folder / "x.npz", x=x)
    return open_array(folder / "x.npz")


def torch_file(x: Array, folder: Path) -> ArraySource:
    import torch

    torch.save(torch.from_numpy(x), folder / "x.pt")
    return open_array(folder / "x.pt")


def shards(x: Array, folder: Path) -> ArraySource:
    for i, part in enumerate(np.array_split(x, 3)):
        np.save(folder / f"part_{i}.npy", part)
    return open_array(folder)


def blocks(x: Array, folder: Path) -> ArraySource:
    with pytest.importorskip("h5py").File(folder / "x.h5", "w") as file:
        file["x"] = x
    return open_array(folder / "x.h5")


KINDS = [memory, strided, npy, packed, torch_file, shards, blocks]


@given(bits=st.integers(1, 2**40 - 1), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_rows_are_those_of_the_mask_in_batches_of_any_sizes(bits: int, cuts: list[int]) -> None:
    keep, x = np.array([bits >> i & 1 == 1 for i in range(40)]), numbered(40)
    n = int(keep.sum())
    sizes = np.diff([0, *sorted(min(cut, n) for cut in cuts), n]).tolist()  # some are 0
    parts = list(SelectedRows(MemoryArray(x), np.flatnonzero(keep)).batches(sizes))
    assert [len(part) for part in parts] == sizes
    np.testing.assert_array_equal(np.concatenate(parts), x[keep])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(24,), (4, 6), (3, 2, 4)])
@pytest.mark.parametrize("rows", [1, 5, 100])
def test_any_source_of_any_shape(
    kind: Callable[[Array, Path], ArraySource], leading: tuple[int, ...], rows: int, tmp_path: Path
) -> None:
    x = numbered(*leading)
    keep = np.random.default_rng(rows).random(leading) < 0.6
    source = kind(x, tmp_path)
    np.save(tmp_path / "mask", keep)
    kept = Selection(mask=str(tmp_path / "mask.npy")).apply(source, None)
    assert (kept.source.shape, kept.source.n_rows, kept.source.width) == ((keep.sum(), WIDTH), keep.sum(), WIDTH)
    assert (kept.source.dtype, kept.source.path, kept.source.files) == (source.dtype, source.path, source.files)
    for _ in range(2):  # every call starts again
        parts = list(kept.source.batches(rows))
        np.testing.assert_array_equal(np.concatenate(parts), x[keep])
        assert all(part.dtype == np.float32 and part.flags.c_contiguous for part in parts)


def test_the_array_itself_is_not_changed_by_who_gets_a_batch() -> None:
    x = numbered(6)
    for batch in SelectedRows(MemoryArray(x), np.array([0, 1, 5])).batches(2):
        batch[:] = -1
    np.testing.assert_array_equal(x, numbered(6))


def test_a_row_of_its_own_and_float16() -> None:
    assert [part.tolist() for part in SelectedRows(MemoryArray(np.arange(3.0)), np.array([0])).batches(9)] == [
        [[0, 1, 2]]
    ]
    half = SelectedRows(MemoryArray(numbered(8).astype(np.float16)), np.array([2, 7]))
    assert (half.dtype, half.nbytes) == ("float16", 2 * 3 * 2)
    assert np.concatenate(list(half.batches(1)))[:, 0].tolist() == [2, 7]


ids_of_runs = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=1, max_size=8)


@given(runs=ids_of_runs, skip=st.integers(1, 4), bits=st.integers(0, 2**40 - 1))
def test_first_rows_are_skipped_by_their_positions(
    runs: list[tuple[int, int]], skip: int, bits: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ids = np.repeat([i for i, _ in runs], [n for _, n in runs])
    x, place = numbered(len(ids)), positions(ids)
    mask = np.array([bits >> i & 1 == 1 for i in range(len(ids))])
    path = tmp_path_factory.mktemp("mask") / "mask.npy"
    np.save(path, mask)
    for chosen, keep in ((None, place >= skip), (str(path), (place >= skip) & mask)):
        selection = Selection(skip, chosen)
        if not keep.any():
            with pytest.raises(InputError, match="no row stays"):
                selection.apply(MemoryArray(x), ids)
            continue
        kept = selection.apply(MemoryArray(x), ids)
        np.testing.assert_array_equal(np.concatenate(list(kept.source.batches(4))), x[keep])
        np.testing.assert_array_equal(kept.rows, np.flatnonzero(keep))
        np.testing.assert_array_equal(kept.ids, ids[keep])
        np.testing.assert_array_equal(kept.positions, place[keep])  # where they stood in the whole sequence


def test_without_anything_to_leave_out_the_source_stays() -> None:
    source = MemoryArray(numbered(4, 5))
    kept = Selection().apply(source, np.repeat(np.arange(4), 5))
    assert kept.source is source
    assert kept.positions is not None
    assert kept.positions.tolist() == list(range(5)) * 4
    bare = Selection().apply(source, None)
    assert (bare.ids, bare.positions, len(bare.rows)) == (None, None, 20)


def test_no_rows_stay_no_rows() -> None:
    assert len(Selection().apply(MemoryArray(numbered(0)), None).rows) == 0


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.ones(7, bool), "holds bool of shape \\(7,\\); expected bool, True to keep a row, for each of 8 rows"),
        (np.ones(8, np.int64), "holds int64"),
        (np.ones((2, 8), bool), "shape \\(2, 8\\)"),
        (np.zeros(8, bool), "no row stays of 8"),
        (np.array([None] * 8), "cannot be read"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 is no archive", "cannot be read"),
        (b"\x93NUMPY\x01\x00", "cannot be read"),
        ({"a": np.ones(8, bool)}, "holds several arrays"),
        (None, "cannot be read"),
    ],
)
def test_masks_that_are_none_are_refused(tmp_path: Path, mask: Any, message: str) -> None:
    path = tmp_path / "mask.npy"
    if isinstance(mask, bytes):
        path.write_bytes(mask)
    elif isinstance(mask, dict):
        with path.open("wb") as file:
            np.savez(file, **mask)
    elif mask is not None:
        np.save(path, mask, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        Selection(mask=str(path)).apply(MemoryArray(numbered(8), "x.npy"), None)


def test_first_rows_without_sequences_and_ids_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="give the ids"):
        Selection(1).apply(MemoryArray(numbered(8)), None)
    for ids in (np.arange(7), np.zeros(8), np.zeros((8, 1), np.int64)):
        with pytest.raises(InputError, match="one integer a row"):
            Selection(1).apply(MemoryArray(numbered(8)), ids)


# -- through files -----------------------------------------------------------------------------------------------------


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Two reports of `measure`, but for names and times."""
    for key in (
        "rows",
        "width",
        "shape",
        "file_bytes",
        "bytes",
        "nmse",
        "bits_interval",
        "sae_alone",
        "l0",
        "ratio_input",
    ):
        assert a[key] == b[key], key


def test_measuring_selected_rows_is_measuring_them_alone(sae: SAE, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 9, sae.width)).astype(np.float16)
    keep = np.random.default_rng(1).random((20, 9)) < 0.7
    np.save(tmp_path / "mask", keep)
    selection = Selection(2, str(tmp_path / "mask.npy"))
    keep[:, :2] = False
    ids = np.repeat(np.arange(20), 9)[keep.ravel()]
    report = measure_array(MemoryArray(x), sae=sae, selection=selection, chunk_rows=50)
    alone = measure_array(MemoryArray(x[keep]), sae=sae, chunk_rows=50)
    same(report, alone | {"bits_interval": report["bits_interval"]})
    assert report["bootstrap"]["unit"] == "sequences"
    assert report["selection"] == {"rows_in_input": 180, "skip_first": 2, "rows_mask": str(tmp_path / "mask.npy")}
    with_ids = measure_array(
        MemoryArray(x), sae=sae, seq=np.repeat(np.arange(20), 9), selection=selection, chunk_rows=50
    )
    same(with_ids, measure_array(MemoryArray(x[keep]), sae=sae, seq=ids, chunk_rows=50))


@pytest.mark.parametrize("leading", [(60,), (5, 12)])
def test_rows_of_heads(make_sae: MakeSAE, leading: tuple[int, ...], tmp_path: Path) -> None:
    sae = replace(make_sae("topk"), row_dims=2)
    heads = np.random.default_rng(0).normal(size=(*leading, 2, sae.width // 2)).astype(np.float32)
    flat, keep = heads.reshape(60, sae.width), np.arange(60) % 3 > 0
    np.save(tmp_path / "mask", keep)
    joined = JoinedHeads(MemoryArray(heads))
    kept = Selection(mask=str(tmp_path / "mask.npy")).apply(joined, None)
    assert (kept.source.shape, kept.source.row_shape) == ((40, sae.width), (2, sae.width // 2))
    np.testing.assert_array_equal(np.concatenate(list(kept.source.batches(7))), flat[keep])
    selection = Selection(mask=str(tmp_path / "mask.npy"))
    report = measure_array(MemoryArray(heads), sae=sae, selection=selection)
    same(
        report,
        measure_array(MemoryArray(heads.reshape(60, 2, -1)[keep]), sae=sae)
        | {"bits_interval": report["bits_interval"]},
    )


@pytest.mark.parametrize("of_codec", [False, True])
def test_rows_of_an_sae_that_looks_at_whole_sequences_stay(make_sae: MakeSAE, tmp_path: Path, of_codec: bool) -> None:
    """The mean norm of what is left of a sequence is another, so the SAE would be given other rows."""
    sae = replace(make_sae(), normalization="sequence_norm")
    x = np.random.default_rng(0).normal(size=(6, 15, sae.width)).astype(np.float32)
    np.save(tmp_path / "mask", np.ones((6, 15), bool))
    given = {"codec": Codec.fit(sae, x)} if of_codec else {"sae": sae}
    for selection in (Selection(1), Selection(mask=str(tmp_path / "mask.npy"))):
        with pytest.raises(InputError, match=f"SAE '{sae.name}' .* mean norm of their sequence.*measure all rows"):
            measure_array(MemoryArray(x), **given, selection=selection)
        selection.check(replace(sae, normalization="layer_norm"))  # of each row alone
    assert measure_array(MemoryArray(x), **given, selection=Selection())["rows"] == 90
