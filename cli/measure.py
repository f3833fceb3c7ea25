"""`saecodec measure`."""

from __future__ import annotations

import json

import click

from saecodec.cli.latents import latents_option, measure_stored, n_latents_option, refuse_options
from saecodec.cli.options import (
    analysis_options,
    chunk_rows_option,
    codec_option,
    deterministic_option,
    device_option,
    embed_option,
    force_option,
    goal_options,
    json_option,
    key_option,
    sae_option,
    seq_option,
    weights_option,
)


@click.command(short_help="Bits per row and distortion, from a real file.")
@click.argument("input", metavar="INPUT")
@sae_option
@codec_option
@goal_options
@latents_option
@n_latents_option
@seq_option
@chunk_rows_option
@embed_option
@weights_option
@analysis_options
@click.option("--arrays", metavar="FILE.npz", help="Figures of every row and every latent to write (numpy).")
@key_option
@deterministic_option
@device_option
@force_option
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
    latents: bool,
    n_latents: int | None,
    seq: str | None,
    chunk_rows: int,
    embed: str | None,
    weights: str,
    skip_first: int,
    rows_mask: str | None,
    group: str | None,
    metric: str | None,
    baselines: bool,
    report: str | None,
    arrays: str | None,
    key: str | None,
    deterministic: bool,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Measure what the SAE's explanation of INPUT costs.

    Really encodes INPUT into a (temporary) file, really decodes it, then reports rate and distortion with 95 %
    intervals (block bootstrap over sequences, or runs of rows), where the bits go, the two-part description length with
    the SAE counted, and what the MDL-SAE paper and others estimate on the same rows.

    \b
    Examples:
      saecodec measure acts.npy -s path/to/sae
      saecodec measure acts.npy -s path/to/sae -c l3.saecodec --json
      saecodec measure acts.npy -s path/to/sae --step 0.8rms
      saecodec measure acts.npy -s path/to/sae --nmse 0.15
      saecodec measure acts.npy -s path/to/sae --embed decoder --weights int8
      saecodec measure acts.npy -s path/to/sae --nmse 0.05 --residual
      saecodec measure acts.npy -s path/to/sae --seq ids.npy --skip-first 1 --report out.html
      saecodec measure --latents delphi_cache/model.layers.3 --step 0
    """
    from saecodec.cli.options import check_outputs, goal, load_ids, load_pieces, rows_of
    from saecodec.cli.progress import progress_bar
    from saecodec.cli.render_measure import measure_text
    from saecodec.formats.arrays import open_array
    from saecodec.formats.codecfile import codec_bytes
    from saecodec.formats.measuring import Extras, measure_array, page_of
    from saecodec.formats.metric import Metric
    from saecodec.formats.selection import Selection

    if latents:
        refuse_options(
            {"-s": sae, "-c": codec, "--nmse": nmse, "--bits": bits, "--search": search, "--residual": residual}
            | {"--seq": seq, "--embed": None if embed == "tables" else embed, "--deterministic": deterministic}
            | {"--weights": None if weights == "float32" else weights, "--report": report, "--arrays": arrays}
            | {"--metric": metric}
            | {"--skip-first": skip_first, "--rows-mask": rows_mask, "--group": group},
            "feature activations are coded without an SAE, at a step, with the tables in the file",
        )
        measure_stored(input, step=step, n_latents=n_latents, key=key, chunk_rows=chunk_rows, as_json=as_json)
        return
    refuse_options({"--n-latents": n_latents}, "is for --latents")
    wanted = goal(nmse, bits, step, search, residual)
    source = open_array(input, key)
    check_outputs(
        [arrays] if arrays else [],
        report,
        source,
        [seq, rows_mask, group, codec, sae, metric and metric.rpartition(":")[0]],
        force=force,
    )
    if arrays and not arrays.endswith(".npz"):
        raise click.UsageError(f"--arrays {arrays}: is a .npz file; give it such a name")
    model, fitted = load_pieces(sae, codec, device, deterministic)
    source = rows_of(source, model, fitted)
    ids = load_ids(seq, source.shape, fitted)
    with progress_bar() as progress:
        facts = measure_array(
            source,
            sae=model,
            codec=fitted,
            codec_bytes=codec_bytes(codec) if codec else 0,
            goal=wanted,
            seq=ids,
            chunk_rows=chunk_rows,
            embed=embed,
            weights=weights,
            selection=Selection(skip_first, rows_mask),
            extras=Extras(group, Metric.load(metric) if metric else None, baselines, report is not None, arrays, force),
            progress=progress,
        )
    click.echo(json.dumps(facts) if as_json else measure_text(facts, input))
    if report:
        from saecodec.formats.page import write_page

        write_page(page_of(facts, input), report, force=force)
    for written in filter(None, [report, arrays]):
        click.echo(f"wrote {written}" + (" and its JSON" if written == report else ""), err=True)
