"""`saecodec fit`."""

from __future__ import annotations

import json

import click

from saecodec.cli.options import (
    about_sae,
    chunk_rows_option,
    deterministic_option,
    device_of,
    device_option,
    force_option,
    goal_options,
    json_option,
    key_option,
    seq_option,
)


@click.command(short_help="Fit a codec on calibration rows.")
@click.argument("sae")
@click.argument("calibration")
@click.option("-o", "--output", required=True, metavar="CODEC", help="Codec file to write (.saecodec).")
@goal_options
@about_sae
@click.option(
    "--prior",
    type=click.Choice(["factorized", "context"]),
    default="factorized",
    show_default=True,
    help="How latents are coded: each on its own, or given the other latents of the row and of the rows beside it. "
    "Context took a third fewer bits on language activations; it takes minutes to train, and a codec file of a MB that "
    "pays for itself after some 100,000 rows.",
)
@click.option(
    "--fit-time",
    type=float,
    metavar="S",
    help="Seconds that the training of the context prior may take. Default: 420.",
)
@seq_option
@click.option("--embed-sae", is_flag=True, help="Put the SAE into the codec file, so that it encodes without it.")
@chunk_rows_option
@key_option
@deterministic_option
@device_option
@force_option
@json_option
def fit(
    sae: str,
    calibration: str,
    output: str,
    nmse: float | None,
    bits: float | None,
    step: str | None,
    search: str | None,
    residual: bool,
    prior: str,
    fit_time: float | None,
    seq: str | None,
    embed_sae: bool,
    chunk_rows: int,
    key: str | None,
    deterministic: bool,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Fit step, centroids and tables on CALIBRATION rows, and write a codec file.

    Files encoded with it (-c) hold rows only, and name it by hash.

    \b
    Examples:
      saecodec fit path/to/sae train.npy -o l3.saecodec
      saecodec fit path/to/sae train.npz --key x --step 0.8rms --embed-sae -o l3.saecodec
      saecodec fit path/to/sae train.npy --nmse 0.15 -o l3.saecodec
      saecodec fit path/to/sae train.npy --nmse 0.05 --residual -o l3.saecodec
      saecodec fit path/to/sae train.npy --prior context --seq train_seq.npy -o l3.saecodec
    """
    from saecodec.cli.options import check_output_name, file_bytes, goal, load_ids, rows_of, sae_of
    from saecodec.cli.progress import progress_bar
    from saecodec.cli.render import pairs, size, target_text
    from saecodec.formats.arrays import open_array
    from saecodec.formats.atomic import check_output_path
    from saecodec.formats.codecfile import save_codec
    from saecodec.formats.encoding import fit_array

    wanted = goal(nmse, bits, step, search, residual, prior, fit_time)
    check_output_name(output, ".saecodec")
    check_output_path(output, force=force)
    source, model = open_array(calibration, key), sae_of(sae, device_of(device, deterministic))
    if deterministic:
        from saecodec.exact_encoder import deterministic as exactly

        model = exactly(model)
    source = rows_of(source, model)
    ids = load_ids(seq, source.shape)
    with progress_bar() as progress:
        codec = fit_array(source, model, wanted, seq=ids, chunk_rows=chunk_rows, progress=progress)
    save_codec(codec, output, embed_sae=embed_sae, force=force)
    n_bytes = file_bytes(output)
    report = {
        "file": output,
        "file_bytes": n_bytes,
        "rows": source.n_rows,
        "step": codec.quantizer.step,
        "residual_step": None if codec.residual is None else codec.residual.step,
        "search": wanted.search,
        "prior": codec.latents.prior.name,
        "codec_id": codec.codec_id,
        "decoder_id": codec.decoder_id,
        "embeds_sae": embed_sae,
        "target": codec.info.get("target"),
        "context": codec.info.get("context"),
    }
    if as_json:
        click.echo(json.dumps(report))
        return
    where = "embedded" if embed_sae else "not embedded"
    held = f"SAE {model.name!r} (decoder id {codec.decoder_id[:16]}...), {where}"
    click.echo(f"{output}: {size(n_bytes)}")
    facts = [("fitted on", f"{source.n_rows:,} rows"), ("for", held), ("step", f"{codec.quantizer.step:.6g}")]
    if codec.residual is not None:
        facts.append(("residual step", f"{codec.residual.step:.6g}, {codec.residual.n_components} components"))
    if wanted.target is not None:
        facts.append(("target", target_text(wanted.target, codec.info["target"]["reached"])))
    context = codec.info.get("context")
    if context is not None:
        ours, theirs = context["bits_per_heldout_row"], context["bits_per_heldout_row_factorized"]
        held_out = f"{ours:.1f} bits each, {theirs:.1f} with the factorized prior"
        facts.append((f"on {context['heldout_rows']:,} held-out rows", held_out))
        if ours >= theirs:
            told = "the context prior saves nothing on held-out rows: give it more of them, or leave --prior out"
            click.echo(f"Warning: {told}", err=True)
    click.echo(pairs([*facts, ("codec id", codec.codec_id)]))
