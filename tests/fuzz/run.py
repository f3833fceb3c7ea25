"""Fuzz targets under coverage guidance: `python tests/fuzz/run.py [TARGET ...] --minutes 10`; README.md says more.

Each target runs in a process of its own until its time is up or something is found, which is then in build/fuzz/TARGET.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import random
import re
import resource
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "fuzz"
NAMES = ("container", "codec", "chunk", "checkpoint", "zarr", "manifest", "arrays")
SECONDS = 5  # for one input
MEMORY = 1024  # MiB, of the process, and that one input may take beyond what the process has
_LARGEST_INPUT = 1 << 14
_SKIPPED = re.compile(r"saecodec\.(cli|peers)|.*(_ray|plot)$")  # no part of reading, and slow to import


def main() -> int:
    """Run the targets, one after the other or `--jobs` at a time; 1 if one of them found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--minutes", type=float, default=10, help="for each target")
    parser.add_argument("--jobs", type=int, default=1, help="targets that run at the same time")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; 0: another one every time")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in this process
    options = parser.parse_args()
    unknown = set(options.targets) - set(NAMES)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(NAMES)}")
    if options.here:
        _fuzz(options.targets[0], options.minutes, options.seed)
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(lambda name: _in_process(name, options), options.targets or NAMES))
    return int(any(codes))


def _in_process(name: str, options: argparse.Namespace) -> int:
    """Run a target in another process, and print how it ended; returns its exit status."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, name, "--here", f"--minutes={options.minutes}", f"--seed={options.seed}"]
    with open(folder / "log.txt", "wb") as log:
        found = subprocess.run(command, stdout=log, stderr=log, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    text = (folder / "log.txt").read_text(errors="replace")
    runs, covered = (re.findall(pattern, text, re.MULTILINE) for pattern in (r"^#(\d+)", r"cov: (\d+)"))
    memory, base = (re.findall(pattern, text) for pattern in (r"peak_rss_mb:\s+(\d+)", r"baseline: (\d+) MiB"))
    last = [(values or ["?"])[-1] for values in (runs, covered, memory, base)]
    state = "nothing found" if found.returncode == 0 else f"FOUND SOMETHING: see {folder.relative_to(ROOT)}/log.txt"
    print("{:11} {:>9} runs, coverage {:>6}, {:>5} MiB ({} without an input)".format(name, *last) + f": {state}")
    return found.returncode


def _fuzz(name: str, minutes: float, seed: int) -> None:
    """Fuzz a target in this process; does not return."""
    import atheris

    sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("fuzz", "golden", "formats")]
    with atheris.instrument_imports(include=["saecodec"]):
        import saecodec

        for module in pkgutil.walk_packages(saecodec.__path__, "saecodec."):
            if not _SKIPPED.match(module.name):
                with suppress(ImportError):  # of an extra that is not there
                    importlib.import_module(module.name)
        import targets
    import corpus
    import mutations

    warnings.simplefilter("error")  # as in the tests
    target, n_selectors = targets.TARGETS[name], targets.SELECTORS.get(name, 0)
    folder = BUILD / name / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate([*corpus.corpus(name), *corpus.found(name).values()]):
        (folder / f"seed-{i:03}").write_bytes(data)
        target(data)  # what is made once is made before memory is limited

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        guided = rng.random() < 0.5

        def change(part: bytes, rng: random.Random) -> bytes:
            return bytes(atheris.Mutate(part, len(part) + 64)) if guided and part else mutations.havoc(part, rng)

        return mutations.mutate_behind(n_selectors, data, rng, change)[:max_size]

    print(f"baseline: {_resident()} MiB", flush=True)
    limit_memory()
    arguments = [f"-max_total_time={int(60 * minutes)}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY}"]
    arguments += [f"-artifact_prefix={BUILD / name}/", f"-max_len={_LARGEST_INPUT}", "-print_final_stats=1"]
    arguments += [f"-seed={seed}", "-len_control=0", str(folder)]
    atheris.Setup([sys.argv[0], *arguments], target, custom_mutator=mutator)
    atheris.Fuzz()


def limit_memory() -> None:
    """Let allocations fail that, untouched or not, go `MEMORY` beyond what the process has now."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    data = int(re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * data + (MEMORY << 20), hard))


def _resident() -> int:
    """MiB of this process in memory."""
    return int(re.findall(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) >> 10


if __name__ == "__main__":
    sys.exit(main())
