"""Reading columns of Arrow and Parquet files, and folders that `datasets.save_to_disk` wrote (pyarrow, an extra).

SAELens caches activations in such folders: a column of (context, d) lists named after the hook, beside `token_ids`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from saecodec.errors import InputError
from saecodec.formats.array_source import ArraySource
from saecodec.formats.arrow_lists import ListColumn, choose_column
from saecodec.formats.optional_library import library_errors, load_library
from saecodec.formats.shards import ShardedArray

_BYTES_PER_MAP = 1 << 28  # pages that were read count as resident until they are unmapped
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_STATE = "state.json"
_SPLITS = "dataset_dict.json"


def open_parquet(path: str, key: str | None) -> ArraySource:
    """A column of lists of a Parquet file, read page by page."""
    parquet = load_library("pyarrow.parquet", "arrow", path)
    with library_errors(path), parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
        index = choose_column(path, schema, key)
        name, expected, n_rows = schema.names[index], schema.field(index).type, file.metadata.num_rows

        def pieces(rows: int) -> Iterator[Any]:
            with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
                # The name also means what is nested in another column of the name: only our column is taken.
                for batch in file.iter_batches(rows, columns=[name]):
                    column = batch.column(batch.schema.names.index(name))
                    if column.type != expected:
                        raise InputError(f"{path}: column {name!r} changed from {expected} to {column.type}")
                    yield column

        first = next(pieces(1), None)
        if first is None:
            first = schema.empty_table().column(index).combine_chunks()
        return ListColumn(path, f"{path}[{name!r}]", n_rows, first, pieces, schema.metadata)


def open_arrow(path: str, key: str | None) -> ArraySource:
    """A column of lists of an Arrow IPC file, streamed or with a footer, memory-mapped."""
    arrow = load_library("pyarrow", "arrow", path)
    with library_errors(path):
        with ExitStack() as opened:
            reader = _ipc_reader(arrow, path, opened)
            index = choose_column(path, reader.schema, key)
            name = reader.schema.names[index]
            first, n_rows = reader.schema.empty_table().column(index).combine_chunks(), 0
            for batch in _ipc_batches(reader):
                if not n_rows and len(batch):
                    first = batch.column(index)
                    first.validate(full=True)
                    first = first.slice(0, 1)
                n_rows += len(batch)

        def pieces(rows: int) -> Iterator[Any]:
            done, more = 0, True
            while more:  # each time in a map of its own
                mapped, at, more = 0, 0, False
                with ExitStack() as opened:
                    for batch in _ipc_batches(_ipc_reader(arrow, path, opened)):
                        column = batch.column(index)
                        while at <= done < at + len(batch) and not more:
                            piece = column.slice(done - at, rows)
                            yield piece
                            done += len(piece)
                            mapped += piece.nbytes
                            more = mapped >= _BYTES_PER_MAP
                        if more:
                            break
                        at += len(batch)

        return ListColumn(path, f"{path}[{name!r}]", n_rows, first, pieces)


def is_dataset(folder: str) -> bool:
    """Whether `datasets.save_to_disk` wrote a folder."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (_STATE, _SPLITS))


def open_dataset(path: str, key: str | None) -> ArraySource:
    """A column of lists of a folder that `datasets.save_to_disk` wrote: its Arrow files, one after the other."""
    if os.path.isfile(os.path.join(path, _SPLITS)):
        splits = _json(path, _SPLITS).get("splits", [])
        raise InputError(f"{path}: is a dataset of several splits; give the folder of one of them: {splits}")
    state = _json(path, _STATE)
    try:
        files = [entry["filename"] for entry in state["_data_files"]]
        if not all(isinstance(file, str) and file == os.path.basename(file) for file in files):
            raise ValueError("files outside of the folder")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its {_STATE} does not list the data files ({error!r})") from error
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(f"{path}: is a selection of rows by indices; write it again after flatten_indices()")
    return ShardedArray(path, [os.path.join(path, file) for file in files], key, open_arrow)


def _json(folder: str, name: str) -> dict[str, Any]:
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder}: its {name} cannot be read ({error})") from error
    return content


def _ipc_reader(arrow: Any, path: str, opened: ExitStack) -> Any:
    source = opened.enter_context(arrow.memory_map(path))
    with_footer = source.read(6) == b"ARROW1"
    source.seek(max(0, source.size() - len(_STREAM_END)))
    if not with_footer and source.read() != _STREAM_END:  # pyarrow takes what is there
        raise InputError(f"{path}: is truncated, or no Arrow IPC file: it has no mark at its end")
    source.seek(0)
    return opened.enter_context((arrow.ipc.open_file if with_footer else arrow.ipc.open_stream)(source))


def _ipc_batches(reader: Any) -> Iterator[Any]:
    """The record batches of a stream, or of a file with a footer."""
    if hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(n) for n in range(reader.num_record_batches))
    else:
        yield from reader
