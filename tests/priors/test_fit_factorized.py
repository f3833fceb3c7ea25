"""Fitting chooses classes, tables and groups that describe the codes in few bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec import buckets
from saecodec.codes import Codes
from saecodec.costs import bucket_bits
from saecodec.errors import InputError
from saecodec.latents import LatentCodec
from saecodec.priors.factorized import FactorizedPrior
from saecodec.priors.fit_factorized import LatentStatistics, _groups
from saecodec.rangecoder import TOTAL

BurstyCodes = Callable[..., Codes]


def fitted(*chunks: Codes) -> FactorizedPrior:
    prior = LatentCodec.fit(list(chunks)).prior
    assert isinstance(prior, FactorizedPrior)
    return prior


@given(st.lists(st.one_of(st.just(0), st.integers(0, 100), st.integers(0, 10**8)), min_size=1, max_size=64))
def test_groups_divide_the_classes_and_are_16_where_there_are_as_many(counts: list[int]) -> None:
    sizes = _groups(np.array(counts, float))
    assert min(sizes) >= 1
    assert sum(sizes) == len(counts)
    assert len(sizes) == min(16, len(counts))


def test_groups_hold_about_equal_numbers_of_nonzeros() -> None:
    counts = np.linspace(200, 100, 64)
    sums = np.add.reduceat(counts, np.cumsum([0, *_groups(counts)])[:-1])
    assert sums.max() < 1.5 * sums.mean()


def test_support_classes_are_ordered_by_falling_rate(bursty_codes: BurstyCodes) -> None:
    codes = bursty_codes(1000, 64)
    prior = fitted(codes)
    n_classes = len(prior.support.codes)
    assert n_classes > 1
    per_latent = np.bincount(codes.latents, minlength=64)
    rate = [per_latent[prior.support.classes == c].mean() for c in range(n_classes)]
    assert rate == sorted(rate, reverse=True)


def test_burstiness_is_exploited(bursty_codes: BurstyCodes) -> None:
    codes = bursty_codes(2000, 64)
    shuffled = Codes.from_dense(np.random.default_rng(0).permutation(codes.to_dense()))
    assert fitted(codes).ideal_bits(codes)[0] < 0.9 * fitted(shuffled).ideal_bits(shuffled)[0]


def test_tables_fitted_on_the_codes_beat_tables_fitted_on_others(bursty_codes: BurstyCodes) -> None:
    codes, other = bursty_codes(1000, 64, seed=1), bursty_codes(1000, 64, seed=2)
    assert sum(fitted(codes).ideal_bits(codes)) < sum(fitted(other).ideal_bits(codes))


def test_fitting_on_the_same_chunks_gives_the_same_bytes(bursty_codes: BurstyCodes) -> None:
    chunks = [bursty_codes(200, 32, seed=seed) for seed in range(3)]
    assert fitted(*chunks).to_bytes() == fitted(*chunks).to_bytes()


@pytest.mark.parametrize("signed", [True, False])
def test_signs_are_coded_only_when_a_level_is_negative(bursty_codes: BurstyCodes, signed: bool) -> None:
    codes = bursty_codes(100, 8, signed=signed)
    prior = fitted(codes)
    assert prior.signed == signed
    plain = Codes(codes.indptr, codes.latents, np.abs(codes.levels), 8)
    assert prior.ideal_bits(codes)[1] == pytest.approx(fitted(plain).ideal_bits(plain)[1] + signed * codes.nnz)


@pytest.mark.parametrize("signed", [True, False])
def test_the_bits_of_latents_are_those_of_their_gaps_and_levels(bursty_codes: BurstyCodes, signed: bool) -> None:
    codes = bursty_codes(200, 12, signed=signed)
    prior, dense = fitted(codes), codes.to_dense()
    expected = np.zeros(12)

    def bits(weights: np.ndarray, value: int) -> float:
        bucket = int(buckets.bucket_of(np.array([value]))[0])
        return float(buckets.OFFSET_BITS[bucket] - np.log2(weights[bucket] / TOTAL))

    for c, gap_weights in enumerate(prior.support.weights):
        gap = 0
        for latent in np.flatnonzero(prior.support.classes == c):  # columns of a class lie end to end
            for level in np.abs(dense[:, latent]).tolist():
                if level:
                    level_weights = prior.levels.weights[prior.levels.classes[latent]]
                    expected[latent] += bits(gap_weights, gap) + bits(level_weights, level - 1) + signed
                gap = 0 if level else gap + 1
    np.testing.assert_allclose(prior.latent_bits(codes), expected)
    assert expected.sum() == pytest.approx(sum(prior.ideal_bits(codes)))


def test_statistics_count_every_gap_and_level(bursty_codes: BurstyCodes) -> None:
    statistics = LatentStatistics(16)
    chunks = [bursty_codes(50, 16, seed=seed) for seed in range(3)]
    for codes in chunks:
        statistics.add(codes)
    assert statistics.n_chunks == 3
    per_latent = sum(np.bincount(codes.latents, minlength=16) for codes in chunks)
    np.testing.assert_array_equal(statistics.gaps.sum(1), per_latent)
    np.testing.assert_array_equal(statistics.levels.sum(1), per_latent)


def test_fitting_on_no_chunk_is_refused() -> None:
    with pytest.raises(InputError, match="chunks of one number of latents"):
        LatentCodec.fit([])


def test_fitting_on_broken_codes_is_refused() -> None:
    broken = Codes(np.array([0, 1]), np.array([9], np.int32), np.array([1], np.int32), 4)
    with pytest.raises(InputError, match="latents must be in"):
        LatentCodec.fit([broken])


def test_chunks_of_different_numbers_of_latents_are_refused() -> None:
    with pytest.raises(InputError, match="latents"):
        LatentCodec.fit([Codes.from_dense(np.eye(3, dtype=int)), Codes.from_dense(np.eye(5, dtype=int))])


def test_codes_without_latents_are_refused() -> None:
    with pytest.raises(InputError, match="latents"):
        LatentCodec.fit([Codes.from_dense(np.zeros((3, 0), int))])


@pytest.mark.parametrize("signed", [True, False])
def test_bits_of_nonzeros_are_those_of_their_own_gap_and_level(bursty_codes: BurstyCodes, signed: bool) -> None:
    codes = bursty_codes(60, 8, signed=signed)
    prior = fitted(codes)
    layout, of_bucket = prior.layout, bucket_bits(prior.support.weights)
    last = {c: -1 for c in range(len(prior.support.codes))}
    expected = {}
    for row, latent in sorted(
        zip(codes.rows().tolist(), codes.latents.tolist(), strict=True),
        key=lambda cell: (layout.column_of[cell[1]], cell[0]),
    ):
        c = int(prior.support.classes[latent])
        place = (int(layout.column_of[latent]) - int(layout.class_start[c])) * codes.n_rows + row
        expected[row, latent] = of_bucket[c, buckets.bucket_of(np.array([place - last[c] - 1]))[0]]
        last[c] = place
    support, levels = prior.nonzero_bits(codes)
    cells = zip(codes.rows().tolist(), codes.latents.tolist(), strict=True)
    assert support.tolist() == [expected[cell] for cell in cells]
    size = np.abs(codes.levels).astype(np.int64) - 1
    tables = bucket_bits(prior.levels.weights)[prior.levels.classes[codes.latents], buckets.bucket_of(size)]
    assert levels.tolist() == (tables + signed).tolist()
