"""`saecodec decode`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from saecodec.cli.latents import decode_stored, refuse_options
from saecodec.cli.losses import on_error_option
from saecodec.cli.options import (
    RowRange,
    codec_option,
    device_option,
    force_option,
    jobs_option,
    json_option,
    sae_option,
)

_DECODED_OPTIONS = (
    click.option(
        "--rows",
        type=RowRange(),
        help="Only these flattened rows (gives one leading dimension); -100: is the last hundred.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float16", "bfloat16", "float32", "float64"]),
        help="Of the output; default: that of the input that was encoded.",
    ),
    jobs_option,
    on_error_option,
    json_option,
)


def decoded_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options --rows, --dtype, --jobs, --on-error and --json, of what is decoded."""
    for option in reversed(_DECODED_OPTIONS):
        command = option(command)
    return command


@click.command(short_help="Decode a .saec file into an array file.")
@click.argument("input", metavar="IN.saec")
@sae_option
@codec_option
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    help="Array to write: .npy, .npz, .safetensors, .pt, .parquet, or a .zarr folder. With --latents .npz, .pt, or a "
    "folder.",
)
@click.option(
    "--latents",
    is_flag=True,
    help="Write feature activations: a scipy CSR .npz, a torch sparse .pt, or the folder of a delphi cache. Of a file "
    "made with encode --latents no SAE is needed.",
)
@decoded_options
@click.option("--base-only", is_flag=True, help="Without the residual layer.")
@device_option
@force_option
def decode(
    input: str,
    sae: str | None,
    codec: str | None,
    output: str,
    latents: bool,
    rows: tuple[int | None, int | None] | None,
    dtype: str | None,
    jobs: int | None,
    on_error: str,
    as_json: bool,
    base_only: bool,
    device: str,
    force: bool,
) -> None:
    """Decode a .saec file into an array file.

    Exit status 3: OUT is written, but rows are lost in damaged chunks (--on-error).

    \b
    Examples:
      saecodec decode acts.saec -s path/to/sae -o acts_hat.npy
      saecodec decode acts.saec -s path/to/sae --rows 1000:2000 -o part.npy
      saecodec decode selfcontained.saec -o acts_hat.npy
      saecodec decode damaged.saec -s path/to/sae --on-error nan -o acts_hat.npy
      saecodec decode --latents latents.saec -o delphi_cache/model.layers.3
      saecodec decode --latents latents.saec --rows :1000 --dtype float32 -o z.npz
      saecodec decode --latents acts.saec -s path/to/sae -o z.npz
    """
    if latents:
        refuse_options({"--base-only": base_only}, "feature activations are of the base layer anyway: leave it out")
        decode_stored(
            input,
            output,
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
        return
    decode_rows(
        input,
        output,
        base_only=base_only,
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


def decode_rows(
    input: str,
    output: str,
    *,
    base_only: bool = False,
    sae: str | None,
    codec: str | None,
    rows: tuple[int | None, int | None] | None,
    dtype: str | None,
    jobs: int | None,
    on_error: str,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write the rows of a file."""
    import math

    from saecodec.cli.losses import tell_written
    from saecodec.cli.options import load_pieces, row_range
    from saecodec.cli.progress import progress_bar
    from saecodec.formats.array_sinks import check_array_output
    from saecodec.formats.damage import Losses
    from saecodec.formats.decoding import decode_file
    from saecodec.formats.saec import open_saec

    with open_saec(input) as probe:
        probe.check_rows()
        check_array_output(output, dtype or probe.dtype, force=force)
        chosen = row_range(rows, probe.n_rows)
    model, fitted = load_pieces(sae, codec, device)
    losses = Losses(on_error, advice="--on-error skip (or nan) writes the other rows")
    with open_saec(input, sae=model, codec=fitted, device=device) as file, progress_bar() as progress:
        shape = decode_file(
            file,
            output,
            rows=chosen,
            dtype=dtype,
            base_only=base_only,
            force=force,
            progress=progress,
            jobs=jobs,
            losses=losses,
        )
    n_rows = math.prod(shape[: len(shape) - len(file.row_shape)])
    tell_written(input, output, dtype or file.dtype, shape, n_rows, losses, what="array", as_json=as_json)
