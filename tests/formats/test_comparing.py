"""A comparison is complete and strict: every byte of every file is told, and verdicts can be traced to the points."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from saecodec.errors import InputError, OutputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.comparing import Candidate, compare, named
from saecodec.formats.comparison_table import write_csv
from saecodec.formats.metric import Metric
from saecodec.formats.rate_curve import Setting
from saecodec.formats.selection import Selection
from saecodec.formats.two_part import decoder_bytes
from saecodec.sae import SAE

Rows = npt.NDArray[Any]
MakeSAE = Callable[..., SAE]
RealData = tuple[SAE, npt.NDArray[np.float16]]
TARGETS = [0.5, 0.7]


def candidates(**saes: SAE) -> list[Candidate]:
    return [Candidate(f"saes/{name}", lambda sae=sae: sae) for name, sae in saes.items()]  # type: ignore[misc]


@pytest.fixture(scope="module")
def rows(sae: SAE) -> Rows:
    return np.random.default_rng(0).normal(size=(300, sae.width)).astype(np.float32)


@pytest.fixture(scope="module")
def saes(make_sae: MakeSAE) -> dict[str, SAE]:
    """Two like each other, and a larger one."""
    return {"a": make_sae("topk"), "b": make_sae("topk", 2), "wide": make_sae("topk", 4, 8, 48)}


@pytest.fixture(scope="module")
def report(saes: dict[str, SAE], rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("labels")
    np.save(folder / "labels.npy", np.arange(300) % 3)
    metric = Metric("mine", lambda x, y: np.square(x - y).sum(1))
    return compare(
        MemoryArray(rows, "rows.npy"),
        candidates(**saes),
        TARGETS,
        setting=Setting(weights="int8"),
        metric=metric,
        group=str(folder / "labels.npy"),
    )


def test_it_is_strict_json_with_the_keys_that_the_page_reads(report: dict[str, Any]) -> None:
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    asked = "kind version input rows width selection search residual weights prior targets metric bootstrap saes at"
    assert report.keys() == {*asked.split(), "baselines", "pareto", "bd_rate", "crossings"}
    sae = "name path decoder_id architecture n_latents l0 floor decoder points saebench detail at"
    assert all(one.keys() == set(sae.split()) for one in report["saes"])
    assert (report["kind"], report["rows"], report["width"], report["input"]) == ("compare", 300, 8, "rows.npy")
    assert [one["name"] for one in report["saes"]] == ["a", "b", "wide"]
    assert report["targets"] == TARGETS
    assert all(part["at"].keys() == {"0.5", "0.7"} for part in (report, *report["saes"]))


def test_parts_add_up_to_the_file_to_the_byte_in_every_point(report: dict[str, Any]) -> None:
    for sae in report["saes"]:
        assert len(sae["points"]) > 4
        for point in sae["points"]:
            assert sum(point["bytes"].values()) == point["file_bytes"]
            assert point["bits_per_row"] == 8 * point["file_bytes"] / 300
            assert point["bytes"]["decoder"] == 0


def test_what_an_sae_is_and_takes(report: dict[str, Any], saes: dict[str, SAE]) -> None:
    for told in report["saes"]:
        sae = saes[told["name"]]
        assert (told["decoder_id"], told["n_latents"], told["path"]) == (
            sae.decoder_id, sae.n_latents, f"saes/{told['name']}"
        )  # fmt: skip
        # Whatever an SAE and its file are called.
        nameless = decoder_bytes(replace(sae, name="sae", source=""))
        assert {name: found["bytes"] for name, found in told["decoder"].items()} == nameless
        assert told["floor"] == told["decoder"]["int8"]["nmse"] < max(point["nmse"] for point in told["points"])
        for at in told["at"].values():
            counted = 8 * told["decoder"]["int8"]["bytes"] / 300
            assert at["total_bits_per_row"] == pytest.approx(at["bits_per_row"] + counted)
            assert at["interval"][0] < at["bits_per_row"] < at["interval"][1]


def test_verdicts_are_of_the_bits_told(report: dict[str, Any]) -> None:
    for key, verdict in report["at"].items():
        rates = {sae["name"]: sae["at"][key]["bits_per_row"] for sae in report["saes"]}
        totals = {sae["name"]: sae["at"][key]["total_bits_per_row"] for sae in report["saes"]}
        assert verdict["mdl"] == min(rates, key=lambda name: rates[name])
        assert verdict["mdl_with_sae"] == min(totals, key=lambda name: totals[name])
        assert len(verdict["differences"]) == 3
        for pair in verdict["differences"]:
            assert pair["bits"] == pytest.approx(rates[pair["b"]] - rates[pair["a"]])
            assert pair["tie"] is (pair["interval"][0] <= 0 <= pair["interval"][1])
        assert verdict["shortest_from_rows"][0]["name"] != "wide"
    points = {(sae["name"], p["bits_per_row"], p["nmse"]) for sae in report["saes"] for p in sae["points"]}
    assert {(one["sae"], one["bits_per_row"], one["nmse"]) for one in report["pareto"]} <= points
    assert report["bd_rate"].keys() == {"reference", "percent", "interval"}
    assert report["bd_rate"]["percent"].keys() == report["bd_rate"]["interval"].keys() == {"b", "wide"}


def test_details_are_of_the_file_nearest_to_the_first_target(report: dict[str, Any]) -> None:
    for sae in report["saes"]:
        nearest = min(sae["points"], key=lambda point: abs(np.log(point["nmse"] / 0.5)))
        assert sae["detail"]["step"] == nearest["step"]
        assert sae["detail"]["groups"]["columns"]["rows"] == [100, 100, 100]
        assert sum(sae["detail"]["histograms"]["row_bits"]["counts"]) == 300


def test_baselines_are_at_each_target(report: dict[str, Any]) -> None:
    assert report["baselines"].keys() == {"0.5", "0.7"}
    for key, found in report["baselines"].items():
        assert found["dense"]["nmse"] <= float(key)
        assert found["one_hot"]["n_rows"] == found["dense"]["n_rows"] == found["sample_rows"] == 300
        assert (found["pca"] is None) is ("pca" in found["missing"])  # it has few rows to steer by
        assert found["pca"] is None or found["pca"]["nmse"] == pytest.approx(float(key), rel=0.01)
    assert any(found["pca"] for found in report["baselines"].values())
    assert all(sae["saebench"]["chosen"] for sae in report["saes"])


def test_the_same_sae_under_two_names_ties_with_nothing_between(minilm: RealData) -> None:
    sae, x = minilm
    found = compare(MemoryArray(x[:384]), candidates(a=sae, b=sae), [0.25], baselines=False, detail=False)
    assert (found["at"]["0.25"]["mdl"], found["at"]["0.25"]["ties"]) == ("a", ["b"])
    (pair,) = found["at"]["0.25"]["differences"]
    assert (pair["bits"], pair["interval"]) == (0, [0, 0])
    assert found["bd_rate"]["percent"] == {"b": 0}
    assert found["crossings"] == []


def test_a_clearly_worse_sae_does_not_tie(minilm: RealData) -> None:
    """Each of its latents has a noisy direction."""
    import torch

    sae, x = minilm
    noise = 0.01 * torch.randn(sae.w_dec.shape, generator=torch.Generator().manual_seed(0))
    worse = replace(sae, w_dec=sae.w_dec + noise)
    found = compare(MemoryArray(x[:384]), candidates(worse=worse, good=sae), [0.3], baselines=False, detail=False)
    verdict = found["at"]["0.3"]
    assert (verdict["mdl"], verdict["ties"]) == ("good", [])
    assert verdict["differences"][0]["interval"][0] > 0
    assert found["bd_rate"]["reference"] == "worse"
    assert found["bd_rate"]["percent"]["good"] is None or found["bd_rate"]["percent"]["good"] < 0


def test_a_floor_above_the_target_is_missing_and_a_residual_layer_brings_it_back(
    saes: dict[str, SAE], rows: Rows
) -> None:
    source, one = MemoryArray(rows[:40]), candidates(a=saes["a"])
    found = compare(source, one, [0.2], baselines=False, detail=False)
    (told_of,) = found["saes"]
    best = min(point["nmse"] for point in told_of["points"])
    assert told_of["at"]["0.2"] == {
        "missing": f"nothing quantized, its NMSE is {told_of['floor']:.4g}; its best file has {best:.4g}"
    }
    assert found["at"]["0.2"]["mdl"] is None
    layered = compare(source, one, [0.2], setting=Setting(residual=True), baselines=False, detail=False)
    assert layered["saes"][0]["at"]["0.2"]["bits_per_row"] > 0
    assert layered["at"]["0.2"]["mdl"] == "a"
    assert layered["residual"]


# -- rows in many forms ------------------------------------------------------------------------------------------------


def told(found: dict[str, Any]) -> Any:
    """What does not depend on the form of the array."""
    keys = ("nmse", "nmse_interval", "cosine", "l0", "estimates")
    points = [point for sae in found["saes"] for point in sae["points"]]
    return [{key: point[key] for key in keys} | {"bytes": point["bytes"] | {"headers": 0}} for point in points]


def small(source: MemoryArray, sae: SAE, **options: Any) -> dict[str, Any]:
    return compare(source, candidates(s=sae), [0.6], baselines=False, detail=False, **options)


def test_arrays_of_sequences_are_their_rows_with_ids(saes: dict[str, SAE], rows: Rows) -> None:
    ids = np.repeat(np.arange(30), 10)
    deep, flat = small(MemoryArray(rows.reshape(3, 10, 10, 8)), saes["a"]), small(MemoryArray(rows), saes["a"], seq=ids)
    assert deep["bootstrap"] == flat["bootstrap"]
    assert (deep["bootstrap"]["unit"], deep["bootstrap"]["blocks"]) == ("sequences", 30)
    assert told(deep) == told(flat)
    other = small(MemoryArray(rows), saes["a"])
    assert other["bootstrap"]["unit"] == "runs of 4 rows"
    assert [one | {"nmse_interval": 0} for one in told(other)] == [one | {"nmse_interval": 0} for one in told(flat)]
    assert told(other) != told(flat)


def test_float16_counts_as_such(saes: dict[str, SAE], rows: Rows) -> None:
    half = rows.astype(np.float16)
    found, same = small(MemoryArray(half), saes["a"]), small(MemoryArray(half.astype(np.float32)), saes["a"])
    assert [p["nmse"] for p in found["saes"][0]["points"]] == [p["nmse"] for p in same["saes"][0]["points"]]
    rows_needed = [one["saes"][0]["at"]["0.6"]["rows_to_break_even_raw"] for one in (found, same)]
    assert rows_needed[0] > 1.9 * rows_needed[1]


def test_rows_that_are_left_out(saes: dict[str, SAE], rows: Rows, tmp_path: Path) -> None:
    np.save(tmp_path / "mask", np.arange(300) % 4 > 0)
    np.save(tmp_path / "ids", np.repeat(np.arange(15), 20))
    keep = (np.arange(300) % 4 > 0) & (np.arange(300) % 20 >= 2)
    selection = Selection(2, str(tmp_path / "mask.npy"))
    found = small(MemoryArray(rows), saes["a"], seq=str(tmp_path / "ids.npy"), selection=selection)
    alone = small(MemoryArray(rows[keep]), saes["a"], seq=np.repeat(np.arange(15), 20)[keep])
    assert told(found) == told(alone)
    assert found["rows"] == keep.sum()
    assert found["selection"] == {"rows_in_input": 300, "skip_first": 2, "rows_mask": str(tmp_path / "mask.npy")}


def test_rows_of_heads_with_ids_of_rows(saes: dict[str, SAE], rows: Rows, tmp_path: Path) -> None:
    sae = replace(saes["a"], row_dims=2)
    np.save(tmp_path / "ids", np.repeat(np.arange(15), 20))
    np.save(tmp_path / "mask", np.arange(300) % 4 > 0)
    options: dict[str, Any] = {"seq": str(tmp_path / "ids.npy"), "selection": Selection(1, str(tmp_path / "mask.npy"))}
    heads, flat = (small(MemoryArray(x), sae, **options) for x in (rows.reshape(300, 2, 4), rows))
    assert told(heads) == told(flat)
    assert heads["bootstrap"] == flat["bootstrap"]
    assert heads["selection"]["rows_in_input"] == flat["selection"]["rows_in_input"] == 300


def test_normalizing_and_plain_saes_side_by_side(saes: dict[str, SAE], rows: Rows) -> None:
    sized = rows.reshape(15, 20, 8) * np.arange(1, 16, dtype=np.float32)[:, None, None]
    both = candidates(
        layer=replace(saes["a"], normalization="layer_norm"), sequence=replace(saes["a"], normalization="sequence_norm")
    )
    found = compare(MemoryArray(sized), both, [0.6], baselines=True, setting=Setting(weights="float32"))
    assert found["at"]["0.6"]["mdl"] in ("layer", "sequence")
    for sae in found["saes"]:
        assert all(point["bytes"]["side"] > 0 for point in sae["points"])
        assert sae["floor"] == sae["decoder"]["float32"]["nmse"]
        assert sae["saebench"]["chosen"] is not None
    with pytest.raises(InputError, match="say which rows are one"):
        compare(MemoryArray(sized.reshape(300, 8)), both[1:], [0.6])


# -- refusals ----------------------------------------------------------------------------------------------------------


def broken(*at: tuple[int, float]) -> Rows:
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    for row, value in at:
        x[row, 2] = value
    return x


@pytest.mark.parametrize(
    "x, message",
    [
        (np.full((50, 8), 0.1, np.float32), "the rows do not vary"),
        (np.ones((1, 8), np.float32), "the rows do not vary"),
        (np.zeros((0, 8), np.float32), "the rows do not vary"),
        (broken((7, np.nan), (9, np.inf)), "row 7 holds NaN or infinity"),
        (broken((7, 1e30)), "row 7"),
        (np.zeros((50, 9), np.float32), r"shape \(50, 9\), but the SAE 's' codes rows of 8"),
    ],
)
def test_rows_that_cannot_be_compared_on(saes: dict[str, SAE], x: Rows, message: str) -> None:
    with pytest.raises(InputError, match=r"^rows\.npy: .*" + message):
        small(MemoryArray(x, "rows.npy"), saes["a"])


def test_an_sae_of_another_width_is_named(saes: dict[str, SAE], make_sae: MakeSAE, rows: Rows) -> None:
    pair = candidates(fits=saes["a"], other=make_sae("topk", 1, 6))
    with pytest.raises(InputError, match="the SAE 'other' codes rows of 6"):
        compare(MemoryArray(rows), pair, [0.6], baselines=False, detail=False)


def test_what_cannot_be_measured_is_told_before_a_file_is_written(
    saes: dict[str, SAE], make_sae: MakeSAE, rows: Rows, tmp_path: Path
) -> None:
    """Each SAE is loaded for that, once."""
    np.save(tmp_path / "mask", np.arange(300) > 4)
    happened: list[str] = []

    def told_of(name: str, sae: SAE | None) -> Candidate:
        def load() -> SAE:
            happened.append(name)
            if sae is None:
                raise InputError(f"{name}: no such file")
            return sae

        return Candidate(name, load)

    normed, heads = replace(saes["a"], normalization="sequence_norm"), MemoryArray(rows.reshape(300, 2, 4), "x.npy")
    flat, part = MemoryArray(rows, "x.npy"), Selection(mask=str(tmp_path / "mask.npy"))
    for source, first, second, selection, message in (
        (flat, saes["a"], None, None, "second: no such file"),
        (flat, saes["a"], make_sae("topk", 1, 6), None, "the SAE 'second' codes rows of 6"),
        (flat, saes["a"], normed, part, "the SAE 'tiny-topk-0' divides rows .* measure all rows"),
        (
            heads, replace(saes["a"], row_dims=2), make_sae("topk", 1, 4), None,
            r"x\.npy: shape \(300, 2, 4\) is 300 rows of one SAE, but not of 'second'",
        ),
    ):  # fmt: skip
        happened.clear()
        pair = [told_of("first", first), told_of("second", second)]
        with pytest.raises(InputError, match=message):
            compare(source, pair, [0.6], selection=selection, log=happened.append, baselines=False, detail=False)
        assert happened == ["first", "second"]
    happened.clear()
    pair = [told_of("first", saes["a"]), told_of("second", saes["b"])]
    compare(MemoryArray(rows[:40]), pair, [0.6], log=happened.append, baselines=False, detail=False)
    assert happened[:3] == ["first", "second", "first"]  # again when its turn comes: two are never held
    assert happened.count("first") == happened.count("second") == 2


def test_ids_and_targets_and_no_saes(saes: dict[str, SAE], rows: Rows, tmp_path: Path) -> None:
    np.save(tmp_path / "ids", np.arange(299))
    for seq in (np.arange(299), np.zeros(300), str(tmp_path / "ids.npy")):
        with pytest.raises(InputError, match=r"an integer, for each of 300|one integer a row"):
            small(MemoryArray(rows), saes["a"], seq=seq)
    for targets in ([], [0.0, 0.5], [1.0], [-0.1], [float("nan")]):
        with pytest.raises(InputError, match="between 0 and 1"):
            compare(MemoryArray(rows), candidates(a=saes["a"]), targets)
    with pytest.raises(InputError, match="no SAE"):
        compare(MemoryArray(rows), [], [0.5])


def test_targets_are_told_apart_by_their_keys(saes: dict[str, SAE], rows: Rows) -> None:
    found = compare(
        MemoryArray(rows[:60]), candidates(a=saes["a"]), [0.7, 0.6, 0.6000000001], baselines=False, detail=False
    )
    assert found["targets"] == [0.6, 0.7]
    assert list(found["at"]) == ["0.6", "0.7"]


def names(*paths: str) -> list[str]:
    return [name for name, _ in named([Candidate(path, lambda: pytest.fail("not loaded")) for path in paths])]


def test_names_are_the_shortest_ends_of_paths_that_tell_them_apart() -> None:
    assert names("x/a", "x/b/") == ["a", "b"]
    assert names("x/one/sae", "x/two/sae", "y") == ["one/sae", "two/sae", "y"]
    assert names("p/x/sae", "q/x/sae", "q/y/sae") == ["p/x/sae", "q/x/sae", "y/sae"]
    assert names("sae", "x/sae", "/x/sae") == ["sae", "x/sae", "/x/sae"]
    assert names("hf://o/r/layer_3", "hf://o/s/layer_3") == ["r/layer_3", "s/layer_3"]
    assert names("only/one") == ["one"]
    for again in (("x/a", "b", "x/a"), ("x/a", "x/a/")):
        with pytest.raises(InputError, match=r"x/a.*: is given twice"):
            names(*again)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_has_the_numbers_of_the_points(report: dict[str, Any], tmp_path: Path) -> None:
    write_csv(report, tmp_path / "points.csv")
    with (tmp_path / "points.csv").open(newline="") as file:
        every = list(csv.DictReader(file))
    lines = [line for line in every if line["kind"] == "file"]
    points = [(sae["name"], point) for sae in report["saes"] for point in sae["points"]]
    assert len(lines) == len(points)
    parts = [name for name in lines[0] if name.endswith("_bytes") and name != "file_bytes"]
    assert len(parts) == 8
    for line, (name, point) in zip(lines, points, strict=True):
        assert line["sae"] == name
        assert sum(int(line[part]) for part in parts) == int(line["file_bytes"]) == point["file_bytes"]
        for part, n_bytes in point["bytes"].items():
            assert int(line[f"{part}_bytes"]) == n_bytes
        for key in ("step", "bits_per_row", "nmse", "nmse_median", "cosine", "l0", "metric"):
            assert float(line[key]) == point[key]
        for key in ("bits", "nmse", "metric"):
            assert [float(line[f"{key}_{end}"]) for end in ("low", "high")] == point[f"{key}_interval"]
        for key, value in point["estimates"].items():
            assert float(line[key]) == value
        assert line["residual_step"] == ""
    at = {(line["sae"], float(line["nmse"])): line for line in every if line["kind"] == "target"}
    reached = {
        (sae["name"], float(key)) for sae in report["saes"] for key, at in sae["at"].items() if "missing" not in at
    }
    assert at.keys() == reached
    for sae in report["saes"]:
        for key, told in sae["at"].items():
            if "missing" in told:
                continue
            line, verdict = at[sae["name"], float(key)], report["at"][key]
            assert float(line["bits_per_row"]) == told["bits_per_row"]
            assert float(line["total_bits_per_row"]) == told["total_bits_per_row"]
            pairs = [pair for pair in verdict["differences"] if (pair["a"], pair["b"]) == (verdict["mdl"], sae["name"])]
            assert float(line["above_mdl"]) == (pairs[0]["bits"] if pairs else 0)


def test_a_table_of_nothing_measured_and_names_that_need_quotes(report: dict[str, Any], tmp_path: Path) -> None:
    quoted = report | {"saes": [report["saes"][0] | {"name": 'a,"b"\nc'}]}
    write_csv(quoted, tmp_path / "quoted.csv")
    with (tmp_path / "quoted.csv").open(newline="") as file:
        assert {line["sae"] for line in csv.DictReader(file)} == {'a,"b"\nc'}
    write_csv(report | {"saes": [report["saes"][0] | {"points": []}]}, tmp_path / "empty.csv")
    assert (tmp_path / "empty.csv").read_text().startswith("kind,sae,step,")
    with pytest.raises(OutputError, match="already exists"):
        write_csv(report, tmp_path / "empty.csv")
    write_csv(report, tmp_path / "empty.csv", force=True)
    assert len((tmp_path / "empty.csv").read_text().splitlines()) > 10
