"""scipy's sparse matrices in `.npz` files, CSR: members `data`, `indices`, `indptr`, `shape` and `format`.

Read and written as `scipy.sparse.load_npz` and `save_npz` do, but a chunk at a time, which scipy does not, and without
it.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, BinaryIO, Final

import numpy as np
import numpy.lib.format as npy_format
import numpy.typing as npt

from saecodec.errors import InputError
from saecodec.formats.array_source import float_dtype
from saecodec.formats.array_streams import fill, opened_member
from saecodec.formats.latent_source import LatentSource, StoredBytes, check_chunk, with_latents
from saecodec.formats.numpy_arrays import NpyHeader, npz_header
from saecodec.formats.zip_members import unpacked
from saecodec.latent_rows import LatentRows
from saecodec.stored_floats import STORED

_NAMES: Final = ("data", "indices", "indptr")
_SMALL: Final = 1 << 10  # bytes of the members that are read whole
_COPY: Final = 1 << 22


class SparseNpz(LatentSource):
    """A scipy CSR matrix (T, F) in an `.npz`."""

    kind = "scipy"

    def __init__(self, path: str, n_latents: int | None) -> None:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename for info in archive.infolist()}
            missing = [name for name in (*_NAMES, "shape", "format") if f"{name}.npy" not in names]
            if missing:
                raise InputError(
                    f"{path}: not a scipy sparse matrix: it lacks {', '.join(missing)}; scipy.sparse.save_npz makes one"
                )
            small = {}
            for name in ("format", "shape"):
                found = archive.getinfo(f"{name}.npy").file_size
                if found > _SMALL:
                    raise InputError(f"{path}: its member {name!r} has {found} bytes: not a scipy sparse matrix")
                small[name] = _small_member(archive, path, name)
            layout, shape = str(small["format"].astype(str)), small["shape"]
            if layout != "csr" or shape.shape != (2,) or shape.dtype.kind not in "iu":
                raise InputError(
                    f"{path}: a sparse matrix of format {layout!r} and shape {shape.tolist()}; expected 'csr' and two "
                    "dimensions: matrix.tocsr() makes one"
                )
            self._members = {name: npz_header(archive, path, name) for name in _NAMES}
            for name, header in self._members.items():
                _check_size(path, archive.getinfo(f"{name}.npy"), header)
        data, indices, indptr = (self._members[name] for name in _NAMES)
        wide = int(shape[0]), with_latents(path, int(shape[1]), n_latents)
        super().__init__(path, wide, float_dtype(data.stored, f"{path}['data']"), StoredBytes(os.path.getsize(path)))
        if any(member.stored.kind not in "iu" or len(member.shape) != 1 for member in (indices, indptr)):
            raise InputError(f"{path}: 'indices' is {indices}, 'indptr' {indptr}; expected one-dimensional integers")
        if indptr.shape != (self.n_rows + 1,) or data.shape != indices.shape or len(data.shape) != 1:
            raise InputError(
                f"{path}: shape {wide}, but 'indptr' is {indptr}, 'indices' {indices} and 'data' {data}: the file is "
                "truncated or corrupt"
            )

    def _read(self, spans: Iterator[tuple[int, int]]) -> Iterator[LatentRows]:
        n = self._members["data"].shape[0]
        with ExitStack() as stack:
            streams = {
                name: stack.enter_context(opened_member(self.path, f"{name}.npy", member.end))
                for name, member in self._members.items()
            }

            def take(name: str, count: int) -> npt.NDArray[Any]:
                stored = self._members[name].stored
                block = np.empty(count, stored)
                fill(streams[name], block)
                return block.astype(stored.newbyteorder("="), copy=False)

            last = int(take("indptr", 1)[0])
            if last != 0:
                raise InputError(f"{self.path}: 'indptr' begins with {last}; expected 0")
            for start, stop in spans:
                indptr = np.concatenate([[last], take("indptr", stop - start).astype(np.int64)])
                if (np.diff(indptr) < 0).any() or indptr[-1] > n:
                    raise InputError(
                        f"{self.path}: 'indptr' falls or exceeds the {n} values in rows {start} to {stop}: corrupt"
                    )
                count, last = int(indptr[-1] - indptr[0]), int(indptr[-1])
                check_chunk(self.path, start, stop, count)
                latents, values = take("indices", count), take("data", count)
                yield LatentRows.sorted(indptr - indptr[0], latents, values, self.n_latents, self.path, start)
            if last != n:
                raise InputError(f"{self.path}: 'indptr' ends at {last}, but there are {n} values: corrupt")


def _small_member(archive: zipfile.ZipFile, path: str, name: str) -> npt.NDArray[Any]:
    """An array of an `.npz`, read whole."""
    npz_header(archive, path, name)  # refuses what might unpack to more than the archive says
    try:
        with archive.open(f"{name}.npy") as member:
            return npy_format.read_array(member, allow_pickle=False)
    except Exception as error:  # its header is parsed as a Python literal: nearly anything
        raise InputError(f"{path}: its member {name!r} cannot be read ({error}): the file is corrupt") from error


def _check_size(path: str, info: zipfile.ZipInfo, header: NpyHeader) -> None:
    """InputError unless a member can have the values that its header announces: memory is taken on its word."""
    needed = header.end + math.prod(header.shape) * header.stored.itemsize
    if info.file_size != needed or unpacked(info, os.path.getsize(path)) < needed:
        raise InputError(
            f"{path}: its member {info.filename} is {header}, which needs {needed} bytes, but it has {info.file_size} "
            f"({info.compress_size} packed): the file is truncated or corrupt"
        )


def save_sparse_npz(
    file: BinaryIO,
    indptr: npt.NDArray[np.int64],
    latents: IO[bytes],
    values: IO[bytes],
    n_latents: int,
    dtype: str,
) -> None:
    """Write a CSR matrix (T, F). latents, values: files of K int32 and of K values, from where they stand."""
    nnz = int(indptr[-1])
    # scipy wants one dtype for both.
    index = "<i4" if max(nnz, n_latents) < 1 << 31 else "<i8"
    with zipfile.ZipFile(file, "w") as archive:
        parts = (
            ("indices", index, (nnz,), latents),
            ("indptr", index, indptr.shape, indptr.astype(index)),
            ("format", "|S3", (), np.array(b"csr")),
            ("shape", "<i8", (2,), np.array([len(indptr) - 1, n_latents], "<i8")),
            ("data", STORED[dtype], (nnz,), values),
        )
        for name, descr, shape, content in parts:
            # zip64 as in np.savez: zipfile cannot know beforehand that a streamed member stays below 2 GiB.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy_format.write_array_header_1_0(member, {"descr": descr, "fortran_order": False, "shape": shape})
                if isinstance(content, np.ndarray):
                    member.write(content.tobytes())
                    continue
                while block := content.read(_COPY):
                    if name == "indices" and index == "<i8":
                        block = np.frombuffer(block, "<i4").astype(index).tobytes()
                    member.write(block)
