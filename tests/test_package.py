"""`import saecodec` is light, its surface is small, and its examples hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import saecodec
import saecodec.peers
import saecodec.priors

PUBLIC = [
    *("Codec", "Codes", "LatentCodec", "SAE", "SaecodecError"),
    *("create", "deterministic", "load_codec", "load_sae", "open", "save_codec", "with_precision"),
]


def child(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "constriction", "msgpack", "click", "zstandard", "safetensors", "rich")
    assert child(f"import sys, saecodec; dir(saecodec); print([m for m in {heavy!r} if m in sys.modules])") == "[]"


def test_codes_are_coded_without_torch() -> None:
    code = "import sys; from saecodec import Codes, LatentCodec; print('torch' in sys.modules)"
    assert child(code) == "False"


def test_its_names_are_these() -> None:
    assert dir(saecodec) == sorted([*PUBLIC, "__version__"])
    assert sorted(saecodec.__all__) == dir(saecodec)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_is_there(name: str) -> None:
    assert callable(getattr(saecodec, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'saecodec' has no attribute 'encode'"):
        saecodec.encode  # noqa: B018
    assert not hasattr(saecodec, "utils")


CORE = [
    module.name
    for package in (saecodec, saecodec.peers, saecodec.priors)
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
    if not module.ispkg
]


@pytest.mark.parametrize("name", CORE)
def test_the_examples_of_a_module_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_core_imports_neither_formats_nor_cli() -> None:
    code = f"import sys, importlib\nfor name in {CORE!r}: importlib.import_module(name)\n"
    code += "print([m for m in sys.modules if m.startswith(('saecodec.formats', 'saecodec.cli'))])"
    assert child(code) == "[]"
