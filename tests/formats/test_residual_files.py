"""`.saec` and codec files with a residual layer: read whole, in part, and without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from saecodec.codec import Codec
from saecodec.errors import FormatError, IdentityError
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.arrays import open_array
from saecodec.formats.codecfile import load_codec, save_codec
from saecodec.formats.decoding import decode_file, verify_file
from saecodec.formats.describe import describe
from saecodec.formats.encoding import encode_array
from saecodec.formats.file_sizes import bytes_by_part
from saecodec.formats.saec import open_saec
from saecodec.goal import Goal
from saecodec.sae import SAE

Rows = npt.NDArray[np.float32]
Frame = tuple[str, bool, bytes]
Rebuild = Callable[..., bytes]


@pytest.fixture(scope="module")
def layered(sae: SAE, x: Rows) -> Codec:
    """Fitted on `x`, with its SAE and a residual layer."""
    return Codec.fit(sae, x, "1rms", residual=True)


@pytest.fixture(params=["none", "tables", "decoder"])
def path(request: pytest.FixtureRequest, layered: Codec, x: Rows, tmp_path: Path) -> Path:
    """40 rows in chunks of 16."""
    encode_array(MemoryArray(x), tmp_path / "x.saec", codec=layered, embed=request.param, chunk_rows=16)
    return tmp_path / "x.saec"


@pytest.fixture
def tables(layered: Codec, x: Rows, tmp_path: Path) -> Path:
    """The same, with its tables."""
    encode_array(MemoryArray(x), tmp_path / "t.saec", codec=layered, embed="tables", chunk_rows=16)
    return tmp_path / "t.saec"


def test_rows_are_those_of_both_layers(path: Path, layered: Codec, x: Rows) -> None:
    data = layered.encode(x, chunk_rows=16)
    with open_saec(path, codec=layered) as file:
        assert file.header.residual
        np.testing.assert_allclose(file.rows(), layered.decode(data), atol=1e-6)
        np.testing.assert_allclose(file.rows(base_only=True), layered.decode(data, base_only=True), atol=1e-6)
        assert np.square(x - file.rows()).sum() < 0.5 * np.square(x - file.rows(base_only=True)).sum()


@pytest.mark.parametrize("start, stop", [(0, 40), (3, 5), (15, 17), (16, 32), (10, 40), (39, 40), (20, 20)])
def test_a_slice_of_rows_is_a_slice_of_both_layers(tables: Path, sae: SAE, start: int, stop: int) -> None:
    with open_saec(tables, sae=sae) as file:
        for base_only in (False, True):
            expected = file.rows(base_only=base_only)[start:stop]
            np.testing.assert_allclose(file.rows(start, stop, base_only=base_only), expected, atol=1e-6)
        layers = list(file.layers(start, stop))
        assert sum(part.n_rows for part in layers) == stop - start
        assert all(part.residual is not None and len(part.residual) == part.n_rows for part in layers)
        assert all(part.residual is None for part in file.layers(start, stop, base_only=True))


def test_a_file_fitted_on_its_own_rows_has_that_layer_in_its_tables(sae: SAE, x: Rows, tmp_path: Path) -> None:
    goal = Goal.of("1rms", residual=True)
    encode_array(MemoryArray(x), tmp_path / "x.saec", sae=sae, goal=goal, embed="decoder", chunk_rows=7)
    with open_saec(tmp_path / "x.saec") as file:
        assert file.codec.residual is not None
        assert file.codec.residual.step == pytest.approx(file.header.step / 2)
        assert np.square(x - file.rows()).sum() < np.square(x - file.rows(base_only=True)).sum()


@pytest.mark.parametrize("n_rows", [1, 2, 16, 17])
def test_few_rows_have_a_residual_layer(sae: SAE, x: Rows, tmp_path: Path, n_rows: int) -> None:
    goal = Goal.of("1rms", residual=True)
    encode_array(MemoryArray(x[:n_rows]), tmp_path / "x.saec", sae=sae, goal=goal, embed="decoder", chunk_rows=16)
    with open_saec(tmp_path / "x.saec") as file:
        assert file.rows().shape == (n_rows, 8)


def test_no_rows_are_encoded_by_a_codec_with_that_layer(layered: Codec, x: Rows, tmp_path: Path) -> None:
    encode_array(MemoryArray(x[:0]), tmp_path / "x.saec", codec=layered)
    with open_saec(tmp_path / "x.saec", codec=layered) as file:
        assert file.rows().shape == (0, 8)
        assert verify_file(file).rows == 0


def test_decoding_can_leave_that_layer_out(tables: Path, sae: SAE, tmp_path: Path) -> None:
    with open_saec(tables, sae=sae) as file:
        decode_file(file, tmp_path / "all.npy", dtype="float32")
        decode_file(file, tmp_path / "base.npy", dtype="float32", base_only=True)
        decode_file(file, tmp_path / "part.npy", rows=(10, 20), base_only=True)
        np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), file.rows())
        np.testing.assert_array_equal(np.load(tmp_path / "base.npy"), file.rows(base_only=True))
        np.testing.assert_allclose(np.load(tmp_path / "part.npy"), file.rows(base_only=True)[10:20], atol=1e-6)


def test_a_damaged_residual_costs_that_layer_only(tables: Path, sae: SAE) -> None:
    with open_saec(tables, sae=sae) as file:
        before = file.rows(base_only=True)
        at = int(file.index.offsets[1] + file.index.lengths[1])
    data = bytearray(tables.read_bytes())
    data[at + 20] ^= 1
    tables.write_bytes(data)
    with open_saec(tables, sae=sae) as file:
        np.testing.assert_array_equal(file.rows(base_only=True), before)
        np.testing.assert_array_equal(file.rows(0, 16, base_only=True), before[:16])
        for use in (lambda: file.rows(), lambda: file.rows(16, 17), lambda: verify_file(file, decode=False)):
            with pytest.raises(FormatError, match="CRC-32"):
                use()


def test_verification_decodes_both_layers(path: Path, layered: Codec, x: Rows, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    with open_saec(path, codec=layered) as file:
        result = verify_file(file, against=open_array(tmp_path / "x.npy"))
        assert (result.chunks, result.rows, result.decoded) == (3, 40, "rows")
        assert result.distortion is not None
        assert result.distortion.squared_error == pytest.approx(np.square(x - file.rows()).sum(), rel=1e-4)
        assert verify_file(file).decoded == "rows"


def test_without_an_sae_the_levels_of_both_layers_are_verified(tables: Path) -> None:
    with open_saec(tables) as file:
        assert verify_file(file).decoded == "levels"


def test_a_description_says_the_bits_of_each_layer(path: Path) -> None:
    found = describe(path)
    assert found["residual"].keys() == {"base_bits_per_row", "residual_bits_per_row"}
    assert 0 < sum(found["residual"].values()) < found["bits_per_row"]


def test_the_bytes_by_part_have_that_layer(tables: Path) -> None:
    with open_saec(tables) as file:
        parts = bytes_by_part(file)
        assert sum(parts.values()) == file.size
        per_row = describe(tables)["residual"]["residual_bits_per_row"]
        assert 0 < parts["residual"] <= per_row * 40 / 8


def test_a_description_of_a_file_without_that_layer_says_so(saec: Callable[..., Path]) -> None:
    assert describe(saec())["residual"] is None


# -- codec files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed_sae", [False, True])
def test_a_codec_file_keeps_the_residual_layer(layered: Codec, tmp_path: Path, embed_sae: bool) -> None:
    path = tmp_path / "c.saecodec"
    save_codec(layered, path, embed_sae=embed_sae)
    back = load_codec(path)
    assert back.codec_id == layered.codec_id
    assert back.residual is not None
    assert layered.residual is not None
    assert back.residual.to_bytes() == layered.residual.to_bytes()
    assert describe(path)["residual_bytes"] == len(layered.residual.to_bytes())


def test_a_codec_without_that_layer_does_not_open_the_file(
    layered: Codec, codec: Codec, x: Rows, tmp_path: Path
) -> None:
    encode_array(MemoryArray(x), tmp_path / "x.saec", codec=layered)
    with open_saec(tmp_path / "x.saec", codec=codec) as file, pytest.raises(IdentityError, match=layered.codec_id):
        file.rows()


# -- what is refused ---------------------------------------------------------------------------------------------------


def without(kind: str, nth: int) -> Callable[[list[Frame]], list[Frame]]:
    def change(parts: list[Frame]) -> list[Frame]:
        places = [i for i, part in enumerate(parts) if part[0] == kind]
        return [part for i, part in enumerate(parts) if i != places[nth]]

    return change


def swapped(parts: list[Frame]) -> list[Frame]:
    """The residuals of the first two chunks have changed places."""
    places = [i for i, part in enumerate(parts) if part[0] == "RCHK"]
    parts[places[0]], parts[places[2]] = parts[places[2]], parts[places[0]]
    return parts


def doubled(parts: list[Frame]) -> Iterable[Frame]:
    for part in parts:
        yield from [part] * (2 if part[0] == "RCHK" else 1)


@pytest.mark.parametrize("nth, row", [(0, 0), (1, 20), (2, 39)])
def test_a_chunk_without_its_residual_is_refused(tables: Path, sae: SAE, rebuild: Rebuild, nth: int, row: int) -> None:
    tables.write_bytes(rebuild(tables, without("RCHK", nth)))
    with open_saec(tables, sae=sae) as file:
        assert file.rows(base_only=True).shape == (40, 8)
        for use in (
            lambda: file.rows(row, row + 1),
            lambda: verify_file(file),
            lambda: verify_file(file, decode=False),
        ):
            with pytest.raises(FormatError, match="residual, RCHK"):
                use()


def test_a_residual_of_another_chunk_is_refused(tables: Path, sae: SAE, rebuild: Rebuild) -> None:
    tables.write_bytes(rebuild(tables, swapped))  # the last chunk has 8 rows, not 16
    with open_saec(tables, sae=sae) as file, pytest.raises(FormatError, match=r"chunk 0 .*, residual"):
        file.rows()


def test_a_second_residual_is_refused(tables: Path, rebuild: Rebuild) -> None:
    tables.write_bytes(rebuild(tables, doubled))
    with open_saec(tables) as file, pytest.raises(FormatError, match="and nothing else, is followed by its residual"):
        verify_file(file, decode=False)


def test_tables_without_that_layer_are_refused_when_the_header_requires_it(tables: Path, rebuild: Rebuild) -> None:
    tables.write_bytes(rebuild(tables, without("RTAB", 0)))
    with pytest.raises(FormatError, match="embed 'tables', but frames"):
        open_saec(tables)


def test_a_residual_in_a_file_without_that_layer_is_refused(
    saec: Callable[..., Path], sae: SAE, rebuild: Rebuild
) -> None:
    path = saec("tables")

    def change(parts: list[Frame]) -> list[Frame]:
        return [new for part in parts for new in ([part, ("RCHK", False, b"")] if part[0] == "CHNK" else [part])]

    path.write_bytes(rebuild(path, change))
    with open_saec(path, sae=sae) as file, pytest.raises(FormatError, match="RCHK"):
        verify_file(file, decode=False)
