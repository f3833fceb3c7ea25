"""Codes without an SAE cost what theory says, and reach the distortion that they report."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial import KDTree

from saecodec.baselines import DenseCode, dense_at, exemplar_codes, one_hot_at, pca_at
from saecodec.errors import InputError, TargetError
from saecodec.peers.pca import PCA_FAMILY

Rows = NDArray[np.float32]


def gaussian(n_rows: int, deviations: list[float], *, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n_rows, len(deviations))) * deviations + 7).astype(np.float32)


def correlated(n_rows: int, width: int = 16) -> Rows:
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(width, width)) * np.geomspace(3, 0.05, width)[:, None]
    return (rng.normal(size=(n_rows, width)) @ mixing + 2).astype(np.float32)


def nmse(x: Rows, x_hat: NDArray[np.floating]) -> float:
    a = x.astype(np.float64)
    return float(((a - x_hat) ** 2).sum() / ((a - a.mean(0)) ** 2).sum())


# -- dense -------------------------------------------------------------------------------------------------------------


def test_at_fine_steps_the_entropy_is_that_of_the_density_less_log2_of_the_step() -> None:
    deviations = [0.5, 1, 2, 8]
    found = dense_at(gaussian(40_000, deviations), 1e-4)
    assert found.step == pytest.approx(np.sqrt(12 * 1e-4 * np.square(deviations).mean()), rel=0.02)
    rate = sum(0.5 * np.log2(2 * np.pi * np.e * deviation**2) - np.log2(found.step) for deviation in deviations)
    assert found.entropy_per_row == pytest.approx(rate, abs=0.02)


def test_uniform_values_cost_as_much_in_fixed_length_as_in_entropy() -> None:
    x = np.stack([np.arange(8), 4 * np.arange(8)], axis=1).astype(np.float32)
    x = np.concatenate([x, x])
    found = dense_at(x, 1e-9)
    spans = (np.array([7, 28]) / found.step).round() + 1
    assert found.bits_per_row == pytest.approx(np.log2(spans).sum(), abs=0.01)
    assert found.entropy_per_row == pytest.approx(3 + 3)


@given(st.data(), st.floats(1e-6, 0.95))
def test_a_dense_code_is_what_its_step_makes_of_the_rows(data: st.DataObject, target: float) -> None:
    n_rows, width = data.draw(st.integers(2, 30)), data.draw(st.integers(1, 4))
    value = st.floats(-100, 100, width=32)
    drawn = data.draw(st.lists(value, min_size=n_rows * width, max_size=n_rows * width))
    x = np.array(drawn, np.float32).reshape(n_rows, width)
    if not np.ptp(x, axis=0).max() > 1e-3:
        with pytest.raises(InputError, match="do not vary"):
            dense_at(np.zeros_like(x), target)
        return
    found = dense_at(x, target)
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    levels = np.rint((x - mean).astype(np.float64) / found.step)
    assert found.nmse == pytest.approx(nmse(x, mean + levels * found.step), rel=1e-3)
    assert found.nmse <= target
    spans = np.log2(levels.max(0) - levels.min(0) + 1)
    assert (found.bits_per_row, found.bits_per_scalar) == pytest.approx((spans.sum(), spans.mean()))
    p = [np.unique(column, return_counts=True)[1] / n_rows for column in levels.T]
    assert found.entropy_per_row == pytest.approx(sum(-(q * np.log2(q)).sum() for q in p), abs=1e-9)


@pytest.mark.parametrize("target", [0.9, 0.3, 0.1, 0.01, 1e-5])
def test_a_dense_code_meets_its_target_from_below(target: float) -> None:
    found = dense_at(gaussian(5000, [1, 0.3, 4]), target)
    assert 0.999 * target <= found.nmse <= target


def test_a_dimension_that_does_not_vary_costs_nothing() -> None:
    x = gaussian(500, [1, 2])
    wide = np.concatenate([x, np.full((500, 2), 123.25, np.float32)], axis=1)
    a, b = dense_at(x, 0.05), dense_at(wide, 0.05)
    assert b.bits_per_row == pytest.approx(a.bits_per_row)
    assert b.entropy_per_row == pytest.approx(a.entropy_per_row)
    assert b.bits_per_scalar == pytest.approx(a.bits_per_scalar / 2)


# -- one-hot -----------------------------------------------------------------------------------------------------------


def clustered(width: int) -> tuple[Rows, float]:
    """Rows (4000, width) of four clusters, and the NMSE of decoding each to the centre of its own."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(4, width)) * 10
    member = rng.integers(0, 4, 4000)
    x = (centres[member] + rng.normal(size=(4000, width)) * 0.5).astype(np.float32)
    return x, nmse(x, centres[member])


def test_exemplars_of_clusters_reach_the_variance_inside_a_cluster() -> None:
    x, inside = clustered(2)
    codes = exemplar_codes(x, dense_at(x, inside / 50))
    assert codes[0].nmse > 10 * inside  # some cluster has no exemplar
    assert codes[-1].nmse < inside / 5  # 256 a cluster tile a plane


def test_in_many_dimensions_an_exemplar_is_as_far_from_the_centre_as_the_row_is() -> None:
    x, inside = clustered(64)
    few = exemplar_codes(x, dense_at(x, inside / 50))[2]  # 16 a cluster, of which the one next to the centre is best
    assert 1.3 * inside < few.nmse < 2 * inside


def test_exemplars_have_the_rounding_of_the_dense_code() -> None:
    x = np.repeat(np.array([[0, 0], [1, 3], [5, 1], [2, 8]], np.float32), 500, axis=0)
    x = x[np.random.default_rng(0).permutation(2000)]
    dense = dense_at(x, 0.01)
    assert exemplar_codes(x, dense)[-1].nmse == pytest.approx(dense.nmse, rel=0.1)


def test_the_nearest_exemplar_is_found_whatever_the_chunk() -> None:
    x = gaussian(9000, [1, 2, 0.5], seed=3)
    dense = dense_at(x, 0.05)
    mean, drawn = x.mean(0, dtype=np.float64), np.random.default_rng(4).permutation(4500)
    for code in exemplar_codes(x, dense, seed=4):
        exemplars = mean + np.rint((x[drawn[: code.n_exemplars]] - mean) / dense.step) * dense.step
        _, nearest = KDTree(exemplars).query(x[4500:])
        assert code.nmse == pytest.approx(nmse(x[4500:], exemplars[nearest]), rel=1e-4)


def test_more_exemplars_err_less_and_a_dictionary_is_paid_by_all_rows() -> None:
    x = gaussian(3000, [1, 2, 0.5])
    dense = dense_at(x, 0.01)
    codes = exemplar_codes(x, dense)
    assert all(more.nmse < fewer.nmse for fewer, more in pairwise(codes))
    for code in codes:
        assert code.index_bits == np.log2(code.n_exemplars)
        assert code.dictionary_bits == code.n_exemplars * dense.bits_per_row
        assert code.bits_per_row == pytest.approx(code.index_bits + code.dictionary_bits / 3000)


def test_a_row_each_costs_its_index_more_than_the_dense_code() -> None:
    dense = dense_at(gaussian(1024, [1, 2]), 0.1)
    found = one_hot_at(dense)
    assert found.bits_per_row == pytest.approx(10 + dense.bits_per_row)
    assert (found.n_exemplars, found.nmse) == (1024, dense.nmse)


@pytest.mark.parametrize("n_rows, sizes", [(8, [4]), (31, [4]), (32, [4, 16]), (20_000, [4, 16, 64, 256, 1024, 4096])])
def test_exemplars_come_from_half_of_the_rows(n_rows: int, sizes: list[int]) -> None:
    x = gaussian(n_rows, [1, 1])
    assert [code.n_exemplars for code in exemplar_codes(x, dense_at(x, 0.1))] == sizes


# -- linear ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.3, 0.05])
def test_the_bytes_of_the_linear_code_decode_to_its_nmse(target: float) -> None:
    x = correlated(3000)
    found = pca_at(x, target)
    peer = PCA_FAMILY.fit(x, found.relative_step)
    data = peer.encode(x)
    assert found.nmse == pytest.approx(nmse(x, peer.decode(data)))
    assert found.nmse == pytest.approx(target, rel=0.005)
    assert found.bits_per_row == 8 * len(data) / 3000
    assert found.model_bytes == peer.model_bytes > 0
    assert found.total_per_row == pytest.approx(8 * (len(data) + peer.model_bytes) / 3000)


def test_the_linear_code_of_correlated_rows_beats_the_dense_one() -> None:
    x = correlated(3000)
    assert pca_at(x, 0.1).bits_per_row < 0.8 * dense_at(x, 0.1).entropy_per_row


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, 1, -0.1, 2, float("nan")])
def test_an_nmse_that_is_none_is_refused(target: float) -> None:
    x = gaussian(100, [1, 2])
    for code in (dense_at, pca_at):
        with pytest.raises(TargetError, match="between 0 and 1"):
            code(x, target)


def test_an_nmse_out_of_reach_is_refused() -> None:
    with pytest.raises(TargetError, match=r"2\^30"):
        dense_at(gaussian(100, [1, 2]), 1e-24)
    with pytest.raises(TargetError, match="not met by PCA"):
        pca_at(correlated(200), 1e-9)


def test_rows_that_are_none_are_refused() -> None:
    x = gaussian(100, [1, 2])
    nan = x.copy()
    nan[3, 1] = np.nan
    for code in (dense_at, pca_at):
        for wrong in (nan, x[:0], x[0]):
            with pytest.raises(InputError):
                code(wrong, 0.1)
        with pytest.raises(InputError, match="do not vary"):
            code(np.full((100, 2), 3, np.float32), 0.1)
    dense = dense_at(x, 0.1)
    with pytest.raises(InputError, match="at least 8"):
        exemplar_codes(x[:7], dense)
    with pytest.raises(InputError, match="50 rows, but the dense code is of 100"):
        exemplar_codes(x[:50], dense)


def test_results_are_made_for_json() -> None:
    x = correlated(200)
    dense = dense_at(x, 0.1)
    assert DenseCode(**json.loads(json.dumps(asdict(dense)))) == dense
    for result in (pca_at(x, 0.1), one_hot_at(dense), *exemplar_codes(x, dense)):
        assert json.loads(json.dumps(asdict(result)))["bits_per_row"] == result.bits_per_row
