"""The page shows what the report says, in a real browser, and needs nothing but itself."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.interaction import POINTER_TOUCH
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait
from synthetic_report import DISTORTIONS, Report, synthetic_measure, synthetic_report

from saecodec.errors import OutputError
from saecodec.formats.page import write_page

HOSTILE = "</script><b>bold</b>"
LONG = "a_name_without_any_space_" * 6
TYPICAL = ("minilm_l3_batchtopk_3072_k32", "saes/minilm_l3_batchtopk_1536_k16")


# -- the files ---------------------------------------------------------------------------------------------------------


class Embedded(HTMLParser):
    """The text of <script id="report">, as an HTML parser finds its end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self._inside = False
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = ("id", "report") in attrs

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = False


def test_the_page_embeds_the_very_json_that_lies_beside_it(tmp_path: Path) -> None:
    report = synthetic_report(3, names=(HOSTILE, "{{style}} {{report}}"))
    write_page(report, tmp_path / "out.html")
    text = (tmp_path / "out.json").read_text("ascii")
    assert json.loads(text) == report
    assert Embedded((tmp_path / "out.html").read_text("utf-8")).text == text.removesuffix("\n")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text() | st.sampled_from(["<!--<script>", "</SCRIPT >", "]]>"]), ANYTHING))
def test_any_report_comes_back_out_of_the_page(
    tmp_path_factory: pytest.TempPathFactory, report: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.html"
    write_page(report, path, force=True)
    assert json.loads(Embedded(path.read_text("utf-8")).text) == report


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    write_page({"saes": [{"l0": float("nan"), "floor": float("inf"), "at": (1.0, float("-inf"))}]}, tmp_path / "a.html")
    assert json.loads((tmp_path / "a.json").read_text()) == {"saes": [{"l0": None, "floor": None, "at": [1.0, None]}]}


@pytest.mark.parametrize("taken", ["out.html", "out.json"])
def test_neither_file_is_overwritten_without_force(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(OutputError, match=taken):
        write_page(synthetic_report(1), tmp_path / "out.html")
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"
    write_page(synthetic_report(1), tmp_path / "out.html", force=True)
    assert (tmp_path / taken).read_text() != "mine"


def test_a_page_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a page is a \.html file"):
        write_page(synthetic_report(1), tmp_path / "out.json")


def test_a_report_that_is_not_json_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_page({"saes": object()}, tmp_path / "out.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("failing", ["fsync", "link"])
def test_a_page_without_room_leaves_no_json_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, force: bool
) -> None:
    whole = getattr(os, failing)
    outcomes = set()
    for last in range(8):  # calls that work
        left = iter(range(last))

        def call(*arguments: Any, **options: Any) -> Any:
            if next(left, None) is None:  # noqa: B023
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return whole(*arguments, **options)

        folder = tmp_path / str(last)
        folder.mkdir()
        monkeypatch.setattr(os, failing, call)
        with contextlib.suppress(OutputError):
            write_page(synthetic_report(1), folder / "out.html", force=force)
        monkeypatch.undo()
        outcomes.add(tuple(sorted(path.name for path in folder.iterdir())))
    assert outcomes <= {(), ("out.html", "out.json")}
    assert ("out.html", "out.json") in outcomes
    assert () in outcomes or failing == "link"  # without links names are given otherwise


def test_a_page_whose_name_is_taken_meanwhile_takes_its_json_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def overtaken(source: str, target: str, **options: Any) -> None:
        if target.endswith(".html"):
            (tmp_path / "out.html").write_text("theirs")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", overtaken)
    with pytest.raises(OutputError, match=r"out\.html: already exists"):
        write_page(synthetic_report(1), tmp_path / "out.html")
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]
    assert (tmp_path / "out.html").read_text() == "theirs"


def test_a_large_comparison_is_a_page_below_three_megabytes(tmp_path: Path) -> None:
    write_page(synthetic_report(8, latents=500, pairs=200, metric=True), tmp_path / "out.html")
    assert (tmp_path / "out.html").stat().st_size < 3_000_000


# -- in the browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Named, so that selenium does not look for a driver to download.
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver") or "chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """A report in the browser."""

    def __init__(self, chrome: Chrome, folder: Path) -> None:
        self.chrome, self._folder = chrome, folder
        self.requested: list[str] = []

    def show(self, report: Report, width: int = 1280) -> str:
        """The page's URL, once its charts are drawn."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        path = self._folder / f"{len(list(self._folder.iterdir()))}.html"
        write_page(report, path)
        self.chrome.get(path.as_uri())
        self.until(lambda: self.all(".plot svg"))
        return path.as_uri()

    def until(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.chrome, 5, poll_frequency=0.02).until(lambda _: condition())

    def all(self, selector: str) -> list[WebElement]:
        return self.chrome.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.chrome.find_element(By.CSS_SELECTOR, selector)

    def js(self, script: str, *arguments: object) -> Any:
        return self.chrome.execute_script(script, *arguments)  # type: ignore[no-untyped-call]

    def hover(self, node: WebElement) -> None:
        ActionChains(self.chrome).move_to_element(node).perform()

    def table(self, label: str, key: str) -> list[str]:
        """The texts of one column, from top to bottom."""
        return list(
            self.js(
                "const box = [...document.querySelectorAll('.scroll')].find(b => b.ariaLabel === arguments[0]);"
                "const at = [...box.querySelectorAll('th')].findIndex(h => h.dataset.key === arguments[1]);"
                "return [...box.querySelectorAll('tbody tr')].map(row => row.cells[at].textContent)",
                label,
                key,
            )
        )

    def header(self, label: str, key: str) -> WebElement:
        return self.one(f".scroll[aria-label='{label}'] th[data-key='{key}']")

    def tip(self) -> dict[str, str]:
        return dict(
            self.js(
                "return [...document.querySelectorAll('#tip tr')].map(r => [r.dataset.key, r.cells[1].textContent])"
            )
        )


@pytest.fixture
def page(chrome: Chrome, tmp_path: Path) -> Iterator[Page]:
    chrome.get_log("browser")
    chrome.get_log("performance")
    yield Page(chrome, tmp_path)
    assert [entry for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"] == []


def verdict_at(page: Page, target: float) -> str:
    """The paragraph under the heading of a target."""
    return str(
        page.js(
            "const heading = [...document.querySelectorAll('h3')].find(h => h.textContent === arguments[0]);"
            "return heading.nextSibling.textContent",
            f"NMSE {target:g}",
        )
    )


def point_of(page: Page, sae: int, point: int) -> WebElement:
    """The mark of a point, counted by falling NMSE, left to right."""
    marks = page.all("figure:first-of-type .curve")[sae].find_elements(By.CSS_SELECTOR, ".point")
    return marks[::-1][point]


def test_the_heading_says_what_was_done(page: Page) -> None:
    page.show(synthetic_report(3, metric=True))
    assert page.one("h1").text == page.chrome.title == "3 SAEs compared on test.npy"
    assert "from activations/test.npy." in page.one("footer").text
    lead = page.one(".lead").text
    for words in (
        "32,768 rows of 384 values",
        "no search",
        "no residual",
        "probe:accuracy",
        "95 %: 1,000",
        "261 seq",
        "in float32",
    ):
        assert words in lead
    assert "261 of the input’s 33,029 are left out: the first row of each sequence." in lead


def test_what_a_mask_leaves_out_is_told_by_the_masks_name(page: Page) -> None:
    report = synthetic_report(2)
    page.show(report | {"selection": {"rows_in_input": 40000, "skip_first": 0, "rows_mask": "masks/even.npy"}})
    assert "7,232 of the input’s 40,000 are left out: what even.npy masks." in page.one(".lead").text
    page.show(report | {"selection": {"rows_in_input": 32768, "skip_first": 0, "rows_mask": None}})
    assert "left out" not in page.one(".lead").text


def test_the_verdict_names_the_mdl_sae_and_how_far_the_others_are(page: Page) -> None:
    report = synthetic_report(3)
    page.show(report)
    verdict = report["at"]["0.12"]
    best, second = verdict["mdl"], verdict["differences"][0]
    text = verdict_at(page, 0.12)
    (found,) = [sae["at"]["0.12"] for sae in report["saes"] if sae["name"] == best]
    assert f"The MDL-SAE is {best}, at {found['bits_per_row']:.1f} [" in text
    low, high = second["interval"]
    assert f"{second['b']}, which needs {second['bits']:.1f} [{low:.1f}, {high:.1f}] bits per row more" in text
    assert f"counted, it is {verdict['mdl_with_sae']}." in text
    assert page.table("SAEs at NMSE 0.12", "sae") == [sae["name"] for sae in report["saes"][1:]]
    assert f"{report['saes'][0]['name']} does not reach it: floor 0.1310 is above" in page.one("main").text


def test_the_verdict_tells_ties_with_decoders_and_intervals_without_an_end(page: Page) -> None:
    report = synthetic_report(3)
    verdict, second = report["at"]["0.2"], report["saes"][1]
    others = [sae["name"] for sae in report["saes"] if sae["name"] != verdict["mdl_with_sae"]]
    verdict["ties_with_sae"] = others[:1]
    second["at"]["0.2"] |= {"interval": [100.0, None], "not_reached": 0.0625}
    page.show(report)
    text = verdict_at(page, 0.2)
    assert f"counted, and not told apart from {others[0]}." in text
    assert f"too hard for every file (6.3 % of them for {second['name']})." in text
    assert "too hard" not in verdict_at(page, 0.12)


def test_the_verdict_says_from_how_many_rows_on_an_sae_is_the_shortest(page: Page) -> None:
    report = synthetic_report(3)
    page.show(report)
    first, then = report["at"]["0.12"]["shortest_from_rows"]
    from_rows = f"{math.ceil(then['from_rows']):,}"
    assert f"the shortest is {first['name']} at first, and {then['name']} from {from_rows} rows on." in verdict_at(
        page, 0.12
    )
    assert "best with its decoder’s bits counted, for any number of rows." in verdict_at(page, 0.2)
    label = "SAEs at NMSE 0.2"
    for key, other in (("even", "raw"), ("even_pca", "pca")):
        expected = [sae["at"]["0.2"][f"rows_to_break_even_{other}"] for sae in report["saes"]]
        assert page.table(label, key) == [f"{math.ceil(rows):,}" for rows in expected]
    assert page.table("SAEs at NMSE 0.12", "even_mdl") == [from_rows, "–"]


def ratios(page: Page, label: str, key: str = "ratio") -> list[float | None]:
    return [None if text == "–" else float(text) for text in page.table(label, key)]


def test_other_codes_stand_beside_the_mdl_sae_at_each_target(page: Page) -> None:
    report = synthetic_report(3)
    page.show(report)
    for key, label in (("0.12", "other codes at NMSE 0.12"), ("0.2", "other codes at NMSE 0.2")):
        (sae,) = [sae for sae in report["saes"] if sae["name"] == report["at"][key]["mdl"]]
        own, found = sae["at"][key]["bits_per_row"], report["baselines"][key]
        most = found["exemplars"][-1]
        bits = [found["dense"]["bits_per_row"], found["dense"]["entropy_per_row"]]
        bits += [code["bits_per_row"] for code in (found["one_hot"], most, found["pca"])]
        assert page.table(label, "code")[0] == sae["name"]
        assert page.table(label, "code")[4] == "Nearest of 4,096 exemplars"
        assert page.table(label, "bits_per_row") == [f"{value:,.1f}" for value in (own, *bits)]
        assert ratios(page, label) == [None, *(pytest.approx(own / value, abs=6e-4) for value in bits)]
        assert page.table(label, "nmse")[4:] == [f"{code['nmse']:.4f}" for code in (most, found["pca"])]
        assert page.table(label, "what") == ["real bytes", *4 * ["estimate"], "real bytes"]
        assert page.table(label, "model") == [f"{sae['decoder']['float32']['bytes']:,}", *4 * ["–"], "108,394"]


def test_estimates_stand_beside_the_file_that_is_nearest_to_the_target(page: Page) -> None:
    report = synthetic_report(2)
    page.show(report)
    label = "estimates at NMSE 0.2"
    for i, sae in enumerate(report["saes"]):
        nearest = min(sae["points"], key=lambda point: abs(math.log(point["nmse"] / 0.2)))
        estimates, chosen = nearest["estimates"], sae["saebench"]["chosen"]
        assert page.table(label, "nmse")[i] == f"{nearest['nmse']:.4f}"
        columns = (
            ("l0", estimates["l0_formula"]),
            ("entropies", estimates["sum_entropy"]),
            ("mdl", chosen["mdl_bits"]),
        )
        for key, bits in columns:
            assert page.table(label, key)[i] == f"{bits:,.1f}"
            assert ratios(page, label, f"{key}_ratio")[i] == pytest.approx(nearest["bits_per_row"] / bits, abs=6e-4)
        assert page.table(label, "mdl_nmse")[i] == f"{chosen['nmse']:,.0f}"


def test_a_measure_stands_beside_other_codes_and_counts_the_sae(page: Page) -> None:
    report = synthetic_measure()
    page.show(report)
    (sae,), found = report["saes"], report["baselines"]
    (point,) = sae["points"]
    codes = dict(zip(page.table("other codes", "code"), ratios(page, "other codes"), strict=True))
    assert codes["L0 (B + log2 F)"] == pytest.approx(1 / 1.9, abs=6e-4)
    assert codes["SAEBench mdl"] == pytest.approx(point["bits_per_row"] / 185, abs=6e-4)
    assert codes["PCA"] == pytest.approx(point["bits_per_row"] / found["pca"]["bits_per_row"], abs=6e-4)
    assert next(iter(codes)) == sae["name"]
    assert len(codes) == 9
    label = "two-part description length"
    assert page.table(label, "precision") == ["float32", "bfloat16", "int8"]
    parts = [page.table(label, key) for key in ("data", "prior", "sae")]
    for i, weighed in enumerate(report["two_part"]["with_sae"].values()):
        assert page.table(label, "total")[i] == f"{weighed['total_bits_per_row']:,.1f}"
        assert sum(float(part[i].replace(",", "")) for part in parts) == pytest.approx(
            weighed["total_bits_per_row"], abs=0.2
        )
        for key, other in (("even", "raw"), ("even_pca", "pca")):
            assert page.table(label, key)[i] == f"{math.ceil(weighed[f'rows_to_break_even_{other}']):,}"


def test_a_decoder_in_the_file_is_not_held_against_it(page: Page) -> None:
    report = synthetic_measure()
    (point,) = report["saes"][0]["points"]
    bits = point["bits_per_row"]
    point["bytes"]["decoder"] = report["saes"][0]["decoder"]["float32"]["bytes"]
    point["file_bytes"] += point["bytes"]["decoder"]
    point["bits_per_row"] = 8 * point["file_bytes"] / report["rows"]
    page.show(report)
    pca = report["baselines"]["pca"]["bits_per_row"]
    assert page.table("other codes", "bits_per_row")[0] == f"{bits:,.1f}"
    assert ratios(page, "other codes")[-1] == pytest.approx(bits / pca, abs=6e-4)
    assert "which the file holds, is not in the file’s bits here" in page.one("main").text


def test_what_saebench_leaves_out_is_said_once_of_all_saes(page: Page) -> None:
    page.show(synthetic_report(3))
    said = page.js("return [...document.querySelectorAll('details li')].map(item => item.textContent)")
    assert said == [*DISTORTIONS, *(f"The NMSE of what is decoded is {2930 + i}." for i in range(3))]


def test_codes_that_could_not_be_made_say_why(page: Page) -> None:
    report = synthetic_report(2)
    report["baselines"]["0.2"] |= {"pca": None, "missing": {"pca": "NMSE 0.2 is not met"}}
    page.show(report)
    assert "Without PCA: NMSE 0.2 is not met." in page.one("main").text
    assert "PCA" not in page.table("other codes at NMSE 0.2", "code")
    assert len(page.all(".other .point")) == 1


def test_pca_is_in_the_chart(page: Page) -> None:
    report = synthetic_report(2)
    page.show(report)
    page.hover(page.all(".other .point")[0])
    pca = report["baselines"]["0.12"]["pca"]
    assert page.tip() == {"bits_per_row": f"{pca['bits_per_row']:.1f}", "nmse": "0.1201", "model_bytes": "108,394"}
    page.show(report | {"baselines": None})
    assert not page.all(".other")


def test_a_header_sorts_its_table_and_says_so(page: Page) -> None:
    report = synthetic_report(2)
    page.show(report)
    columns = report["saes"][0]["detail"]["latents"]["columns"]
    by_rate = sorted(range(len(columns["latent"])), key=lambda i: -columns["rate"][i])
    expected = [str(columns["latent"][i]) for i in by_rate]
    header = page.header("Latents", "rate")
    assert page.table("Latents", "latent") == [str(latent) for latent in columns["latent"]]
    header.find_element(By.TAG_NAME, "button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert page.table("Latents", "latent") == expected
    header.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert header.get_attribute("aria-sort") == "ascending"
    assert page.table("Latents", "latent") == expected[::-1]
    page.header("Latents", "latent").find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert header.get_attribute("aria-sort") == "none"
    assert page.table("Latents", "latent") == [str(latent) for latent in sorted(columns["latent"], reverse=True)]


def test_missing_values_stay_last_and_text_sorts_by_its_numbers(page: Page) -> None:
    report = synthetic_report(1)
    groups = report["saes"][0]["detail"]["groups"]["columns"]
    groups |= {"group": ["p 10", "p 9", "q"], "bits": [None, 2.5, 7.25]}
    page.show(report)
    for key, down, up in (("bits", ["q", "p 9", "p 10"], ["p 9", "q", "p 10"]), ("group", [], ["p 9", "p 10", "q"])):
        for expected in [down, up] if down else [up]:
            page.header("Groups", key).find_element(By.TAG_NAME, "button").click()
            assert page.table("Groups", "group") == expected


def test_the_tooltip_of_a_point_has_the_numbers_of_the_report(page: Page) -> None:
    report = synthetic_report(3, metric=True)
    page.show(report)
    point = report["saes"][2]["points"][0]
    page.hover(point_of(page, 2, 4))
    low, high = point["nmse_interval"]
    bits, (least, most) = point["bits_per_row"], point["bits_interval"]
    tip = page.tip()
    assert tip["step"] == "0.4"
    assert tip["bits_per_row"] == f"{bits:.1f} [{least:.1f}, {most:.1f}]"
    assert tip["nmse"] == f"{point['nmse']:.4f} [{low:.4f}, {high:.4f}]"
    assert tip["metric"].startswith(f"{point['metric']:.4f} [")
    for part, size in point["bytes"].items():
        assert tip.get(part, "0") == f"{size:,}"
    assert tip["file_bytes"] == f"{point['file_bytes']:,}"
    assert page.one("#tip strong").text == report["saes"][2]["name"]
    page.hover(page.one("h1"))
    assert not page.one("#tip").is_displayed()


def test_the_tooltip_also_comes_by_focus_and_by_touch(page: Page) -> None:
    report = synthetic_report(2)
    page.show(report, 400)
    page.js("arguments[0].focus()", point_of(page, 0, 0))
    assert page.tip()["file_bytes"] == f"{report['saes'][0]['points'][-1]['file_bytes']:,}"
    ActionChains(page.chrome).send_keys(Keys.ESCAPE).perform()
    assert not page.one("#tip").is_displayed()
    finger = ActionBuilder(page.chrome, mouse=PointerInput(POINTER_TOUCH, "finger"))
    finger.pointer_action.move_to(point_of(page, 1, 4)).pointer_down().pointer_up()  # type: ignore[no-untyped-call]
    finger.perform()
    assert page.tip()["file_bytes"] == f"{report['saes'][1]['points'][0]['file_bytes']:,}"
    box = page.js("const r = document.getElementById('tip').getBoundingClientRect(); return [r.left, r.right]")
    assert 0 <= box[0] < box[1] <= 400


def test_a_curve_can_be_hidden_and_shown_again(page: Page) -> None:
    report = synthetic_report(3)
    page.show(report)
    names = [sae["name"] for sae in report["saes"]]

    def curves() -> list[str | None]:
        return [curve.get_attribute("data-sae") for curve in page.all(".curve")]

    assert curves() == names
    assert len(page.all(".curve .point")) == sum(len(sae["points"]) for sae in report["saes"])
    button = page.all(".legend button")[1]
    button.click()
    assert curves() == [names[0], names[2]]
    assert button.get_attribute("aria-pressed") == "false"
    button.send_keys(Keys.ENTER)
    assert curves() == names
    assert button.get_attribute("aria-pressed") == "true"


def test_each_curve_has_a_colour_and_a_shape_of_its_own(page: Page) -> None:
    page.show(synthetic_report(11))
    looks = page.js(
        "return [...document.querySelectorAll('.legend .swatch')]"
        ".map(s => getComputedStyle(s).color + s.firstChild.getAttribute('d'))"
    )
    assert len(set(looks)) == 11


def test_only_points_of_the_pareto_front_are_filled(page: Page) -> None:
    report = synthetic_report(3)
    page.show(report)
    assert 0 < len(page.all(".point .filled")) == len(report["pareto"]) < len(page.all(".point"))


def test_another_sae_can_be_chosen(page: Page) -> None:
    report = synthetic_report(3)
    report["saes"][1]["detail"]["latents"]["columns"]["latent"][0] = 77777
    page.show(report)
    choice = Select(page.one("select"))
    first = page.table("Latents", "latent")
    choice.select_by_visible_text(report["saes"][1]["name"])
    assert page.table("Latents", "latent")[0] == "77777" != first[0]
    choice.select_by_visible_text(report["saes"][2]["name"])
    assert "Nothing more was measured" in page.one("#details").text
    assert page.table("bytes by part", "step") == ["0.4", "0.6", "0.8", "1.2", "1.7"]


def test_bytes_by_part_add_up_to_the_file(page: Page) -> None:
    report = synthetic_report(1)
    report["saes"][0]["points"][0]["file_bytes"] += 5
    page.show(report)
    total = [int(text.replace(",", "")) for text in page.table("bytes by part", "total")]
    parts = [page.table("bytes by part", key) for key in ("support", "levels", "tables", "headers", "rest")]
    assert total == [point["file_bytes"] for point in report["saes"][0]["points"]]
    assert total == [sum(int(text.replace(",", "")) for text in row) for row in zip(*parts, strict=True)]


def test_a_bar_of_a_histogram_tells_its_count(page: Page) -> None:
    report = synthetic_report(1)
    page.show(report)
    histogram = report["saes"][0]["detail"]["histograms"]["row_bits"]
    peak = max(range(40), key=histogram["counts"].__getitem__)
    page.until(lambda: page.all("[data-histogram='row_bits'] .bin"))
    page.hover(page.all("[data-histogram='row_bits'] .bin .hit")[peak])
    low, high = histogram["edges"][peak : peak + 2]
    assert page.tip()["count"] == f"{histogram['counts'][peak]:,}"
    assert page.tip()["range"] == f"{low:.1f} to {high:.1f}"
    page.one("[data-histogram='latent_bits'] svg").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    counts = report["saes"][0]["detail"]["histograms"]["latent_bits"]["counts"]
    assert page.tip()["count"] == f"{counts[1]:,}"


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_never_scrolls_sideways(page: Page, width: int) -> None:
    page.show(synthetic_report(8, names=(LONG, HOSTILE, LONG.replace("_", " ")), metric=True), width)
    page.js("document.querySelectorAll('details').forEach(box => { box.open = true; })")
    assert page.js("return innerWidth") == width
    assert page.js("return document.documentElement.scrollWidth") <= width
    assert (
        page.js(
            "return Math.max(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().right))"
        )
        <= width
    )


@pytest.mark.parametrize("width", [400, 1280])
def test_long_names_break_between_words(page: Page, width: int) -> None:
    page.show(synthetic_report(3, names=TYPICAL), width)
    page.js("document.querySelectorAll('details').forEach(box => { box.open = true; })")
    # A node of text with more than one rectangle is torn; names have one such node for each word.
    words, torn, broken = page.js(
        "const names = [...document.querySelectorAll('.named > span, strong, .legend span')];"
        "const lines = node => { const all = document.createRange(); all.selectNodeContents(node);"
        "  return new Set([...all.getClientRects()].map(box => box.top)).size; };"
        "const words = names.flatMap(name => [...name.childNodes].filter(node => node.nodeType === Node.TEXT_NODE));"
        "return [words.map(word => word.textContent), words.filter(word => lines(word) > 1).map(w => w.textContent),"
        "  names.filter(name => lines(name) > 1).length]"
    )
    assert {"minilm_", "batchtopk_", "saes/", "k32"} <= set(words)
    assert torn == []
    assert broken > 0


def test_a_name_with_markup_is_shown_as_text(page: Page) -> None:
    page.show(synthetic_report(2, names=(HOSTILE,)))
    assert page.all(".legend button")[0].text == HOSTILE
    assert HOSTILE in page.one("h2 + .choice").find_element(By.XPATH, "preceding-sibling::h2[1]").text
    assert page.all("main b") == []


def test_the_page_loads_nothing_but_itself(page: Page) -> None:
    url = page.show(synthetic_report(2))
    messages = [json.loads(entry["message"])["message"] for entry in page.chrome.get_log("performance")]
    loaded = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {one for one in loaded if not one.startswith("data:")} == {url}


def test_one_sae_at_one_point_is_a_page_too(page: Page) -> None:
    report = synthetic_report(1)
    sae = report["saes"][0]
    sae["points"] = sae["points"][:1]
    page.show(report)
    assert page.one("h1").text == f"{sae['name']} measured on test.npy"
    assert len(page.all(".curve .point")) == 1
    assert not page.all(".legend, select")
    assert f"needs {sae['at']['0.2']['bits_per_row']:.1f} [" in page.one("main").text
    assert "does not reach it: floor 0.1310 is above" in page.one("main").text


def without_numbers(value: Any) -> Any:
    """`value` with null for every number, and a key that nobody knows in every object."""
    if isinstance(value, dict):
        return {key: without_numbers(item) for key, item in value.items()} | {"later": {"columns": {"a": [1]}}}
    if isinstance(value, list):
        return [without_numbers(item) for item in value]
    return None if isinstance(value, (int, float)) else value


@pytest.mark.parametrize(
    "report",
    [
        without_numbers(synthetic_report(2, metric=True)),
        without_numbers(synthetic_measure()),
        {"kind": "measure", "saes": []},
        {key: None for key in synthetic_report(1)},
        synthetic_report(2) | {"at": None, "pareto": None, "bd_rate": None, "crossings": None, "bootstrap": None},
    ],
    ids=["no numbers", "no numbers of a measure", "no SAE", "nothing", "no comparison"],
)
def test_what_a_report_lacks_is_left_out(page: Page, report: Report) -> None:
    page.show(report)  # and the console stays empty
    assert page.one("footer").text.startswith("Made by saecodec")
