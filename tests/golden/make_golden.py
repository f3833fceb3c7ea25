"""Make the golden files of this folder: `python tests/golden/make_golden.py` (README.md says when).

The SAE, the rows and the codes come from integer formulas scaled by powers of two, so that every sum in float32 is
exact: on any machine the same rows have the same levels, whatever the order of a matrix product's summation.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import saecodec
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.formats.codecfile import save_codec
from saecodec.formats.saec_writer import SaecWriter
from saecodec.frames import frame
from saecodec.latents import LatentCodec
from saecodec.nonlinearity import JumpReLU, ReLU
from saecodec.sae import SAE, Encoder

FOLDER = Path(__file__).parent
WIDTH, LATENTS = 8, 48


def integers(shape: tuple[int, int], a: int, b: int, c: int, modulus: int) -> NDArray[np.int64]:
    """(a i^2 + b j + c i j) mod `modulus`, moved to lie around zero."""
    i, j = np.indices(shape)
    return (a * i * i + b * j + c * i * j) % modulus - modulus // 2


def scaled(values: NDArray[np.int64], bits: int) -> torch.Tensor:
    """values / 2^bits, float32."""
    return torch.from_numpy((values / 2.0**bits).astype(np.float32))


def golden_sae(architecture: str) -> SAE:
    """jumprelu or standard (whose bias keeps it sparse), d = 8, F = 48."""
    w_enc = scaled(integers((WIDTH, LATENTS), 7, 13, 5, 31), 5)
    w_dec = scaled(integers((LATENTS, WIDTH), 3, 11, 7, 61), 5)
    b_dec = scaled(integers((1, WIDTH), 1, 5, 1, 17)[0], 4)
    spread = torch.arange(LATENTS) % 5
    if architecture == "jumprelu":
        encoder = Encoder(w_enc, 0 * spread - 0.5, JumpReLU(2.0 + spread / 2), True)
    else:
        encoder = Encoder(w_enc, -1.5 - spread / 4, ReLU(), False)
    return SAE(w_dec, b_dec, encoder, architecture, f"golden-{architecture}", "make_golden.py")


def golden_rows(n: int) -> NDArray[np.float32]:
    """(n, 8), the first of them zero."""
    values = integers((n, WIDTH), 3, 29, 11, 257) * (1 + np.arange(n) % 3)[:, None]
    values[:1] = 0
    return scaled(values, 6).numpy()


@dataclass(frozen=True)
class FileCase:
    """A `.saec` file, and a codec file beside it when it embeds nothing."""

    architecture: str
    step: float
    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    embed: str
    user: dict[str, str]

    def encode(self, codec: Codec, codes: Codes) -> bytes:
        """The file's bytes under a codec with its SAE."""
        out = io.BytesIO()
        facts = {"dtype": self.dtype, "chunk_rows": self.chunk_rows, "embed": self.embed, "user": self.user}
        with pinned_version():
            writer = SaecWriter(out, codec, shape=self.shape, **facts)  # type: ignore[arg-type]
            for start in range(0, codes.n_rows, self.chunk_rows):
                writer.add(codes[start : start + self.chunk_rows])
            writer.finish()
        return out.getvalue()


@dataclass(frozen=True)
class ChunkCase:
    """A `LatentCodec` and one chunk, as frames TABL and CHNK without a magic."""

    n_rows: int
    signed: bool
    columns: tuple[str, ...]

    def codes(self) -> Codes:
        dense = integers((self.n_rows, LATENTS), 5, 3, 7, 101)
        dense = np.where(np.abs(dense) < 6, dense, 0) * (1 + np.arange(self.n_rows) % 9 // 4 * 40)[:, None]
        t = np.arange(self.n_rows)
        columns = {"sequence": t // 50, "token": (t * t * 7919) % 50_000 - 3, "constant": 0 * t + (1 << 38) - 1}
        chosen = {name: columns[name].astype(np.int64) for name in self.columns}
        return Codes.from_dense(dense if self.signed else np.abs(dense), chosen)

    def encode(self, latents: LatentCodec, codes: Codes) -> bytes:
        """The tables and the chunk."""
        return frame("TABL", latents.to_bytes()) + frame("CHNK", latents.pack(codes))


FILES = {
    "tables": FileCase("jumprelu", 0.5, (2, 150, WIDTH), "float32", 100, "tables", {"note": "golden ✓"}),
    "decoder": FileCase("standard", 0.03125, (120, WIDTH), "bfloat16", 120, "decoder", {}),
    "none": FileCase("jumprelu", 1.0, (5, 1, 20, WIDTH), "float16", 64, "none", {}),
    "empty": FileCase("standard", 1.0, (0, WIDTH), "float64", 4096, "tables", {}),
}
CHUNKS = {
    "signed": ChunkCase(200, True, ()),
    "columns": ChunkCase(200, False, ("sequence", "token", "constant")),
}


@contextmanager
def pinned_version() -> Iterator[None]:
    """`made_by` says "saecodec golden", so that a release changes no golden file."""
    version, saecodec.__version__ = saecodec.__version__, "golden"
    try:
        yield
    finally:
        saecodec.__version__ = version


def digest(values: NDArray[Any], dtype: str) -> str:
    """sha256 of an array."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype).tobytes()).hexdigest()


def described(codes: Codes) -> dict[str, Any]:
    """What decoding must give: shape, digest and the first rows of the levels (latent: level), and the columns."""
    dense = codes.to_dense()
    first = [{str(f): int(row[f]) for f in np.flatnonzero(row)} for row in dense[:4]]
    columns = {name: {"sha256": digest(v, "<i8"), "first": v[:4].tolist()} for name, v in sorted(codes.columns.items())}
    levels = {"shape": list(dense.shape), "nonzeros": codes.nnz, "sha256": digest(dense, "<i4"), "first_rows": first}
    return {"levels": levels, "columns": columns}


def main() -> None:
    """Write all files."""
    for name, case in FILES.items():
        sae, x = golden_sae(case.architecture), golden_rows(int(np.prod(case.shape[:-1])))
        codec = Codec.fit(sae, golden_rows(400), case.step)
        codes = codec.quantize(x)
        (FOLDER / f"{name}.saec").write_bytes(case.encode(codec, codes))
        if case.embed == "none":
            save_codec(codec, FOLDER / f"{name}.saecodec", embed_sae=True, force=True)
        facts = {"decoder_id": codec.decoder_id, "codec_id": codec.codec_id, "sae_id": sae.sae_id}
        x_hat = codec.reconstruct(codes)[:2].tolist()
        save_json(name, {"case": vars(case), **facts, **described(codes), "first_rows_of_x_hat": x_hat})
    for name, chunk in CHUNKS.items():
        codes = chunk.codes()
        (FOLDER / f"{name}.frames").write_bytes(chunk.encode(LatentCodec.fit([codes]), codes))
        save_json(name, {"case": vars(chunk), **described(codes)})


def save_json(name: str, content: dict[str, Any]) -> None:
    """Write `name`.json."""
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
