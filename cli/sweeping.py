"""The options of `train --sweep`, and what it tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from saecodec.cli.options import Numbers

if TYPE_CHECKING:
    from saecodec.formats.array_source import ArraySource
    from saecodec.formats.training import Run
    from saecodec.training import Aim, Settings

    _SeveralType = click.ParamType[tuple[float, ...]]
else:
    _SeveralType = click.ParamType  # generic from click 8.2 on

_OPTIONS = (
    click.option("--sweep", is_flag=True, help="Train an SAE for each width with each k, NMSE or bits; compare them."),
    click.option(
        "--test",
        metavar="ROWS",
        help="With --sweep: the rows to compare on, any input of encode. Default: those that are held out.",
    ),
    click.option(
        "--at",
        "targets",
        type=Numbers(),
        metavar="X,...",
        help="With --sweep: NMSE values to compare at. Default: those of --nmse, else 0.1,0.2,0.3.",
    ),
    click.option(
        "--search",
        type=click.Choice(["none", "refit", "pursuit"]),
        help="With --sweep: codes of the comparison, see compare. Default: none.",
    ),
)


def sweep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options --sweep, --test, --at and --search."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


class Several(_SeveralType):
    """Positive numbers, such as 64,128, in the order in which they are given."""

    name = "N,..."

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(map(self._kind, value.split(",")))
        except ValueError:
            numbers = ()
        if not numbers or not all(number > 0 for number in numbers):  # not NaN either
            what = "whole number above 0" if self._kind is int else "number above 0"
            self.fail(f"{value!r} is not a {what}, or with --sweep several, with commas between them", param, ctx)
        if len(set(numbers)) < len(numbers):
            self.fail(f"{value!r} has a number twice", param, ctx)
        return numbers


def check_sweep(sweep: bool, lists: Mapping[str, Sequence[float] | None], others: Iterable[object]) -> None:
    """UsageError when there is something that only a sweep can have. lists: values, by option. others: of --test, --at
    and --search."""
    if sweep:
        return
    for option, values in lists.items():
        if values is not None and len(values) > 1:
            raise click.UsageError(f"{option}: one SAE has one of them; to train an SAE for each, add --sweep")
    if any(value is not None for value in others):
        raise click.UsageError("--test, --at and --search say how a sweep compares its SAEs: add --sweep")


def aims_of(
    k: tuple[float, ...] | None, nmse: tuple[float, ...] | None, bits: tuple[float, ...] | None, objective: str
) -> list[Aim]:
    """What --k, --nmse and --bits ask for, of which one may be given."""
    from saecodec.training import Aim
    from saecodec.training.settings import DEFAULT_K

    given = [(kind, values) for kind, values in (("l0", k), ("nmse", nmse), ("bits", bits)) if values is not None]
    if len(given) > 1:
        raise click.UsageError("--k, --nmse and --bits exclude each other: give one")
    if not given and objective == "rate":
        raise click.UsageError("--objective rate needs something to aim at: --nmse X, or --bits B")
    kind, values = given[0] if given else ("l0", (DEFAULT_K,))
    return [Aim(kind, value) for value in values]


def log(line: str) -> None:
    """A line on stderr."""
    click.echo(line, err=True)


def grid_told(widths: Sequence[int], aims: Sequence[Aim], make: Callable[[int, Aim], Settings]) -> list[Settings]:
    """The settings of a sweep; what is left out is told on stderr."""
    from saecodec.formats.sweeping import grid_of

    return grid_of(widths, aims, make, log)


def sweep_told(
    source: ArraySource,
    output: str,
    grid: Sequence[Settings],
    test: ArraySource | None,
    targets: Sequence[float] | None,
    search: str | None,
    run: Run,
    as_json: bool,
) -> str:
    """Sweep, and what there is to say of it."""
    from saecodec.cli.progress import progress_bar
    from saecodec.formats.sweeping import sweep

    with progress_bar() as progress:
        facts = sweep(
            source,
            output,
            grid,
            test=test,
            targets=targets,
            run=run,
            search=search or "none",
            progress=progress,
            log=log,
        )
    report = facts.pop("compare")
    return json.dumps(facts | {"output": output}) if as_json else sweep_text(output, facts, report)


def sweep_text(output: str, facts: Mapping[str, Any], report: dict[str, Any]) -> str:
    """What `compare` says, then the MDL-SAE at each target."""
    from saecodec.cli.render import columns_text, count
    from saecodec.cli.render_compare import compare_text
    from saecodec.cli.terminal import printable

    on = facts["compared_on"]
    shared_by = sorted({on["rows"], facts["rows"]})
    head = ["NMSE", "MDL-SAE", "bits/row"]
    for n_rows in shared_by:
        head += [f"decoder shared by {n_rows:,} rows", "bits/row"]
    table, edges, unreached = [head], False, []
    for key, verdict in facts["at"].items():
        if verdict["mdl"] is None:
            unreached.append(f"no SAE reaches NMSE {key}: wider ones, a larger k, or more tokens may")
            continue
        best = [verdict, *verdict["with_sae"]]
        marks = [" *" if each["edge"] or each["k_edge"] else "" for each in best]
        edges |= any(marks)
        ties = f" ({count(len(verdict['ties']), 'tie')})" if verdict["ties"] else ""
        row = [key, verdict["mdl"] + marks[0] + ties, f"{verdict['bits_per_row']:,.1f}"]
        for shared, mark in zip(verdict["with_sae"], marks[1:], strict=True):
            row += [shared["mdl"] + mark, f"{shared['total_bits_per_row']:,.1f}"]
        table.append(row)
    rows = "held-out rows of the training" if on["held_out"] else f"rows of {on['input']}"
    lines = [printable(f"the MDL-SAE among {len(facts['grid'])}, on {on['rows']:,} {rows}")]
    if len(table) > 1:
        lines.append(columns_text(table, left=(1, *range(3, len(head), 2))))
    lines += unreached
    if edges:
        lines.append("* at an end of the grid, by its width or its k: beyond it may be a better one")
    lines.append(printable(f"{output}: the SAEs, sweep.json, compare.html and compare.json"))
    return compare_text(report, "saecodec compare --residual") + "\n\n" + "\n".join(lines)
