"""Small SAEs, rows and codecs for the tests of files, and the frames of a file to take it apart by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from saecodec.codec import Codec
from saecodec.formats.array_source import MemoryArray
from saecodec.formats.encoding import encode_array, fit_array
from saecodec.frames import HEAD_BYTES, FrameHead, frame, frames
from saecodec.goal import Goal
from saecodec.nonlinearity import Gated, JumpReLU, Nonlinearity, ReLU, TopK
from saecodec.sae import SAE, Encoder

WIDTH, LATENTS = 8, 24

Frames = list[tuple[str, bool, bytes]]
"""Kind, criticality and payload of each frame."""


def random_sae(architecture: str = "standard", seed: int = 0, width: int = WIDTH, latents: int = LATENTS) -> SAE:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    nonlinearity: Nonlinearity = {
        "standard": lambda: ReLU(),
        "jumprelu": lambda: JumpReLU(0.4 + normal(latents).abs()),
        "topk": lambda: TopK(4),
        "gated": lambda: Gated(0.1 * normal(latents), 0.1 * normal(latents), torch.full((latents,), -0.5)),
    }[architecture]()
    w_dec = normal(latents, width)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    encoder = Encoder(w_dec.T.contiguous(), torch.full((latents,), -0.5), nonlinearity, seed % 2 == 0)
    return SAE(w_dec, 0.1 * normal(width), encoder, architecture, f"tiny-{architecture}-{seed}", "tests")


@pytest.fixture(scope="session")
def make_sae() -> Callable[..., SAE]:
    """(architecture, seed, width, latents) -> a random SAE with unit decoder directions."""
    return random_sae


@pytest.fixture(scope="session")
def sae() -> SAE:
    return random_sae()


@pytest.fixture(scope="session")
def other_sae() -> SAE:
    return random_sae(seed=1)


@pytest.fixture(scope="session")
def x() -> npt.NDArray[np.float32]:
    """40 rows, of which row 7 is zero."""
    rows = np.random.default_rng(0).normal(size=(40, WIDTH)).astype(np.float32)
    rows[7] = 0
    return rows


@pytest.fixture(scope="session")
def codec(sae: SAE, x: npt.NDArray[np.float32]) -> Codec:
    """Fitted on `x`, with its SAE."""
    return Codec.fit(sae, x)


@pytest.fixture(scope="session")
def other_codec(sae: SAE, x: npt.NDArray[np.float32]) -> Codec:
    """With the same SAE, but another step."""
    return Codec.fit(sae, x, "0.7rms")


@pytest.fixture(scope="module", params=["plain", "residual"])
def layered(request: pytest.FixtureRequest, make_sae: Callable[..., SAE], rows: npt.NDArray[np.float32]) -> Codec:
    """Fitted on the module's own `rows`, without and with a residual layer."""
    return fit_array(MemoryArray(rows), make_sae("topk"), Goal.of(residual=request.param == "residual"))


@pytest.fixture
def saec(sae: SAE, codec: Codec, x: npt.NDArray[np.float32], tmp_path: Path) -> Callable[..., Path]:
    """Encode `x` (or `rows`) into a new file: (embed, chunk_rows, rows) -> path."""

    def make(embed: str = "tables", *, chunk_rows: int = 16, rows: npt.NDArray[np.float32] = x) -> Path:
        path = tmp_path / f"{embed}-{chunk_rows}-{len(list(tmp_path.iterdir()))}.saec"
        encode_array(MemoryArray(rows), path, sae=sae, codec=codec, embed=embed, chunk_rows=chunk_rows)
        return path

    return make


@pytest.fixture(scope="session")
def take_apart() -> Callable[[bytes], Frames]:
    """The frames after the magic (8 bytes)."""

    def split(data: bytes) -> Frames:
        return [(head.kind, head.critical, bytes(payload)) for head, payload in frames(data[8:], "test")]

    return split


@pytest.fixture(scope="session")
def put_together() -> Callable[[bytes, Frames], bytes]:
    """The inverse of `take_apart`, with valid checksums; an INDX or TAIL frame is written as it is given."""

    def join(magic: bytes, parts: Frames) -> bytes:
        return magic + b"".join(frame(kind, payload, critical=critical) for kind, critical, payload in parts)

    return join


@pytest.fixture(scope="session")
def rebuild() -> Callable[..., bytes]:
    """A `.saec` file of other frames: its index and trailer are made anew, so that they fit what stands before them.

    change: takes and returns the frames before the index. index: the same for the columns (rows, offsets, lengths).
    """
    from saecodec.formats.frame_file import TRAILER
    from saecodec.formats.index import Index
    from saecodec.formats.saec import SaecFile, open_saec

    def make(
        path: Path,
        change: Callable[[Frames], Iterable[tuple[str, bool, bytes]]] = lambda parts: parts,
        index: Callable[..., tuple[list[int], ...]] = lambda *columns: columns,
    ) -> bytes:
        file: SaecFile
        with open_saec(path) as file:
            rows, leading = file.index.rows.tolist(), file.index.leading
        data = path.read_bytes()
        before = [(h.kind, h.critical, bytes(p)) for h, p in frames(data[8:], "test") if h.kind not in ("INDX", "TAIL")]
        out, offsets, lengths = data[:8], [], []
        for kind, critical, payload in change(before):
            added = frame(kind, payload, critical=critical)
            if kind == "CHNK":
                offsets.append(len(out))
                lengths.append(len(added))
            out += added
        columns = (np.array(column, np.int64) for column in index(rows, offsets, lengths))
        at = len(out)
        return out + frame("INDX", Index(leading, *columns).to_bytes()) + frame("TAIL", TRAILER.pack(at))

    return make


@pytest.fixture(scope="session")
def frame_boundaries() -> Callable[[bytes], list[int]]:
    """Offsets at which frames begin, and the size of the file."""

    def offsets(data: bytes) -> list[int]:
        at, out = 8, [8]
        while at < len(data):
            at += HEAD_BYTES + FrameHead.parse(data[at : at + HEAD_BYTES], len(data) - at - HEAD_BYTES, "test").length
            out.append(at)
        return out

    return offsets
