"""Columns of lists in Arrow and Parquet files and in folders of `datasets`, and what is refused of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource
from saecodec.formats.arrays import open_array

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

HOOK = "blocks.0.hook_mlp_out"


def rows_of(source: ArraySource, batch: int = 3) -> Any:
    return np.concatenate([np.empty((0, source.width), np.float32), *source.batches(batch)])


def write_stream(path: Path, table: Any, rows: int = 2) -> None:
    with arrow.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def write_dataset(folder: Path, *tables: Any, **state: Any) -> None:
    """What `datasets.save_to_disk` writes."""
    folder.mkdir()
    names = [f"data-{n:05}-of-{len(tables):05}.arrow" for n in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        write_stream(folder / name, table)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None, **state}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def saelens_table(x: Any) -> Any:
    """Contexts as SAELens caches them: an Array2D of `datasets` is a list of lists with a name in the metadata."""
    metadata = {
        "ARROW:extension:name": "datasets.features.features.Array2DExtensionType",
        "ARROW:extension:metadata": json.dumps([list(x.shape[1:]), str(x.dtype)]),
    }
    lists = arrow.list_(arrow.list_(arrow.from_numpy_dtype(x.dtype)))
    schema = arrow.schema(
        [arrow.field(HOOK, lists, metadata=metadata), arrow.field("token_ids", arrow.list_(arrow.int32(), x.shape[1]))]
    )
    ids = arrow.array([[0] * x.shape[1]] * len(x), schema.field(1).type)
    rows = [[list(row) for row in context] for context in x]
    return arrow.table([arrow.array(rows, lists), ids], schema=schema)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_activations_that_saelens_cached_are_one_array_of_contexts(tmp_path: Path, dtype: str) -> None:
    x = np.arange(5 * 4 * 3, dtype=dtype).reshape(5, 4, 3)
    write_dataset(tmp_path / "cache", saelens_table(x[:2]), saelens_table(x[2:]))
    source = open_array(tmp_path / "cache")
    assert (source.shape, source.dtype) == ((5, 4, 3), dtype)
    np.testing.assert_array_equal(rows_of(source), x.reshape(-1, 3))


def test_the_type_that_the_datasets_library_registers_changes_nothing(tmp_path: Path) -> None:
    class Array2D(arrow.ExtensionType):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__(
                arrow.list_(arrow.list_(arrow.float32())), "datasets.features.features.Array2DExtensionType"
            )

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: Any, serialized: bytes) -> Any:
            return cls()

    x = np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)
    write_dataset(tmp_path / "cache", saelens_table(x))
    parquet.write_table(saelens_table(x), tmp_path / "x.parquet")
    arrow.register_extension_type(Array2D())
    try:
        for path in (tmp_path / "cache", tmp_path / "x.parquet"):
            np.testing.assert_array_equal(rows_of(open_array(path)), x.reshape(-1, 3))
    finally:
        arrow.unregister_extension_type("datasets.features.features.Array2DExtensionType")


def test_token_ids_are_listed_and_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "cache", saelens_table(np.zeros((2, 4, 3), np.float32)))
    with pytest.raises(
        InputError, match=r"no array named 'x'; .*'blocks.0.hook_mlp_out' list<.*float.*'token_ids' .*int32"
    ):
        open_array(tmp_path / "cache", "x")
    with pytest.raises(InputError, match="has dtype int32; expected one of float16"):
        open_array(tmp_path / "cache", "token_ids")


def test_two_hooks_need_a_key(tmp_path: Path) -> None:
    a = arrow.array([[1.0, 2.0], [3.0, 4.0]], arrow.list_(arrow.float32(), 2))
    parquet.write_table(arrow.table({"a": a, "a.b": a, "n": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"holds 3 arrays; choose one with key \(--key\): 'a' .*, 'a.b' .*, 'n' int64"):
        open_array(tmp_path / "x.parquet")
    for key in ("a", "a.b"):
        np.testing.assert_array_equal(rows_of(open_array(tmp_path / "x.parquet", key)), [[1, 2], [3, 4]])


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "rows, message",
    [
        ([[1.0, 2.0], [3.0]] * 3, "row 1 has a list of 1 values, the first one of 2"),
        ([[1.0, 2.0], [3.0, 4.0], None], "row 2 holds a null"),
        ([None, [3.0, 4.0]], "row 0 holds a null"),
        ([[1.0, 2.0], [3.0, None]], "row 1 holds a null"),
        ([[], []], "has shape .* expected rows of at least one value"),
        ([], "holds no rows, or empty ones"),
    ],
    ids=["ragged", "null row", "null first row", "null value", "zero width", "no rows"],
)
def test_lists_that_are_no_array_are_refused(tmp_path: Path, suffix: str, rows: list[Any], message: str) -> None:
    path = tmp_path / f"x.{suffix}"
    table = arrow.table({"x": arrow.array(rows, arrow.list_(arrow.float32()))})
    parquet.write_table(table, path) if suffix == "parquet" else write_stream(path, table)
    with pytest.raises(InputError, match=message) as caught:
        rows_of(open_array(path))
    assert str(path) in str(caught.value)


def test_a_ragged_list_inside_a_context_is_named_by_its_row(tmp_path: Path) -> None:
    rows = [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0, 5.0]]]
    write_stream(tmp_path / "x.arrow", arrow.table({"x": arrow.array(rows, arrow.list_(arrow.list_(arrow.float32())))}))
    with pytest.raises(InputError, match=r"x.arrow\['x'\]: row 1 has a list of 3 values, the first one of 2"):
        rows_of(open_array(tmp_path / "x.arrow"))


@pytest.mark.parametrize(
    "values", [[1.0, 2.0], ["a", "b"], [{"x": 1.0}, {"x": 2.0}]], ids=["float", "string", "struct"]
)
def test_a_column_of_anything_but_lists_is_refused(tmp_path: Path, values: list[Any]) -> None:
    parquet.write_table(arrow.table({"x": values}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"is a column of .*; expected lists of floats"):
        open_array(tmp_path / "x.parquet")


def test_a_stream_that_was_cut_between_batches_is_refused(tmp_path: Path) -> None:
    table = arrow.table({"x": arrow.array([[1.0, 2.0]] * 4, arrow.list_(arrow.float32()))})
    write_stream(tmp_path / "x.arrow", table)
    content = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(content[:-8])
    with pytest.raises(InputError, match="is truncated"):
        open_array(tmp_path / "x.arrow")


def test_a_mapped_column_reads_on_after_it_was_mapped_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saecodec.formats.arrow_arrays._BYTES_PER_MAP", 20)
    monkeypatch.setattr("saecodec.formats.arrow_lists.BLOCK_BYTES", 24)
    x = np.arange(50 * 3, dtype=np.float32).reshape(50, 3)
    table = arrow.table({"x": arrow.array(list(x), arrow.list_(arrow.float32()))})
    write_stream(tmp_path / "x.arrow", table, rows=7)
    np.testing.assert_array_equal(rows_of(open_array(tmp_path / "x.arrow")), x)


@pytest.mark.parametrize(
    "state, message",
    [
        ({"_data_files": [{"filename": "../other.arrow"}]}, "does not list the data files"),
        ({"_data_files": 3}, "does not list the data files"),
        ({"_data_files": []}, "holds no array files"),
        ({"_data_files": [{"filename": "missing.arrow"}]}, "missing.arrow.*cannot be read"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "selection of rows by indices"),
    ],
)
def test_a_lying_state_of_a_dataset_is_refused(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    write_dataset(tmp_path / "cache", saelens_table(np.zeros((2, 4, 3), np.float32)), **state)
    with pytest.raises(InputError, match=message):
        open_array(tmp_path / "cache")


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, "\xff"])
def test_a_state_that_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    write_dataset(tmp_path / "cache", saelens_table(np.zeros((2, 4, 3), np.float32)))
    (tmp_path / "cache" / "state.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"cache: its state.json cannot be read"):
        open_array(tmp_path / "cache")


def test_a_dataset_of_several_splits_lists_them(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match=r"several splits; give the folder of one of them: \['train', 'test'\]"):
        open_array(tmp_path)


@pytest.fixture
def pool() -> Iterator[Any]:
    """Counts what pyarrow allocates."""
    before = arrow.default_memory_pool()
    counting = arrow.proxy_memory_pool(before)
    arrow.set_memory_pool(counting)
    yield counting
    arrow.set_memory_pool(before)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "feather"])
def test_reading_holds_a_few_batches_not_the_column(tmp_path: Path, pool: Any, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    values = arrow.array(np.zeros(200_000 * 64, np.float32))  # 51 MB, in one row group or batch
    table = arrow.table({"x": arrow.FixedSizeListArray.from_arrays(values, 64)})
    if suffix == "parquet":
        parquet.write_table(table, path, use_dictionary=False, row_group_size=200_000)
    elif suffix == "arrow":
        write_stream(path, table, 200_000)
    else:
        with arrow.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    del table, values
    before = pool.bytes_allocated()
    peak = 0
    for _ in open_array(path).batches(500):
        peak = max(peak, pool.bytes_allocated() - before)
    assert peak < 20e6
