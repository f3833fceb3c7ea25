"""Trains the SAEs of docs/paper_mnist.md: `python docs/train_mnist.py path/to/data build/mnist_saes`.

BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) on `mnist/mnist_train.npz`, for a grid of widths and k: of the
activations of a batch the k x batch largest stay; decoder rows have norm 1; latents that are dead reconstruct what is
left, for a small auxiliary loss (Gao et al. 2024, arXiv 2406.04093). Stored as SAELens `jumprelu` folders, with one
threshold for all latents. All have the same rows, steps and learning rate, and start from the same seed: same machine
and threads, same weights. Folders that are there already are skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTHS = (32, 64, 128, 256, 512, 1024, 2048)
KS = (1, 2, 4, 8, 16, 32)
BATCH = 512
LEARNING_RATE = 0.004
WARMUP, DECAY = 0.05, 0.3  # of the steps, up to and down from the learning rate
AUXILIARY = 1 / 32  # weight of the auxiliary loss
DEAD_STEPS = 20  # a latent that did not fire in so many steps is dead
MAX_REVIVED = 256  # dead latents in a step, drawn at random: the auxiliary loss is to stay cheap


@dataclass(frozen=True)
class Weights:
    """float32: w_enc, w_dec (F, d), b_enc (F,), b_dec (d,). Gradients are in the same form."""

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor

    @classmethod
    def drawn(cls, n_latents: int, x: Tensor, generator: torch.Generator) -> Weights:
        """Random directions, the same for encoder and decoder; the mean row as b_dec."""
        w = torch.nn.functional.normalize(torch.randn(n_latents, x.shape[1], generator=generator))
        return cls(w.clone(), torch.zeros(n_latents), w, x.mean(0))

    def all(self) -> list[Tensor]:
        """In the order of the fields."""
        return [self.w_enc, self.b_enc, self.w_dec, self.b_dec]

    def activations(self, x: Tensor) -> Tensor:
        """Before the nonlinearity: (B, F)."""
        return torch.addmm(self.b_enc, x - self.b_dec, self.w_enc.T)


class Selection:
    """The largest positive activations of a batch, k a row on average, without sorting all of them: those above half of
    the last batch's threshold are enough as long as there are enough of them."""

    def __init__(self, k: int) -> None:
        self._k, self.threshold = k, 0.0

    def __call__(self, h: Tensor) -> Tensor:
        """Flat places in h, ascending, so that sums have one order."""
        flat, wanted = h.view(-1), self._k * len(h)
        for least in (0.5 * self.threshold, 0.0):
            places = torch.nonzero(flat > least).view(-1)
            if len(places) >= wanted:
                break
        if len(places) > wanted:
            places = places[torch.topk(flat[places], wanted, sorted=False).indices].sort().values
        self.threshold = float(flat[places].min()) if len(places) else 0.0
        return places


def sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A CSR matrix of values by ascending row."""
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=shape[0]).cumsum(0)])
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def gradients(weights: Weights, x: Tensor, select: Selection, dead: Tensor) -> tuple[Weights, Tensor]:
    """Of the mean squared error of rows plus the auxiliary loss, written out: nothing dense but two products goes
    through all latents. dead: numbers of latents to revive. Also returns which latents fired, bool (F,)."""
    h = weights.activations(x)
    places = select(h)
    n_rows, n_latents = h.shape
    rows, latents = places // n_latents, places % n_latents
    z = h.view(-1)[places]
    missed = sparse(rows, latents, z, (n_rows, n_latents)) @ weights.w_dec + weights.b_dec - x
    slope = missed * (2 / n_rows)
    if len(places) < h.numel() // 128:  # few enough for products one by one to be faster
        back = (slope[rows] * weights.w_dec[latents]).sum(1)
    else:
        back = (slope @ weights.w_dec.T).view(-1)[places]
    latents, order = latents.sort(stable=True)
    rows, z, back = rows[order], z[order], back[order]
    w_dec = sparse(latents, rows, z, (n_latents, n_rows)) @ slope
    w_enc = sparse(latents, rows, back, (n_latents, n_rows)) @ (x - weights.b_dec)
    b_enc = torch.bincount(latents, back, minlength=n_latents).float()
    if len(dead):
        revived = h[:, dead].relu()
        also = (revived @ weights.w_dec[dead] + missed) * (2 * AUXILIARY / n_rows)
        through = (also @ weights.w_dec[dead].T) * (revived > 0)
        w_dec[dead] += revived.T @ also
        w_enc[dead] += through.T @ (x - weights.b_dec)
        b_enc[dead] += through.sum(0)
    fired = torch.bincount(latents, minlength=n_latents) > 0
    b_dec = slope.sum(0) - b_enc @ weights.w_enc
    # What would lengthen a decoder row is taken back afterwards, so it should not move Adam's moments either.
    w_dec -= (w_dec * weights.w_dec).sum(1, keepdim=True) * weights.w_dec
    return Weights(w_enc, b_enc, w_dec, b_dec), fired


def train(x: Tensor, n_latents: int, k: int, tokens: int) -> tuple[Weights, float, int]:
    """Weights, the threshold, and the number of steps. x: float32 (T, d)."""
    generator = torch.Generator().manual_seed(0)
    weights = Weights.drawn(n_latents, x, generator)
    adam = torch.optim.Adam(weights.all(), lr=LEARNING_RATE, betas=(0.9, 0.999), fused=True)
    select, silent = Selection(k), torch.zeros(n_latents, dtype=torch.int64)
    order, n_steps = torch.randperm(len(x), generator=generator), tokens // BATCH
    at = 0
    for step in range(n_steps):
        if at + BATCH > len(x):
            order, at = torch.randperm(len(x), generator=generator), 0
        batch = x[order[at : at + BATCH]]
        at += BATCH
        dead = torch.nonzero(silent >= DEAD_STEPS).view(-1)
        dead = dead[torch.randperm(len(dead), generator=generator)[:MAX_REVIVED]]
        found, fired = gradients(weights, batch, select, dead)
        silent = torch.where(fired, 0, silent + 1)
        for tensor, gradient in zip(weights.all(), found.all(), strict=True):
            tensor.grad = gradient
        share = min((step + 1) / (WARMUP * n_steps), (n_steps - step) / (DECAY * n_steps), 1.0)
        adam.param_groups[0]["lr"] = LEARNING_RATE * share
        adam.step()
        weights.w_dec.div_(weights.w_dec.norm(dim=1, keepdim=True))
    thresholds = []
    for batch in x.split(BATCH):
        select(weights.activations(batch))
        thresholds.append(select.threshold)
    return weights, float(np.mean(thresholds)), n_steps


def judged(weights: Weights, threshold: float, x: Tensor) -> dict[str, float]:
    """NMSE, nonzeros a row, and the share of latents that never fire, with the threshold."""
    error, fires = 0.0, torch.zeros(len(weights.w_dec))
    for batch in x.split(BATCH):
        h = weights.activations(batch)
        z = h * (h > threshold)
        error += float((z @ weights.w_dec + weights.b_dec - batch).square().sum(dtype=torch.float64))
        fires += (z > 0).sum(0)
    variance = float((x - x.mean(0)).square().sum(dtype=torch.float64))
    return {"nmse": error / variance, "l0": float(fires.sum()) / len(x), "dead": float((fires == 0).float().mean())}


def save(folder: Path, weights: Weights, threshold: float, facts: dict[str, object]) -> None:
    """A folder as SAELens writes it; the last file last, so that a folder with it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    n_latents, width = weights.w_dec.shape
    config = {
        "architecture": "jumprelu",
        "d_in": width,
        "d_sae": n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {},
    }
    tensors = {
        "W_enc": weights.w_enc.T.contiguous(),
        "b_enc": weights.b_enc,
        "W_dec": weights.w_dec,
        "b_dec": weights.b_dec,
        "threshold": torch.full((n_latents,), threshold),
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, str(folder / "sae_weights.safetensors"))
    (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n")


def rows_of(path: Path) -> Tensor:
    """The rows of an .npz with one array: float32 (T, d)."""
    with np.load(path) as file:
        return torch.from_numpy(file[file.files[0]].astype(np.float32))


@torch.no_grad()
def main() -> None:
    """Train what is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the shared data")
    parser.add_argument("saes", type=Path, help="folder to write to")
    parser.add_argument("--tokens", type=int, default=400_000, help="images of a training, repeats counted")
    parser.add_argument("--only", metavar="WIDTH_kK,...", help="train these of the grid")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    torch.set_num_threads(1)  # faster than two threads where others use the cores; two processes can share a grid
    train_rows, test_rows = (rows_of(arguments.data / "mnist" / f"mnist_{part}.npz") for part in ("train", "test"))
    only = arguments.only.split(",") if arguments.only else None
    for n_latents in WIDTHS:
        for k in (k for k in KS if k <= n_latents // 2):
            name = f"{n_latents}_k{k}"
            folder = arguments.saes / f"mnist_{name}"
            if (folder / "training.json").exists() or (only and name not in only):
                continue
            started = time.perf_counter()
            weights, threshold, n_steps = train(train_rows, n_latents, k, arguments.tokens)
            seconds = time.perf_counter() - started
            seen, unseen = (judged(weights, threshold, rows) for rows in (train_rows, test_rows))
            facts: dict[str, object] = {
                "k": k,
                "train_rows": len(train_rows),
                "steps": n_steps,
                "batch": BATCH,
                "learning_rate": LEARNING_RATE,
                "threads": torch.get_num_threads(),
                "seconds": round(seconds, 1),
                "train_nmse": seen["nmse"],
                "test_nmse": unseen["nmse"],
                "test_l0": unseen["l0"],
                "test_dead": unseen["dead"],
            }
            if not math.isfinite(seen["nmse"]):
                raise SystemExit(f"{name}: the training diverged")
            save(folder, weights, threshold, facts)
            print(f"{name}: {seconds:.0f} s, NMSE {unseen['nmse']:.4f}, L0 {unseen['l0']:.2f}", flush=True)


if __name__ == "__main__":
    main()
