"""Commands that write, and the process in which faults happen to them."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parent.parent / "fixtures" / "mnist"
SAE = str(FIXTURES / "sae")

Answer = dict[str, Any]
_LIBRARIES = {"zarr": "x.zarr", "pyarrow": "x.parquet", "matplotlib": ".svg"}
"""By what output they are needed."""


@dataclass(frozen=True)
class Command:
    """A command whose words may name files of `files` as {name}. outputs: what it writes. existing: files of `files`
    that it changes, by name."""

    words: str
    outputs: tuple[str, ...]
    existing: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.outputs[0]


def words(command: str, files: dict[str, str]) -> list[str]:
    """The words of a command, in which {name} stands for a file."""
    return [files[word[1:-1]] if word[0] == "{" else word for word in command.split()]


def _decode(output: str) -> Command:
    return Command(f"decode {{a.saec}} -o {output}", (output,))


COMMANDS = [
    Command("encode {rows.npy} -s {sae} --chunk-rows 20 --embed decoder -o out.saec", ("out.saec",)),
    Command("encode --latents {z.npz} --chunk-rows 20 -o z.saec", ("z.saec",)),
    Command("encode {more.npy} -s {sae} --append -o grown.saec", ("grown.saec",), {"grown.saec": "a.saec"}),
    Command("fit {sae} {rows.npy} --embed-sae -o out.saecodec", ("out.saecodec",)),
    *map(_decode, ("x.npy", "x.npz", "x.safetensors", "x.pt", "x.parquet", "x.zarr")),
    Command("export {a.saec} --to npy -o exported.npy", ("exported.npy",)),
    *(Command(f"decode --latents {{a.saec}} -o {name}", (name,)) for name in ("z.npz", "z.pt", "cache")),
    Command("recover {torn.saec} -o whole.saec", ("whole.saec",)),
    Command("cat {a.saec} {a.saec} -o joined.saec", ("joined.saec",)),
    Command("compare {rows.npy} {sae} --nmse 0.3 --no-baselines --csv table.csv", ("table.csv",)),
    Command("compare {rows.npy} {sae} --nmse 0.3 --no-baselines --plot rd.svg", ("rd.svg",)),
    Command("compare {rows.npy} {sae} --nmse 0.3 --no-baselines --report all.html", ("all.html", "all.json")),
    Command("measure {rows.npy} -s {sae} --no-baselines --report page.html", ("page.html", "page.json")),
    Command("measure {rows.npy} -s {sae} --no-baselines --arrays rows.npz", ("rows.npz",)),
    Command("train {rows.npy} -o trained --width 8 --k 2 --tokens 200 --batch 100", ("trained",)),
    Command("bench {rows.npy} -s {sae} --modes none --peers int --targets 0.3 --plot bench.svg", ("bench.svg",)),
]
"""The commands that write a thing, or things beside each other."""
FOLDERS = [
    Command("encode-dir {shards} coded -c {c.saecodec} --jobs 1 --chunk-rows 20", ("coded",)),
    Command("decode-dir {coded} decoded -c {c.saecodec} --to npy --jobs 1", ("decoded",)),
]
"""Those that write shard by shard."""
BY_OUTPUT = {command.outputs[0]: command for command in COMMANDS}


class Machine:
    """Runs commands; see zygote.py for what can happen to them."""

    def __init__(self, process: subprocess.Popen[str], files: dict[str, str], folder: Path) -> None:
        self.files = files
        self._process, self._folder = process, folder
        self._runs = 0
        self._normal: dict[str, dict[str, str]] = {}

    def run(self, command: str | list[str], **faults: Any) -> Answer:
        """The answer of zygote.py to a request: words of a command in one string, or as they are."""
        for library, output in _LIBRARIES.items():
            if output in str(command) and find_spec(library) is None:
                pytest.skip(f"needs {library}")
        self._runs += 1
        disk, told = (self._folder / f"{name}-{self._runs}" for name in ("disk", "told"))
        disk.mkdir()
        told.mkdir()
        request = faults | {"disk": str(disk), "told": str(told)}
        request["command"] = command if isinstance(command, list) else words(command, self.files)
        request["existing"] = {name: self.files[held] for name, held in faults.get("existing", {}).items()}
        if "second" in faults:
            request["second"] = words(faults["second"], self.files)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: Answer = json.loads(self._process.stdout.readline())
        if "skip" in answer:
            # Where they are said to run, faults that do not happen must not pass for faults that do no harm.
            (pytest.fail if any(map(os.environ.get, ("CI", "SAECODEC_FAULTS"))) else pytest.skip)(answer["skip"])
        assert "error" not in answer, answer["error"]
        return answer

    def normal(self, command: Command) -> dict[str, str]:
        """name -> content in hexadecimal of what a command writes when nothing goes wrong."""
        if command.words not in self._normal:
            answer = self.run(command.words, existing=command.existing)
            assert answer["status"] == 0, answer
            self._normal[command.words] = answer["files"]
        return self._normal[command.words]
