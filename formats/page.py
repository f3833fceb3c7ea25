"""A report of SAEs as one HTML page that needs nothing else, and beside it the JSON that the page shows."""

from __future__ import annotations

import json
import math
import os
import re
from importlib.resources import files
from typing import Any, Final

from saecodec.errors import OutputError
from saecodec.formats.atomic import atomic_output, check_output_path, reporting
from saecodec.formats.file_lock import is_file

_SCRIPTS: Final = (
    *("dom.js", "report.js", "axes.js", "curves.js", "histogram.js", "table.js"),
    *("verdict.js", "baselines.js", "two_part.js", "detail.js", "page.js"),
)
"""In the order in which the browser reads them: `page.js` comes last, and draws."""


def write_page(report: dict[str, Any], path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write `report` to `path` as a page, and to the same name with `.json`: the very text that the page embeds.

    report: plain values; rates in bits per row, sizes in bytes, NMSE as a fraction; intervals are [low, high]; a
        difference is the bits of `b` less those of `a`. Numbers that are not finite are written as null. Names may hold
        anything. docs/report.md has the keys; the page passes over those that it does not know.

    Raises:
        OutputError: `path` does not end in `.html`, or one of the two files is refused (see `check_output_path`).
    """
    page, data = check_page_path(path, force=force)
    text = _json(report)
    parts = {
        "style": _part("page.css"),
        "script": "\n".join(['"use strict";', *(_part(name) for name in _SCRIPTS)]),
        "report": text,
    }
    # In one pass, so that nothing in the report is taken for a place to fill.
    html = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _part("page.html"))
    new, mine = not os.path.lexists(data), None
    try:
        with atomic_output(page, force=force) as page_file:
            page_file.write(html.encode())
            with atomic_output(data, force=force) as data_file:
                data_file.write(text.encode() + b"\n")
                for name, file in ((page, page_file), (data, data_file)):  # before either has its name
                    with reporting(name):
                        file.flush()
                        os.fsync(file.fileno())
            mine = os.stat(data)
    except BaseException:
        if new and mine is not None and is_file(data, mine):  # and not what another process has put there
            os.unlink(data)
        raise


def check_page_path(path: str | os.PathLike[str], *, force: bool = False) -> tuple[str, str]:
    """The names of the page and of its JSON; OutputError unless both can be written. Costs nothing: call it early."""
    page = os.fspath(path)
    stem, suffix = os.path.splitext(page)
    if suffix.lower() != ".html":
        raise OutputError(f"{page}: a page is a .html file")
    data = stem + ".json"
    for name in (page, data):
        check_output_path(name, force=force)
    return page, data


def _json(report: dict[str, Any]) -> str:
    """ASCII in which no HTML parser sees markup: JSON has `<` in strings only, and there it may stand as an escape."""
    return json.dumps(_finite(report), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    """`value` with null for each number that JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _part(name: str) -> str:
    return (files("saecodec.formats") / "page" / name).read_text("utf-8").rstrip("\n")
