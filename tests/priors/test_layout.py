"""The layout sorts columns by support class, level class and latent, and cells go there and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.codes import Codes
from saecodec.priors.layout import Layout, narrow

AnyCodes = Callable[..., st.SearchStrategy[Codes]]
SameCodes = Callable[[Codes, Codes], None]


def layout(n_latents: int, seed: int) -> Layout:
    rng = np.random.default_rng(seed)
    support = np.unique(rng.integers(0, 4, n_latents), return_inverse=True)[1].reshape(-1).astype(np.int64)
    return Layout(support, rng.integers(0, 3, n_latents))


def test_columns_are_sorted_by_support_class_then_level_class_then_latent() -> None:
    made = Layout(np.array([1, 0, 1, 0, 1]), np.array([1, 0, 0, 2, 1]))
    assert made.latent_of.tolist() == [1, 3, 2, 0, 4]
    assert made.column_of.tolist() == [3, 0, 2, 1, 4]
    assert made.class_start.tolist() == [0, 2, 5]
    assert made.segment_start.tolist() == [0, 1, 2, 3, 5]
    assert made.segment_class.tolist() == [0, 2, 0, 1]


@given(st.integers(1, 30), st.integers(0, 1000))
def test_segments_and_classes_partition_the_columns(n_latents: int, seed: int) -> None:
    made = layout(n_latents, seed)
    assert sorted(made.latent_of.tolist()) == list(range(n_latents))
    np.testing.assert_array_equal(made.column_of[made.latent_of], np.arange(n_latents))
    for starts in (made.class_start, made.segment_start):
        assert starts[0] == 0
        assert starts[-1] == n_latents
        assert (np.diff(starts) > 0).all()
    assert set(made.class_start) <= set(made.segment_start)
    level = made.level_class[made.latent_of]
    np.testing.assert_array_equal(np.repeat(made.segment_class, np.diff(made.segment_start)), level)


@given(st.data(), st.integers(1, 30), st.integers(0, 1000))
def test_codes_come_back_from_their_cells(
    any_codes: AnyCodes, assert_same_codes: SameCodes, data: st.DataObject, n_latents: int, seed: int
) -> None:
    codes = data.draw(any_codes(n_latents, columns=False))
    made = layout(n_latents, seed)
    cells = made.cells(codes)
    position = cells.column * codes.n_rows + cells.row
    assert (np.diff(position) > 0).all()
    assert_same_codes(made.codes(cells, codes.n_rows), codes)


@pytest.mark.parametrize("n_latents, n_rows", [(65_536, 3), (65_537, 3), (70_000, 40), (3, 65_536), (3, 65_537)])
def test_more_than_65536_latents_or_rows_go_the_wide_way_to_the_same_end(
    assert_same_codes: SameCodes, n_latents: int, n_rows: int
) -> None:
    rng = np.random.default_rng(0)
    cells = np.unique(np.append(rng.integers(0, n_latents * n_rows, 500), [0, n_latents * n_rows - 1]))
    rows, latents = np.divmod(cells, n_latents)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])
    codes = Codes(indptr, latents.astype(np.int32), np.arange(1, len(cells) + 1, dtype=np.int32), n_latents).check()
    made = layout(n_latents, 0)
    assert_same_codes(made.codes(made.cells(codes), n_rows), codes)


def test_narrow_keeps_what_does_not_fit_16_bits() -> None:
    assert narrow(np.array([65_535]), 65_536).dtype == np.uint16
    assert narrow(np.array([65_536]), 65_537).tolist() == [65_536]
