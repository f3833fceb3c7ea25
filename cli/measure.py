"""`saecodec measure`."""

from __future__ import annotations

import json

import click

from saecodec.cli.options import (
    chunk_rows_option,
    codec_option,
    device_option,
    embed_option,
    goal_options,
    json_option,
    key_option,
    sae_option,
    seq_option,
)


@click.command(short_help="Bits per row and distortion, from a real file.")
@click.argument("input", metavar="INPUT")
@sae_option
@codec_option
@goal_options
@seq_option
@chunk_rows_option
@embed_option
@key_option
@device_option
@json_option
def measure(
    input: str,
    sae: str | None,
    codec: str | None,
    nmse: float | None,
    bits: float | None,
    step: str | None,
    search: str | None,
    residual: bool,
    seq: str | None,
    chunk_rows: int,
    embed: str | None,
    key: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure what the SAE's explanation of INPUT costs.

    Really encodes INPUT into a (temporary) file, really decodes it, then reports rate, distortion, where the bits go,
    and the estimates of the MDL-SAE paper on the same codes.

    \b
    Examples:
      saecodec measure acts.npy -s path/to/sae
      saecodec measure acts.npy -s path/to/sae -c l3.saecodec --json
      saecodec measure acts.npy -s path/to/sae --step 0.8rms
      saecodec measure acts.npy -s path/to/sae --nmse 0.15
      saecodec measure acts.npy -s path/to/sae --nmse 0.05 --residual
    """
    from saecodec.cli.options import file_bytes, goal, load_ids, load_pieces, rows_of
    from saecodec.cli.progress import progress_bar
    from saecodec.cli.render import measure_text
    from saecodec.formats.arrays import open_array
    from saecodec.formats.measuring import measure_array

    wanted = goal(nmse, bits, step, search, residual)
    source = open_array(input, key)
    model, fitted = load_pieces(sae, codec, device)
    source = rows_of(source, model, fitted)
    ids = load_ids(seq, source.shape, fitted)
    with progress_bar() as progress:
        report = measure_array(
            source,
            sae=model,
            codec=fitted,
            codec_bytes=file_bytes(codec),
            goal=wanted,
            seq=ids,
            chunk_rows=chunk_rows,
            embed=embed,
            progress=progress,
        )
    click.echo(json.dumps(report) if as_json else measure_text(report, input))
