"""Writing rows as a Parquet file (pyarrow, an extra): one column of lists that all have d values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from numpy.typing import NDArray

from saecodec.formats.arrow_lists import SHAPE
from saecodec.formats.optional_library import load_library


@contextmanager
def parquet_rows(
    file: BinaryIO, shape: tuple[int, ...], dtype: str, key: str
) -> Iterator[Callable[[NDArray[Any]], object]]:
    """Yield what appends rows (n, d), as a row group, to a column `key` of lists of d values; bfloat16 there is none.

    An array (T, d) has T lists. One of other dimensions has them flattened, and its shape in the schema's metadata.
    """
    arrow, parquet = (load_library(name, "arrow", key) for name in ("pyarrow", "pyarrow.parquet"))
    kind = arrow.list_(getattr(arrow, dtype)(), shape[-1])
    schema = arrow.schema([arrow.field(key, kind, nullable=False)])
    if len(shape) != 2:
        schema = schema.with_metadata({SHAPE: json.dumps(shape)})

    # Values of activations hardly repeat: a dictionary of them, or their extremes, would only cost time.
    with parquet.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=False, write_statistics=False
    ) as writer:

        def store(rows: NDArray[Any]) -> None:
            lists = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.reshape(-1)), type=kind)
            writer.write_batch(arrow.record_batch([lists], schema=schema))

        yield store
