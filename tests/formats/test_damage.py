"""A damaged chunk costs its own rows, which are named, and no others."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from damaged_files import WIDTH, N, break_chunk, extents, flip, lost_mask, write
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import saecodec
from saecodec.codec import Codec
from saecodec.errors import FormatError, InputError, OutputError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.arrays import open_array
from saecodec.formats.damage import Losses
from saecodec.formats.decoding import decode_file
from saecodec.formats.decoding_latents import decode_latents
from saecodec.formats.encoding import fit_array
from saecodec.formats.latent_source import open_latents
from saecodec.formats.saec import open_saec
from saecodec.goal import Goal
from saecodec.sae import SAE, Encoder

Array = NDArray[Any]


@pytest.fixture(scope="module")
def rows() -> Array:
    return np.random.default_rng(1).normal(size=(N, WIDTH)).astype(np.float32)


def normalizing(sae: SAE) -> SAE:
    """The SAE with layer norm, so that its rows have side information."""
    encoder = sae.encoder
    assert encoder is not None
    return SAE(
        sae.w_dec, sae.b_dec, Encoder(encoder.w_enc, encoder.b_enc, encoder.nonlinearity, False), "topk", "ln",
        normalization="layer_norm",
    )  # fmt: skip


@pytest.fixture(scope="module", params=["plain", "residual", "side"])
def any_codec(request: pytest.FixtureRequest, make_sae: Callable[..., SAE], rows: Array) -> Codec:
    sae = make_sae("topk")
    if request.param == "side":
        sae = normalizing(sae)
    return fit_array(MemoryArray(rows), sae, Goal.of(residual=request.param == "residual"))


def read(path: Path) -> Array:
    source = open_array(path)
    return np.concatenate([np.zeros((0, source.width), np.float32), *source.batches(9)])


@pytest.fixture(scope="module", params=[False, True], ids=["encoded", "appended"])
def sound(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, any_codec: Codec, rows: Array
) -> tuple[Path, Array]:
    """A file, and all its rows."""
    path = write(tmp_path_factory.mktemp("sound") / "a.saec", rows, any_codec, appended=request.param)
    with open_saec(path) as file:
        return path, file.rows()


@settings(max_examples=20)
@given(data=st.data())
def test_all_rows_but_those_of_damaged_chunks_are_decoded_bit_by_bit(
    sound: tuple[Path, Array], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path, whole = sound
    folder, chunks = tmp_path_factory.mktemp("damaged"), extents(path)
    content = bytearray(path.read_bytes())
    hit = data.draw(st.lists(st.sampled_from(chunks), unique=True, min_size=1))
    for start, end, *_ in hit:
        content[data.draw(st.one_of(st.integers(start, start + 19), st.integers(start, end - 1)))] ^= data.draw(
            st.integers(1, 255)
        )
    damaged = folder / "damaged.saec"
    damaged.write_bytes(content)
    first = data.draw(st.integers(0, N))
    part = data.draw(st.one_of(st.none(), st.just((first, data.draw(st.integers(first, N))))))
    start, stop = part or (0, N)
    lost = lost_mask((a, b) for *_, a, b in hit)[start:stop]
    wanted = whole[start:stop]
    for how in ("nan", "skip"):
        losses, out = Losses(how), folder / f"{how}.npy"
        with open_saec(damaged) as file:
            shape = decode_file(file, out, rows=part, losses=losses)
        np.testing.assert_array_equal(lost_mask((r.start, r.stop) for r in losses.ranges)[start:stop], lost)
        assert losses.n_rows == lost.sum()
        assert all(a.stop < b.start for a, b in zip(losses.ranges, losses.ranges[1:], strict=False))  # merged
        found = read(out)
        if how == "skip":
            np.testing.assert_array_equal(found, wanted[~lost])
        else:
            np.testing.assert_array_equal(found[~lost], wanted[~lost])
            assert np.isnan(found[lost]).all()
        whole_shape = (2, 5, 6, WIDTH) if part is None else (stop - start, WIDTH)
        assert shape == (whole_shape if how == "nan" or not lost.any() else (len(found), WIDTH))
    with open_saec(damaged) as file:
        if lost.any():
            with pytest.raises(FormatError, match=r"damaged\.saec, chunk \d \(rows \d+:\d+\)") as met:
                decode_file(file, folder / "raise.npy", rows=part)
            assert "--on-error" not in str(met.value)  # which a library has not
        else:
            decode_file(file, folder / "raise.npy", rows=part)
            np.testing.assert_array_equal(read(folder / "raise.npy"), wanted)


def test_a_chunk_that_does_not_decode_although_its_checksum_is_right_is_lost(
    any_codec: Codec, rows: Array, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.saec", rows, any_codec)
    with open_saec(path) as file:
        whole = file.rows()
    for i in (1, 2, 5):
        break_chunk(path, i)
    losses = Losses("nan")
    with open_saec(path) as file:
        decode_file(file, tmp_path / "x.npy", losses=losses)
    assert [(start, stop) for start, stop, _ in losses.listed(str(path))] == [(7, 21), (35, 42)]
    reasons = [reason for *_, reason in losses.listed(str(path))]
    assert reasons[0].startswith("chunk 1 (rows 7:14)")
    assert reasons[0].endswith("; and 1 more behind it")
    found, lost = read(tmp_path / "x.npy"), lost_mask([(7, 21), (35, 42)])
    np.testing.assert_array_equal(found[~lost], whole[~lost])


def test_processes_that_meet_damage_go_on(any_codec: Codec, rows: Array, tmp_path: Path) -> None:
    path = write(tmp_path / "a.saec", rows, any_codec, chunk_rows=4)
    for i in (0, 7, 14):
        break_chunk(path, i)
    ranges = []
    for jobs in (1, 2):
        losses = Losses("skip")
        with open_saec(path) as file:
            assert decode_file(file, tmp_path / f"{jobs}.npy", jobs=jobs, losses=losses) == (N - 12, WIDTH)
        ranges.append(losses.listed(str(path)))
    assert ranges[0] == ranges[1]
    assert (tmp_path / "1.npy").read_bytes() == (tmp_path / "2.npy").read_bytes()


def test_without_its_residual_a_file_is_whole_where_only_that_is_damaged(
    make_sae: Callable[..., SAE], rows: Array, tmp_path: Path
) -> None:
    codec = fit_array(MemoryArray(rows), make_sae("topk"), Goal.of(residual=True))
    path = write(tmp_path / "a.saec", rows, codec)
    with open_saec(path) as file:
        base = file.rows(base_only=True)
    flip(path, extents(path)[3][1] - 1)
    for base_only, lost in ((True, []), (False, [(21, 28)])):
        losses = Losses("nan")
        with open_saec(path) as file:
            decode_file(file, tmp_path / "x.npy", base_only=base_only, losses=losses, force=True)
        assert [(r.start, r.stop) for r in losses.ranges] == lost
        if base_only:
            np.testing.assert_array_equal(read(tmp_path / "x.npy"), base)


def test_rows_that_are_all_lost_leave_an_array_without_rows(any_codec: Codec, rows: Array, tmp_path: Path) -> None:
    path = write(tmp_path / "a.saec", rows, any_codec, chunk_rows=N)
    break_chunk(path, 0)
    losses = Losses("skip")
    with open_saec(path) as file:
        assert decode_file(file, tmp_path / "x.npy", losses=losses) == (0, WIDTH)
    assert (losses.n_rows, len(losses.ranges)) == (N, 1)


# -- an open file as an array -----------------------------------------------------------------------------------------


def test_an_array_raises_at_lost_rows_or_gives_nan_for_them(any_codec: Codec, rows: Array, tmp_path: Path) -> None:
    path = write(tmp_path / "a.saec", rows, any_codec)
    with saecodec.open(path) as file:
        whole = file[...]
    break_chunk(path, 2)
    flip(path, extents(path)[0][0])
    lost = lost_mask([(0, 7), (14, 21)])
    picked = np.array([3, 20, 59, 8, 14, 8])
    with saecodec.open(path) as file:
        np.testing.assert_array_equal(file[1, 0], whole[1, 0])
        for index in (0, (0, 2, 2)):
            with pytest.raises(FormatError, match=r"chunk [02] \(rows (0:7|14:21)\)"):
                file[index]
        with pytest.raises(FormatError, match="chunk 0"):
            list(file)
    with saecodec.open(path, on_error="nan") as file:
        for _ in range(2):  # from the file, then what the cache has
            flat = file[...].reshape(N, WIDTH)
            assert np.isnan(flat[lost]).all()
            np.testing.assert_array_equal(flat[~lost], whole.reshape(N, WIDTH)[~lost])
            np.testing.assert_array_equal(file.take(picked), flat[picked])
        np.testing.assert_array_equal(np.concatenate(list(file)), flat)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(file))[...].reshape(N, WIDTH), flat)
        with pytest.raises(FormatError, match="chunk 0"):
            file.take_codes(picked)
    with pytest.raises(InputError, match="expected raise or nan"):
        saecodec.open(path, on_error="skip")


@pytest.mark.parametrize("there", [False, True])
def test_an_output_that_is_refused_is_refused_before_rows_are_decoded_to_be_skipped(
    any_codec: Codec, rows: Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    path, out = write(tmp_path / "a.saec", rows, any_codec), tmp_path / "x.npy"
    if there:
        out.write_bytes(b"mine")
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4 * N * WIDTH - 1))
    with open_saec(path) as file:
        monkeypatch.setattr(file, "salvaged_batches", lambda *_, **__: pytest.fail("rows were decoded"))
        with pytest.raises(OutputError, match="already exists" if there else "No space left on device"):
            decode_file(file, out, dtype="float32", losses=Losses("skip"))


# -- feature activations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".npz", ".pt"])
def test_feature_activations_are_written_without_the_lost_rows(
    any_codec: Codec, rows: Array, tmp_path: Path, extension: str
) -> None:
    path = write(tmp_path / "a.saec", rows, any_codec)
    with open_saec(path) as file:
        decode_latents(file, tmp_path / f"whole{extension}")
    break_chunk(path, 2)
    losses = Losses("skip")
    with open_saec(path) as file:
        shape = decode_latents(file, tmp_path / f"rest{extension}", rows=(5, N), losses=losses)
    assert shape == (N - 5 - 7, 24)
    assert [(r.start, r.stop) for r in losses.ranges] == [(14, 21)]
    whole, rest = (
        np.concatenate(
            [
                np.repeat(np.arange(part.n_rows), np.diff(part.indptr)) * 24 + part.latents
                for part in open_latents(tmp_path / f"{name}{extension}").chunks([n])
            ]
        )
        for name, n in (("whole", N), ("rest", shape[0]))
    )
    kept = np.flatnonzero(~lost_mask([(0, 5), (14, 21)]))
    wanted = [np.flatnonzero(kept == cell // 24)[0] * 24 + cell % 24 for cell in whole if cell // 24 in kept]
    np.testing.assert_array_equal(rest, wanted)


@pytest.mark.parametrize(
    "name, how, way_out", [("z.npz", "nan", "--on-error skip"), ("z", "nan", "skip"), ("z", "skip", r"\.npz")]
)
def test_what_feature_activations_cannot_leave_out_is_refused(
    any_codec: Codec, rows: Array, tmp_path: Path, name: str, how: str, way_out: str
) -> None:
    path = write(tmp_path / "a.saec", rows, any_codec)
    with open_saec(path) as file, pytest.raises(InputError, match=way_out):
        decode_latents(file, tmp_path / name, losses=Losses(how))
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.saec"]


def test_another_way_to_deal_with_lost_rows_is_refused() -> None:
    with pytest.raises(InputError, match="on_error is 'zero', expected one of raise, skip, nan"):
        Losses("zero")
