"""Options and loaders that several commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    _ParamType = click.ParamType[tuple[int | None, int | None]]
    _NumbersType = click.ParamType[tuple[float, ...]]
    from numpy.typing import NDArray

    from saecodec.codec import Codec
    from saecodec.formats.array_source import ArraySource
    from saecodec.goal import Goal
    from saecodec.sae import SAE
else:
    _ParamType = _NumbersType = click.ParamType  # generic from click 8.2 on


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Keeps what an option says of the SAE for `sae_of`, so that commands need not hand it on."""
    ctx.meta[f"{__name__}.{param.name}"] = value


_SAE_SAYS = (
    click.option(
        "--sae-k",
        type=click.IntRange(1),
        metavar="K",
        expose_value=False,
        callback=_keep,
        help="Active latents of a top-k SAE whose checkpoint does not say how many.",
    ),
    click.option(
        "--input-scale",
        type=float,
        metavar="F",
        expose_value=False,
        callback=_keep,
        help="Multiply rows by F before the SAE, divide after: a scale that lies outside its weights, such as SAELens' "
        "norm_scaling_factor.",
    ),
)


def about_sae(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options --sae-k and --input-scale, which `sae_of` goes by."""
    for option in reversed(_SAE_SAYS):
        command = option(command)
    return command


def sae_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Option -s, and what may have to be said of an SAE."""
    option = click.option("-s", "--sae", metavar="SAE", help="Trained SAE: a checkpoint folder or file, or hf://...")
    return option(about_sae(command))


def sae_told() -> tuple[int | None, float | None]:
    """What --sae-k and --input-scale say."""
    told = click.get_current_context().meta
    return told.get(f"{__name__}.sae_k"), told.get(f"{__name__}.input_scale")


def device_of(device: str, deterministic: bool) -> str:
    """What --device says; with --deterministic, "auto" is the CPU, and nothing else may be given."""
    if deterministic and device not in ("auto", "cpu"):
        raise click.UsageError(f"--deterministic computes on the CPU: leave --device {device} out")
    return "cpu" if deterministic else device


def sae_of(path: str, device: str) -> SAE:
    """The SAE of a path, with what the options of `about_sae` say of it."""
    from saecodec.formats.checkpoints import load_sae

    k, scale = sae_told()
    sae = load_sae(path, device, k=k, input_scale=scale)
    scaled = sae.metadata.get("normalize_activations") == "expected_average_only_in"
    warned = click.get_current_context().meta.setdefault(f"{__name__}.warned", set())
    if scaled and "input scale" not in sae.source and path not in warned:
        warned.add(path)
        click.echo(
            f"Warning: {path} was trained on scaled rows (expected_average_only_in). If its norm_scaling_factor is not "
            "folded into the weights, give it: --input-scale F (1 if it is)",
            err=True,
        )
    return sae


codec_option = click.option(
    "-c",
    "--codec",
    metavar="CODEC",
    help="Fitted codec (.saecodec), made by 'saecodec fit'; or a .saec file, for the tables that it holds.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, metavar="D", help="Where the SAE runs: auto, cpu, cuda, cuda:1 ..."
)
deterministic_option = click.option(
    "--deterministic",
    is_flag=True,
    help="The same levels on every machine, whatever its CPU, threads and libraries: the SAE computes in exact "
    "arithmetic, on the CPU, some 3 times as slow. docs/determinism.md has what is promised.",
)
key_option = click.option(
    "--key",
    metavar="NAME",
    help="Array to read from an input that holds several: its name, column or path. Default: the only one that may be "
    "activations.",
)
force_option = click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
_GOAL_OPTIONS = (
    click.option(
        "--nmse", type=float, metavar="X", help="Spend the fewest bits for this NMSE (FVU), reached within 1 %."
    ),
    click.option("--bits", type=float, metavar="B", help="The least error at this many bits per row, within 1 %."),
    click.option(
        "--step",
        metavar="S",
        help="Quantization step: a number, or relative to the rms of |z||d| over the nonzeros: 0.4rms is the default.",
    ),
    click.option(
        "--search",
        type=click.Choice(["none", "refit", "pursuit"]),
        help="Codes to look for: none (the SAE's own activations), refit (least-squares values on its support), "
        "pursuit (another support too). Default: pursuit with --nmse or --bits, else what the codec given was fitted "
        "with, or none.",
    ),
    click.option(
        "--residual", is_flag=True, help="Add a layer that codes what the SAE leaves, for errors below its floor."
    ),
)


def goal_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options --nmse, --bits, --step, --search and --residual; `goal` makes a `Goal` of them."""
    for option in reversed(_GOAL_OPTIONS):
        command = option(command)
    return command


def goal(
    nmse: float | None,
    bits: float | None,
    step: str | None,
    search: str | None,
    residual: bool,
    prior: str = "factorized",
    fit_seconds: float | None = None,
) -> Goal:
    """The goal that the options of `goal_options` ask for."""
    from saecodec.goal import Goal

    return Goal.of(step, nmse, bits, search, residual, prior, fit_seconds)


jobs_option = click.option(
    "--jobs",
    type=click.IntRange(1),
    metavar="N",
    help="Processes that code chunks; what comes out does not depend on it. Default: one a core, where that pays.",
)
chunk_rows_option = click.option(
    "--chunk-rows",
    type=click.IntRange(1, 1 << 20),
    default=4096,
    show_default=True,
    metavar="N",
    help="Rows of a chunk: the unit of random access.",
)
seq_option = click.option(
    "--seq",
    metavar="IDS.npy",
    help="Sequence id of each row, integers: context does not cross from one sequence to another. Default with the "
    "context prior: the second-to-last dimension of the rows' array is a sequence, if it has three or more.",
)
_ANALYSIS_OPTIONS = (
    click.option(
        "--skip-first",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Leave out the first N rows of each sequence: first tokens can rule the NMSE.",
    ),
    click.option(
        "--rows-mask", metavar="MASK.npy", help="Rows to keep: bool, one a row (numpy). Others are left out altogether."
    ),
    click.option(
        "--group", metavar="LABELS.npy", help="A label of each row, integers or strings: bits and NMSE by group."
    ),
    click.option(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="Your own distortion, of a module or a file.py: function(x, x_hat), numpy float32 (rows, d), called once, "
        "gives one number, or one a row, then with an interval. Parameters rows, ids get their numbers and ids.",
    ),
    click.option(
        "--baselines/--no-baselines", default=True, help="Dense, one-hot and PCA codes, SAEBench's mdl. Default: with."
    ),
    click.option("--report", metavar="FILE.html", help="Page to write, with FILE.json beside it."),
)


def analysis_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options --skip-first, --rows-mask, --group, --metric, --baselines and --report."""
    for option in reversed(_ANALYSIS_OPTIONS):
        command = option(command)
    return command


embed_option = click.option(
    "--embed",
    type=click.Choice(["none", "tables", "decoder"]),
    help="What the file holds beside the rows. Default: tables; with -c none, and the file names the codec.",
)
weights_option = click.option(
    "--weights",
    type=click.Choice(["float32", "bfloat16", "int8"]),
    default="float32",
    show_default=True,
    help="Precision of the decoder that --embed decoder puts into the file; the rows are coded for it as it is then.",
)


class Numbers(_NumbersType):
    """NMSE values, such as 0.3,0.1."""

    name = "X,Y,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(sorted({float(text) for text in value.split(",")}, reverse=True))
        except ValueError:
            numbers = ()
        if not numbers or not all(0 < number < 1 for number in numbers):
            self.fail(f"{value!r} is not a list of NMSE values between 0 and 1, such as 0.3,0.1", param, ctx)
        return numbers


class RowRange(_ParamType):
    """A range A:B of rows; either end may be left out, negative numbers count from the end."""

    name = "A:B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | None, int | None]:
        match = re.fullmatch(r"(-?\d*):(-?\d*)", str(value))
        if not match or "-" in match.groups():
            self.fail(f"{value!r} is not a range of rows such as 1000:2000, :100 or -100:", param, ctx)
        start, stop = (int(text) if text else None for text in match.groups())
        return start, stop


def row_range(rows: tuple[int | None, int | None] | None, n_rows: int) -> tuple[int, int] | None:
    """Start and stop of a range over `n_rows` rows, the left-out and negative ends resolved."""
    if rows is None:
        return None
    start, stop = (0 if rows[0] is None else rows[0]), (n_rows if rows[1] is None else rows[1])
    return (start + n_rows if start < 0 else start), (stop + n_rows if stop < 0 else stop)


def load_pieces(
    sae: str | None, codec: str | None, device: str, deterministic: bool = False
) -> tuple[SAE | None, Codec | None]:
    """The SAE and the codec that -s and -c name, on `device`; deterministic: to encode with."""
    from saecodec.formats.codecfile import load_codec

    device = device_of(device, deterministic)
    pieces = sae_of(sae, device) if sae else None, load_codec(codec, device) if codec else None
    if not deterministic:
        return pieces
    from saecodec.exact_encoder import deterministic_pieces

    return deterministic_pieces(*pieces)


def rows_of(source: ArraySource, sae: SAE | None, codec: Codec | None = None) -> ArraySource:
    """An array as rows of the SAE that is given, or that the codec holds."""
    from saecodec.formats.array_source import rows_for

    held = sae if sae is not None else codec.sae if codec is not None else None
    return source if held is None else rows_for(source, held.width, held.row_dims)


def load_ids(seq: str | None, shape: tuple[int, ...], codec: Codec | None = None) -> NDArray[Any] | None:
    """The sequence ids that --seq names, of rows of this shape; a warning on stderr when a codec fitted on sequences is
    about to see rows without."""
    if seq is not None:
        from saecodec.formats.sequence_ids import load_sequence_ids

        return load_sequence_ids(seq, shape[:-1])
    if codec is not None and codec.info.get("context", {}).get("sequences") and len(shape) < 3:
        click.echo("Warning: the codec was fitted on sequences; give the ids of these rows too (--seq)", err=True)
    return None


def check_output_name(path: str, extension: str) -> None:
    """InputError when an output that is not an array has the name of one."""
    from saecodec.errors import InputError
    from saecodec.formats.array_sinks import EXTENSIONS

    if os.path.splitext(path)[1].lower() in EXTENSIONS:
        raise InputError(f"{path}: is the name of an array file, but what is written is a {extension} file")


def check_outputs(
    paths: Sequence[str], report: str | None, source: ArraySource, inputs: Sequence[str | None], *, force: bool
) -> None:
    """OutputError, before any work, when an output cannot have its name, is there already, is written twice, or is an
    input. report: a page, which has its JSON beside it. inputs: files, and folders whose files are inputs too."""
    from saecodec.errors import OutputError
    from saecodec.formats.atomic import check_output_path

    outputs = list(paths)
    for path in paths:
        check_output_path(path, force=force)
    if report:
        from saecodec.formats.page import check_page_path

        outputs += check_page_path(report, force=force)
    read = [os.path.realpath(path) for path in inputs if path is not None]
    seen: set[str] = set()
    for path in outputs:
        real = os.path.realpath(path)
        held = os.path.exists(path) and any(real == other or real.startswith(other + os.sep) for other in read)
        if held or source.lies_in(path):
            raise OutputError(f"{path}: is an input; choose another output")
        if os.path.realpath(path) in seen:
            raise OutputError(f"{path}: would be written twice (a page has its JSON beside it); choose another name")
        seen.add(os.path.realpath(path))


def file_bytes(path: str | None) -> int:
    """Size of a file, by path or URL, 0 for none."""
    from saecodec.formats.byte_source import size_of

    return size_of(path) if path else 0
