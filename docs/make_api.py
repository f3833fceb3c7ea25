"""Write docs/api.md: the public names with their parameters, and the commands with their options.

`python docs/make_api.py`; a test fails when the page is not what this writes.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import click

import saecodec
from saecodec import errors

PAGE = Path(__file__).with_name("api.md")

LIBRARY = {
    "Arrays and files": [
        "saecodec.goal.Goal",
        "saecodec.formats.arrays.open_array",
        "saecodec.formats.encoding.encode_array",
        "saecodec.formats.encoding.fit_array",
        "saecodec.formats.decoding.decode_file",
        "saecodec.formats.decoding.verify_file",
        "saecodec.formats.saec.open_saec",
        "saecodec.formats.saec_source.open_rows",
        "saecodec.formats.encoding_latents.encode_latents",
        "saecodec.formats.latent_source.open_latents",
        "saecodec.formats.concatenating.concatenate_files",
        "saecodec.formats.recovering.recover_file",
        "saecodec.formats.dataset.SaecDataset",
        "saecodec.formats.damage.Losses",
        "saecodec.limits.Limits",
        "saecodec.limits.limited",
        "saecodec.limits.set_limits",
    ],
    "Measuring": [
        "saecodec.formats.measuring.measure_array",
        "saecodec.formats.comparing.Candidate",
        "saecodec.formats.comparing.compare",
        "saecodec.formats.rate_curve.Setting",
        "saecodec.formats.page.write_page",
    ],
    "Training": [
        "saecodec.training.Aim",
        "saecodec.training.Settings",
        "saecodec.formats.training.Run",
        "saecodec.formats.training.train_array",
        "saecodec.formats.sweeping.grid_of",
        "saecodec.formats.sweeping.sweep",
        "saecodec.formats.saelens_writer.write_saelens",
    ],
    "Folders and zarr": [
        "saecodec.formats.folders.run",
        "saecodec.formats.folder_work.EncodeFolder",
        "saecodec.formats.folder_work.DecodeFolder",
        "saecodec.formats.zarr.SaeCodec",
        "saecodec.formats.zarr.register_codec",
    ],
}
MEMBERS = {
    "Codec": "fit encode decode codes chunks quantize reconstruct with_sae to_bytes from_bytes "
    "codec_id decoder_id info latents quantizer residual sae side",
    "Codes": "check columns concatenate from_dense indptr latents levels n_latents n_rows nbytes nnz rows take "
    "to_dense",
    "LatentCodec": "fit pack unpack unpack_some to_bytes from_bytes prior",
    "SAE": "encode decode reconstruct to decoder_id sae_id width n_latents norms w_dec b_dec encoder normalization "
    "architecture name source metadata",
    "open": "close dtype feature features levels n_rows ndim shape size take take_codes top",
    "create": "append append_array close discard flush n_rows shape",
}
"""Members of what the names of `saecodec` are, or give."""
WRITER = "saecodec.formats.store_writer.StoreWriter"
_TITLES = {"open": "What `open` gives", "create": "What `create` gives"}

INTRODUCTION = """\
# Public names

What is listed here is the interface. Everything else, whatever its name, may change in any release. The page is written
by `docs/make_api.py`, and a test fails when it is not what the code says.

From version 1.0 on: a name, a parameter or an option that is listed is not removed, and changes its meaning or its
default only, after one minor release in which its use warns (`DeprecationWarning`; a line on stderr for options). New
parameters have defaults; they, new options and new keys in JSON outputs may appear in any minor release. Exit statuses
are those of each command's `--help`. Before 1.0 a minor release may do all of this at once, and CHANGELOG.md says so.
Files are another promise, which has held since 0.1: [format.md](format.md), "Versions".
"""


def found(name: str) -> Any:
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def parameters(value: Any) -> str:
    """Its parameters, without annotations: `(x, step=None, *, nmse=None)`."""
    signature = inspect.signature(value)
    plain = [part.replace(annotation=inspect.Parameter.empty) for part in signature.parameters.values()]
    plain = [part for part in plain if part.name not in ("self", "cls")]
    return str(inspect.Signature([part.replace(default=_shown(part.default)) for part in plain]))


class _Text(str):
    """A default that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _shown(default: Any) -> Any:
    """A default as it is written; of an object that has no literal, dots."""
    if default is inspect.Parameter.empty or isinstance(default, int | float | str | tuple | list | dict | None):
        return default
    return _Text("...")


def members(name: str) -> list[str]:
    """Lines of the members of a name."""
    value = found(WRITER) if name == "create" else getattr(saecodec, name)
    out = []
    for key in sorted(MEMBERS[name].split()):
        member = inspect.getattr_static(value, key, None)  # a field of a dataclass need not be there
        assert member is not None or key in value.__dataclass_fields__, f"{name}.{key}"
        called = isinstance(member, classmethod | staticmethod) or inspect.isfunction(member)
        out.append(f".{key}" + (parameters(getattr(value, key)) if called else ""))
    return out


def options(command: click.Command) -> list[str]:
    """Its arguments and options."""
    taken = [part for part in command.params if isinstance(part, click.Argument)]
    given = [part for part in command.params if isinstance(part, click.Option)]
    out = [str(part.make_metavar(click.Context(command))) for part in taken]
    return out + ["/".join([*part.opts, *part.secondary_opts]) for part in given]


def block(lines: list[str]) -> str:
    """Lines as they are."""
    return "```text\n" + "\n".join(lines) + "\n```\n"


def page() -> str:
    """The whole page."""
    from saecodec.cli.app import app

    parts = [INTRODUCTION, "## `saecodec`\n"]
    named = [name for name in saecodec.__all__ if not name.startswith("_")]
    parts.append(block([f"saecodec.{name}{_call(getattr(saecodec, name))}" for name in named]))
    for name in MEMBERS:
        parts += [f"### {_TITLES.get(name, f'`{name}`')}\n", block(members(name))]
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)]
    parts += ["## Errors, in `saecodec.errors`\n", block([f"{e.__name__}({e.__base__.__name__})" for e in kinds])]
    for title, names in LIBRARY.items():
        parts += [f"## {title}\n", block([name + _call(found(name)) for name in names])]
    parts.append("## Commands\n")
    parts.append(block([" ".join(["saecodec", name, *options(c)]) for name, c in sorted(app.commands.items())]))
    return "\n".join(parts)


def _call(value: Any) -> str:
    if inspect.isclass(value) and issubclass(value, Exception):
        return ""
    return parameters(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
