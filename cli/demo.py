"""`saecodec demo`: all of it on bundled real data."""

from __future__ import annotations

import click


@click.command(short_help="Compress bundled real activations, decode, report.")
def demo() -> None:
    """Encode 2,048 real activations (all-MiniLM-L6-v2, layer 3) with a trained SAE, decode them, and report what a row
    really costs.
    """
    import tempfile
    from importlib.resources import as_file, files
    from pathlib import Path

    from saecodec.cli.render import size
    from saecodec.cli.render_measure import measure_text
    from saecodec.formats.arrays import open_array
    from saecodec.formats.checkpoints import load_sae
    from saecodec.formats.decoding import decode_file, verify_file
    from saecodec.formats.encoding import encode_array
    from saecodec.formats.measuring import Extras, measure_array
    from saecodec.formats.saec import open_saec

    with as_file(files("saecodec") / "bundled") as bundled, tempfile.TemporaryDirectory() as folder:
        sae, source = load_sae(bundled / "minilm_l3_sae"), open_array(bundled / "minilm_l3_rows.npy")
        click.echo(f"input   {source.n_rows:,} rows of {source.width} values, {source.dtype}, {size(source.nbytes)}")
        click.echo(f"SAE     {sae.name}: {sae.architecture}, {sae.n_latents:,} latents\n")
        path = Path(folder) / "demo.saec"
        click.echo("$ saecodec encode minilm_l3_rows.npy -s minilm_l3_sae -o demo.saec")
        encode_array(source, path, sae=sae)
        click.echo(f"  {size(path.stat().st_size)}, {source.nbytes / path.stat().st_size:.1f}x smaller\n")
        click.echo("$ saecodec decode demo.saec -s minilm_l3_sae -o demo.npy")
        with open_saec(path, sae=sae) as file:
            shape = decode_file(file, Path(folder) / "demo.npy")
            click.echo(f"  {file.dtype} array of shape {shape}\n")
            click.echo("$ saecodec verify demo.saec -s minilm_l3_sae --against minilm_l3_rows.npy")
            checked = verify_file(file, against=source)
        assert checked.distortion is not None
        click.echo(f"  {checked.chunks} chunk, {checked.rows:,} rows decode: NMSE {checked.distortion.nmse:.4f}\n")
        click.echo("$ saecodec measure minilm_l3_rows.npy -s minilm_l3_sae")
        click.echo(measure_text(measure_array(source, sae=sae, extras=Extras(baselines=True)), "minilm_l3_rows.npy"))
