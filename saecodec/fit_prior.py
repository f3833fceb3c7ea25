"""Fitting the context prior of a codec on coded rows; the network is trained once, for all attempts at a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch

from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.latents import LatentCodec
from saecodec.priors.factorized import FactorizedPrior
from saecodec.priors.fit_context import fit_context
from saecodec.priors.network import Network
from saecodec.progress import Progress


class ContextFitter:
    """Replaces factorized priors by context priors. seconds: bounds the training."""

    def __init__(self, device: torch.device, seconds: float, progress: Progress) -> None:
        self._device, self._seconds, self._progress = device, seconds, progress
        self._network: Network | None = None

    def __call__(self, codec: Codec, chunks: Callable[[], Iterable[Codes]]) -> Codec:
        """`codec` with the context prior of codes, which `chunks` gives chunk by chunk, as often as it is asked."""
        factorized = codec.latents.prior
        assert isinstance(factorized, FactorizedPrior)

        def report(done: int, total: int, bits: float) -> None:
            self._progress("train", done, total, f"{bits:.1f} bits a held-out row")

        fit = fit_context(
            chunks, factorized, device=self._device, report=report, seconds=self._seconds, network=self._network
        )
        self._network = fit.prior.network
        told = {
            "sequences": fit.sequences,
            "heldout_rows": fit.heldout_rows,
            "bits_per_heldout_row": fit.heldout_bits,
            "bits_per_heldout_row_factorized": fit.factorized_bits,
        }
        return replace(codec, latents=LatentCodec(fit.prior), info={**codec.info, "context": told})
