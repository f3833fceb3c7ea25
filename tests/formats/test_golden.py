"""Golden files decode to the same levels for ever, and the same codes give the same bytes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zstandard

from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.decoder_precision import PRECISIONS
from saecodec.filled_rows import FilledRows
from saecodec.formats.codecfile import load_codec, save_codec
from saecodec.formats.decoding import verify_file
from saecodec.formats.frame_file import TRAILER
from saecodec.formats.header import EMBED
from saecodec.formats.index import Index
from saecodec.formats.latent_values import latent_rows
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.frames import frame, frames, unpack_record
from saecodec.integer_weights import read_integers
from saecodec.latents import LatentCodec
from saecodec.layers import Layers
from saecodec.normalization import KINDS
from saecodec.priors.context import ContextPrior
from saecodec.version import FEATURES
from saecodec.wire import ByteReader

FRAME_KINDS = ("HEAD", "TABL", "SIDE", "RTAB", "SAEW", "CHNK", "RCHK", "INDX", "TAIL")
GOLDEN = Path(__file__).parents[1] / "golden"
SIDE = ["all", "heads", "layer_norm", "row_norm"]  # their codes are made by formula, not from rows
WEIGHTS = ["weights_bfloat16", "weights_int8"]
INTEGER = ["all", "weights_int8"]
FILES = ["appended", "context", "decoder", "empty", "none", "residual", "residual_none", "tables", *SIDE, *WEIGHTS]
LATENTS = ["latents_bfloat16", "latents_exact", "latents_step"]
RESIDUAL = ["all", "residual", "residual_none", "row_norm"]
CODECS = ["none", "residual_none"]
CHUNKS = ["columns", "context_signed", "signed"]
ZARR = ["filled"]
CONTEXT = ["context", "context_signed"]
COMPRESSED = ["all", "decoder", "layer_norm", *WEIGHTS, *CONTEXT]  # zstd frames are in their bytes


@pytest.fixture(scope="module")
def make() -> ModuleType:
    """The script that made the files; it writes only when it is asked to."""
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def expected(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return content


def opened(name: str, make: ModuleType) -> SaecFile:
    """With all that it needs: the codec file where there is one, else the SAE of the formula."""
    path = GOLDEN / f"{name}.saecodec"
    codec = load_codec(path) if path.exists() else None
    sae = None if codec or expected(name)["case"]["embed"] == "decoder" else make.FILES[name].sae()
    return open_saec(GOLDEN / f"{name}.saec", sae=sae, codec=codec)


def all_codes(file: SaecFile) -> Codes:
    return Codes.concatenate(file.codes(), file.codec.latents.prior.n_latents)


def all_layers(file: SaecFile) -> Layers:
    residual = [layers.residual for layers in file.layers() if layers.residual is not None]
    return Layers(all_codes(file), np.concatenate(residual) if residual else None)


def comparable(data: bytes, magic_bytes: int = 8) -> list[Any]:
    """The frames of a file, what zstd packed unpacked, and offsets as if the frames with it were empty."""
    out, shift, has_integers = [], 0, False
    for head, payload in frames(data[magic_bytes:], "golden"):
        content: Any = bytes(payload)
        if head.kind == "HEAD":
            has_integers = "weights:int8" in unpack_record(payload, "golden")["requires"]
        elif head.kind == "SAEW":
            reader = ByteReader(payload, "golden")
            record = bytes(reader.blob())
            n_latents, width = unpack_record(record, "golden")["shapes"]["w_dec"]
            packed = reader.blob() if has_integers else reader.take(reader.left)
            integers = read_integers(reader, n_latents, width).tolist() if has_integers else None
            content = (record, zstandard.ZstdDecompressor().decompress(bytes(packed)), integers)
            shift += len(payload)
        elif head.kind == "TABL":
            reader = ByteReader(payload, "golden")
            prior, quantizer = LatentCodec.read(reader).prior, bytes(reader.take(reader.left))
            if isinstance(prior, ContextPrior):
                informative = {"cost": prior.cost, "cost_bin": prior.cost_bin}
                content = ({name: a.tolist() for name, a in (prior.content() | informative).items()}, quantizer)
                shift += len(payload)
        elif head.kind == "INDX":
            index = Index.from_bytes(payload, len(data), "golden")
            content = (index.leading, index.rows.tolist(), (index.offsets - shift).tolist(), index.lengths.tolist())
        elif head.kind == "TAIL":
            content = TRAILER.unpack(payload)[0] - shift
        out.append((head.kind, head.critical, content))
    return out


def test_every_golden_file_is_there_and_tested() -> None:
    names = {path.name for path in GOLDEN.iterdir() if path.is_file()}
    data = {f"{name}.saec" for name in FILES + LATENTS} | {f"{name}.frames" for name in CHUNKS}
    data |= {f"{name}.saecodec" for name in CODECS} | {f"{name}.rows" for name in ZARR}
    assert names == data | {f"{name}.json" for name in FILES + LATENTS + CHUNKS + ZARR} | {
        "README.md",
        "make_golden.py",
    }
    assert sum(path.stat().st_size for path in GOLDEN.iterdir() if path.is_file()) < 200_000


@pytest.mark.parametrize("name", FILES)
def test_a_golden_file_decodes_to_its_levels(name: str, make: ModuleType) -> None:
    wanted = expected(name)
    with opened(name, make) as file:
        assert make.described(all_codes(file)) == {key: wanted[key] for key in ("levels", "columns")}
        assert (file.header.decoder_id, file.header.codec_id) == (wanted["decoder_id"], wanted["codec_id"])
        header = {key: getattr(file.header, key) for key in ("dtype", "chunk_rows", "embed", "user", "step")}
        shape = [*file.index.leading, file.header.width]
        assert {**header, "shape": shape}.items() <= wanted["case"].items()
        prior = "context" if name in (*CONTEXT, "all") else "factorized"
        assert (file.header.made_by, file.header.prior) == ("saecodec golden", prior)
        assert file.header.weights == wanted["case"].get("weights", "int8" if name in INTEGER else "float32")
        verify_file(file)


@pytest.mark.parametrize("name", FILES)
def test_a_golden_file_decodes_to_its_rows(name: str, make: ModuleType) -> None:
    rows = np.array(expected(name)["first_rows_of_x_hat"], np.float64).reshape(-1, make.WIDTH)
    with opened(name, make) as file:
        found = file.rows(0, len(rows))
    assert (np.linalg.norm(found - rows, axis=1) <= 1e-5 * np.linalg.norm(rows, axis=1)).all()


@pytest.mark.parametrize("name", RESIDUAL)
def test_a_golden_file_decodes_to_its_residual_levels_and_its_base_layer(name: str, make: ModuleType) -> None:
    wanted = expected(name)
    base = np.array(wanted["first_rows_of_base"], np.float64)
    with opened(name, make) as file:
        layers = all_layers(file)
        assert make.described_residual(layers.residual) == wanted["residual"]
        np.testing.assert_array_equal(layers.residual, make.FILES[name].layers(layers.codes).residual)
        assert file.codec.residual.to_bytes() == make.FILES[name].layer().to_bytes()
        found = file.rows(0, len(base), base_only=True)
    assert (np.linalg.norm(found - base, axis=1) <= 1e-5 * np.linalg.norm(base, axis=1)).all()


@pytest.mark.parametrize("name", FILES)
def test_golden_files_name_the_features_that_they_have_and_the_version_of_these(name: str) -> None:
    prior = "prior:context" if name in (*CONTEXT, "all") else "prior:factorized"
    extra = {"layer:residual": RESIDUAL, "side:rows": SIDE, "weights:int8": INTEGER}
    requires = [prior, *(feature for feature, names in extra.items() if name in names)]
    version = [1, max(FEATURES[feature] for feature in requires)]
    paths = [GOLDEN / f"{name}.saec", *([GOLDEN / f"{name}.saecodec"] if name in CODECS else [])]
    for path in paths:
        (_, payload), *_ = frames(path.read_bytes()[8:], "golden")
        head = unpack_record(payload, "golden")
        assert (head["version"], head["requires"]) == (version, requires)


@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_have_the_same_levels(name: str, make: ModuleType) -> None:
    wanted, case = expected(name), make.FILES[name]
    sae = case.sae()
    assert (sae.sae_id, sae.decoder_id) == (wanted["sae_id"], wanted["decoder_id"])
    with opened(name, make) as file:
        codes = case.codes(file.codec.with_sae(sae))
    assert make.described(codes)["levels"] == wanted["levels"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_golden_files_decoder_is_the_rounded_one_bit_by_bit(name: str, make: ModuleType) -> None:
    sae = make.FILES[name].sae()
    with opened(name, make) as file:
        found = file.decoder.sae
    assert found.w_dec.numpy().tobytes() == sae.w_dec.numpy().tobytes()
    assert found.b_dec.numpy().tobytes() == sae.b_dec.numpy().tobytes()
    assert (found.w_dec != make.FILES[name].exact_sae().w_dec).float().mean() > 0.5
    assert (found.w_dec[make.LATENTS // 2] == 0).all()


@pytest.mark.parametrize("name", SIDE)
def test_golden_side_information_is_that_of_the_formulas(name: str, make: ModuleType) -> None:
    """a 2^((s - 1) / p), or a 2^(s / p) for s < 0, and o + m e."""
    case = make.FILES[name]
    with opened(name, make) as file:
        columns, quantizer = all_codes(file).columns, file.codec.side
    assert quantizer == case.codec(case.sae()).side
    found, s = quantizer.side(columns), columns["side.scale"].astype(np.float64)
    scale = np.where(
        s > 0, case.centre * 2.0 ** ((s - 1) / case.resolution), case.centre * 2.0 ** (s / case.resolution)
    )
    np.testing.assert_allclose(found.scale, np.where(s == 0, 0, scale), rtol=1e-6)
    assert (found.mean is None) == (case.kind != "layer_norm")
    if found.mean is not None:
        np.testing.assert_array_equal(found.mean, case.mean_centre + columns["side.mean"] * case.mean_step)
    assert (s < 0).any()
    assert (s == 0).mean() >= 0.1


@pytest.mark.parametrize("name", FILES)
def test_the_same_codes_give_the_same_bytes(name: str, make: ModuleType) -> None:
    golden = (GOLDEN / f"{name}.saec").read_bytes()
    with opened(name, make) as file:
        codec, layers = file.codec.with_sae(make.FILES[name].sae()), all_layers(file)
    written = make.FILES[name].encode(codec, layers)
    assert comparable(written) == comparable(golden)
    if name not in COMPRESSED:
        assert written == golden


@pytest.mark.parametrize("name", LATENTS)
def test_a_golden_file_of_latents_decodes_to_its_values_and_its_codes_give_the_same_bytes(
    name: str, make: ModuleType
) -> None:
    golden, wanted, case = (GOLDEN / f"{name}.saec").read_bytes(), expected(name), make.LATENT_FILES[name]
    (_, payload), *_ = frames(golden[8:], "golden")
    head = unpack_record(payload, "golden")
    assert (head["version"], head["requires"]) == ([1, 4], ["prior:factorized", "content:latents"])
    with open_saec(GOLDEN / f"{name}.saec") as file:
        codes, source = all_codes(file), case.rows()
        assert make.described(codes) == {key: wanted[key] for key in ("levels", "columns")}
        assert make.latents_digest(file) == wanted["float32_sha256"]
        assert vars(file.header.values) == wanted["values"]
        assert (file.header.codec_id, list(file.shape)) == (wanted["codec_id"], wanted["case"]["shape"])
        if name != "latents_step":
            found = list(latent_rows(file))
            np.testing.assert_array_equal(np.concatenate([rows.latents for rows in found]), source.latents)
            values = np.concatenate([rows.values for rows in found])
            assert (values.dtype, values.tobytes()) == (source.values.dtype, source.values.tobytes())
        verify_file(file)
        assert case.again(file, codes) == golden


@pytest.mark.parametrize("name", CODECS)
def test_the_same_codec_gives_the_same_codec_file(name: str, make: ModuleType, tmp_path: Path) -> None:
    golden, wanted = GOLDEN / f"{name}.saecodec", expected(name)
    codec, sae = load_codec(golden), make.FILES[name].sae()
    assert codec.codec_id == wanted["codec_id"]
    assert codec.sae is not None
    assert codec.sae.sae_id == wanted["sae_id"]
    again = Codec(codec.quantizer, codec.latents, codec.decoder_id, sae, codec.info, make.FILES[name].layer())
    save_codec(again, tmp_path / "again.saecodec", embed_sae=True)
    assert comparable((tmp_path / "again.saecodec").read_bytes()) == comparable(golden.read_bytes())


@pytest.mark.parametrize("name", ZARR)
def test_a_golden_chunk_of_a_zarr_array_decodes_to_its_levels_and_back_to_its_bytes(
    name: str, make: ModuleType
) -> None:
    golden, wanted, case = (GOLDEN / f"{name}.rows").read_bytes(), expected(name), make.ZARR[name]
    codec = load_codec(GOLDEN / f"{case.codec}.saecodec")
    assert codec.codec_id == wanted["codec_id"]
    rows = FilledRows.read(codec, golden, case.shape[0] * case.shape[1])
    assert np.flatnonzero(np.diff(rows.coded)).tolist() == [6, 18, 19, 39]
    (part,) = rows.parts
    assert make.described(part.codes) == {key: wanted[key] for key in ("levels", "columns")}
    assert make.described_residual(part.residual) == wanted["residual"]
    values = rows.values(codec, case.shape, "float32", -1.0).reshape(-1, make.WIDTH)
    np.testing.assert_allclose(values[[7, 8]], wanted["first_rows_of_x_hat"], rtol=1e-5, atol=1e-5)
    assert (values[~rows.coded] == -1).all()
    assert rows.to_bytes(codec) == case.rows(codec).to_bytes(codec) == golden


def test_every_feature_of_the_format_is_in_a_golden_file(make: ModuleType) -> None:
    """A feature, a way to embed, a precision, a kind of side information or a frame that is new needs a file here."""
    features, embeds, weights, frame_kinds, kinds = set(), set(), set(), set(), {"none"}
    generations, shaped = 0, 0
    for name in FILES + LATENTS:
        data = (GOLDEN / f"{name}.saec").read_bytes()
        found = [head.kind for head, _ in frames(data[8:], name)]
        frame_kinds |= set(found)
        generations = max(generations, found.count("TAIL"))
        with opened(name, make) if name in FILES else open_saec(GOLDEN / f"{name}.saec") as file:
            features |= set(file.header.requires)
            embeds.add(file.header.embed)
            weights.add(file.header.weights)
            shaped += bool(file.header.row_shape)
            if file.codec.side is not None:
                kinds.add(file.codec.side.kind)
    assert features == set(FEATURES)
    assert embeds == set(EMBED)
    assert weights == set(PRECISIONS)
    assert kinds == set(KINDS)
    assert frame_kinds == set(FRAME_KINDS)
    assert generations > 2
    assert shaped


@pytest.mark.parametrize("name", CHUNKS)
def test_a_golden_chunk_decodes_to_its_levels_and_back_to_its_bytes(name: str, make: ModuleType) -> None:
    golden, wanted = (GOLDEN / f"{name}.frames").read_bytes(), expected(name)
    (_, tables), (_, chunk) = frames(golden, "golden")
    reader = ByteReader(tables, "golden")
    latents = LatentCodec.read(reader)
    reader.end()
    codes = latents.unpack(chunk)
    assert latents.prior.signed == wanted["case"]["signed"] == (codes.levels.min() < 0)
    assert make.described(codes) == {key: wanted[key] for key in ("levels", "columns")}
    for again in (make.CHUNKS[name].codes(), codes):
        written = make.CHUNKS[name].encode(latents, again)
        assert comparable(written, 0) == comparable(golden, 0)
        if name not in COMPRESSED:
            assert written == golden


@pytest.mark.parametrize("name", CONTEXT)
def test_golden_context_priors_are_those_of_the_formulas_and_their_bins_depend_on_all_rows(
    name: str, make: ModuleType
) -> None:
    if name in FILES:
        made = make.FILES[name].codec(make.FILES[name].sae()).latents
        with opened(name, make) as file:
            prior, codes = file.codec.latents.prior, all_codes(file)
    else:
        codes = make.CHUNKS[name].codes()
        made = make.CHUNKS[name].latents(codes)
        (_, tables), _ = frames((GOLDEN / f"{name}.frames").read_bytes(), "golden")
        prior = LatentCodec.from_bytes(tables).prior
    assert isinstance(prior, ContextPrior)
    assert comparable(frame("TABL", made.to_bytes()), 0) == comparable(frame("TABL", LatentCodec(prior).to_bytes()), 0)
    with_neighbours, alone = prior.binned(codes), prior.binned(codes, neighbours=False)
    found = np.bincount(with_neighbours.bins, minlength=prior.network.n_bins)
    assert found[0] > 0
    assert found[-1] > 0
    assert np.count_nonzero(found) > 0.75 * len(found)
    assert (np.bincount(with_neighbours.level_bins, minlength=prior.network.n_level_bins) > 0).all()
    assert 0.2 < (with_neighbours.bins != alone.bins).mean() < 0.8
    assert (with_neighbours.level_bins != alone.level_bins).mean() > 0.2
    assert np.abs(codes.levels).max() > 16


def test_golden_codes_are_not_trivial(make: ModuleType) -> None:
    for name in (*(name for name in FILES if name != "empty"), *LATENTS, *CHUNKS):
        levels = expected(name)["levels"]
        density = levels["nonzeros"] / np.prod(levels["shape"])
        assert 0.02 < density < 0.3, name
