"""What an SAE does to a row before it encodes it, and undoes after decoding: normalization by figures of the row itself.

Those figures are the row's *side information*: a decoder needs them beside the feature activations, so they are coded.
`KINDS` names every normalization; SAEs whose normalization is one number for all rows have it folded into their weights
and are of kind "none".
"""

from __future__ import annotations

from typing import Final

KINDS: Final = ("none", "layer_norm", "row_norm", "sequence_norm")
"""none: x itself. layer_norm: (x - mean) / (std + 1e-5), std with ddof 1, undone by std alone (SAELens `layer_norm`,
openai/sparse_autoencoder `LN`). row_norm: x sqrt(d) / |x| (SAELens `constant_norm_rescale`, Language-Model-SAEs
`token-wise`). sequence_norm: x sqrt(d) / mean |x| over the row's sequence (Language-Model-SAEs `batch-wise`)."""
