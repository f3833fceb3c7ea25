"""`compare`, and what `measure` tells beside the file, as a person or a program runs them on tiny SAEs."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run
from safetensors.torch import save_file

D, K, N = 8, 3, 400
Write = Callable[..., Path]


def basis(seed: int) -> np.ndarray[Any, Any]:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]


def write_sae(path: Path, seed: int, width: int = D, **config: Any) -> Path:
    """A SAELens checkpoint of a top-k SAE whose directions are a basis and its negatives."""
    path.mkdir(parents=True)
    w_dec = torch.from_numpy(np.concatenate([basis(seed), -basis(seed)])[:, :width].astype(np.float32).copy())
    tensors = {"W_dec": w_dec, "W_enc": w_dec.T.contiguous(), "b_enc": torch.zeros(2 * D), "b_dec": torch.zeros(width)}
    save_file(tensors, path / "sae_weights.safetensors")
    known = {"architecture": "topk", "d_in": width, "d_sae": 2 * D, "k": K, "dtype": "float32", "device": "cpu"}
    known |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    known |= {"rescale_acts_by_decoder_norm": False, "metadata": {"sae_lens_version": "6.54.12"}}
    (path / "cfg.json").write_text(json.dumps(known | config))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that are sparse in the basis of saes/good (x.npy; few.npy has 80); saes/bad has another; and what options
    take: ids, a mask, labels, a metric."""
    folder = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(0)
    z = rng.gamma(3, size=(N, D)) * (rng.permuted(np.tile(np.arange(D), (N, 1)), axis=1) < K)
    x = (z * rng.choice([-1, 1], (N, D))) @ basis(0) + 0.3 * rng.normal(size=(N, D))
    np.save(folder / "x.npy", x.astype(np.float32))
    np.save(folder / "few.npy", x[:80].astype(np.float32))
    np.save(folder / "deep.npy", x.astype(np.float32).reshape(20, 20, D))
    np.save(folder / "heads.npy", x.astype(np.float32).reshape(N, 2, D // 2))
    np.save(folder / "ids.npy", np.repeat(np.arange(20), 20))
    np.save(folder / "mask.npy", np.arange(N) % 4 > 0)
    np.save(folder / "labels.npy", np.array(["cat", "dog"])[np.arange(N) % 2])
    (folder / "loss.py").write_text("def loss(x, x_hat):\n    return ((x - x_hat) ** 2).sum(1)\n")
    write_sae(folder / "saes" / "good", 0)
    write_sae(folder / "saes" / "bad", 1)
    return folder


@pytest.fixture
def compared(folder: Path) -> Callable[..., Any]:
    """(*options, saes, data) -> what `compare --json` prints."""

    def compare(*options: object, saes: tuple[str, ...] = ("good",), data: str = "x.npy", nmse: str = "0.5") -> Any:
        paths = [folder / "saes" / name for name in saes]
        result = run("compare", folder / data, *paths, "--nmse", nmse, "--no-baselines", "--json", *options)
        return json.loads(result.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))

    return compare


def both(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "x.npy", folder / "saes" / "good", folder / "saes" / "bad"


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_the_text_says_who_the_mdl_sae_is_and_progress_goes_to_stderr(folder: Path) -> None:
    result = run("compare", *both(folder), "--nmse", "0.1,0.6")
    text = result.stdout
    assert f"{folder}/x.npy: 400 rows of 8 values" in text
    first, second = (text.index(f"at NMSE {target}") for target in ("0.1", "0.6"))
    assert first < second
    assert re.search(r"^good +\d+\.\d +\d+\.\d to \d+\.\d +MDL-SAE", text[second:], re.MULTILINE)
    assert re.search(r"^bad +\d+\.\d +\d+\.\d to \d+\.\d +\+\d+\.\d +\d+\.\d to \d+\.\d ", text[second:], re.MULTILINE)
    why = r"nothing quantized, its NMSE is 0\.\d+; its best file has 0\.\d+"
    assert re.search(rf"^not reached by bad \({why}\); with --residual", text[first:second], re.MULTILINE)
    assert "not reached" not in text[second:]
    for words in ("shortest with decoder and tables counted: ", "one-hot", "BD-rate to good", "SAEBench mdl"):
        assert words in text
    assert re.search(r"^bad .* [+-]\d+\.\d % \(-?\d+\.\d to -?\d+\.\d\) ", text, re.MULTILINE)
    assert " bits/row at NMSE " not in text
    assert re.search(r"^good: step .* bits/row at NMSE ", result.stderr, re.MULTILINE)


def test_the_text_sets_the_mdl_sae_beside_other_codes(folder: Path) -> None:
    command = ("compare", *both(folder)[:2], "--nmse", "0.6")
    text = run(*command).stdout
    report = json.loads(run(*command, "--json").stdout)
    at, found = report["saes"][0]["at"]["0.6"], report["baselines"]["0.6"]
    file = next(p for p in report["saes"][0]["points"] if p["file_bytes"] == at["file"]["file_bytes"])
    (estimates,) = re.findall(r"^the MDL-SAE's file at NMSE .* as a share of estimates: (.*)$", text, re.MULTILINE)
    (others,) = re.findall(r"^the MDL-SAE's .* as a share of other codes at NMSE 0.6: (.*)$", text, re.MULTILINE)
    line = f"{estimates}; {others}"
    told = dict(re.findall(r"(?:^|; )(.+?)(?: \(a real codec, [^)]*\))? (\d+\.\d \(\d+\.\d{3}\))", line))
    assert told == {
        name: f"{bits:.1f} ({ours / bits:.3f})"
        for name, bits, ours in (
            ("sum of entropies", file["estimates"]["sum_entropy"], file["bits_per_row"]),
            ("L0 (B + log2 F)", file["estimates"]["l0_formula"], file["bits_per_row"]),
            ("dense", found["dense"]["bits_per_row"], at["bits_per_row"]),
            ("its entropy", found["dense"]["entropy_per_row"], at["bits_per_row"]),
            ("one-hot", found["one_hot"]["bits_per_row"], at["bits_per_row"]),
            ("PCA", found["pca"]["bits_per_row"], at["bits_per_row"]),
        )
    }
    bare = run(*command, "--no-baselines").stdout
    assert re.search(r"share of estimates: sum of entropies [^;]*; L0 [^;]*$", bare, re.MULTILINE)
    assert "other codes" not in bare


def test_an_interval_of_rows_that_may_be_too_hard_is_unbounded(compared: Callable[..., Any], folder: Path) -> None:
    """The target is just above the NMSE of the finest file."""
    report = compared(saes=("bad",), data="few.npy")
    target = f"{1.01 * min(point['nmse'] for point in report['saes'][0]['points']):.6g}"
    (sae,) = compared(saes=("bad",), data="few.npy", nmse=target)["saes"]
    assert sae["at"][target]["interval"][1] is None
    assert 0.025 < sae["at"][target]["not_reached"] < 0.975
    command = ("compare", folder / "few.npy", folder / "saes" / "bad", "--nmse", target, "--no-baselines")
    assert re.search(r"^bad +\d+\.\d +\d+\.\d to unbounded +MDL-SAE", run(*command).stdout, re.MULTILINE)


def test_json_is_the_report_and_nothing_else(folder: Path) -> None:
    result = run("compare", *both(folder), "--nmse", "0.6", "--json")
    report = json.loads(result.stdout, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert [sae["name"] for sae in report["saes"]] == ["good", "bad"]
    assert report["at"]["0.6"]["mdl"] == "good"
    assert report["weights"] == "int8"
    assert report["baselines"]["0.6"]["dense"] is not None
    for sae in report["saes"]:
        assert sae["path"] == str(folder / "saes" / sae["name"])
        assert sae["detail"] is None
        for point in sae["points"]:
            assert sum(point["bytes"].values()) == point["file_bytes"]


def test_page_table_and_plots_are_written(folder: Path, tmp_path: Path) -> None:
    outputs = ("--report", tmp_path / "out.html", "--csv", tmp_path / "out.csv")
    plots = ("--plot", tmp_path / "rd.svg", "--plot", tmp_path / "rd.png")
    result = run("compare", *both(folder), "--nmse", "0.6", "--no-baselines", "--json", *outputs, *plots)
    report = json.loads(result.stdout)
    assert {path.name for path in tmp_path.iterdir()} == {"out.html", "out.json", "out.csv", "rd.svg", "rd.png"}
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert all(sae["detail"]["latents"]["shown"] for sae in report["saes"])
    assert "</html>" in (tmp_path / "out.html").read_text()
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["kind"] == "file"]
    points = [point for sae in report["saes"] for point in sae["points"]]
    assert [float(line["bits_per_row"]) for line in lines] == [point["bits_per_row"] for point in points]
    assert (tmp_path / "rd.png").read_bytes()[:4] == b"\x89PNG"
    assert "</svg>" in (tmp_path / "rd.svg").read_text()


@pytest.mark.parametrize("name", ["compare", "measure"])
def test_help_shows_examples_and_every_option(name: str) -> None:
    text = run(name, "--help").output
    assert text.count(f"saecodec {name} acts.npy") >= 4
    for option in ("--skip-first", "--rows-mask", "--group", "--metric", "--report", "--no-baselines", "--weights"):
        assert option in text


# -- what is refused, and when -----------------------------------------------------------------------------------------

OUTPUTS = [("--csv", "out.csv"), ("--report", "out.html"), ("--report", "out.json"), ("--plot", "out.svg")]


@pytest.mark.parametrize("option, name", OUTPUTS)
def test_nothing_is_overwritten_without_force_and_that_before_any_work(
    folder: Path, tmp_path: Path, option: str, name: str
) -> None:
    (tmp_path / name).write_text("mine")
    given = tmp_path / name.replace(".json", ".html")
    result = run("compare", folder / "x.npy", folder / "no_such_sae", "--nmse", "0.6", option, given, ok=False)
    assert result.exit_code == 1
    assert re.fullmatch(rf"Error: .*{re.escape(name)}: already exists.*--force.*\n", result.output)
    assert (tmp_path / name).read_text() == "mine"
    run("compare", *both(folder)[:2], "--nmse", "0.6", "--no-baselines", option, given, "--force")
    assert (tmp_path / name).read_text() != "mine"


@pytest.mark.parametrize(
    "option, name, message",
    [
        ("--plot", "rd.pdf", "a plot is a .png or .svg file"),
        ("--report", "page.htm", "a page is a .html file"),
        ("--csv", "nowhere/out.csv", "there is no folder"),
        ("--report", "nowhere/out.html", "there is no folder"),
        ("--plot", "nowhere/rd.png", "there is no folder"),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_any_work(
    folder: Path, tmp_path: Path, option: str, name: str, message: str
) -> None:
    result = run("compare", folder / "x.npy", folder / "no_such_sae", option, tmp_path / name, ok=False)
    assert (result.exit_code, message in result.output) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_measure_keeps_a_page_that_is_there(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("mine")
    command = ("measure", folder / "x.npy", "--report", tmp_path / "out.html", "--no-baselines", "-s")
    assert "already exists" in run(*command, folder / "no_such_sae", ok=False).output
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    run(*command, folder / "saes" / "good", "--force")
    assert json.loads((tmp_path / "out.json").read_text())["kind"] == "measure"


def refused(message: str, *command: object) -> None:
    """That it is one line, before any work: there is no such SAE."""
    result = run(*command, "--force", ok=False)
    assert result.exit_code == 1
    assert re.fullmatch(rf"Error: .*{message}.*\n", result.output), result.output


@pytest.mark.parametrize("command", ["compare", "measure"])
@pytest.mark.parametrize(
    "option, name", [(None, "x"), ("--seq", "ids"), ("--rows-mask", "mask"), ("--group", "labels")]
)
def test_an_input_is_no_output_even_with_force(
    folder: Path, tmp_path: Path, command: str, option: str | None, name: str
) -> None:
    """By its own name, by a link's, and by that of the JSON beside a page."""
    paths = {stem: tmp_path / f"{stem}.json" for stem in ("x", "ids", "mask", "labels")}
    for stem, path in paths.items():
        path.write_bytes((folder / f"{stem}.npy").read_bytes())
    os.replace(paths["x"], tmp_path / "x.npy")  # the name says what an array is
    paths["x"] = tmp_path / "x.npy"
    (tmp_path / "link").symlink_to(paths[name])
    before = {path: path.read_bytes() for path in paths.values()}
    sae = tmp_path / "no_such_sae"
    given = [command, paths["x"], *([sae] if command == "compare" else ["-s", sae])]
    given += [] if option is None else [option, paths[name]]
    table = "--csv" if command == "compare" else "--arrays"
    outputs: list[tuple[str, Path]] = [(table, paths[name]), (table, tmp_path / "link")]
    outputs += [("--report", tmp_path / f"{name}.html")] if option is not None else []
    for output in outputs:
        refused("is an input; choose another output", *given, *output)
    assert {path: path.read_bytes() for path in paths.values()} == before


@pytest.mark.parametrize("command", ["compare", "measure"])
def test_metrics_and_files_of_an_sae_are_no_outputs_even_with_force(folder: Path, tmp_path: Path, command: str) -> None:
    sae = write_sae(tmp_path / "sae", 0)
    metric = tmp_path / "metric.py"
    metric.write_text("def loss(x, x_hat):\n    return 0.0\n")
    table = "--csv" if command == "compare" else "--arrays"
    given = (
        command,
        folder / "few.npy",
        *([sae] if command == "compare" else ["-s", sae]),
        "--metric",
        f"{metric}:loss",
    )
    held = [metric, *sae.iterdir()]
    before = [path.read_bytes() for path in held]
    for path in held:
        refused("is an input; choose another output", *given, table, path)
    assert [path.read_bytes() for path in held] == before


def test_the_codec_is_no_output_even_with_force(folder: Path, tmp_path: Path) -> None:
    codec = tmp_path / "c.saecodec"
    run("fit", folder / "saes" / "good", folder / "few.npy", "-o", codec)
    before = codec.read_bytes()
    command = ("measure", folder / "few.npy", "-s", tmp_path / "no_such_sae", "-c", codec)
    refused("is an input; choose another output", *command, "--arrays", codec)
    assert codec.read_bytes() == before


@pytest.mark.parametrize(
    "command, outputs",
    [
        ("compare", ("--report", "out.html", "--csv", "out.json")),
        ("compare", ("--report", "out.html", "--csv", "out.html")),
        ("compare", ("--plot", "rd.svg", "--plot", "rd.svg")),
        ("compare", ("--plot", "rd.svg", "--csv", "rd.svg")),
        ("compare", ("--plot", "rd.svg", "--plot", "here/rd.svg")),
        ("measure", ("--report", "out.html", "--arrays", "out.json")),
        ("measure", ("--report", "out.html", "--arrays", "here/out.html")),
    ],
)
def test_outputs_of_one_name_are_refused_even_with_force(
    folder: Path, tmp_path: Path, command: str, outputs: tuple[str, ...]
) -> None:
    (tmp_path / "here").symlink_to(tmp_path)
    sae = (tmp_path / "no_such_sae",) if command == "compare" else ("-s", tmp_path / "no_such_sae")
    paths = [tmp_path / word if i % 2 else word for i, word in enumerate(outputs)]
    refused("would be written twice", command, folder / "x.npy", *sae, *paths)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize(
    "command, output, name, said",
    [
        ("compare", "--csv", "out.csv", "at NMSE 0.6"),
        ("compare", "--report", "out.html", "at NMSE 0.6"),
        ("measure", "--report", "out.html", "bits per row"),
    ],
)
def test_what_was_found_is_told_even_when_a_file_cannot_be_written(
    folder: Path, tmp_path: Path, command: str, output: str, name: str, said: str
) -> None:
    """The metric takes the output's place while the work is done."""
    source = "from pathlib import Path\n\ndef loss(x, x_hat):\n    return Path({!r}).write_text('mine')\n"
    (tmp_path / "taking.py").write_text(source.format(str(tmp_path / name)))
    sae = folder / "saes" / "good"
    given = ("compare", folder / "few.npy", sae, "--nmse", "0.6") if command == "compare" else (
        "measure", folder / "few.npy", "-s", sae
    )  # fmt: skip
    options = ("--no-baselines", "--metric", f"{tmp_path}/taking.py:loss", output, tmp_path / name)
    result = run(*given, *options, ok=False)
    assert said in result.stdout
    assert re.search(rf"Error: .*{re.escape(name)}: already exists", result.stderr)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("nmse", ["0", "1", "0.2,two", "", "-0.1,0.2"])
def test_wrong_usage_is_status_2(folder: Path, nmse: str) -> None:
    result = run("compare", *both(folder), "--nmse", nmse, ok=False)
    assert (result.exit_code, "between 0 and 1" in result.output) == (2, True)
    assert run("compare", folder / "x.npy", ok=False).exit_code == 2
    assert run("compare", *both(folder), "--weights", "int4", ok=False).exit_code == 2
    assert run("compare", *both(folder), "--skip-first", "-1", ok=False).exit_code == 2


def test_what_cannot_be_done_is_one_line_and_status_1(folder: Path, tmp_path: Path) -> None:
    x, good, _ = both(folder)
    narrow = write_sae(tmp_path / "narrow", 0, width=6)
    np.save(tmp_path / "same", np.ones((9, D), np.float32))
    np.save(tmp_path / "nan", np.full((9, D), np.nan, np.float32))
    cases: list[tuple[tuple[object, ...], str]] = [
        ((x, good, folder / "no_such_sae"), "no_such_sae"),
        ((folder / "no.npy", good), "no such file"),
        ((x, good, narrow), "codes rows of 6"),
        ((tmp_path / "same.npy", good), "the rows do not vary"),
        ((tmp_path / "nan.npy", good), "row 0 holds NaN"),
        ((x, good, "--skip-first", 1), "give the ids"),
        ((x, good, "--rows-mask", folder / "ids.npy"), "expected bool"),
        ((x, good, "--group", folder / "no.npy"), "cannot be read"),
        ((x, good, "--seq", folder / "labels.npy"), "expected a sequence id"),
        ((x, good, "--metric", "no_such_module:loss"), "cannot be imported"),
        ((x, folder / "sae*" / "none*"), "no file or folder matches"),
    ]
    for arguments, message in cases:
        result = run("compare", *arguments, "--nmse", "0.6", "--no-baselines", ok=False)
        assert result.exit_code == 1, message
        assert re.fullmatch(rf"Error: .*{message}.*\n", result.output), result.output


def test_a_metric_that_gives_no_number_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def loss(x, x_hat):\n    return x\n")
    result = run("compare", *both(folder), "--metric", f"{tmp_path}/bad.py:loss", ok=False)
    assert "expected one finite number, or one for each of 400 rows" in result.output


# -- which SAEs --------------------------------------------------------------------------------------------------------


def test_patterns_stand_for_saes_in_order_each_once(folder: Path) -> None:
    x, good, bad = both(folder)
    options = ("--nmse", "0.6", "--no-baselines", "--json")
    for given, names in (
        ([folder / "saes" / "*"], ["bad", "good"]),
        ([good, folder / "saes" / "*"], ["good", "bad"]),
        ([folder / "saes" / "g??d", bad], ["good", "bad"]),
    ):
        report = json.loads(run("compare", x, *given, *options).stdout)
        assert [sae["name"] for sae in report["saes"]] == names
    for again in (bad, f"{bad}/"):
        result = run("compare", x, bad, again, *options, ok=False)
        assert "is given twice" in result.stderr


def test_saes_of_one_name_are_told_apart_by_their_folders_and_brackets_are_no_pattern(
    folder: Path, tmp_path: Path
) -> None:
    one, two = write_sae(tmp_path / "one" / "s[k=3]", 0), write_sae(tmp_path / "two" / "s[k=3]", 0)
    result = run("compare", folder / "x.npy", one, two, "--nmse", "0.5", "--no-baselines", "--json")
    report = json.loads(result.stdout)
    assert [sae["name"] for sae in report["saes"]] == ["one/s[k=3]", "two/s[k=3]"]
    assert report["at"]["0.5"]["ties"] == ["two/s[k=3]"]
    assert report["at"]["0.5"]["differences"][0]["bits"] == 0
    text = run("compare", folder / "few.npy", one, two, "--nmse", "0.5", "--no-baselines").stdout
    assert re.search(r"^two/s\[k=3\] .* \+0\.0 +0\.0 to 0\.0 tie ", text, re.MULTILINE)
    assert "\nwith decoders counted, one/s[k=3] ties with two/s[k=3]\n" in text


def test_warnings_are_on_stderr(folder: Path, tmp_path: Path) -> None:
    scaled = write_sae(tmp_path / "scaled", 0, normalize_activations="expected_average_only_in")
    command = ("compare", folder / "x.npy", scaled, "--nmse", "0.5", "--no-baselines", "--json")
    result = run(*command)
    assert "Warning: " in result.stderr
    assert "--input-scale" in result.stderr
    assert json.loads(result.stdout)["at"]["0.5"]["mdl"] == "scaled"
    assert "Warning" not in run(*command, "--input-scale", "1").stderr


# -- options -----------------------------------------------------------------------------------------------------------


def test_rows_are_left_out(compared: Callable[..., Any], folder: Path) -> None:
    masked = compared("--rows-mask", folder / "mask.npy")
    assert (masked["rows"], masked["selection"]["rows_in_input"]) == (300, 400)
    skipped = compared("--skip-first", 3, "--seq", folder / "ids.npy")
    deep = compared("--skip-first", 3, data="deep.npy")
    assert skipped["rows"] == deep["rows"] == 340
    assert skipped["saes"][0]["points"] == deep["saes"][0]["points"]
    assert skipped["bootstrap"] == deep["bootstrap"]
    text = run(
        "compare", *both(folder)[:2], "--rows-mask", folder / "mask.npy", "--nmse", "0.5", "--no-baselines"
    ).stdout
    assert "100 rows of 400 are left out" in text


def test_sequences_are_resampled_whole(compared: Callable[..., Any], folder: Path) -> None:
    by_ids, by_shape, plain = compared("--seq", folder / "ids.npy"), compared(data="deep.npy"), compared()
    assert by_ids["bootstrap"]["unit"] == by_shape["bootstrap"]["unit"] == "sequences"
    assert by_ids["bootstrap"]["blocks"] == 20
    assert plain["bootstrap"]["unit"].startswith("runs of")


def test_ids_of_rows_of_heads(folder: Path, tmp_path: Path) -> None:
    sae = write_sae(tmp_path / "z", 0, reshape_activations="hook_z")
    command = ("compare", folder / "heads.npy", sae, "--nmse", "0.5", "--no-baselines", "--json")
    report = json.loads(run(*command, "--seq", folder / "ids.npy").stdout)
    assert (report["rows"], report["width"], report["bootstrap"]["blocks"]) == (400, 8, 20)


def test_groups_are_told_in_text_and_json(compared: Callable[..., Any], folder: Path) -> None:
    report = compared("--group", folder / "labels.npy", "--rows-mask", folder / "mask.npy")
    columns = report["saes"][0]["detail"]["groups"]["columns"]
    assert dict(zip(columns["group"], columns["rows"], strict=True)) == {"cat": 100, "dog": 200}
    options = ("--nmse", "0.5", "--no-baselines", "--group", folder / "labels.npy")
    text = run("compare", *both(folder)[:2], *options).stdout
    assert re.search(r"groups of rows in the file of good nearest to NMSE 0\.5", text)
    assert re.search(r"^ +cat +200 +\d+\.\d ", text, re.MULTILINE)


def test_a_metric_of_a_file_is_in_every_point(compared: Callable[..., Any], folder: Path) -> None:
    name = f"{folder}/loss.py:loss"
    report = compared("--metric", name)
    assert report["metric"] == name
    x = np.load(folder / "x.npy")
    variance = np.square(x - x.mean(0)).sum(1).mean()
    for point in report["saes"][0]["points"]:
        assert point["metric"] == pytest.approx(point["nmse"] * variance, rel=1e-4)
        assert point["metric_interval"][0] < point["metric"] < point["metric_interval"][1]


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_decoders_count_in_the_precision_asked_for(compared: Callable[..., Any], weights: str) -> None:
    report = compared("--weights", weights)
    sae = report["saes"][0]
    at = sae["at"]["0.5"]
    assert report["weights"] == weights
    assert at["sae_bits_per_row"] == pytest.approx(8 * sae["decoder"][weights]["bytes"] / 400)
    assert sae["floor"] == sae["decoder"][weights]["nmse"]


def test_a_target_below_the_floor_needs_a_residual_layer(compared: Callable[..., Any]) -> None:
    assert compared(saes=("bad",), nmse="0.1", data="few.npy")["at"]["0.1"]["mdl"] is None
    layered = compared("--residual", saes=("bad",), nmse="0.1", data="few.npy")
    assert layered["at"]["0.1"]["mdl"] == "bad"
    assert layered["saes"][0]["points"][0]["bytes"]["residual"] > 0


def test_chunks_and_searches(compared: Callable[..., Any]) -> None:
    whole, small = compared(), compared("--chunk-rows", 50)
    heads = [report["saes"][0]["points"][0]["bytes"]["headers"] for report in (whole, small)]
    assert heads[1] > heads[0] + 6 * 20
    assert compared("--search", "refit", data="few.npy")["search"] == "refit"


# -- measure -----------------------------------------------------------------------------------------------------------


def measured(folder: Path, *options: object, data: str = "x.npy") -> Any:
    return json.loads(run("measure", folder / data, "-s", folder / "saes" / "good", "--json", *options).stdout)


def test_measure_leaves_rows_out(folder: Path) -> None:
    report = measured(folder, "--rows-mask", folder / "mask.npy", "--skip-first", 2, "--no-baselines", data="deep.npy")
    keep = (np.arange(N) % 4 > 0) & (np.arange(N) % 20 >= 2)
    assert report["rows"] == keep.sum()
    assert report["shape"] == [keep.sum(), D]
    assert report["selection"] == {"rows_in_input": N, "skip_first": 2, "rows_mask": str(folder / "mask.npy")}
    output = run("measure", folder / "x.npy", "-s", folder / "saes" / "good", "--skip-first", 1, ok=False).output
    assert "give the ids" in output


def test_measure_tells_groups_and_a_metric(folder: Path) -> None:
    options = ("--group", folder / "labels.npy", "--metric", f"{folder}/loss.py:loss", "--no-baselines")
    report = measured(folder, *options)
    assert report["detail"]["groups"]["columns"]["rows"] == [200, 200]
    assert report["metric"]["metric_interval"][0] < report["metric"]["metric"]
    text = run("measure", folder / "x.npy", "-s", folder / "saes" / "good", *options).output
    assert re.search(r"loss\.py:loss +\d.*\(95 %: ", text)
    assert re.search(r"^ +dog +200 +\d+\.\d ", text, re.MULTILINE)


def test_measure_tells_baselines_unless_told_not_to(folder: Path) -> None:
    assert measured(folder)["baselines"].keys() >= {"dense", "one_hot", "exemplars", "pca", "saebench"}
    assert measured(folder, "--no-baselines")["baselines"] is None
    command = ("measure", folder / "x.npy", "-s", folder / "saes" / "good")
    assert "one-hot code" in run(*command).output
    assert "one-hot code" not in run(*command, "--no-baselines").output


def test_measure_writes_a_page_of_the_form_of_a_comparison(folder: Path, tmp_path: Path) -> None:
    report = measured(folder, "--report", tmp_path / "out.html", "--no-baselines")
    page = json.loads((tmp_path / "out.json").read_text())
    assert (page["kind"], page["input"], page["rows"]) == ("measure", str(folder / "x.npy"), N)
    (sae,) = page["saes"]
    (point,) = sae["points"]
    for key in ("step", "file_bytes", "bytes", "bits_per_row", "bits_interval", "nmse", "nmse_interval", "l0"):
        assert point[key] == report[key], key
    assert sae["detail"] == report["detail"]
    assert sum(sae["detail"]["histograms"]["row_bits"]["counts"]) == N
    assert "</html>" in (tmp_path / "out.html").read_text()


def test_measure_of_no_rows(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "none", np.zeros((0, D), np.float32))
    np.save(tmp_path / "labels", np.zeros(0, np.int64))
    options = (
        "--metric",
        f"{folder}/loss.py:loss",
        "--group",
        tmp_path / "labels.npy",
        "--report",
        tmp_path / "o.html",
    )
    command = ("measure", tmp_path / "none.npy", "-s", folder / "saes" / "good")
    assert "0 rows in a file" in run(*command, *options).output
    assert json.loads(run(*command, "--json").stdout)["metric"] is None


def test_latents_have_no_analysis(folder: Path) -> None:
    for option in (
        ("--skip-first", 1),
        ("--rows-mask", "m.npy"),
        ("--group", "g.npy"),
        ("--metric", "a:b"),
        ("--report", "r.html"),
    ):
        assert option[0] in run("measure", "--latents", folder / "x.npy", *option, ok=False).output
