"""Write docs/compatibility.md: what the last reader of each version does with every golden file.

`python docs/make_compatibility.py`, in a clone with its history. Each reader is of the commit before the one that
brought the next version, and runs with the libraries that are installed.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "tests" / "golden"
PAGE = HERE / "compatibility.md"

READERS = {
    "1.0": "1edd0c7^",
    "1.1": "ef8af4c^",
    "1.2": "49e8bfa^",
    "1.4": "c87355b^",
    "1.5": "5f9704f^",
    "now": "HEAD",
}
"""Version of the format: the last commit that knew no later one. No commit knows 1.3 as it is and not 1.4."""

READER = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
from saecodec.errors import SaecodecError
from saecodec.formats.codecfile import load_codec
from saecodec.formats.saec import open_saec

out = {}
for path in sorted(Path(sys.argv[1]).glob("*.saec")):
    wanted = json.loads(path.with_suffix(".json").read_text())["levels"]["sha256"]
    try:
        beside = path.with_suffix(".saecodec")
        codec = load_codec(beside) if beside.exists() else None
        with open_saec(path, codec=codec) as file:
            levels = [codes.to_dense() for codes in file.codes()]
            rows = np.concatenate([np.zeros((0, file.codec.latents.prior.n_latents), np.int32), *levels])
        found = hashlib.sha256(np.ascontiguousarray(rows, "<i4").tobytes()).hexdigest()
        out[path.name] = "reads" if found == wanted else "OTHER LEVELS"
    except SaecodecError as error:
        out[path.name] = f"{type(error).__name__}: {error}".replace(sys.argv[1] + "/", "")
    except Exception as error:
        out[path.name] = f"CRASHES: {error!r}"
print(json.dumps(out))
"""


def unpack(commit: str, folder: Path) -> None:
    """The package of a commit, laid out as it is installed."""
    archive = ["git", "archive", commit, "saecodec", "formats", "cli"]
    done = subprocess.run(archive, cwd=HERE.parent, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        tar.extractall(folder, filter="data")
    for name in ("formats", "cli"):
        (folder / name).rename(folder / "saecodec" / name)


def results(commit: str) -> dict[str, str]:
    """What the reader of a commit does with each golden file."""
    with tempfile.TemporaryDirectory() as folder:
        unpack(commit, Path(folder))
        child = [sys.executable, "-c", READER, str(GOLDEN)]
        done = subprocess.run(child, cwd=folder, env={"PYTHONPATH": folder}, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def cell(text: str) -> str:
    """`reads`, or what stands in the way, in a few words."""
    if not text.startswith("UnsupportedError"):
        return text
    if "frame " in text:  # of a codec file that is read first
        return "refuses: frame " + text.split("frame ")[1].split(" is needed")[0].strip("'")
    return "refuses: " + text.split("needs ")[1].split(", unknown")[0]


def main() -> None:
    """Run all readers and write the page."""
    found = {version: results(commit) for version, commit in READERS.items()}
    names = sorted(next(iter(found.values())))
    lines = [
        "# Old readers and new files",
        "",
        "What the last reader of each version of the format does with every golden file: it decodes the levels of the",
        "file's `.json`, or refuses it by the name of what it does not know. Written by",
        "`python docs/make_compatibility.py`. There is no column 1.3: no commit reads that version and not 1.4.",
        "",
        "| file | " + " | ".join(found) + " |",
        "|---" * (len(found) + 1) + "|",
        *(f"| `{name}` | " + " | ".join(cell(reader[name]) for reader in found.values()) + " |" for name in names),
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if any(text.startswith(("OTHER", "CRASHES")) for reader in found.values() for text in reader.values()):
        sys.exit("a reader decodes other levels, or crashes")


if __name__ == "__main__":
    main()
