"""The `saecodec` command. Commands import what is heavy only when they run."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: exit status 0 when all went well, 1 when saecodec reports an error, 2 when the usage is wrong."""
    from saecodec.cli.app import app

    sys.exit(app())
