"""What others would need, or estimate, on the same rows: figures to stand beside the size of a real file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.baselines import ExemplarCode, dense_at, exemplar_codes, one_hot_at, pca_at
from saecodec.errors import SaecodecError
from saecodec.features import Features
from saecodec.formats.array_source import ArraySource
from saecodec.formats.point import Ground
from saecodec.sae import SAE
from saecodec.saebench import saebench_mdl
from saecodec.side import scales_of, side_at

MAX_ROWS: Final = 16384
"""Baselines are fitted on a sample of so many rows at most."""
_BLOCK: Final = 128  # neighbouring rows are sampled together
_BATCH: Final = 4096


def sample_rows(source: ArraySource, limit: int = MAX_ROWS) -> NDArray[np.float32]:
    """Blocks of neighbouring rows from all over an array, float32 (n, d), at most `limit` rows; all where they fit."""
    n_rows, first, parts = source.n_rows, 0, [np.zeros((0, source.width), np.float32)]
    keep = np.ones(n_rows, np.bool_)
    if n_rows > limit:
        blocks = max(limit // _BLOCK, 1)
        begins = np.linspace(0, n_rows - _BLOCK, blocks).astype(np.int64)
        keep[:] = False
        keep[(begins[:, None] + np.arange(_BLOCK)).ravel()] = True
    for x in source.batches(_BATCH):
        parts.append(x[keep[first : first + len(x)]])
        first += len(x)
    return np.concatenate(parts)


def baselines_at(sample: NDArray[np.float32], nmse: float, n_rows: int) -> dict[str, Any]:
    """Codes without an SAE at an NMSE, for programs; what cannot be had is None, with the reason in `missing`.

    sample: of the `n_rows` rows that share dictionaries and models.

    dense: every value of a row (estimates: of fixed length, and the entropy). one_hot: every row an exemplar of its
    own; exemplars: N of them, at the NMSE that they reach (estimates). pca: the best linear codec (encoded, decoded).
    """
    out: dict[str, Any] = {"sample_rows": len(sample), "dense": None, "one_hot": None, "exemplars": None, "pca": None}
    missing = {}
    try:
        dense = dense_at(sample, nmse)
        every = replace(dense, n_rows=n_rows)
        out["dense"], out["one_hot"] = asdict(every), asdict(one_hot_at(every))
        out["exemplars"] = [asdict(_shared(code, n_rows)) for code in exemplar_codes(sample, dense)]
    except SaecodecError as error:
        missing["exemplars" if out["dense"] else "dense"] = str(error)
    try:
        pca = pca_at(sample, nmse)
        total = pca.bits_per_row + 8 * pca.model_bytes / n_rows
        out["pca"] = asdict(replace(pca, total_per_row=total, n_rows=n_rows))
    except SaecodecError as error:
        missing["pca"] = str(error)
    return out | {"missing": missing}


def _shared(code: ExemplarCode, n_rows: int) -> ExemplarCode:
    """An exemplar code whose dictionary is shared by `n_rows` rows."""
    return replace(code, bits_per_row=code.index_bits + code.dictionary_bits / n_rows, n_rows=n_rows)


def saebench_facts(sae: SAE, ground: Ground) -> dict[str, Any]:
    """SAEBench's `mdl` on all rows, for programs."""

    def chunks() -> Iterator[tuple[NDArray[np.float32], Features]]:
        first = 0
        for x in ground.source.batches(_BATCH):
            yield x, sae.features(x, first, side_at(scales, first, len(x)))
            first += len(x)

    scales = scales_of(sae, ground.source.batches(_BATCH), ground.ids)
    facts = asdict(saebench_mdl(sae, chunks))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in facts.items()}
