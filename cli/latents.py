"""What `encode`, `decode` and `measure` do with --latents: feature activations, without an SAE."""

from __future__ import annotations

import json
from typing import Any

import click

latents_option = click.option(
    "--latents",
    is_flag=True,
    help="The input holds feature activations: a scipy CSR .npz, a torch sparse .pt, a delphi cache folder, or "
    "saerch's topk_indices/topk_values .npy. No SAE is needed; --step 0 keeps 16-bit values exactly.",
)
n_latents_option = click.option(
    "--n-latents",
    type=click.IntRange(1, 1 << 24),
    metavar="F",
    help="With --latents: number of latents, where the input does not say it.",
)


def refuse_options(given: dict[str, Any], reason: str) -> None:
    """UsageError when one of the options that make no sense here was given: name -> value, empty or not."""
    wrong = [name for name, value in given.items() if value not in (None, False, ())]
    if wrong:
        raise click.UsageError(f"{', '.join(wrong)}: {reason}")


def encode_stored(
    input: str,
    output: str,
    *,
    step: str | None,
    n_latents: int | None,
    key: str | None,
    chunk_rows: int,
    note: tuple[str, ...],
    jobs: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Encode stored feature activations, and say what came of it."""
    from saecodec.cli.options import check_output_name, file_bytes
    from saecodec.cli.progress import progress_bar
    from saecodec.cli.render import number, size
    from saecodec.formats.atomic import check_output_path
    from saecodec.formats.encoding_latents import encode_latents
    from saecodec.formats.latent_source import open_latents
    from saecodec.goal import DEFAULT_STEP

    check_output_name(output, ".saec")
    check_output_path(output, force=force)
    source = open_latents(input, n_latents, key)
    with progress_bar() as progress:
        report = encode_latents(
            source,
            output,
            step=step or DEFAULT_STEP,
            chunk_rows=chunk_rows,
            user=dict(pair.split("=", 1) for pair in note),
            force=force,
            progress=progress,
            jobs=jobs,
        )
    n_bytes, rows = file_bytes(output), source.n_rows
    rate, per_nonzero = (8 * n_bytes / n if n else None for n in (rows, report.nonzeros))
    facts = {"file": output, "rows": rows, "nonzeros": report.nonzeros, "file_bytes": n_bytes, "bits_per_row": rate}
    facts |= {"bits_per_nonzero": per_nonzero, "stored_bytes": source.stored.total, "step": report.step}
    if as_json:
        click.echo(json.dumps(facts | {"exact": report.step == 0, "seconds": report.seconds}))
        return
    how = "values exact" if report.step == 0 else f"step {report.step:.6g}"
    click.echo(
        f"{output}: {rows:,} rows with {report.nonzeros:,} activations in {size(n_bytes)}, {number(rate)} bits per "
        f"row, {number(per_nonzero)} per activation, {source.stored.total / n_bytes:.1f}x smaller than the input; {how}"
    )


def decode_stored(
    input: str,
    output: str,
    *,
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
    """Write the feature activations of a file."""
    import math

    from saecodec.cli.losses import tell_written
    from saecodec.cli.options import load_pieces, row_range
    from saecodec.cli.progress import progress_bar
    from saecodec.formats.damage import Losses
    from saecodec.formats.decoding_latents import check_latent_losses, check_latent_output, decode_latents
    from saecodec.formats.saec import open_saec

    check_latent_losses(output, on_error)
    with open_saec(input) as probe:
        wanted = check_latent_output(output, probe, dtype, force=force)
        chosen = row_range(rows, probe.n_rows)
    model, fitted = load_pieces(sae, codec, device)
    losses = Losses(on_error, advice="--on-error skip writes the other rows, as an .npz or .pt")
    with open_saec(input, sae=model, codec=fitted, device=device) as file, progress_bar() as progress:
        shape = decode_latents(
            file, output, rows=chosen, dtype=dtype, force=force, progress=progress, jobs=jobs, losses=losses
        )
    rows_written = math.prod(shape[:-1])
    tell_written(input, output, wanted, shape, rows_written, losses, what="feature activations", as_json=as_json)


def measure_stored(
    input: str, *, step: str | None, n_latents: int | None, key: str | None, chunk_rows: int, as_json: bool
) -> None:
    """Report what coding stored feature activations costs."""
    from saecodec.cli.progress import progress_bar
    from saecodec.formats.latent_source import open_latents
    from saecodec.formats.measuring_latents import measure_latents
    from saecodec.goal import DEFAULT_STEP

    source = open_latents(input, n_latents, key)
    with progress_bar() as progress:
        report = measure_latents(source, step=step or DEFAULT_STEP, chunk_rows=chunk_rows, progress=progress)
    click.echo(json.dumps(report) if as_json else _text(report, input))


def _text(report: dict[str, Any], name: str) -> str:
    from saecodec.cli.render import number, pairs, size
    from saecodec.cli.render_measure import PARTS

    rate = [
        ("bits per row", number(report["bits_per_row"])),
        ("bits per activation", number(report["bits_per_nonzero"])),
        ("of the stored bytes", number(report["ratio"], 4)),
    ]
    if report["stored_column_bytes"]:
        rate[-1] = ("of the stored bytes, tokens left out", number(report["ratio"], 4))
        rate.append(("  tokens alone", number(report["ratio_columns"], 4)))
        rate.append(("  all together", number(report["ratio_with_columns"], 4)))
    distortion = [
        ("values", "exact" if report["bit_equal"] else "quantized"),
        ("step", "-" if report["step"] == 0 else f"{report['step']:.6g}"),
        ("NMSE (FVU) of the activations", number(report["nmse"], 4)),
        ("largest error", number(report["max_error"], 4)),
        ("L0 stored / decoded", f"{number(report['l0'])} / {number(report['decoded_l0'])}"),
    ]
    split = [(PARTS[part], number(bits)) for part, bits in report["bits"].items() if bits]
    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in report["seconds"].items())
    return "\n".join(
        [
            f"{name}: {report['rows']:,} rows with {report['nonzeros']:,} activations, {size(report['stored_bytes'])}, "
            f"in a file of {size(report['file_bytes'])}",
            "rate",
            pairs(rate),
            "distortion",
            pairs(distortion),
            "where the bits go (bits per row, adding up to the file)",
            pairs(split),
            f"time: {seconds}",
        ]
    )
