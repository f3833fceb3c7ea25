"""A distortion of the user's own, such as the loss that a model recovers: `--metric module:function`.

The function takes all rows and what a file gives for them, float32 (T, d) each, and returns a number, or one for each
row, (T,), whose mean is then told with an interval. A third parameter `rows` gets the rows' numbers in the input, int64
(T,), and one `ids` their sequence ids, (T,), or None: rows may be left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from saecodec.bootstrap import interval
from saecodec.errors import InputError
from saecodec.formats.point import Ground
from saecodec.formats.read_back import Decoded

Function = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Metric:
    """A named distortion."""

    name: str
    function: Function

    @property
    def asks(self) -> set[str]:
        """Names of the function's parameters behind those that get rows: these may have any name."""
        try:
            found = inspect.signature(self.function).parameters.values()
            return {one.name for i, one in enumerate(found) if one.kind is one.KEYWORD_ONLY or i > 1}
        except (TypeError, ValueError):  # a builtin may not tell
            return set()

    @classmethod
    def load(cls, name: str) -> Metric:
        """From "module:function" or "path/to/file.py:function"; InputError when there is none."""
        place, _, function = name.rpartition(":")
        if not place or not function:
            raise InputError(f"metric {name!r}: expected module:function, or file.py:function")
        try:
            module = _module(place)
        except Exception as error:  # it is the user's
            raise InputError(f"metric {name!r}: cannot be imported ({type(error).__name__}: {error})") from error
        found = getattr(module, function, None)
        if not callable(found):
            raise InputError(f"metric {name!r}: {place} has no function {function!r}")
        return cls(name, found)

    def watch(self, ground: Ground) -> Watch:
        """Collects what a file gives, for one evaluation."""
        return Watch(self, ground)


class Watch:
    """The rows of a file as they are decoded; holds all of them, float32, twice. name: of the metric."""

    def __init__(self, metric: Metric, ground: Ground) -> None:
        self._metric, self._ground, self.name = metric, ground, metric.name
        self._x: list[Any] = []
        self._x_hat: list[Any] = []

    def add(self, chunk: Decoded) -> None:
        """Add a chunk."""
        self._x.append(chunk.x)
        self._x_hat.append(chunk.x_hat)

    def facts(self) -> dict[str, Any]:
        """The metric of all rows, its interval where it is one number a row; None without rows. InputError when it is
        neither one number nor one a row."""
        n_rows = len(self._ground.spread)
        if not n_rows:
            return {"metric": None, "metric_interval": None}
        known = {"rows": self._ground.numbers, "ids": self._ground.ids}
        told = {name: value for name, value in known.items() if name in self._metric.asks}
        try:
            given = self._metric.function(np.concatenate(self._x), np.concatenate(self._x_hat), **told)
        except Exception as error:  # it is the user's
            raise InputError(f"metric {self._metric.name!r}: failed ({type(error).__name__}: {error})") from error
        try:
            found = np.asarray(given, np.float64)
        except Exception as error:  # of a tensor with a gradient, say
            raise InputError(f"metric {self._metric.name!r}: gave a {type(given).__name__}, not numbers") from error
        if found.shape not in ((), (n_rows,)) or not np.isfinite(found).all():
            raise InputError(
                f"metric {self._metric.name!r}: gave an array of shape {found.shape}, or values that are not finite; "
                f"expected one finite number, or one for each of {n_rows} rows"
            )
        if found.shape == ():
            return {"metric": float(found), "metric_interval": None}
        return {"metric": float(found.mean()), "metric_interval": interval(self._ground.means(found)[1:])}


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        if place.startswith("."):
            raise ImportError("the name is relative")
        sys.path.insert(0, os.getcwd())  # as python -m has it
        try:
            return importlib.import_module(place)
        finally:
            sys.path.remove(os.getcwd())
    spec = importlib.util.spec_from_file_location("saecodec_metric", place)
    if spec is None or spec.loader is None or not os.path.exists(place):
        raise ImportError(f"no such file: {place}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
