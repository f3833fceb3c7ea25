"""Libraries that only some files need: imported when such a file comes, their errors turned into ours."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from saecodec.errors import InputError, SaecodecError


def load_library(name: str, extra: str, path: str) -> Any:
    """The module `name`, for `path`; InputError names the extra of saecodec that installs it."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken install raises nearly anything
        library = name.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name in (name, library):
            found = "is not installed"
        else:
            found = f"is installed, but fails when it is imported ({type(error).__name__}: {error})"
        way_out = f"pip install 'saecodec[{extra}]'"
        raise InputError(f"{path}: needs {library}, which {found}: {way_out}") from error


@contextmanager
def library_errors(path: str) -> Iterator[None]:
    """Turn what a library raises over a bad file, which is nearly anything, into an InputError that names the file."""
    try:
        yield
    except SaecodecError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise InputError(
            f"{path}: cannot be read ({reason[:300]}); the file may be truncated, corrupt or of another kind"
        ) from error
