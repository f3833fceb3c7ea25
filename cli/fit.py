"""`saecodec fit`."""

from __future__ import annotations

import json

import click

from saecodec.cli.options import (
    chunk_rows_option,
    device_option,
    force_option,
    goal_options,
    json_option,
    key_option,
)


@click.command(short_help="Fit a codec on calibration rows.")
@click.argument("sae")
@click.argument("calibration")
@click.option("-o", "--output", required=True, metavar="CODEC", help="Codec file to write (.saecodec).")
@goal_options
@click.option("--embed-sae", is_flag=True, help="Put the SAE into the codec file, so that it encodes without it.")
@chunk_rows_option
@key_option
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
    embed_sae: bool,
    chunk_rows: int,
    key: str | None,
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
    """
    from saecodec.cli.options import check_output_name, file_bytes, goal
    from saecodec.cli.progress import progress_bar
    from saecodec.cli.render import pairs, size, target_text
    from saecodec.formats.arrays import open_array
    from saecodec.formats.atomic import check_output_path
    from saecodec.formats.checkpoints import load_sae
    from saecodec.formats.codecfile import save_codec
    from saecodec.formats.encoding import fit_array

    wanted = goal(nmse, bits, step, search, residual)
    check_output_name(output, ".saecodec")
    check_output_path(output, force=force)
    source, model = open_array(calibration, key), load_sae(sae, device)
    with progress_bar() as progress:
        codec = fit_array(source, model, wanted, chunk_rows=chunk_rows, progress=progress)
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
    click.echo(pairs([*facts, ("codec id", codec.codec_id)]))
