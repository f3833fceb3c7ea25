"""The codec: rows of activations to bytes and back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from saecodec.codec import Codec
from saecodec.codes import MAX_CHUNK_ROWS, Codes
from saecodec.errors import FormatError, IdentityError, InputError, MissingPieceError, SaecodecError, UnsupportedError
from saecodec.fitting import fit_features
from saecodec.formats.spool import code_spool, feature_spool
from saecodec.frames import HEAD_BYTES, frame, frames, pack_record, unpack_record
from saecodec.quantizer import Step
from saecodec.sae import SAE

MakeSAE = Callable[..., SAE]
ExactRows = Callable[..., NDArray[np.float32]]


@pytest.fixture(scope="module")
def codec(sae: SAE, exact_rows: ExactRows) -> Codec:
    """Fitted on 500 exact rows."""
    return Codec.fit(sae, exact_rows(500))


@pytest.fixture(scope="module")
def x(exact_rows: ExactRows) -> NDArray[np.float32]:
    """Rows that the codec was not fitted on."""
    return exact_rows(300, seed=1)


# -- there and back ----------------------------------------------------------------------------------------------------


def test_decoding_gives_the_reconstruction_of_the_codes(
    make_sae: MakeSAE, exact_rows: ExactRows, x: NDArray[np.float32], architecture: str
) -> None:
    codec = Codec.fit(make_sae(architecture), exact_rows(500))
    codes = codec.quantize(x)
    assert codes.check().nnz > 0
    x_hat = codec.decode(codec.encode(x))
    assert (x_hat.dtype, x_hat.shape) == (np.float32, x.shape)
    np.testing.assert_array_equal(x_hat, codec.reconstruct(codes))


@pytest.mark.parametrize("chunk_rows", [1, 7, 100, 299, 300, 301])
def test_the_size_of_the_chunks_changes_no_value(codec: Codec, x: NDArray[np.float32], chunk_rows: int) -> None:
    data = codec.encode(x, chunk_rows=chunk_rows)
    assert len(list(codec.codes(data))) == -(-len(x) // chunk_rows)
    np.testing.assert_array_equal(codec.decode(data), codec.decode(codec.encode(x)))


def test_encoded_rows_concatenate(codec: Codec, x: NDArray[np.float32]) -> None:
    parts = codec.encode(x[:100]) + codec.encode(x[100:])
    np.testing.assert_array_equal(codec.decode(parts), codec.decode(codec.encode(x)))


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (8,), (2, 3, 8), (2, 0, 8), (2, 1, 3, 8)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_any_shape_and_dtype(
    sae: SAE, codec: Codec, x: NDArray[np.float32], shape: tuple[int, ...], dtype: type
) -> None:
    n = int(np.prod(shape)) // 8
    rows = x[:n].reshape(shape).astype(dtype)  # exact in each of them
    x_hat = codec.decode(codec.encode(rows))
    assert x_hat.shape == (n, 8)
    np.testing.assert_array_equal(x_hat, codec.decode(codec.encode(x[:n])))
    refitted = Codec.fit(sae, rows)
    np.testing.assert_array_equal(refitted.decode(refitted.encode(rows)), refitted.reconstruct(refitted.quantize(rows)))


def test_no_rows_are_no_bytes(codec: Codec) -> None:
    assert codec.encode(np.zeros((0, 8))) == b""
    assert codec.decode(b"").shape == (0, 8)


def test_rows_that_do_not_lie_one_after_the_other_in_memory(codec: Codec, x: NDArray[np.float32]) -> None:
    for view in (x[::-1], x[::3], np.asfortranarray(x), np.tile(x, 2)[:, :8]):
        assert codec.encode(view) == codec.encode(view.copy())


def test_a_codec_fitted_on_no_rows_codes_any(sae: SAE, x: NDArray[np.float32]) -> None:
    codec = Codec.fit(sae, x[:0])
    np.testing.assert_array_equal(codec.decode(codec.encode(x)), codec.reconstruct(codec.quantize(x)))


def test_a_smaller_step_takes_more_bytes_and_errs_less(sae: SAE, exact_rows: ExactRows, x: NDArray[np.float32]) -> None:
    unquantized = sae.rows(sae.features(x)).numpy()
    sizes, errors = [], []
    for step in ("2rms", "0.5rms", "0.1rms", "0.01rms"):
        codec = Codec.fit(sae, exact_rows(500), step)
        data = codec.encode(x)
        sizes.append(len(data))
        errors.append(np.square(codec.decode(data) - unquantized).sum())
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * np.square(unquantized).sum()


@pytest.mark.parametrize("step", ["0.4rms", "0.7", 0.7, Step(0.7, False)], ids=str)
def test_the_step_is_absolute_or_relative_to_the_rms_length(
    sae: SAE, exact_rows: ExactRows, step: str | float | Step
) -> None:
    features = sae.features(exact_rows(500))
    rms = np.sqrt(np.mean(np.square(features.values * sae.norms[features.latents])))
    expected = 0.4 * rms if step == "0.4rms" else 0.7
    assert Codec.fit(sae, exact_rows(500), step).quantizer.step == pytest.approx(expected, rel=1e-12)


def test_fitting_does_not_depend_on_where_features_lie(sae: SAE, exact_rows: ExactRows) -> None:
    rows = exact_rows(500)
    codec = Codec.fit(sae, rows, "0.3rms", chunk_rows=200)
    with feature_spool() as features, code_spool(sae.n_latents) as codes:
        for i in (0, 200, 400):
            features.append(sae.features(rows[i : i + 200]))
        again = fit_features(sae, features, Step(0.3, True), codes)
        assert again.tables() == codec.tables()
        found = Codes.concatenate(codes, sae.n_latents)
        np.testing.assert_array_equal(found.to_dense(), codec.quantize(rows).to_dense())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_byte(
    sae: SAE,
    codec: Codec,
    exact_rows: ExactRows,
    x: NDArray[np.float32],
    torch_threads: Callable[[int], None],
    threads: int,
) -> None:
    data = codec.encode(x)
    torch_threads(threads)
    again = Codec.fit(sae, exact_rows(500))
    assert again.tables() == codec.tables()
    assert again.encode(x) == codec.encode(x) == data
    np.testing.assert_array_equal(again.decode(data), codec.decode(data))


# -- what cannot be encoded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (7,), (3, 9), (8, 0)])
def test_rows_of_another_width_are_refused(sae: SAE, codec: Codec, shape: tuple[int, ...]) -> None:
    for refused in (codec.encode, codec.quantize, lambda rows: Codec.fit(sae, rows)):
        with pytest.raises(InputError, match="rows of 8 values, got an array of shape"):
            refused(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_refused_by_its_number(codec: Codec, x: NDArray[np.float32], bad: float) -> None:
    rows = x.copy()
    rows[270, 0] = bad
    with pytest.raises(InputError, match="row 270 holds NaN or infinity"):
        codec.encode(rows, chunk_rows=100)


def test_fitting_counts_the_rows_from_the_first_of_all(sae: SAE, x: NDArray[np.float32]) -> None:
    rows = x.copy()
    rows[270, 0] = np.nan
    with pytest.raises(InputError, match="row 270 holds NaN or infinity"):
        Codec.fit(sae, rows, chunk_rows=100)


@pytest.mark.parametrize("chunk_rows", [0, -1, MAX_CHUNK_ROWS + 1])
def test_chunks_of_no_or_too_many_rows_are_refused(codec: Codec, x: NDArray[np.float32], chunk_rows: int) -> None:
    with pytest.raises(InputError, match=f"got {chunk_rows}"):
        codec.encode(x, chunk_rows=chunk_rows)


@pytest.mark.parametrize("chunk_rows", [0, -1])
def test_fitting_on_chunks_of_no_rows_is_refused(sae: SAE, x: NDArray[np.float32], chunk_rows: int) -> None:
    with pytest.raises(InputError, match=f"got {chunk_rows}"):
        Codec.fit(sae, x, chunk_rows=chunk_rows)


def test_a_large_row_is_refused_because_of_the_step(codec: Codec) -> None:
    with pytest.raises(InputError, match=r"is too small: an activation of length .*use a step of at least"):
        codec.encode(np.full((1, 8), 1e15))


def test_a_float64_row_beyond_float32_is_refused(codec: Codec) -> None:
    with pytest.raises(InputError, match="row 0"):
        codec.encode(np.full((1, 8), 1e300))


# -- the SAE -----------------------------------------------------------------------------------------------------------


def test_without_its_sae_a_codec_says_which_one_it_needs(codec: Codec, x: NDArray[np.float32]) -> None:
    bare = Codec.from_bytes(codec.to_bytes())
    data = codec.encode(x)
    for action in (
        lambda: bare.encode(x),
        lambda: bare.decode(data),
        lambda: bare.quantize(x),
        lambda: bare.decode(b""),
    ):
        with pytest.raises(MissingPieceError, match=f"needs SAE 'tiny-relu' .decoder id {codec.decoder_id[:16]}"):
            action()
    assert sum(codes.n_rows for codes in bare.codes(data)) == len(x)  # codes need no SAE


def test_another_sae_is_refused_with_both_identities(codec: Codec, make_sae: MakeSAE) -> None:
    other = make_sae("gated", seed=3)
    with pytest.raises(IdentityError) as caught:
        codec.with_sae(other)
    for part in ("tiny-gated", other.decoder_id, "tiny-relu", codec.decoder_id):
        assert part in str(caught.value)


def test_its_sae_completes_a_codec(codec: Codec, sae: SAE, x: NDArray[np.float32]) -> None:
    complete = Codec.from_bytes(codec.to_bytes()).with_sae(sae)
    data = codec.encode(x)
    assert complete.encode(x) == data
    np.testing.assert_array_equal(complete.decode(data), codec.decode(data))


def test_the_decoder_alone_decodes_and_does_not_encode(codec: Codec, sae: SAE, x: NDArray[np.float32]) -> None:
    half = codec.with_sae(replace(sae, encoder=None))
    data = codec.encode(x)
    np.testing.assert_array_equal(half.decode(data), codec.decode(data))
    with pytest.raises(MissingPieceError, match="only its decoder"):
        half.encode(x)


# -- storage and identity ----------------------------------------------------------------------------------------------


def test_a_codec_is_read_back_with_its_identity(make_sae: MakeSAE, exact_rows: ExactRows, architecture: str) -> None:
    codec = Codec.fit(make_sae(architecture), exact_rows(200))
    back = Codec.from_bytes(codec.to_bytes())
    assert (back.codec_id, back.decoder_id, dict(back.info)) == (codec.codec_id, codec.decoder_id, dict(codec.info))
    assert back.to_bytes() == codec.to_bytes()
    assert back.tables() == codec.tables()
    assert back.info["fit_rows"] == 200


def test_the_identity_is_that_of_the_numbers(codec: Codec, sae: SAE, exact_rows: ExactRows) -> None:
    assert Codec.fit(sae, exact_rows(500)).codec_id == codec.codec_id
    assert replace(codec, info={"other": 1}, sae=None).codec_id == codec.codec_id
    others = [
        Codec.fit(sae, exact_rows(500), "0.41rms"),
        Codec.fit(sae, exact_rows(500, seed=5)),
        replace(codec, decoder_id="00" * 32),
        replace(codec, quantizer=replace(codec.quantizer, step=float(np.nextafter(codec.quantizer.step, 1)))),
        replace(codec, quantizer=replace(codec.quantizer, centroids=codec.quantizer.centroids + 1)),
    ]
    assert len({codec.codec_id, *(other.codec_id for other in others)}) == 6


def parts(codec: Codec) -> tuple[bytes, bytes]:
    """The frames CHED and TABL."""
    head, tables = (bytes(payload) for _, payload in frames(codec.to_bytes(), "codec"))
    return frame("CHED", head), frame("TABL", tables)


def test_unknown_ancillary_frames_are_skipped(codec: Codec, x: NDArray[np.float32]) -> None:
    head, tables = parts(codec)
    extra = frame("XTRA", b"for someone else", critical=False)
    assert Codec.from_bytes(extra + head + extra + tables + extra).codec_id == codec.codec_id
    data = codec.encode(x)
    np.testing.assert_array_equal(codec.decode(extra + data + extra), codec.decode(data))


def test_unknown_critical_frames_are_refused_by_name(codec: Codec, x: NDArray[np.float32]) -> None:
    extra = frame("XTRA", b"essential")
    with pytest.raises(UnsupportedError, match="frame 'XTRA' is needed"):
        Codec.from_bytes(codec.to_bytes() + extra)
    with pytest.raises(UnsupportedError, match="frame 'XTRA' is needed"):
        codec.decode(codec.encode(x) + extra)


def test_a_codec_is_not_rows_and_rows_are_no_codec(codec: Codec, x: NDArray[np.float32]) -> None:
    with pytest.raises(SaecodecError, match="CHED"):
        codec.decode(codec.to_bytes())
    with pytest.raises(SaecodecError, match="CHNK"):
        Codec.from_bytes(codec.encode(x))


@pytest.mark.parametrize("kept", [(), (0,), (1,), (1, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0, 1)])
def test_a_codec_is_its_two_frames_in_order_or_refused(codec: Codec, kept: tuple[int, ...]) -> None:
    data = b"".join(parts(codec)[i] for i in kept)
    with pytest.raises(FormatError, match=r"my codec: a codec .*is (a frame CHED|frames ).*, found"):
        Codec.from_bytes(data, "my codec")


@pytest.mark.parametrize("kept", [0, 1])
def test_an_ancillary_frame_does_not_stand_for_a_missing_one(codec: Codec, kept: int) -> None:
    with pytest.raises(FormatError, match=r"my codec: a codec .*is (a frame CHED|frames ).*, found"):
        Codec.from_bytes(parts(codec)[kept] + frame("XTRA", b"", critical=False), "my codec")


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"decoder_id": None}, "field 'decoder_id'"),
        ({"decoder_id": "00" * 32}, "field 'decoder_id'"),
        ({"decoder_id": b"x" * 31}, "a decoder id has 32 bytes, found 31"),
        ({"info": []}, "field 'info'"),
        ({"version": 1}, "field 'version'"),
        ({"version": [1]}, "not a pair"),
        ({"version": [9, 0]}, "written in format version 9.0"),
        ({"requires": ["prior:markov"]}, "needs prior:markov"),
    ],
    ids=str,
)
def test_a_head_without_its_fields_is_refused(codec: Codec, changes: dict[str, object], complaint: str) -> None:
    record = unpack_record(parts(codec)[0][HEAD_BYTES:], "head") | changes
    with pytest.raises(SaecodecError, match=f"my codec: .*{complaint}"):
        Codec.from_bytes(frame("CHED", pack_record(record)) + parts(codec)[1], "my codec")


def test_tables_with_bytes_left_over_are_refused(codec: Codec) -> None:
    with pytest.raises(FormatError, match="1 bytes left over"):
        Codec.from_bytes(parts(codec)[0] + frame("TABL", codec.tables() + b"\0"))


# -- damage ------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_and_every_truncation_of_a_codec_is_refused(codec: Codec) -> None:
    data = codec.to_bytes()
    for i in range(len(data)):
        with pytest.raises(SaecodecError):
            Codec.from_bytes(data[:i])
        for bit in range(8):
            with pytest.raises(SaecodecError):
                Codec.from_bytes(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])


def test_every_flipped_bit_of_encoded_rows_is_refused(codec: Codec, x: NDArray[np.float32]) -> None:
    data, first = codec.encode(x[:10]), codec.encode(x[10:13])
    for i in range(len(data)):
        for bit in range(8):
            with pytest.raises(SaecodecError):
                codec.decode(data[:i] + bytes([data[i] ^ 1 << bit]) + data[i + 1 :])
        with pytest.raises(SaecodecError):
            codec.decode(first + data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])


def test_damage_that_the_crc_does_not_see_decodes_or_is_refused(codec: Codec, sae: SAE, x: NDArray[np.float32]) -> None:
    """An attacker computes the CRC."""
    tables, chunk = codec.tables(), codec.encode(x[:20])
    decoded = 0
    for i in range(len(tables)):
        for byte in {tables[i] ^ 1, tables[i] ^ 0x80, 0, 0xFF} - {tables[i]}:
            start = time.perf_counter()
            try:
                other = Codec.from_tables(tables[:i] + bytes([byte]) + tables[i + 1 :], codec.decoder_id, {}, "codec")
                list(other.codes(chunk))
                decoded += 1
            except SaecodecError:
                pass
            assert time.perf_counter() - start < 1
    assert decoded


@pytest.mark.parametrize("n_latents", [5, 23, 25, 48])
def test_tables_of_another_number_of_latents_than_the_sae_are_refused(codec: Codec, sae: SAE, n_latents: int) -> None:
    """The codec's decoder id says that it belongs to the SAE, but its tables are another one's."""
    other = replace(sae, w_dec=sae.w_dec.repeat(2, 1)[:n_latents], encoder=None)
    with pytest.raises(FormatError, match=f"the codec codes 24 latents, its SAE has {n_latents}"):
        replace(codec, decoder_id=other.decoder_id).with_sae(other)
