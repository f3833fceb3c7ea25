"""`export`: a file's rows or latents as another kind of file."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from command_line import run

from saecodec.formats.arrays import open_array
from saecodec.formats.latent_source import open_latents

BUNDLED = Path(str(files("saecodec") / "bundled"))
SAE = str(BUNDLED / "minilm_l3_sae")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """120 rows in 3-D as a file (a.saec), its rows (a.npy) and its feature activations as a file (z.saec)."""
    folder = tmp_path_factory.mktemp("export")
    np.save(folder / "x.npy", np.load(BUNDLED / "minilm_l3_rows.npy")[:120].reshape(3, 40, 384))
    run("encode", folder / "x.npy", "-s", SAE, "-o", folder / "a.saec")
    run("decode", folder / "a.saec", "-s", SAE, "-o", folder / "rows.npy")
    run("decode", "--latents", folder / "a.saec", "-s", SAE, "-o", folder / "cache")
    run("encode", "--latents", folder / "cache", "--step", "0", "-o", folder / "z.saec")
    return folder


def rows_of(path):
    return np.concatenate(list(open_array(path).batches(50)))


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "pt", "parquet", "zarr"])
def test_rows_go_into_an_array_of_any_kind_beside_the_file(folder, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    if kind == "zarr":
        pytest.importorskip("zarr", exc_type=Exception)
    output = run("export", folder / "a.saec", "--to", kind, "-s", SAE).output
    assert f"a.{kind}: float16 array of shape (3, 40, 384)" in output
    assert open_array(folder / f"a.{kind}").shape == (3, 40, 384)
    np.testing.assert_array_equal(rows_of(folder / f"a.{kind}"), rows_of(folder / "rows.npy"))
    again = run("export", folder / "a.saec", "--to", kind, "-s", SAE, ok=False).output
    assert "already exists; pass --force" in again
    part = ["--rows", "10:20", "--dtype", "float32", "--force"]
    run("export", folder / "a.saec", "--to", kind, "-s", SAE, *part)
    assert open_array(folder / f"a.{kind}").dtype == "float32"
    np.testing.assert_allclose(rows_of(folder / f"a.{kind}"), rows_of(folder / "rows.npy")[10:20], atol=2e-3)


@pytest.mark.parametrize("name", ["a.parquet", "a.zarr"])
def test_decode_writes_what_export_does(folder, tmp_path, name):
    pytest.importorskip({"a.parquet": "pyarrow", "a.zarr": "zarr"}[name], exc_type=Exception)
    run("decode", folder / "a.saec", "-s", SAE, "-o", tmp_path / name)
    np.testing.assert_array_equal(rows_of(tmp_path / name), rows_of(folder / "rows.npy"))


def same_files(a, b):
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_rows_and_latents_go_into_a_delphi_cache(folder):
    run("export", folder / "a.saec", "--to", "delphi", "-s", SAE)
    same_files(folder / "a.delphi", folder / "cache")
    run("export", folder / "z.saec", "--to", "delphi", "-o", folder / "layers.3")
    same_files(folder / "layers.3", folder / "cache")


def test_latents_go_into_a_sparse_matrix_and_into_no_array(folder):
    run("export", folder / "z.saec", "--to", "npz", "--rows", ":40")
    assert open_latents(folder / "z.npz").n_rows == 40
    output = run("export", folder / "z.saec", "--to", "npy", ok=False).output
    assert "holds feature activations, not rows" in output
    assert not (folder / "z.npy").exists()


def test_a_name_of_another_kind_is_refused(folder):
    result = run("export", folder / "a.saec", "--to", "parquet", "-o", folder / "b.npy", ok=False)
    assert result.exit_code == 2
    assert "is not the name of a parquet file" in result.output
