import json
from pathlib import Path

import numpy as np
import pytest
import torch
import train_mnist
from hypothesis import given
from hypothesis import strategies as st
from paper_mnist_counts import IMAGES, parts_at, rates, verdict
from paper_mnist_page import page
from paper_mnist_shapes import SIDE, extents, weighted_median
from train_mnist import AUXILIARY, Selection, Weights, gradients, judged, save

import saecodec
from saecodec.distortion import Distortion

DOCS = Path(__file__).parent.parent / "docs"
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR")


def drawn(n_latents: int, n_rows: int = 40, width: int = 30) -> tuple[Weights, torch.Tensor]:
    generator = torch.Generator().manual_seed(n_latents)
    x = torch.rand(n_rows, width, generator=generator)
    weights = Weights.drawn(n_latents, x, generator)
    weights.w_enc.add_(torch.randn(weights.w_enc.shape, generator=generator), alpha=0.1)
    weights.b_enc.add_(torch.randn(n_latents, generator=generator), alpha=0.1)
    return weights, x


# Few latents go through a dense product, many through products one by one.
@pytest.mark.parametrize("n_latents, k", [(20, 3), (300, 2)])
@pytest.mark.parametrize("dead", [[], [2, 5]])
def test_gradients_are_those_of_autograd(n_latents, k, dead):
    weights, x = drawn(n_latents)
    numbers = torch.tensor(dead, dtype=torch.int64)
    found, fired = gradients(weights, x, Selection(k), numbers)
    free = Weights(*(tensor.clone().requires_grad_() for tensor in weights.all()))
    h = free.activations(x)
    kept = torch.zeros(h.numel())
    kept[torch.topk(h.detach().relu().view(-1), k * len(x)).indices] = 1
    z = h * kept.view(h.shape)
    missed = z @ free.w_dec + free.b_dec - x
    # What is left is a constant to the auxiliary loss, and so is the bias.
    auxiliary = (h[:, numbers].relu() @ free.w_dec[numbers] + missed.detach()).square().sum()
    ((missed.square().sum() + AUXILIARY * auxiliary) / len(x)).backward()
    along = (free.w_dec.grad * weights.w_dec).sum(1, keepdim=True) * weights.w_dec
    wanted = [free.w_enc.grad, free.b_enc.grad, free.w_dec.grad - along, free.b_dec.grad]
    for a, b in zip(found.all(), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert torch.equal(fired, (z != 0).any(0))


def test_selection_keeps_the_largest_after_any_threshold():
    generator = torch.Generator().manual_seed(0)
    select = Selection(2)
    for scale in (1.0, 100.0, 0.01):  # thresholds of the batch before are far too high, then far too low
        h = scale * torch.randn(50, 30, generator=generator)
        places = select(h)
        assert set(places.tolist()) == set(torch.topk(h.view(-1), 100).indices.tolist())
        assert select.threshold == h.view(-1)[places].min()


def test_training_lowers_the_error_and_loads_as_it_was_judged(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(train_mnist, "BATCH", 64)
    _, mixed = drawn(12, 12, 30)
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand(512, 12, generator=generator) * (torch.rand(512, 12, generator=generator) < 0.2)) @ mixed
    with torch.no_grad():
        weights, threshold, n_steps = train_mnist.train(x, 24, 3, 64 * 200)
        facts = judged(weights, threshold, x)
        assert n_steps == 200
        assert facts["nmse"] < 0.25
        assert 2 < facts["l0"] < 4
        save(tmp_path / "sae", weights, threshold, {})
    sae = saecodec.load_sae(tmp_path / "sae")
    features, distortion = sae.features(x.numpy()), Distortion(30)
    distortion.add(x.numpy(), sae.rows(features).numpy())
    assert features.nnz / len(x) == pytest.approx(facts["l0"])
    assert distortion.nmse == pytest.approx(facts["nmse"], rel=1e-4)


def test_ink_and_pieces():
    images = np.zeros((4, SIDE, SIDE), np.float32)
    images[0, 2:4, 2:16] = 1
    images[1, 2:4, 2:9], images[1, 20:22, 2:9] = 1, 0.5
    images[2, 2:4, 2:16], images[2, 20, 20] = 1, 1  # a speck is ink and no piece
    images[3] = -1  # takes ink away
    ink, pieces = extents(images.reshape(4, -1))
    assert pieces.tolist() == [1, 2, 1, 0]
    np.testing.assert_allclose(ink * SIDE**2, [28, 28, 29, 0])


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 4)), min_size=1).filter(lambda v: any(w for _, w in v)))
def test_weighted_median_is_the_median_of_repeats(pairs):
    values, weights = np.array(pairs, np.float64).T
    repeats = np.sort(np.repeat(values, weights.astype(int)))
    assert weighted_median(values, weights) == repeats[(len(repeats) - 1) // 2]


def test_a_decoder_moves_differences_and_does_not_widen_them():
    at = {"bits_per_row": 50.0, "interval": [49.0, 51.0], "total_bits_per_row": 58.0}
    # Halfway, in logarithms, between two files with other tables. The decoder is 8 bits of each of 1,000 rows.
    fine = {"nmse": 0.2, "bytes": {"support": 5850, "tables": 400, "side": 0}}
    coarse = {"nmse": 0.3125, "bytes": {"support": 5650, "tables": 600, "side": 0}}
    parts = parts_at([fine, coarse], 0.25)
    assert parts == pytest.approx({"support": 5750, "tables": 500, "side": 0})
    small = rates(at, parts, 1000, 1000)
    assert small["parts"] == pytest.approx({"support": 46.0, "tables": 4.0})
    assert small["total"] == pytest.approx(at["total_bits_per_row"])
    assert small["data"] == pytest.approx(46)
    assert small["total_many"] == pytest.approx(46 + (4000 + 8000) / IMAGES)
    a = {"bits": 50.0, "data": 46.0, "total": 60.0, "total_many": 51.0}
    b = {"bits": 52.0, "data": 48.0, "total": 55.0, "total_many": 52.9}
    a["shared"], b["shared"] = 14000.0, 7000.0
    pair = {"a": "a", "b": "b", "bits": 2.0, "interval": [1.0, 3.0]}
    told = verdict({"differences": [pair]}, {"a": a, "b": b, "c": {}})
    assert told["shortest_from_rows"] == [{"from_rows": 0.0, "name": "b"}, {"from_rows": 3500.0, "name": "a"}]
    found = told["verdicts"]
    assert found["bits"] == {"best": "a", "bits": 50.0, "ties": [], "above": {"b": [2.0, 1.0, 3.0]}}
    assert found["total"]["best"] == "b"
    assert found["total"]["above"]["a"] == pytest.approx([5.0, 4.0, 6.0])
    near = verdict({"differences": [pair | {"interval": [-0.5, 4.5]}]}, {"a": a, "b": b})
    assert near["verdicts"]["bits"]["ties"] == ["b"]


def test_the_page_is_what_its_facts_say():
    facts = json.loads((DOCS / "paper_mnist.json").read_text())
    assert page(facts) == (DOCS / "paper_mnist.md").read_text()


def test_the_page_refuses_facts_that_its_words_do_not_fit():
    facts = json.loads((DOCS / "paper_mnist.json").read_text())
    facts["baselines"]["pca"]["bits_per_row"] = 1.0
    with pytest.raises(SystemExit, match="principal components"):
        page(facts)
