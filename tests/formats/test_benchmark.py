"""The benchmark measures what it says: other rows than it fits on, real bytes, real decodes."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from synthetic_report import synthetic_measure, synthetic_report

import saecodec
from saecodec.cli.app import app
from saecodec.errors import InputError, MissingPieceError, OutputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.arrays import open_array
from saecodec.formats.benchmark import Curve, Measured, Rows, bench_peer, bench_sae, report
from saecodec.formats.plot import check_plot_path, plot_comparison, plot_curves
from saecodec.peers.registry import families

BUNDLED = Path(str(files("saecodec") / "bundled"))
ROWS, SAE = BUNDLED / "minilm_l3_rows.npy", BUNDLED / "minilm_l3_sae"


def point(bits: float, nmse: float) -> Measured:
    return Measured("x", "s", bits, nmse, 1.0, 1.0, 0, 0, 0.0)


@pytest.fixture(scope="module")
def rows() -> Rows:
    return Rows.read(open_array(ROWS), None, 4096, 4096)[0]


def test_without_a_calibration_file_one_half_calibrates_and_the_other_is_measured(rows: Rows) -> None:
    x = np.load(ROWS).astype(np.float32)
    np.testing.assert_array_equal(rows.calibration, x[:1024])
    np.testing.assert_array_equal(rows.test, x[1024:])
    few, _ = Rows.read(open_array(ROWS), None, 10, 20)
    np.testing.assert_array_equal(few.calibration, x[:20])
    np.testing.assert_array_equal(few.test, x[1024:1034])


def test_rows_that_are_also_calibrated_on_are_refused() -> None:
    x = np.load(ROWS).astype(np.float32)
    with pytest.raises(InputError, match="is also the calibration"):
        Rows.read(open_array(ROWS), open_array(ROWS), 100, 100)
    with pytest.raises(InputError, match="50 of 100 rows to be measured are also among the calibration"):
        Rows.read(MemoryArray(x[50:150]), MemoryArray(x[:100]), 100, 100)
    mixed = np.concatenate([x[:1], x[1000:1199]])
    assert Rows.read(MemoryArray(mixed), MemoryArray(x[:100]), 200, 100)[1] == 1


def test_what_cannot_be_compared_is_refused() -> None:
    x = np.load(ROWS).astype(np.float32)
    with pytest.raises(InputError, match="rows of 383 values, but"):
        Rows.read(MemoryArray(x), MemoryArray(x[:, 1:]), 100, 100)
    with pytest.raises(InputError, match="too few"):
        Rows.read(MemoryArray(x[:1]), None, 100, 100)
    x[70] = np.nan
    with pytest.raises(InputError, match="row 70 holds NaN"):
        Rows.read(MemoryArray(x), None, 100, 100)


def test_bits_at_a_target_lie_on_the_line_between_its_neighbours() -> None:
    curve = Curve("x", False, (point(400, 0.01), point(100, 0.04), point(50, 0.4)))
    assert curve.bits_at(0.02) == pytest.approx(200)
    assert curve.bits_at(0.04) == pytest.approx(100)
    assert curve.bits_at(0.005) is None
    assert curve.bits_at(0.5) is None
    assert Curve("x", False, ()).bits_at(0.1) is None


def test_our_curve_encloses_the_targets_and_counts_the_file(rows: Rows) -> None:
    lines: list[str] = []
    (curve,) = bench_sae(rows, saecodec.load_sae(SAE), ["none"], (0.3, 0.2), lines.append)
    assert len(curve.points) == len(lines) == 2
    for target in (0.3, 0.2):
        assert curve.bits_at(target) is not None
    for found in curve.points:
        assert found.model_bytes > 1000
        assert found.sae_bytes == 4 * (1536 * 384 + 384)
        assert 20 < found.bits_per_row < 300
        assert min(found.encode_mb_s, found.decode_mb_s) > 0


def test_a_target_below_the_floor_ends_the_curve_with_a_reason(rows: Rows) -> None:
    lines: list[str] = []
    (curve,) = bench_sae(rows, saecodec.load_sae(SAE), ["none"], (0.3, 0.001), lines.append)
    assert len(curve.points) == 1
    assert "out of reach" in lines[-1]


def test_a_peer_is_measured_on_the_rows_it_was_not_fitted_on(rows: Rows) -> None:
    family = next(family for family in families() if family.name.startswith("PCA"))
    curve = bench_peer(rows, family, (0.3,), lambda line: None)
    found = curve.points[0]
    peer = family.fit(rows.calibration, family.settings(384)[0])
    data = peer.encode(rows.test)
    error = (rows.test - peer.decode(data)).astype(np.float64)
    variance = float(((rows.test - rows.test.mean(0, dtype=np.float64)) ** 2).sum())
    assert found.bits_per_row == 8 * len(data) / len(rows.test)
    assert found.nmse == pytest.approx(float((error**2).sum()) / variance, rel=1e-6)
    assert found.model_bytes == peer.model_bytes
    assert curve.points[-1].nmse < 0.3 <= curve.points[-2].nmse  # nothing beyond the last target is measured


def test_the_command_reports_a_table_and_json(tmp_path: Path) -> None:
    arguments = ["bench", str(ROWS), "-s", str(SAE), "--modes", "none", "--peers", "PCA,int", "--targets", "0.3,0.2"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    for text in ("1,024 rows of 384 values", "PCA + range coder", "int + zstd", "SAE decoder"):
        assert text in shown.stdout
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [curve["ours"] for curve in found["curves"]] == [True, False, False]
    assert found["curves"][0]["bits_per_row_at"].keys() == {"0.3", "0.2"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--modes", "magic"], "unknown mode 'magic'"),
        (["--peers", "gzip"], "no peer is called 'gzip'"),
        (["--targets", "0.2,2"], "NMSE values between 0 and 1"),
        (["--plot", "rd.gif"], "a plot is a .png or .svg file"),
    ],
)
def test_impossible_options_are_refused_before_anything_runs(arguments: list[str], message: str) -> None:
    found = CliRunner().invoke(app, ["bench", str(ROWS), *arguments])
    assert found.exit_code != 0
    assert message in found.output


@pytest.mark.parametrize("name", ["rd.png", "rd.svg"])
def test_a_plot_is_drawn(tmp_path: Path, name: str) -> None:
    try:
        check_plot_path(name)
    except MissingPieceError as error:
        pytest.skip(str(error))
    rows = Rows(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
    curves = [Curve("ours", True, (point(40, 0.3), point(90, 0.1))), Curve("theirs", False, (point(100, 0.2),))]
    plot_curves(report(curves, rows, 0, (0.3, 0.1)), "a title", tmp_path / name)
    data = (tmp_path / name).read_bytes()
    assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")


@pytest.mark.parametrize("name", ["rd.png", "rd.svg"])
def test_a_comparison_is_drawn_with_its_metric(tmp_path: Path, name: str) -> None:
    try:
        check_plot_path(name)
    except MissingPieceError as error:
        pytest.skip(str(error))
    facts = synthetic_report(3, names=("_costs $1$", "</script>"), metric=True)
    facts["saes"][1]["points"][0] |= {"nmse": None, "bits_interval": None, "metric": None}
    plot_comparison(facts, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    if name.endswith("svg"):
        for text in ("_costs $1$", "probe:accuracy", "&lt;/script&gt;", "3 SAEs on test.npy", "PCA (real bytes"):
            assert f"<!-- {text}" in data.decode().replace("<!--  ", "<!-- ")
        plot_comparison(facts | {"metric": None}, tmp_path / name, force=True)
        assert b"probe:accuracy" not in (tmp_path / name).read_bytes()
        facts["baselines"] = {"0.12": None, "0.2": {"pca": None}}
        plot_comparison(facts, tmp_path / name, force=True)
        assert b"PCA (real bytes" not in (tmp_path / name).read_bytes()


def test_one_sae_at_one_point_is_drawn(tmp_path: Path) -> None:
    try:
        check_plot_path("rd.svg")
    except MissingPieceError as error:
        pytest.skip(str(error))
    plot_comparison(synthetic_measure(), tmp_path / "rd.svg")
    for text in (b"1 SAE on test.npy", b"PCA (real bytes"):
        assert text in (tmp_path / "rd.svg").read_bytes()


def test_a_plot_of_another_kind_is_refused() -> None:
    with pytest.raises(OutputError, match="a plot is a"):
        check_plot_path("rd.pdf")
