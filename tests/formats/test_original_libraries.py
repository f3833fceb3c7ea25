"""Checkpoints that the original libraries write here and now; each test is skipped where its library is not installed.

pip install sae-lens dictionary-learning eai-sparsify
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from saecodec.formats.checkpoints import load_sae
from saecodec.formats.saelens_writer import write_saelens

# Libraries that nobody here can mend warn at import and at use.
pytestmark = pytest.mark.filterwarnings("ignore")
D, F, K = 16, 48, 5


def randomize(model: torch.nn.Module) -> None:
    """Random parameters, but positive thresholds, and decoders of all norms."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim == 2 else 0.2))
            if "threshold" in name:
                parameter.abs_()


def compare(path: Path, x: torch.Tensor, z: torch.Tensor, x_hat: torch.Tensor, k: int | None = None) -> None:
    sae = load_sae(path, "cpu", k=k)
    torch.testing.assert_close(sae.encode(x), z.detach().float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(sae.reconstruct(x), x_hat.detach().float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk", "abstopk", "matching_pursuit"])
def test_saelens(architecture: str, normalize: str, tmp_path: Path) -> None:
    pytest.importorskip("sae_lens", exc_type=ImportError)
    from sae_lens import registry  # type: ignore[import-not-found]

    sae_class, config_class = registry.get_sae_class(architecture)
    options: dict[str, Any] = {"k": K} if "topk" in architecture else {}
    if architecture == "matching_pursuit":
        options = {"max_iterations": 7}
    config = config_class(d_in=D, d_sae=F, dtype="float32", device="cpu", normalize_activations=normalize, **options)
    model = sae_class(config)
    randomize(model)
    model.save_model(tmp_path)
    x = torch.randn(40, D)
    with torch.no_grad():
        z = model.encode(x)
        compare(tmp_path, x, z, model.decode(z))


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
def test_saelens_loads_what_is_written(architecture: str, subtract: bool, make_sae: Any, tmp_path: Path) -> None:
    sae_lens: Any = pytest.importorskip("sae_lens", exc_type=ImportError)
    sae = make_sae(architecture, 1, D, F)
    b_enc = torch.zeros(F) if architecture == "gated" else torch.randn(F)
    sae = replace(sae, encoder=replace(sae.encoder, b_enc=b_enc, apply_b_dec_to_input=subtract))
    write_saelens(sae, tmp_path, metadata={"model_name": "gpt2-small", "hook_name": "here"})
    model = sae_lens.SAE.load_from_disk(tmp_path)
    told = model.cfg.metadata
    assert (model.cfg.architecture(), model.cfg.apply_b_dec_to_input) == (architecture, subtract)
    assert (told.model_name, told.hook_name, told.sae_lens_training_version) == ("gpt2-small", "here", None)
    x = torch.randn(40, D)
    with torch.no_grad():
        z = model.encode(x)
        assert 0 < int((z > 0).sum()) < z.numel()
        torch.testing.assert_close(sae.encode(x), z, atol=1e-5, rtol=0)
        torch.testing.assert_close(sae.decode(z), model.decode(z), atol=1e-5, rtol=0)
        torch.testing.assert_close(sae.reconstruct(x), model(x), atol=1e-5, rtol=0)
    model.save_model(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "cfg.json").read_text()) == json.loads((tmp_path / "cfg.json").read_text())
    assert load_sae(tmp_path / "again", "cpu").sae_id == load_sae(tmp_path, "cpu").sae_id == sae.sae_id


def _dictionaries() -> dict[str, Callable[[], Any]]:
    from dictionary_learning import dictionary  # type: ignore[import-not-found]
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # type: ignore[import-not-found]
    from dictionary_learning.trainers.matryoshka_batch_top_k import (  # type: ignore[import-not-found]
        MatryoshkaBatchTopKSAE,
    )
    from dictionary_learning.trainers.top_k import AutoEncoderTopK  # type: ignore[import-not-found]

    return {
        "AutoEncoder": lambda: dictionary.AutoEncoder(D, F),
        "AutoEncoderNew": lambda: dictionary.AutoEncoderNew(D, F),
        "GatedAutoEncoder": lambda: dictionary.GatedAutoEncoder(D, F),
        "JumpReluAutoEncoder": lambda: dictionary.JumpReluAutoEncoder(D, F),
        "AutoEncoderTopK": lambda: AutoEncoderTopK(D, F, K),
        "BatchTopKSAE": lambda: BatchTopKSAE(D, F, K),
        "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(D, F, K, [F // 3, F - F // 3]),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "AutoEncoder",
        "AutoEncoderNew",
        "GatedAutoEncoder",
        "JumpReluAutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
    ],
)
def test_dictionary_learning(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("dictionary_learning", exc_type=ImportError)
    made = _dictionaries()[kind]()
    randomize(made)
    if "BatchTopK" in kind:
        made.threshold.fill_(0.3)
    torch.save(made.state_dict(), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind, "k": K}}))
    loaded = type(made).from_pretrained(str(tmp_path / "ae.pt"))
    x = torch.randn(40, D)
    with torch.no_grad():
        z = loaded.encode(x)
        compare(tmp_path, x, z, loaded.decode(z))


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_sparsify(activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIFY_DISABLE_TRITON", "1")  # its kernels run on a GPU alone
    pytest.importorskip("sparsify", exc_type=ImportError)
    from sparsify import SparseCoder, SparseCoderConfig  # type: ignore[import-not-found]

    k = 6 if activation == "groupmax" else K
    model = SparseCoder(D, SparseCoderConfig(activation=activation, num_latents=F, k=k, normalize_decoder=False))
    randomize(model)
    model.save_to_disk(tmp_path)
    x = torch.randn(40, D)
    with torch.no_grad():
        found = model.encode(x)
        z = torch.zeros(40, F).scatter_(1, found.top_indices, found.top_acts)
        compare(tmp_path, x, z, model.decode(found.top_acts, found.top_indices))
