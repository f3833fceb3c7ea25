"""Two-part description lengths: rows given an SAE and a prior, and the SAE, which many rows share.

L(rows, SAE) = L(rows | SAE, prior) + L(prior) + L(SAE) (Rissanen 1978; arXiv 2410.11179 leaves L(SAE) out, as constant
in the number of rows). L(SAE) is the decoder alone, as `--embed decoder` stores it: nothing else is needed to read the
rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import DEFAULT_CHUNK_ROWS
from saecodec.decoder_precision import PRECISIONS, with_precision
from saecodec.distortion import Distortion
from saecodec.encoder import MatchingPursuit
from saecodec.errors import named
from saecodec.formats.array_source import ArraySource
from saecodec.formats.weights import pack_weights
from saecodec.frames import HEAD_BYTES
from saecodec.sae import SAE
from saecodec.side import scales_of, side_at

ROW_COUNTS: Final = tuple(10**k for k in range(3, 10))
"""Numbers of rows that totals are told for."""


@dataclass(frozen=True)
class Floor:
    """What an SAE does with rows when nothing is quantized. l0: nonzeros a row. nmse: by precision of the decoder.
    seconds: of the SAE's forward pass. None without rows, or variance."""

    l0: float | None
    nmse: Mapping[str, float | None]
    seconds: float


class FloorMeter:
    """Measures a `Floor` on rows added chunk by chunk. scales: of the rows, where they have to be known beforehand
    (`side_at`)."""

    def __init__(self, sae: SAE, scales: NDArray[np.float32] | None) -> None:
        self._scales, self._nnz, self._seconds = scales, 0, 0.0
        self._decoders = {precision: with_precision(sae, precision) for precision in PRECISIONS}
        self._sae = sae
        self._distortion = {precision: Distortion(sae.width) for precision in PRECISIONS}

    def add(self, x: NDArray[np.float32], first_row: int) -> None:
        """Add the rows from `first_row` on."""
        started = time.perf_counter()
        side = side_at(self._scales, first_row, len(x))
        features = self._sae.features(x, first_row, side)
        self._nnz += features.nnz
        for precision, decoder in self._decoders.items():
            if decoder is not self._sae and isinstance(decoder.encoder, MatchingPursuit):
                features = decoder.features(x, first_row, side)  # it encodes with its decoder
            self._distortion[precision].add(x, decoder.rows(features).cpu().numpy())
            if decoder is self._sae:
                self._seconds += time.perf_counter() - started

    def floor(self) -> Floor:
        """Of all rows added."""
        nmse = {precision: distortion.nmse for precision, distortion in self._distortion.items()}
        n_rows = self._distortion[PRECISIONS[0]].n_rows
        return Floor(self._nnz / n_rows if n_rows else None, nmse, self._seconds)


def floor_of(sae: SAE, source: ArraySource, ids: NDArray[np.integer[Any]] | None) -> Floor:
    """The floor of an SAE on the rows of an array, whose sequence ids are `ids`, (T,), or None."""
    with named(source.path):
        scales, first = scales_of(sae, source.batches(DEFAULT_CHUNK_ROWS), ids), 0
        meter = FloorMeter(sae, scales)
        for x in source.batches(DEFAULT_CHUNK_ROWS):
            meter.add(x, first)
            first += len(x)
    return meter.floor()


def decoder_bytes(sae: SAE) -> dict[str, int]:
    """Bytes of the frame that holds the decoder, by precision."""
    return {
        precision: HEAD_BYTES + len(pack_weights(sae, decoder_only=True, precision=precision))
        for precision in PRECISIONS
    }


def decoder_facts(sae: SAE, floor: Floor) -> dict[str, dict[str, Any]]:
    """What the decoder takes in each precision, and the NMSE that it gives when nothing else is rounded."""
    return {name: {"bytes": n, "nmse": floor.nmse[name]} for name, n in decoder_bytes(sae).items()}


def two_part(
    parts: Mapping[str, int],
    n_rows: int,
    prior_bytes: int,
    decoders: Mapping[str, int],
    raw_bits: float,
    pca: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """L(rows) + L(prior) + L(SAE) of a file, for programs. Bits per row are of `n_rows` rows.

    parts: bytes of the file by what they are for. prior_bytes: of the prior outside the file. decoders: bytes of the
    decoder, by precision; rows are coded for one of them, so the totals with the others are of no file, if close.
    raw_bits: of a row as it was given. pca: the linear codec at the same NMSE, or None.
    """
    data = sum(n for part, n in parts.items() if part not in ("tables", "decoder"))
    if parts["decoder"]:
        data -= HEAD_BYTES  # the head of its frame is the decoder's
    prior = parts["tables"] + prior_bytes

    def per_row(n_bytes: float) -> float | None:
        return 8 * n_bytes / n_rows if n_rows else None

    def even(decoder: int, other: float, rate: float) -> float | None:
        return break_even(8.0 * (prior + decoder), 8 * data / n_rows, other, rate) if n_rows else None

    return {
        "bytes": {"data": data, "prior": prior},
        "bits_per_row": {"data": per_row(data), "prior": per_row(prior)},
        "with_sae": {
            precision: {
                "sae_bytes": n,
                "sae_bits_per_row": per_row(n),
                "total_bits_per_row": per_row(data + prior + n),
                "total_by_rows": total_by_rows(8.0 * (prior + n), 8 * data / n_rows) if n_rows else None,
                "rows_to_break_even_raw": even(n, 0.0, raw_bits),
                "rows_to_break_even_pca": None
                if pca is None
                else even(n, 8.0 * pca["model_bytes"], pca["bits_per_row"]),
            }
            for precision, n in decoders.items()
        },
    }


def total_by_rows(shared: float, growing: float) -> dict[str, list[float]]:
    """Bits per row of a code against the number of rows that share what is paid once. shared: bits of that. growing:
    bits of each row."""
    return {"rows": list(ROW_COUNTS), "bits_per_row": [growing + shared / n for n in ROW_COUNTS]}


def break_even(weight: float, rate: float, other_weight: float, other_rate: float) -> float | None:
    """Rows from which on weight + rate x rows is at most another code's; None when it never stays so, though it may be
    so up to some number. All in bits.

    >>> break_even(1000.0, 5.0, 0.0, 10.0)
    200.0
    """
    if rate >= other_rate:
        return 0.0 if rate == other_rate and weight <= other_weight else None
    return max(0.0, (weight - other_weight) / (other_rate - rate))


def shortest_by_rows(weights: Mapping[str, float], rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Which code is the shortest, weight and rate together, from how many rows on: the lower envelope.

    >>> shortest_by_rows({"a": 0.0, "b": 100.0}, {"a": 2.0, "b": 1.0})
    [{'from_rows': 0.0, 'name': 'a'}, {'from_rows': 100.0, 'name': 'b'}]
    """
    if not rates:
        return []
    at, name = 0.0, min(rates, key=lambda name: (weights[name], rates[name]))
    out = [{"from_rows": at, "name": name}]
    while True:
        next_up = [
            (even, rates[other], other)
            for other in rates
            if rates[other] < rates[name]
            and (even := break_even(weights[other], rates[other], weights[name], rates[name])) is not None
        ]
        if not next_up:
            return out
        at, _, name = min(next_up)
        out.append({"from_rows": at, "name": name})
