"""`saecodec encode`."""

from __future__ import annotations

import json

import click
from click.core import ParameterSource

from saecodec.cli.append import append_rows
from saecodec.cli.latents import encode_stored, latents_option, n_latents_option, refuse_options
from saecodec.cli.options import (
    chunk_rows_option,
    codec_option,
    deterministic_option,
    device_option,
    embed_option,
    force_option,
    goal_options,
    jobs_option,
    json_option,
    key_option,
    sae_option,
    seq_option,
    weights_option,
)


@click.command(short_help="Encode activations into a .saec file.")
@click.argument("input", metavar="INPUT")
@sae_option
@codec_option
@click.option("-o", "--output", required=True, metavar="OUT.saec", help="File to write.")
@goal_options
@latents_option
@n_latents_option
@seq_option
@chunk_rows_option
@embed_option
@weights_option
@click.option("--append", is_flag=True, help="Add the rows to OUT.saec, which exists and says how they are coded.")
@click.option("--note", multiple=True, metavar="KEY=VALUE", help="Metadata to store in the file; may be repeated.")
@key_option
@deterministic_option
@device_option
@jobs_option
@force_option
@json_option
def encode(
    input: str,
    sae: str | None,
    codec: str | None,
    output: str,
    nmse: float | None,
    bits: float | None,
    step: str | None,
    search: str | None,
    residual: bool,
    latents: bool,
    n_latents: int | None,
    seq: str | None,
    chunk_rows: int,
    embed: str | None,
    weights: str,
    append: bool,
    note: tuple[str, ...],
    key: str | None,
    deterministic: bool,
    device: str,
    jobs: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Encode the activations in INPUT into a .saec file.

    INPUT is an array file (.npy, .npz, .safetensors, .pt, .parquet, .arrow, .h5), a zarr store, a folder of SAELens'
    cached activations, or shards: a folder of such files, or a pattern in quotes. docs/inputs.md has details.

    Any number of leading dimensions; the last one is the activation width. Without -c the tables are fitted on the
    input and stored in the file; with it they come from the codec file.

    \b
    Examples:
      saecodec encode acts.npy -s path/to/sae -o acts.saec
      saecodec encode acts.npy -s path/to/sae -c l3.saecodec -o acts.saec
      saecodec encode acts.npy -s path/to/sae -c l3.saecodec --deterministic -o acts.saec
      saecodec encode acts.npy -s path/to/sae --embed decoder -o acts.saec
      saecodec encode acts.npy -s path/to/sae --embed decoder --weights int8 -o acts.saec
      saecodec encode 'acts/*.pt' -s path/to/sae -o acts.saec
      saecodec encode more.npy -s path/to/sae --append -o acts.saec
      saecodec encode acts.npy -s path/to/sae --nmse 0.15 -o acts.saec
      saecodec encode acts.npy -s path/to/sae --bits 500 --residual -o acts.saec
      saecodec encode --latents delphi_cache/model.layers.3 --step 0 -o latents.saec
      saecodec encode --latents z.npz -o latents.saec
    """
    from saecodec.cli.options import check_output_name, file_bytes, goal, load_ids, load_pieces, rows_of
    from saecodec.cli.progress import progress_bar
    from saecodec.cli.render import number, size, target_text
    from saecodec.formats.array_source import ITEM_BYTES
    from saecodec.formats.arrays import open_array
    from saecodec.formats.atomic import check_output_path
    from saecodec.formats.codecfile import codec_bytes
    from saecodec.formats.encoding import encode_array

    if append:
        asked = click.get_current_context().get_parameter_source("chunk_rows") is not ParameterSource.DEFAULT
        refuse_options(
            {"--nmse": nmse, "--bits": bits, "--step": step, "--residual": residual, "--latents": latents}
            | {"--n-latents": n_latents, "--chunk-rows": asked, "--embed": embed, "--note": note, "--force": force}
            | {"--weights": None if weights == "float32" else weights, "--jobs": jobs},
            "rows are appended as the file says, with its own tables: leave it out",
        )
        append_rows(
            input,
            output,
            sae=sae,
            codec=codec,
            search=search,
            seq=seq,
            key=key,
            deterministic=deterministic,
            device=device,
            as_json=as_json,
        )
        return
    if not all("=" in pair for pair in note):
        raise click.UsageError("--note takes KEY=VALUE")
    if latents:
        refuse_options(
            {"-s": sae, "-c": codec, "--nmse": nmse, "--bits": bits, "--search": search, "--residual": residual}
            | {"--seq": seq, "--embed": None if embed == "tables" else embed, "--deterministic": deterministic}
            | {"--weights": None if weights == "float32" else weights},
            "feature activations are coded without an SAE, at a step, with the tables in the file",
        )
        encode_stored(
            input,
            output,
            step=step,
            n_latents=n_latents,
            key=key,
            chunk_rows=chunk_rows,
            note=note,
            jobs=jobs,
            force=force,
            as_json=as_json,
        )
        return
    refuse_options({"--n-latents": n_latents}, "is for --latents")
    wanted = goal(nmse, bits, step, search, residual)
    check_output_name(output, ".saec")
    check_output_path(output, force=force)
    source = open_array(input, key)
    model, fitted = load_pieces(sae, codec, device, deterministic)
    source = rows_of(source, model, fitted)
    ids = load_ids(seq, source.shape, fitted)
    with progress_bar() as progress:
        report = encode_array(
            source,
            output,
            sae=model,
            codec=fitted,
            goal=wanted,
            seq=ids,
            chunk_rows=chunk_rows,
            embed=embed,
            weights=weights,
            user=dict(pair.split("=", 1) for pair in note),
            force=force,
            progress=progress,
            jobs=jobs,
        )
    n_bytes, rows = file_bytes(output), source.n_rows
    rate = 8 * n_bytes / rows if rows else None
    outside = codec_bytes(codec) if codec and embed in (None, "none") else 0
    with_codec = 8 * (n_bytes + outside) / rows if rows else None
    if as_json:
        facts = {"file": output, "rows": rows, "file_bytes": n_bytes, "bits_per_row": rate, "seconds": report.seconds}
        facts["bits_per_row_with_codec"] = with_codec
        target = report.goal.target
        facts["target"] = None if target is None else {target.kind: target.value, "reached": report.reached}
        click.echo(json.dumps(facts))
        return
    click.echo(
        f"{output}: {rows:,} rows in {size(n_bytes)}, {number(rate)} bits per row, "
        f"{ITEM_BYTES[source.dtype] * rows * source.width / n_bytes:.1f}x smaller than the input"
        + (f"; {number(with_codec)} with the codec file" if outside and rows else "")
    )
    if report.goal.target is not None:
        click.echo(f"  {target_text(report.goal.target, report.reached)}")
