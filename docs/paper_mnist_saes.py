"""The SAEs of docs/paper_mnist.md: a grid of widths and k, each trained as `saecodec train` does it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from saecodec.formats.array_source import ArraySource
from saecodec.formats.training import FACTS, Run, settings_told, train_array
from saecodec.formats.training_checkpoint import checkpoint_of
from saecodec.formats.two_part import floor_of
from saecodec.sae import SAE
from saecodec.training import Aim, Settings

WIDTHS = (32, 64, 128, 256, 512, 1024, 2048)
KS = (1, 2, 4, 8, 16, 32)
TOKENS = 400_000  # images of a training, repeats counted
BATCH = 512


def name_of(settings: Settings) -> str:
    """mnist_256_k8."""
    return f"mnist_{settings.n_latents}_k{settings.aim.value:g}"


def grid() -> list[Settings]:
    """BatchTopK, all k up to half of a width, and one seed, number of images and learning rate for all."""
    return [
        Settings(width, aim=Aim("l0", k), tokens=TOKENS, batch=BATCH) for width in WIDTHS for k in KS if k <= width // 2
    ]


def train_missing(source: ArraySource, folder: Path, wanted: Sequence[Settings], log: Callable[[str], None]) -> None:
    """Train what is not in `folder` yet; a training that was stopped goes on. SystemExit when an SAE there is of other
    settings."""
    for settings in wanted:
        output = folder / name_of(settings)
        if (output / FACTS).exists():
            held = json.loads((output / FACTS).read_text()).get("settings")
            if held != settings_told(settings):
                raise SystemExit(f"{output}: was trained with other settings, {held}: give another folder")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        facts = train_array(source, output, settings, Run("cpu", resume=os.path.exists(checkpoint_of(output))))
        log(f"{output.name}: {facts['seconds']:.0f} s, NMSE {facts['held_out']['nmse']:.4f} of held-out images")


def training_of(folder: Path, sae: SAE, test: ArraySource) -> dict[str, Any]:
    """How the SAE in a folder was trained, and its NMSE and L0 on the test images, nothing quantized."""
    told, floor = json.loads((folder / FACTS).read_text()), floor_of(sae, test, None)
    return {
        "trainer": f"saecodec {told['version']}",
        "k": told["settings"]["aim"]["value"],
        "train_rows": told["rows"],
        "batch": told["settings"]["batch"],
        "learning_rate": told["settings"]["learning_rate"],
        "test_nmse": floor.nmse["float32"],
        "test_l0": floor.l0,
        **{key: told[key] for key in ("steps", "threads", "seconds")},
    }
