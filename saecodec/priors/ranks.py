"""Ranks: the place of a cell among the cells of its bin, and back.

The context prior gives every (latent, row) cell a bin, a small integer. Nonzeros of a bin are coded by the gaps between
their ranks, so an encoder needs the rank of a cell, and a decoder the cell of a rank. Sorting all cells would give
both, but most of them do not matter: here bins are counted in spans of cells, and a span is looked into for the few
cells that do.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_SPAN_BITS: Final = 7
_SPAN: Final = 1 << _SPAN_BITS


class BinnedCells:
    """Cells of a block in their order, each in a bin.

    bins: uint8 (N,), below `n_bins` <= 255; N < 2^31.
    """

    def __init__(self, bins: NDArray[np.uint8], n_bins: int) -> None:
        n_spans = -(-len(bins) // _SPAN)
        padded = bins
        if len(bins) % _SPAN:
            padded = np.full(n_spans * _SPAN, n_bins, np.uint8)  # a bin of its own
            padded[: len(bins)] = bins
        self.bins = bins
        self._spans = padded.reshape(n_spans, _SPAN)
        width = n_bins + 1
        # Most cells are in bin 0, that of all the unlikely ones: it gets what the others leave of a span.
        others = np.flatnonzero(padded != 0)
        where = (others >> _SPAN_BITS) * width + padded[others]
        counts = np.bincount(where, minlength=n_spans * width).reshape(n_spans, width)
        counts[:, 0] = _SPAN - counts.sum(1)
        self._before = np.zeros(
            (n_spans + 1, n_bins), np.int32
        )  # a block is small, and half the bytes are twice as fast
        np.cumsum(counts[:, :n_bins], axis=0, out=self._before[1:])

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of cells in each bin, int64 (n_bins,)."""
        return np.asarray(self._before[-1], np.int64)

    def ranks(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many cells of its bin come before each cell, int64 (n,). cells: int64 (n,)."""
        span, bins = cells >> _SPAN_BITS, self.bins[cells]
        earlier = np.arange(_SPAN) < (cells & (_SPAN - 1))[:, None]
        same = self._spans[span] == bins[:, None]
        return np.asarray(self._before[span, bins] + np.count_nonzero(same & earlier, axis=1))

    def cells(self, ranks: NDArray[np.int64], bins: NDArray[np.int64]) -> NDArray[np.int64]:
        """The cells of ranks in bins, int64 (n,) each: the inverse of `ranks`. Every rank is below its bin's count.

        The ranks of a bin stand together; the bins rise.
        """
        span = np.empty(len(ranks), np.int64)
        edges = np.flatnonzero(np.diff(bins, prepend=-1, append=-1))
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            span[a:b] = np.searchsorted(self._before[:, bins[a]], ranks[a:b], side="right") - 1
        new = np.ones(len(span), np.bool_)  # the first rank of a bin in a span: that pair is looked at once
        new[1:] = (span[1:] != span[:-1]) | (bins[1:] != bins[:-1])
        pair, pair_span, pair_bin = np.cumsum(new) - 1, span[new], bins[new]
        alike = np.flatnonzero(self._spans[pair_span] == pair_bin[:, None].astype(np.uint8))
        before = self._before[pair_span, pair_bin].astype(np.int64)
        n_alike = self._before[pair_span + 1, pair_bin] - before
        first = np.cumsum(n_alike) - n_alike - before
        return np.asarray(span * _SPAN + (alike[first[pair] + ranks] & (_SPAN - 1)))
