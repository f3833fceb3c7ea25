"""Folders of which one file is the input of a target: checkpoints of every family, array files, feature activations."""

from __future__ import annotations

import functools
import io
import json
import tempfile
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import family_cases
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from saecodec.formats.array_source import ArraySource
from saecodec.formats.arrays import open_array
from saecodec.formats.checkpoints import load_sae
from saecodec.formats.latent_source import LatentSource, open_latents
from saecodec.formats.weights import pack_weights, unpack_weights

SAELENS = Path(__file__).parents[1] / "fixtures" / "saelens"
_SAELENS_CASES = ("gated", "matching_pursuit", "old_very_old", "saelens5_finetune_scaling", "temporal", "topk_train")
_LARGEST = 1 << 13  # of a file that is mutated: more bytes only make runs slower


@dataclass(frozen=True)
class Slot:
    """A file among others. case: what they are together. files: of the folder, by relative path, with the content that
    they have. name: of the one that inputs replace. read: what is done then, with the path of the folder."""

    case: str
    files: dict[str, bytes]
    name: str
    read: Callable[[Path], object]

    @property
    def key(self) -> bytes:
        """Two bytes that inputs for it begin with, whatever other slots there are."""
        return zlib.crc32(f"{self.case}/{self.name}".encode()).to_bytes(4, "little")[:2]


@functools.cache
def checkpoints() -> list[Slot]:
    """A slot for every small file of a checkpoint of every family."""
    slots: list[Slot] = []
    for case, write in family_cases.CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            written = write(Path(temporary))
            path = str(written.path).replace(temporary, "").lstrip("/")
            slots += _slots_of(case, Path(temporary), functools.partial(_load, path, written.k))
    for case in _SAELENS_CASES:
        slots += _slots_of(f"saelens/{case}", SAELENS / case, functools.partial(_load, "", None))
    with tempfile.TemporaryDirectory() as temporary:
        _write_mapped(Path(temporary))
        slots += _slots_of("mapped", Path(temporary), functools.partial(_load, "saecodec.json", None))
    return slots


def _load(path: str, k: int | None, folder: Path) -> None:
    """Load a checkpoint, run it, and write it into a file. k: what it has to be told."""
    sae = load_sae(f"{folder}/{path}" if path else folder, "cpu", k=k)
    x = family_cases.rows(1).reshape(-1, family_cases.D).astype(np.float32)
    if sae.width == family_cases.D and sae.normalization == "none":
        sae.rows(sae.features(x))
    again = unpack_weights(pack_weights(sae, decoder_only=False), "again", n_latents=sae.n_latents)
    assert again.sae_id == sae.sae_id


def _slots_of(case: str, folder: Path, read: Callable[[Path], object]) -> list[Slot]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop("io.npz", None)  # what SAELens computes
    return [Slot(case, files, name, read) for name, data in files.items() if len(data) <= _LARGEST]


def _write_mapped(folder: Path) -> None:
    names = {"w_enc": {"name": "enc", "transpose": True}, "b_enc": "bias", "w_dec": "dec", "b_dec": "mean"}
    held = family_cases.tensors(
        enc=family_cases.W_E.T, bias=family_cases.B_E, dec=family_cases.W_D, mean=family_cases.B_D
    )
    (folder / "mine.safetensors").write_bytes(save(held))
    mapping = {"weights": "mine.safetensors", "tensors": names, "nonlinearity": "topk", "k": family_cases.K}
    (folder / "saecodec.json").write_text(json.dumps(mapping))


@functools.cache
def arrays() -> list[Slot]:
    """A slot for each kind of file that is read by code of ours: not those that are left to Arrow, HDF5 and zarr."""
    x = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    tensor = torch.from_numpy(x)
    old, new = io.BytesIO(), io.BytesIO()
    torch.save(tensor, old, _use_new_zipfile_serialization=False)
    torch.save({"acts": tensor, "step": 3}, new)
    files = {"a.npy": _npy(x), "f.npy": _npy(np.asfortranarray(x)), "a.npz": _npz(acts=x), "c.npz": _npz(True, acts=x)}
    files |= {"a.safetensors": save({"acts": tensor}), "old.pt": old.getvalue(), "a.pt": new.getvalue()}
    slots = [Slot("array", {name: data}, name, functools.partial(_rows, name)) for name, data in files.items()]
    return slots + _latents()


def _latents() -> list[Slot]:
    """Feature activations of each kind."""
    dense = np.where(np.arange(48).reshape(6, 8) % 3, 0, np.arange(48).reshape(6, 8) / 8).astype(np.float16)
    rows, latents = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=6))])
    values = dense[rows, latents]
    csr = {"indices": latents, "indptr": indptr, "data": values, "format": np.array(b"csr"), "shape": np.array([6, 8])}
    sparse = io.BytesIO()
    floats = torch.from_numpy(values.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "in beta state"
        torch.save(torch.sparse_csr_tensor(indptr, latents, floats, (6, 8), check_invariants=True), sparse)
    coo = io.BytesIO()
    torch.save(torch.from_numpy(dense.astype(np.float32)).to_sparse(), coo)
    files = {"z.npz": _npz(**csr), "csr.pt": sparse.getvalue(), "coo.pt": coo.getvalue()}
    slots = [
        Slot("latents", {name: data}, name, functools.partial(_features, name, None)) for name, data in files.items()
    ]
    places = np.stack([rows // 3, rows % 3, latents], 1).astype(np.int32)
    split = {"locations": torch.from_numpy(places), "activations": torch.from_numpy(values)}
    config = json.dumps({"cache_ctx_len": 3, "n_splits": 1}).encode()
    delphi = {"0_7.safetensors": save(split | {"tokens": torch.arange(6).reshape(2, 3)}), "config.json": config}
    pair = {"topk_indices.npy": _npy(np.argsort(-dense, 1)[:, :2]), "topk_values.npy": _npy(-np.sort(-dense, 1)[:, :2])}
    slots += [Slot("delphi", delphi, name, functools.partial(_features, "", None)) for name in delphi]
    return slots + [Slot("saerch", pair, name, functools.partial(_features, "topk_indices.npy", 8)) for name in pair]


def _rows(name: str, folder: Path) -> None:
    """Read all rows of an array, and some."""
    source: ArraySource = open_array(folder / name)
    n = source.n_rows
    for _ in source.batches([n // 2, n - n // 2]):
        pass


def _features(name: str, n_latents: int | None, folder: Path) -> None:
    """Read all feature activations."""
    source: LatentSource = open_latents(folder / name if name else folder, n_latents)
    for rows in source.chunks(_chunks(source.n_rows)):
        rows.rows()


def _chunks(n: int) -> list[int]:
    """Rows of each chunk that `n` rows are read in."""
    return [min(1 << 16, n - start) for start in range(0, n, 1 << 16)]


def _npy(array: NDArray[np.generic]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _npz(compressed: bool = False, **arrays: NDArray[np.generic]) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()
