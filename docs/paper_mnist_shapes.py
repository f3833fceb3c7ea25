"""What decoder images look like, in plain numbers: for docs/paper_mnist.py.

The ink of an image is its pixels above a third of its largest; pieces are what of it hangs together, corners included,
in 4 pixels or more. A stroke has little ink in one piece, a digit much in one piece, a dense feature many pieces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from saecodec.formats.array_source import ArraySource
from saecodec.sae import SAE

SIDE = 28
WHOLE = 0.09  # ink of whole digits: nine in ten test images have more
_INK = 1 / 3  # of the largest pixel
_MIN_PIECE = 4  # pixels
_BATCH = 2048


def extents(images: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of the pixels that are ink, and number of pieces, of images (N, 784): float64 (N,) each."""
    ink = images > _INK * images.max(1, keepdims=True)
    ink &= images > 0
    pieces = np.zeros(len(images))
    for i, one in enumerate(ink.reshape(-1, SIDE, SIDE)):
        labels, _ = ndimage.label(one, np.ones((3, 3)))
        pieces[i] = (np.bincount(labels.ravel())[1:] >= _MIN_PIECE).sum()
    return ink.mean(1), pieces


def weighted_median(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """The value up to which half of the weight lies.

    >>> weighted_median(np.array([3.0, 1.0, 2.0]), np.array([5.0, 1.0, 1.0]))
    3.0
    """
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def use_of(sae: SAE, source: ArraySource) -> NDArray[np.float64]:
    """Share of the images in which each latent fires, float64 (F,)."""
    fires = np.zeros(sae.n_latents)
    for x in source.batches(_BATCH):
        fires += (sae.encode(torch.from_numpy(x)) > 0).sum(0).numpy()
    return fires / source.n_rows


def most_used(sae: SAE, source: ArraySource, n: int) -> NDArray[np.float32]:
    """Decoder images of the latents that fire most, the most frequent first: (n, 784), or (F, 784) of fewer."""
    images: NDArray[np.float32] = sae.w_dec.numpy()[np.argsort(-use_of(sae, source), kind="stable")[:n]]
    return images


def shapes_of(sae: SAE, source: ArraySource) -> dict[str, Any]:
    """Medians over latents, each as often as it fires: ink, pieces, firing rate. whole: share of the firings that are
    of latents with the ink of `WHOLE` or more. dead: share of the latents that never fire."""
    use = use_of(sae, source)
    ink, pieces = extents(sae.w_dec.numpy())
    return {
        "ink": weighted_median(ink, use),
        "pieces": weighted_median(pieces, use),
        "rate": weighted_median(use, use),
        "whole": float(use[ink >= WHOLE].sum() / use.sum()),
        "dead": float((use == 0).mean()),
    }


def shapes_of_images(source: ArraySource) -> dict[str, float]:
    """The same of the images themselves: medians of ink and pieces."""
    ink, pieces = extents(np.concatenate(list(source.batches(_BATCH))))
    return {"ink": float(np.median(ink)), "pieces": float(np.median(pieces))}
