"""What commands that decode do about rows of damaged chunks, and how they tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from saecodec.cli.terminal import printable

if TYPE_CHECKING:
    from saecodec.formats.damage import Losses

ROWS_LOST: Final = 3
"""Exit status: the output is written, but rows are lost."""

on_error_option = click.option(
    "--on-error",
    type=click.Choice(["raise", "skip", "nan"]),
    default="raise",
    show_default=True,
    help="What a damaged chunk does: raise writes nothing; skip leaves its rows out, which gives one leading "
    "dimension; nan keeps the shape. Lost rows are listed, and the exit status is 3.",
)


def tell_written(
    input: str, output: str, dtype: str, shape: tuple[int, ...], rows: int, losses: Losses, *, what: str, as_json: bool
) -> None:
    """Say what was written, `what` it is, and which rows of the input are lost; exit status 3 when any are. rows: that
    were written, each of which may have several dimensions."""
    if as_json:
        facts = {"file": output, "shape": shape, "dtype": dtype, "rows": rows}
        click.echo(json.dumps(facts | {"lost_rows": losses.n_rows, "lost": losses.listed(input)}))
    else:
        click.echo(f"{output}: {dtype} {what} of shape {shape}")
        tell_lost(input, losses.listed(input))
    if losses.ranges:
        click.get_current_context().exit(ROWS_LOST)


def tell_lost(input: str, lost: Sequence[tuple[int, int, str]]) -> None:
    """List ranges of rows of a file that are lost, and why, on stderr."""
    for start, stop, reason in lost:
        click.echo(printable(f"lost: {input}: rows {start}:{stop}: {reason}"), err=True)
