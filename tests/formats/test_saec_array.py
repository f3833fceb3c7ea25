"""An open file as an array: numpy's indices, and only what is asked for is read and decoded."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from coded_rows import identity_sae
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import register_implementation
from hypothesis import given
from hypothesis import strategies as st

import saecodec
from saecodec.codec import Codec
from saecodec.errors import FormatError, InputError, MissingPieceError
from saecodec.formats import byte_source
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.describe import describe
from saecodec.formats.encoding import encode_array
from saecodec.formats.encoding_latents import encode_latents
from saecodec.formats.feature_view import codes_of_latents
from saecodec.formats.latent_source import open_latents
from saecodec.formats.saec_array import SaecArray
from saecodec.formats.saec_writer import SaecWriter
from saecodec.goal import Goal
from saecodec.latents import LatentCodec
from saecodec.layers import Layers
from saecodec.sae import SAE

Rows = npt.NDArray[Any]
Make = Callable[..., Path]


class Counting(MemoryFileSystem):
    """A file system in memory that notes the byte ranges that are read."""

    protocol = "counting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    read: ClassVar[list[tuple[int, int]]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return MemoryFileSystem._strip_protocol(path.replace("counting://", "memory://"))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        assert start is not None
        assert end is not None
        self.read.append((start, end))
        return super().cat_file(path, start, end, **options)

    def open(self, *arguments: Any, **options: Any) -> Any:
        if options.get("mode", arguments[1] if len(arguments) > 1 else "rb") == "rb" and not _inside_cat():
            raise AssertionError("the file itself was opened, not a range of it")
        return super().open(*arguments, **options)


def _inside_cat() -> bool:
    import inspect

    return any(frame.function == "cat_file" for frame in inspect.stack())


register_implementation("counting", Counting, clobber=True)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of chunks that are decoded, as they are."""
    seen: list[int] = []
    unpack = LatentCodec.unpack

    def counted(self: LatentCodec, chunk: bytes, what: str = "chunk") -> Any:
        seen.append(len(chunk))
        return unpack(self, chunk, what)

    monkeypatch.setattr(LatentCodec, "unpack", counted)
    return seen


@pytest.fixture(scope="module")
def rows() -> Rows:
    return np.random.default_rng(1).normal(size=(6, 20, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, sae: SAE, rows: Rows) -> Path:
    path = tmp_path_factory.mktemp("array") / "x.saec"
    encode_array(MemoryArray(rows), path, sae=sae, chunk_rows=16)
    return path


@pytest.fixture
def array(path: Path, sae: SAE) -> Iterator[SaecArray]:
    with saecodec.open(path, sae=sae) as array:
        yield array


@pytest.fixture
def whole(array: SaecArray) -> Rows:
    return array.file.rows().reshape(array.shape)


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [3, -1, slice(1, 3), slice(None, None, -2), [0, 5, 5, -1], ..., (2, 7), (2, slice(3, 9)), (slice(None), [1, 19]),
     (..., 3), (..., slice(2, 5)), (0, 0, 0), ([0, 1], [2, 3]), (None, 1), np.arange(6) % 2 == 0, [], slice(3, 3),
     (slice(None), None, 4), np.ones((6, 20), bool)],
)  # fmt: skip
def test_an_index_gives_what_numpy_gives_of_all_rows(array: SaecArray, whole: Rows, index: Any) -> None:
    found = array[index]
    np.testing.assert_allclose(found, whole[index], rtol=0, atol=1e-5)
    assert found.shape == whole[index].shape
    assert found.dtype == array.dtype == np.float32


def test_it_is_an_array_to_numpy(array: SaecArray, whole: Rows) -> None:
    assert (array.shape, array.ndim, array.size, len(array), array.n_rows) == ((6, 20, 8), 3, 960, 6, 120)
    np.testing.assert_allclose(np.asarray(array), whole, rtol=0, atol=1e-5)
    assert np.asarray(array, np.float16).dtype == np.float16
    with pytest.raises(ValueError, match="decoded"):
        array.__array__(copy=False)  # as numpy 2 asks
    chunks = list(array)
    assert [chunk.shape for chunk in chunks] == [(16, 8)] * 7 + [(8, 8)]
    np.testing.assert_allclose(np.concatenate(chunks), whole.reshape(-1, 8), rtol=0, atol=1e-5)
    for wrong in (6, (0, 20), (0, 0, 0, 0), "x", [0.5]):
        with pytest.raises(IndexError):
            array[wrong]


@pytest.mark.parametrize("dtype, expected", [("float16", "f2"), ("bfloat16", "f4"), ("float64", "f8")])
def test_rows_have_the_dtype_of_the_input(tmp_path: Path, sae: SAE, dtype: str, expected: str) -> None:
    class Stored(MemoryArray):
        pass

    source = Stored(np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32))
    source.dtype = dtype
    encode_array(source, tmp_path / "x.saec", sae=sae)
    with saecodec.open(tmp_path / "x.saec", sae=sae) as array:
        assert array[3:5].dtype == array.dtype == np.dtype(expected)


@pytest.mark.parametrize("shape", [(8,), (0, 8), (3, 0, 8)])
def test_one_row_or_none(tmp_path: Path, sae: SAE, shape: tuple[int, ...]) -> None:
    encode_array(MemoryArray(np.ones(shape, np.float32)), tmp_path / "x.saec", sae=sae)
    with saecodec.open(tmp_path / "x.saec", sae=sae) as array:
        assert array[...].shape == array.shape == shape
        assert array[..., 2:4].shape == (*shape[:-1], 2)
        assert array.features[:].shape == (int(np.prod(shape[:-1])), 24)


# -- what is read and decoded ------------------------------------------------------------------------------------------


def test_each_chunk_is_decoded_once_and_only_where_it_is_needed(path: Path, sae: SAE, decoded: list[int]) -> None:
    with saecodec.open(path, sae=sae) as array:
        array[np.array([5, 0, 5, 1]), np.array([19, 0, 18, 1])]  # chunks 0, 1, 7
        assert len(decoded) == 3
        array[0, 3]
        array.features[2:4]
        assert len(decoded) == 3  # all kept
        array[2, 0]
        assert len(decoded) == 4


def test_what_was_used_last_is_kept_within_the_limit(path: Path, sae: SAE, decoded: list[int]) -> None:
    with saecodec.open(path, sae=sae) as array:
        array[0, 0]
        (kept,) = array._cache._held.values()
    decoded.clear()
    with saecodec.open(path, sae=sae, cache_bytes=int(2.5 * kept.nbytes)) as array:
        for row in (0, 16, 0, 32, 0, 16):  # chunks 0, 1, 0, 2 (1 goes), 0, 1 again
            array[divmod(row, 20)]
        assert len(decoded) == 4
    with saecodec.open(path, sae=sae, cache_bytes=0) as array:
        decoded.clear()
        array[0, 0], array[0, 0]
        assert len(decoded) == 2


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> int:
    """How much of either end of a remote file is read on opening it, in these tests."""
    monkeypatch.setattr(byte_source, "_ENDS", 1024)
    return 1024


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory, sae: SAE) -> Iterator[tuple[str, Path]]:
    """A file that is much larger than what is fetched of its ends (`few_bytes`)."""
    path = tmp_path_factory.mktemp("remote") / "x.saec"
    rows = np.random.default_rng(2).normal(size=(30_000, 8)).astype(np.float32)
    encode_array(MemoryArray(rows), path, sae=sae, chunk_rows=1000)
    Counting.store.clear()
    MemoryFileSystem().pipe_file("/x.saec", path.read_bytes())
    Counting().pipe_file("/x.saec", path.read_bytes())
    return "counting://x.saec", path


def test_a_slice_of_a_remote_file_reads_its_chunks_and_no_other_byte(
    remote: tuple[str, Path], sae: SAE, few_bytes: int
) -> None:
    url, path = remote
    Counting.read.clear()
    with saecodec.open(url, sae=sae) as array, saecodec.open(path, sae=sae) as local:
        size, offsets, lengths = path.stat().st_size, array.file.index.offsets, array.file.index.lengths
        _ = array.file.codec
        assert sum(stop - start for start, stop in Counting.read) < size / 10
        assert Counting.read[:2] == [(0, few_bytes), (size - few_bytes, size)]
        Counting.read.clear()
        part = array[15_500:17_500]
        np.testing.assert_array_equal(part, local[15_500:17_500])
        assert Counting.read == [(offsets[15], offsets[17] + lengths[17])]  # neighbours in one request
        Counting.read.clear()
        array[15_000:18_000]
        assert Counting.read == []
        array[[12_000, 20_001]]
        assert Counting.read == [(offsets[i], offsets[i] + lengths[i]) for i in (12, 20)]
        Counting.read.clear()
        array.feature(3)
        assert sum(stop - start for start, stop in Counting.read) <= lengths.sum()


def test_a_residual_is_read_with_its_chunk_unless_only_the_base_is_wanted(
    tmp_path: Path, sae: SAE, few_bytes: int
) -> None:
    rows = np.random.default_rng(3).normal(size=(6_000, 8)).astype(np.float32)
    encode_array(
        MemoryArray(rows), tmp_path / "r.saec", sae=sae, goal=Goal.of(step="0.4rms", residual=True), chunk_rows=250
    )
    Counting().pipe_file("/r.saec", (tmp_path / "r.saec").read_bytes())
    with saecodec.open("counting://r.saec", sae=sae) as array, saecodec.open(tmp_path / "r.saec", sae=sae) as local:
        offsets, lengths = array.file.index.offsets, array.file.index.lengths
        _ = array.file.decoder
        Counting.read.clear()
        np.testing.assert_array_equal(array[5_000:5_500], local[5_000:5_500])
        assert Counting.read == [(offsets[20], offsets[22])]
    with saecodec.open("counting://r.saec", sae=sae, base_only=True) as array:
        _ = array.file.decoder
        Counting.read.clear()
        base = array[5_000:5_500]
        assert Counting.read == [(offsets[i], offsets[i] + lengths[i]) for i in (20, 21)]
        assert base.shape == (500, 8)


def test_urls_that_cannot_be_read_say_why(path: Path, sae: SAE) -> None:
    with pytest.raises(InputError, match=r"memory://none\.saec: cannot be opened \(no such file\)"):
        saecodec.open("memory://none.saec")
    with pytest.raises(InputError, match=r"nonsense://x\.saec"):
        saecodec.open("nonsense://x.saec")
    MemoryFileSystem().pipe_file("/cut.saec", path.read_bytes()[:-5])
    with pytest.raises(FormatError, match=r"memory://cut\.saec: no valid trailer"):
        saecodec.open("memory://cut.saec")
    MemoryFileSystem().pipe_file("/small.saec", path.read_bytes())
    with saecodec.open("memory://small.saec", sae=sae) as small:
        assert small[2:4].shape == (2, 20, 8)


def test_commands_take_urls(path: Path, sae: SAE) -> None:
    MemoryFileSystem().pipe_file("/info.saec", path.read_bytes())
    assert describe("memory://info.saec") == describe(path)


# -- features ----------------------------------------------------------------------------------------------------------


def test_features_are_sparse_matrices_of_what_the_levels_stand_for(array: SaecArray, sae: SAE) -> None:
    codes = next(array.file.layers(0, 16)).codes
    expected = array.file.decoder.features(codes)
    found = array.features[:16]
    assert (found.format, found.shape, found.dtype) == ("csr", (16, 24), np.float32)
    np.testing.assert_array_equal(found.data, expected.values)
    np.testing.assert_array_equal(found.indices, expected.latents)
    np.testing.assert_array_equal(array.levels[:16].toarray(), codes.to_dense())
    picked = array.features[[119, 3, 3, 50]].toarray()
    np.testing.assert_array_equal(picked, array.features[:].toarray()[[119, 3, 3, 50]])
    np.testing.assert_array_equal(array.features[5].toarray(), array.features[5:6].toarray())
    assert array.features.shape == array.levels.shape == (120, 24)
    with pytest.raises(IndexError):
        array.features[120]
    with pytest.raises(IndexError):
        array.features[[[1, 2]]]


def test_levels_need_no_sae_and_features_no_run_of_it(path: Path, sae: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    with saecodec.open(path) as array:
        assert array.levels[3:9].shape == (6, 24)
        with pytest.raises(MissingPieceError, match="give it"):
            array.features[3:9]
    for name in ("features", "rows"):
        monkeypatch.setattr(SAE, name, None)
    with saecodec.open(path, sae=sae) as array:
        assert array.features[3:9].nnz == array.levels[3:9].nnz > 0


def test_a_latent_is_found_where_it_fires(array: SaecArray) -> None:
    dense = array.features[:].toarray()
    for latent in range(24):
        rows, values = array.feature(latent)
        np.testing.assert_array_equal(rows, np.flatnonzero(dense[:, latent]))
        np.testing.assert_array_equal(values, dense[rows, latent])
        top, strongest = array.top(latent, 3)
        np.testing.assert_array_equal(strongest, np.sort(values)[::-1][:3])
        np.testing.assert_array_equal(dense[top, latent], strongest)
    assert len(array.top(0, 0)[0]) == 0
    for wrong in (-1, 24):
        with pytest.raises(InputError, match=f"no latent {wrong}: they are 0 to 23"):
            array.feature(wrong)


def test_a_file_of_latents_has_features_and_no_rows(tmp_path: Path) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.maximum(np.random.default_rng(0).normal(size=(50, 30)) - 1, 0).astype(np.float16).astype(np.float32)
    sparse.save_npz(tmp_path / "z.npz", sparse.csr_matrix(dense))
    encode_latents(open_latents(tmp_path / "z.npz"), tmp_path / "z.saec", step=0, chunk_rows=16)
    with saecodec.open(tmp_path / "z.saec") as array:
        np.testing.assert_array_equal(array.features[:].toarray(), dense)
        rows, values = array.feature(4)
        np.testing.assert_array_equal(rows, np.flatnonzero(dense[:, 4]))
        np.testing.assert_array_equal(values, dense[rows, 4])
        with pytest.raises(InputError, match="holds feature activations"):
            array[0]
        with pytest.raises(InputError, match="holds feature activations"):
            next(iter(array))


def test_a_latent_of_a_chunk_with_other_rows_than_the_index_says_is_refused(
    path: Path, rebuild: Callable[..., bytes], tmp_path: Path
) -> None:
    swapped = lambda rows, offsets, lengths: ([rows[-1], *rows[1:-1], rows[0]], offsets, lengths)  # noqa: E731
    (tmp_path / "lies.saec").write_bytes(rebuild(path, index=swapped))
    with saecodec.open(tmp_path / "lies.saec") as array, pytest.raises(FormatError, match="holds 16 rows, the index"):
        array.file.chunk(0)
    with saecodec.open(tmp_path / "lies.saec") as array, pytest.raises(FormatError, match="holds 16 rows, the index"):
        list(codes_of_latents(array.file, np.array([3])))


def test_what_is_no_row_no_piece_or_no_latent_is_told(path: Path, sae: SAE) -> None:
    with saecodec.open(path, sae=sae) as array:
        for wrong in ([-1], [120], [3, 500]):
            with pytest.raises(IndexError, match="rows are 0 to 119"):
                array.take(np.array(wrong))
        with pytest.raises(IndexError, match="feature"):
            array.features[0:5, 3]
    with pytest.raises(InputError, match=r"give saecodec\.load_sae\('some/sae'\)"):
        saecodec.open(path, sae="some/sae")  # type: ignore[arg-type]


# -- processes and threads ---------------------------------------------------------------------------------------------


def test_threads_read_side_by_side(path: Path, sae: SAE, whole: Rows) -> None:
    rng = np.random.default_rng(5)
    with saecodec.open(path, sae=sae, cache_bytes=5000) as array, ThreadPoolExecutor(8) as pool:
        indices = [rng.integers(0, 6, 5) for _ in range(40)]
        for index, found in zip(indices, pool.map(array.__getitem__, indices), strict=True):
            np.testing.assert_allclose(found, whole[index], rtol=0, atol=1e-5)


def _in_child(array: SaecArray, queue: Any) -> None:
    queue.put(array.levels[100:110].toarray())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks in general, from Python 3.12 on
@pytest.mark.parametrize("where", ["disk", "remote"])
def test_a_forked_process_reads_the_open_file(path: Path, where: str) -> None:
    MemoryFileSystem().pipe_file("/fork.saec", path.read_bytes())
    context = multiprocessing.get_context("fork")
    with saecodec.open(path if where == "disk" else "memory://fork.saec") as array:
        expected = array.levels[100:110].toarray()
        array._cache._lock.acquire()  # by a thread that the child does not have
        queue = context.Queue()
        child = context.Process(target=_in_child, args=(array, queue))
        child.start()
        np.testing.assert_array_equal(queue.get(timeout=60), expected)
        child.join(60)
        array._cache._lock.release()


def test_it_can_be_pickled(array: SaecArray, whole: Rows) -> None:
    with pickle.loads(pickle.dumps(array)) as again:
        np.testing.assert_allclose(again[2:4], whole[2:4], rtol=0, atol=1e-5)


@given(st.lists(st.integers(0, 119), max_size=30), st.sampled_from([0, 3000, 1 << 20]))
def test_any_rows_in_any_order(path: Path, sae: SAE, numbers: list[int], cache_bytes: int) -> None:
    with saecodec.open(path, sae=sae, cache_bytes=cache_bytes) as array:
        expected = array.file.rows()
        np.testing.assert_allclose(array.take(np.array(numbers, np.int64)), expected[numbers], rtol=0, atol=1e-5)
        dense = Codec.features(array.file.decoder, array.take_codes(np.array(numbers, np.int64)))
        assert dense.n_rows == len(numbers)


def test_more_dimensions_than_numpy_has_are_no_array_but_rows(tmp_path: Path) -> None:
    """A file may have 63 leading dimensions, and rows of 8."""
    x, sae = np.ones((3, 8), np.float32), identity_sae()
    path = tmp_path / "x.saec"
    codec, shape = Codec.fit(sae, x), (*[1] * 62, 3, 8)
    with path.open("wb") as file:
        facts: dict[str, Any] = {"dtype": "float32", "chunk_rows": 8, "embed": "tables", "row_shape": (2, 4)}
        writer = SaecWriter(file, codec, shape=shape, **facts)
        writer.add(Layers(codec.quantize(x)))
        writer.finish()
    with saecodec.open(path, sae=sae) as array:
        assert array.ndim == 65
        with pytest.raises(InputError, match="has 65 dimensions, and an array of numpy at most"):
            array[0]
        assert array.take(np.array([2, 0])).shape == (2, 8)
        assert next(iter(array)).shape == (3, 8)
