"""The decoder as a dictionary: what a search is told of candidates, whichever way it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import saecodec.dictionary
from saecodec.dictionary import Candidates, Dictionary
from saecodec.sae import SAE


@pytest.fixture
def decoder() -> SAE:
    """F = 9 directions of all lengths in d = 5; direction 4 is zero, 6 and 7 point the same way."""
    w = torch.randn(9, 5) * torch.linspace(0.1, 3, 9)[:, None]
    w[4] = 0
    w[7] = 2 * w[6]
    return SAE(w, torch.randn(5), None, "decoder")


def gram_of(found: Candidates) -> NDArray[np.float32]:
    """Inner products of the candidates of each row, (B, C, C)."""
    return found.gram[found.at[:, :, None] + found.column[:, None, :]].numpy()


@pytest.fixture(params=["gram", "rows"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of computing inner products."""
    if request.param == "rows":
        monkeypatch.setattr(saecodec.dictionary, "MAX_GRAM_LATENTS", 0)


def test_directions_have_unit_length_and_zero_stays_zero(decoder: SAE) -> None:
    norms = Dictionary(decoder).directions.norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0] * 4 + [0.0] + [1.0] * 4))


@pytest.mark.usefixtures("path")
def test_correlations_and_inner_products_are_those_of_the_unit_directions(decoder: SAE) -> None:
    x, latents = torch.randn(6, 5), torch.stack([torch.randperm(9)[:4] for _ in range(6)])
    found = Dictionary(decoder).candidates(x, latents)
    d, u = Dictionary(decoder).directions.numpy(), (x - decoder.b_dec).numpy()
    for b, chosen in enumerate(latents.numpy()):
        np.testing.assert_allclose(found.correlation[b], d[chosen] @ u[b], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(gram_of(found)[b], d[chosen] @ d[chosen].T, rtol=1e-5, atol=1e-6)
    assert found.there.all()


@pytest.mark.usefixtures("path")
def test_where_there_is_no_candidate_it_is_said_and_correlates_with_nothing(decoder: SAE) -> None:
    latents = torch.tensor([[3, -1, 8], [-1, -1, -1]])
    found = Dictionary(decoder).candidates(torch.randn(2, 5), latents)
    assert found.there.tolist() == [[True, False, True], [False, False, False]]
    assert (found.correlation[~found.there] == 0).all()
    assert found.latents.min() == 0


@pytest.mark.usefixtures("path")
def test_no_rows_have_no_candidates(decoder: SAE) -> None:
    found = Dictionary(decoder).candidates(torch.zeros(0, 5), torch.zeros(0, 4, dtype=torch.int64))
    assert found.correlation.shape == (0, 4)
    assert gram_of(found).shape == (0, 4, 4)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("n_candidates", [1, 64, 1000, 100_000])
def test_a_batch_has_a_row_at_least_and_stays_small(decoder: SAE, n_candidates: int) -> None:
    rows = Dictionary(decoder).batch_rows(n_candidates)
    assert 1 <= rows <= 2048
    assert rows == 1 or rows * n_candidates**2 <= 1 << 22
