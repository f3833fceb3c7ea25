"""Reports as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from saecodec.cli.terminal import printable

if TYPE_CHECKING:
    from saecodec.rate_control import Target

TARGET_TOLERANCE: Final = 0.01


def size(n_bytes: float) -> str:
    """A number of bytes for people: '988,059 bytes', '9.5 MB'."""
    return (
        f"{n_bytes:,.0f} bytes"
        if n_bytes < 1e6
        else f"{n_bytes / 1e6:,.1f} MB"
        if n_bytes < 1e9
        else f"{n_bytes / 1e9:,.1f} GB"
    )


def count(n: int, what: str) -> str:
    """A number of things: '1 chunk', '8 chunks'."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def number(value: float | None, digits: int = 2) -> str:
    """A number that may be undefined."""
    return "-" if value is None else f"{value:,.{digits}f}"


def pairs(rows: list[tuple[str, str]], indent: str = "  ") -> str:
    """Lines of two aligned columns."""
    rows = [(printable(label), printable(value)) for label, value in rows]
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{indent}{label:<{width}}  {value}" for label, value in rows)


def columns_text(rows: list[list[str]], left: tuple[int, ...]) -> str:
    """Lines of aligned columns. left: the columns that begin at the same place; others end there."""
    rows = [list(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def groups_text(detail: dict[str, Any] | None, head: str = "groups of rows") -> list[str]:
    """A line for each group of rows, where there are groups."""
    if detail is None or detail["groups"] is None:
        return []
    columns = detail["groups"]["columns"]
    table = [["group", "rows", "bits/row", "NMSE", "share of bits", "latents that it is about"]]
    for group, rows, bits, nmse, share, latents in zip(*columns.values(), strict=True):
        table.append([group, f"{rows:,}", number(bits, 1), number(nmse, 4), f"{100 * share:.1f} %", latents])
    lines = columns_text(table, left=(0, 5)).split("\n")
    told = f"{head} (bits of their chunks, without tables; NMSE about the mean of all rows)"
    return [told, "\n".join("  " + line for line in lines)]


def target_text(target: Target, reached: float | None) -> str:
    """What was asked for and reached."""
    assert reached is not None
    missed = target.missed_by(reached)
    warning = "" if missed <= TARGET_TOLERANCE else f": missed by {100 * missed:.1f} %, which was the nearest found"
    return f"{target} asked for, {reached:.4g} reached{warning}"


def bench_text(report: dict[str, Any]) -> str:
    """The report of `bench`: a line for each codec."""
    head = [
        "bits per row at NMSE",
        *(f"{target:g}" for target in report["targets"]),
        "encode MB/s",
        "decode MB/s",
        "model outside",
    ]
    lines = [head]
    for curve in report["curves"]:
        points = curve["points"]
        if not points:
            continue
        at = [number(bits, 1) for bits in curve["bits_per_row_at"].values()]
        speeds = [_span([point[key] for point in points]) for key in ("encode_mb_s", "decode_mb_s")]
        model = size(max(point["model_bytes"] for point in points))
        if points[0]["sae_bytes"]:
            model += f" + SAE decoder {size(points[0]['sae_bytes'])}"
        lines.append([curve["name"], *at, *speeds, model])
    table = columns_text(lines, left=(0, len(head) - 1))
    rows = (
        f"{count(report['rows'], 'row')} of {report['width']} values, fitted on {report['calibration_rows']:,} others"
    )
    shared = f" ({report['shared_rows']:,} of the measured rows occur among them)" if report["shared_rows"] else ""
    return "\n".join([rows + shared, table, *report["missing"]])


def _span(values: list[float]) -> str:
    """The range of some numbers."""
    low, high = (f"{value:.3g}" for value in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"
