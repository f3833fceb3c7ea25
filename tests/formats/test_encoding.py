"""Encoding: the same input gives the same bytes, and what is refused leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from saecodec.codec import Codec
from saecodec.codes import MAX_CHUNK_ROWS, Codes
from saecodec.errors import IdentityError, InputError, MissingPieceError, OutputError
from saecodec.fitting import fit_features
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.arrays import open_array
from saecodec.formats.codecfile import load_codec, save_codec
from saecodec.formats.encoding import encode_array, fit_array, shared_activations
from saecodec.formats.saec import open_saec
from saecodec.formats.saec_writer import SaecWriter
from saecodec.goal import Goal
from saecodec.layers import Layers
from saecodec.quantizer import Step
from saecodec.sae import SAE

Rows = npt.NDArray[np.float32]


def codes_of(path: Path, **given: Any) -> npt.NDArray[np.int32]:
    with open_saec(path, **given) as file:
        return Codes.concatenate(file.codes(), file.codec.latents.prior.n_latents).to_dense()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "x.saec"


@pytest.fixture(autouse=True)
def _temporary_files_lie_beside_the_output(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.parent.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(out.parent))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# -- what comes out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["sae", "codec", "sae and codec"])
@pytest.mark.parametrize("embed", [None, "tables", "decoder"])
def test_encoding_twice_gives_the_same_bytes(
    sae: SAE, codec: Codec, x: Rows, out: Path, given: str, embed: str | None
) -> None:
    pieces: dict[str, Any] = {"sae": sae if "sae" in given else None, "codec": codec if "codec" in given else None}
    encode_array(MemoryArray(x), out, embed=embed, **pieces)
    first = out.read_bytes()
    encode_array(MemoryArray(x), out, embed=embed, **pieces, force=True)
    assert out.read_bytes() == first


@pytest.mark.parametrize(
    "given, embed, found", [("sae", None, "tables"), ("codec", None, "none"), ("codec", "tables", "tables")]
)
def test_what_is_embedded_by_default(
    sae: SAE, codec: Codec, x: Rows, out: Path, given: str, embed: str | None, found: str
) -> None:
    encode_array(MemoryArray(x), out, sae=sae, codec=codec if given == "codec" else None, embed=embed)
    with open_saec(out) as file:
        assert file.header.embed == found


@pytest.mark.parametrize("chunk_rows", [7, 40, 4096])
@pytest.mark.parametrize("step", ["0.4rms", "2rms", 0.05])
def test_a_codec_fitted_before_gives_the_codes_that_encoding_alone_gives(
    sae: SAE, x: Rows, out: Path, chunk_rows: int, step: str | float
) -> None:
    source = MemoryArray(x)
    encode_array(source, out, sae=sae, goal=Goal.of(step), chunk_rows=chunk_rows)
    alone = codes_of(out)
    fitted = fit_array(source, sae, Goal.of(step), chunk_rows=chunk_rows)
    encode_array(source, out, codec=fitted, chunk_rows=chunk_rows, force=True)
    np.testing.assert_array_equal(codes_of(out, codec=fitted), alone)
    with open_saec(out) as file:
        assert file.header.codec_id == fitted.codec_id


def test_fitting_an_array_is_fitting_its_rows(sae: SAE, x: Rows) -> None:
    assert fit_array(MemoryArray(x), sae, chunk_rows=16).codec_id == Codec.fit(sae, x, chunk_rows=16).codec_id
    assert fit_array(MemoryArray(x), sae).info["fit_rows"] == 40


def test_a_codec_file_with_its_sae_encodes_alone(codec: Codec, x: Rows, out: Path, tmp_path: Path) -> None:
    save_codec(codec, tmp_path / "c.saecodec", embed_sae=True)
    encode_array(MemoryArray(x), out, codec=load_codec(tmp_path / "c.saecodec"))
    np.testing.assert_array_equal(codes_of(out, codec=codec), codec.quantize(x).to_dense())


def test_a_codec_for_other_rows_codes_these_with_its_step(sae: SAE, codec: Codec, x: Rows, out: Path) -> None:
    encode_array(MemoryArray(3 * x[::-1]), out, codec=codec)
    with open_saec(out, codec=codec) as file:
        assert file.header.step == codec.quantizer.step
    np.testing.assert_array_equal(codes_of(out, codec=codec), codec.quantize(3 * x[::-1]).to_dense())


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_and_shape_of_an_array_file_are_kept(
    sae: SAE, x: Rows, out: Path, tmp_path: Path, dtype: str
) -> None:
    np.save(tmp_path / "x.npy", x.reshape(4, 10, 8).astype(dtype))
    encode_array(open_array(tmp_path / "x.npy"), out, sae=sae)
    with open_saec(out, sae=sae) as file:
        assert (file.shape, file.dtype) == ((4, 10, 8), dtype)


@pytest.mark.parametrize("n_rows", [0, 1, 2])
@pytest.mark.parametrize("chunk_rows", [1, 4096])
def test_few_rows_are_encoded(sae: SAE, x: Rows, out: Path, n_rows: int, chunk_rows: int) -> None:
    encode_array(MemoryArray(x[:n_rows]), out, sae=sae, chunk_rows=chunk_rows, embed="decoder")
    with open_saec(out) as file:
        assert file.rows().shape == (n_rows, 8)


def test_rows_without_an_active_latent_are_encoded(sae: SAE, x: Rows, out: Path) -> None:
    rows = np.repeat(sae.b_dec.numpy()[None], 5, 0)
    encode_array(MemoryArray(rows), out, sae=sae, chunk_rows=2)
    with open_saec(out, sae=sae) as file:
        assert sum(codes.nnz for codes in file.codes()) == 0
        np.testing.assert_array_equal(file.rows(), rows)


def test_progress_counts_the_rows_of_every_stage(sae: SAE, codec: Codec, x: Rows, out: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    encode_array(MemoryArray(x), out, sae=sae, chunk_rows=16, progress=lambda *event: seen.append(event))
    stages = [("SAE", 16), ("SAE", 32), ("SAE", 40), ("encode", 16), ("encode", 32), ("encode", 40)]
    assert seen == [(stage, done, 40) for stage, done in stages]
    seen.clear()
    encode_array(
        MemoryArray(x), out, codec=codec, chunk_rows=16, force=True, progress=lambda *event: seen.append(event)
    )
    assert seen == [(stage, done, 40) for stage, done in stages[3:]]


@pytest.mark.parametrize("architecture", ["standard", "topk", "gated", "jumprelu"])
def test_the_number_of_threads_does_not_change_the_bytes_of_codes(
    make_sae: Callable[..., SAE], out: Path, threads: Callable[[int], None], architecture: str
) -> None:
    sae = make_sae(architecture, width=32, latents=256)
    x = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
    codec = Codec.fit(sae, x)
    codes, written = codec.quantize(x), []
    for n in (1, 2):
        threads(n)
        with open(out, "wb") as file:
            writer = SaecWriter(file, codec, shape=x.shape, dtype="float32", chunk_rows=500, embed="decoder")
            for start in range(0, 2000, 500):
                writer.add(Layers(codes[start : start + 500]))
            writer.finish()
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_the_number_of_threads_does_not_change_a_fit(
    make_sae: Callable[..., SAE], threads: Callable[[int], None]
) -> None:
    x = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
    sae, codec_ids = make_sae("topk", width=32, latents=256), set()
    features = sae.features(x)
    for n in (1, 2):
        threads(n)
        codec_ids.add(fit_features(sae, [features], Step(0.4, True), []).codec_id)
    assert len(codec_ids) == 1


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("with_codec", [False, True])
def test_a_row_that_is_not_finite_is_named_and_nothing_is_left(
    sae: SAE, codec: Codec, x: Rows, out: Path, tmp_path: Path, value: float, with_codec: bool
) -> None:
    bad = x.copy()
    bad[[29, 31], 3] = value
    np.save(tmp_path / "bad.npy", bad)
    with pytest.raises(InputError, match=r"bad\.npy: row 29 holds NaN or infinity \(2 such rows among 16\)"):
        encode_array(open_array(tmp_path / "bad.npy"), out, sae=sae, codec=codec if with_codec else None, chunk_rows=16)
    assert list(out.parent.iterdir()) == []


def test_fitting_names_the_row_that_is_not_finite(sae: SAE, x: Rows, out: Path) -> None:
    bad = x.reshape(4, 10, 8).copy()
    bad[3, 5, 0] = np.nan
    with pytest.raises(InputError, match="bad rows: row 35 holds NaN"):
        fit_array(MemoryArray(bad, "bad rows"), sae, chunk_rows=7)
    assert list(out.parent.iterdir()) == []


def test_a_failure_keeps_the_file_that_was_there(sae: SAE, x: Rows, out: Path) -> None:
    out.write_bytes(b"mine")
    bad = x.copy()
    bad[39, 7] = np.nan
    with pytest.raises(InputError):
        encode_array(MemoryArray(bad), out, sae=sae, force=True)
    assert out.read_bytes() == b"mine"
    assert list(out.parent.iterdir()) == [out]


def test_an_interruption_leaves_nothing(sae: SAE, x: Rows, out: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_array(MemoryArray(x), out, sae=sae, progress=interrupt)
    assert list(out.parent.iterdir()) == []


def test_a_step_beside_a_codec_is_refused(codec: Codec, x: Rows, out: Path) -> None:
    with pytest.raises(InputError, match="the step comes from the codec: leave --step out, or leave -c out"):
        encode_array(MemoryArray(x), out, codec=codec, goal=Goal.of("0.4rms"))
    assert not out.exists()


def test_embedding_nothing_without_a_codec_is_refused(sae: SAE, x: Rows, out: Path) -> None:
    with pytest.raises(InputError, match=r"without a codec the tables are fitted on the input.* must embed them"):
        encode_array(MemoryArray(x), out, sae=sae, embed="none")
    assert not out.exists()


def test_another_way_to_embed_is_refused(sae: SAE, x: Rows, out: Path) -> None:
    with pytest.raises(InputError, match="embed is 'everything', expected one of none, tables, decoder"):
        encode_array(MemoryArray(x), out, sae=sae, embed="everything")
    assert list(out.parent.iterdir()) == []


def test_an_existing_file_is_overwritten_only_when_forced(sae: SAE, codec: Codec, x: Rows, out: Path) -> None:
    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"x\.saec: already exists; pass --force"):
        encode_array(MemoryArray(x), out, sae=sae)
    assert out.read_bytes() == b"mine"
    encode_array(MemoryArray(x), out, sae=sae, force=True)
    np.testing.assert_array_equal(codes_of(out), codec.quantize(x).to_dense())


def test_without_an_sae_it_says_which_one_is_needed(codec: Codec, sae: SAE, x: Rows, out: Path, tmp_path: Path) -> None:
    save_codec(codec, tmp_path / "c.saecodec")
    with pytest.raises(MissingPieceError, match=f"encoding needs SAE '{sae.name}'.*-s SAE.*--embed-sae"):
        encode_array(MemoryArray(x), out, codec=load_codec(tmp_path / "c.saecodec"))
    with pytest.raises(MissingPieceError, match="encoding needs an SAE"):
        encode_array(MemoryArray(x), out)
    assert not out.exists()


def test_a_decoder_alone_does_not_encode(sae: SAE, x: Rows, out: Path) -> None:
    decoder = SAE.from_tensors({}, sae.decoder_tensors(), "half")
    with pytest.raises(MissingPieceError, match="encoding needs the whole SAE 'half'"):
        encode_array(MemoryArray(x), out, sae=decoder)
    assert list(out.parent.iterdir()) == []


def test_another_sae_than_the_codecs_is_refused_with_both_ids(
    codec: Codec, sae: SAE, other_sae: SAE, x: Rows, out: Path
) -> None:
    with pytest.raises(IdentityError) as wrong:
        encode_array(MemoryArray(x), out, sae=other_sae, codec=codec)
    assert sae.decoder_id in str(wrong.value)
    assert other_sae.decoder_id in str(wrong.value)
    assert not out.exists()


def test_rows_of_another_width_are_refused(sae: SAE, out: Path) -> None:
    rows = MemoryArray(np.zeros((5, 9), np.float32), "rows")
    for use in (lambda: encode_array(rows, out, sae=sae), lambda: fit_array(rows, sae)):
        with pytest.raises(InputError, match=rf"rows: shape \(5, 9\), but the SAE '{sae.name}' codes rows of 8 values"):
            use()
    assert not out.exists()


@pytest.mark.parametrize("chunk_rows", [0, -1, MAX_CHUNK_ROWS + 1])
def test_chunks_of_no_rows_or_too_many_are_refused(sae: SAE, x: Rows, out: Path, chunk_rows: int) -> None:
    for use in (
        lambda: encode_array(MemoryArray(x), out, sae=sae, chunk_rows=chunk_rows),
        lambda: fit_array(MemoryArray(x), sae, chunk_rows=chunk_rows),
    ):
        with pytest.raises(InputError, match=f"a chunk holds 1 to {MAX_CHUNK_ROWS} rows, got {chunk_rows}"):
            use()


@pytest.mark.parametrize("step", ["0", "-1", "rms", "0.4 sigma", "", "nan", "inf", 0.0, "1e400"])
def test_a_step_that_is_none_is_refused(sae: SAE, x: Rows, out: Path, step: str | float) -> None:
    with pytest.raises(InputError, match="a step is a positive number"):
        encode_array(MemoryArray(x), out, sae=sae, goal=Goal.of(step))


def test_a_step_that_is_too_small_says_which_would_do(sae: SAE, x: Rows, out: Path) -> None:
    with pytest.raises(InputError, match=r"step 1e-09 is too small: .* use a step of at least"):
        encode_array(MemoryArray(x), out, sae=sae, goal=Goal.of(1e-9))
    assert list(out.parent.iterdir()) == []


# -- memory ------------------------------------------------------------------------------------------------------------

MEMORY = """
import sys
import numpy as np, torch
from saecodec.formats.arrays import open_array
from saecodec.formats.encoding import encode_array
from saecodec.nonlinearity import TopK
from saecodec.sae import SAE, Encoder

torch.set_num_threads(1)
w = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))
w /= w.norm(dim=1, keepdim=True)
sae = SAE(w, torch.zeros(128), Encoder(w.T.contiguous(), torch.zeros(256), TopK(8), False), "topk")
folder, peaks = sys.argv[1], []
for n_rows in (10_000, 100_000):
    rows = np.lib.format.open_memmap(f"{folder}/{n_rows}.npy", "w+", np.float16, (n_rows, 128))
    rng = np.random.default_rng(0)
    with open(f"{folder}/{n_rows}.npy", "r+b") as file:
        file.seek(rows.offset)
        del rows
        for _ in range(n_rows // 10_000):
            file.write(rng.normal(size=(10_000, 128)).astype(np.float16).tobytes())
    encode_array(open_array(f"{folder}/{n_rows}.npy"), f"{folder}/{n_rows}.saec", sae=sae)
    peaks.append(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")))
print(*peaks)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())
    assert many < 1.05 * few


def test_an_input_is_not_replaced_by_its_own_file(tmp_path: Path, make_sae: Any) -> None:
    path, sae = tmp_path / "x.npy", make_sae("standard")
    np.save(path, np.ones((5, sae.width), np.float32))
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is the input"):
        encode_array(open_array(path), path, sae=sae, force=True)
    assert path.read_bytes() == before


def test_metadata_that_is_no_text_is_refused_before_the_work(tmp_path: Path, make_sae: Any) -> None:
    sae = make_sae("standard")
    for user in ({"n": 3}, {"n": "\ud800"}):
        with pytest.raises(InputError, match="metadata is text"):
            encode_array(MemoryArray(np.ones((5, sae.width), np.float32)), tmp_path / "x.saec", sae=sae, user=user)
    assert not list(tmp_path.glob("*x.saec*")) + list(tmp_path.glob(".saecodec*"))


def test_a_full_temporary_folder_is_an_error_that_names_the_way_out(tmp_path: Path, make_sae: Any) -> None:
    resource = pytest.importorskip("resource")
    sae = make_sae("standard")
    x = np.random.default_rng(0).normal(size=(3000, sae.width)).astype(np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))
    try:
        with pytest.raises(OutputError, match="TMPDIR"):
            encode_array(MemoryArray(x), tmp_path / "x.saec", sae=sae)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob("*x.saec*")) + list(tmp_path.glob(".saecodec*"))


@pytest.mark.parametrize("normalization", ["none", "row_norm", "layer_norm"])
def test_files_that_share_activations_are_the_same_and_the_sae_runs_once(
    sae: SAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalization: str
) -> None:
    sae = replace(sae, normalization=normalization)
    source = MemoryArray(np.random.default_rng(0).normal(size=(300, sae.width)).astype(np.float32))
    goals = [Goal.of(step) for step in ("0.3rms", "1rms", 0.5)] + [Goal.of("0.5rms", residual=True)]
    for i, goal in enumerate(goals):
        encode_array(source, tmp_path / f"alone{i}.saec", sae=sae, goal=goal, chunk_rows=100)
    runs, features = [0], SAE.features

    def counted(self: SAE, *arguments: Any, **options: Any) -> Any:
        runs[0] += 1
        return features(self, *arguments, **options)

    with shared_activations(source, sae, chunk_rows=100) as activations:
        monkeypatch.setattr(SAE, "features", counted)
        for i, goal in enumerate(goals[:3]):
            path = tmp_path / f"shared{i}.saec"
            encode_array(source, path, sae=sae, goal=goal, chunk_rows=100, activations=activations)
            assert path.read_bytes() == (tmp_path / f"alone{i}.saec").read_bytes()
        assert runs == [0]
        path = tmp_path / "shared.saec"
        encode_array(source, path, sae=sae, goal=goals[3], chunk_rows=100, activations=activations)
        assert path.read_bytes() == (tmp_path / "alone3.saec").read_bytes()
