"""`saecodec info`: never imports torch, never hashes weights."""

from __future__ import annotations

import json
from typing import Any

import click

from saecodec.cli.options import about_sae, json_option


@click.command(short_help="What a .saec, a .saecodec or an SAE is.")
@click.argument("file", metavar="FILE")
@about_sae
@json_option
def info(file: str, as_json: bool) -> None:
    """Describe FILE: a .saec file, a .saecodec file, or an SAE checkpoint, with the equation that it is run by.

    \b
    Examples:
      saecodec info acts.saec
      saecodec info path/to/sae --json
    """
    from saecodec.cli.options import sae_told
    from saecodec.cli.render import pairs
    from saecodec.formats.describe import describe

    facts = describe(file, sae_told()[0])
    if as_json:
        click.echo(json.dumps(facts))
        return
    click.echo(f"{file}: {facts.pop('kind')}")
    click.echo(
        pairs([(key.replace("_", " "), _text(value)) for key, value in facts.items() if value not in (None, {}, "")])
    )


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items() if item not in (None, ""))
    if isinstance(value, list):
        return " x ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
