"""Arrays of attention heads, for an SAE of `hook_z`, go through files in their own shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saecodec.errors import FormatError, InputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.decoding import decode_file, verify_file
from saecodec.formats.encoding import encode_array, fit_array
from saecodec.formats.header import Header
from saecodec.formats.measuring import measure_array
from saecodec.formats.saec import open_saec
from saecodec.sae import SAE

MakeSAE = Callable[..., SAE]


@pytest.fixture
def sae(make_sae: MakeSAE) -> SAE:
    """Of rows that are two heads."""
    return replace(make_sae("topk"), row_dims=2)


@pytest.fixture
def heads(sae: SAE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 12, 2, sae.width // 2)).astype(np.float32)


def test_a_file_of_heads_has_their_shape_and_the_levels_of_the_rows(
    sae: SAE, heads: np.ndarray, tmp_path: Path
) -> None:
    flat = heads.reshape(5, 12, sae.width)
    encode_array(MemoryArray(heads), tmp_path / "heads.saec", sae=sae, embed="decoder", chunk_rows=16)
    encode_array(MemoryArray(flat), tmp_path / "rows.saec", sae=sae, embed="decoder", chunk_rows=16)
    with open_saec(tmp_path / "heads.saec") as file, open_saec(tmp_path / "rows.saec") as rows:
        assert (file.shape, rows.shape) == (heads.shape, flat.shape)
        np.testing.assert_array_equal(file.rows(), rows.rows())
        assert decode_file(file, tmp_path / "heads.npy") == heads.shape
        np.testing.assert_array_equal(np.load(tmp_path / "heads.npy").reshape(60, -1), rows.rows())
        assert decode_file(file, tmp_path / "part.npy", rows=(3, 10)) == (7, *heads.shape[2:])
        distortion = verify_file(file, against=MemoryArray(heads)).distortion
        assert distortion is not None
        assert distortion.n_rows == 60
        with pytest.raises(InputError, match="was made from shape"):
            verify_file(file, against=MemoryArray(flat))


def test_heads_are_measured_and_fitted_as_rows(sae: SAE, heads: np.ndarray) -> None:
    flat = heads.reshape(5, 12, sae.width)
    whole, rows = (measure_array(MemoryArray(x), sae=sae) for x in (heads, flat))
    assert (whole["shape"], rows["shape"]) == (list(heads.shape), list(flat.shape))
    assert (whole["nmse"], whole["bits_per_scalar"]) == (rows["nmse"], pytest.approx(rows["bits_per_scalar"], rel=0.05))
    codecs = [fit_array(MemoryArray(x), sae).codec_id for x in (heads, flat)]
    assert codecs[0] == codecs[1]


def test_an_sae_of_rows_of_one_dimension_takes_no_heads(make_sae: MakeSAE, heads: np.ndarray) -> None:
    with pytest.raises(InputError, match="codes rows of"):
        measure_array(MemoryArray(heads), sae=make_sae("topk"))


@pytest.mark.parametrize("shape", [[8], [2, 3], [0, 8], [2.0, 4], [1] * 9, "24", [-2, -4]])
def test_a_header_whose_row_shape_is_not_its_width_is_refused(shape: object) -> None:
    about = {"name": "n", "source": "s", "architecture": "a", "n_latents": 3}
    header = Header(8, "float32", 7, "none", "ab" * 32, "cd" * 32, about, 0.5, "factorized", "me")
    good = replace(header, row_shape=(2, 4))
    assert Header.from_bytes(good.to_bytes(), "test") == good
    import msgpack

    record = msgpack.unpackb(good.to_bytes()) | {"row_shape": shape}
    with pytest.raises(FormatError, match="row_shape"):
        Header.from_bytes(msgpack.packb(record), "test")
