"""`measure`: what an SAE's explanation of an array really costs, from a file that was written and decoded again."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import DEFAULT_CHUNK_ROWS, Codec
from saecodec.distortion import Distortion
from saecodec.formats.array_source import ITEM_BYTES, ArraySource, rows_for
from saecodec.formats.context_report import ContextComparison
from saecodec.formats.encoding import EncodeReport, Ids, encode_array
from saecodec.formats.point import Ground, Observer, read_point
from saecodec.formats.read_back import Decoded
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.goal import Goal
from saecodec.priors.registry import CONTEXT
from saecodec.progress import Progress, no_progress
from saecodec.sae import SAE
from saecodec.sequences import ids_of_shape
from saecodec.side import scales_of, side_at


def measure_array(
    source: ArraySource,
    *,
    sae: SAE | None = None,
    codec: Codec | None = None,
    codec_bytes: int = 0,
    goal: Goal | None = None,
    seq: Ids | None = None,
    chunk_rows: int = DEFAULT_CHUNK_ROWS,
    embed: str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Encode an array into a temporary file, decode it, and report.

    Arguments are those of `encode_array`; codec_bytes: size of the codec's file. Rates are bits per row and add up to
    8 * file_bytes / rows. Values that are not defined (no rows, no nonzeros, constant rows) are None.
    """
    whole = sae if sae is not None else codec.sae if codec is not None else None
    if whole is not None:
        source = rows_for(source, whole.width, whole.row_dims)
    with tempfile.TemporaryDirectory(prefix="saecodec-") as folder:
        path = os.path.join(folder, "measured.saec")
        encoded = encode_array(
            source,
            path,
            sae=sae,
            codec=codec,
            goal=goal,
            seq=seq,
            chunk_rows=chunk_rows,
            embed=embed,
            progress=progress,
        )
        with open_saec(path, sae=whole, codec=codec) as file:
            outside_codec = codec_bytes if file.header.embed == "none" else 0
            # An SAE that is in a codec file which is needed anyway is part of that file's size.
            held = file.header.embed == "decoder" or (outside_codec and codec is not None and codec.sae is not None)
            outside = {"codec_bytes": outside_codec, "sae_bytes": 0 if held or whole is None else whole.nbytes}
            assert whole is not None
            ground = Ground(source, seq if seq is not None else ids_of_shape(source.shape))
            return _report(file, ground, whole, encoded, outside, progress)


class Alone:
    """What an SAE does with rows when nothing is quantized: L0, distortion and seconds of its forward pass.

    scales: of the rows, where they have to be known beforehand (`side_at`).
    """

    def __init__(self, sae: SAE, scales: NDArray[np.float32] | None) -> None:
        self._sae, self._scales = sae, scales
        self.nnz, self.seconds, self.distortion = 0, 0.0, Distortion(sae.width)

    def add(self, x: NDArray[np.float32], first_row: int) -> None:
        """Add the rows from `first_row` on."""
        started = time.perf_counter()
        features = self._sae.features(x, side=side_at(self._scales, first_row, len(x)))
        x_hat = self._sae.rows(features).cpu().numpy()
        self.seconds += time.perf_counter() - started
        self.nnz += features.nnz
        self.distortion.add(x, x_hat)

    def facts(self) -> dict[str, float | None]:
        """For programs."""
        n_rows = self.distortion.n_rows
        return {"l0": self.nnz / n_rows if n_rows else None, "nmse": self.distortion.nmse}


def _report(
    file: SaecFile, ground: Ground, sae: SAE, encoded: EncodeReport, outside: dict[str, int], progress: Progress
) -> dict[str, Any]:
    decoder, source = file.decoder, ground.source
    alone = Alone(sae, scales_of(sae, source.batches(file.index.filled_rows), ground.ids))
    base = Distortion(source.width)
    context = ContextComparison(decoder) if decoder.latents.prior.name == CONTEXT else None
    seconds = 0.0

    def observe(chunk: Decoded) -> None:
        nonlocal seconds
        seconds += chunk.seconds
        alone.add(chunk.x, chunk.first_row)
        if decoder.residual is not None:
            base.add(chunk.x, decoder.reconstruct(chunk.layers.codes))
        if context is not None:
            context.add(chunk.layers.codes, chunk.code_bytes)
        progress("decode", chunk.first_row + len(chunk.x), file.n_rows)

    observers: list[Observer] = [observe]
    point = read_point(file, ground, observers)
    rows, target, statistics = file.n_rows, encoded.goal.target, point.statistics

    def per_row(n_bits: float) -> float | None:
        return n_bits / rows if rows else None

    nmse, width = point.distortion.nmse, file.header.width
    return point.facts() | {
        "rows": rows,
        "shape": list(file.shape),
        "bits_per_scalar": per_row(8 * file.size / width),
        "bits_per_nonzero": 8 * file.size / statistics.nnz if statistics.nnz else None,
        "ratio_float32": 4 * rows * width / file.size,
        "ratio_input": ITEM_BYTES[source.dtype] * rows * width / file.size,
        "variance_explained": None if nmse is None else 1 - nmse,
        "max_error": point.distortion.max_error,
        "sae_alone": alone.facts(),
        "base_nmse": base.nmse if decoder.residual is not None else None,
        "bootstrap": ground.told(),
        "search": encoded.goal.search,
        "slope": encoded.slope,
        "target": None if target is None else {target.kind: target.value, "reached": encoded.reached},
        "bits": {part: per_row(8 * n_bytes) for part, n_bytes in point.parts.items()},
        "ideal": dict(zip(("support", "levels"), map(per_row, point.attribution.ideal), strict=True)),
        "outside": outside,
        "bits_per_row_with_codec": per_row(8 * (file.size + outside["codec_bytes"])),
        "prior": file.header.prior,
        "context": None if context is None else context.report(),
        "estimates": {"l0_formula": statistics.l0_formula, "sum_entropy": statistics.sum_entropy},
        "seconds": {"sae": alone.seconds, "encode": encoded.seconds, "decode": seconds},
        "sae": dict(file.header.sae) | {"decoder_id": file.header.decoder_id},
        "codec_id": file.header.codec_id,
    }
