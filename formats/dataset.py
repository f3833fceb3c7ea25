"""A torch dataset of activations that lie in `.saec` files, to train an SAE from: batches of rows, shuffled.

Chunks are decoded whole, in random order, and the rows of a few of them are mixed: as random as reading rows one by one
for what a training step sees, without decoding a chunk for each row.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from saecodec.errors import InputError
from saecodec.formats.saec import SaecFile, open_saec
from saecodec.prefetch import prefetched

_OPEN_FILES: Final = 16

if TYPE_CHECKING:
    from saecodec.codec import Codec
    from saecodec.sae import SAE


class SaecDataset(IterableDataset[Tensor]):
    """Batches of rows of one or many `.saec` files, tensors (batch_rows, d).

    Give it to a `DataLoader` with `batch_size=None`: its workers take different chunks, and each decodes ahead.

    >>> data = SaecDataset(sorted(glob("acts/*.saec")), sae=sae, batch_rows=4096, seed=0)   # doctest: +SKIP
    >>> for epoch in range(3):                                                               # doctest: +SKIP
    ...     data.set_epoch(epoch)
    ...     for x in DataLoader(data, batch_size=None, num_workers=4):
    ...         ...

    paths: files, or URLs, of rows of one width. sae, codec, base_only: see `SaecArray`. batch_rows: rows of a batch;
    the last of a worker has fewer, unless `drop_last`. shuffle: of chunks, and of the rows of `mix_chunks` chunks,
    which are held at a time; else rows come in the order of the files. seed: the same one, with the same epoch and
    number of workers, gives the same batches. rank, world_size: of the processes that train together, each of which
    gets other chunks; default those of `torch.distributed`, where that is initialized. even: each rank gets as many
    batches as the others, for which a few rows are left out of an epoch. dtype: of the tensors. Files are opened when
    their turn comes, a few at a time. InputError when widths differ.
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        sae: SAE | None = None,
        codec: Codec | None = None,
        batch_rows: int = 4096,
        shuffle: bool = True,
        mix_chunks: int = 8,
        seed: int = 0,
        drop_last: bool = False,
        even: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        base_only: bool = False,
    ) -> None:
        if batch_rows < 1 or mix_chunks < 1:
            raise InputError(f"batches of {batch_rows} rows of {mix_chunks} chunks were asked for, expected 1 or more")
        names = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        if not names:
            raise InputError("no files were given: a dataset needs one file or more")
        # The device of a decoder in a file: workers are forked or spawned, and leave cuda to the one that trains.
        self._options: dict[str, Any] = {"sae": sae, "codec": codec, "device": "cpu"}
        self._paths, self._base_only = names, base_only
        self._chunk_rows: list[NDArray[np.int64]] = []  # of each file
        self._held: OrderedDict[int, SaecFile] = OrderedDict()
        self._embedded: dict[str, SAE | None] = {}
        widths: set[int] = set()
        for name in names:
            with open_saec(name) as file:
                file.check_rows()
                widths.add(file.header.width)
                self._chunk_rows.append(file.index.rows)
        if len(widths) > 1:
            raise InputError(f"rows of one width are needed, these files have {sorted(widths)}")
        (self.width,) = widths
        self.batch_rows, self.mix_chunks, self.drop_last, self.dtype = batch_rows, mix_chunks, drop_last, dtype
        self._shuffle, self._seed, self._even = shuffle, seed, even
        self._epoch = torch.zeros(1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers may live longer than an epoch
        self._rank, self._world_size = _position(rank, world_size)

    @property
    def n_rows(self) -> int:
        """Rows of all files."""
        return sum(int(rows.sum()) for rows in self._chunk_rows)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle otherwise than in other epochs; call it before the `DataLoader` begins one."""
        self._epoch[0] = epoch

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        here, of = (0, 1) if worker is None else (worker.id, worker.num_workers)
        epoch = int(self._epoch[0])
        order = np.random.default_rng([self._seed, epoch])  # the same everywhere: all agree on who takes what
        chunks = [(f, i) for f, rows in enumerate(self._chunk_rows) for i in np.flatnonzero(rows).tolist()]
        if self._shuffle:
            chunks = [chunks[k] for k in order.permutation(len(chunks))]
        shares = [chunks[rank * of + here :: self._world_size * of] for rank in range(self._world_size)]
        most = min(map(self._n_batches, shares)) if self._even else None
        within = np.random.default_rng([self._seed, epoch, self._rank * of + here])
        decoded = prefetched(self._decoded(shares[self._rank], within))
        yield from islice(_batches(decoded, self.batch_rows, drop_last=self.drop_last), most)

    def _n_batches(self, chunks: list[tuple[int, int]]) -> int:
        rows = sum(int(self._chunk_rows[f][i]) for f, i in chunks)
        return rows // self.batch_rows if self.drop_last else -(-rows // self.batch_rows)

    def _decoded(self, chunks: list[tuple[int, int]], rng: np.random.Generator) -> Iterator[Tensor]:
        """The rows of some chunks at a time, mixed; or chunk by chunk, as they are."""
        many = self.mix_chunks if self._shuffle else 1
        for at in range(0, len(chunks), many):
            rows = torch.cat([torch.from_numpy(self._chunk(*chunk)) for chunk in chunks[at : at + many]]).to(self.dtype)
            yield rows[torch.from_numpy(rng.permutation(len(rows)))] if self._shuffle else rows

    def _chunk(self, f: int, i: int) -> NDArray[np.float32]:
        file = self._open(f)
        (layers,) = file.chunk_layers([i], base_only=self._base_only)
        return file.reconstruct(layers)

    def _open(self, f: int) -> SaecFile:
        """A file; the last few stay open, and an SAE that a file embeds serves all that embed the same."""
        file = self._held.pop(f, None)
        if file is None:
            file = open_saec(self._paths[f], **self._options)
            if self._options["sae"] is None and file.header.embed == "decoder":
                known = self._embedded.get(file.header.decoder_id)
                if known is not None:
                    file = open_saec(self._paths[f], **(self._options | {"sae": known}))
                self._embedded = {file.header.decoder_id: file.decoder.sae}
            if len(self._held) == _OPEN_FILES:
                self._held.popitem(last=False)[1].close()
        self._held[f] = file
        return file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_held": OrderedDict(), "_embedded": {}}


def _position(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if rank is None and world_size is None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, world_size = rank or 0, 1 if world_size is None else world_size
    if not 0 <= rank < world_size:
        raise InputError(f"rank {rank} of {world_size}: ranks are 0 to {world_size - 1}")
    return rank, world_size


def _batches(parts: Iterator[Tensor], n: int, *, drop_last: bool) -> Iterator[Tensor]:
    """Rows that come in parts of any size, n at a time."""
    left: list[Tensor] = []
    held = 0
    for part in parts:
        while held + len(part) >= n:
            yield torch.cat([*left, part[: n - held]])  # a copy: a part of the mix would keep all of it in memory
            part = part[n - held :]
            left, held = [], 0
        if len(part):
            left.append(part)
            held += len(part)
    if held and not drop_last:
        yield torch.cat(left)
