"""`measure`: what an SAE's explanation of an array really costs, from a file that was written and decoded again."""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import DEFAULT_CHUNK_ROWS, Codec
from saecodec.decoder_precision import FLOAT32
from saecodec.distortion import Distortion
from saecodec.estimates import CodeStatistics
from saecodec.features import Side
from saecodec.formats.array_source import ITEM_BYTES, ArraySource, rows_for
from saecodec.formats.context_report import ContextComparison
from saecodec.formats.encoding import EncodeReport, Ids, encode_array
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.frames import HEAD_BYTES
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
    weights: str = FLOAT32,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Encode an array into a temporary file, decode it, and report.

    Arguments are those of `encode_array`; codec_bytes: size of the codec's file. Rates are bits per row and add up to
    8 * file_bytes / rows. "sae_alone" is the SAE as it was given, not rounded to `weights`. Values that are not defined
    (no rows, no nonzeros, constant rows) are None.
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
            weights=weights,
            progress=progress,
        )
        assert whole is not None
        embedded = embed == "decoder"  # then it is what the file holds that decodes it, rounded or not
        with open_saec(path, sae=None if embedded else whole, codec=codec, device=str(whole.device)) as file:
            outside_codec = codec_bytes if file.header.embed == "none" else 0
            # An SAE that is in a codec file which is needed anyway is part of that file's size.
            held = file.header.embed == "decoder" or (outside_codec and codec is not None and codec.sae is not None)
            outside = {"codec_bytes": outside_codec, "sae_bytes": 0 if held else whole.nbytes}
            ids = seq if seq is not None else ids_of_shape(source.shape)
            scales = scales_of(whole, source.batches(file.index.filled_rows), ids)
            return _report(file, source, whole, scales, encoded, outside, progress)


class _Alone:
    """What the SAE does with rows when nothing is quantized: L0, distortion and seconds of its forward pass."""

    def __init__(self, sae: SAE) -> None:
        self._sae = sae
        self.nnz, self.seconds, self.distortion = 0, 0.0, Distortion(sae.width)

    def add(self, x: NDArray[np.float32], side: Side | None) -> None:
        """Add rows. side: of them, where it has to be known beforehand."""
        started = time.perf_counter()
        features = self._sae.features(x, side=side)
        x_hat = self._sae.rows(features).cpu().numpy()
        self.seconds += time.perf_counter() - started
        self.nnz += features.nnz
        self.distortion.add(x, x_hat)


def _report(
    file: SaecFile,
    source: ArraySource,
    sae: SAE,
    scales: NDArray[np.float32] | None,
    encoded: EncodeReport,
    outside: dict[str, int],
    progress: Progress,
) -> dict[str, Any]:
    decoder = file.decoder
    distortion, statistics = Distortion(source.width), CodeStatistics(decoder.latents.prior.n_latents)
    base, alone = Distortion(source.width), _Alone(sae)
    ideal, seconds = [0.0, 0.0], 0.0
    context = ContextComparison(decoder) if decoder.latents.prior.name == CONTEXT else None
    chunks, lengths = file.layers(), file.index.lengths[file.index.rows > 0]
    for i, x in enumerate(source.batches(file.index.filled_rows)):
        started = time.perf_counter()
        layers = next(chunks)
        codes, x_hat = layers.codes, decoder.reconstruct(layers.codes, layers.residual)
        seconds += time.perf_counter() - started
        distortion.add(x, x_hat)
        if layers.residual is not None:
            base.add(x, decoder.reconstruct(codes))
        alone.add(x, side_at(scales, distortion.n_rows - len(x), len(x)))
        statistics.add(codes)
        if context is not None:
            context.add(codes, int(lengths[i]) - HEAD_BYTES)
        ideal = [a + b for a, b in zip(ideal, decoder.latents.prior.ideal_bits(codes), strict=True)]
        progress("decode", distortion.n_rows, file.n_rows)
    rows, target = file.n_rows, encoded.goal.target

    def per_row(n_bits: float) -> float | None:
        return n_bits / rows if rows else None

    bits = per_row(8 * file.size)
    nmse = distortion.nmse
    return {
        "rows": rows,
        "shape": list(file.shape),
        "file_bytes": file.size,
        "bits_per_row": bits,
        "bits_per_scalar": None if bits is None else bits / file.header.width,
        "bits_per_nonzero": 8 * file.size / statistics.nnz if statistics.nnz else None,
        "ratio_float32": 4 * rows * file.header.width / file.size,
        "ratio_input": ITEM_BYTES[source.dtype] * rows * file.header.width / file.size,
        "nmse": nmse,
        "variance_explained": None if nmse is None else 1 - nmse,
        "cosine": distortion.cosine,
        "max_error": distortion.max_error,
        "l0": statistics.l0,
        "sae_alone": {"l0": per_row(alone.nnz), "nmse": alone.distortion.nmse},
        "base_nmse": base.nmse if decoder.residual is not None else None,
        "search": encoded.goal.search,
        "slope": encoded.slope,
        "target": None if target is None else {target.kind: target.value, "reached": encoded.reached},
        "step": file.header.step,
        "residual_step": None if decoder.residual is None else decoder.residual.step,
        "bits": {part: per_row(8 * n_bytes) for part, n_bytes in file.bytes_by_part().items()},
        "ideal": {"support": per_row(ideal[0]), "levels": per_row(ideal[1])},
        "outside": outside,
        "bits_per_row_with_codec": per_row(8 * (file.size + outside["codec_bytes"])),
        "weights": file.header.weights,
        "prior": file.header.prior,
        "context": None if context is None else context.report(),
        "estimates": {"l0_formula": statistics.l0_formula, "sum_entropy": statistics.sum_entropy},
        "seconds": {"sae": alone.seconds, "encode": encoded.seconds, "decode": seconds},
        "sae": dict(file.header.sae) | {"decoder_id": file.header.decoder_id},
        "codec_id": file.header.codec_id,
    }
