"""Fitting the residual layer: principal components, levels at a price, and an error that goes with the step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

import saecodec.fit_residual
from saecodec.costs import value_bits
from saecodec.errors import InputError
from saecodec.fit_residual import ResidualMoments, ResidualStatistics, choose_levels, dead_zone_levels, fit_layer
from saecodec.residual import ResidualLayer
from saecodec.table_set import TableSet

Rows = NDArray[np.float32]
Levels = NDArray[np.int32]


def coloured(n_rows: int = 1500, width: int = 16, seed: int = 0) -> Rows:
    """Rows with variances from 9 to 0.0009 in rotated axes, around a mean that is not zero."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, width)))[0]
    spread = np.geomspace(3, 0.03, width)
    return ((rng.normal(size=(n_rows, width)) * spread) @ axes + rng.normal(size=width)).astype(np.float32)


def fitted(x: Rows, step: float, slope: float = 0.0, chunk: int = 400) -> tuple[ResidualLayer, Levels]:
    def chunks() -> Iterator[Rows]:
        return (x[i : i + chunk] for i in range(0, len(x), chunk))

    store: list[Levels] = []
    layer = fit_layer(chunks, x.shape[1], step, slope, store)
    assert [part.dtype for part in store] == [np.int32] * len(store)
    return layer, np.concatenate([np.zeros((0, layer.n_components), np.int32), *store])


def mse(x: Rows, layer: ResidualLayer, levels: Levels) -> float:
    """Squared error of a row."""
    return float(np.square(x - layer.rows(levels), dtype=np.float64).sum(1).mean())


def test_components_are_the_principal_ones_by_falling_variance() -> None:
    x = coloured()
    moments = ResidualMoments(16)
    for part in (x[:100], x[100:100], x[100:]):
        moments.add(part)
    layer = moments.layer(0.1)
    (block,) = layer.blocks
    basis = block.vectors * layer.unit
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=0.02)
    variance = np.var(layer.coordinates(x), axis=0) * 0.1**2
    expected = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
    np.testing.assert_allclose(variance, expected[: len(basis)], rtol=0.1, atol=1e-3)  # entries are integers
    np.testing.assert_allclose(layer.mean * 0.1 / 16, x.mean(0), atol=0.1 / 32 + 1e-5)


def test_a_component_far_below_the_step_is_left_out() -> None:
    x = coloured()
    counts = [fitted(x, step)[0].n_components for step in (0.01, 1.0, 5.0, 1000.0)]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (16, 1)


def test_the_error_shrinks_with_the_step_to_a_twelfth_of_its_square() -> None:
    x, errors = coloured(), []
    for step in (4.0, 2.0, 1.0, 0.5, 0.25):
        layer, levels = fitted(x, step)
        np.testing.assert_array_equal(layer.decode(layer.encode(levels), len(x), "test"), levels)
        errors.append(mse(x, layer, levels))
        assert errors[-1] < 16 * step**2 / 12 * 1.05 + 16 * (0.15 * step) ** 2 + 0.001 * np.square(x).sum(1).mean()
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * np.var(x, axis=0).sum()


def test_bits_have_a_price() -> None:
    x, sizes, errors = coloured(), [], []
    for slope in (0.0, 0.1, 0.5, 2.0):
        layer, levels = fitted(x, 0.5, slope)
        sizes.append(len(layer.encode(levels)))
        errors.append(mse(x, layer, levels))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)


def test_fitted_tables_code_about_as_briefly_as_the_entropies_of_the_components() -> None:
    layer, levels = fitted(coloured(4000), 0.5)
    entropy = 0.0
    for component in levels.T:
        p = np.unique(component, return_counts=True)[1] / len(levels)
        entropy -= (p * np.log2(p)).sum()
    assert 8 * len(layer.encode(levels)) / len(levels) < 1.05 * entropy + 0.2
    coarse = replace(layer, tables=TableSet(np.zeros_like(layer.tables.classes), np.zeros((1, 16), np.int64), 0))
    assert len(layer.encode(levels)) < 0.6 * len(coarse.encode(levels))


@pytest.mark.parametrize("largest, n_blocks", [(16, 1), (15, 2), (5, 4), (1, 16)])
def test_wide_rows_get_a_basis_of_blocks(monkeypatch: pytest.MonkeyPatch, largest: int, n_blocks: int) -> None:
    monkeypatch.setattr(saecodec.fit_residual, "MAX_BLOCK", largest)
    x = coloured()
    layer, levels = fitted(x, 0.25)
    assert len(layer.blocks) == n_blocks
    assert max(block.vectors.shape[1] for block in layer.blocks) <= largest
    assert (layer.width, layer.n_components) == (16, levels.shape[1])
    back = ResidualLayer.from_bytes(layer.to_bytes(), "test")
    np.testing.assert_array_equal(back.rows(back.decode(layer.encode(levels), len(x), "test")), layer.rows(levels))
    assert mse(x, layer, levels) < 0.02 * np.var(x, axis=0).sum()


def test_a_block_without_a_live_component_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saecodec.fit_residual, "MAX_BLOCK", 4)
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    x[:, :4] = 2.5
    layer, levels = fitted(x, 0.5)
    assert [block.vectors.shape for block in layer.blocks] == [(0, 4), (4, 4)]
    np.testing.assert_allclose(layer.rows(levels)[:, :4], 2.5, atol=0.5 / 32)
    assert ResidualLayer.from_bytes(layer.to_bytes(), "test").width == 8


@pytest.mark.parametrize("value", [0.0, -3.25, 1e4])
def test_rows_that_are_all_the_same_need_only_the_mean(value: float) -> None:
    x = np.full((200, 8), value, np.float32)
    layer, levels = fitted(x, 0.5)
    assert layer.n_components == 1
    assert not levels.any()
    assert len(layer.encode(levels)) < 60
    np.testing.assert_allclose(layer.rows(levels), x, atol=0.5 / 32 + 1e-6)


@pytest.mark.parametrize("n_rows", [0, 1, 2])
def test_few_rows_are_fitted(n_rows: int) -> None:
    x = coloured(n_rows)
    layer, levels = fitted(x, 0.01)
    assert levels.shape == (n_rows, layer.n_components)
    assert mse(x, layer, levels) <= np.var(x, axis=0).sum() + 1e-3 if n_rows else True


def test_a_component_has_to_be_worth_its_own_bits() -> None:
    few, many = (fitted(coloured(n_rows), 0.5)[0].n_components for n_rows in (30, 3000))
    assert 1 <= few < many


@pytest.mark.parametrize("step", [1e-3, 2e-4, 2e-5])
def test_levels_of_many_thousands_are_fitted(step: float) -> None:
    x = coloured(300)
    layer, levels = fitted(x, step)
    assert np.abs(levels).max() > 1 / step
    np.testing.assert_array_equal(layer.decode(layer.encode(levels), 300, "test"), levels)


def test_a_step_that_is_too_small_is_refused() -> None:
    with pytest.raises(InputError, match=r"step of the residual layer is too small: a level above 2\^20"):
        fitted(coloured(300), 1e-6)


def test_the_size_of_the_chunks_changes_little() -> None:
    x = coloured()
    layers = [fitted(x, 0.5, 0.1, chunk) for chunk in (1500, 100)]
    errors = [mse(x, *layer) for layer in layers]
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


# -- levels ------------------------------------------------------------------------------------------------------------


def test_before_there_are_tables_levels_have_a_dead_zone() -> None:
    coordinates = np.array([[0.0, 0.63, 0.65, -0.65, 1.63, 1.65, -7.7]], np.float32)
    assert dead_zone_levels(coordinates).tolist() == [[0, 0, 1, -1, 1, 2, -8]]


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.3, 3.0])
def test_chosen_levels_have_the_least_error_and_price(slope: float) -> None:
    layer, _ = fitted(coloured(), 0.5)
    coordinates = (3 * np.random.default_rng(0).normal(size=(200, layer.n_components))).astype(np.float32)
    levels = choose_levels(layer, coordinates, slope)
    bits = value_bits(layer.tables.weights, 512)[layer.tables.classes]
    for t, m in itertools.product(range(200), range(layer.n_components)):
        y = abs(coordinates[t, m])
        nearest = int(np.floor(y + 0.5))
        cost = {n: (y - n) ** 2 + slope * bits[m, 2 * n] for n in {nearest, max(nearest - 1, 0), 0}}
        assert cost[abs(levels[t, m])] == pytest.approx(min(cost.values()), abs=1e-4)
    assert ((levels == 0) | (np.sign(levels) == np.sign(coordinates))).all()
    if slope == 0:
        np.testing.assert_array_equal(levels, np.sign(coordinates) * np.floor(np.abs(coordinates) + 0.5))


def test_statistics_of_rows_add_up_over_chunks() -> None:
    x = coloured()
    moments = ResidualMoments(16)
    moments.add(x)
    layer = moments.layer(0.5)
    whole, parts = ResidualStatistics(layer), ResidualStatistics(layer)
    coordinates = layer.coordinates(x)
    levels = dead_zone_levels(coordinates)
    whole.add(levels, coordinates)
    for i in range(0, len(x), 100):
        parts.add(levels[i : i + 100], coordinates[i : i + 100])
    assert whole.layer().to_bytes() == parts.layer().to_bytes()
