"""SAEs named by a hub address are found in huggingface_hub's cache; nothing here touches a network."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("huggingface_hub")
pytest.importorskip("yaml")

from saecodec.errors import CheckpointError, InputError, UnsupportedError
from saecodec.formats import hub
from saecodec.formats.checkpoints import load_sae, with_input_scale

FIXTURES = Path(__file__).parents[1] / "fixtures" / "saelens"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "someone/some-saes"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub lays it out, with one SAE in one repository; the snapshot's folder."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / f"models--{REPO.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    shutil.copytree(FIXTURES / "topk", snapshot / "blocks.8")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_an_sae_in_the_cache_is_loaded_by_its_address(cached: Path) -> None:
    wanted = load_sae(FIXTURES / "topk").sae_id
    for address in (f"hf://{REPO}/blocks.8", f"hf://{REPO}/blocks.8@main", f"hf://{REPO}/blocks.8@{COMMIT}"):
        assert load_sae(address).sae_id == wanted
    assert load_sae(f"hf://{REPO}").sae_id == wanted  # the only one in the repository


def test_what_is_not_in_the_cache_is_an_error_that_names_the_address(cached: Path) -> None:
    for address in ("hf://someone/other-saes/x", f"hf://{REPO}/blocks.9", f"hf://{REPO}/blocks.8@v2"):
        with pytest.raises(InputError, match=address):
            load_sae(address)


@pytest.mark.parametrize("address", ["hf://", "hf://someone", "hf://a/b/c@", "hf://a b/c"])
def test_a_malformed_address_is_refused_with_the_right_form(address: str) -> None:
    with pytest.raises(InputError, match="expected hf://owner/repo"):
        load_sae(address)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'saecodec\[hf\]'"):
        load_sae(f"hf://{REPO}/blocks.8")
    with pytest.raises(UnsupportedError, match="no such path"):
        load_sae("gpt2-small-res/blocks.8")


def test_k_of_qwen_scope_comes_from_the_name_of_its_repository(cached: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_5" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    weights = {
        "W_enc": torch.randn(16, 8),
        "W_dec": torch.randn(8, 16),
        "b_enc": torch.ones(16),
        "b_dec": torch.ones(8),
    }
    torch.save(weights, snapshot / "layer3.sae.pt")
    address = f"hf://Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5/layer3.sae.pt@{COMMIT}"
    assert int((load_sae(address).encode(torch.randn(50, 8)) != 0).sum(1).max()) == 5
    assert int((load_sae(address, k=2).encode(torch.randn(50, 8)) != 0).sum(1).max()) == 2
    shutil.copy(snapshot / "layer3.sae.pt", tmp_path / "layer3.sae.pt")
    with pytest.raises(CheckpointError, match="--sae-k"):
        load_sae(tmp_path / "layer3.sae.pt")


@pytest.fixture
def saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package sae_lens with a listing of two SAEs, one of which has a scale."""
    package = tmp_path / "site" / "sae_lens"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('it must not be imported')")
    listing = f"""
some-release:
  repo_id: {REPO}
  saes:
  - {{id: blocks.8.hook, path: blocks.8}}
  - {{id: scaled, path: blocks.8, norm_scaling_factor: 2.5}}
"""
    (package / "pretrained_saes.yaml").write_text(listing)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "sae_lens", raising=False)


@pytest.mark.usefixtures("saelens")
def test_a_release_and_id_of_saelens_is_looked_up_in_its_listing(cached: Path) -> None:
    plain = load_sae(FIXTURES / "topk")
    assert load_sae("some-release/blocks.8.hook").sae_id == plain.sae_id
    assert load_sae("some-release/scaled").sae_id == with_input_scale(plain, 2.5).sae_id
    assert load_sae("some-release/scaled", input_scale=1.0).sae_id == plain.sae_id
    with pytest.raises(InputError, match=r"no SAE 'other'; it has blocks.8.hook, scaled"):
        load_sae("some-release/other")
    assert hub.locate("another-release/x") is None
