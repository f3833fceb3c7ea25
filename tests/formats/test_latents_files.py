"""Feature activations in and out of `.saec` files, without an SAE."""

from __future__ import annotations

import filecmp
import importlib.util
import io
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from saecodec.errors import FormatError, InputError, OutputError
from saecodec.formats import delphi_writer
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.decoding import decode_file, verify_file
from saecodec.formats.decoding_latents import decode_latents
from saecodec.formats.describe import describe
from saecodec.formats.encoding import encode_array
from saecodec.formats.encoding_latents import encode_latents
from saecodec.formats.file_sizes import bytes_by_part
from saecodec.formats.latent_source import MemoryLatents, open_latents
from saecodec.formats.latent_values import latent_rows
from saecodec.formats.measuring_latents import measure_latents
from saecodec.formats.saec import open_saec
from saecodec.frames import frame, pack_record, unpack_record
from saecodec.stored_floats import as_float
from saecodec.version import LATENTS

F, SEQUENCES, CONTEXT = 300, 12, 20
T = SEQUENCES * CONTEXT


def dense_rows(seed: int = 0, signed: bool = False) -> np.ndarray:
    """float16 (T, F), with about 5 activations a row; row 3 has none, latents 60 to 119 never fire."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(2.0, 1.0, (T, F)).astype(np.float16) * (rng.random((T, F)) < 0.02)
    values[3] = 0
    values[:, 60:120] = 0
    values = values * np.where(rng.random((T, F)) < 0.3, -1, 1) if signed else values
    return values.astype(np.float16)


def csr(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """indptr, indices and data."""
    rows, latents = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    return indptr, latents, dense[rows, latents]


def save_delphi(folder: Path, dense: np.ndarray, *, tokens: bool = True, n_splits: int = 5) -> np.ndarray:
    """A cache written as delphi's `save_splits` and `save_config` do; returns its tokens."""
    folder.mkdir()
    latents = torch.from_numpy(dense.reshape(SEQUENCES, CONTEXT, -1).astype(np.float32))
    locations, activations = torch.nonzero(latents.abs() > 1e-5), latents[latents.abs() > 1e-5]
    boundaries = torch.linspace(0, latents.shape[-1], steps=n_splits + 1).long()
    token_ids = np.random.default_rng(1).integers(0, 30_000, (SEQUENCES, CONTEXT))
    for start, end in zip(boundaries[:-1], boundaries[1:] - 1, strict=True):
        mask = (locations[:, 2] >= start) & (locations[:, 2] <= end)
        masked = locations[mask].numpy()
        masked[:, 2] -= start.item()
        small = len(masked) == 0 or (masked[:, 2].max() < 2**16 and masked[:, 0].max() < 2**16)
        data = {
            "locations": masked.astype(np.uint16 if small else np.uint32),
            "activations": activations[mask].half().numpy(),
        }
        save_file(data | ({"tokens": token_ids} if tokens else {}), folder / f"{start}_{end}.safetensors")
    config = {"dataset_repo": "text ✓", "cache_ctx_len": CONTEXT, "n_splits": n_splits, "model_name": "m"}
    (folder / "config.json").write_text(json.dumps(config))
    return token_ids


def delphi_load(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What delphi's `TensorBuffer.load` reads of a split: the path it does it on, transcribed."""
    split_data = load_file(path)
    first_latent = int(path.split("/")[-1].split("_")[0])
    assert split_data["locations"].dtype in (np.uint16, np.int16, np.int32, np.uint32, np.int64, np.uint64)
    locations = split_data["locations"].astype(np.int64)
    locations[:, 2] += first_latent
    return locations, split_data["activations"], split_data.get("tokens")


def delphi_edges(folder: Path) -> list[tuple[int, int]]:
    """As delphi's `LatentDataset._edges`."""
    edges = []
    for file in folder.glob("*.safetensors"):
        start, end = file.stem.split("_")
        edges.append((int(start), int(end)))
    return sorted(edges)


def dense_of_delphi(folder: Path, shape: tuple[int, int, int] = (SEQUENCES, CONTEXT, F)) -> np.ndarray:
    out = np.zeros(shape, np.float16)
    for start, end in delphi_edges(folder):
        locations, activations, _ = delphi_load(f"{folder}/{start}_{end}.safetensors")
        out[tuple(locations.T)] = activations
    return out.reshape(-1, shape[-1])


def save_csr(path: Path, dense: np.ndarray, **changes: np.ndarray) -> None:
    indptr, indices, data = csr(dense)
    parts = {"indices": indices.astype(np.int32), "indptr": indptr.astype(np.int32), "data": data}
    parts |= {"format": np.array(b"csr"), "shape": np.array(dense.shape)}
    np.savez(path, **(parts | changes))


def decoded(path: Path) -> np.ndarray:
    """The values of a file of latents, dense, in its dtype (bfloat16 as float32)."""
    with open_saec(path) as file:
        out = np.zeros((file.n_rows, file.header.width), "f4" if file.dtype == "bfloat16" else file.dtype)
        first = 0
        for rows in latent_rows(file):
            out[first + rows.rows(), rows.latents] = as_float(rows.values, out.dtype)
            first += rows.n_rows
        return out


@pytest.fixture(scope="module")
def reference():
    """The decoder that is written from docs/format.md alone."""
    path = Path(__file__).parents[1] / "reference_decoder.py"
    spec = importlib.util.spec_from_file_location("reference_decoder_of_latents", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cache(tmp_path):
    save_delphi(tmp_path / "cache", dense_rows())
    return tmp_path / "cache"


# -- delphi ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_rows", [1, 7, CONTEXT, 64, 4096])
def test_a_delphi_cache_comes_back_byte_for_byte_tokens_and_config_included(cache, tmp_path, chunk_rows):
    encode_latents(open_latents(cache), tmp_path / "x.saec", step=0, chunk_rows=chunk_rows)
    with open_saec(tmp_path / "x.saec") as file:
        assert decode_latents(file, tmp_path / "back") == (SEQUENCES, CONTEXT, F)
    names = sorted(os.listdir(cache))
    assert len(names) == 6
    assert sorted(os.listdir(tmp_path / "back")) == names
    assert filecmp.cmpfiles(cache, tmp_path / "back", names, shallow=False) == (names, [], [])


def test_delphis_read_path_finds_the_same_latents_in_what_is_written_back(cache, tmp_path):
    encode_latents(open_latents(cache), tmp_path / "x.saec", step="0")
    with open_saec(tmp_path / "x.saec") as file:
        decode_latents(file, tmp_path / "back")
    assert delphi_edges(tmp_path / "back") == delphi_edges(cache) == [(60 * i, 60 * i + 59) for i in range(5)]
    np.testing.assert_array_equal(dense_of_delphi(tmp_path / "back"), dense_rows())
    for start, end in delphi_edges(cache):
        for a, b in zip(
            *(delphi_load(f"{f}/{start}_{end}.safetensors") for f in (cache, tmp_path / "back")), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_a_cache_with_wide_locations_and_without_tokens_or_config_comes_back(tmp_path):
    save_delphi(tmp_path / "cache", dense_rows(), tokens=False, n_splits=2)
    (tmp_path / "cache" / "config.json").unlink()
    for path in (tmp_path / "cache").iterdir():
        data = load_file(path)
        save_file(data | {"locations": data["locations"].astype(np.uint32)}, path)
    source = open_latents(tmp_path / "cache")
    assert source.columns == ()
    assert source.shape[0] == SEQUENCES
    encode_latents(source, tmp_path / "x.saec", step=0)
    with open_saec(tmp_path / "x.saec") as file:
        decode_latents(file, tmp_path / "back")
    names = sorted(os.listdir(tmp_path / "cache"))
    assert filecmp.cmpfiles(tmp_path / "cache", tmp_path / "back", names, shallow=False) == (names, [], [])


def test_a_quantized_cache_keeps_places_tokens_and_dtypes_and_its_values_are_near(cache, tmp_path):
    report = encode_latents(open_latents(cache), tmp_path / "x.saec", step="0.1rms")
    with open_saec(tmp_path / "x.saec") as file:
        decode_latents(file, tmp_path / "back")
    before, after = dense_of_delphi(cache).astype(float), dense_of_delphi(tmp_path / "back").astype(float)
    assert np.abs(before - after).max() <= report.step
    for start, end in delphi_edges(cache):
        a, b = (load_file(folder / f"{start}_{end}.safetensors") for folder in (cache, tmp_path / "back"))
        assert {name: x.dtype for name, x in a.items()} == {name: x.dtype for name, x in b.items()}
        np.testing.assert_array_equal(a["tokens"], b["tokens"])


def test_whole_sequences_of_a_cache_are_written_and_cut_ones_refused(cache, tmp_path):
    encode_latents(open_latents(cache), tmp_path / "x.saec", step=0, chunk_rows=33)
    with open_saec(tmp_path / "x.saec") as file:
        assert decode_latents(file, tmp_path / "part", rows=(2 * CONTEXT, 5 * CONTEXT)) == (3, CONTEXT, F)
        with pytest.raises(OutputError, match=r"rows 0:5 cut a sequence of 20: a delphi cache holds whole ones"):
            decode_latents(file, tmp_path / "cut", rows=(0, 5))
    found = dense_of_delphi(tmp_path / "part", (3, CONTEXT, F))
    np.testing.assert_array_equal(found, dense_rows()[2 * CONTEXT : 5 * CONTEXT])
    whole, part = (load_file(folder / "0_59.safetensors")["tokens"] for folder in (cache, tmp_path / "part"))
    np.testing.assert_array_equal(part, whole[2:5])
    assert not (tmp_path / "cut").exists()


def test_splits_of_latents_that_never_fire_are_empty_tensors_and_come_back(cache, tmp_path):
    assert load_file(cache / "60_119.safetensors")["locations"].shape == (0, 3)
    encode_latents(open_latents(cache), tmp_path / "x.saec")
    with open_saec(tmp_path / "x.saec") as file:
        decode_latents(file, tmp_path / "back")
    assert (cache / "60_119.safetensors").read_bytes() == (tmp_path / "back" / "60_119.safetensors").read_bytes()


def change_split(cache: Path, name: str = "0_59", **tensors: object) -> None:
    """Change tensors of a split: name -> function of the old one."""
    path = cache / f"{name}.safetensors"
    data = load_file(path)
    for key, change in tensors.items():
        data[key] = np.ascontiguousarray(change(data.get(key)))
    save_file(data, path)


def at(row: int, column: int, value: int):
    def change(array: np.ndarray) -> np.ndarray:
        array[row, column] = value
        return array

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        ({"locations": at(0, 0, SEQUENCES)}, f"a location is {SEQUENCES}, but there are {SEQUENCES} sequences"),
        ({"locations": at(-1, 1, CONTEXT)}, f"a location is {CONTEXT}, but there are {CONTEXT} positions"),
        ({"locations": at(5, 2, 60)}, "a location is 60, but there are 60 latents in this split"),
        ({"locations": lambda a: a[::-1]}, "not in the order of sequence, position and latent"),
        ({"locations": lambda a: a[[0, 0, *range(2, len(a))]]}, "or one is there twice"),
        ({"locations": lambda a: a[:-1]}, "expected integer locations (K, 3), activations (K,)"),
        ({"locations": lambda a: a.astype(np.float32)}, "expected integer locations"),
        ({"activations": lambda a: a.astype(np.float64)}, "activations (K,) of F16 or F32"),
        ({"tokens": lambda a: a[:, 1:]}, "its splits differ in token shape"),
        ({"tokens": lambda a: a + 1}, "has other tokens than"),
        ({"tokens": lambda a: a.astype(np.int32)}, "its splits differ in tokens"),
        ({"more": lambda a: np.zeros(3)}, "expected locations, activations and perhaps tokens"),
    ],
)
def test_a_damaged_cache_is_refused_by_what_is_wrong(cache, tmp_path, change, message):
    change_split(cache, **change)
    with pytest.raises(InputError, match=re.escape(message)):
        encode_latents(open_latents(cache), tmp_path / "x.saec", step=0, chunk_rows=50)
    assert not (tmp_path / "x.saec").exists()


def test_a_truncated_split_a_bad_config_and_other_folders_are_refused(cache, tmp_path):
    with pytest.raises(InputError, match="holds the caches of several modules; code each of its own: cache"):
        open_latents(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no splits; expected a delphi cache"):
        open_latents(tmp_path / "empty")
    (cache / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"config.json: is not a JSON object"):
        open_latents(cache)
    (cache / "config.json").unlink()
    (cache / "30_70.safetensors").write_bytes((cache / "0_59.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"30_70.safetensors overlaps another split"):
        open_latents(cache)
    (cache / "30_70.safetensors").unlink()
    path = cache / "120_179.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"120_179.safetensors: not a safetensors file that can be read"):
        open_latents(cache)


def test_a_few_bytes_that_claim_billions_of_rows_cost_nothing(tmp_path):
    (tmp_path / "cache").mkdir()
    locations = np.array([[0, 0, 0], [(1 << 32) - 1, 60, 1]], np.uint32)
    save_file({"locations": locations, "activations": np.ones(2, np.float16)}, tmp_path / "cache" / "0_9.safetensors")
    with pytest.raises(InputError, match="nearly all rows are empty: is its shape right"):
        open_latents(tmp_path / "cache")


@pytest.mark.parametrize(
    "text", ["x", "{}", "[]", '{"splits": [[0, 9, "U16"], [5, 299, "U16"]], "tokens": "", "config": null}',
             '{"splits": [[0, 300, "U16"]], "tokens": "", "config": null}',
             '{"splits": [[0, 299, "F16"]], "tokens": "", "config": null}',
             '{"splits": [], "tokens": "", "config": null}']
)  # fmt: skip
def test_a_hostile_layout_in_the_metadata_is_refused(cache, tmp_path, text):
    encode_latents(open_latents(cache), tmp_path / "x.saec")
    with open_saec(tmp_path / "x.saec") as file:
        file.header.user["delphi"] = text
        with pytest.raises(InputError, match=r"overlaps|layout of a delphi cache|no split"):
            decode_latents(file, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_layout_that_leaves_out_latents_which_fire_loses_nothing_silently(cache, tmp_path):
    encode_latents(open_latents(cache), tmp_path / "x.saec")
    with open_saec(tmp_path / "x.saec") as file:
        file.header.user["delphi"] = '{"splits": [[0, 59, "U16"]], "tokens": "", "config": null}'
        with pytest.raises(FormatError, match="activations are of latents that are in no split"):
            decode_latents(file, tmp_path / "back")
        many = [[i, i, "U16"] for i in range(F)]
        file.header.user["delphi"] = json.dumps({"splits": many, "tokens": "", "config": None})
        with pytest.raises(InputError, match="has 300 splits; at most 128 are supported"):
            decode_latents(file, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_folder_may_have_the_dotted_name_of_a_module(cache, tmp_path):
    encode_latents(open_latents(cache), tmp_path / "x.saec", step=0)
    with open_saec(tmp_path / "x.saec") as file:
        decode_latents(file, tmp_path / "model.layers.3")
    assert open_latents(tmp_path / "model.layers.3").shape == (SEQUENCES, CONTEXT, F)


def test_safetensors_are_written_as_the_library_writes_them(tmp_path):
    for dtype in (np.uint16, np.uint32, np.int64):
        tensors = {
            "locations": np.arange(12, dtype=dtype).reshape(4, 3),
            "activations": np.arange(4, dtype=np.float16),
            "tokens": np.arange(6).reshape(2, 3),
        }
        save_file(tensors, tmp_path / "a.safetensors")
        codes = {
            "locations": {2: "U16", 4: "U32", 8: "I64"}[np.dtype(dtype).itemsize],
            "activations": "F16",
            "tokens": "I64",
        }
        given = {name: (codes[name], x.shape, io.BytesIO(x.tobytes()), x.dtype.str) for name, x in tensors.items()}
        out = io.BytesIO()
        delphi_writer._write_safetensors(out, given)
        assert out.getvalue() == (tmp_path / "a.safetensors").read_bytes()


def test_a_folder_is_replaced_only_with_force_and_only_if_it_is_a_cache(cache, tmp_path):
    encode_latents(open_latents(cache), tmp_path / "x.saec", step=0)
    back = tmp_path / "back"
    save_delphi(back, dense_rows(seed=5), n_splits=3)
    with open_saec(tmp_path / "x.saec") as file:
        with pytest.raises(OutputError, match="already exists; pass --force"):
            decode_latents(file, back)
        (back / "notes.txt").write_text("mine")
        with pytest.raises(OutputError, match=r"is not replaced, because it holds 'notes.txt'"):
            decode_latents(file, back, force=True)
        assert len(list(back.iterdir())) == 5
        (back / "notes.txt").unlink()
        decode_latents(file, back, force=True)
        (tmp_path / "plain").write_text("")
        with pytest.raises(OutputError, match="is a file; expected the name of a folder"):
            decode_latents(file, tmp_path / "plain", force=True)
        with pytest.raises(OutputError, match=r"has the extension '.csv'"):
            decode_latents(file, tmp_path / "z.csv")
        with pytest.raises(OutputError, match="holds float16 or float32, not float64"):
            decode_latents(file, tmp_path / "wide", dtype="float64")
        with pytest.raises(OutputError, match="there is no folder"):
            decode_latents(file, tmp_path / "no" / "back")
    assert sorted(os.listdir(back)) == sorted(os.listdir(cache))
    assert sorted(os.listdir(tmp_path)) == ["back", "cache", "plain", "x.saec"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(cache, tmp_path, monkeypatch):
    encode_latents(open_latents(cache), tmp_path / "x.saec", step=0)
    before = {path.name: path.read_bytes() for path in cache.iterdir()}

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(delphi_writer, "_write_safetensors", broken)
    with open_saec(tmp_path / "x.saec") as file, pytest.raises(OutputError, match="No space left on device"):
        decode_latents(file, cache, force=True)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["cache", "x.saec"]


# -- matrices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_csr_matrix_comes_back_exactly(tmp_path, dtype, compressed):
    dense = dense_rows(signed=True).astype(dtype)
    indptr, indices, data = csr(dense)
    save = np.savez_compressed if compressed else np.savez
    save(tmp_path / "z.npz", indices=indices, indptr=indptr, data=data, format=b"csr", shape=dense.shape)
    encode_latents(open_latents(tmp_path / "z.npz"), tmp_path / "x.saec", step=0, chunk_rows=50)
    with open_saec(tmp_path / "x.saec") as file:
        assert (file.shape, file.dtype) == ((T, F), dtype)
        assert decode_latents(file, tmp_path / "back.npz") == (T, F)
        assert decode_latents(file, tmp_path / "part.npz", rows=(10, 60), dtype="float32") == (50, F)
    with np.load(tmp_path / "back.npz") as back:
        assert (back["data"].dtype, back["data"].tobytes()) == (data.dtype, data.tobytes())
        np.testing.assert_array_equal(back["indices"], indices)
        np.testing.assert_array_equal(back["indptr"], indptr)
        assert (back["indices"].dtype, back["indptr"].dtype) == (np.int32, np.int32)
        assert (back["shape"].tolist(), bytes(back["format"])) == ([T, F], b"csr")
    with np.load(tmp_path / "part.npz") as part:
        np.testing.assert_array_equal(part["data"], data[indptr[10] : indptr[60]].astype(np.float32))


def test_scipy_reads_what_is_written_and_what_it_writes_is_read(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.csr_matrix(dense_rows(signed=True).astype(np.float32))
    sparse.save_npz(tmp_path / "z.npz", matrix)
    encode_latents(open_latents(tmp_path / "z.npz"), tmp_path / "x.saec", step=0)
    with open_saec(tmp_path / "x.saec") as file:
        decode_latents(file, tmp_path / "back.npz")
    back = sparse.load_npz(tmp_path / "back.npz")
    back.check_format(full_check=True)
    assert (back.shape, back.dtype, (back != matrix).nnz) == (matrix.shape, matrix.dtype, 0)


def test_explicit_zeros_are_kept_exactly_and_vanish_when_quantized(tmp_path):
    values = np.array([0.0, -0.0, 1.5, -2.0], np.float16)
    source = MemoryLatents(np.array([0, 2, 4]), np.array([1, 4, 0, 2]), values, (2, 5))
    encode_latents(source, tmp_path / "x.saec", step=0)
    encode_latents(source, tmp_path / "y.saec", step=0.1)
    with open_saec(tmp_path / "x.saec") as file:
        (rows,) = latent_rows(file)
        assert (rows.latents.tolist(), rows.values.tobytes()) == ([1, 4, 0, 2], values.tobytes())
    with open_saec(tmp_path / "y.saec") as file:
        (rows,) = latent_rows(file)
        assert rows.latents.tolist() == [0, 2]


@given(data=st.data())
def test_any_float16_matrix_comes_back_bit_by_bit(data, tmp_path_factory):
    n_rows, n_latents = data.draw(st.integers(0, 9)), data.draw(st.integers(1, 9))
    cells = st.tuples(st.integers(0, max(n_rows - 1, 0)), st.integers(0, n_latents - 1))
    found = data.draw(st.dictionaries(cells, st.integers(0, 0xFFFF), max_size=30 if n_rows else 0))
    order = sorted(found)
    indptr = np.searchsorted([row for row, _ in order], np.arange(n_rows + 1)).astype(np.int64)
    latents, bits = np.array([f for _, f in order], np.int64), np.array([found[c] for c in order], np.uint16)
    path = tmp_path_factory.mktemp("any") / "x.saec"
    source = MemoryLatents(indptr, latents, bits.view(np.float16), (n_rows, n_latents))
    encode_latents(source, path, step=0, chunk_rows=data.draw(st.integers(1, 10)))
    with open_saec(path) as file:
        rows = list(latent_rows(file))
        verify_file(file)
    assert b"".join(part.values.tobytes() for part in rows) == bits.tobytes()
    assert [f for part in rows for f in part.latents.tolist()] == latents.tolist()
    assert [n for part in rows for n in np.diff(part.indptr).tolist()] == np.diff(indptr).tolist()


@pytest.mark.parametrize("layout", ["csr", "coo", "coo3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.filterwarnings("ignore:.*[Ss]parse")
def test_torch_sparse_tensors_come_back_exactly(tmp_path, layout, dtype):
    dense = torch.from_numpy(dense_rows(signed=True).astype(np.float32)).to(torch.bfloat16).to(dtype)
    shaped = dense.reshape(SEQUENCES, CONTEXT, F) if layout == "coo3" else dense
    tensor = shaped.to_sparse_csr() if layout == "csr" else shaped.to_sparse_coo()
    torch.save({"z": tensor, "n": 3}, tmp_path / "z.pt")
    source = open_latents(tmp_path / "z.pt")
    assert source.shape == tuple(shaped.shape)
    encode_latents(source, tmp_path / "x.saec", step=0)
    with open_saec(tmp_path / "x.saec") as file:
        assert file.shape == tuple(shaped.shape)
        decode_latents(file, tmp_path / "back.pt")
        if dtype == torch.bfloat16:
            with pytest.raises(OutputError, match=r"\.npz has no bfloat16; write a \.pt"):
                decode_latents(file, tmp_path / "back.npz")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert (back.layout, back.dtype, tuple(back.shape)) == (torch.sparse_csr, dtype, (T, F))
    assert torch.equal(back.to_dense(), dense)


def test_torch_tensors_that_are_dense_or_hold_duplicates_are_refused(tmp_path):
    torch.save(torch.ones(3, 4), tmp_path / "dense.pt")
    with pytest.raises(InputError, match=r"tensor.to_sparse_csr\(\) makes one"):
        open_latents(tmp_path / "dense.pt")
    twice = torch.sparse_coo_tensor(
        torch.tensor([[0, 0], [1, 1]]), torch.ones(2), (2, 3), check_invariants=True, is_coalesced=False
    )
    torch.save(twice, tmp_path / "twice.pt")
    with pytest.raises(InputError, match="row 0 has latent 1 twice: sum or drop duplicates"):
        encode_latents(open_latents(tmp_path / "twice.pt"), tmp_path / "x.saec")
    wide = torch.sparse_coo_tensor(torch.tensor([[0], [1]]), torch.ones(1), (1 << 36, 3), check_invariants=True)
    torch.save(wide, tmp_path / "wide.pt")
    with pytest.raises(InputError, match="nearly all rows are empty"):
        open_latents(tmp_path / "wide.pt")


@pytest.mark.parametrize("which", ["indices", "values"])
def test_saerchs_pairs_are_read_from_either_half_and_sorted(tmp_path, which):
    rng = np.random.default_rng(0)
    indices = np.stack([rng.permutation(50)[:4] for _ in range(30)])
    values = rng.random((30, 4)).astype(np.float32).astype(np.float16).astype(np.float32)
    values[5, 2:] = 0
    np.save(tmp_path / "topk_indices_4_50.npy", indices)
    np.save(tmp_path / "topk_values_4_50.npy", values)
    source = open_latents(tmp_path / f"topk_{which}_4_50.npy")
    assert source.shape == (30, 50)
    encode_latents(source, tmp_path / "x.saec", step=0)
    expected = np.zeros((30, 50), np.float32)
    np.put_along_axis(expected, indices, values, axis=1)
    np.testing.assert_array_equal(decoded(tmp_path / "x.saec"), expected)


def test_saerchs_pairs_that_lack_a_half_or_the_number_of_latents_say_so(tmp_path):
    np.save(tmp_path / "topk_indices.npy", np.array([[1, 2], [0, 2]]))
    with pytest.raises(InputError, match=r"its other half, .*topk_values.npy, is not there"):
        open_latents(tmp_path / "topk_indices.npy")
    np.save(tmp_path / "topk_values.npy", np.ones((2, 2), np.float16))
    with pytest.raises(InputError, match=r"give it \(--n-latents F\)"):
        open_latents(tmp_path / "topk_indices.npy")
    with pytest.raises(InputError, match="row 0 has latent 2, but there are 2 latents"):
        encode_latents(open_latents(tmp_path / "topk_indices.npy", 2), tmp_path / "x.saec")
    encode_latents(open_latents(tmp_path / "topk_indices.npy", 3), tmp_path / "x.saec", step=0)
    np.testing.assert_array_equal(decoded(tmp_path / "x.saec"), [[0, 1, 1], [1, 0, 1]])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"format": np.array(b"csc")}, "matrix.tocsr() makes one"),
        ({"shape": np.array([T, 40])}, "latents: give their true number (--n-latents)"),
        ({"shape": np.array([T + 1, F])}, "the file is truncated or corrupt"),
        ({"shape": np.array([1 << 40, F])}, "fewer than 2^38"),
        ({"shape": np.array([T, 0])}, "expected rows of 1 to 16777216 latents"),
        ({"data": np.ones(3, np.float32)}, "the file is truncated or corrupt"),
        ({"data": np.ones(3, np.int32)}, "has dtype int32"),
        ({"indptr": np.zeros(T + 1)}, "expected one-dimensional integers"),
        ({"indptr": np.arange(T + 1)[::-1]}, "'indptr' begins with"),
        ({"indptr": np.zeros(T + 1, np.int32)}, "'indptr' ends at 0, but there are"),
        ({"indptr": np.arange(T + 1) * (1 << 40)}, "'indptr' falls or exceeds"),
    ],
)  # fmt: skip
def test_a_corrupt_csr_matrix_is_refused_by_what_is_wrong(tmp_path, changes, message):
    save_csr(tmp_path / "z.npz", dense_rows(), **changes)
    with pytest.raises(InputError, match=re.escape(message)):
        encode_latents(open_latents(tmp_path / "z.npz"), tmp_path / "x.saec")


def test_latents_of_a_row_come_in_any_order_but_once(tmp_path):
    values = np.array([1.0, 2.0, 3.0], np.float16)
    encode_latents(MemoryLatents(np.array([0, 3]), np.array([4, 0, 2]), values, (1, 5)), tmp_path / "x.saec", step=0)
    np.testing.assert_array_equal(decoded(tmp_path / "x.saec"), [[2, 0, 3, 0, 1]])
    with pytest.raises(InputError, match="row 0 has latent 4 twice"):
        encode_latents(MemoryLatents(np.array([0, 3]), np.array([4, 0, 4]), values, (1, 5)), tmp_path / "y.saec")


def test_a_member_that_claims_more_than_its_bytes_can_unpack_to_is_refused(tmp_path):
    save_csr(tmp_path / "z.npz", dense_rows())
    big = io.BytesIO()
    header = {"descr": "<i4", "fortran_order": False, "shape": (1 << 40,)}
    np.lib.format.write_array_header_1_0(big, header)
    with zipfile.ZipFile(tmp_path / "z.npz") as old, zipfile.ZipFile(tmp_path / "y.npz", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, big.getvalue() if info.filename == "indptr.npy" else old.read(info))
    with pytest.raises(InputError, match="the file is truncated or corrupt"):
        open_latents(tmp_path / "y.npz")


@pytest.mark.parametrize("name", ["shape.npy", "data.npy"])
def test_a_member_that_might_unpack_to_anything_is_refused(tmp_path, name):
    save_csr(tmp_path / "z.npz", dense_rows())
    with zipfile.ZipFile(tmp_path / "z.npz") as old, zipfile.ZipFile(tmp_path / "y.npz", "w") as new:
        for info in old.infolist():
            how = zipfile.ZIP_BZIP2 if info.filename == name else zipfile.ZIP_STORED
            new.writestr(info.filename, old.read(info), how)
    with pytest.raises(InputError, match="unusually compressed"):
        open_latents(tmp_path / "y.npz")


# -- files of latents --------------------------------------------------------------------------------------------------


def test_a_value_that_a_step_cannot_code_is_named_by_its_row(tmp_path):
    source = MemoryLatents(np.array([0, 1, 2]), np.array([1, 2]), np.array([1, np.nan], np.float32), (2, 5))
    with pytest.raises(InputError, match=r"<memory>: row 1 holds NaN, infinity .*--step 0 keeps"):
        encode_latents(source, tmp_path / "x.saec")
    with pytest.raises(InputError, match="a step is a positive number"):
        encode_latents(source, tmp_path / "x.saec", step="-1")


def test_float32_values_that_no_16_bit_float_holds_need_a_step(tmp_path):
    source = MemoryLatents(np.array([0, 1]), np.array([1]), np.array([0.1], np.float32), (1, 5))
    with pytest.raises(InputError, match="neither a float16 nor a bfloat16: give a step"):
        encode_latents(source, tmp_path / "x.saec", step=0)
    encode_latents(source, tmp_path / "x.saec")
    np.testing.assert_allclose(decoded(tmp_path / "x.saec"), [[0, 0.1, 0, 0, 0]], atol=0.02)


def test_a_file_of_latents_is_no_file_of_rows_and_says_so(cache, tmp_path, sae):
    encode_latents(open_latents(cache), tmp_path / "x.saec", user={"note": "n"})
    with open_saec(tmp_path / "x.saec", sae=sae) as file:
        with pytest.raises(InputError, match=r"holds feature activations.*decode --latents"):
            decode_file(file, tmp_path / "x.npy")
        assert verify_file(file).decoded == "rows"
        parts = bytes_by_part(file)
        assert sum(parts.values()) == file.size
        assert parts["columns"] > T  # tokens
        assert set(file.header.user) == {"delphi", "note"}
    facts = describe(tmp_path / "x.saec")
    assert (facts["kind"], facts["needs"], facts["values"]) == ("saec of latents", [], "quantized")
    assert facts["sae"] == {"name": "", "source": "delphi", "architecture": "latents", "n_latents": F}
    with pytest.raises(InputError, match="the metadata delphi is the format's own"):
        encode_latents(open_latents(cache), tmp_path / "y.saec", user={"delphi": "n"})


@pytest.mark.parametrize(
    "change",
    [
        {"values": None},
        {"values": {"kind": "float32", "base": 0}},
        {"values": {"kind": "float16", "base": -2}},
        {"values": {"kind": "float16", "base": 0x7FFF}},
        {"values": {"kind": "float16", "base": True}},
        {"values": {"kind": "float16"}},
        {"values": {"kind": "step", "base": 1}},
        {"values": {"kind": ["float16"], "base": 1}},
        {"decoder_id": bytes(31) + b"\1"},
        {"embed": "none"},
        {"requires": ["prior:factorized", LATENTS, "layer:residual"]},
        {"requires": ["prior:factorized", LATENTS, "side:rows"]},
        {"row_shape": [3, 100]},
        {"width": F + 1},
    ],
    ids=str,
)
def test_a_header_of_latents_that_is_not_possible_is_refused(cache, tmp_path, change, rebuild, reference):
    encode_latents(open_latents(cache), tmp_path / "x.saec", step=0)

    def changed(parts):
        (kind, critical, payload), *rest = parts
        record = {**unpack_record(payload, "x"), **change}
        return [(kind, critical, pack_record({k: v for k, v in record.items() if v is not None})), *rest]

    data = rebuild(tmp_path / "x.saec", changed)
    (tmp_path / "y.saec").write_bytes(data)
    with pytest.raises(FormatError), open_saec(tmp_path / "y.saec") as file:
        list(latent_rows(file))
    with pytest.raises(reference.Refused):
        reference.read_saec(data)


def test_levels_beyond_the_patterns_are_refused(tmp_path, rebuild, reference):
    source = MemoryLatents(np.array([0, 2]), np.array([1, 3]), np.array([1, 2], np.float16), (1, 5))
    encode_latents(source, tmp_path / "x.saec", step=0)

    def changed(parts):
        (kind, critical, payload), *rest = parts
        record = {**unpack_record(payload, "x"), "values": {"kind": "float16", "base": 0x7FFE}}
        return [(kind, critical, pack_record(record)), *rest]

    data = rebuild(tmp_path / "x.saec", changed)
    (tmp_path / "y.saec").write_bytes(data)
    with open_saec(tmp_path / "y.saec") as file, pytest.raises(FormatError, match="stands for the pattern"):
        verify_file(file)
    with pytest.raises(reference.Refused, match="a pattern has 15 bits"):
        reference.read_saec(data)


def test_a_codec_file_is_never_of_latents(codec, take_apart, reference):
    data = codec.to_bytes()
    (_, critical, payload), *rest = take_apart(bytes(8) + data)
    record = unpack_record(payload, "x")
    record["requires"] = [*record["requires"], LATENTS]
    parts = [("CHED", critical, pack_record(record)), *rest]
    changed = b"".join(frame(kind, payload, critical=critical) for kind, critical, payload in parts)
    with pytest.raises(FormatError, match=r"requires 'content:latents', which is for \.saec files"):
        type(codec).from_bytes(changed)
    with pytest.raises(reference.Refused, match="a codec file is not of latents"):
        reference.read_codec(reference.CODEC_MAGIC + changed)


def test_activations_of_an_ordinary_file_are_those_that_its_rows_are_made_of(sae, codec, x, tmp_path):
    encode_array(MemoryArray(x.reshape(2, 20, -1)), tmp_path / "x.saec", sae=sae, codec=codec, chunk_rows=16)
    with open_saec(tmp_path / "x.saec", sae=sae, codec=codec) as file:
        decode_latents(file, tmp_path / "z.npz")
        assert decode_latents(file, tmp_path / "cache") == (2, 20, 24)
        wanted = file.rows()
    with np.load(tmp_path / "z.npz") as z:
        dense = np.zeros((40, 24), np.float32)
        dense[np.repeat(np.arange(40), np.diff(z["indptr"])), z["indices"]] = z["data"]
    np.testing.assert_allclose(dense @ sae.w_dec.numpy() + sae.b_dec.numpy(), wanted, atol=1e-5)
    np.testing.assert_array_equal(dense_of_delphi(tmp_path / "cache", (2, 20, 24)), dense.astype(np.float16))
    assert len(delphi_edges(tmp_path / "cache")) == 5
    assert json.loads((tmp_path / "cache" / "config.json").read_text())["cache_ctx_len"] == 20


@pytest.mark.parametrize("step", ["0", "0.4rms"])
def test_measure_reports_what_a_dense_computation_gives(cache, step):
    report = measure_latents(open_latents(cache), step=step, chunk_rows=64)
    z = dense_rows().astype(np.float64)
    stored = sum(path.stat().st_size for path in cache.glob("*.safetensors"))
    tokens = 5 * 8 * T
    assert (report["stored_bytes"], report["stored_column_bytes"]) == (stored, tokens)
    assert report["nonzeros"] == np.count_nonzero(z)
    assert report["ratio"] == (report["file_bytes"] - report["column_bytes"]) / (stored - tokens)
    assert sum(report["bits"].values()) == pytest.approx(report["bits_per_row"])
    assert report["bit_equal"] is (step == "0")
    if step == "0":
        assert (report["nmse"], report["max_error"]) == (0, 0)
    else:
        assert 0 < report["max_error"] <= report["step"]
        assert 0 < report["nmse"] < 0.02


def test_nmse_of_latents_is_that_of_dense_rows(cache, tmp_path):
    report = measure_latents(open_latents(cache), step="1.5rms")
    encode_latents(open_latents(cache), tmp_path / "x.saec", step="1.5rms")
    z, z_hat = dense_rows().astype(np.float64), decoded(tmp_path / "x.saec").astype(np.float64)
    assert report["decoded_l0"] < report["l0"]
    assert report["nmse"] == pytest.approx(((z - z_hat) ** 2).sum() / ((z - z.mean(0)) ** 2).sum())
    assert report["max_error"] == pytest.approx(np.abs(z - z_hat).max())
