"""What the tests of the core share: deterministic randomness, synthetic codes, small SAEs, and every prior."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.codes import Codes
from saecodec.formats.checkpoints import load_sae
from saecodec.latents import LatentCodec
from saecodec.limits import VARIABLE
from saecodec.nonlinearity import Gated, JumpReLU, Nonlinearity, ReLU, TopK
from saecodec.sae import SAE, Encoder

settings.register_profile(
    "saecodec",
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("saecodec")


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """What a script starts in the background ignores Ctrl-C, which some tests send."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _default_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session", autouse=True)
def _golden_files_stay_as_they_are() -> Iterator[None]:
    """Whatever the tests do, they write nothing to the golden files' folder."""
    before = _stamps(GOLDEN)
    yield
    assert _stamps(GOLDEN) == before, f"a test has written to {GOLDEN}"


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


# -- priors ------------------------------------------------------------------------------------------------------------

FitPrior = Callable[[list[Codes]], LatentCodec]
PRIORS: dict[str, FitPrior] = {"factorized": LatentCodec.fit}
"""Every prior joins the round-trip suite by one line here."""


@pytest.fixture(scope="session", params=sorted(PRIORS))
def fit_prior(request: pytest.FixtureRequest) -> FitPrior:
    """Chunks of codes -> the `LatentCodec` of one prior fitted on them."""
    return PRIORS[request.param]


# -- codes -------------------------------------------------------------------------------------------------------------


def _bursty_codes(n_rows: int, n_latents: int, *, seed: int = 0, signed: bool = False) -> Codes:
    """Codes as an SAE makes them: rates that fall like a power law, bursts in time, levels that fall geometrically."""
    rng = np.random.default_rng(seed)
    rate = np.minimum(0.5, 2.0 / np.arange(1, n_latents + 1) ** 0.8)[rng.permutation(n_latents)]
    burst = rng.uniform(0.2, 0.9, n_latents)  # chance that an active latent stays active
    on = np.zeros((n_rows, n_latents), bool)
    state = rng.random(n_latents) < rate
    for t in range(n_rows):
        draw = rng.random(n_latents)
        state = np.where(state, draw < burst, draw < rate * (1 - burst) / (1 - rate))
        on[t] = state
    levels = rng.geometric(rng.uniform(0.15, 0.7, n_latents), (n_rows, n_latents))
    sign = rng.choice([-1, 1], (n_rows, n_latents)) if signed else 1
    return Codes.from_dense(np.where(on, levels * sign, 0))


@pytest.fixture(scope="session")
def bursty_codes() -> Callable[..., Codes]:
    """(n_rows, n_latents, *, seed, signed) -> realistic codes."""
    return _bursty_codes


@st.composite
def _any_codes(draw: st.DrawFn, n_latents: int | None = None, signed: bool = True, columns: bool = True) -> Codes:
    n = draw(st.integers(1, 12)) if n_latents is None else n_latents
    n_rows = draw(st.integers(0, 20))
    level = st.one_of(st.integers(1, 20), st.integers(1, 1 << 20))
    if signed:
        level = st.builds(lambda value, sign: value * sign, level, st.sampled_from([1, -1]))
    cells = draw(
        st.dictionaries(st.tuples(st.integers(0, max(n_rows - 1, 0)), st.integers(0, n - 1)), level, max_size=40)
    )
    dense = np.zeros((n_rows, n), np.int64)
    for (row, latent), value in cells.items() if n_rows else ():
        dense[row, latent] = value
    limit = (1 << 38) - 1
    value_lists = st.lists(st.integers(-limit, limit), min_size=n_rows, max_size=n_rows)
    named = draw(st.dictionaries(st.text("aZ_é☃", min_size=1, max_size=4), value_lists, max_size=2 if columns else 0))
    return Codes.from_dense(dense, {name: np.array(values, np.int64) for name, values in named.items()})


@pytest.fixture(scope="session")
def any_codes() -> Callable[..., st.SearchStrategy[Codes]]:
    """(n_latents=any, signed=True, columns=True) -> a hypothesis strategy of valid codes; use with `st.data()`."""
    return _any_codes


def _assert_same_codes(a: Codes, b: Codes) -> None:
    assert a.n_latents == b.n_latents
    for name in ("indptr", "latents", "levels"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)
    assert a.columns.keys() == b.columns.keys()
    for name in a.columns:
        np.testing.assert_array_equal(a.columns[name], b.columns[name], err_msg=name)


@pytest.fixture(scope="session")
def assert_same_codes() -> Callable[[Codes, Codes], None]:
    """Asserts that two `Codes` are equal, dtypes included."""
    return _assert_same_codes


# -- SAEs and rows -----------------------------------------------------------------------------------------------------

WIDTH = 8
N_LATENTS = 24


def _dyadic(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Multiples of 1/8 in [-1, 1]: sums of their products are exact in float32, whatever the order of summation."""
    return torch.from_numpy(rng.integers(-8, 9, shape).astype(np.float32) / 8)


def _make_sae(
    kind: str = "relu", *, apply_b_dec: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0
) -> SAE:
    """A tiny SAE (d = 8, F = 24) whose arithmetic on rows of `exact_rows` is exact, so that results can be compared bit
    by bit across batch sizes; only a gated SAE's exp is not."""
    rng = np.random.default_rng(seed)
    w_dec, b_dec = _dyadic(rng, N_LATENTS, WIDTH), _dyadic(rng, WIDTH)
    w_enc, b_enc = _dyadic(rng, WIDTH, N_LATENTS), _dyadic(rng, N_LATENTS) - 2
    nonlinearity: Nonlinearity
    if kind == "relu":
        nonlinearity = ReLU()
    elif kind == "jumprelu":
        nonlinearity = JumpReLU(2 * _dyadic(rng, N_LATENTS))  # some thresholds are negative
    elif kind == "topk":
        nonlinearity = TopK(3)
    elif kind == "topk-beyond-f":
        nonlinearity = TopK(N_LATENTS + 5)
    else:
        nonlinearity = Gated(_dyadic(rng, N_LATENTS), _dyadic(rng, N_LATENTS), b_enc)
    encoder = Encoder(w_enc.to(dtype), b_enc.to(dtype), nonlinearity, apply_b_dec)
    return SAE(w_dec, b_dec, encoder, kind, f"tiny-{kind}")


@pytest.fixture(scope="session", params=["relu", "jumprelu", "topk", "topk-beyond-f", "gated"])
def architecture(request: pytest.FixtureRequest) -> str:
    """Every architecture that `make_sae` knows."""
    return str(request.param)


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., SAE]:
    """(kind, *, apply_b_dec, dtype, seed) -> a tiny SAE with exact arithmetic."""
    return _make_sae


@pytest.fixture(scope="session")
def sae() -> SAE:
    """A tiny ReLU SAE."""
    return _make_sae()


def _exact_rows(n_rows: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Rows (n, 8) of multiples of 1/4 in [-4, 4]."""
    return np.random.default_rng(seed).integers(-16, 17, (n_rows, WIDTH)).astype(np.float32) / 4


@pytest.fixture(scope="session")
def exact_rows() -> Callable[..., NDArray[np.float32]]:
    """(n_rows, *, seed) -> rows on which the tiny SAEs compute exactly."""
    return _exact_rows


RealData = tuple[SAE, NDArray[np.float16]]
"""A trained SAE, and rows that it is for."""


@pytest.fixture(scope="session")
def minilm() -> RealData:
    """The bundled SAE (F = 1536) and its 2,048 rows (d = 384)."""
    folder = Path(str(files("saecodec") / "bundled"))
    return load_sae(folder / "minilm_l3_sae", "cpu"), np.load(folder / "minilm_l3_rows.npy")


@pytest.fixture(scope="session")
def mnist() -> RealData:
    """An SAE of digits (F = 64) and 1,024 rows (d = 784) without order in time."""
    folder = Path(__file__).parent / "fixtures" / "mnist"
    pixels = np.load(folder / "rows.npz")["pixels"]
    return load_sae(folder / "sae", "cpu"), (pixels / 255).astype(np.float16)


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
