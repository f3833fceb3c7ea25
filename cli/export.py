"""`saecodec export`."""

from __future__ import annotations

import os

import click

from saecodec.cli.decode import decode_rows, decoded_options
from saecodec.cli.latents import decode_stored
from saecodec.cli.options import codec_option, device_option, force_option, sae_option

_LATENTS = "delphi"


@click.command(short_help="Write a .saec file as another kind of file.")
@click.argument("input", metavar="FILE.saec")
@click.option(
    "--to",
    "kind",
    required=True,
    type=click.Choice(["npy", "npz", "safetensors", "pt", "parquet", "zarr", _LATENTS]),
    help="An array of the rows, or the delphi cache of their feature activations. Of a file of latents: a delphi "
    "cache, or an npz or pt with a sparse matrix.",
)
@click.option("-o", "--output", metavar="OUT", help="Default: the name of FILE with the kind as its extension.")
@sae_option
@codec_option
@decoded_options
@device_option
@force_option
def export(
    input: str,
    kind: str,
    output: str | None,
    sae: str | None,
    codec: str | None,
    rows: tuple[int | None, int | None] | None,
    dtype: str | None,
    jobs: int | None,
    on_error: str,
    as_json: bool,
    device: str,
    force: bool,
) -> None:
    """Write a .saec file as another kind of file.

    \b
    Examples:
      saecodec export acts.saec --to parquet -s path/to/sae          # acts.parquet
      saecodec export acts.saec --to zarr -o rows.zarr --rows :10000
      saecodec export acts.saec --to delphi -s path/to/sae           # acts.delphi, feature activations
      saecodec export latents.saec --to delphi -o cache/layers.3
    """
    from saecodec.formats.saec import open_saec

    if not output and "://" in input:
        raise click.UsageError("a URL is no place to write to: give -o OUT")
    target = output or f"{os.path.splitext(input)[0]}.{kind}"
    if kind == _LATENTS and os.path.splitext(target)[1].lower() in (".npz", ".pt", ".pth"):
        raise click.UsageError(f"{target}: is not the name of a delphi cache, which is a folder: name it otherwise")
    if kind != _LATENTS and os.path.splitext(target)[1].lower() != f".{kind}":
        raise click.UsageError(f"{target}: is not the name of a {kind} file: let it end in .{kind}, or change --to")
    with open_saec(input) as probe:
        sparse = kind == _LATENTS or (probe.holds_latents and kind in ("npz", "pt"))
    write = decode_stored if sparse else decode_rows
    write(
        input,
        target,
        sae=sae,
        codec=codec,
        rows=rows,
        dtype=dtype,
        jobs=jobs,
        on_error=on_error,
        device=device,
        force=force,
        as_json=as_json,
    )
