"""`.saec` and codec files of SAEs that normalize rows: coded, decoded, measured, damaged, refused by old readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from saecodec import version
from saecodec.codec import Codec
from saecodec.codes import Codes
from saecodec.errors import FormatError, InputError, SaecodecError, UnsupportedError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.codecfile import load_codec, save_codec
from saecodec.formats.decoding import verify_file
from saecodec.formats.encoding import encode_array, fit_array
from saecodec.formats.file_sizes import bytes_by_part
from saecodec.formats.measuring import measure_array
from saecodec.formats.saec import open_saec
from saecodec.frames import frames, unpack_record
from saecodec.goal import Goal
from saecodec.nonlinearity import TopK
from saecodec.normalization import KINDS, sequence_scales
from saecodec.sae import SAE, Encoder
from saecodec.search import MODES, Mode
from saecodec.side import SCALE, side_columns

Rows = npt.NDArray[np.float32]
Frame = tuple[str, bool, bytes]
Rebuild = Callable[..., bytes]
LENGTHS = (7, 70, 1, 30, 12)  # of sequences
IDS = np.repeat([4, 9, 4, 0, 9], LENGTHS)


@pytest.fixture(scope="module")
def x() -> Rows:
    """(30, 20, 8): a row has the mean and the size of its own, a sequence a size of its own; two are zero, or equal."""
    rng = np.random.default_rng(0)
    size = rng.gamma(30, size=(30, 1, 1)) * rng.gamma(30, size=(30, 20, 1)) / 300
    rows = (size * (rng.normal(size=(30, 20, 8)) + 0.5 * rng.normal(size=(30, 20, 1)))).astype(np.float32)
    rows[3, 4], rows[5, 6] = 0, 0.1
    return rows


@pytest.fixture(scope="module", params=KINDS[1:])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def orthogonal_sae(kind: str) -> SAE:
    """The basis of the rows' space and its negatives, 3 of these 16 latents active in a row."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    w_dec = torch.cat([basis, -basis])
    encoder = Encoder(w_dec.T.contiguous(), torch.zeros(16), TopK(3), True)
    return SAE(w_dec, torch.full((8,), 0.1), encoder, "topk", f"orthogonal-{kind}", normalization=kind)


@pytest.fixture(scope="module")
def sae(kind: str) -> SAE:
    return orthogonal_sae(kind)


@pytest.fixture(scope="module")
def codec(sae: SAE, x: Rows) -> Codec:
    """Fitted on `x`, with its SAE."""
    return Codec.fit(sae, x)


@pytest.fixture
def path(sae: SAE, x: Rows, tmp_path: Path) -> Path:
    """Of `x`, with its tables, in chunks of 250 rows."""
    encode_array(MemoryArray(x), tmp_path / "x.saec", sae=sae, embed="tables", chunk_rows=250)
    return tmp_path / "x.saec"


def nmse(x: Rows, x_hat: Rows) -> float:
    flat, found = x.reshape(-1, x.shape[-1]).astype(np.float64), x_hat.reshape(-1, x.shape[-1])
    return float(np.square(flat - found).sum() / np.square(flat - flat.mean(0)).sum())


def exact_nmse(sae: SAE, x: Rows) -> float:
    """Of the SAE, nothing quantized."""
    return nmse(x, sae.reconstruct(torch.from_numpy(x)).numpy())


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("search", MODES)
def test_rows_are_coded_and_decoded(sae: SAE, x: Rows, search: Mode, residual: bool, tmp_path: Path) -> None:
    """In memory, and in a file by the same codec: the same rows, nearly as near to the input as the SAE's own."""
    codec = Codec.fit(sae, x, "0.25rms", search=search, residual=residual)
    data = codec.encode(x, search=search, chunk_rows=250)
    x_hat = codec.decode(data)
    assert nmse(x, x_hat) < (0.05 if residual else 1.1 * exact_nmse(sae, x) + 0.01)
    target = tmp_path / "x.saec"
    encode_array(MemoryArray(x), target, codec=codec, goal=Goal.of(search=search), embed="tables", chunk_rows=250)
    with open_saec(target, sae=sae) as file:
        np.testing.assert_array_equal(file.rows(), x_hat)
        np.testing.assert_allclose(file.rows(290, 310), x_hat[290:310], rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(file.rows(base_only=True), codec.decode(data, base_only=True))
        verify_file(file)
        parts = bytes_by_part(file)
        assert sum(parts.values()) == target.stat().st_size
        columns = [codes.columns for codes in file.codes()]
        assert all(set(side_columns(sae.normalization)) <= found.keys() for found in columns)
        assert parts["side"] > 0
        assert (parts["residual"] > 0) == residual


@pytest.mark.parametrize("search, residual", [("none", False), ("refit", False), ("pursuit", False), ("refit", True)])
def test_a_target_of_nmse_is_met_in_the_rows_own_space(
    sae: SAE, x: Rows, search: Mode, residual: bool, tmp_path: Path
) -> None:
    wanted = 0.02 if residual else (0.9 if search == "pursuit" else 1.1) * exact_nmse(sae, x)
    goal = Goal.of(nmse=wanted, search=search, residual=residual)
    encode_array(MemoryArray(x), tmp_path / "x.saec", sae=sae, goal=goal, chunk_rows=250)
    with open_saec(tmp_path / "x.saec", sae=sae) as file:
        # Two steps and a search on so few rows leave gaps between the errors that can be had.
        assert (0.95 if residual else 0.99) * wanted <= nmse(x, file.rows()) <= 1.01 * wanted


@pytest.mark.parametrize("search", ["none", "pursuit"])
def test_a_fitted_codec_meets_a_target_of_nmse_too(sae: SAE, x: Rows, search: Mode) -> None:
    wanted = exact_nmse(sae, x) * 1.1
    codec = Codec.fit(sae, x, nmse=wanted, search=search)
    assert nmse(x, codec.decode(codec.encode(x, search=search))) == pytest.approx(wanted, rel=0.01)


def test_a_target_is_met_with_a_codec_file_too(sae: SAE, x: Rows, tmp_path: Path) -> None:
    save_codec(fit_array(MemoryArray(x), sae, Goal.of("0.3rms", search="pursuit")), tmp_path / "c.saecodec")
    codec, half = load_codec(tmp_path / "c.saecodec"), x[:15]
    assert codec.side is not None
    wanted = 1.2 * nmse(half, codec.with_sae(sae).decode(codec.with_sae(sae).encode(half, search="pursuit")))
    goal = Goal.of(nmse=wanted, search="pursuit")
    encode_array(MemoryArray(half), tmp_path / "x.saec", sae=sae, codec=codec, goal=goal)
    with open_saec(tmp_path / "x.saec", sae=sae, codec=codec) as file:
        assert nmse(half, file.rows()) == pytest.approx(wanted, rel=0.01)


def test_measured_figures_are_those_of_the_file(sae: SAE, x: Rows, path: Path) -> None:
    report = measure_array(MemoryArray(x), sae=sae, chunk_rows=250)
    with open_saec(path, sae=sae) as file:
        assert report["nmse"] == pytest.approx(nmse(x, file.rows()), rel=1e-5)
        assert report["file_bytes"] == file.size
    assert report["sae_alone"]["nmse"] == pytest.approx(exact_nmse(sae, x), rel=1e-4)
    assert sum(report["bits"].values()) == pytest.approx(8 * report["file_bytes"] / 600)
    assert report["bits"]["side"] > 0


@pytest.mark.parametrize("embed", ["none", "tables", "decoder"])
@pytest.mark.parametrize("embed_sae", [False, True])
def test_files_decode_whatever_they_embed(
    sae: SAE, codec: Codec, x: Rows, embed: str, embed_sae: bool, tmp_path: Path
) -> None:
    save_codec(codec, tmp_path / "c.saecodec", embed_sae=embed_sae)
    loaded = load_codec(tmp_path / "c.saecodec")
    assert loaded.side == codec.side
    assert loaded.codec_id == codec.codec_id
    loaded = loaded if embed_sae else loaded.with_sae(sae)
    encode_array(MemoryArray(x), tmp_path / "x.saec", codec=loaded, embed=embed)
    needed: dict[str, Any] = {"none": {"codec": loaded}, "tables": {"sae": sae}, "decoder": {}}[embed]
    with open_saec(tmp_path / "x.saec", **needed) as file:
        np.testing.assert_allclose(file.rows(), codec.decode(codec.encode(x)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(file.rows(17, 21), file.rows()[17:21], rtol=1e-5, atol=1e-4)


def test_a_row_of_zeros_and_one_of_equal_values_stay_such(codec: Codec, x: Rows) -> None:
    x_hat = codec.decode(codec.encode(x)).reshape(x.shape)
    if codec.side is not None and codec.side.kind == "layer_norm":
        assert len(np.unique(x_hat[3, 4])) == len(np.unique(x_hat[5, 6])) == 1
        assert np.abs(x_hat[3, 4]).max() <= codec.side.mean_step
    elif codec.side is not None and codec.side.kind == "row_norm":
        assert not x_hat[3, 4].any()
    assert np.isfinite(x_hat).all()


@pytest.mark.parametrize("n_rows", [0, 1])
def test_few_rows_are_coded(sae: SAE, codec: Codec, x: Rows, n_rows: int, tmp_path: Path) -> None:
    rows = x[:1, :n_rows]
    assert codec.decode(codec.encode(rows)).shape == (n_rows, 8)
    encode_array(MemoryArray(rows), tmp_path / "x.saec", sae=sae)
    with open_saec(tmp_path / "x.saec", sae=sae) as file:
        assert np.isfinite(file.rows()).all()
        verify_file(file)


# -- sequences ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_sequences() -> SAE:
    return orthogonal_sae("sequence_norm")


def scales_in(codec: Codec, chunks: Iterable[Codes]) -> Rows:
    assert codec.side is not None
    return np.concatenate([codec.side.side(codes.columns).scale for codes in chunks])


def test_sequences_come_from_ids_and_keep_their_norm_when_chunks_split_them(
    of_sequences: SAE, x: Rows, tmp_path: Path
) -> None:
    """The longest has 70 rows, in chunks of 16; an id that comes back is another sequence."""
    flat = x.reshape(-1, 8)[: len(IDS)]
    expected = sequence_scales(np.linalg.norm(flat, axis=1), IDS, 8)
    codec = Codec.fit(of_sequences, flat, seq=IDS, chunk_rows=16)
    found = scales_in(codec, codec.codes(codec.encode(flat, seq=IDS, chunk_rows=16)))
    assert codec.side is not None
    np.testing.assert_allclose(found, expected, rtol=0.75 / codec.side.resolution)
    np.testing.assert_array_equal([len(np.unique(part)) for part in np.split(found, np.cumsum(LENGTHS)[:-1])], 1)
    encode_array(MemoryArray(flat), tmp_path / "x.saec", codec=codec, seq=IDS, chunk_rows=16)
    with open_saec(tmp_path / "x.saec", codec=codec) as file:
        assert len(file.index.rows) >= 8
        np.testing.assert_array_equal(scales_in(codec, file.codes()), found)
        np.testing.assert_array_equal(np.concatenate([codes.columns["seq"] for codes in file.codes()]), IDS)
    report = measure_array(MemoryArray(flat), codec=codec, seq=IDS, chunk_rows=16)
    assert report["bits"]["side"] > 0


def test_sequences_come_from_the_shape_of_an_array_with_positions(of_sequences: SAE, x: Rows, tmp_path: Path) -> None:
    expected = sequence_scales(np.linalg.norm(x.reshape(-1, 8), axis=1), np.arange(600) // 20, 8)
    codec = Codec.fit(of_sequences, x)
    assert codec.side is not None
    quantized = scales_in(codec, [codec.quantize(x)])
    np.testing.assert_allclose(quantized, expected, rtol=0.75 / codec.side.resolution)
    np.testing.assert_array_equal(scales_in(codec, codec.codes(codec.encode(x, chunk_rows=50))), quantized)
    encode_array(MemoryArray(x), tmp_path / "x.saec", codec=codec, chunk_rows=50)
    with open_saec(tmp_path / "x.saec", codec=codec) as file:
        np.testing.assert_array_equal(scales_in(codec, file.codes()), quantized)


def test_without_sequences_their_norm_is_refused_with_the_way_out(of_sequences: SAE, x: Rows, tmp_path: Path) -> None:
    flat = MemoryArray(x.reshape(-1, 8))
    codec = Codec.fit(of_sequences, x)
    for use in (
        lambda: Codec.fit(of_sequences, x.reshape(-1, 8)),
        lambda: codec.encode(x.reshape(-1, 8)),
        lambda: codec.quantize(x.reshape(-1, 8)),
        lambda: fit_array(flat, of_sequences),
        lambda: encode_array(flat, tmp_path / "x.saec", sae=of_sequences),
        lambda: encode_array(flat, tmp_path / "x.saec", codec=codec),
        lambda: measure_array(flat, codec=codec),
    ):
        with pytest.raises(InputError, match=r"mean norm of their sequence.*--seq IDS\.npy"):
            use()
    assert not (tmp_path / "x.saec").exists()


@pytest.mark.parametrize("search", ["none", "pursuit"])
def test_the_context_prior_codes_rows_with_side_information(sae: SAE, x: Rows, search: Mode, tmp_path: Path) -> None:
    goal = Goal.of("0.4rms", search=search, prior="context", fit_seconds=1)
    encode_array(MemoryArray(x), tmp_path / "x.saec", sae=sae, goal=goal, chunk_rows=250)
    with open_saec(tmp_path / "x.saec", sae=sae) as file:
        assert (file.header.prior, file.codec.requires) == ("context", ["prior:context", "side:rows"])
        assert nmse(x, file.rows()) < 1.2 * exact_nmse(sae, x) + 0.02
        names = {"seq", *side_columns(sae.normalization)}
        assert all(codes.columns.keys() == names for codes in file.codes())
        assert bytes_by_part(file)["side"] > 0
        verify_file(file)


# -- readers -----------------------------------------------------------------------------------------------------------


def test_files_name_side_information_and_the_version_of_it(path: Path, codec: Codec, tmp_path: Path) -> None:
    save_codec(codec, tmp_path / "c.saecodec")
    for part in (path, tmp_path / "c.saecodec"):
        (_, payload), *_ = frames(part.read_bytes()[8:], "test")
        head = unpack_record(payload, "test")
        assert (head["version"], head["requires"]) == ([1, 3], ["prior:factorized", "side:rows"])


def test_a_reader_of_an_older_version_refuses_them_by_name(
    path: Path, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_codec(codec, tmp_path / "c.saecodec")
    monkeypatch.delitem(version.FEATURES, "side:rows")
    with pytest.raises(UnsupportedError, match="needs side:rows"):
        open_saec(path)
    with pytest.raises(UnsupportedError, match="needs side:rows"):
        load_codec(tmp_path / "c.saecodec")


def test_an_sae_of_another_normalization_is_another_one(path: Path, sae: SAE) -> None:
    for kind in set(KINDS) - {sae.normalization}:
        with (
            open_saec(path, sae=replace(sae, normalization=kind)) as file,
            pytest.raises(SaecodecError, match="decoder id"),
        ):
            file.rows()


def test_a_codec_of_other_side_information_than_its_sae_normalizes_is_refused(codec: Codec, sae: SAE) -> None:
    assert codec.side is not None
    other = {"layer_norm": "row_norm", "row_norm": "sequence_norm", "sequence_norm": "row_norm"}[sae.normalization]
    for side in (None, replace(codec.side, kind=other)):
        with pytest.raises(FormatError, match="the SAE normalizes"):
            replace(codec, side=side).with_sae(sae)


def test_a_file_without_its_side_information_is_refused(path: Path, rebuild: Rebuild) -> None:
    path.write_bytes(rebuild(path, lambda parts: [part for part in parts if part[0] != "SIDE"]))
    with pytest.raises(FormatError, match=r"embed 'tables', but frames \['TABL'\]"):
        open_saec(path)


def test_chunks_without_columns_of_side_information_are_refused(
    path: Path, codec: Codec, sae: SAE, x: Rows, rebuild: Rebuild
) -> None:
    with open_saec(path, sae=sae) as file:
        packed = [file.codec.latents.pack(replace(codes, columns={})) for codes in file.codes()]
    chunks = iter(packed)
    path.write_bytes(rebuild(path, lambda parts: [(k, c, next(chunks) if k == "CHNK" else p) for k, c, p in parts]))
    for given in (sae, None):  # without an SAE, levels are verified
        with open_saec(path, sae=given) as file:
            for use in (lambda: list(file.codes()), lambda: verify_file(file)):
                with pytest.raises(FormatError, match=rf"x\.saec, chunk 0 .*: .*column '{SCALE}' is missing"):
                    use()


def test_damaged_side_information_with_a_valid_checksum_raises_nothing_else(
    path: Path, sae: SAE, rebuild: Rebuild
) -> None:
    """Its identity is in the header: nothing that is changed decodes."""
    with open_saec(path) as file:
        assert file.codec.side is not None
        payload = file.codec.side.to_bytes()
    rng = np.random.default_rng(0)
    damaged = [
        payload[:at] + bytes([payload[at] ^ 1 << bit]) + payload[at + 1 :]
        for at in range(len(payload))
        for bit in range(8)
    ]
    damaged += [payload[:end] for end in range(len(payload))] + [rng.bytes(len(payload)) for _ in range(50)]
    whole = path.read_bytes()
    for bad in damaged:
        path.write_bytes(whole)
        path.write_bytes(rebuild(path, lambda parts, bad=bad: [(k, c, bad if k == "SIDE" else p) for k, c, p in parts]))  # type: ignore[misc]
        with pytest.raises(SaecodecError), open_saec(path, sae=sae) as file:
            file.rows()


def test_damaged_side_information_of_a_codec_raises_nothing_else(codec: Codec, x: Rows) -> None:
    """Without an identity that would tell: what is read decodes to rows, or is refused."""
    assert codec.side is not None
    payload, data = codec.side.to_bytes(), codec.encode(x[:2])
    read = 0
    for at in range(len(payload)):
        for bit in range(8):
            bad = payload[:at] + bytes([payload[at] ^ 1 << bit]) + payload[at + 1 :]
            try:
                side = type(codec.side).from_bytes(bad, "x")
                rows = replace(codec, side=side).decode(data)
            except SaecodecError:
                continue
            read += 1
            assert rows.shape == (40, 8)
    assert read > 0
