"""What is written as a SAELens checkpoint is read back as the same SAE, and is what SAELens itself writes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from saecodec.encoder import DTYPES, MatchingPursuit
from saecodec.errors import InputError, MissingPieceError, OutputError, UnsupportedError
from saecodec.exact_encoder import deterministic
from saecodec.formats.atomic_folder import atomic_folder
from saecodec.formats.checkpoints import load_sae
from saecodec.formats.saelens import SAELensConfig
from saecodec.formats.saelens_writer import LAYOUT, write_saelens
from saecodec.nonlinearity import AbsTopK, GroupMax, JumpReLU, SignedTopK, TanhReLU, TopK
from saecodec.sae import SAE

FIXTURES = Path(__file__).parents[1] / "fixtures" / "saelens"
ARCHITECTURES = ["standard", "jumprelu", "topk", "gated"]
PLACE = {"model_name": "gpt2-small", "hook_name": "blocks.8.hook_resid_pre"}
Make = Callable[..., SAE]


def written(sae: SAE, folder: Path, metadata: dict[str, Any] | None = None) -> Path:
    path = folder / "sae"
    with atomic_folder(path) as temporary:
        write_saelens(sae, temporary, metadata=metadata or {})
    return path


def random_sae(make_sae: Make, architecture: str, seed: int, width: int, latents: int) -> SAE:
    """With decoder directions of all norms, and biases of all signs where the architecture has them."""
    sae, draw = make_sae(architecture, seed, width, latents), np.random.default_rng(seed)
    encoder: Any = sae.encoder
    if architecture == "gated":
        encoder = replace(encoder, b_enc=torch.zeros(latents))
    else:
        encoder = replace(encoder, b_enc=torch.from_numpy(draw.normal(size=latents).astype(np.float32)))
    norms = torch.from_numpy(draw.uniform(0.1, 3, (latents, 1)).astype(np.float32))
    return replace(sae, w_dec=sae.w_dec * norms, encoder=encoder)


def halved(sae: SAE, dtype: str) -> SAE:
    """The SAE as one that multiplies in half precision, with values that it can hold."""
    config = sae.config() | {"dtype": dtype}
    tensors = {key: torch.from_numpy(value).to(DTYPES[dtype]).float().numpy() for key, value in sae.tensors().items()}
    return SAE.from_tensors(config, tensors, sae.name)


@given(
    st.sampled_from(ARCHITECTURES),
    st.sampled_from(sorted(DTYPES)),
    st.integers(0, 99),
    st.integers(1, 9),
    st.integers(4, 20),
    st.sampled_from([1, 2]),
)
def test_what_is_written_is_read_back_as_the_same_sae(
    make_sae: Make, architecture: str, dtype: str, seed: int, width: int, latents: int, row_dims: int
) -> None:
    sae = replace(halved(random_sae(make_sae, architecture, seed, width, latents), dtype), row_dims=row_dims)
    with TemporaryDirectory() as folder:
        found = load_sae(written(sae, Path(folder)), "cpu")
    assert (found.decoder_id, found.sae_id) == (sae.decoder_id, sae.sae_id)
    assert (found.architecture, found.row_dims) == (architecture, row_dims)
    x = np.random.default_rng(seed).normal(size=(30, width)).astype(np.float32)
    ours, theirs = sae.features(x), found.features(x)
    for part in ("indptr", "latents", "values"):
        np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part))


@pytest.mark.parametrize(
    "case",
    [
        "gated",
        "gated_nobdecin",
        "jumprelu",
        "jumprelu_float16",
        "jumprelu_nobdecin",
        "standard",
        "standard_nobdecin",
        "topk",
        "topk_nobdecin",
    ],
)
def test_a_checkpoint_of_saelens_is_written_again_as_it_is(case: str, tmp_path: Path) -> None:
    """Byte by byte the config, tensor by tensor the weights."""
    before = FIXTURES / case
    config = json.loads((before / "cfg.json").read_text())
    after = written(load_sae(before, "cpu"), tmp_path, config["metadata"])
    assert (after / "cfg.json").read_text() == json.dumps(config)
    old, new = (load_file(path / "sae_weights.safetensors") for path in (before, after))
    assert old.keys() == new.keys()
    for key, tensor in old.items():
        assert new[key].dtype == tensor.dtype
        assert torch.equal(new[key], tensor)


def test_the_sae_id_changes_only_with_what_saelens_calls_the_architecture(make_sae: Make, tmp_path: Path) -> None:
    sae = replace(make_sae("jumprelu"), architecture="batchtopk")
    found = load_sae(written(sae, tmp_path), "cpu")
    assert (found.architecture, found.decoder_id) == ("jumprelu", sae.decoder_id)
    assert found.sae_id == replace(sae, architecture="jumprelu").sae_id != sae.sae_id


def test_metadata_are_in_the_config_with_the_version_of_its_layout(sae: SAE, tmp_path: Path) -> None:
    given = {**PLACE, "rows": 12, "loss": [0.5, None], "sae_lens_version": "5.0.0", "of": {"k": True}}
    path = written(sae, tmp_path, given)
    held = json.loads((path / "cfg.json").read_text())["metadata"]
    assert held == {**given, "sae_lens_version": LAYOUT, "sae_lens_training_version": None}
    found = load_sae(path, "cpu")
    assert found.source == "SAELens gpt2-small blocks.8.hook_resid_pre"
    assert found.metadata["of"] == {"k": True}
    assert SAELensConfig.read(path).architecture == "standard"


@pytest.mark.parametrize(
    "metadata, named",
    [
        ({"x": float("nan")}, "must be JSON"),
        ({"x": torch.zeros(1)}, "must be JSON: .*Tensor"),
        ({"x": {1, 2}}, "must be JSON: .*set"),
        ({7: 1}, "7 cannot be the name"),
        ({"to_dict": 1}, "'to_dict' cannot be the name"),
        ({"__class__": 1}, "'__class__' cannot be the name"),
    ],
)
def test_metadata_that_saelens_cannot_hold_are_refused(
    sae: SAE, tmp_path: Path, metadata: dict[Any, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        write_saelens(sae, tmp_path, metadata=metadata)
    assert not list(tmp_path.iterdir())


def refused() -> dict[str, tuple[Callable[[SAE], SAE], str]]:
    def encoder(**parts: Any) -> Callable[[SAE], SAE]:
        return lambda sae: replace(sae, encoder=replace(sae.encoder, **parts))  # type: ignore[type-var]

    def spoilt(sae: SAE) -> SAE:
        """After it was made, when its values were looked at."""
        out = replace(sae, w_dec=sae.w_dec.clone())
        out.w_dec[3, 2] = float("nan")
        return out

    glu = {"w_glu": torch.zeros(8, 24), "b_glu": torch.zeros(24)}
    pursuit = MatchingPursuit(3, 0.0, True, True)
    return {
        "glu": (encoder(**glu), "gated linear unit"),
        "layer_norm": (lambda sae: replace(sae, normalization="layer_norm"), r"normalizes rows \(layer_norm\)"),
        "pursuit": (lambda sae: replace(sae, encoder=pursuit), "matching_pursuit: written are relu"),
        "rank": (encoder(nonlinearity=TopK(4, torch.ones(24))), "ranks the latents of its topk"),
        "k": (encoder(nonlinearity=TopK(25)), "k = 25, but 24 latents"),
        "tanh_relu": (encoder(nonlinearity=TanhReLU()), "nonlinearity 'tanh_relu'"),
        "signed_topk": (encoder(nonlinearity=SignedTopK(4)), "nonlinearity 'signed_topk'"),
        "abstopk": (encoder(nonlinearity=AbsTopK(4)), "nonlinearity 'abstopk'"),
        "groupmax": (encoder(nonlinearity=GroupMax(4)), "nonlinearity 'groupmax'"),
        "half": (
            encoder(w_enc=torch.zeros(8, 24, dtype=torch.float16), b_enc=torch.zeros(24, dtype=torch.float16)),
            "W_dec has values that torch.float16 cannot hold",
        ),
        "nan": (spoilt, "W_dec holds NaN"),
    }


@pytest.mark.parametrize("case", refused())
def test_an_sae_that_is_not_written_is_refused_by_name(sae: SAE, tmp_path: Path, case: str) -> None:
    change, named = refused()[case]
    with pytest.raises(UnsupportedError, match=f"the SAE 'tiny-standard-0'.*{named}"):
        write_saelens(change(sae), tmp_path, metadata={})
    assert not list(tmp_path.iterdir())


def test_a_gated_sae_with_another_bias_and_a_decoder_alone_are_refused(make_sae: Make, tmp_path: Path) -> None:
    gated = make_sae("gated")  # whose b_enc is -0.5
    with pytest.raises(UnsupportedError, match="is gated and has b_enc"):
        write_saelens(gated, tmp_path, metadata={})
    with pytest.raises(MissingPieceError, match="only its decoder"):
        write_saelens(replace(gated, encoder=None), tmp_path, metadata={})


def test_nothing_is_overwritten_and_what_fails_is_told_of_the_folder_to_be(sae: SAE, tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text("mine")
    with pytest.raises(FileExistsError):
        write_saelens(sae, tmp_path, metadata={})
    assert (tmp_path / "cfg.json").read_text() == "mine"
    with pytest.raises(OutputError, match=r"out: cannot be written"), atomic_folder(tmp_path / "out") as temporary:
        write_saelens(sae, Path(temporary) / "nowhere", metadata={})
    assert not (tmp_path / "out").exists()


def test_views_of_one_tensor_and_a_deterministic_encoder_are_written(sae: SAE, tmp_path: Path) -> None:
    encoder: Any = sae.encoder
    encoder = replace(encoder, w_enc=sae.w_dec.T, nonlinearity=JumpReLU(encoder.b_enc))
    tied = deterministic(replace(sae, encoder=encoder, architecture="jumprelu"))
    path = written(tied, tmp_path)
    assert load_sae(path, "cpu").sae_id == tied.sae_id


def test_who_may_read_the_files_is_for_the_umask_to_say(sae: SAE, tmp_path: Path) -> None:
    (tmp_path / "any").write_text("")
    modes = {file.stat().st_mode for file in [tmp_path / "any", *written(sae, tmp_path).iterdir()]}
    assert len(modes) == 1
