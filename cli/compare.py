"""`saecodec compare`."""

from __future__ import annotations

import glob
import json
import os
from typing import Any

import click

from saecodec.cli.options import (
    Numbers,
    about_sae,
    analysis_options,
    chunk_rows_option,
    device_option,
    force_option,
    json_option,
    key_option,
    seq_option,
)


@click.command(short_help="SAEs by description length, from real files.")
@click.argument("input", metavar="DATA")
@click.argument("saes", metavar="SAE...", nargs=-1, required=True)
@click.option(
    "--nmse",
    "targets",
    type=Numbers(),
    default="0.1,0.2,0.3",
    show_default=True,
    metavar="X,...",
    help="NMSE values to compare at: the epsilon of the MDL-SAE paper.",
)
@click.option(
    "--search",
    type=click.Choice(["none", "refit", "pursuit"]),
    default="none",
    show_default=True,
    help="Codes: the SAE's own activations (none), or what a search finds (see encode).",
)
@click.option(
    "--residual", is_flag=True, help="Add a layer that codes what the SAE leaves: SAEs with any floor reach any NMSE."
)
@click.option(
    "--weights",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    default="int8",
    show_default=True,
    help="Precision of the decoder, in the files and as it is counted.",
)
@about_sae
@analysis_options
@seq_option
@click.option("--plot", "plots", multiple=True, metavar="FILE", help="Rate-distortion plot to write (.png, .svg).")
@click.option("--csv", "table", metavar="FILE.csv", help="Table of all measured points to write.")
@chunk_rows_option
@key_option
@device_option
@force_option
@json_option
def compare(
    input: str,
    saes: tuple[str, ...],
    targets: tuple[float, ...],
    search: str,
    residual: bool,
    weights: str,
    skip_first: int,
    rows_mask: str | None,
    group: str | None,
    seq: str | None,
    metric: str | None,
    baselines: bool,
    report: str | None,
    plots: tuple[str, ...],
    table: str | None,
    chunk_rows: int,
    key: str | None,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Compare SAEs by the bits that their explanations of DATA take.

    Writes and decodes a real file for every point of every SAE's rate-distortion curve. At each NMSE the MDL-SAE is the
    one with the fewest bits per row; two SAEs tie when the 95 % interval of their difference on the same rows, by the
    paired block bootstrap, holds 0. SAE... are paths, hf://..., or patterns in quotes. Files hold the SAE's own
    activations unless --search says otherwise (measure --nmse searches by default).

    \b
    Examples:
      saecodec compare acts.npy sae_a sae_b --nmse 0.2
      saecodec compare acts.npy 'saes/*' --nmse 0.12,0.2 --seq ids.npy --report out.html
      saecodec compare acts.npy sae_a sae_b --residual --nmse 0.05 --csv curves.csv --plot rd.svg
      saecodec compare acts.npy sae_a sae_b --skip-first 1 --metric mymodel:loss --json
    """
    from saecodec.cli.options import check_outputs, sae_of
    from saecodec.cli.render_compare import compare_text
    from saecodec.formats.arrays import open_array
    from saecodec.formats.comparing import Candidate
    from saecodec.formats.comparing import compare as compare_saes
    from saecodec.formats.comparison_table import write_csv
    from saecodec.formats.metric import Metric
    from saecodec.formats.rate_curve import Setting
    from saecodec.formats.selection import Selection

    if plots:
        from saecodec.formats.plot import check_plot_path

        for path in plots:
            check_plot_path(path)
    source = open_array(input, key)
    paths = expanded(saes)
    read = [seq, rows_mask, group, metric and metric.rpartition(":")[0], *paths]
    check_outputs([*plots, *filter(None, [table])], report, source, read, force=force)
    candidates = [Candidate(path, lambda path=path: sae_of(path, device)) for path in paths]  # type: ignore[misc]
    facts = compare_saes(
        source,
        candidates,
        targets,
        seq=seq,
        setting=Setting(search, residual, weights, chunk_rows),
        selection=Selection(skip_first, rows_mask),
        group=group,
        metric=Metric.load(metric) if metric else None,
        baselines=baselines,
        detail=report is not None or group is not None,
        log=lambda line: click.echo(line, err=True),
    )
    click.echo(json.dumps(facts) if as_json else compare_text(facts))
    if table:
        write_csv(facts, table, force=force)
    write_pictures(facts, report, plots, force)
    for written in (*filter(None, [table, report]), *plots):
        click.echo(f"wrote {written}" + (" and its JSON" if written == report else ""), err=True)


def write_pictures(facts: dict[str, Any], report: str | None, plots: tuple[str, ...], force: bool) -> None:
    """The page and the plots of a report."""
    if report:
        from saecodec.formats.page import write_page

        write_page(facts, report, force=force)
    if plots:
        from saecodec.formats.plot import plot_comparison

        for path in plots:
            plot_comparison(facts, path, force=force)


def expanded(patterns: tuple[str, ...]) -> list[str]:
    """Paths, with those that patterns stand for in their place, less what is there already; InputError when a pattern
    stands for nothing. A path that is given twice stays so, for it is a mistake."""
    from saecodec.errors import InputError

    out: list[str] = []
    for pattern in patterns:
        if os.path.exists(pattern) or not glob.has_magic(pattern):
            out.append(pattern)
            continue
        found = sorted(glob.glob(pattern))
        if not found:
            raise InputError(f"{pattern}: no file or folder matches")
        out += [path for path in found if path not in out]
    return out
