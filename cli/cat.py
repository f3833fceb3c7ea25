"""`saecodec cat`."""

from __future__ import annotations

import json

import click

from saecodec.cli.options import force_option, json_option
from saecodec.cli.terminal import printable


@click.command(short_help="Concatenate .saec files of one codec.")
@click.argument("inputs", metavar="A.saec B.saec ...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, metavar="OUT.saec", help="File to write.")
@force_option
@json_option
def cat(inputs: tuple[str, ...], output: str, force: bool, as_json: bool) -> None:
    """Write the rows of several .saec files into one, in their order, without coding them again.

    All must be of one codec, dtype and row shape; SAE and codec are not needed. What is embedded is what the first file
    embeds. One file that was appended to comes out without its older indices.

    \b
    Examples:
      saecodec cat day1.saec day2.saec -o days.saec
      saecodec cat shards/*.saec -o acts.saec
    """
    from saecodec.cli.options import check_output_name, file_bytes
    from saecodec.cli.progress import progress_bar
    from saecodec.cli.render import count, size
    from saecodec.formats.concatenating import concatenate_files

    check_output_name(output, ".saec")
    with progress_bar() as progress:
        done = concatenate_files(inputs, output, force=force, progress=progress)
    for warning in done.warnings:
        click.echo(f"Warning: {printable(warning)}", err=True)
    if as_json:
        facts = {"file": output, "chunks": done.chunks, "rows": done.rows, "shape": done.shape}
        click.echo(json.dumps(facts | {"file_bytes": file_bytes(output), "warnings": done.warnings}))
        return
    click.echo(
        f"{output}: {count(done.rows, 'row')} in {count(done.chunks, 'chunk')} of {count(len(inputs), 'file')}, shape "
        f"{done.shape}, {size(file_bytes(output))}"
    )
