"""Where the bits of one file go: tables by latent, by row, by group, and of latents that overlap."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.co_occurrence import CoOccurrence, near_duplicates, parent_child
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.formats.groups import Groups, GroupTable
from saecodec.formats.point import Ground, Point
from saecodec.formats.read_back import Decoded
from saecodec.formats.spool import Spool, code_spool
from saecodec.removal import removal_errors

SHOWN: Final = 500
_CHEAPEST: Final = 100  # of them, chosen by bits per error instead of by bits
_WORST_ROWS: Final = 50
_PAIRS: Final = 100
_BINS: Final = 40

Figures = NDArray[np.float64]


class DetailCollector:
    """Collects what the tables are made of, chunk by chunk; a context, which holds a temporary file."""

    def __init__(self, codec: Codec, ground: Ground, groups: Groups | None = None) -> None:
        self._codec, self._ground = codec, ground
        n_latents = codec.latents.prior.n_latents
        self._groups = None if groups is None else GroupTable(groups, n_latents)
        self._removal = np.zeros(n_latents)
        self._codes: Spool[Codes] = code_spool(n_latents)

    def __enter__(self) -> DetailCollector:
        return self

    def __exit__(self, *error: object) -> None:
        self._codes.close()

    def add(self, chunk: Decoded) -> None:
        """Add a chunk."""
        codes, codec = chunk.layers.codes, self._codec
        assert codec.sae is not None
        rise = removal_errors(codec.sae, codec.features(codes), chunk.x, chunk.x_hat)
        self._removal += np.bincount(codes.latents, rise, len(self._removal))
        self._codes.append(Codes(codes.indptr, codes.latents, codes.levels, codes.n_latents))
        if self._groups is not None:
            self._groups.add(chunk)

    def facts(self, point: Point) -> dict[str, Any]:
        """The tables of a file that was read back; floats have six digits."""
        ground, n_rows = self._ground, max(self._ground.source.n_rows, 1)
        latents = _latents(point, self._removal, float(ground.spread.sum()), n_rows)
        return {
            "step": point.step,
            "histograms": {
                "row_bits": _histogram(point.rows.bits, "bits"),
                "latent_bits": _log_histogram(
                    (point.attribution.support + point.attribution.levels) / n_rows, "bits per row"
                ),
            },
            "latents": latents,
            "worst_rows": {"columns": _worst_rows(point, ground)},
            "groups": None if self._groups is None else {"columns": _short(self._groups.columns(point, ground))},
            "pairs": self._pairs(point),
        }

    def arrays(self, point: Point) -> dict[str, NDArray[Any]]:
        """Figures of every row, (T,), and every latent, (F,), of a file that was read back.

        row: its number in the input. row_bits: of its chunk; what the file holds once is not in it. row_squared_error,
        row_spread: |x - x_hat|^2, |x - mean|^2. latent_nonzeros, latent_support_bits, latent_level_bits: totals.
        latent_removal_error: how much the squared error would rise without the latent.
        """
        return {
            "row": self._ground.numbers,
            "row_bits": point.rows.bits,
            "row_squared_error": point.rows.squared_error,
            "row_spread": self._ground.spread,
            "latent_nonzeros": point.attribution.nnz,
            "latent_support_bits": point.attribution.support,
            "latent_level_bits": point.attribution.levels,
            "latent_removal_error": self._removal,
        }

    def _pairs(self, point: Point) -> dict[str, Any]:
        assert self._codec.sae is not None
        co = CoOccurrence.most_frequent(point.attribution.nnz)
        for codes in self._codes:
            co.add(codes)
        twins = near_duplicates(co, w_dec=self._codec.sae.w_dec.cpu().numpy())
        parents = parent_child(co)
        rate = point.attribution.nnz / max(self._ground.source.n_rows, 1)
        return {
            "latents": len(co.latents),
            "near_duplicates": {
                "of": len(twins.first),
                "columns": _short(
                    {
                        "a": twins.first[:_PAIRS].tolist(),
                        "b": twins.second[:_PAIRS].tolist(),
                        "jaccard": twins.jaccard[:_PAIRS].tolist(),
                        "cosine": [] if twins.cosine is None else twins.cosine[:_PAIRS].tolist(),
                        "saved": twins.saved[:_PAIRS].tolist(),
                    }
                ),
            },
            "parents": {
                "of": len(parents.child),
                "columns": _short(
                    {
                        "child": parents.child[:_PAIRS].tolist(),
                        "parent": parents.parent[:_PAIRS].tolist(),
                        "given": parents.probability[:_PAIRS].tolist(),
                        "rate_child": rate[parents.child[:_PAIRS]].tolist(),
                        "rate_parent": rate[parents.parent[:_PAIRS]].tolist(),
                        "saved": parents.saved[:_PAIRS].tolist(),
                    }
                ),
            },
        }


def _latents(point: Point, removal: Figures, variance: float, n_rows: int) -> dict[str, Any]:
    """The latents with the most bits, and those whose removal saves most bits for its error, by falling bits."""
    support, levels = point.attribution.support / n_rows, point.attribution.levels / n_rows
    bits, rise = support + levels, removal / variance if variance > 0 else np.full(len(removal), np.nan)
    used = np.flatnonzero(bits > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(rise > 0, bits / rise, np.inf)
    cheap = used[np.lexsort((-bits[used], -ratio[used]))][:_CHEAPEST]  # of those that do harm, the dearest
    rest = np.setdiff1d(used, cheap)
    shown = np.concatenate([cheap, rest[np.argsort(-bits[rest], kind="stable")][: SHOWN - len(cheap)]])
    shown = shown[np.argsort(-bits[shown], kind="stable")]
    columns = {
        "latent": shown.tolist(),
        "rate": (point.attribution.nnz[shown] / n_rows).tolist(),
        "bits": bits[shown].tolist(),
        "support": support[shown].tolist(),
        "levels": levels[shown].tolist(),
        "removal_nmse": [value if np.isfinite(value) else None for value in rise[shown].tolist()],
        "bits_per_nmse": [value if np.isfinite(value) else None for value in ratio[shown].tolist()],
    }
    rest_bits = float(bits.sum() - bits[shown].sum())
    silent = int((bits == 0).sum())
    return {"columns": _short(columns), "shown": len(shown), "of": len(bits), "silent": silent, "rest_bits": rest_bits}


def _worst_rows(point: Point, ground: Ground) -> dict[str, list[Any]]:
    error = point.rows.squared_error
    worst = np.argsort(-error, kind="stable")[:_WORST_ROWS]
    columns: dict[str, list[Any]] = {"row": ground.numbers[worst].tolist()}
    if ground.ids is not None:
        columns["sequence"] = np.asarray(ground.ids)[worst].tolist()
    if ground.positions is not None:
        columns["position"] = ground.positions[worst].tolist()
    columns["bits"] = point.rows.bits[worst].tolist()
    columns["squared_error"] = error[worst].tolist()
    columns["share"] = (error[worst] / (error.sum() or 1.0)).tolist()
    return _short(columns)


def _histogram(values: Figures, unit: str) -> dict[str, Any]:
    if not len(values):
        return {"edges": [0.0], "counts": [], "unit": unit}
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * abs(high):  # too little for bins of their own
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, _BINS, (low, high))
    return {"edges": _digits(edges.tolist()), "counts": counts.tolist(), "unit": unit}


def _log_histogram(values: Figures, unit: str) -> dict[str, Any]:
    """Of the positive values, with edges that grow by a factor."""
    seen = values[values > 0]
    if not len(seen):
        return {"edges": [1.0], "counts": [], "unit": unit, "log": True}
    edges = np.geomspace(seen.min() * (1 - 1e-9), seen.max() * (1 + 1e-9), _BINS + 1)
    counts, _ = np.histogram(seen, edges)
    return {"edges": _digits(edges.tolist()), "counts": counts.tolist(), "unit": unit, "log": True}


def _short(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: _digits(values) for name, values in columns.items()}


def _digits(values: list[Any]) -> list[Any]:
    return [float(f"{value:.6g}") if isinstance(value, float) else value for value in values]
