"""`saecodec verify`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from saecodec.cli.options import codec_option, device_option, jobs_option, json_option, key_option, sae_option
from saecodec.cli.terminal import printable

if TYPE_CHECKING:
    from saecodec.formats.array_source import ArraySource
    from saecodec.formats.latent_source import LatentSource
    from saecodec.formats.saec import SaecFile
    from saecodec.formats.survey import Survey


@click.command(short_help="Check a .saec file, and compare it with its input.")
@click.argument("input", metavar="IN.saec")
@sae_option
@codec_option
@click.option("--against", metavar="INPUT", help="What it was made from: report the distortion.")
@click.option("--checksums", is_flag=True, help="Checksums and structure only; needs neither SAE nor codec.")
@key_option
@device_option
@jobs_option
@json_option
def verify(
    input: str,
    sae: str | None,
    codec: str | None,
    against: str | None,
    checksums: bool,
    key: str | None,
    device: str,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Check every checksum, decode every chunk, and report the distortion against the input where it is given.

    Of a damaged file all damage is listed, with the rows that it costs; the exit status is 1.

    \b
    Examples:
      saecodec verify acts.saec -s path/to/sae --against acts.npy
      saecodec verify latents.saec --against delphi_cache/model.layers.3
      saecodec verify acts.saec --checksums
    """
    from saecodec.cli.options import load_pieces
    from saecodec.cli.progress import progress_bar
    from saecodec.cli.render import count, number
    from saecodec.errors import FormatError, LimitError, SaecodecError, UnsupportedError
    from saecodec.formats.arrays import open_array
    from saecodec.formats.decoding import verify_file
    from saecodec.formats.latent_source import open_latents
    from saecodec.formats.measuring_latents import LatentDistortion
    from saecodec.formats.saec import open_saec
    from saecodec.formats.survey import survey

    if checksums and (against or sae or codec):
        raise click.UsageError("--checksums decodes nothing: leave out --against, -s and -c")
    with _told_as_json(input, as_json, SaecodecError), open_saec(input) as probe:
        latents = probe.holds_latents
    source: ArraySource | LatentSource | None = None
    if against:
        source = open_latents(against, probe.header.width, key) if latents else open_array(against, key)
    model, fitted = (None, None) if checksums else load_pieces(sae, codec, device)
    with (
        _told_as_json(input, as_json, FormatError, LimitError, UnsupportedError),
        open_saec(input, sae=model, codec=fitted, device=device) as file,
        progress_bar() as progress,
    ):
        decode, damage, met = not checksums, None, None
        try:
            result = verify_file(file, against=source, decode=decode, progress=progress, jobs=jobs)
        except (FormatError, UnsupportedError) as error:
            met, damage = error, survey(file, error, decode=decode, progress=progress, jobs=jobs)
    if damage is not None:
        _tell_damage(file, damage, as_json, later=isinstance(met, UnsupportedError))
        click.get_current_context().exit(1)
    report = {"file": input, "ok": True, "frames": result.frames, "chunks": result.chunks, "rows": result.rows}
    report["decoded"] = "nothing" if checksums else result.decoded
    if result.distortion is not None:
        found = result.distortion
        more = {"bit_equal": found.equal} if isinstance(found, LatentDistortion) else {"cosine": found.cosine}
        report |= {"nmse": found.nmse, **more, "max_error": found.max_error}
    if as_json:
        click.echo(json.dumps(report))
        return
    done = {"nothing": "checksums are right; nothing was decoded"}
    done |= {"levels": "all levels decode; values were not decoded, for which the SAE is needed (-s SAE)"}
    done |= {"rows": "all rows decode"}
    click.echo(
        f"{input}: {count(result.frames, 'frame')}, {count(result.chunks, 'chunk')}, {count(result.rows, 'row')}: "
        f"{done[str(report['decoded'])]}"
    )
    if result.distortion is not None:
        found = result.distortion
        if isinstance(found, LatentDistortion):
            how = "equal bit by bit" if found.equal else "not equal bit by bit"
        else:
            how = f"mean cosine {number(found.cosine, 4)}"
        click.echo(f"  against {against}: NMSE {number(found.nmse, 4)}, {how}, largest error {found.max_error:.4g}")


@contextmanager
def _told_as_json(input: str, as_json: bool, *errors: type[Exception]) -> Iterator[None]:
    """Tell errors about the file as the report of one that cannot be read, where that is to be JSON."""
    try:
        yield
    except errors as error:
        if not as_json:
            raise
        click.echo(json.dumps({"file": input, "ok": False, "error": str(error)}))
        click.get_current_context().exit(1)


def _tell_damage(file: SaecFile, found: Survey, as_json: bool, *, later: bool) -> None:
    """List all that is damaged. later: a later version may have written the file."""
    from saecodec.cli.render import count

    chunks = [(i, *lost.told(file.path)) for i, lost in sorted(found.chunks.items())]
    elsewhere = [(damage.start, damage.stop, damage.reason, damage.cost) for damage in found.elsewhere]
    lost = [part.told(file.path) for part in found.lost]
    if found.blocked is not None:
        lost = [(0, file.n_rows, f"cannot be decoded: {found.blocked.reason}")]
    n_lost = sum(stop - start for start, stop, _ in lost)
    if as_json:
        report = {"file": file.path, "ok": False, "chunks": len(file.index.rows), "rows": file.n_rows}
        report |= {"decoded": found.decoded, "lost_rows": n_lost, "lost": lost}
        click.echo(json.dumps(report | {"damaged_chunks": chunks, "elsewhere": elsewhere}))
        return
    for _, start, stop, reason in chunks:
        click.echo(printable(f"rows {start}:{stop} are lost: {reason}"))
    for start, stop, reason, cost in elsewhere:
        click.echo(printable(f"bytes {start}:{stop}: {reason}; costs {cost}"))
    name = printable(file.path)
    verdict = "is not whole to this version" if later and not chunks else "is damaged"
    if chunks:
        click.echo(
            f"the other rows: saecodec decode {name} --on-error nan (or skip); a file of the whole chunks: "
            f"saecodec recover {name} -o OUT.saec"
        )
    click.echo(
        f"Error: {name}: {verdict}: {len(chunks)} of {count(len(file.index.rows), 'chunk')}, "
        f"{n_lost:,} of {count(file.n_rows, 'row')} lost"
        + (f"; {found.blocked.cost.replace('every row, ', '')}" if found.blocked is not None else ""),
        err=True,
    )
