"""`saecodec train`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from saecodec.cli.options import codec_option, device_option, force_option, json_option, key_option, sae_option
from saecodec.cli.sweeping import Several, aims_of, check_sweep, grid_told, sweep_options, sweep_told

if TYPE_CHECKING:
    from saecodec.formats.array_source import ArraySource
    from saecodec.training import Settings

_ARCHITECTURES = ("batchtopk", "topk", "jumprelu", "gated", "standard")


@click.command(short_help="Train an SAE, for sparsity or for description length.")
@click.argument("input", metavar="ACTS")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="SAE_DIR",
    help="Folder to write, in SAELens' layout; with --sweep, one that holds a folder for each SAE.",
)
@click.option("--width", "widths", type=Several(int), required=True, metavar="F", help="Latents. With --sweep F,F,...")
@click.option(
    "--arch",
    type=click.Choice(_ARCHITECTURES),
    help="Architecture. Default: batchtopk, or jumprelu with --objective rate. What is trained as batchtopk is written "
    "as jumprelu, with one threshold.",
)
@click.option(
    "--objective",
    type=click.Choice(["sparsity", "rate"]),
    default="sparsity",
    show_default=True,
    help="What is paid for beside the error: active latents, or the bits that a .saec file takes for them.",
)
@click.option(
    "--k", type=Several(float), metavar="K", help="Active latents a row to aim at. Default: 32. With --sweep K,K,..."
)
@click.option(
    "--nmse",
    type=Several(float),
    metavar="X",
    help="NMSE (FVU) of held-out rows to aim at, instead of a k. With --sweep X,X,...",
)
@click.option(
    "--bits",
    type=Several(float),
    metavar="B",
    help="Bits a row, by the trainer's estimate, to aim at. With --sweep B,B,...",
)
@click.option(
    "--nested",
    metavar="F1,F2,...",
    help="Smaller widths whose SAEs are the first latents of this one (Matryoshka), written to SAE_DIR-F1, ...",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=4_000_000,
    show_default=True,
    metavar="N",
    help="Rows to train on, repeats counted.",
)
@click.option("--batch", type=click.IntRange(1), default=1024, show_default=True, metavar="N", help="Rows of a step.")
@click.option(
    "--lr", type=float, metavar="R", help="Peak learning rate of Adam. Default: 0.004, less above 4096 latents."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of all draws.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the checkpoint (SAE_DIR.checkpoint) of a stopped training; a sweep does so by itself.",
)
@sweep_options
@sae_option
@codec_option
@key_option
@device_option
@force_option
@json_option
def train(
    input: str,
    output: str,
    widths: tuple[int, ...],
    arch: str | None,
    objective: str,
    k: tuple[float, ...] | None,
    nmse: tuple[float, ...] | None,
    bits: tuple[float, ...] | None,
    nested: str | None,
    tokens: int,
    batch: int,
    lr: float | None,
    seed: int,
    resume: bool,
    sweep: bool,
    test: str | None,
    targets: tuple[float, ...] | None,
    search: str | None,
    sae: str | None,
    codec: str | None,
    key: str | None,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Train a sparse autoencoder on the activations in ACTS, and write it as a SAELens checkpoint.

    ACTS is any input of encode, or a .saec file (with -s, the SAE that decodes it, unless it embeds its decoder). Some
    rows are held out: the targets are about these. A training that is stopped (Ctrl-C, or killed) goes on with
    --resume, to the same SAE.

    With --sweep, an SAE is trained for each width with each k (or NMSE, or bits). They are compared as compare does,
    and at each NMSE the MDL-SAE is named: the one with the fewest bits a row. Stopped, the same command goes on. An SAE
    of other settings in its place stops it, unless --force replaces that one.

    \b
    Examples:
      saecodec train acts.npy -o sae --width 3072 --k 32
      saecodec train acts.npy -o sae --width 3072 --objective rate --nmse 0.15
      saecodec train 'acts/*.pt' -o sae --width 16384 --arch topk --k 64 --tokens 50000000
      saecodec train acts.saec -s old_sae -o sae --width 6144 --nested 768,1536 --k 32
      saecodec train acts.npy -o sae --width 3072 --k 32 --resume
      saecodec train acts.npy -o saes --sweep --width 64,128,256 --k 4,8,16 --test test.npy --at 0.2,0.3
    """
    from saecodec.cli.progress import progress_bar
    from saecodec.formats.arrays import open_array
    from saecodec.formats.training import Run, missed_aim, train_array
    from saecodec.training import Aim, Settings

    check_sweep(sweep, {"--width": widths, "--k": k, "--nmse": nmse, "--bits": bits}, (test, targets, search))
    aims, narrower = aims_of(k, nmse, bits, objective), widths_of(nested)

    def settings_of(width: int, aim: Aim) -> Settings:
        kind = arch or ("jumprelu" if objective == "rate" else "batchtopk")
        return Settings(width, kind, objective, aim, tokens, batch, lr, narrower, seed)

    grid = grid_told(widths, aims, settings_of) if sweep else [settings_of(widths[0], aims[0])]
    check_decoder(sae, outputs_of(output, grid, sweep))
    source = rows_to_train_on(input, key, sae, codec)
    if sweep:
        tested = None if test is None else open_array(test, key)
        click.echo(sweep_told(source, output, grid, tested, targets, search, Run(device, force=force), as_json))
        return
    with progress_bar() as progress:
        facts = train_array(source, output, grid[0], Run(device, resume=resume, force=force), progress=progress)
    click.echo(json.dumps(facts | {"output": output}) if as_json else training_text(output, facts))
    missed = missed_aim(facts)
    if missed is not None:
        click.echo(f"Warning: {missed}. A wider SAE, or more tokens, may come nearer.", err=True)


def widths_of(text: str | None) -> tuple[int, ...]:
    """A list of widths, such as 768,1536."""
    if text is None:
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"{text!r} is not a list of widths such as 768,1536") from None


def outputs_of(output: str, grid: Sequence[Settings], sweep: bool) -> list[str]:
    """The folders of all SAEs that are to be trained."""
    if sweep:
        from saecodec.formats.sweeping import name_of

        return [os.path.join(output, name_of(settings)) for settings in grid]
    from saecodec.formats.training import folders_of

    return list(folders_of(output, grid[0]).values())


def check_decoder(sae: str | None, outputs: Sequence[str]) -> None:
    """OutputError when an SAE that decodes the input would be replaced: nothing else may decode it."""
    from saecodec.errors import OutputError

    held = None if sae is None else os.path.realpath(sae)
    for folder in outputs:
        if held is not None and (held + os.sep).startswith(os.path.realpath(folder) + os.sep):
            raise OutputError(f"{folder}: is the SAE that decodes the input (-s); choose another output")


def rows_to_train_on(input: str, key: str | None, sae: str | None, codec: str | None) -> ArraySource:
    """The rows of an input; -s and -c are for `.saec` files."""
    from saecodec.cli.options import load_pieces
    from saecodec.formats.saec_source import is_saec_rows, open_rows

    if (sae or codec) and not is_saec_rows(input):
        raise click.UsageError(f"-s and -c tell how a .saec file is decoded, which {input} is not: leave them out")
    model, fitted = load_pieces(sae, codec, "cpu")
    return open_rows(input, key, sae=model, codec=fitted)


def training_text(output: str, facts: dict[str, Any]) -> str:
    """What is told of a training."""
    from saecodec.cli.render import pairs

    settings, held = facts["settings"], facts["held_out"]
    lines = [("trained", f"{facts['steps'] * settings['batch']:,} tokens, {facts['seconds']:.0f} s")]
    if held["rows"]:
        share = f"{100 * held['dead']:.1f} %"
        lines.append(
            (f"on {held['rows']:,} held-out rows", f"NMSE {held['nmse']:.4f}, L0 {held['l0']:.1f}, dead {share}")
        )
        coded = f"{held['bits_per_row']:.1f} bits/row at NMSE {held['coded_nmse']:.4f}"
        lines.append(("coded without search", f"{coded}, step {held['step']:.4g}"))
        found = held.get("searched")
        if found:
            lines.append(("coded with search", f"{found['bits_per_row']:.1f} bits/row at NMSE {found['nmse']:.4f}"))
    return f"{output}: {facts['n_latents']:,} latents, {settings['architecture']}\n" + pairs(lines)
