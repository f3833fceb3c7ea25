"""`saecodec encode-dir` and `saecodec decode-dir`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from saecodec.cli.losses import ROWS_LOST, on_error_option, tell_lost
from saecodec.cli.options import (
    chunk_rows_option,
    codec_option,
    deterministic_option,
    device_of,
    device_option,
    embed_option,
    json_option,
    key_option,
    sae_option,
    weights_option,
)
from saecodec.cli.terminal import printable

if TYPE_CHECKING:
    from saecodec.formats.folder_work import Task

_RUN_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Processes of this machine, or Ray Data's actors: on the cluster of RAY_ADDRESS, if it is set.",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(1),
        metavar="N",
        help="Processes or actors. Default: one a core; one where a GPU does the work.",
    ),
    click.option(
        "--pattern", metavar="GLOB", help="Files to take: a pattern of names, or with a / in it of paths inside SRC."
    ),
    click.option("--check", is_flag=True, help="Hash the outputs that are done already, not only look at their sizes."),
    click.option(
        "--force",
        is_flag=True,
        help="Replace outputs that the manifest does not know, and those made with other settings.",
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of both commands: how a folder is gone through."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


@click.command("encode-dir", short_help="Encode a folder of activations, shard by shard.")
@click.argument("src", metavar="SRC")
@click.argument("dst", metavar="DST")
@sae_option
@codec_option
@click.option(
    "--search",
    type=click.Choice(["none", "refit", "pursuit"]),
    help="Codes to look for, as in 'saecodec encode'. Default: what the codec was fitted with.",
)
@chunk_rows_option
@embed_option
@weights_option
@click.option("--no-verify", is_flag=True, help="Do not decode each file again; then there is no NMSE.")
@key_option
@run_options
@deterministic_option
@device_option
@json_option
def encode_dir(
    src: str,
    dst: str,
    sae: str | None,
    codec: str | None,
    search: str | None,
    chunk_rows: int,
    embed: str | None,
    weights: str,
    no_verify: bool,
    key: str | None,
    deterministic: bool,
    device: str,
    as_json: bool,
    **run: Any,
) -> None:
    """Encode every array file in SRC, and in the folders in it, into a .saec file of the same name in DST.

    All by one codec (-c). DST/manifest.jsonl gets a line for each shard as it finishes, so the same command again does
    what is left, or has changed; DST/summary.json has the sums. The bytes are the same whatever --engine and --jobs.
    docs/folders.md has details.

    \b
    Examples:
      saecodec encode-dir acts coded -c l3.saecodec -s path/to/sae
      saecodec encode-dir acts coded -c l3.saecodec -s path/to/sae --pattern 'layer3/*.pt' --jobs 8
      saecodec encode-dir acts coded -c l3.saecodec -s path/to/sae --engine ray
    """
    from saecodec.cli.options import sae_told
    from saecodec.formats.folder_work import EncodeFolder

    k, scale = sae_told()
    task = EncodeFolder(
        src=src,
        dst=dst,
        sae=sae,
        codec=codec,
        k=k,
        input_scale=scale,
        device=device_of(device, deterministic),
        deterministic=deterministic,
        embed=embed or "none",
        weights=weights,
        chunk_rows=chunk_rows,
        search=search,
        key=key,
        verify=not no_verify,
    )
    _run(task, as_json, run)


@click.command("decode-dir", short_help="Decode a folder of .saec files.")
@click.argument("src", metavar="SRC")
@click.argument("dst", metavar="DST")
@sae_option
@codec_option
@click.option(
    "--to",
    type=click.Choice(["npy", "npz", "safetensors", "pt"]),
    default="npy",
    show_default=True,
    help="Array files to write.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "bfloat16", "float32", "float64"]),
    help="Of the outputs; default: that of the arrays that were encoded.",
)
@on_error_option
@run_options
@device_option
@json_option
def decode_dir(
    src: str,
    dst: str,
    sae: str | None,
    codec: str | None,
    to: str,
    dtype: str | None,
    on_error: str,
    device: str,
    as_json: bool,
    **run: Any,
) -> None:
    """Decode every .saec file in SRC, and in the folders in it, into an array file of the same name in DST.

    It keeps a manifest in DST as encode-dir does, so the same command again does what is left. Exit status 3: all files
    are written, but rows are lost in damaged chunks (--on-error).

    \b
    Examples:
      saecodec decode-dir coded acts_hat -c l3.saecodec -s path/to/sae
      saecodec decode-dir coded acts_hat -c l3.saecodec -s path/to/sae --to safetensors --dtype bfloat16
    """
    from saecodec.cli.options import sae_told
    from saecodec.formats.folder_work import DecodeFolder

    k, scale = sae_told()
    task = DecodeFolder(
        src=src,
        dst=dst,
        sae=sae,
        codec=codec,
        k=k,
        input_scale=scale,
        device=device,
        extension=f".{to}",
        dtype=dtype,
        on_error=on_error,
    )
    _run(task, as_json, run)


def _run(task: Task, as_json: bool, options: dict[str, Any]) -> None:
    """Run, and tell the summary; exit status 1 when a shard failed, 3 when rows are lost."""
    from saecodec.cli.progress import progress_bar
    from saecodec.cli.render import count, number, size
    from saecodec.formats.folders import run

    with progress_bar("shards") as progress:
        found = run(task, progress=progress, **options)
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(
            f"{task.dst}: {count(found['shards'], 'shard')} ({found['done']} now, {found['skipped']} before), "
            f"{found['rows']:,} rows, {size(found['bytes_in'])} in, {size(found['bytes_out'])} out"
        )
        if found.get("ratio") is not None:
            click.echo(
                f"  {number(found['bits_per_row'])} bits per row, {number(found['bits_per_row_with_codec'])} with the "
                f"codec file, {found['ratio']:.1f}x smaller; NMSE {number(found['nmse'], 4)}"
            )
    for damaged in found.get("losses", ()) if not as_json else ():
        tell_lost(damaged["source"], damaged["lost"])
    for failure in found["failures"]:
        click.echo(printable(f"failed: {failure['source']}: {failure['error']}"), err=True)
    if found["failed"]:
        click.echo(f"Error: {found['failed']} of {count(found['shards'], 'shard')} failed", err=True)
        click.get_current_context().exit(1)
    if found.get("losses"):
        click.get_current_context().exit(ROWS_LOST)
