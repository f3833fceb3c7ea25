import json
from pathlib import Path

import paper_text
import pytest
from make_mnist_sweep import facts_of
from mnist_sweep_text import shown, title_of, told
from paper_mnist_counts import IMAGES

DOCS = Path(__file__).parent.parent / "docs"


def report(best: dict[str, int]) -> dict:
    """A comparison of widths 32, 64, 128 at k 4 and 8, of which `best` alone reach 0.25, in bits."""
    saes = []
    for width in (32, 64, 128):
        for k in (4, 8):
            name = f"F{width}_k{k}"
            at = {"bits_per_row": best.get(name, 0) - width / 8, "interval": [1.0, None], "tables_bits_per_row": 1.0}
            at |= {"sae_bits_per_row": width / 8, "total_bits_per_row": best.get(name, 0), "not_kept": 1}
            sae = {"name": name, "n_latents": width, "l0": k, "floor": 0.2, "decoder": {"int8": {"bytes": 784 * width}}}
            saes.append(sae | {"at": {"0.25": at if name in best else {"missing": "its NMSE is 0.3"}}})
    alone = min(best, key=lambda name: best[name] - int(name[1:].partition("_")[0]) / 8, default=None)
    verdict = {
        "mdl": alone,
        "ties": ["F64_k8"] if "F64_k8" in best else [],
        "mdl_with_sae": min(best, key=best.get, default=None),
        "ties_with_sae": [],
    }
    verdict |= {"differences": [], "shortest_from_rows": [{"from_rows": 0.0, "name": name} for name in best]}
    head = {"version": "1", "rows": 10_000, "search": "none", "weights": "int8", "targets": [0.25]}
    return head | {"bootstrap": {"unit": "rows"}, "saes": saes, "at": {"0.25": verdict}}


def facts(best: dict[str, int], folder: Path) -> dict:
    """The same as docs/mnist_sweep.json has it."""
    for sae in report(best)["saes"]:
        path = folder / sae["name"] / "training.json"
        path.parent.mkdir(parents=True)
        told = {"settings": {"aim": {"kind": "l0", "value": float(sae["l0"])}}, "seconds": 60.0}
        path.write_text(json.dumps(told | {"steps": 10, "rows": 56_256, "threads": 1}))
    out = facts_of(report(best), folder) | {"command": "saecodec train ...", "machine": "a machine"}
    return json.loads(json.dumps(out | {"seconds": {"training": 360.0, "command": None}}))


def test_the_section_names_the_shortest_with_and_without_the_decoder(tmp_path):
    found = facts({"F32_k8": 90, "F64_k8": 80, "F128_k8": 85}, tmp_path)
    text = told(found)
    many = 80 - 8 - 1 + (8 + 1) * 10_000 / IMAGES
    alone = "| 0.25 | width 128, k = 8 (ties: width 64, k = 8) | **69.0** (1.0 to –) |"
    assert f"{alone} width 64, k = 8 | **80.0** | width 128, k = 8 | **70.8** |" in text
    assert f"| 64 | – / – | 72.0 / {many:.1f} |" in text
    assert "| 128 | – / – | **69.0** / **70.8** |" in text
    flat = " ".join(text.split())
    assert (
        "With the decoder out, the shortest has the grid's largest width and the grid's largest k at NMSE 0.25" in flat
    )
    assert "Shared by 60,000 images, the shortest has the grid's largest width and the grid's largest k" in flat
    assert "trains 6 BatchTopK SAEs" in flat
    assert "training took 6 minutes" in flat


def test_the_picture_has_the_shortest_between_the_narrowest_and_the_widest_of_its_k(tmp_path):
    found = facts({"F64_k4": 70, "F128_k8": 85}, tmp_path)
    assert shown(found) == ["F32_k4", "F64_k4", "F128_k4"]
    titles = [title_of(found, name).splitlines() for name in shown(found)]
    assert titles[0] == ["width 32, k = 4", "NMSE above 0.25"]
    assert titles[1] == ["width 64, k = 4", f"MDL-SAE, {70 - 9 + 9 * 10_000 / IMAGES:.1f} bits"]
    assert "a width inside the grid and the grid's least k" in " ".join(told(found).split())


@pytest.mark.parametrize("best", [{}, {"F32_k4": 50}])
def test_a_sweep_without_a_winner_or_with_one_at_its_edge_is_told(best, tmp_path):
    found = facts(best, tmp_path)
    text = " ".join(told(found).split())
    assert ("no SAE reaches it" in text) == (not best)
    assert ("the grid's least width and the grid's least k" in text) == bool(best)
    assert len(shown(found)) == (2 if best else 3)


def test_the_page_is_what_its_facts_say():
    assert paper_text.page(json.loads((DOCS / "paper.json").read_text())) == (DOCS / "paper.md").read_text()
