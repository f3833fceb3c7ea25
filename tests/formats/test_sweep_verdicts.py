"""Which SAE of a sweep is named, and what is said of the grid's ends."""

from __future__ import annotations

from typing import Any

import pytest

from saecodec.formats.sweep_verdicts import end_of, verdict_at


def test_the_more_rows_share_a_decoder_the_more_latents_pay() -> None:
    def sae(name: str, width: int, rate: float, tables: float, decoder: float) -> dict[str, Any]:
        at = {"bits_per_row": rate, "tables_bits_per_row": tables, "sae_bits_per_row": decoder}
        return {"name": name, "n_latents": width, "at": {"0.2": at}}

    saes = [sae("narrow", 8, 50.0, 1.0, 5.0), sae("middle", 16, 40.0, 2.0, 10.0), sae("wide", 32, 30.0, 5.0, 100.0)]
    saes.append({"name": "lost", "n_latents": 64, "at": {"0.2": {"missing": "why"}}})
    report = {"rows": 100, "saes": saes, "at": {"0.2": {"mdl": "wide", "ties": []}}}
    verdict = verdict_at(report, "0.2", 1000, {"narrow": 2, "middle": 2, "wide": 4, "lost": 8})
    assert verdict["with_sae"] == [
        {"rows": 100, "mdl": "middle", "total_bits_per_row": pytest.approx(50.0), "edge": None, "k_edge": "least"},
        {"rows": 1000, "mdl": "wide", "total_bits_per_row": pytest.approx(25.0 + 10.5), "edge": None, "k_edge": None},
    ]
    assert verdict["missing"] == ["lost"]
    assert (verdict["edge"], verdict["k_edge"]) == (None, None)
    report["at"]["0.2"]["mdl"] = None
    none = verdict_at(report, "0.2", 1000, {})
    assert (none["mdl"], none["edge"], none["k_edge"]) == (None, None, None)


def test_an_end_of_a_grid_is_known_where_there_are_several_values() -> None:
    values = {"a": 8, "b": 16, "c": 16, "d": 12}
    found = [end_of(name, values, ("low", "high")) for name in ("a", "b", "c", "d", "e", None)]
    assert found == ["low", "high", "high", None, None, None]
    assert end_of("a", {"a": 8, "b": 8}, ("low", "high")) is None
