"""The SAE of the first latents of another."""

from __future__ import annotations

import pytest
import torch

from saecodec.encoder import Encoder
from saecodec.nonlinearity import Gated, JumpReLU, Nonlinearity, ReLU, TopK
from saecodec.sae import SAE
from saecodec.training.first_latents import first_latents

D, F = 5, 12


def sae(nonlinearity: Nonlinearity) -> SAE:
    encoder = Encoder(torch.randn(D, F), 0.1 * torch.randn(F), nonlinearity, True)
    return SAE(torch.randn(F, D), torch.randn(D), encoder, "any", metadata={"a": 1})


@pytest.mark.parametrize("nonlinearity", [ReLU(), JumpReLU(torch.rand(F)), Gated(*torch.randn(3, F)), TopK(F)])
@pytest.mark.parametrize("n", [1, 7, F])
def test_its_activations_are_the_first_ones(nonlinearity: Nonlinearity, n: int) -> None:
    whole = sae(nonlinearity)
    part, x = first_latents(whole, n), torch.randn(30, D)
    assert part.n_latents == n
    torch.testing.assert_close(part.encode(x), whole.encode(x)[:, :n])
    torch.testing.assert_close(part.w_dec, whole.w_dec[:n])
    assert part.metadata == whole.metadata
    part.w_dec.zero_()
    assert whole.w_dec.count_nonzero() == D * F, "it has weights of its own"


@pytest.mark.parametrize("k", [2, 5])
def test_a_top_k_keeps_as_many_of_the_first_ones_as_there_are(k: int) -> None:
    whole = sae(TopK(k))
    part, x = first_latents(whole, 4), torch.randn(30, D)
    z = part.encode(x)
    assert isinstance(whole.encoder, Encoder)
    h = ((x - whole.b_dec) @ whole.encoder.w_enc + whole.encoder.b_enc)[:, :4]
    top = torch.topk(h, min(k, 4), dim=1)
    torch.testing.assert_close(z, torch.zeros(30, 4).scatter_(1, top.indices, top.values.relu()))
