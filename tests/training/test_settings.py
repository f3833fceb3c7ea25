"""What a training may be asked for, and its units."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saecodec.errors import InputError
from saecodec.training import ARCHITECTURES, Aim, Settings
from saecodec.training.scaling import Scaling

whole = st.integers(1, 10**6)


@st.composite
def possible(draw: st.DrawFn) -> Settings:
    n_latents = draw(st.integers(1, 10**6))
    rate = draw(st.booleans())
    architecture = "jumprelu" if rate else draw(st.sampled_from(ARCHITECTURES))
    l0 = st.builds(Aim, st.just("l0"), st.integers(1, n_latents).map(float))
    others = st.builds(Aim, st.just("nmse"), st.floats(0.001, 0.999)) | st.builds(
        Aim, st.just("bits"), st.floats(1, 1e4)
    )
    may_nest = n_latents > 1 and not rate and architecture != "topk"
    nested = draw(st.sets(st.integers(1, n_latents - 1), max_size=3)) if may_nest else set()
    batch = draw(whole)
    return Settings(
        n_latents,
        architecture,
        "rate" if rate else "sparsity",
        draw(others if rate else l0 | others),
        batch * draw(st.integers(2 if architecture == "jumprelu" else 1, 10**6)),
        batch,
        draw(st.none() | st.floats(1e-6, 1)),
        tuple(sorted(nested)),
        draw(st.integers(0, (1 << 63) - 1)),
    )


@given(possible())
def test_json_tells_settings_in_full(settings: Settings) -> None:
    told = json.loads(json.dumps(settings.to_json()))
    again = Settings(**told | {"aim": Aim(**told["aim"]), "nested": tuple(told["nested"])})
    assert again == settings
    assert settings.n_steps * settings.batch == settings.tokens


@pytest.mark.parametrize(
    "change, message",
    [
        ({"architecture": "vanilla"}, "expected one of batchtopk"),
        ({"objective": "bits"}, "expected one of sparsity, rate"),
        ({"objective": "rate", "architecture": "topk"}, "which topk ones are not"),
        ({"objective": "rate", "architecture": "jumprelu"}, "not at a k"),
        ({"objective": "rate", "architecture": "jumprelu", "aim": Aim("bits", 9), "nested": (4,)}, "no nested widths"),
        ({"architecture": "topk", "nested": (4,)}, "topk trains no nested widths"),
        ({"architecture": "jumprelu", "tokens": 19, "batch": 10}, "needs two steps"),
        ({"n_latents": 0}, "0 latents"),
        ({"tokens": 9, "batch": 10}, "at least one batch"),
        ({"batch": 0}, "not possible"),
        ({"aim": Aim("l0", 65)}, "k = 65 of 64 latents"),
        ({"aim": Aim("l0", 2.5), "architecture": "topk"}, "a whole number"),
        ({"learning_rate": 0.0}, "learning rate 0"),
        ({"learning_rate": math.nan}, "learning rate nan"),
        ({"learning_rate": math.inf}, "learning rate inf"),
        ({"nested": (0,)}, "must rise"),
        ({"nested": (8, 8)}, "must rise"),
        ({"nested": (64,)}, "below 64"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1 << 63}, "seed 9223372036854775808"),
    ],
)
def test_what_is_impossible_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**{"n_latents": 64, **change})


@pytest.mark.parametrize(
    "kind, value", [("l0", 0), ("nmse", 1), ("nmse", -0.1), ("bits", math.inf), ("l0", math.nan), ("k", 3)]
)
def test_aims_that_cannot_be_are_refused(kind: str, value: float) -> None:
    with pytest.raises(InputError, match="aims at l0, nmse or bits"):
        Aim(kind, value)


def test_wide_saes_learn_more_slowly() -> None:
    assert Settings(64).peak_rate == Settings(4096).peak_rate == 4e-3
    assert Settings(16384).peak_rate == pytest.approx(2e-3)
    assert Settings(16384, learning_rate=0.5).peak_rate == 0.5


# -- units -------------------------------------------------------------------------------------------------------------


@given(st.integers(2, 40), st.integers(1, 6), st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_scaled_rows_are_around_zero_and_about_d_from_it(n: int, width: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = size * (torch.randn(n, width, generator=generator) + 5)
    scaling = Scaling.of(torch.split(x, 7))
    rows = scaling.scaled(x).double()
    torch.testing.assert_close(scaling.mean, x.mean(0), rtol=1e-4, atol=1e-4 * size)
    torch.testing.assert_close(rows.mean(0), torch.zeros(width).double(), rtol=0, atol=1e-3)
    assert float(rows.square().sum(1).mean()) == pytest.approx(width, rel=1e-3)
    assert (scaling.mean.dtype, scaling.mean.shape) == (torch.float32, (width,))


@pytest.mark.parametrize("rows", [torch.zeros(0, 3), torch.zeros(5, 3), torch.full((5, 3), 7.3), torch.ones(1, 3)])
def test_rows_that_do_not_vary_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(InputError, match="do not vary"):
        Scaling.of([rows])
    with pytest.raises(InputError, match="0 rows"):
        Scaling.of([])


def test_a_mean_that_is_large_beside_the_rows_costs_no_digits() -> None:
    """Products in bfloat16 keep eight bits of what they are given, so rows have to be centred before."""
    spread = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    x = spread + 1000 * torch.tensor([1.0, -1, 2, 0, 0, 0])
    rows = Scaling.of([x]).scaled(x).to(torch.bfloat16).double()
    torch.testing.assert_close(rows, (spread - spread.mean(0)).double(), rtol=0.03, atol=0.01)


def test_settings_are_told_without_torch() -> None:
    told = "import sys; from saecodec.training import ARCHITECTURES, Settings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", told], check=True)
