"""A short run of every fuzz target without guidance, the same every time, and what was found by longer ones."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import corpus
import pytest
import run
import slots
import targets
from frame_mutations import joined, taken_apart, with_index
from golden_codecs import GOLDEN
from mutations import mutate, mutate_behind

from saecodec.codes import Codes
from saecodec.errors import SaecodecError
from saecodec.formats.codecfile import load_codec
from saecodec.formats.decoding import verify_file
from saecodec.formats.header import Header
from saecodec.formats.saec import open_saec
from saecodec.frames import frames

RUNS = {"container": 100, "codec": 300, "chunk": 800, "checkpoint": 600, "zarr": 400, "manifest": 100, "arrays": 500}
FOUND = [(target, name) for target in targets.TARGETS for name in corpus.found(target)]


def _has_zarr() -> bool:
    """zarr is there, and can be imported: not where zfpy is installed."""
    names = {distribution.name for distribution in importlib.metadata.distributions()}
    return "zarr" in names and "zfpy" not in names


@pytest.fixture(params=sorted(targets.TARGETS))
def target(request: pytest.FixtureRequest) -> str:
    if request.param == "zarr" and not _has_zarr():
        pytest.skip("there is no zarr")
    return str(request.param)


def mutants(target: str, n: int, seed: int = 0) -> Iterator[bytes]:
    """Inputs one to three mutations away from the seeds."""
    seeds = corpus.corpus(target)
    for i in range(n):
        rng = random.Random(1_000_000 * seed + i)
        data = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = mutate_behind(targets.SELECTORS.get(target, 0), data, rng)
        yield data


def test_mutated_inputs_are_read_or_refused_in_time(target: str) -> None:
    for data in mutants(target, RUNS[target]):
        start = time.monotonic()
        targets.TARGETS[target](data)
        assert time.monotonic() - start < run.SECONDS


@pytest.mark.parametrize("target, name", FOUND)
def test_what_once_failed_is_read_or_refused(target: str, name: str) -> None:
    if target == "zarr" and not _has_zarr():
        pytest.skip("there is no zarr")
    targets.TARGETS[target](corpus.found(target)[name])


def test_the_targets_are_those_that_run_knows_and_found_inputs_belong_to_one() -> None:
    assert tuple(targets.TARGETS) == run.NAMES
    assert {path.name for path in corpus.FOUND.iterdir()} <= set(targets.TARGETS)


def test_slots_have_keys_of_their_own() -> None:
    for choices in (slots.checkpoints(), slots.arrays()):
        assert len({slot.key for slot in choices}) == len(choices) > 10


def test_every_seed_is_an_input_that_is_fine(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target whose seeds were refused would look at nothing but refusals."""
    errors: Counter[str] = Counter()

    def counted(read):
        try:
            return read()
        except SaecodecError as error:
            errors[str(error)] += 1
            return None

    monkeypatch.setattr(targets, "refused", counted)
    seeds = corpus.corpus(target)
    for data in seeds:
        targets.TARGETS[target](data)
    expected = {"manifest": 2, "checkpoint": 2}  # manifests cut in half; SAELens' "temporal", which has no decoder
    assert sum(errors.values()) <= expected.get(target, 0), errors


def test_most_mutated_files_get_past_their_checksums_and_many_past_their_headers() -> None:
    whole = parsed = opened = 0
    for data in mutants("container", 300):
        try:
            parts = list(frames(data[8:], "mutant"))
            whole += 1
            Header.from_bytes(parts[0][1], "mutant")
            parsed += 1
            with open_saec(targets.put("reach.saec", data)) as file:
                _ = file.codec
            opened += 1
        except (SaecodecError, IndexError):
            pass
    assert (whole > 200, parsed > 150, opened > 60) == (True, True, True), (whole, parsed, opened)


def test_mutated_files_that_are_read_have_the_levels_that_the_reference_decoder_reads(reference: ModuleType) -> None:
    """Which may refuse more, or less: streams that no encoder makes, and what only an SAE contradicts."""
    seeds = [(GOLDEN / f"{name}.saec").read_bytes() for name in ("latents_step", "row_norm", "weights_int8")]
    compared = 0
    for i in range(200):
        rng = random.Random(i)
        path = targets.put("mutant.saec", mutate(rng.choice(seeds), rng))
        codes = targets.refused(lambda path=path: codes_of(path))
        if codes is None:
            continue
        with suppress(reference.Refused):
            expected = reference.read_saec(path.read_bytes()).rows
            found = [dict(zip(codes.latents[a:b], codes.levels[a:b], strict=True)) for a, b in pairwise(codes.indptr)]
            assert found == expected
            compared += 1
    assert compared > 10


def codes_of(path: Path) -> Codes:
    with open_saec(path, device="cpu") as file:
        verify_file(file)
        return Codes.concatenate(file.codes(), file.codec.latents.prior.n_latents)


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The decoder that is written from docs/format.md alone."""
    spec = importlib.util.spec_from_file_location(
        "reference_of_mutants", Path(__file__).parents[1] / "reference_decoder.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_many_mutated_codecs_load() -> None:
    paths = (targets.put("reach.saecodec", data) for data in mutants("codec", 300))
    loaded = [targets.refused(lambda path=path: load_codec(path, "cpu")) for path in paths]
    assert 300 - loaded.count(None) > 25


def test_frames_that_are_put_together_again_are_the_file() -> None:
    for data in (*corpus.corpus("container"), *corpus.corpus("codec")):
        magic, parts = taken_apart(data) or (b"", [])
        assert joined(magic, parts) == data
        assert joined(magic, with_index(magic, parts, anew=False)) == data


def test_mutations_depend_on_nothing_but_the_input_and_the_seed(target: str) -> None:
    assert list(mutants(target, 30)) == list(mutants(target, 30))
    assert len(set(mutants(target, 30))) > 25
