"""Every byte of a file is charged to a row, and the streams' bytes to latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saecodec.attribution import Attribution, shared
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.encoding import encode_array
from saecodec.formats.point import Ground, read_point
from saecodec.formats.saec import open_saec
from saecodec.goal import Goal
from saecodec.layers import Layers
from saecodec.sae import SAE


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("embed", ["tables", "decoder"])
def test_rows_and_what_they_share_add_up_to_the_file(sae: SAE, tmp_path: Path, residual: bool, embed: str) -> None:
    x = np.random.default_rng(0).normal(size=(700, sae.width)).astype(np.float32)
    path = tmp_path / "x.saec"
    encode_array(MemoryArray(x), path, sae=sae, goal=Goal.of(residual=residual), chunk_rows=100, embed=embed)
    with open_saec(path, sae=sae) as file:
        point = read_point(file, Ground(MemoryArray(x)))
    assert sum(point.parts.values()) == point.file_bytes == path.stat().st_size
    assert point.rows.bits.sum() + point.rows.shared == pytest.approx(8 * point.file_bytes, rel=1e-12)
    assert (point.rows.bits > 0).all()
    tables = 8 * (point.parts["tables"] + point.parts["decoder"])
    assert tables < point.rows.shared < tables + 8 * 600  # the rest is header, heads and index
    assert point.attribution.support.sum() == pytest.approx(8 * point.parts["support"])
    assert point.attribution.levels.sum() == pytest.approx(8 * point.parts["levels"])
    assert point.bits[0] == pytest.approx(8 * point.file_bytes / 700)
    assert point.nmses[0] == pytest.approx(point.distortion.nmse)


def test_a_row_with_more_nonzeros_costs_more_and_a_silent_latent_nothing(sae: SAE) -> None:
    x = np.random.default_rng(1).normal(size=(400, sae.width)).astype(np.float32)
    codec = Codec.fit(sae, x)
    (layers,) = codec.chunks(codec.encode(x))
    parts = codec.latents.chunk_bytes(codec.latents.pack(layers.codes))
    attribution = Attribution(codec)
    rows, support, levels = attribution.add(layers, parts, 0, 5000)
    counts = np.diff(layers.codes.indptr)
    assert np.corrcoef(rows, counts)[0, 1] > 0.8
    assert rows.sum() == pytest.approx(8 * 5000)
    silent = np.bincount(layers.codes.latents, minlength=sae.n_latents) == 0
    assert (attribution.support[silent] == 0).all()
    assert (len(support), len(levels)) == (layers.codes.nnz, layers.codes.nnz)
    assert attribution.nnz.sum() == layers.codes.nnz


def test_a_chunk_without_nonzeros_is_shared_evenly(sae: SAE) -> None:
    codec = Codec.fit(sae, np.random.default_rng(1).normal(size=(40, sae.width)).astype(np.float32))
    empty = Codes.from_dense(np.zeros((4, sae.n_latents), np.int64))
    rows, *_ = Attribution(codec).add(Layers(empty), codec.latents.chunk_bytes(codec.latents.pack(empty)), 0, 10)
    assert rows.tolist() == [20.0] * 4


def test_sharing_keeps_the_total() -> None:
    assert shared(12.0, np.array([1.0, 2.0])).tolist() == [4.0, 8.0]
    assert shared(12.0, np.zeros(3)).tolist() == [4.0] * 3
    assert shared(0.0, np.zeros(0)).tolist() == []
