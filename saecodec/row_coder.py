"""`RowCoder`: rows -> the layers that a codec codes of them, with or without a search."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.costs import DEFAULT_SLOPE
from saecodec.errors import MissingPieceError
from saecodec.features import Features, Side
from saecodec.fit_residual import RESIDUAL_SLOPE, choose_levels
from saecodec.layers import Layers
from saecodec.search import Mode, Search
from saecodec.side import side_at, targets

_FIRST_ROWS: Final = 1024


class RowCoder:
    """Codes rows with one codec.

    search: "none" takes the SAE's own activations, "refit" and "pursuit" look for codes with fewer bits (`Search`).
    slope: squared error that a bit may cost, in squared steps: easy rows get few latents, hard rows many. With "none"
    it is of the residual layer alone. active: mean number of active latents of a row; by default what the codec was
    fitted on, or what the first rows have. scales: see `side_at`.
    """

    def __init__(
        self,
        codec: Codec,
        search: Mode = "none",
        slope: float = DEFAULT_SLOPE,
        active: float | None = None,
        scales: NDArray[np.float32] | None = None,
    ) -> None:
        if codec.sae is None:
            raise MissingPieceError("coding rows needs the codec's SAE: give it (-s SAE)")
        self.codec, self.slope, self.sae = codec, slope, codec.sae
        self._costs, self._scales = codec.latents.prior.costs(), scales
        self._mode: Mode = search
        self._search: Search | None = None
        told = codec.info.get("active")
        self._active = told if active is None and isinstance(told, float) else active

    def __call__(self, x: NDArray[np.float32], first_row: int = 0, features: Features | None = None) -> Layers:
        """The layers of rows, float32 (T, d); errors name rows from `first_row` on. features: of x, where at hand."""
        side = side_at(self._scales, first_row, len(x)) if features is None else features.side
        if self._mode != "none":
            if self._search is None:
                self._search = Search(self.sae, self._mode, self._activity(x, first_row, side))
            wanted, columns = targets(self.sae, self.codec.side, x, first_row, side)
            codes = self._search(wanted, self.codec.quantizer, self._costs, self.slope, first_row).codes
            codes = replace(codes, columns=columns)
        else:
            own = self.sae.features(x, first_row, side) if features is None else features
            codes = self.codec.quantize_features(own)
        if self.codec.residual is None:
            return Layers(codes)
        left = x - self.codec.reconstruct(codes)
        coordinates = self.codec.residual.coordinates(left, deterministic=self.sae.deterministic)
        return Layers(codes, choose_levels(self.codec.residual, coordinates, RESIDUAL_SLOPE * self.slope))

    def _activity(self, x: NDArray[np.float32], first_row: int, side: Side | None) -> float:
        if self._active is not None:
            return self._active
        features = self.sae.features(x[:_FIRST_ROWS], first_row, None if side is None else side[:_FIRST_ROWS])
        return features.nnz / max(features.n_rows, 1)
