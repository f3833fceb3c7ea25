"""What is done with one shard, in whichever process: it is coded, read back and staged, and its line is returned.

A task is small and goes to other processes; each loads the SAE and the codec once, from their paths.
"""

from __future__ import annotations

import contextlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from saecodec.codec import DEFAULT_CHUNK_ROWS, Codec
from saecodec.decoder_precision import FLOAT32
from saecodec.distortion import Distortion
from saecodec.errors import InputError, MissingPieceError, SaecodecError
from saecodec.exact_encoder import deterministic_pieces
from saecodec.formats.array_source import ArraySource, rows_for
from saecodec.formats.arrays import EXTENSIONS, open_array
from saecodec.formats.checkpoints import load_sae
from saecodec.formats.codecfile import load_codec
from saecodec.formats.damage import Losses
from saecodec.formats.decoding import compare, decode_file
from saecodec.formats.encoding import encode_array, matched
from saecodec.formats.folder_manifest import Line, file_hash, staged_path
from saecodec.formats.folder_plan import Shard
from saecodec.formats.saec import open_saec
from saecodec.goal import Goal
from saecodec.sae import SAE
from saecodec.search import check_search, fitted_search


@dataclass(frozen=True)
class Work:
    """A task with what it needs in memory. code: codes a shard and returns its line. same: the keys of a line, with
    values, that tell whether a shard was coded by the same task. on_error: what the task does about rows that are lost,
    which matters to shards that have lost some."""

    code: Callable[[Shard], Line]
    same: Line
    on_error: str | None = None

    def made(self, line: Line) -> bool:
        """Whether a line is of the same task."""
        same = all(line.get(key) == value for key, value in self.same.items())
        return same and ("lost" not in line or line.get("on_error") == self.on_error)

    def attempt(self, shard: Shard) -> Line:
        """The line of a shard, or `failure` of what went wrong with it."""
        try:
            return self.code(shard)
        except SaecodecError as error:
            return failure(shard, str(error))
        except Exception as error:  # of a library: the other shards need not suffer
            return failure(shard, f"{type(error).__name__}: {error}")


def failure(shard: Shard, error: str) -> Line:
    """What stands for the line of a shard that could not be coded."""
    return {"source": shard.source, "output": shard.output, "error": error}


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """What is done with the shards of folder `src`; outputs go to `dst`. sae, codec: paths. k, input_scale, device: see
    `load_sae`. command: its name; kinds: extensions of what it takes."""

    src: str
    dst: str
    sae: str | None = None
    codec: str | None = None
    k: int | None = None
    input_scale: float | None = None
    device: str = "auto"
    command: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    extension: str = field(init=False)

    @abstractmethod
    def load(self) -> Work:
        """With the SAE and the codec in memory; raises what loading them raises."""

    def _pieces(self) -> tuple[SAE | None, Codec | None]:
        sae = load_sae(self.sae, self.device, k=self.k, input_scale=self.input_scale) if self.sae else None
        return sae, load_codec(self.codec, self.device) if self.codec else None

    @contextmanager
    def _shard(self, shard: Shard, line: Line, same: Line) -> Iterator[tuple[str, str]]:
        """Yield the paths of a source, which must stay as it is, and of the staged output, and fill the line."""
        started = time.perf_counter()
        source, staged = os.path.join(self.src, shard.source), staged_path(self.dst, shard.output)
        before = os.stat(source)
        line |= {"command": self.command, "source": shard.source, "source_bytes": before.st_size}
        line |= {"source_mtime_ns": before.st_mtime_ns, "source_sha256": file_hash(source), "output": shard.output}
        try:
            yield source, staged
            after = os.stat(source)
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise InputError(f"{source}: changed while it was read; run again when it is complete")
            line |= {"output_bytes": os.path.getsize(staged), "output_sha256": file_hash(staged)} | same
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(staged)
            raise
        line["seconds"] = round(time.perf_counter() - started, 3)


@dataclass(frozen=True, kw_only=True)
class EncodeFolder(Task):
    """`encode-dir`: array files become `.saec` files by one codec. Arguments are those of `encode_array`; key: of the
    array in a file that holds several. verify: decode each file, for its NMSE. deterministic: see `exact_encoder`."""

    command: ClassVar[str] = "encode-dir"
    kinds: ClassVar[tuple[str, ...]] = EXTENSIONS
    extension: str = field(default=".saec", init=False)
    embed: str = "none"
    weights: str = FLOAT32
    chunk_rows: int = DEFAULT_CHUNK_ROWS
    search: str | None = None
    key: str | None = None
    verify: bool = True
    deterministic: bool = False

    def load(self) -> Work:
        """As `Task.load`; MissingPieceError without a codec or an SAE, IdentityError when they do not fit."""
        given, fitted = self._pieces()
        if self.deterministic:
            given, fitted = deterministic_pieces(given, fitted)
        if fitted is None:
            raise MissingPieceError("the files of a folder share a codec: give it (-c CODEC); 'saecodec fit' makes one")
        sae, codec = matched(given, fitted, self.weights, self.embed)
        assert codec is not None
        goal = Goal.of(search=self.search)
        settings = {name: getattr(self, name) for name in ("embed", "weights", "chunk_rows", "key")}
        search = goal.search if goal.search_given else fitted_search(codec.info)
        check_search(sae, search)
        settings["search"] = search
        if self.deterministic:  # not told otherwise: manifests are older than it
            settings["deterministic"] = True
        ids = {"codec_id": codec.codec_id, "decoder_id": codec.decoder_id, "sae_id": sae.sae_id}
        same = ids | {"settings": settings}
        return Work(lambda shard: self._code(shard, sae, codec, goal, same), same)

    def _code(self, shard: Shard, sae: SAE, codec: Codec, goal: Goal, same: Line) -> Line:
        line: Line = {}
        with self._shard(shard, line, same) as (path, staged):
            source = rows_for(open_array(path, self.key), sae.width, sae.row_dims)
            encode_array(
                source,
                staged,
                sae=sae,
                codec=codec,
                goal=goal,
                chunk_rows=self.chunk_rows,
                embed=self.embed,
                weights=self.weights,
                force=True,
                jobs=1 if sae.device.type == "cpu" else None,  # a GPU's process has the cores for itself
            )
            found = self._read_back(staged, source, sae, codec) if self.verify else None
        rows = source.n_rows
        line |= {"rows": rows, "width": source.width, "dtype": source.dtype}
        line["bits_per_row"] = 8 * line["output_bytes"] / rows if rows else None
        line["nmse"] = found.nmse if found else None
        line["squared_error"], line["variance"] = (found.squared_error, found.variance) if found else (None, None)
        return line

    def _read_back(self, staged: str, source: ArraySource, sae: SAE, codec: Codec) -> Distortion:
        held = None if self.embed == "decoder" else sae  # else it is the one in the file that decodes it
        with open_saec(staged, sae=held, codec=codec if self.embed == "none" else None, device=self.device) as file:
            return compare(file, source)


@dataclass(frozen=True, kw_only=True)
class DecodeFolder(Task):
    """`decode-dir`: `.saec` files become array files. extension: of these. dtype: of their values, by default that of
    the arrays that were encoded. on_error: what rows of damaged chunks do, see `Losses`; "raise" fails their shard."""

    command: ClassVar[str] = "decode-dir"
    kinds: ClassVar[tuple[str, ...]] = (".saec",)
    extension: str = ".npy"
    dtype: str | None = None
    on_error: str = "raise"

    def load(self) -> Work:
        """As `Task.load`; whether SAE and codec are those of a file is seen when it is decoded."""
        sae, codec = self._pieces()
        same = {"settings": {"extension": self.extension, "dtype": self.dtype}}
        return Work(lambda shard: self._code(shard, sae, codec, same), same, self.on_error)

    def _code(self, shard: Shard, sae: SAE | None, codec: Codec | None, same: Line) -> Line:
        line: Line = {}
        with (
            self._shard(shard, line, same) as (path, staged),
            open_saec(path, sae=sae, codec=codec, device=self.device) as file,
        ):
            file.check_rows()
            losses = Losses(self.on_error, advice="--on-error skip (on_error='skip') or nan writes the other rows")
            decode_file(file, staged, dtype=self.dtype, force=True, losses=losses)
            if losses.ranges:
                line |= {"lost": losses.listed(file.path), "on_error": self.on_error}
            line |= {"codec_id": file.header.codec_id, "decoder_id": file.header.decoder_id}
            rows = file.n_rows - (losses.n_rows if self.on_error == "skip" else 0)
            line |= {"rows": rows, "width": file.header.width, "dtype": self.dtype or file.dtype}
        return line


def loading(task: Task) -> Callable[[Shard], Line]:
    """`Work.attempt` of a task that is loaded when the first shard comes: what goes wrong then is a shard's failure."""
    work: list[Work] = []

    def attempt(shard: Shard) -> Line:
        try:
            if not work:
                work.append(task.load())
        except Exception as error:
            return failure(shard, f"{type(error).__name__}: {error}")
        return work[0].attempt(shard)

    return attempt
