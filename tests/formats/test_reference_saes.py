"""Checkpoints as the libraries write them, with the libraries' own outputs: those of SAECODEC_FIXTURES, a folder of
cases (docs/make_checkpoints.py says what is in them)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from make_checkpoints import PAGE, VARIABLE, between, compare, comparisons, families

ROOT = Path(os.environ.get(VARIABLE) or os.devnull)
CASES = sorted(path for path in ROOT.iterdir() if (path / "io.npz").is_file()) if ROOT.is_dir() else []
with_reference = pytest.mark.skipif(not CASES, reason=f"{VARIABLE} names no folder of reference cases")

OTHER_UNITS = {"saelens_via_dictlearn_AutoEncoder"}
"""SAELens keeps the norms of an AutoEncoder's decoder, dictionary_learning's own loader does not: activations agree up
to a positive factor of each latent."""
REFUSED = {
    "llamascopium_batchtopk": "batchtopk keeps the k N largest",
    "saelens_jumprelu_skip_transcoder": "transcoder",
    "saelens_skip_transcoder": "transcoder",
    "saelens_temporal": "temporal",
    "saelens_transcoder": "transcoder",
    "sparsify_skip": "skip_connection",
    "sparsify_transcode": "transcode",
    "sparsify_transcode_skip": "transcode",
}


@with_reference
@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_a_reference_case_agrees_with_its_library_or_is_refused_for_its_reason(folder: Path) -> None:
    found = compare(folder)
    told = next((REFUSED[name] for name in REFUSED if folder.name == name), "")
    assert told in found.refused
    assert bool(told) == bool(found.refused)
    if not told:
        limit = 2e-2 if "float16" in folder.name else 1e-4
        assert found.z_error < limit
        assert found.x_hat_error < limit
        assert found.scaled == (folder.name in OTHER_UNITS)


@with_reference
def test_the_table_of_reference_cases_in_the_document_has_them_all() -> None:
    held = between(PAGE.read_text(encoding="utf-8"), "comparisons")
    names = [line.split("|")[1] for line in comparisons(ROOT).splitlines()]
    assert [line.split("|")[1] for line in held.splitlines()] == names


def test_the_table_of_families_in_the_document_is_up_to_date() -> None:
    assert between(PAGE.read_text(encoding="utf-8"), "families") == families()


def test_a_comparison_finds_what_differs(tmp_path: Path) -> None:
    """The comparison itself: of an SAE with the right outputs, with activations in other units, and with wrong ones."""
    generator = torch.Generator().manual_seed(0)
    encoder, decoder, x = (torch.randn(*shape, generator=generator) for shape in ((9, 4), (4, 9), (20, 4)))
    state = {"encoder.weight": encoder, "encoder.bias": torch.zeros(9)}
    torch.save(state | {"decoder.weight": decoder, "decoder.bias": torch.zeros(4)}, tmp_path / "sae.pt")
    z = (x @ encoder.T).relu()
    factors = torch.rand(9, generator=generator) + 1
    for ours, scaled, agrees in ((z, False, True), (z * factors, True, True), (z.flip(0), False, False)):
        np.savez(tmp_path / "io.npz", x=x, z=ours, x_hat=z @ decoder.T)
        found = compare(tmp_path)
        assert (found.scaled, found.z_error < 1e-5, found.x_hat_error < 1e-5) == (scaled, agrees, True)
