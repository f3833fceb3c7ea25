"""`saecodec bench`."""

from __future__ import annotations

import json
import os

import click

from saecodec.cli.options import Numbers, about_sae, device_option, force_option, json_option, key_option


@click.command(short_help="This codec beside its peers on your rows.")
@click.argument("input", metavar="INPUT")
@click.option("-s", "--sae", "saes", multiple=True, metavar="SAE", help="Trained SAE; may be repeated.")
@about_sae
@click.option(
    "--calibration",
    metavar="FILE",
    help="Rows to fit everything on. Default: the first half of INPUT, the second half being measured.",
)
@click.option("--calibration-key", metavar="NAME", help="Array to read from a calibration file that holds several.")
@click.option(
    "--modes",
    default="none,refit,pursuit,none+residual,refit+residual,pursuit+residual",
    show_default=True,
    metavar="M,...",
    help="Searches of this codec, without and with residual layer.",
)
@click.option("--peers", metavar="P,...", help="Peers by the beginnings of their names; default all, '' for none.")
@click.option(
    "--targets",
    type=Numbers(),
    default="0.3,0.2,0.15,0.1,0.05,0.02",
    show_default=True,
    metavar="X,...",
    help="NMSE values to compare at.",
)
@click.option(
    "--rows",
    "max_rows",
    type=click.IntRange(1),
    default=32768,
    show_default=True,
    metavar="N",
    help="Rows to measure, at most.",
)
@click.option(
    "--calibration-rows",
    type=click.IntRange(1),
    default=65536,
    show_default=True,
    metavar="N",
    help="Rows to fit on, at most.",
)
@click.option("--plot", "plots", multiple=True, metavar="FILE", help="Rate-distortion plot to write (.png, .svg).")
@key_option
@device_option
@force_option
@json_option
def bench(
    input: str,
    saes: tuple[str, ...],
    calibration: str | None,
    calibration_key: str | None,
    modes: str,
    peers: str | None,
    targets: tuple[float, ...],
    max_rows: int,
    calibration_rows: int,
    plots: tuple[str, ...],
    key: str | None,
    device: str,
    force: bool,
    as_json: bool,
) -> None:
    """Run this codec and its peers side by side on your rows, and compare bits per row at the same NMSE.

    Everything is fitted on calibration rows and measured on others; every size is that of bytes that were decoded
    again. Between two measured points of a codec, bits at a target are interpolated in logarithms. FAISS, SZ3 and zfp
    need: pip install 'saecodec[bench]'; plots need saecodec[plot].

    \b
    Examples:
      saecodec bench acts.npy -s path/to/sae --calibration train.npy
      saecodec bench acts.npy -s sae_a -s sae_b --modes pursuit --peers PCA,int --plot rd.png
      saecodec bench acts.npy --targets 0.2,0.1 --json > bench.json
    """
    from saecodec.cli.options import sae_of
    from saecodec.cli.render import bench_text
    from saecodec.errors import InputError
    from saecodec.formats.arrays import open_array
    from saecodec.formats.atomic import check_output_path
    from saecodec.formats.benchmark import MODE_NAMES, Rows, bench_peer, bench_sae, report
    from saecodec.formats.plot import check_plot_path, plot_curves
    from saecodec.peers.registry import families

    chosen = [mode for mode in modes.split(",") if mode]
    wrong = [mode for mode in chosen if mode not in MODE_NAMES]
    if wrong:
        raise InputError(f"unknown mode {wrong[0]!r}: this knows {', '.join(MODE_NAMES)}")
    known = families()
    starts = None if peers is None else tuple(name.strip().lower() for name in peers.split(",") if name.strip())
    wanted = [family for family in known if starts is None or family.name.lower().startswith(starts)]
    if peers and not wanted:
        raise InputError(f"no peer is called {peers!r}: there are {', '.join(family.name for family in known)}")
    for path in plots:
        check_output_path(path, force=force)
        check_plot_path(path)
    source = open_array(input, key)
    rows, shared = Rows.read(
        source, open_array(calibration, calibration_key) if calibration else None, max_rows, calibration_rows
    )

    def log(line: str) -> None:
        click.echo(line, err=True)

    curves, missing = [], []
    for path in saes:
        curves += list(bench_sae(rows, sae_of(path, device), chosen, targets, log))
    for family in wanted:
        if family.available():
            curves.append(bench_peer(rows, family, targets, log))
        else:
            missing.append(family.missing())
            log(missing[-1])
    facts = report(curves, rows, shared, targets) | {"missing": missing}
    for path in plots:
        plot_curves(facts, f"{facts['rows']:,} rows of {os.path.basename(input)}", path, force=force)
        log(f"wrote {path}")
    click.echo(json.dumps(facts) if as_json else bench_text(facts))
