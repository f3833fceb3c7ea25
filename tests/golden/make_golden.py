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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import saecodec
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.decoder_precision import with_precision
from saecodec.filled_rows import FilledRows
from saecodec.formats.codecfile import load_codec, save_codec
from saecodec.formats.encoding_latents import encode_latents
from saecodec.formats.latent_source import LatentSource, MemoryLatents
from saecodec.formats.latent_values import latent_rows
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.formats.saec_writer import LatentsFacts, SaecWriter
from saecodec.frames import frame
from saecodec.latent_rows import LatentRows
from saecodec.latents import LatentCodec
from saecodec.layers import Layers
from saecodec.nonlinearity import JumpReLU, ReLU
from saecodec.priors.context import ContextPrior
from saecodec.priors.network import Network
from saecodec.quantizer import Quantizer
from saecodec.residual import Block, ResidualLayer
from saecodec.sae import SAE, Encoder
from saecodec.side import MEAN, SCALE, SideQuantizer
from saecodec.stored_floats import narrowed
from saecodec.table_set import TableSet

FOLDER = Path(__file__).parent
WIDTH, LATENTS = 8, 48


def integers(shape: tuple[int, int], a: int, b: int, c: int, modulus: int) -> NDArray[np.int64]:
    """(a i^2 + b j + c i j) mod `modulus`, moved to lie around zero."""
    i, j = np.indices(shape)
    return (a * i * i + b * j + c * i * j) % modulus - modulus // 2


def scaled(values: NDArray[np.int64], bits: int) -> torch.Tensor:
    """values / 2^bits, float32."""
    return torch.from_numpy((values / 2.0**bits).astype(np.float32))


def golden_sae(architecture: str, normalization: str = "none") -> SAE:
    """jumprelu or standard (whose bias keeps it sparse), d = 8, F = 48."""
    w_enc = scaled(integers((WIDTH, LATENTS), 7, 13, 5, 31), 5)
    w_dec = scaled(integers((LATENTS, WIDTH), 3, 11, 7, 61), 5)
    b_dec = scaled(integers((1, WIDTH), 1, 5, 1, 17)[0], 4)
    spread = torch.arange(LATENTS) % 5
    if architecture == "jumprelu":
        encoder = Encoder(w_enc, 0 * spread - 0.5, JumpReLU(2.0 + spread / 2), True)
    else:
        encoder = Encoder(w_enc, -1.5 - spread / 4, ReLU(), False)
    name = f"golden-{architecture}"
    return SAE(w_dec, b_dec, encoder, architecture, name, "make_golden.py", normalization=normalization)


def golden_rows(n: int) -> NDArray[np.float32]:
    """(n, 8), the first of them zero."""
    values = integers((n, WIDTH), 3, 29, 11, 257) * (1 + np.arange(n) % 3)[:, None]
    values[:1] = 0
    return scaled(values, 6).numpy()


def golden_prior(n_blocks: int, empty: int, rank: int, n_bins: int, n_level_bins: int, signed: bool) -> ContextPrior:
    """A context prior of F = 48; block `empty` has no latent. By hand: trained networks differ between machines.

    Scaled so that logits and scores of the golden codes reach below the first bin and above the last one.
    """
    f, latent, unit = LATENTS, np.arange(LATENTS), np.arange(rank)
    block = np.delete(np.arange(n_blocks), empty)[latent * 5 // 3 % (n_blocks - 1)]
    n_context = int((block < n_blocks - 1).sum())
    shift, level_shift = 9, 10
    network = Network(
        block=block,
        gains=5 + 2 * np.arange(16),
        context=integers((n_context, 3 * rank), 7, 13, 5, 255).astype(np.int8),
        bias=integers((n_blocks, rank), 3, 411, 17, 2047),
        shifts=4 + unit % 3,
        out=integers((f, rank), 11, 29, 3, 255).astype(np.int8),
        out_bias=integers((f, 1), 5, 0, 0, 41)[:, 0] * 200 + (n_bins << shift - 1),
        level_out=integers((f, rank), 2, 19, 7, 253).astype(np.int8),
        level_bias=integers((f, 1), 3, 0, 0, 37)[:, 0] * 200 + (n_level_bins << level_shift - 1),
        shift=shift,
        level_shift=level_shift,
        n_bins=n_bins,
        n_level_bins=n_level_bins,
    )
    return ContextPrior(
        network,
        support=falling_tables(n_bins, 7),
        levels=falling_tables(n_level_bins, 5),
        level_class=latent % 3,
        cost=20 + latent,
        cost_bin=latent % n_level_bins,
        signed=signed,
    )


def falling_tables(n_bins: int, n_classes: int) -> TableSet:
    """Tables of bins, the steeper the later."""
    bucket, c = np.arange(60), np.arange(n_classes)[:, None]
    codes = np.clip(38 - bucket * (1 + c) // 3 + integers((n_classes, 60), 2, 3, 1, 5), 1, 40)
    return TableSet(np.arange(n_bins) * n_classes // n_bins, codes, 1)


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

    @property
    def n_rows(self) -> int:
        """T."""
        return int(np.prod(self.shape[:-1]))

    def sae(self) -> SAE:
        """The SAE whose codes are in the file."""
        return golden_sae(self.architecture)

    def codec(self, sae: SAE) -> Codec:
        """A codec for the rows of the formula."""
        return replace(Codec.fit(sae, golden_rows(400), self.step), residual=self.layer())

    def codes(self, codec: Codec) -> Codes:
        """Those of the rows of the formula."""
        return codec.quantize(golden_rows(self.n_rows))

    def layers(self, codes: Codes) -> Layers:
        """What is coded."""
        return Layers(codes)

    def layer(self) -> ResidualLayer | None:
        """The residual layer."""
        return None

    def facts(self) -> dict[str, Any]:
        """What its header says."""
        return {"dtype": self.dtype, "chunk_rows": self.chunk_rows, "embed": self.embed, "user": self.user}

    def encode(self, codec: Codec, layers: Layers) -> bytes:
        """The file's bytes under a codec with its SAE."""
        out = io.BytesIO()
        with pinned_version():
            writer = SaecWriter(out, codec, shape=self.shape, **self.facts())
            for start in range(0, layers.n_rows, self.chunk_rows):
                writer.add(layers[start : start + self.chunk_rows])
            writer.finish()
        return out.getvalue()


def appended(case: FileCase, codec: Codec, layers: Layers, generations: tuple[int, ...]) -> bytes:
    """The bytes of a file that has so many entries of the first dimension after each generation."""
    out, start, length = io.BytesIO(), 0, case.n_rows // case.shape[0]
    with pinned_version():
        writer = SaecWriter(out, codec, shape=case.shape, **case.facts())
        for n in generations:
            stop = n * length
            for at in range(start, stop, case.chunk_rows):
                writer.add(layers[at : min(at + case.chunk_rows, stop)])
            writer.frames.finish((n, *case.shape[1:-1]))
            start = stop
    return out.getvalue()


@dataclass(frozen=True)
class AppendedCase(FileCase):
    """The same, appended to. generations: rows of the first dimension that there are after each."""

    generations: tuple[int, ...]

    def encode(self, codec: Codec, layers: Layers) -> bytes:
        return appended(self, codec, layers, self.generations)


@dataclass(frozen=True)
class WeightsCase(FileCase):
    """The same with a rounded decoder."""

    weights: str

    def exact_sae(self) -> SAE:
        """With directions that need rounding, and one that is zero."""
        sae = super().sae()
        w_dec = sae.w_dec * (1 + torch.arange(LATENTS)[:, None] % 7) + scaled(
            integers((LATENTS, WIDTH), 5, 7, 3, 97), 14
        )
        w_dec[LATENTS // 2] = 0
        return replace(sae, w_dec=w_dec)

    def sae(self) -> SAE:
        return with_precision(self.exact_sae(), self.weights)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"weights": self.weights}


@dataclass(frozen=True)
class ResidualCase(FileCase):
    """The same with a residual layer. blocks: components and values of each; residual_step, unit: powers of two."""

    blocks: tuple[tuple[int, int], ...]
    residual_step: float
    unit: float

    def layer(self) -> ResidualLayer:
        """By hand: fitted components have other last bits on other machines. Classes 0 to 2, the middle one empty."""
        blocks = tuple(Block(integers(shape, 5, 17, 3, 47)) for shape in self.blocks)
        n_components = sum(m for m, _ in self.blocks)
        codes = np.clip(40 - integers((3, 24), 2, 3, 1, 9) - 2 * np.arange(24), 0, 40)
        tables = TableSet(np.arange(n_components) % 2 * 2, codes, 1)
        mean, centroids = integers((1, WIDTH), 1, 7, 1, 41)[0], integers((3, 16), 11, 5, 3, 57)
        return ResidualLayer(self.residual_step, self.unit, blocks, mean, tables, centroids)

    def layers(self, codes: Codes) -> Layers:
        """With residual levels that fall from one component to the next, but for one in thirty."""
        i = np.arange(sum(m for m, _ in self.blocks))
        levels = integers((codes.n_rows, len(i)), 5, 31, 7, 101) // (6 + 4 * i)
        rare = integers(levels.shape, 7, 3, 1, 61)
        levels = np.where(rare < -28, levels << (rare + 32) * 5, levels)
        levels[-1, 0], levels[-1, -1] = 1 << 20, -(1 << 20)
        return Layers(codes, levels.astype(np.int32))


@dataclass(frozen=True)
class SideCase(ResidualCase):
    """With side information, and a residual layer where there are blocks. Codes and side information by formula: the
    figures of rows, and what is divided by them, have other last bits on other machines."""

    kind: str
    resolution: int
    centre: float
    mean_step: float
    mean_centre: float

    def sae(self) -> SAE:
        return golden_sae(self.architecture, self.kind)

    def codec(self, sae: SAE) -> Codec:
        latents = LatentCodec.fit([self._codes()])
        prior = latents.prior
        quantizer = Quantizer(self.step, integers((prior.n_level_classes, 16), 11, 5, 3, 57), prior.level_class)
        side = SideQuantizer(self.kind, self.resolution, self.centre, self.mean_step, self.mean_centre)
        return Codec(quantizer, latents, sae.decoder_id, sae, residual=self.layer() if self.blocks else None, side=side)

    def codes(self, codec: Codec) -> Codes:
        return self._codes()

    def _codes(self) -> Codes:
        """Every tenth row has scale 0; some scales lie below the centre."""
        dense = np.abs(integers((self.n_rows, LATENTS), 5, 3, 7, 101))
        dense = np.where(dense < 6, dense, 0) * (1 + np.arange(self.n_rows) % 9 // 7 * 12)[:, None]
        t = np.arange(self.n_rows)
        columns = {SCALE: np.where(t % 10, (t * t * 37 + 11 * t) % 97 - 40, 0)}
        if self.kind == "layer_norm":
            columns[MEAN] = t * 29 % 61 - 30
        return Codes.from_dense(dense, columns)

    def layers(self, codes: Codes) -> Layers:
        return super().layers(codes) if self.blocks else Layers(codes)


@dataclass(frozen=True)
class HeadsCase(SideCase):
    """The same of an array (..., 2, 4), whose last two dimensions are a row."""

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"row_shape": (2, 4)}


@dataclass(frozen=True)
class AllCase(SideCase):
    """Side information, a residual layer, a context prior, sequences, an integer decoder, and appended to."""

    generations: tuple[int, ...]

    def sae(self) -> SAE:
        return with_precision(super().sae(), "int8")

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"weights": "int8"}

    def codec(self, sae: SAE) -> Codec:
        prior = golden_prior(4, 1, 10, 30, 9, signed=False)
        quantizer = Quantizer(self.step, integers((3, 16), 11, 5, 3, 57), prior.level_class)
        return replace(super().codec(sae), quantizer=quantizer, latents=LatentCodec(prior))

    def layers(self, codes: Codes) -> Layers:
        t = np.arange(codes.n_rows)
        labelled = replace(codes, columns={**codes.columns, "seq": t // 13 * 31 % 7, "token": t * t % 1009})
        return super().layers(labelled)

    def encode(self, codec: Codec, layers: Layers) -> bytes:
        return appended(self, codec, layers, self.generations)


@dataclass(frozen=True)
class ContextCase(FileCase):
    """The same with a context prior, made by `golden_prior`, and sequences of changing lengths in a column `seq`."""

    n_blocks: int
    empty: int
    rank: int
    n_bins: int
    n_level_bins: int

    def codec(self, sae: SAE) -> Codec:
        prior = golden_prior(self.n_blocks, self.empty, self.rank, self.n_bins, self.n_level_bins, signed=False)
        quantizer = Quantizer(self.step, integers((3, 16), 11, 5, 3, 57), prior.level_class)
        return Codec(quantizer, LatentCodec(prior), sae.decoder_id, sae)

    def layers(self, codes: Codes) -> Layers:
        """With sequences of 9, 7, 5, 3 and 1 rows, again and again; an id comes back after others."""
        t = np.arange(codes.n_rows)
        sequence = t // 25 * 5 + np.searchsorted([9, 16, 21, 24], t % 25, side="right")
        return Layers(replace(codes, columns={"seq": sequence * 7919 % 11, "token": t}))


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

    def latents(self, codes: Codes) -> LatentCodec:
        """A codec for these codes."""
        return LatentCodec.fit([codes])

    def encode(self, latents: LatentCodec, codes: Codes) -> bytes:
        """The tables and the chunk."""
        return frame("TABL", latents.to_bytes()) + frame("CHNK", latents.pack(codes))


@dataclass(frozen=True)
class ContextChunkCase(ChunkCase):
    """The same with a context prior, made by `golden_prior`."""

    n_blocks: int
    empty: int
    rank: int
    n_bins: int
    n_level_bins: int

    def latents(self, codes: Codes) -> LatentCodec:
        sizes = self.n_blocks, self.empty, self.rank, self.n_bins, self.n_level_bins
        return LatentCodec(golden_prior(*sizes, signed=self.signed))


@dataclass(frozen=True)
class LatentsCase:
    """A `.saec` file of latents without an SAE. step: as in `encode_latents`. shape: (..., F)."""

    step: str
    shape: tuple[int, ...]
    dtype: str
    chunk_rows: int
    user: dict[str, str]

    def rows(self) -> LatentRows:
        """Of the formula: multiples of 1/16 of both signs and sizes, some of them zero, with tokens beside them."""
        n, t = int(np.prod(self.shape[:-1])), np.arange(int(np.prod(self.shape[:-1])))
        dense = integers((n, self.shape[-1]), 5, 3, 7, 101)
        fires, size = np.abs(dense) < 6, integers((n, self.shape[-1]), 11, 7, 13, 997)
        rows, latents = np.nonzero(fires)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
        values = narrowed((size[fires] * (1 + latents % 4) / 16).astype(np.float32), self.dtype)
        return LatentRows(indptr, latents.astype(np.int32), values, {"token": t * t * 7919 % 30_000})

    def source(self) -> LatentSource:
        """The rows, as `encode_latents` takes them."""
        rows = self.rows()
        source = MemoryLatents(
            rows.indptr, rows.latents, rows.values, self.shape, dtype=self.dtype, columns=rows.columns
        )
        return source

    def encode(self, path: Path) -> None:
        """Write the file."""
        with pinned_version():
            encode_latents(
                self.source(),
                path,
                step=self.step,
                chunk_rows=self.chunk_rows,
                name="golden",
                user=self.user,
                force=True,
            )

    def again(self, file: SaecFile, codes: Codes) -> bytes:
        """The bytes of a file of these codes under the codec of `file`."""
        out = io.BytesIO()
        facts = {"dtype": self.dtype, "chunk_rows": self.chunk_rows, "embed": "tables", "user": self.user}
        assert file.header.values is not None
        with pinned_version():
            told = LatentsFacts(file.header.values, file.header.sae)
            writer = SaecWriter(out, file.codec, shape=self.shape, **facts, latents=told)  # type: ignore[arg-type]
            for start in range(0, codes.n_rows, self.chunk_rows):
                writer.add(Layers(codes[start : start + self.chunk_rows]))
            writer.finish()
        return out.getvalue()


@dataclass(frozen=True)
class ZarrCase:
    """A chunk of a zarr array (docs/format.md, "Chunks in zarr arrays"), with residual levels. codec: its codec file.
    runs: of rows that are coded, that are not, that are, ..."""

    codec: str
    shape: tuple[int, ...]
    runs: tuple[int, ...]

    def rows(self, codec: Codec) -> FilledRows:
        """Codes of the rows of the formula, and residual levels of one."""
        coded = np.repeat(np.arange(len(self.runs)) % 2 == 0, self.runs)
        codes = codec.quantize(golden_rows(int(coded.sum())))
        case = FILES[self.codec]
        return FilledRows(coded, (case.layers(codes),))


LATENT_FILES = {
    "latents_exact": LatentsCase("0", (6, 20, LATENTS), "float16", 50, {"delphi": "not a layout"}),
    "latents_bfloat16": LatentsCase("0", (60, LATENTS), "bfloat16", 60, {}),
    "latents_step": LatentsCase("0.4rms", (3, 40, LATENTS), "float32", 64, {"note": "golden"}),
}
FILES = {
    "tables": FileCase("jumprelu", 0.5, (2, 150, WIDTH), "float32", 100, "tables", {"note": "golden ✓"}),
    "decoder": FileCase("standard", 0.03125, (120, WIDTH), "bfloat16", 120, "decoder", {}),
    "none": FileCase("jumprelu", 1.0, (5, 1, 20, WIDTH), "float16", 64, "none", {}),
    "empty": FileCase("standard", 1.0, (0, WIDTH), "float64", 4096, "tables", {}),
    "appended": AppendedCase("jumprelu", 0.5, (5, 40, WIDTH), "float32", 50, "tables", {}, (2, 3, 5)),
    "residual": ResidualCase(
        "jumprelu", 1.0, (130, WIDTH), "float32", 60, "tables", {}, ((3, 3), (0, 2), (2, 3)), 0.5, 2.0**-5
    ),
    "residual_none": ResidualCase(
        "standard", 0.5, (2, 40, WIDTH), "float16", 80, "none", {}, ((5, WIDTH),), 0.25, 2.0**-4
    ),
    "context": ContextCase("standard", 0.25, (190, WIDTH), "float32", 64, "tables", {}, 5, 2, 12, 40, 14),
    "layer_norm": SideCase(
        "standard",
        0.25,
        (110, WIDTH),
        "float32",
        50,
        "decoder",
        {},
        blocks=(),
        residual_step=1.0,
        unit=1.0,
        kind="layer_norm",
        resolution=24,
        centre=0.375,
        mean_step=2.0**-4,
        mean_centre=0.4375,
    ),
    "weights_bfloat16": WeightsCase("jumprelu", 0.5, (60, WIDTH), "float32", 60, "decoder", {}, "bfloat16"),
    "weights_int8": WeightsCase("jumprelu", 1.0, (2, 40, WIDTH), "float16", 50, "decoder", {}, "int8"),
    "row_norm": SideCase(
        "jumprelu",
        0.5,
        (3, 30, WIDTH),
        "float32",
        64,
        "tables",
        {},
        blocks=((8, 8),),
        residual_step=0.25,
        unit=2.0**-4,
        kind="row_norm",
        resolution=9,
        centre=0.625,
        mean_step=1.0,
        mean_centre=0.0,
    ),
}
FILES["heads"] = HeadsCase(
    "standard",
    0.5,
    (4, 25, WIDTH),
    "float16",
    40,
    "tables",
    {},
    blocks=(),
    residual_step=1.0,
    unit=1.0,
    kind="sequence_norm",
    resolution=7,
    centre=0.875,
    mean_step=1.0,
    mean_centre=0.0,
)
FILES["all"] = AllCase(
    "jumprelu",
    0.25,
    (6, 20, WIDTH),
    "bfloat16",
    50,
    "decoder",
    {"note": "all of 1.6"},
    blocks=((4, 6), (2, 2)),
    residual_step=0.5,
    unit=2.0**-5,
    kind="layer_norm",
    resolution=16,
    centre=0.625,
    mean_step=2.0**-5,
    mean_centre=-0.1875,
    generations=(3, 6),
)
ZARR = {"filled": ZarrCase("residual_none", (5, 10, WIDTH), (0, 7, 12, 1, 20, 10))}
CHUNKS = {
    "signed": ChunkCase(200, True, ()),
    "columns": ChunkCase(200, False, ("sequence", "token", "constant")),
    "context_signed": ContextChunkCase(150, True, (), 4, 3, 9, 100, 6),
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


def described_residual(levels: NDArray[np.int32]) -> dict[str, Any]:
    """What decoding the residual layer must give."""
    facts = {"shape": list(levels.shape), "nonzeros": int(np.count_nonzero(levels)), "sha256": digest(levels, "<i4")}
    return facts | {"first_rows": levels[:4].tolist()}


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
        sae = case.sae()
        codec = case.codec(sae)
        codes = case.codes(codec)
        layers = case.layers(codes)
        (FOLDER / f"{name}.saec").write_bytes(case.encode(codec, layers))
        if case.embed == "none":
            save_codec(codec, FOLDER / f"{name}.saecodec", embed_sae=True, force=True)
        facts = {"decoder_id": codec.decoder_id, "codec_id": codec.codec_id, "sae_id": sae.sae_id}
        content = {"case": vars(case), **facts, **described(layers.codes)}
        if layers.residual is not None:
            content["residual"] = described_residual(layers.residual)
            content["first_rows_of_base"] = codec.reconstruct(codes)[:2].tolist()
        content["first_rows_of_x_hat"] = codec.reconstruct(codes, layers.residual)[:2].tolist()
        save_json(name, content)
    for name, latents in LATENT_FILES.items():
        path = FOLDER / f"{name}.saec"
        latents.encode(path)
        with open_saec(path) as file:
            codes = Codes.concatenate(file.codes(), LATENTS)
            values = {"kind": file.header.values.kind, "base": file.header.values.base} if file.header.values else None
            content = {"case": vars(latents), "codec_id": file.header.codec_id, "values": values, **described(codes)}
            content["float32_sha256"] = latents_digest(file)
        save_json(name, content)
    for name, zarr_chunk in ZARR.items():
        codec = load_codec(FOLDER / f"{zarr_chunk.codec}.saecodec")
        rows = zarr_chunk.rows(codec)
        (part,) = rows.parts
        (FOLDER / f"{name}.rows").write_bytes(rows.to_bytes(codec))
        content = {"case": vars(zarr_chunk), "codec_id": codec.codec_id, **described(part.codes)}
        content["residual"] = described_residual(part.residual)
        content["first_rows_of_x_hat"] = codec.reconstruct(part.codes, part.residual)[:2].tolist()
        save_json(name, content)
    for name, chunk in CHUNKS.items():
        codes = chunk.codes()
        (FOLDER / f"{name}.frames").write_bytes(chunk.encode(chunk.latents(codes), codes))
        save_json(name, {"case": vars(chunk), **described(codes)})


def latents_digest(file: SaecFile) -> str:
    """sha256 of the values of a file of latents, as float32."""
    return digest(np.concatenate([rows.values for rows in latent_rows(file, dtype="float32")]), "<f4")


def save_json(name: str, content: dict[str, Any]) -> None:
    """Write `name`.json."""
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
