import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper_mnist_counts import IMAGES, parts_at, rates, verdict
from paper_mnist_page import page
from paper_mnist_saes import grid, name_of, train_missing, training_of
from paper_mnist_shapes import SIDE, extents, weighted_median

import saecodec
from saecodec.distortion import Distortion
from saecodec.formats.array_source import MemoryArray
from saecodec.training import Aim, Settings

DOCS = Path(__file__).parent.parent / "docs"


def test_what_is_missing_of_the_grid_is_trained_and_told_as_the_page_has_it(tmp_path):
    rng = np.random.default_rng(0)
    x = ((rng.random((640, 12)) * (rng.random((640, 12)) < 0.2)) @ rng.random((12, 30))).astype(np.float32)
    rows, wanted = MemoryArray(x), [Settings(16, aim=Aim("l0", k), tokens=1280, batch=64) for k in (2, 4)]
    told: list[str] = []
    train_missing(rows, tmp_path, wanted[:1], told.append)
    train_missing(rows, tmp_path, wanted, told.append)  # the first is there
    assert [line.partition(":")[0] for line in told] == ["mnist_16_k2", "mnist_16_k4"]
    sae = saecodec.load_sae(tmp_path / "mnist_16_k4")
    facts, distortion = training_of(tmp_path / "mnist_16_k4", sae, rows), Distortion(30)
    distortion.add(x, sae.rows(sae.features(x)).numpy())
    assert facts["test_nmse"] == pytest.approx(distortion.nmse)
    assert (facts["k"], facts["steps"], facts["batch"]) == (4, 20, 64)
    others = [replace(wanted[0], tokens=2560)]
    with pytest.raises(SystemExit, match=r"mnist_16_k2: was trained with other settings"):
        train_missing(rows, tmp_path, others, told.append)


def test_the_grid_has_no_k_above_half_a_width():
    names = [name_of(settings) for settings in grid()]
    assert len(names) == len(set(names)) == 41
    assert "mnist_32_k16" in names
    assert "mnist_32_k32" not in names


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
