"""Tables of where the bits go are those of the file: they add up, and name the latents, rows and pairs they should."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from coded_rows import coded, identity_sae

from saecodec.codes import Codes
from saecodec.formats import detail
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.detail import DetailCollector
from saecodec.formats.groups import Groups
from saecodec.formats.measuring import Extras, measure_array
from saecodec.formats.point import Ground, Point, read_point
from saecodec.formats.read_back import Decoded, RowFigures
from saecodec.goal import Goal
from saecodec.nonlinearity import ReLU
from saecodec.sae import SAE, Encoder

Rows = npt.NDArray[np.float32]
N = 300


class Detailed:
    """What is told of a file of rows x. dense: bits of each row's latents. rises: NMSE without each latent."""

    def __init__(
        self, x: Rows, sae: SAE, ground: Ground | None = None, groups: Groups | None = None, **options: Any
    ) -> None:
        ground = Ground(MemoryArray(x)) if ground is None else ground
        self.dense, self.rises = np.zeros((len(x), sae.n_latents)), np.zeros(sae.n_latents)

        with coded(x, sae, **options) as file, DetailCollector(file.decoder, ground, groups) as collector:

            def watch(chunk: Decoded) -> None:
                codes, rows = chunk.layers.codes, slice(chunk.first_row, chunk.first_row + len(chunk.x))
                np.add.at(self.dense, (chunk.first_row + codes.rows(), codes.latents), chunk.support + chunk.levels)
                for latent in range(sae.n_latents):
                    left = codes.to_dense()
                    left[:, latent] = 0
                    x_hat = file.decoder.reconstruct(Codes.from_dense(left, codes.columns), chunk.layers.residual)
                    self.rises[latent] += (
                        np.square(x[rows].astype(np.float64) - x_hat).sum() - chunk.squared_error.sum()
                    )

            self.point: Point = read_point(file, ground, [collector.add, watch])
            self.facts = collector.facts(self.point)
            self.again = collector.facts(self.point)
        self.rises /= ground.spread.sum()
        self.columns = {name: np.array(values) for name, values in self.facts["latents"]["columns"].items()}
        assert json.loads(json.dumps(self.facts, allow_nan=False)) == self.facts


@pytest.fixture(scope="module")
def rows(sae: SAE) -> Rows:
    x = np.random.default_rng(0).normal(size=(N, sae.width)).astype(np.float32)
    x[17] *= 10
    return x


@pytest.fixture(scope="module", params=[False, True])
def found(request: pytest.FixtureRequest, sae: SAE, rows: Rows) -> Detailed:
    """With and without a residual layer."""
    return Detailed(rows, sae, goal=Goal.of(residual=request.param))


def test_bits_of_latents_add_up_to_the_streams_of_the_file(found: Detailed) -> None:
    columns, parts = found.columns, found.point.parts
    assert columns["support"].sum() == pytest.approx(8 * parts["support"] / N, rel=1e-4)
    assert columns["levels"].sum() == pytest.approx(8 * parts["levels"] / N, rel=1e-4)
    np.testing.assert_allclose(columns["support"] + columns["levels"], columns["bits"], rtol=1e-4)
    np.testing.assert_allclose(columns["bits"], found.dense.mean(0)[columns["latent"]], rtol=1e-4)
    latents = found.facts["latents"]
    assert latents["rest_bits"] == pytest.approx(0, abs=1e-6)
    assert latents["of"] == 24
    assert latents["silent"] == 24 - latents["shown"] == (found.dense.sum(0) == 0).sum()
    assert (np.diff(columns["bits"]) <= 0).all()
    assert found.facts["step"] == found.point.step


def test_removal_is_what_decoding_without_the_latent_adds_to_the_nmse(found: Detailed) -> None:
    columns = found.columns
    np.testing.assert_allclose(columns["removal_nmse"], found.rises[columns["latent"]], rtol=1e-3, atol=1e-6)
    costs = columns["removal_nmse"] > 0
    assert costs.sum() > 5
    ratio = (columns["bits"] / np.where(costs, columns["removal_nmse"], 1))[costs]
    np.testing.assert_allclose(columns["bits_per_nmse"][costs].astype(float), ratio, rtol=1e-4)
    assert all(value is None for value in columns["bits_per_nmse"][~costs])


def test_rates_are_shares_of_rows(found: Detailed) -> None:
    columns = found.columns
    np.testing.assert_allclose(columns["rate"], (found.dense > 0).mean(0)[columns["latent"]], rtol=1e-5)
    assert columns["rate"].sum() == pytest.approx(found.point.statistics.l0, rel=1e-4)


def test_worst_rows_are_those_with_the_most_error(found: Detailed) -> None:
    columns, error = found.facts["worst_rows"]["columns"], found.point.rows.squared_error
    order = np.argsort(-error)[:50]
    assert columns["row"] == order.tolist()
    np.testing.assert_allclose(columns["squared_error"], error[order], rtol=1e-5)
    np.testing.assert_allclose(columns["share"], error[order] / error.sum(), rtol=1e-5)
    np.testing.assert_allclose(columns["bits"], found.point.rows.bits[order], rtol=1e-5)
    assert columns.keys() == {"row", "bits", "squared_error", "share"}


def test_histograms_count_rows_and_latents(found: Detailed) -> None:
    rows, latents = (found.facts["histograms"][name] for name in ("row_bits", "latent_bits"))
    assert sum(rows["counts"]) == N
    assert sum(latents["counts"]) == found.facts["latents"]["shown"]
    assert latents["log"]
    for one in (rows, latents):
        assert len(one["edges"]) == len(one["counts"]) + 1
        assert (np.diff(one["edges"]) > 0).all()
    bits = found.point.rows.bits
    assert (rows["edges"][0], rows["edges"][-1]) == pytest.approx((bits.min(), bits.max()), rel=1e-5)
    expected = np.histogram(bits, 40)[0]
    assert np.abs(np.array(rows["counts"]) - expected).sum() <= 2


def test_it_may_be_asked_twice(found: Detailed) -> None:
    assert found.again == found.facts


def test_of_many_latents_the_dearest_and_the_cheapest_to_lose_are_shown(
    sae: SAE, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Detailed(rows, sae)
    monkeypatch.setattr(detail, "SHOWN", 8)
    monkeypatch.setattr(detail, "_CHEAPEST", 3)
    part = Detailed(rows, sae)
    columns = whole.columns
    ratio = np.array([np.inf if value is None else value for value in columns["bits_per_nmse"]])
    cheapest = columns["latent"][np.argsort(-ratio, kind="stable")][:3]
    dearest = [latent for latent in columns["latent"] if latent not in cheapest][:5]
    shown = part.columns["latent"].tolist()
    assert set(shown) == {*cheapest, *dearest}
    assert (part.facts["latents"]["shown"], part.facts["latents"]["of"]) == (8, 24)
    assert (np.diff(part.columns["bits"]) <= 0).all()
    rest = columns["bits"].sum() - part.columns["bits"].sum()
    assert part.facts["latents"]["rest_bits"] == pytest.approx(rest, rel=1e-4)
    assert part.facts["latents"]["silent"] == whole.facts["latents"]["silent"]


def test_rows_are_told_as_they_stand_in_the_array_and_their_sequence(sae: SAE, rows: Rows) -> None:
    ids, places = np.repeat([7, 3, 7], 100), np.tile(np.arange(100), 3)
    ground = Ground(MemoryArray(rows), ids, numbers=np.arange(N) * 2 + 1, positions=places + 5)
    columns = Detailed(rows, sae, ground).facts["worst_rows"]["columns"]
    numbers = np.array(columns["row"])
    at = (numbers - 1) // 2
    assert 17 in at
    assert columns["sequence"] == ids[at].tolist()
    assert columns["position"] == (places[at] + 5).tolist()
    by_ids = Detailed(rows, sae, Ground(MemoryArray(rows), ids)).facts["worst_rows"]["columns"]
    assert by_ids["position"] == places[by_ids["row"]].tolist()


def test_groups_are_in_it(sae: SAE, rows: Rows) -> None:
    labels = np.array(["even", "odd"])[np.arange(N) % 2]
    told = Detailed(rows, sae, groups=Groups(labels))
    columns = told.facts["groups"]["columns"]
    assert columns["group"] == ["even", "odd"]
    assert 150 * sum(columns["bits"]) == pytest.approx(told.point.rows.bits.sum(), rel=1e-5)
    assert Detailed(rows[:40], sae).facts["groups"] is None


# -- pairs -------------------------------------------------------------------------------------------------------------


def test_planted_duplicates_and_children_are_found() -> None:
    """Latents 0 and 1 have one direction; 4 fires in a part of the rows in which 5 does."""
    eye = torch.eye(8)
    w_dec = torch.cat([eye[:1], eye])  # latent i + 1 is value i
    encoder = Encoder(torch.cat([eye[:1], eye]).T.contiguous(), torch.full((9,), -0.5), ReLU(), False)
    sae = SAE(w_dec, torch.zeros(8), encoder, "relu", "twins")
    rng = np.random.default_rng(0)
    x = (rng.random((2000, 8)) * (rng.random((2000, 8)) < 0.2) * 4).astype(np.float32)
    x[:, 3] = np.where(x[:, 4] > 2, x[:, 3], 0)
    told = Detailed(x, sae)
    pairs, rate = told.facts["pairs"], (told.dense > 0).mean(0)
    assert pairs["latents"] == 9
    twins = pairs["near_duplicates"]
    assert twins["of"] == 1
    assert (twins["columns"]["a"], twins["columns"]["b"]) == ([0], [1])
    assert (twins["columns"]["jaccard"], twins["columns"]["cosine"]) == ([1.0], [1.0])
    assert twins["columns"]["saved"][0] > 0.4  # all that one of them takes: the entropy of its firing
    parents = pairs["parents"]["columns"]
    assert (parents["child"], parents["parent"], pairs["parents"]["of"]) == ([4], [5], 1)
    assert parents["given"] == [1.0]
    assert (parents["rate_child"][0], parents["rate_parent"][0]) == pytest.approx((rate[4], rate[5]))


def test_independent_latents_make_no_pairs() -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((1000, 8)) * (rng.random((1000, 8)) < 0.2)).astype(np.float32)
    pairs = Detailed(x, identity_sae()).facts["pairs"]
    assert (pairs["near_duplicates"]["of"], pairs["parents"]["of"]) == (0, 0)
    assert set(map(len, pairs["near_duplicates"]["columns"].values())) == {0}
    assert set(map(len, pairs["parents"]["columns"].values())) == {0}


# -- edges -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [1, 2, 90])
def test_rows_in_which_nothing_fires(sae: SAE, n_rows: int) -> None:
    x = np.repeat(sae.b_dec.numpy()[None], n_rows, 0) + np.linspace(0, 1e-3, n_rows, dtype=np.float32)[:, None]
    facts = (
        Detailed(x, sae).facts
        if n_rows > 1
        else measure_array(MemoryArray(x), sae=sae, extras=Extras(detail=True))["detail"]
    )
    assert facts["latents"]["shown"] == 0
    assert facts["latents"]["silent"] == facts["latents"]["of"] == 24
    assert facts["histograms"]["latent_bits"]["counts"] == []
    assert sum(facts["histograms"]["row_bits"]["counts"]) == n_rows
    assert len(facts["worst_rows"]["columns"]["row"]) == min(n_rows, 50)


@pytest.mark.parametrize("bits", [[5.0, np.nextafter(5.0, 6)], [0.0, 0.0], [3.0], [1e9, 1e9 + 1e-6], [2.0, 2.1]])
def test_rows_that_cost_almost_the_same_have_a_histogram(sae: SAE, bits: list[float]) -> None:
    x = np.random.default_rng(0).normal(size=(len(bits), sae.width)).astype(np.float32)
    ground = Ground(MemoryArray(x))
    with coded(x, sae) as file, DetailCollector(file.decoder, ground) as collector:
        point = read_point(file, ground, [collector.add])
        facts = collector.facts(replace(point, rows=RowFigures(np.array(bits), 0.0, point.rows.squared_error)))
    histogram = facts["histograms"]["row_bits"]
    assert sum(histogram["counts"]) == len(bits)
    assert histogram["edges"][0] <= min(bits) <= max(bits) <= histogram["edges"][-1] * (1 + 1e-6)
