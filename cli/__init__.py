"""The `saecodec` command. Commands import what is heavy only when they run."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Entry point.

    Exit status: 0 when all went well; 1 when saecodec reports an error; 2 when the usage is wrong; 3 when an output was
    written, but rows that were damaged are lost (--on-error).
    """
    from saecodec.cli.app import app

    # A job that is told to end (a scheduler's SIGTERM) cleans up as one that fails: no temporary file is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(app())
