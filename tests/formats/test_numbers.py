"""Numbers at the edges of float32: they come back within the promised error, or are refused; nothing warns, nothing is
NaN, and what is reported is what a file gives back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from coded_rows import coded
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from saecodec.codec import DEFAULT_CHUNK_ROWS
from saecodec.errors import InputError, TargetError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.decoding import compare, decode_file
from saecodec.formats.encoding import encode_array
from saecodec.formats.measuring import measure_array
from saecodec.formats.saec import open_saec
from saecodec.goal import Goal
from saecodec.nonlinearity import ReLU
from saecodec.sae import SAE, Encoder

WIDTH = 6
N_ROWS = 100
FLOAT32 = 2.0**-20  # of a value: what products and sums of a row in float32 may lose, generously


def both_signs(normalization: str = "none", width: int = WIDTH) -> SAE:
    """Latents are the positive and the negative parts of the values: it keeps all that it is given."""
    directions = torch.cat([torch.eye(width), -torch.eye(width)])
    encoder = Encoder(directions.T.contiguous(), torch.zeros(2 * width), ReLU(), True)
    return SAE(directions, torch.zeros(width), encoder, "relu", "signs", normalization=normalization)


def rows(n_rows: int = N_ROWS, scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(0).normal(size=(n_rows, WIDTH)) * scale).astype(np.float32)


def outlier(factor: float) -> NDArray[np.float32]:
    x = rows()
    x[:, 3] *= factor
    return x


def some_zero() -> NDArray[np.float32]:
    x = rows()
    x[::3] = 0
    return x


CASES = {
    "norms near 1e18": rows(scale=1e18),
    "norms near 1e-30": rows(scale=1e-30),
    "denormals": rows(scale=1e-42),
    "rows that are all alike": np.repeat(rows(1), N_ROWS, 0),
    "one value everywhere": np.full((N_ROWS, WIDTH), 3.25, np.float32),
    "negative zeros": np.full((N_ROWS, WIDTH), -0.0, np.float32),
    "zeros": np.zeros((N_ROWS, WIDTH), np.float32),
    "some rows of zeros": some_zero(),
    "one dimension 1000 times the others": outlier(1000),
    "one dimension a million times the others": outlier(1e6),
    "little variation far from zero": rows() + np.float32(1e5),
    "float64": rows().astype(np.float64) * np.pi,
    "float64 that float32 rounds to zero": rows().astype(np.float64) * 1e-60,
    "the largest float16": np.sign(rows()).astype(np.float16) * np.float16(65504),
    "scales that alternate": rows() * np.where(np.arange(N_ROWS)[:, None] % 2, 1e10, 1e-20).astype(np.float32),
    "one row": rows(1),
    "no rows": rows(0),
}


GOALS = {"a step": {}, "a target": {"nmse": 0.02}, "a residual layer": {"nmse": 0.01, "residual": True}}


ALIKE = ["rows that are all alike", "one value everywhere", "negative zeros", "zeros", "no rows"]
ALIKE += ["float64 that float32 rounds to zero"]
FEW = ["the largest float16", "little variation far from zero"]  # errors of few sizes, and of float32's own
REFUSED = [(name, kind) for name in ALIKE + FEW for kind in ("none", "row_norm")]
REFUSED += [("norms near 1e-30", "none"), ("denormals", "none"), ("denormals", "row_norm")]
REFUSED += [(name, "row_norm") for name in CASES if name.startswith("one dimension")]
"""Rows of which a target may be refused; of all others it is met."""
HARDEST = ["norms near 1e18", "denormals", "one dimension 1000 times the others"]
TRIED = [(name, kind, goal) for name in CASES for kind in ("none", "row_norm") for goal in ("a step", "a target")]
TRIED += [(name, "row_norm", "a residual layer") for name in HARDEST]  # takes seconds each


@pytest.mark.parametrize("name, normalization, goal", TRIED)
def test_rows_at_the_edges_come_back_finite_and_as_reported(
    name: str, normalization: str, goal: str, tmp_path: Path
) -> None:
    x, sae, path = CASES[name], both_signs(normalization), tmp_path / "x.saec"
    try:
        report = encode_array(MemoryArray(x), path, sae=sae, goal=Goal.of(**GOALS[goal]))
    except InputError as error:
        assert (name, normalization) in REFUSED
        assert goal != "a step"
        assert isinstance(error, TargetError) or "scale the rows" in str(error)  # noqa: PT017
        return
    with open_saec(path, sae=sae) as file:
        found, x_hat = compare(file, MemoryArray(x)), file.rows()
    assert np.isfinite(x_hat).all()
    exact = np.abs(x.astype(np.float32).astype(np.float64) - x_hat).max(initial=0.0)
    assert found.max_error == pytest.approx(exact, rel=1e-6)
    if found.nmse is not None and report.reached is not None:
        assert report.reached == pytest.approx(found.nmse, rel=1e-6)


@pytest.mark.parametrize("name", ["norms near 1e18", "denormals", "zeros", "rows that are all alike", "float64"])
def test_the_largest_error_is_measured(name: str) -> None:
    x = CASES[name]
    with coded(x, both_signs(), chunk_rows=DEFAULT_CHUNK_ROWS) as file:
        expected = compare(file, MemoryArray(x)).max_error
    assert measure_array(MemoryArray(x), sae=both_signs())["max_error"] == expected


any_row_values = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 12), st.just(WIDTH)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True),
)


@given(x=any_row_values)
def test_every_value_is_within_a_step_or_the_rows_are_refused(x: NDArray[np.float32]) -> None:
    try:
        with coded(x, both_signs()) as file:
            step, x_hat = file.codec.quantizer.step, file.rows()
    except InputError as error:
        assert any(way in str(error) for way in ("scale the rows", "use a step of at least"))  # noqa: PT017
        return
    assert np.isfinite(x_hat).all()
    assert (np.abs(x.astype(np.float64) - x_hat) <= step + FLOAT32 * np.abs(x)).all()


@pytest.mark.parametrize(
    "normalization, scale",
    [("row_norm", 1e-42), ("row_norm", 1e-30), ("row_norm", 1e18), ("layer_norm", 1.0), ("layer_norm", 1e18)],
)
def test_rows_that_an_sae_normalizes_keep_their_direction_at_any_scale(normalization: str, scale: float) -> None:
    """Norms are summed in float64: in float32 the squares of small values are 0, and so would the rows be. SAEs of kind
    `layer_norm` add 1e-5 to the deviation: rows whose deviation is far smaller activate nothing."""
    x = rows(scale=scale)
    with coded(x, both_signs(normalization), Goal.of("0.02rms")) as file:
        x_hat = file.rows()
    a, b = (part.astype(np.float64) / scale for part in (x, x_hat))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.99


def test_negative_zeros_are_zeros() -> None:
    files = []
    for zero in (0.0, -0.0):
        x = rows()
        x[::2] = zero
        with coded(x, both_signs(), embed="decoder") as file:
            files.append(b"".join(bytes(part) for part in file.codec.pack(next(file.layers()))))
    assert files[0] == files[1]


@pytest.mark.parametrize("normalization", ["none", "layer_norm", "row_norm"])
def test_norms_whose_squares_float32_cannot_hold_are_refused(normalization: str) -> None:
    message = "row 0 has a norm above 1.8e19, whose square float32 cannot hold: scale the rows down"
    with pytest.raises(InputError, match=message), coded(rows(scale=1e30), both_signs(normalization)):
        pass


def test_float64_is_coded_as_float32_and_comes_back_as_float64(tmp_path: Path) -> None:
    x = rows().astype(np.float64) * np.pi
    for name, array in (("wide", x), ("narrow", x.astype(np.float32))):
        encode_array(MemoryArray(array), tmp_path / f"{name}.saec", sae=both_signs())
        with open_saec(tmp_path / f"{name}.saec", sae=both_signs()) as file:
            decode_file(file, tmp_path / f"{name}.npy")
    wide, narrow = (np.load(tmp_path / f"{name}.npy") for name in ("wide", "narrow"))
    assert (wide.dtype, narrow.dtype) == (np.float64, np.float32)
    np.testing.assert_array_equal(wide, narrow.astype(np.float64))
    x[17] = 1e60
    with (
        pytest.raises(InputError, match=r"row 17 holds NaN or infinity .* or float64 values that float32 cannot hold"),
        coded(x, both_signs()),
    ):
        pass


def test_a_residual_layer_whose_step_float32_does_not_know_is_refused() -> None:
    with coded(rows(), both_signs(), Goal.of(residual=True)) as file:
        layer = file.codec.residual
    with pytest.raises(InputError, match=r"the step of the residual layer, 1e-50, is beyond float32: scale the rows"):
        replace(layer, step=1e-50).coordinates(rows())


def test_what_is_beyond_the_output_dtype_becomes_its_largest_value(tmp_path: Path) -> None:
    with coded(rows(scale=1e6), both_signs()) as file:
        decode_file(file, tmp_path / "x.npy", dtype="float16")
    half = np.load(tmp_path / "x.npy")
    assert np.isfinite(half).all()
    assert np.abs(half).max() == 65504
