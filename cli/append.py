"""`saecodec encode --append`: rows of an array behind those of a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from saecodec.search import Mode


def append_rows(
    input: str,
    output: str,
    *,
    sae: str | None,
    codec: str | None,
    search: str | None,
    seq: str | None,
    key: str | None,
    deterministic: bool,
    device: str,
    as_json: bool,
) -> None:
    """Append the rows of an array file and report. When that fails, or is interrupted, the file is as it was."""
    from saecodec.cli.options import file_bytes, load_ids, load_pieces, rows_of
    from saecodec.cli.progress import progress_bar
    from saecodec.cli.render import size
    from saecodec.errors import OutputError
    from saecodec.formats.arrays import open_array
    from saecodec.formats.create import create

    source = open_array(input, key)
    if source.lies_in(output):
        raise OutputError(f"{output}: is the input; choose another output")
    model, fitted = load_pieces(sae, codec, device, deterministic)
    source = rows_of(source, model, fitted)
    ids = load_ids(seq, source.shape, fitted)
    store = create(output, fitted, sae=model, search=cast("Mode | None", search), append=True)
    before = file_bytes(output)
    try:
        with progress_bar() as progress:
            store.append_array(source, ids, progress)
        store.close(keep=False)
    except BaseException as error:
        store.discard()
        own = str(error).startswith(f"{output}: ")  # and not a temporary file
        if own and isinstance(error, OutputError) and isinstance(error.__cause__, OSError):
            raise OutputError(
                f"{output}: cannot be written ({error.__cause__.strerror}); it is as it was: make room, then append"
            ) from error
        raise
    rows, n_bytes = source.n_rows, file_bytes(output)
    rate = 8 * (n_bytes - before) / rows if rows else None
    if as_json:
        facts = {"file": output, "appended": rows, "rows": store.n_rows, "file_bytes": n_bytes, "bits_per_row": rate}
        click.echo(json.dumps(facts))
        return
    click.echo(
        f"{output}: {rows:,} rows appended in {size(n_bytes - before)}; {store.n_rows:,} rows in {size(n_bytes)}"
    )
