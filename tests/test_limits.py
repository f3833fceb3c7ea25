import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import saecodec
from saecodec import SAE
from saecodec.errors import InputError, LimitError
from saecodec.limits import FREE_BYTES, VARIABLE, Limits, check_expansion, check_limit, limited, limits, set_limits


def test_the_environment_says_limits_in_powers_of_1024() -> None:
    found = Limits.parse(" latents = 16M ,weights_bytes=64g,expansion=1000 ")
    assert (found.latents, found.weights_bytes, found.expansion) == (1 << 24, 1 << 36, 1000)
    assert found.width == Limits().width
    assert Limits.parse(str(found)) == found
    assert Limits.parse("") == Limits()


@pytest.mark.parametrize("text", ["latents", "rows=1", "latents=x", "latents=-1", "latents=0", "latents=²", "width=G"])
def test_what_says_no_limit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"{VARIABLE} has '{text}'; expected name=value"):
        Limits.parse(text)


def test_limits_hold_in_a_block_and_for_processes_that_it_starts() -> None:
    code = "from saecodec.limits import limits; print(limits().latents)"
    with limited(latents=7):
        with limited(width=8):
            assert (limits().latents, limits().width) == (7, 8)
        assert limits().width == Limits().width
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"7\n"
    assert VARIABLE not in os.environ
    with pytest.raises(InputError, match="'rows' is no limit: those are latents, width"), limited(rows=1):
        pass
    with pytest.raises(InputError, match=r"the limit width is a positive whole number below 10\^18, got -1"):
        set_limits(width=-1)
    assert VARIABLE not in os.environ


def test_set_limits_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "width=9")
    set_limits(latents=5)
    assert (limits().latents, limits().width) == (5, 9)


def test_what_exceeds_a_limit_is_refused_with_the_way_out() -> None:
    check_limit("latents", 1 << 22, "a.saec")
    told = (
        r"a.saec: 4,194,305 latents are more than the limit of 4,194,304; if you trust it, set SAECODEC_LIMITS=latents="
    )
    with pytest.raises(LimitError, match=told) as error:
        check_limit("latents", (1 << 22) + 1, "a.saec")
    way_out = str(error.value).split("SAECODEC_LIMITS=")[1].split()[0]
    with limited(latents=Limits.parse(way_out).latents):
        check_limit("latents", (1 << 22) + 1, "a.saec")


def test_the_way_out_keeps_the_limits_that_were_set() -> None:
    with limited(latents=100, width=10), pytest.raises(LimitError, match="SAECODEC_LIMITS=latents=100,width=384 "):
        check_limit("width", 384, "a.saec")
    with pytest.raises(InputError, match="has 'latents=2'; expected name=value: 'latents' stands there twice"):
        Limits.parse("latents=1,latents=2")


def test_few_bytes_may_stand_for_much_only_when_it_is_little() -> None:
    check_expansion(FREE_BYTES, 1, "x")
    check_expansion(256 << 20, 1 << 20, "x")
    with pytest.raises(LimitError, match="x: 1,048,576 bytes stand for 268,435,457") as error:
        check_expansion((256 << 20) + 1, 1 << 20, "x")
    assert "expansion=257" in str(error.value)
    with limited(expansion=257):
        check_expansion((256 << 20) + 1, 1 << 20, "x")
    with pytest.raises(LimitError, match=f"expansion={FREE_BYTES + 1}"):
        check_expansion(FREE_BYTES + 1, 0, "x")


def test_rows_of_all_chunks_together_are_one_array(make_sae: Callable[..., SAE]) -> None:
    sae, x = make_sae("relu"), np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    codec = saecodec.Codec.fit(sae, x)
    data = codec.encode(x, chunk_rows=16)
    with limited(array_bytes=x.nbytes):
        assert codec.decode(data).shape == x.shape
    with limited(array_bytes=x.nbytes - 1), pytest.raises(LimitError, match="bytes of an array in memory"):
        codec.decode(data)


def test_the_context_prior_says_before_it_is_trained_that_chunks_have_too_many_cells(
    make_sae: Callable[..., SAE],
) -> None:
    x = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    with limited(walk_cells=1000), pytest.raises(LimitError, match="--chunk-rows") as error:
        saecodec.Codec.fit(make_sae("relu"), x, prior="context", fit_seconds=400.0)
    assert "walk_cells=" in str(error.value)
