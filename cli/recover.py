"""`saecodec recover`."""

from __future__ import annotations

import json

import click

from saecodec.cli.options import force_option, json_option

_RANGES = 5  # of skipped bytes, that people are shown


@click.command(short_help="Make a file of the whole chunks of a torn or damaged one.")
@click.argument("input", metavar="FILE")
@click.option("-o", "--output", required=True, metavar="OUT.saec", help="File to write.")
@force_option
@json_option
def recover(input: str, output: str, force: bool, as_json: bool) -> None:
    """Copy every chunk of FILE that is whole into a new .saec file.

    FILE is what a killed run has left (OUT.saec.partial, or a file that it appended to), or a damaged .saec file. It is
    not changed. Neither SAE nor codec is needed. docs/store.md has details. The exit status is 0 whatever is lost: the
    lines that are printed, and the keys "lost" and "lost_known" of --json, tell it.

    \b
    Examples:
      saecodec recover acts.saec.partial -o acts.saec
      saecodec recover damaged.saec -o rest.saec --json
    """
    from saecodec.cli.options import check_output_name
    from saecodec.cli.render import count, size
    from saecodec.formats.recovering import recover_file

    check_output_name(output, ".saec")
    done = recover_file(input, output, force=force)
    if as_json:
        facts = {"file": output, "chunks": done.chunks, "rows": done.rows, "shape": done.shape}
        facts |= {"kept_bytes": done.kept_bytes, "skipped_bytes": done.skipped_bytes, "skipped": done.skipped}
        facts |= {"complete": done.complete, "lost": done.lost, "lost_known": done.lost_known}
        click.echo(json.dumps(facts))
        return
    what = "nothing was missing" if done.complete else f"{size(done.skipped_bytes)} skipped"
    click.echo(
        f"{output}: {count(done.rows, 'row')} in {count(done.chunks, 'chunk')} of {input}, shape {done.shape}; {what}"
    )
    for start, stop in done.lost:
        click.echo(f"  rows {start}:{stop} of {input} are lost")
    if not done.lost_known:
        click.echo("  which rows the skipped bytes held is not known: no whole index lists them")
    for start, stop in done.skipped[:_RANGES]:
        click.echo(f"  skipped bytes {start:,} to {stop:,}: damaged, or a chunk that was not complete")
    if len(done.skipped) > _RANGES:
        click.echo(f"  and {count(len(done.skipped) - _RANGES, 'range')} more (--json lists all)")
