"""The equation of an SAE in one line, for people who check what a loader made of their checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_INPUT: Final = {
    "none": "x",
    "layer_norm": "(x - mean) / (std + 1e-5)",
    "row_norm": "x sqrt(d) / |x|",
    "sequence_norm": "x sqrt(d) / mean |x| over the sequence",
}
_ACTIVATION: Final = {
    "relu": "relu(h)",
    "tanh_relu": "tanh(relu(h))",
    "jumprelu": "relu(h) [h > threshold]",
    "topk": "relu of the {k} largest {ranked}",
    "signed_topk": "the {k} largest {ranked}, with signs",
    "signed_topk_with_ties": "all {ranked} from the {k}th largest on, with signs",
    "abstopk": "the {k} largest |{ranked}|, with signs",
    "groupmax": "relu of the largest h of each of {k} groups",
    "gated": "[h + b_gate > 0] relu(h exp(r_mag) + b_mag)",
    "matching_pursuit": "matching pursuit on the rows of W_dec, up to {max_iterations} steps",
}


def equation(config: Mapping[str, Any], *, ranked: bool = False, glu: bool = False) -> str:
    """The equation of an SAE with this `SAE.config()`. ranked: a top-k goes by h times the decoder's norms. glu: h is
    gated."""
    nonlinearity, normalization = config["nonlinearity"], config.get("normalization", "none")
    given = _INPUT[normalization]
    subtracted = f"{given} - b_dec" if config["apply_b_dec_to_input"] else given
    kind = nonlinearity["kind"]
    told = {**nonlinearity, "ranked": "h |W_dec|" if ranked else "h"}
    z = _ACTIVATION.get(kind, kind).format_map(told)
    undone = "" if normalization == "none" else ", normalization undone"
    if kind == "matching_pursuit":
        return f"u = {subtracted}; z = {z}; x_hat = z W_dec + b_dec{undone}"
    bias = "" if kind == "gated" else " + b_enc"
    gate = ", times sigmoid(u W_glu + b_glu)" if glu else ""
    return f"u = {subtracted}; h = u W_enc{bias}{gate}; z = {z}; x_hat = z W_dec + b_dec{undone}"
