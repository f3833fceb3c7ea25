"""The command group: help, version, and how errors reach people."""

from __future__ import annotations

from typing import Any

import click

import saecodec
from saecodec.cli.bench import bench
from saecodec.cli.cat import cat
from saecodec.cli.compare import compare
from saecodec.cli.decode import decode
from saecodec.cli.demo import demo
from saecodec.cli.encode import encode
from saecodec.cli.export import export
from saecodec.cli.fit import fit
from saecodec.cli.folders import decode_dir, encode_dir
from saecodec.cli.info import info
from saecodec.cli.measure import measure
from saecodec.cli.recover import recover
from saecodec.cli.terminal import printable
from saecodec.cli.train import train
from saecodec.cli.verify import verify
from saecodec.errors import SaecodecError

_LONGEST = 4000  # characters of an error: what it quotes from a file may be megabytes


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text):,} characters)"


class _Group(click.Group):
    """Shows a SaecodecError as one line and exit status 1; keeps the order of the commands."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SaecodecError as error:
            raise click.ClickException(_clipped(printable(str(error), keep="\n"))) from error
        except MemoryError as error:
            raise click.ClickException(
                f"there is not enough memory ({printable(str(error)) or 'none is left'})"
            ) from error
        except BrokenPipeError:
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(saecodec.__version__, prog_name="saecodec")
def app() -> None:
    """Compress neural-network activations with a trained sparse autoencoder.

    The encoder runs the SAE, quantizes its feature activations and range-codes them into a .saec file, which really
    decodes: its size is the description length of the SAE's explanation.

    \b
    Try it:
      saecodec demo
      saecodec measure acts.npy -s path/to/sae
      saecodec compare acts.npy sae_a sae_b --nmse 0.2
      saecodec encode acts.npy -s path/to/sae -o acts.saec
      saecodec decode acts.saec -s path/to/sae -o acts_hat.npy
    """


REPORTS = (demo, measure, compare, bench)
FILES = (train, encode, decode, encode_dir, decode_dir, fit, export, cat, recover, info, verify)
for command in (*REPORTS, *FILES):
    app.add_command(command)
