"""Which SAE of a sweep is named, and what is said of the grid's ends."""

from __future__ import annotations

from typing import Any

import pytest

from saecodec.formats.sweep_verdicts import edge_of, verdict_at


def test_the_more_rows_share_a_decoder_the_more_latents_pay() -> None:
    def sae(name: str, width: int, rate: float, tables: float, decoder: float) -> dict[str, Any]:
        at = {"bits_per_row": rate, "tables_bits_per_row": tables, "sae_bits_per_row": decoder}
        return {"name": name, "n_latents": width, "at": {"0.2": at}}

    saes = [sae("narrow", 8, 50.0, 1.0, 5.0), sae("middle", 16, 40.0, 2.0, 10.0), sae("wide", 32, 30.0, 5.0, 100.0)]
    saes.append({"name": "lost", "n_latents": 64, "at": {"0.2": {"missing": "why"}}})
    report = {"rows": 100, "saes": saes, "at": {"0.2": {"mdl": "wide", "ties": []}}}
    verdict = verdict_at(report, "0.2", 1000)
    assert verdict["with_sae"] == [
        {"rows": 100, "mdl": "middle", "total_bits_per_row": pytest.approx(50.0), "edge": None},
        {"rows": 1000, "mdl": "wide", "total_bits_per_row": pytest.approx(25.0 + 10.5), "edge": None},
    ]
    assert verdict["missing"] == ["lost"]
    assert (edge_of(8, (8, 16)), edge_of(16, (8, 16)), edge_of(8, (8, 8))) == ("narrowest", "widest", None)
