"""Writes the tables of docs/checkpoints.md: the families that `load_sae` knows, and how it compares with the libraries.

`make checkpoints REFERENCE=folder`. The folder has one folder for each reference case: a checkpoint, and `io.npz` with
rows `x`, feature activations `z` and reconstructions `x_hat` that its own library computed. Without it only the table
of families is written, and the other is left as it is.
"""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from make_context import table
from numpy.typing import NDArray

from saecodec.errors import CheckpointError, UnsupportedError
from saecodec.formats.checkpoints import FAMILIES, find, load_sae
from saecodec.sae import SAE

PAGE: Final = Path(__file__).parent / "checkpoints.md"
VARIABLE: Final = "SAECODEC_FIXTURES"


@dataclass(frozen=True)
class Comparison:
    """What `load_sae` makes of a reference case. z_error, x_hat_error: largest absolute differences. scaled: z agrees
    up to a positive factor of each latent, which z_error leaves out. refused: the reason, in which case all else is
    unknown."""

    case: str
    family: str
    architecture: str = ""
    z_error: float = np.inf
    x_hat_error: float = np.inf
    scaled: bool = False
    refused: str = ""


def compare(folder: Path) -> Comparison:
    """Load a reference case and compare it with its library's outputs."""
    family, _ = find(folder)
    with np.load(folder / "io.npz") as stored:
        x, z, x_hat = (stored[name].astype(np.float32) for name in ("x", "z", "x_hat"))
    try:
        sae = _loaded(folder, z)
    except UnsupportedError as error:
        return Comparison(folder.name, family.name, refused=_reason(str(error), folder))
    rows = torch.from_numpy(x.reshape(*x.shape[: x.ndim - sae.row_dims], sae.width))
    ours = sae.encode(rows).numpy().reshape(z.shape)
    x_hat_error = np.abs(sae.reconstruct(rows).numpy().reshape(x_hat.shape) - x_hat).max()
    z_error, scaled = np.abs(ours - z).max(), False
    if z_error > 1e-2 and (factors := _factors(ours, z)) is not None:
        scaled, z_error = True, np.abs(ours - z * factors).max()
    return Comparison(folder.name, family.name, sae.architecture, float(z_error), float(x_hat_error), scaled)


def _loaded(folder: Path, z: NDArray[np.float32]) -> SAE:
    """The SAE; where its checkpoint does not say k, it is counted in the library's activations."""
    try:
        return load_sae(folder, "cpu")
    except CheckpointError as error:
        if "how many latents are active" not in str(error):
            raise
        return load_sae(folder, "cpu", k=int((z != 0).sum(-1).max()))


def _factors(ours: NDArray[np.float32], z: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The positive factor of each latent that makes z ours, by least squares; None when they disagree on what is
    active."""
    if ((ours != 0) != (z != 0)).any() or (ours * z < 0).any():
        return None
    flat = ours.reshape(-1, z.shape[-1]), z.reshape(-1, z.shape[-1])
    energy = (flat[1] ** 2).sum(0)
    return np.asarray(np.where(energy > 0, (flat[0] * flat[1]).sum(0) / np.where(energy > 0, energy, 1), 1), np.float32)


def _reason(message: str, folder: Path) -> str:
    """Of a refusal, what is the matter: neither the path before it nor the advice after it."""
    return re.split(r": (?=a |what )|, so |; ", re.sub(rf"^{re.escape(str(folder))}\S*: ", "", message))[0]


def families() -> str:
    """The table of families."""
    rows = [
        [family.name, _plain(family.layout), _plain(family.architectures), family.side, family.refused or "–"]
        for family in FAMILIES
    ]
    return table(["Family", "Files", "Architectures", "Side information", "Refused"], rows)


def comparisons(folder: Path) -> str:
    """The table of reference cases."""
    rows = []
    for case in sorted(path for path in folder.iterdir() if (path / "io.npz").is_file()):
        found = compare(case)
        name = f"`{found.case}`"
        if found.refused:
            rows.append([name, found.family, f"refused: {found.refused}", "", ""])
        else:
            z = _error(found.z_error) + (" (up to scale)" if found.scaled else "")
            rows.append([name, found.family, found.architecture, z, _error(found.x_hat_error)])
    return table(["Case", "Family", "Architecture", "max error of z", "of x_hat"], rows)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([*<])", r"\\\1", text)


def _error(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def between(text: str, name: str) -> str:
    """What stands between the markers of a generated part."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->")[0].rstrip("\n")


def written(text: str, name: str, part: str) -> str:
    """The text with a generated part replaced."""
    before, rest = text.split(f"<!-- {name} -->\n")
    return f"{before}<!-- {name} -->\n{part}\n<!-- end of {name} -->" + rest.split(f"<!-- end of {name} -->")[1]


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path, nargs="?", default=os.environ.get(VARIABLE), help="folder of the cases")
    reference = parser.parse_args().reference
    text = written(PAGE.read_text(encoding="utf-8"), "families", families())
    if reference is not None:
        text = written(text, "comparisons", comparisons(Path(reference)))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
