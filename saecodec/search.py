"""The encoder's search for codes of rows: fewer bits at the same error than the SAE's own activations.

The bitstream does not know of it. `refit`: least-squares values on the SAE's own support. `pursuit`: another support,
chosen among the latents that the SAE's encoder finds likeliest. Both round in closed loop, at a price for every bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saecodec.batches import map_batches
from saecodec.codes import Codes, gather_rows
from saecodec.costs import Costs
from saecodec.dictionary import Candidates, Dictionary
from saecodec.errors import InputError
from saecodec.features import Features
from saecodec.pursuit import LevelPrices, Selection, factorize, select
from saecodec.quantizer import Quantizer
from saecodec.rounding import round_levels
from saecodec.sae import SAE

Mode = Literal["none", "refit", "pursuit"]
MODES: Final = ("none", "refit", "pursuit")
_MIN_CANDIDATES: Final = 64
_CANDIDATES_PER_ACTIVE: Final = 1.5
_PADDING_PARTS: Final = 8


def fitted_search(info: Mapping[str, Any]) -> Mode:
    """The search that a codec was fitted with, by its `info`: its tables describe such codes."""
    found = info.get("search")
    return cast(Mode, found) if found in MODES else "none"


def check_search(sae: SAE, mode: Mode) -> None:
    """InputError when an SAE that is to be deterministic is asked to search."""
    if sae.deterministic and mode != "none":
        raise InputError(
            f"the search {mode} compares sums of floats, which differ between machines: a deterministic encoder takes "
            "the SAE's own activations (--search none)"
        )


@dataclass(frozen=True, eq=False)
class Found:
    """Codes of rows, and what each nonzero's level stood for before it was rounded, in steps: float32 (K,)."""

    codes: Codes
    exact: NDArray[np.float32]

    def rows(self, order: NDArray[np.int64]) -> Found:
        """These rows in another order."""
        return Found(self.codes.take(order), self.exact[gather_rows(self.codes.indptr, order)[1]])


def _joined(parts: list[Found], n_latents: int) -> Found:
    exact = np.concatenate([np.zeros(0, np.float32), *(part.exact for part in parts)])
    return Found(Codes.concatenate([part.codes for part in parts], n_latents), exact)


class Search:
    """Searches codes of rows for one SAE.

    mode: "refit" or "pursuit". active: mean number of latents that the SAE has active in a row; more candidates are
    looked at when they are many.
    """

    def __init__(self, sae: SAE, mode: Mode, active: float = 0.0) -> None:
        check_search(sae, mode)
        self.sae, self.mode, self.active = sae, mode, active
        self._plain = replace(sae, normalization="none")
        self._dictionary = Dictionary(sae)
        wanted = max(_MIN_CANDIDATES, 32 * math.ceil(_CANDIDATES_PER_ACTIVE * active / 32))
        self.n_candidates = min(wanted, sae.n_latents)

    @torch.no_grad()
    def __call__(
        self, x: NDArray[np.float32], quantizer: Quantizer, costs: Costs, slope: float, first_row: int = 0
    ) -> Found:
        """The codes of rows.

        x: float32 (T, d), normalized (`side.targets`); errors name rows from `first_row` on. quantizer, costs: those
        that the codes will be coded and read with. slope: squared error that a bit may cost, in squared steps; 0
        searches for error alone.
        """
        self.sae.check_rows(x, first_row)
        tables = _Tables(quantizer, costs, slope, self.sae.device)
        find = self._pursue if self.mode == "pursuit" else self._refit
        return find(x, tables) if len(x) else _joined([], self.sae.n_latents)

    def _pursue(self, x: NDArray[np.float32], tables: _Tables) -> Found:
        batch = self._dictionary.batch_rows(self.n_candidates)
        parts = [x[i : i + batch] for i in range(0, len(x), batch)]
        found = map_batches(lambda part: self._pursue_batch(part, tables), parts, self.sae.device)
        return _joined(found, self.sae.n_latents)

    def _pursue_batch(self, x: NDArray[np.float32], tables: _Tables) -> Found:
        rows = self._rows(x)
        likely = self.sae.magnitudes(rows).mul_(self._dictionary.norms)
        if self.sae.signed:
            likely.abs_()
        latents = torch.topk(likely, self.n_candidates, dim=1, sorted=False).indices
        latents = torch.where(self._dictionary.norms[latents] > 0, latents, -1)
        candidates = self._dictionary.candidates(rows, latents)
        prices = tables.prices(candidates)
        return self._finish(candidates, select(candidates, prices, tables.step, signed=self.sae.signed), prices, tables)

    def _refit(self, x: NDArray[np.float32], tables: _Tables) -> Found:
        """Rows with about equally many active latents go together, so that little is computed on padding."""
        features = self._plain.features(x)
        counts = np.diff(features.indptr)
        order = np.argsort(counts, kind="stable")
        batch = self._dictionary.batch_rows(max(int(counts.max()), 1))
        n_parts = min(max(_PADDING_PARTS, math.ceil(len(x) / batch)), len(x))
        parts = np.array_split(order, n_parts)
        found = map_batches(lambda part: self._refit_batch(x, features, part, tables), parts, self.sae.device)
        return _joined(found, self.sae.n_latents).rows(np.argsort(order))

    def _refit_batch(
        self, x: NDArray[np.float32], features: Features, part: NDArray[np.int64], tables: _Tables
    ) -> Found:
        counts = np.diff(features.indptr)[part]
        width = max(int(counts.max()), 1)
        padded = np.full((len(part), width), -1, np.int64)
        length = np.full((len(part), width), -1.0)
        inside = np.arange(width) < counts[:, None]
        at = (features.indptr[part][:, None] + np.arange(width))[inside]
        padded[inside] = features.latents[at]
        length[inside] = np.abs(features.values[at]) * self.sae.norms[features.latents[at]]
        padded[length == 0] = -1  # a zero direction cannot be refitted
        padded = np.take_along_axis(padded, np.argsort(-length, axis=1, kind="stable"), 1)
        latents = torch.from_numpy(padded).to(self.sae.device)
        candidates = self._dictionary.candidates(self._rows(x[part]), latents)
        return self._finish(candidates, factorize(candidates), tables.prices(candidates), tables)

    def _rows(self, x: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(x if x.flags.writeable else x.copy()).to(self.sae.device)

    def _finish(self, candidates: Candidates, selection: Selection, prices: LevelPrices, tables: _Tables) -> Found:
        offsets = tables.offsets[tables.latent_class[candidates.latents]]
        levels, exact = round_levels(selection, prices, tables.step, offsets, signed=self.sae.signed)
        latents = candidates.latents.gather(1, selection.chosen.clamp(min=0))
        latents, order = torch.where(levels != 0, latents, self.sae.n_latents).sort(dim=1)
        levels, exact = levels.gather(1, order), exact.gather(1, order)
        kept = latents < self.sae.n_latents
        indptr = np.concatenate([[0], np.cumsum(kept.sum(1).cpu().numpy())])
        found, values = (part[kept].cpu().numpy().astype(np.int32) for part in (latents, levels))
        codes = Codes(indptr, found, values, self.sae.n_latents)
        return Found(codes, exact[kept].cpu().numpy())


class _Tables:
    """Costs and centroids on the device."""

    def __init__(self, quantizer: Quantizer, costs: Costs, slope: float, device: torch.device) -> None:
        self.step = quantizer.step
        price = slope * quantizer.step**2
        self.support = torch.from_numpy(price * costs.support).to(device)
        self.levels = torch.from_numpy(price * costs.levels.reshape(-1)).to(device)
        self.n_levels = costs.levels.shape[1]
        self.level_class = torch.from_numpy(costs.level_class).to(device)
        self.latent_class = torch.from_numpy(quantizer.latent_class).to(device)
        self.offsets = torch.from_numpy(quantizer.offsets).to(device)

    def prices(self, candidates: Candidates) -> LevelPrices:
        """Prices of candidates."""
        latents = candidates.latents
        return LevelPrices(self.support[latents], self.levels, self.level_class[latents] * self.n_levels, self.n_levels)
