"""What the context prior saves on measured codes, and what its codec costs for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.dependence import Dependence, measure_dependence
from saecodec.formats.spool import Spool, code_spool
from saecodec.latents import LatentCodec
from saecodec.priors.context import ContextPrior
from saecodec.priors.factorized import FactorizedPrior
from saecodec.quantizer import Quantizer


class ContextComparison:
    """Takes the codes of a file chunk by chunk, for models and priors to be compared on them."""

    def __init__(self, codec: Codec) -> None:
        assert isinstance(codec.latents.prior, ContextPrior)
        self._codec, self._prior = codec, codec.latents.prior
        self._spool: Spool[Codes] | None = None
        self._n_rows = self._n_bytes = 0

    def add(self, codes: Codes, n_bytes: int) -> None:
        """Add a chunk, with its columns, and the bytes that it takes."""
        if self._spool is None:
            self._spool = code_spool(self._prior.n_latents, tuple(codes.columns))
        self._spool.append(codes)
        self._n_rows += codes.n_rows
        self._n_bytes += n_bytes

    def _chunks(self) -> Iterator[Codes]:
        return iter(self._spool if self._spool is not None else ())

    def report(self) -> dict[str, Any] | None:
        """Support under four models, the latents that depend most, and when the codec has paid for itself.

        None without nonzeros. The chunks are gone afterwards.
        """
        with self._spool or nullcontext():
            found = measure_dependence(self._prior, self._chunks)
            return None if found is None else _dependence(found) | {"break_even": self._break_even(found.factorized)}

    def _break_even(self, factorized: FactorizedPrior) -> dict[str, Any]:
        """Against a codec with the factorized prior, fitted on these very codes."""
        latents = LatentCodec(factorized)
        n_bytes = {"factorized": sum(len(latents.pack(codes)) for codes in self._chunks()), "context": self._n_bytes}
        bits = {name: 8 * n / self._n_rows for name, n in n_bytes.items()}
        quantizer = self._codec.quantizer
        other = Quantizer(quantizer.step, quantizer.centroids[: factorized.n_level_classes], factorized.level_class)
        more = len(self._codec.tables()) - len(latents.to_bytes()) - len(other.to_bytes())
        saved = bits["factorized"] - bits["context"]
        return {
            "chunk_bits_per_row": bits,
            "codec_bytes_more": more,
            "rows": 8 * max(more, 0) / saved if saved > 0 else None,
        }


def _dependence(found: Dependence) -> dict[str, Any]:
    models = [found.independent, found.gaps, found.row, found.neighbours]
    names = ("time", "row", "neighbours")
    falls = {name: a - b for name, a, b in zip(names, models[:-1], models[1:], strict=True)}
    falls["total"] = models[0] - models[-1]
    return {
        "support": dict(zip(("independent", "gaps", "row", "neighbours"), models, strict=True)),
        "dependence": {
            name: {"bits_per_row": bits, "share": bits / models[0] if models[0] else None}
            for name, bits in falls.items()
        },
        "latents": [asdict(latent) for latent in found.latents],
    }
