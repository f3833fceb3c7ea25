"""A slow decoder of `.saec` and `.saecodec` files, written from docs/format.md alone.

It shares no code with saecodec and does not use constriction: integers are Python integers, and numpy only holds the
arrays that come out. Section names in comments are those of the document. Anything a valid file cannot hold raises
`Refused`, also where the document leaves the check to the reader.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import zstandard

SAEC_MAGIC = b"\x89SAEC\r\n\x1a"
CODEC_MAGIC = b"\x89SAEM\r\n\x1a"
RESIDUAL = "layer:residual"
LATENTS = "content:latents"
SIDE = "side:rows"
NORMALIZATIONS = ("none", "layer_norm", "row_norm", "sequence_norm")
PRIORS = {"factorized": "prior:factorized", "context": "prior:context"}
INTEGER_WEIGHTS = "weights:int8"
FEATURES = {*PRIORS.values(), RESIDUAL, SIDE, LATENTS, INTEGER_WEIGHTS}
PRECISIONS = ("float32", "bfloat16", "int8")
WEIGHT_FACTS = {"name": str, "source": str, "config": dict}
SAE_FACTS = {"name": str, "source": str, "architecture": str, "n_latents": int}


class Refused(Exception):
    """The bytes break a rule of the format."""


def need(condition: bool, rule: str) -> None:
    if not condition:
        raise Refused(rule)


# -- Conventions -------------------------------------------------------------------------------------------------------


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = bytes(data), 0

    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, n: int) -> bytes:
        need(n <= self.left(), "truncated")
        self.at += n
        return self.data[self.at - n : self.at]

    def varint(self, limit: int = (1 << 63) - 1) -> int:
        value = 0
        for i in range(9):
            (byte,) = self.take(1)
            value += (byte % 128) << (7 * i)
            if byte < 128:
                need(byte > 0 or i == 0, "a varint has its shortest form")
                need(value <= limit, f"a varint of at most {limit}")
                return value
        raise Refused("a varint has at most 9 bytes")

    def blob(self) -> bytes:
        return self.take(self.varint())

    def end(self) -> None:
        need(self.left() == 0, "nothing follows")


def unzigzag(n: int) -> int:
    return n // 2 if n % 2 == 0 else -(n + 1) // 2


def unzigzags(values: list[int]) -> list[int]:
    return [unzigzag(n) for n in values]


def text_of(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused("text is UTF-8") from error


def unpacked(compressed: bytes, size: int) -> bytes:
    """Of one zstd frame, with nothing after it."""
    try:
        need(zstandard.frame_content_size(compressed) == size, "zstd announces the size that the shapes give")
        data = zstandard.ZstdDecompressor().decompress(compressed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused("there is one zstd frame") from error
    need(len(data) == size, "a zstd frame has the size that the shapes give")
    return data


def _map_of(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    need(len({key for key, _ in pairs}) == len(pairs), "no key appears twice")
    need(all(type(key) is str for key, _ in pairs), "keys are text")
    return dict(pairs)


def _no_extension(code: int, data: bytes) -> None:
    raise Refused("there are no extension types")


def _depth_of(value: Any) -> int:
    inside = value.values() if type(value) is dict else value if type(value) is list else None
    return 0 if inside is None else 1 + max(map(_depth_of, inside), default=0)


def record_of(data: bytes) -> dict[str, Any]:
    need(len(data) <= 1 << 24, "a record has at most 2^24 bytes")
    try:
        record = msgpack.unpackb(
            data, raw=False, strict_map_key=True, object_pairs_hook=_map_of, ext_hook=_no_extension
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Refused("a record is MessagePack") from error
    need(isinstance(record, dict), "a record is a map")
    need(_depth_of(record) <= 16, "a record is nested at most 16 deep")
    return record


def field(record: dict[str, Any], key: str, kind: type) -> Any:
    need(type(record.get(key)) is kind, f"{key} is there, and of type {kind.__name__}")
    return record[key]


def check_version(record: dict[str, Any]) -> None:
    """The fields that `HEAD` and `CHED` share (Version and requires)."""
    version, requires = field(record, "version", list), field(record, "requires", list)
    need(len(version) == 2 and all(type(n) is int and n >= 0 for n in version), "a version is two integers")
    need(version[0] == 1, "major version 1")
    need(all(type(name) is str and name in FEATURES for name in requires), "all features are known")


def check_prior(record: dict[str, Any], tables: Tables) -> None:
    """The prior's feature is required, and that of no other."""
    needed = {name for name in record["requires"] if name in PRIORS.values()}
    need(needed == {PRIORS[tables.prior]}, "the prior of the tables is the one that is required")


def identity_of(record: dict[str, Any], key: str) -> str:
    need(len(field(record, key, bytes)) == 32, "an identity has 32 bytes")
    return str(record[key].hex())


# -- Frames ------------------------------------------------------------------------------------------------------------


@dataclass
class Frame:
    kind: str
    critical: bool
    payload: bytes
    offset: int  # in the file
    size: int  # head included


def frames_of(data: bytes, start: int) -> list[Frame]:
    out = []
    while start < len(data):
        need(len(data) - start >= 20, "a frame head has 20 bytes")
        kind, flags, length, crc = struct.unpack_from("<4sIQI", data, start)
        need(kind.isascii() and kind.isalpha() and flags in (0, 1), "a frame has a type of 4 letters and flags 0 or 1")
        need(length <= len(data) - start - 20, "a frame ends inside the file")
        payload = data[start + 20 : start + 20 + length]
        need(zlib.crc32(data[start : start + 16] + payload) == crc, "a frame has its CRC-32")
        out.append(Frame(kind.decode(), flags == 1, payload, start, 20 + length))
        start += 20 + length
    return out


# -- Bucket code -------------------------------------------------------------------------------------------------------


def base_and_bits(bucket: int) -> tuple[int, int]:
    if bucket < 16:
        return bucket, 0
    octave, eighth = divmod(bucket - 16, 8)
    return (8 + eighth) << (octave + 1), octave + 1


# -- Range coder -------------------------------------------------------------------------------------------------------


class Stream:
    def __init__(self, data: bytes) -> None:
        need(len(data) % 4 == 0, "a stream is whole words")
        self.words = list(struct.unpack(f"<{len(data) // 4}I", data))
        self.read = 0
        self.coded = False
        self.low, self.range = 0, (1 << 64) - 1
        self.point = (self.word() << 32) + self.word()

    def word(self) -> int:
        self.read += 1
        return self.words[self.read - 1] if self.read <= len(self.words) else 0

    def quantile(self) -> int:
        self.coded = True
        quantile = (self.point - self.low) % (1 << 64) // (self.range >> 24)
        need(quantile < 1 << 24, "a stream stays inside its range")
        return quantile

    def leave(self, cumulative: int, weight: int) -> None:
        """Go behind a symbol."""
        scale = self.range >> 24
        self.low = (self.low + scale * cumulative) % (1 << 64)
        self.range = scale * weight
        if self.range < 1 << 32:
            self.low = (self.low << 32) % (1 << 64)
            self.range <<= 32
            self.point = ((self.point << 32) + self.word()) % (1 << 64)

    def symbol(self, weights: list[int]) -> int:
        quantile = self.quantile()
        symbol = cumulative = 0
        while quantile >= cumulative + weights[symbol]:
            cumulative += weights[symbol]
            symbol += 1
        self.leave(cumulative, weights[symbol])
        return symbol

    def piece(self, width: int) -> int:
        """A symbol of 2^width that are equally likely."""
        symbol = self.quantile() >> (24 - width)
        self.leave(symbol << (24 - width), 1 << (24 - width))
        return symbol

    def uniform(self, bits: list[int]) -> list[int]:
        """Integers of bits[i] bits: all low 16 bits, then the next 16 of those that have them, and so on."""
        values = [0] * len(bits)
        for done in range(0, max(bits, default=0), 16):
            for i, n in enumerate(bits):
                if n > done:
                    width = min(n - done, 16)
                    values[i] += self.piece(width) << done
        return values

    def end(self) -> None:
        need(self.coded == bool(self.words), "a stream has words when it has symbols, and only then")
        if self.coded:
            need(len(self.words) in (self.read - 1, self.read), "a stream ends with its last symbol")


def values_of(stream: Stream, buckets: list[int]) -> list[int]:
    """Bucket bases plus the offsets that follow in the stream."""
    wide = [i for i, bucket in enumerate(buckets) if base_and_bits(bucket)[1]]
    values = [base_and_bits(bucket)[0] for bucket in buckets]
    for i, offset in zip(wide, stream.uniform([base_and_bits(buckets[i])[1] for i in wide]), strict=True):
        values[i] += offset
    return values


# -- Frequency tables --------------------------------------------------------------------------------------------------


def weights_of(frequencies: list[int]) -> list[int]:
    total = sum(frequencies)
    weights = [1 + f * ((1 << 24) - len(frequencies)) // total for f in frequencies]
    weights[frequencies.index(max(frequencies))] += (1 << 24) - sum(weights)
    return weights


def frequency_of(code: int, resolution: int) -> int:
    if code == 0:
        return 0
    octave, step = divmod(code - 1, 1 << resolution)
    return ((1 << resolution) + step) << octave


def table_of(codes: list[int], resolution: int) -> list[int]:
    frequencies = [frequency_of(code, resolution) for code in codes]
    frequencies += [0] * (304 - len(frequencies))
    return weights_of(frequencies if any(frequencies) else [1] * 304)


# -- Integer arrays ----------------------------------------------------------------------------------------------------

NIBBLES = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192]


def integers(source: Bytes, size: int, below: int = 1 << 40) -> list[int]:
    need(source.varint() == size, f"an array of {size} integers")
    if size == 0:
        return []
    first = source.varint(303)
    n_buckets = source.varint(304 - first)
    need(n_buckets >= 1, "an array has a bucket")
    nibbles = []
    if n_buckets > 1:
        nibbles = [nibble for byte in source.take((n_buckets + 1) // 2) for nibble in (byte & 15, byte >> 4)]
        need(nibbles[0] > 0 and nibbles[n_buckets - 1] > 0, "a table begins and ends at a bucket in use")
        need(not any(nibbles[n_buckets:]), "an unused nibble is 0")
    stream = Stream(source.blob())
    buckets = [first] * size
    if n_buckets > 1:
        weights = weights_of([NIBBLES[nibble] for nibble in nibbles[:n_buckets]])
        buckets = [first + stream.symbol(weights) for _ in range(size)]
    values = values_of(stream, buckets)
    stream.end()
    need(max(values) < below, f"integers below {below}")
    return values


# -- Table sets --------------------------------------------------------------------------------------------------------


@dataclass
class TableSet:
    classes: list[int]  # of each member
    weights: list[list[int]]  # of each class


def table_set(source: Bytes, n_members: int) -> TableSet:
    n_classes, n_symbols, resolution = source.varint(1 << 10), source.varint(304), source.varint(3)
    need(n_classes >= 1 and n_symbols >= 2, "a table set has a class and two symbols")
    classes = integers(source, n_members, below=n_classes)
    steps = unzigzags(integers(source, n_classes * n_symbols, below=321))
    tables = []
    for c in range(n_classes):
        codes, code = [], 0
        for step in steps[c * n_symbols : (c + 1) * n_symbols]:
            code += step
            need(0 <= code <= 20 << resolution, "a frequency code is in range")
            codes.append(code)
        tables.append(table_of(codes, resolution))
    return TableSet(classes, tables)


# -- Integer matrices --------------------------------------------------------------------------------------------------


def check_matrix(data: bytes, n_rows: int, tables: TableSet) -> None:
    """The stream can hold so many rows."""
    least = sum(n_rows * (24 - math.log2(max(tables.weights[c]))) for c in tables.classes)
    need(0.99 * least <= 8 * len(data) + 64, "the integers of a matrix fit their stream")


def matrix_of(data: bytes, n_rows: int, tables: TableSet, limit: int) -> list[list[int]]:
    """Row by row. limit: the largest magnitude."""
    check_matrix(data, n_rows, tables)
    classes, stream = tables.classes, Stream(data)
    order = sorted(range(len(classes)), key=lambda i: (classes[i], i))
    values = values_of(stream, [stream.symbol(tables.weights[classes[i]]) for i in order for _ in range(n_rows)])
    stream.end()
    out = [[0] * len(classes) for _ in range(n_rows)]
    for n, value in enumerate(unzigzags(values)):
        need(abs(value) <= limit, f"an integer of a matrix is at most {limit}")
        out[n % n_rows][order[n // n_rows]] = value
    return out


# -- Tables, Factorized prior, Context prior ---------------------------------------------------------------------------


@dataclass
class Network:
    shifts: tuple[int, int]  # of logits and of scores
    n_bins: tuple[int, int]  # bins and level bins
    block: list[int]  # of each latent
    gains: list[int]  # of levels 1 to 16
    hidden_shifts: list[int]
    hidden_bias: list[list[int]]  # block by block
    biases: tuple[list[int], list[int]]  # of logits and of scores, column by column
    context: list[list[int]]  # U, of the columns before the last block
    out: list[list[int]]  # V
    level_out: list[list[int]]  # W

    @property
    def n_blocks(self) -> int:
        return len(self.hidden_bias)

    @property
    def n_hidden(self) -> int:
        return len(self.hidden_shifts)


@dataclass
class Tables:
    prior: str
    n_latents: int
    signed: bool
    groups: list[int]  # factorized: support classes of each
    support: TableSet  # factorized: of latents; context: of bins
    levels: TableSet  # factorized: of latents; context: of level bins
    network: Network | None
    centroid_classes: list[int]  # of latents
    step: float
    centroids: list[list[int]]


def tables_of(payload: bytes) -> Tables:
    source = Bytes(payload)
    name = text_of(source.blob())
    need(name in PRIORS, f"prior {name} is known")
    n_latents, signed, groups, support, levels, network, classes = (
        factorized_prior(source) if name == "factorized" else context_prior(source)
    )
    (step,) = struct.unpack("<d", source.take(8))
    need(0 < step < math.inf, "the step is positive and finite")
    n_classes = len(levels.weights) if name == "factorized" else max(classes) + 1
    centroids = centroids_of(source, n_classes)
    source.end()
    return Tables(name, n_latents, signed, groups, support, levels, network, classes, step, centroids)


def factorized_prior(source: Bytes) -> tuple[int, bool, list[int], TableSet, TableSet, None, list[int]]:
    n_latents, signed = source.varint(1 << 24), source.varint(1) == 1
    need(n_latents >= 1, "there are latents")
    groups = [source.varint(1 << 10) for _ in range(source.varint(1 << 10))]
    support, levels = table_set(source, n_latents), table_set(source, n_latents)
    need(all(groups) and sum(groups) == len(support.weights), "groups divide the support classes")
    need(max(support.classes) == len(support.weights) - 1, "the last support class has a latent")
    return n_latents, signed, groups, support, levels, None, levels.classes


def context_prior(source: Bytes) -> tuple[int, bool, list[int], TableSet, TableSet, Network, list[int]]:
    signed, network = source.varint(1) == 1, network_of(source)
    n_latents, (n_bins, n_level_bins) = len(network.block), network.n_bins
    support, levels = table_set(source, n_bins), table_set(source, n_level_bins)
    classes = integers(source, n_latents, below=1 << 10)
    integers(source, n_latents, below=321)  # what a nonzero costs, informative
    integers(source, n_latents, below=n_level_bins)  # its typical level bin, likewise
    return n_latents, signed, [], support, levels, network, classes


def network_of(source: Bytes) -> Network:
    n_latents, n_blocks, r = source.varint(1 << 24), source.varint(256), source.varint(780)
    need(min(n_latents, n_blocks, r) >= 1, "a network has latents, blocks and hidden units")
    need(5 * n_latents * r <= 1 << 26, "a network has at most 2^26 weights")
    shifts = source.varint(23), source.varint(23)
    n_bins = source.varint(128), source.varint(128)
    need(min(n_bins) >= 1, "a network has bins and level bins")
    block = integers(source, n_latents, below=n_blocks)
    gains, hidden_shifts = integers(source, 16, below=128), integers(source, r, below=24)
    flat, bias, level_bias = (unzigzags(integers(source, n)) for n in (n_blocks * r, n_latents, n_latents))
    need(all(abs(value) < 1 << 22 for value in (*flat, *bias, *level_bias)), "a bias is below 2^22 in magnitude")
    n_context = sum(g < n_blocks - 1 for g in block)  # columns before the last block
    n_weights = 3 * n_context * r + 2 * n_latents * r
    weights = struct.unpack(f"<{n_weights}b", unpacked(source.blob(), n_weights))
    need(-128 not in weights, "no weight is -128")
    context, rest = split(weights[: 3 * n_context * r], 3 * r), split(weights[3 * n_context * r :], r)
    out, level_out = rest[:n_latents], rest[n_latents:]
    hidden_bias = split(flat, r)
    biases = bias, level_bias
    return Network(shifts, n_bins, block, gains, hidden_shifts, hidden_bias, biases, context, out, level_out)


def split(values: Any, size: int) -> list[list[int]]:
    return [list(values[i : i + size]) for i in range(0, len(values), size)]


def centroids_of(source: Bytes, n_classes: int) -> list[list[int]]:
    return split(unzigzags(integers(source, 16 * n_classes, below=256)), 16)


# -- Chunks ------------------------------------------------------------------------------------------------------------


@dataclass
class Chunk:
    rows: list[dict[int, int]]  # latent -> level, ascending
    columns: dict[str, list[int]]


def chunk_of(payload: bytes, tables: Tables) -> Chunk:
    source = Bytes(payload)
    n_rows, n_columns = source.varint(1 << 20), source.varint(64)
    need(n_rows * n_columns <= 1 << 22, "columns of at most 2^22 values in all")
    columns: dict[str, list[int]] = {}
    for _ in range(n_columns):
        name = text_of(source.blob())
        mode = source.varint(1)
        values = unzigzags(integers(source, n_rows))
        if mode:
            for t in range(1, n_rows):
                values[t] += values[t - 1]
        need(name > max(columns, default=""), "columns have names and are sorted by them")
        need(all(abs(value) < 1 << 38 for value in values), "a column's magnitudes are below 2^38")
        columns[name] = values

    need(n_rows * tables.n_latents <= 1 << 40, "a chunk has at most 2^40 cells")
    if tables.network:
        need(n_rows * tables.n_latents <= 1 << 32, "a chunk under the context prior has at most 2^32 cells")
        rows = context_rows(source, n_rows, tables, tables.network, columns.get("seq"))
    else:
        rows = factorized_rows(source, n_rows, tables)
    return Chunk([dict(sorted(row.items())) for row in rows], columns)


def check_room(counts: list[int], tables: list[list[int]], stream: Stream, what: str) -> None:
    """tables: the one under which each of the counts is coded."""
    least = sum(n * (24 - math.log2(max(weights))) for n, weights in zip(counts, tables, strict=True))
    need(0.99 * least <= 32 * len(stream.words) + 64, f"{what} fits its stream")


def levels_of(stream: Stream, tables: list[list[int]], signed: bool) -> list[int]:
    """tables: of each level."""
    magnitudes = values_of(stream, [stream.symbol(weights) for weights in tables])
    signs = stream.uniform([1] * len(tables)) if signed else [0] * len(tables)
    stream.end()
    need(max(magnitudes, default=0) < 1 << 20, "a level is at most 2^20")
    return [-(n + 1) if sign else n + 1 for n, sign in zip(magnitudes, signs, strict=True)]


def factorized_rows(source: Bytes, n_rows: int, tables: Tables) -> list[dict[int, int]]:
    support, level = tables.support.classes, tables.levels.classes
    order = sorted(range(tables.n_latents), key=lambda f: (support[f], f))  # column -> latent
    n_classes = len(tables.support.weights)
    counts = [source.varint(1 << 24) for _ in range(n_classes)]
    lengths = [source.varint() for _ in range(2 * len(tables.groups))]
    streams = [Stream(source.take(4 * n)) for n in lengths[::2] + lengths[1::2]]
    source.end()
    need(sum(counts) <= 1 << 24, "a chunk has at most 2^24 nonzeros")
    sizes = [support.count(c) for c in range(n_classes)]
    need(all(count <= size * n_rows for count, size in zip(counts, sizes, strict=True)), "a class has room for its own")

    rows: list[dict[int, int]] = [{} for _ in range(n_rows)]
    first_class = first_column = 0
    for g, size in enumerate(tables.groups):
        stream = streams[g]
        in_group = range(first_class, first_class + size)
        first_class += size
        weights = [tables.support.weights[c] for c in in_group]
        check_room([counts[c] for c in in_group], weights, stream, "a group's support")
        buckets = [stream.symbol(tables.support.weights[c]) for c in in_group for _ in range(counts[c])]
        gaps = iter(values_of(stream, buckets))
        stream.end()
        cells = []  # latent and row of each nonzero
        for c in in_group:
            position, end = first_column * n_rows - 1, (first_column + sizes[c]) * n_rows
            for _ in range(counts[c]):
                position += 1 + next(gaps)
                need(position < end, "a class's nonzeros are inside it")
                cells.append((order[position // n_rows], position % n_rows))
            first_column += sizes[c]

        cells.sort(key=lambda cell: level[cell[0]])  # stable: positions stay in order
        stream = streams[len(tables.groups) + g]
        found = levels_of(stream, [tables.levels.weights[level[f]] for f, _ in cells], tables.signed)
        for (f, t), value in zip(cells, found, strict=True):
            rows[t][f] = value
    return rows


# -- Chunks under the context prior, and the network -------------------------------------------------------------------


def context_rows(
    source: Bytes, n_rows: int, tables: Tables, network: Network, seq: list[int] | None
) -> list[dict[int, int]]:
    need(n_rows * network.n_hidden <= 1 << 24, "a chunk has at most 2^24 hidden values")
    n_bins, n_level_bins = network.n_bins
    counts = [source.varint(1 << 24) for _ in range(n_bins)]
    level_counts = [source.varint(1 << 24) for _ in range(n_level_bins)]
    need(sum(counts) <= min(1 << 24, n_rows * tables.n_latents), "a chunk has room for its nonzeros, at most 2^24")
    need(sum(level_counts) == sum(counts), "there are as many levels as nonzeros")
    lengths = source.varint(), source.varint()
    support, levels = (Stream(source.take(4 * n)) for n in lengths)
    source.end()

    of_bin = [tables.support.weights[c] for c in tables.support.classes]
    of_level_bin = [tables.levels.weights[c] for c in tables.levels.classes]
    check_room(counts, of_bin, support, "the support")
    check_room(level_counts, of_level_bin, levels, "what levels there are")
    gaps = iter(values_of(support, [support.symbol(of_bin[b]) for b in range(n_bins) for _ in range(counts[b])]))
    support.end()
    ranks = []  # of the nonzeros of each bin
    for count in counts:
        rank, of = -1, set()
        for _ in range(count):
            rank += 1 + next(gaps)
            of.add(rank)
        ranks.append(of)

    flat = levels_of(
        levels, [of_level_bin[b] for b in range(n_level_bins) for _ in range(level_counts[b])], tables.signed
    )
    values = [flat[sum(level_counts[:b]) : sum(level_counts[: b + 1])] for b in range(n_level_bins)]
    return run_network(network, n_rows, seq, ranks, values)


def run_network(
    network: Network, n_rows: int, seq: list[int] | None, ranks: list[set[int]], values: list[list[int]]
) -> list[dict[int, int]]:
    """Rows of levels. ranks: of the nonzeros of each bin; values: levels of each level bin, by position."""
    r = network.n_hidden
    order = sorted(range(len(network.block)), key=lambda f: (network.block[f], f))  # column -> latent
    continues = [t > 0 and (seq is None or seq[t] == seq[t - 1]) for t in range(n_rows)] + [False]
    sums = [[0] * r for _ in range(n_rows)]
    gained = [0] * n_rows  # gains of the nonzeros so far
    seen, taken = [0] * len(ranks), [0] * len(values)
    rows: list[dict[int, int]] = [{} for _ in range(n_rows)]
    for g in range(network.n_blocks):
        hidden = [
            [
                min(max((a + c) >> shift, 0), 127)
                for a, c, shift in zip(row, network.hidden_bias[g], network.hidden_shifts, strict=True)
            ]
            for row in sums
        ]
        found: list[list[tuple[int, int]]] = [[] for _ in range(n_rows)]  # column and gain of the block's nonzeros
        for j in (j for j, f in enumerate(order) if network.block[f] == g):
            for t in range(n_rows):
                b = bin_of(hidden[t], network.out[j], network.biases[0][j], network.shifts[0], network.n_bins[0])
                seen[b] += 1
                if seen[b] - 1 in ranks[b]:
                    n = network.n_bins[1]
                    b = bin_of(hidden[t], network.level_out[j], network.biases[1][j], network.shifts[1], n)
                    need(taken[b] < len(values[b]), "a level bin has the levels that the network puts there")
                    level = rows[t][order[j]] = values[b][taken[b]]
                    taken[b] += 1
                    found[t].append((j, network.gains[min(abs(level), 16) - 1]))
        if g == network.n_blocks - 1:
            break
        for t, nonzeros in enumerate(found):
            gained[t] += sum(gain for _, gain in nonzeros)
            for j, gain in nonzeros if gained[t] <= 1 << 15 else []:
                here, after, before = split(network.context[j], r)
                add(sums[t], gain, here)
                if continues[t + 1]:
                    add(sums[t + 1], gain, after)
                if continues[t]:
                    add(sums[t - 1], gain, before)
    need(all(max(of, default=-1) < n for of, n in zip(ranks, seen, strict=True)), "a bin has cells for its nonzeros")
    need(taken == [len(of) for of in values], "a level bin has no levels but those that the network puts there")
    return rows


def bin_of(hidden: list[int], weights: list[int], bias: int, shift: int, n_bins: int) -> int:
    total = bias + sum(h * w for h, w in zip(hidden, weights, strict=True))
    return min(max(total >> shift, 0), n_bins - 1)


def add(sums: list[int], gain: int, weights: list[int]) -> None:
    for k, weight in enumerate(weights):
        sums[k] += gain * weight


# -- Side information --------------------------------------------------------------------------------------------------


@dataclass
class Side:
    kind: str
    resolution: int
    centre: float
    mean_step: float
    mean_centre: float
    payload: bytes


def side_of(payload: bytes) -> Side:
    """Of the payload of `SIDE`."""
    source = Bytes(payload)
    kind = NORMALIZATIONS[source.varint(len(NORMALIZATIONS) - 1)]
    need(kind != "none", "side information is of a kind that there is")
    resolution = source.varint(1 << 20)
    need(resolution >= 1, "the resolution is 1 or more")
    (centre,) = struct.unpack("<d", source.take(8))
    need(0 < centre < math.inf, "the centre of scales is positive and finite")
    step, mean_centre = 1.0, 0.0
    if kind == "layer_norm":
        step, mean_centre = struct.unpack("<dd", source.take(16))
        need(0 < step < math.inf, "the step of means is positive and finite")
        need(math.isfinite(mean_centre), "the centre of means is finite")
    source.end()
    return Side(kind, resolution, centre, step, mean_centre, payload)


def scales_and_means(chunk: Chunk, side: Side) -> list[tuple[float, float]]:
    """Scale and mean of each row of a chunk."""
    need("side.scale" in chunk.columns, "there is a column of scales")
    means = [0] * len(chunk.rows)
    if side.kind == "layer_norm":
        need("side.mean" in chunk.columns, "there is a column of means")
        means = chunk.columns["side.mean"]
    out = []
    for s, m in zip(chunk.columns["side.scale"], means, strict=True):
        exponent = (s - 1 if s > 0 else s) / side.resolution
        need(s == 0 or exponent < 1023, "a scale is a finite float32")
        scale, mean = side.centre * 2.0**exponent if s else 0.0, side.mean_centre + m * side.mean_step
        need(is_float32(scale) and is_float32(mean), "scale and mean are finite float32")
        out.append((scale, mean if side.kind == "layer_norm" else 0.0))
    return out


def is_float32(value: float) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float32(value)))


# -- Residual layer ----------------------------------------------------------------------------------------------------


@dataclass
class Residual:
    shapes: list[tuple[int, int]]  # components and values of each block
    step: float
    unit: float
    basis: list[int]  # block by block, as stored
    mean: list[int]
    tables: TableSet
    centroids: list[list[int]]


def residual_of(payload: bytes) -> Residual:
    """Of the payload of `RTAB`."""
    source = Bytes(payload)
    shapes = []
    for _ in range(source.varint(source.left())):
        m, w = source.varint(1 << 24), source.varint(1 << 24)
        need(m <= w and w >= 1, "a block has 1 value or more, and no more components than values")
        shapes.append((m, w))
    step, unit = struct.unpack("<dd", source.take(16))
    need(0 < step < math.inf and 0 < unit < math.inf, "step and unit are positive and finite")
    width, n_entries = sum(w for _, w in shapes), sum(m * w for m, w in shapes)
    need(width <= 1 << 24 and 1 <= n_entries <= 1 << 25, "a basis has 1 to 2^25 entries, a row at most 2^24 values")
    basis = unzigzags(integers(source, n_entries, below=65537))
    mean = unzigzags(integers(source, width, below=(1 << 25) + 1))
    tables = table_set(source, sum(m for m, _ in shapes))
    centroids = centroids_of(source, len(tables.weights))
    source.end()
    return Residual(shapes, step, unit, basis, mean, tables, centroids)


def residual_levels(payload: bytes, layer: Residual, n_rows: int) -> list[list[int]]:
    """Levels of the components, row by row, of the payload of `RCHK`."""
    need(n_rows * len(layer.tables.classes) <= 1 << 26, "a chunk has at most 2^26 residual levels")
    return matrix_of(payload, n_rows, layer.tables, 1 << 20)


def residual_rows(levels: list[list[int]], layer: Residual) -> np.ndarray:
    """What levels add to x_hat, float64 (T, d)."""
    vectors, first_entry, first_value = [], 0, 0  # of each component: entries, and where they begin in a row
    for m, w in layer.shapes:
        for _ in range(m):
            vectors.append((first_value, layer.basis[first_entry : first_entry + w]))
            first_entry += w
        first_value += w
    out = np.zeros((len(levels), len(layer.mean)))
    for t, row in enumerate(levels):
        x = [n * layer.step / 16 for n in layer.mean]
        for level, c, (first, entries) in zip(row, layer.tables.classes, vectors, strict=True):
            if level:
                magnitude = abs(level)
                centroid = layer.centroids[c][magnitude - 1] if magnitude <= 16 else 0
                v = math.copysign((magnitude + centroid / 256) * layer.step, level)
                for j, entry in enumerate(entries):
                    x[first + j] += v * entry * layer.unit
        need(all(abs(value) <= float(np.finfo(np.float32).max) for value in x), "what is added is a finite float32")
        out[t] = x
    return out


# -- Reconstruction ----------------------------------------------------------------------------------------------------


def reconstruct(
    rows: list[dict[int, int]], tables: Tables, w_dec: Any, b_dec: Any, side: list[tuple[float, float]] | None = None
) -> np.ndarray:
    """x_hat, float64 (T, d), of rows of levels. w_dec: (F, d), b_dec: (d,). side: scale and mean of each row."""
    w_dec, b_dec = np.asarray(w_dec, np.float64).tolist(), np.asarray(b_dec, np.float64).tolist()
    need(len(w_dec) == tables.n_latents, "the decoder has the latents of the tables")
    out = np.zeros((len(rows), len(b_dec)))
    for t, row in enumerate(rows):
        x = list(b_dec)
        for f, level in row.items():
            norm = math.sqrt(sum(w * w for w in w_dec[f]))
            need(norm > 0, "a coded latent has a direction")
            magnitude = abs(level)
            centroid = tables.centroids[tables.centroid_classes[f]][magnitude - 1] if magnitude <= 16 else 0
            z = math.copysign((magnitude + centroid / 256) * tables.step / norm, level)
            need(abs(z) <= float(np.finfo(np.float32).max), "an activation is a finite float32")
            for j, w in enumerate(w_dec[f]):
                x[j] += z * w
        scale, mean = side[t] if side else (1.0, 0.0)
        out[t] = [value * scale + mean for value in x]
    return out


# -- Latents without an SAE --------------------------------------------------------------------------------------------


def check_latents(header: dict[str, Any]) -> None:
    """The header of a file whose rows are latents."""
    values = field(header, "values", dict)
    kind, base = values.get("kind"), field(values, "base", int)
    need(kind in ("step", "float16", "bfloat16"), "the kind of values is known")
    need(base == 0 if kind == "step" else -1 <= base <= 0x7FFE, "base is 0, or of exact values -1 to 0x7ffe")
    need(header["embed"] == "tables", "latents have tables")
    need(not {RESIDUAL, "side:rows"} & set(header["requires"]), "latents have no other layer")
    need("row_shape" not in header, "a row of latents has one dimension")
    need(header["decoder_id"] == bytes(32), "latents have no decoder")


def latent_value(level: int, centroid: int, step: float, values: dict[str, Any]) -> float:
    """What a level of a latent stands for."""
    if values["kind"] == "step":
        z = math.copysign((abs(level) + centroid / 256) * step, level)
        need(abs(z) <= float(np.finfo(np.float32).max), "an activation is a finite float32")
        return z
    pattern = abs(level) + values["base"]
    need(pattern <= 0x7FFF, "a pattern has 15 bits")
    bits = pattern + 0x8000 * (level < 0)
    if values["kind"] == "float16":
        return float(struct.unpack("<e", struct.pack("<H", bits))[0])
    return float(struct.unpack("<f", struct.pack("<HH", 0, bits))[0])


def latent_rows(rows: list[dict[int, int]], tables: Tables, values: dict[str, Any]) -> list[dict[int, float]]:
    """Values by latent of rows of levels."""

    def centroid(f: int, level: int) -> int:
        return tables.centroids[tables.centroid_classes[f]][abs(level) - 1] if abs(level) <= 16 else 0

    return [{f: latent_value(q, centroid(f, q), tables.step, values) for f, q in row.items()} for row in rows]


# -- Weights -----------------------------------------------------------------------------------------------------------


def weights_frame(
    payload: bytes, n_latents: int, width: int | None = None, precision: str = "float32"
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Record and tensors. n_latents: F of the tables; width, precision: of the header where there is one."""
    source = Bytes(payload)
    record = record_of(source.blob())
    shapes = field(record, "shapes", dict)
    need(all(type(name) is str for name in shapes) and 1 <= len(shapes) <= 16, "there are 1 to 16 tensors")
    for shape in shapes.values():
        need(type(shape) is list and len(shape) in (1, 2), "a tensor has 1 or 2 dimensions")
        need(all(type(n) is int and n > 0 for n in shape), "dimensions are positive integers")
    need({"w_dec", "b_dec"} <= shapes.keys() and len(shapes["w_dec"]) == 2, "there are w_dec and b_dec")
    d = shapes["w_dec"][1]
    need(shapes["w_dec"][0] == n_latents and d == (width or d), "w_dec has F of the tables and d of the header")
    need(shapes["b_dec"] == [d], "b_dec is of the width of w_dec")
    need(all(type(record.get(key)) is kind for key, kind in WEIGHT_FACTS.items()), "name, source and config")
    need(4 * sum(math.prod(shape) for shape in shapes.values()) <= 1 << 36, "weights have at most 2^36 bytes")
    if precision == "int8":
        floats = {name: shape for name, shape in shapes.items() if name != "w_dec"}
        tensors, scales = float_tensors(source.blob(), floats, n_latents)
        need(all(scale >= 0 for scale in scales), "scales are not negative")
        tensors["w_dec"] = integer_weights(source, scales, d)
        source.end()
    else:
        tensors, _ = float_tensors(source.take(source.left()), shapes, 0)
    return record, tensors


def float_tensors(
    packed: bytes, shapes: dict[str, list[int]], n_more: int
) -> tuple[dict[str, np.ndarray], tuple[float, ...]]:
    """Tensors by name, and the values behind them."""
    n_values = sum(math.prod(shape) for shape in shapes.values()) + n_more
    planes = unpacked(packed, 4 * n_values)
    interleaved = bytearray(4 * n_values)
    for k in range(4):
        interleaved[k::4] = planes[k * n_values : (k + 1) * n_values]
    values = struct.unpack(f"<{n_values}f", interleaved)
    need(all(map(math.isfinite, values)), "weights are finite")
    tensors, start = {}, 0
    for name in sorted(shapes):
        n = math.prod(shapes[name])
        tensors[name] = np.array(values[start : start + n], np.float32).reshape(shapes[name])
        start += n
    return tensors, values[start:]


def integer_weights(source: Bytes, scales: tuple[float, ...], d: int) -> np.ndarray:
    """w_dec of the integers that follow."""
    n = source.varint(len(scales))
    need(1 <= n * d <= 1 << 26, "a block has 1 to 2^26 weights")
    tables = table_set(source, d)
    sizes = [min(n, len(scales) - start) for start in range(0, len(scales), n)]
    need(len(sizes) <= source.left(), "a block has a byte")
    blocks = [source.blob() for _ in sizes]
    for block, size in zip(blocks, sizes, strict=True):
        check_matrix(block, size, tables)
    rows = [row for block, size in zip(blocks, sizes, strict=True) for row in matrix_of(block, size, tables, 127)]
    # A product in float64 is exact, so that it is rounded to float32 once.
    with np.errstate(over="ignore"):
        w_dec = np.array([[q * scale for q in row] for row, scale in zip(rows, scales, strict=True)]).astype(np.float32)
    need(bool(np.isfinite(w_dec).all()), "weights are finite")
    return w_dec


# -- Identity ----------------------------------------------------------------------------------------------------------


def _content_hash(facts: dict[str, Any], arrays: dict[str, tuple[str, list[int], list[Any]]]) -> str:
    shapes = {name: shape for name, (_, shape, _) in arrays.items()}
    text = json.dumps(facts | {"shapes": shapes}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("ascii"))
    for name in sorted(arrays):
        kind, _, values = arrays[name]
        digest.update(struct.pack(f"<{len(values)}{kind}", *values))
    return digest.hexdigest()


def normalization_of(record: dict[str, Any]) -> str:
    """Of the record of weights."""
    kind = record["config"].get("normalization", "none")
    need(kind in NORMALIZATIONS, "the normalization is known")
    return str(kind)


def decoder_id(w_dec: np.ndarray, b_dec: np.ndarray, normalization: str = "none") -> str:
    arrays = {
        name: ("f", list(array.shape), [value + 0.0 for value in array.ravel().tolist()])
        for name, array in (("w_dec", w_dec), ("b_dec", b_dec))
    }
    facts = {} if normalization == "none" else {"normalization": normalization}
    return _content_hash({"kind": "decoder"} | facts, arrays)


def codec_id(tables: Tables, decoder: str, residual: Residual | None = None, side: Side | None = None) -> str:
    def flat(rows: list[list[int]], width: int = 0) -> tuple[str, list[int], list[int]]:
        """width: of rows that there may be none of."""
        return "q", [len(rows), width or len(rows[0])], [value for row in rows for value in row]

    def one(values: list[int]) -> tuple[str, list[int], list[int]]:
        return "q", [len(values)], values

    arrays = {"centroids": flat(tables.centroids), "signed": one([int(tables.signed)])}
    arrays["level_classes"] = one(tables.centroid_classes)
    if tables.network:
        network, r = tables.network, tables.network.n_hidden
        arrays |= {
            "bin_classes": one(tables.support.classes),
            "bin_weights": flat(tables.support.weights),
            "level_bin_classes": one(tables.levels.classes),
            "level_bin_weights": flat(tables.levels.weights),
            "network_scalars": one([*network.shifts, *network.n_bins]),
            "network_block": one(network.block),
            "network_gains": one(network.gains),
            "network_shifts": one(network.hidden_shifts),
            "network_bias": flat(network.hidden_bias),
            "network_context": flat(network.context, 3 * r),
            "network_out": flat(network.out),
            "network_out_bias": one(network.biases[0]),
            "network_level_out": flat(network.level_out),
            "network_level_bias": one(network.biases[1]),
        }
    else:
        arrays |= {
            "group_sizes": one(tables.groups),
            "level_weights": flat(tables.levels.weights),
            "support_classes": one(tables.support.classes),
            "support_weights": flat(tables.support.weights),
        }
    facts = {
        "decoder_id": decoder,
        "kind": "codec",
        "prior": tables.prior,
        "step": struct.pack("<d", tables.step).hex(),
    }
    if side:
        facts["side"] = side.payload.hex()
    if residual:
        facts["residual"] = struct.pack("<dd", residual.step, residual.unit).hex()
        arrays |= {
            "residual_basis": one(residual.basis),
            "residual_blocks": flat([list(shape) for shape in residual.shapes]),
            "residual_centroids": flat(residual.centroids),
            "residual_classes": one(residual.tables.classes),
            "residual_mean": one(residual.mean),
            "residual_weights": flat(residual.tables.weights),
        }
    return _content_hash(facts, arrays)


# -- The codec file ----------------------------------------------------------------------------------------------------


@dataclass
class CodecFile:
    head: dict[str, Any]
    tables: Tables
    residual: Residual | None
    side: Side | None
    tensors: dict[str, np.ndarray]  # of the SAE; empty when it is not embedded
    normalization: str  # of the SAE, when it is embedded


def read_codec(data: bytes) -> CodecFile:
    need(data[:8] == CODEC_MAGIC, "a codec file begins with its magic")
    every = frames_of(data, 8)
    parts = _known(every, {"CHED", "TABL", "SIDE", "RTAB", "SAEW"})
    need(bool(parts) and every[0].kind == "CHED", "the first frame is CHED")
    head = record_of(parts[0].payload)
    check_version(head)
    need(LATENTS not in head["requires"], "a codec file is not of latents")
    need(INTEGER_WEIGHTS not in head["requires"], "a codec file has no integer weights")
    decoder, embed = identity_of(head, "decoder_id"), field(head, "embed", str)
    field(head, "info", dict)
    need(embed in ("none", "sae"), "embed is known")
    kinds = ["CHED", *_table_kinds(head), *(["SAEW"] if embed == "sae" else [])]
    need([part.kind for part in parts] == kinds, f"frames {kinds}")
    tables = tables_of(parts[1].payload)
    check_prior(head, tables)
    residual = residual_of(parts[kinds.index("RTAB")].payload) if "RTAB" in kinds else None
    side = side_of(parts[2].payload) if "SIDE" in kinds else None
    need(
        codec_id(tables, decoder, residual, side) == identity_of(head, "codec_id"), "the codec is the one that is named"
    )
    tensors, normalization = {}, "none"
    if embed == "sae":
        width = len(residual.mean) if residual else None
        record, tensors = weights_frame(parts[-1].payload, tables.n_latents, width)
        normalization = normalization_of(record)
        check_decoder(tensors["w_dec"], tensors["b_dec"], normalization, decoder, side)
    return CodecFile(head, tables, residual, side, tensors, normalization)


def check_decoder(w_dec: np.ndarray, b_dec: np.ndarray, normalization: str, wanted: str, side: Side | None) -> None:
    need(decoder_id(w_dec, b_dec, normalization) == wanted, "the decoder is the one that is named")
    kind = side.kind if side else "none"
    need(kind == normalization, "there is side information of the decoder's normalization")


def _table_kinds(head: dict[str, Any]) -> list[str]:
    side = ["SIDE"] if SIDE in head["requires"] else []
    return ["TABL", *side, *(["RTAB"] if RESIDUAL in head["requires"] else [])]


def _known(frames: list[Frame], kinds: set[str]) -> list[Frame]:
    for frame in frames:
        need(frame.kind in kinds or not frame.critical, f"critical frame {frame.kind} is known")
    return [frame for frame in frames if frame.kind in kinds]


# -- The .saec file ----------------------------------------------------------------------------------------------------


@dataclass
class SaecFile:
    header: dict[str, Any]
    shape: list[int]  # leading dimensions of the index, and the header's width or shape of a row
    tables: Tables
    layer: Residual | None
    side: Side | None
    chunks: list[Chunk]
    residual: list[list[int]]  # levels of the residual layer, row by row; empty when there is none
    base: np.ndarray | None  # float64 of that shape, of the base layer alone; None when no decoder is at hand
    x_hat: np.ndarray | None  # the same of all layers
    latents: list[dict[int, float]] | None = None  # values by latent, row by row, of a file whose rows are latents

    @property
    def rows(self) -> list[dict[int, int]]:
        return [row for chunk in self.chunks for row in chunk.rows]


def read_header(payload: bytes) -> dict[str, Any]:
    header = record_of(payload)
    check_version(header)
    need(1 <= field(header, "width", int) <= 1 << 24, "a row has 1 to 2^24 values")
    need(field(header, "dtype", str) in ("float16", "bfloat16", "float32", "float64"), "the dtype is known")
    need(1 <= field(header, "chunk_rows", int) <= 1 << 20, "a chunk has 1 to 2^20 rows")
    need(field(header, "embed", str) in ("none", "tables", "decoder"), "embed is known")
    identity_of(header, "decoder_id")
    identity_of(header, "codec_id")
    need(0 < field(header, "step", float) < math.inf, "the step is positive and finite")
    sae = field(header, "sae", dict)
    need(all(type(sae.get(key)) is kind for key, kind in SAE_FACTS.items()), "sae has its facts")
    field(header, "prior", str)
    field(header, "made_by", str)
    user = header.get("user", {})
    need(type(user) is dict and all(type(text) is str for pair in user.items() for text in pair), "user is text")
    row = header.get("row_shape", [header["width"], 1])
    whole = type(row) is list and 2 <= len(row) <= 8 and all(type(n) is int and n >= 1 for n in row)
    need(whole and math.prod(row) == header["width"], "a row's shape has 2 to 8 dimensions and the width's values")
    weights, integers = header.get("weights", "float32"), INTEGER_WEIGHTS in header["requires"]
    need(weights in PRECISIONS and (weights == "int8") == integers, "weights is known, and int8 when it is required")
    need(weights == "float32" or header["embed"] == "decoder", "there are rounded weights only in a file")
    if LATENTS in header["requires"]:
        check_latents(header)
    return header


@dataclass
class Index:
    leading: list[int]
    rows: list[int]  # of each chunk
    frames: list[tuple[int, int]]  # offset and length of each


def read_index(payload: bytes, file_size: int) -> Index:
    source = Bytes(payload)
    leading = [source.varint(1 << 48) for _ in range(source.varint(63))]
    n = source.varint(file_size // 20)
    rows, lengths, distances = integers(source, n, below=(1 << 20) + 1), integers(source, n), integers(source, n)
    source.end()
    need(math.prod(leading) == sum(rows), "the leading dimensions give the rows")
    need(math.prod(n for n in leading if n) < 1 << 48, "an array can have these dimensions")
    frames, at = [], 0
    for length, distance in zip(lengths, distances, strict=True):
        frames.append((at + distance, length))
        at += distance + length
        need(length >= 20 and at <= file_size, "the index points into the file")
    return Index(leading, rows, frames)


def generations_of(frames: list[Frame], each: list[str]) -> tuple[list[Frame], list[Index]]:
    """Generations: the chunks of all, and the index of each. frames: from the first chunk on; each: of a chunk."""
    chunks: list[Frame] = []
    indices: list[Index] = []
    while frames or not indices:
        kinds = [frame.kind for frame in frames]
        need("TAIL" in kinds, "there is a trailer")
        generation, frames = frames[: kinds.index("TAIL") + 1], frames[kinds.index("TAIL") + 1 :]
        new = [frame for frame in generation if frame.kind == "CHNK"]
        wanted = [*(each * len(new)), "INDX", "TAIL"]
        need([frame.kind for frame in generation] == wanted, f"a generation has frames {wanted}")
        chunks += new
        indx, tail = generation[-2:]
        need(tail.payload == struct.pack("<Q", indx.offset), "TAIL points to the INDX of its generation")
        indices.append(read_index(indx.payload, tail.offset + tail.size))
        need([(chunk.offset, chunk.size) for chunk in chunks] == indices[-1].frames, "an index lists all chunks so far")
    return chunks, indices


def recover_saec(data: bytes) -> tuple[list[bytes], list[int]]:
    """Recovery: the recovered chunks, each with its RCHK, as bytes, and the leading dimensions."""
    need(data[:8] == SAEC_MAGIC, "a .saec file begins with its magic")

    def whole(at: int) -> Frame | None:
        if len(data) - at < 20:
            return None
        (length,) = struct.unpack_from("<Q", data, at + 8)
        try:
            (frame,) = frames_of(data[: at + 20 + length], at)
        except Refused:
            return None
        return frame

    known = ("HEAD", "TABL", "SIDE", "RTAB", "SAEW", "CHNK", "RCHK", "INDX", "TAIL")
    at, preamble, skipped = 8, [], len(data)
    while True:
        frame = whole(at)
        if frame is None and preamble and len(data) - at >= 20:
            kind, flags, length = struct.unpack_from("<4sIQ", data, at)
            ancillary = kind.isalpha() and kind.isascii() and flags == 0 and kind.decode() not in known
            if ancillary and at + 20 + length <= len(data) and whole(at + 20 + length):
                skipped = min(skipped, at)
                at += 20 + length
                continue
        if frame is None or frame.kind in known[5:]:
            break
        preamble.append(frame)
        at += frame.size
    need(bool(preamble) and preamble[0].kind == "HEAD", "HEAD is whole")
    header, tables = read_header(preamble[0].payload), [frame.kind for frame in preamble[1:] if frame.critical]
    announced = _table_kinds(header)
    embedded = {"none": [], "tables": announced, "decoder": [*announced, "SAEW"]}[header["embed"]]
    need(tables == embedded, "the tables are whole")

    chunks: list[bytes] = []
    places: list[tuple[int, int]] = []
    index = None
    while at < len(data):
        frame, start = whole(at), at
        if frame is None:
            skipped = min(skipped, at)
            at += 1
            while at < len(data) and not (data[at : at + 4] in (b"CHNK", b"INDX", b"TAIL") and whole(at)):
                at += 1
            continue
        at += frame.size
        try:
            if frame.kind == "CHNK":
                Bytes(frame.payload).varint(1 << 20)
                if RESIDUAL in header["requires"]:
                    behind = whole(at)
                    need(behind is not None and behind.kind == "RCHK", "RCHK is whole")
                    at += behind.size
                chunks.append(data[start:at])
                places.append((start, frame.size))
            elif frame.kind == "INDX":
                index = read_index(frame.payload, start)
            else:
                need(frame.kind == "TAIL" or (frame.kind != "RCHK" and not frame.critical), "it may stand here")
        except Refused:
            skipped = min(skipped, start)
    n_rows = sum(Bytes(chunk[20:]).varint(1 << 20) for chunk in chunks)
    if index is None or places[: len(index.frames)] != index.frames:
        return chunks, [n_rows]
    if len(places) == len(index.frames):
        return chunks, index.leading
    block = math.prod(index.leading[1:])
    kept = skipped > places[-1][0] and block and n_rows % block == 0
    return chunks, [n_rows // block, *index.leading[1:]] if kept else [n_rows]


def read_saec(
    data: bytes, *, codec: CodecFile | None = None, w_dec: Any = None, b_dec: Any = None, normalization: str = "none"
) -> SaecFile:
    """Decode a file. codec, w_dec, b_dec, normalization: what it does not embed."""
    need(data[:8] == SAEC_MAGIC, "a .saec file begins with its magic")
    every = frames_of(data, 8)
    need(len(every) >= 3 and every[0].kind == "HEAD", "the first frame is HEAD")
    frames = _known(every, {"HEAD", "TABL", "SIDE", "RTAB", "SAEW", "CHNK", "RCHK", "INDX", "TAIL"})
    header = read_header(frames[0].payload)
    required = RESIDUAL in header["requires"]
    known = _table_kinds(header)
    embedded = {"none": [], "tables": known, "decoder": [*known, "SAEW"]}[header["embed"]]
    preamble = ["HEAD", *embedded]
    need([frame.kind for frame in frames[: len(preamble)]] == preamble, f"frames {preamble}")
    behind = [after for frame, after in pairwise(every) if frame.kind == "CHNK"]
    need(not required or all(after.kind == "RCHK" for after in behind), "RCHK stands right behind its CHNK")
    need(every[-1].kind == "TAIL", "the last frame is TAIL")
    chunks, indices = generations_of(frames[len(preamble) :], ["CHNK", "RCHK"] if required else ["CHNK"])
    index = indices[-1]

    tables, layer, side = (codec.tables, codec.residual, codec.side) if codec else (None, None, None)
    if embedded:
        held = {frame.kind: frame.payload for frame in frames[1 : 1 + len(embedded)]}
        tables = tables_of(held["TABL"])
        layer = residual_of(held["RTAB"]) if required else None
        side = side_of(held["SIDE"]) if "SIDE" in held else None
    if tables is None:
        raise Refused("the file needs its codec")
    check_prior(header, tables)
    need((header["step"], header["prior"]) == (tables.step, tables.prior), "step and prior are those of the tables")
    found = codec_id(tables, header["decoder_id"].hex(), layer, side)
    need(found == header["codec_id"].hex(), "the codec is the file's")
    need((side is not None) == (SIDE in header["requires"]), "there is side information exactly when it is required")
    need((layer is not None) == required, "the codec has a residual layer exactly when one is required")
    need(layer is None or len(layer.mean) == header["width"], "the residual layer has the file's width")
    tensors, of_tensors = _tensors(frames, header, tables, codec)
    if w_dec is None and tensors:
        w_dec, b_dec, normalization = tensors["w_dec"], tensors["b_dec"], of_tensors

    decoded = [chunk_of(chunk.payload, tables) for chunk in chunks]
    need(len({tuple(chunk.columns) for chunk in decoded}) <= 1, "all chunks have the same columns")
    n_rows_of = [len(chunk.rows) for chunk in decoded]
    need(all(n_rows_of[: len(i.rows)] == i.rows for i in indices), "the chunks have the rows that each index says")
    residual = []
    for n_rows, after in zip(index.rows, behind, strict=True):
        residual += residual_levels(after.payload, layer, n_rows) if layer else []
    shape = [*index.leading, *header.get("row_shape", [header["width"]])]
    out = SaecFile(header, shape, tables, layer, side, decoded, residual, None, None)
    of_rows = [pair for chunk in decoded for pair in scales_and_means(chunk, side)] if side else None
    if LATENTS in header["requires"]:
        need(tables.n_latents == header["width"], "a row of latents has those of the tables")
        out.latents = latent_rows(out.rows, tables, header["values"])
    elif w_dec is not None:
        w_dec, b_dec = np.asarray(w_dec, np.float32), np.asarray(b_dec, np.float32)
        check_decoder(w_dec, b_dec, normalization, header["decoder_id"].hex(), side)
        need(w_dec.shape[1] == header["width"], "the decoder has the file's width")
        out.base = out.x_hat = reconstruct(out.rows, tables, w_dec, b_dec, of_rows).reshape(shape)
        if layer:
            out.x_hat = out.base + residual_rows(residual, layer).reshape(shape)
    return out


def read_rows(data: bytes, tables: Tables, layer: Residual | None = None) -> tuple[list[Chunk], list[list[int]]]:
    """Chunks and residual levels of the frames that keep rows in memory."""
    every = frames_of(data, 0)
    frames = _known(every, {"CHNK", "RCHK"})
    each = ["CHNK", "RCHK"] if layer else ["CHNK"]
    need([frame.kind for frame in frames] == each * (len(frames) // len(each)), f"frames {each}")
    chunks = [chunk_of(frame.payload, tables) for frame in frames[:: len(each)]]
    residual = []
    for i, chunk in enumerate(chunks if layer else []):
        need(frames[2 * i].offset + frames[2 * i].size == frames[2 * i + 1].offset, "RCHK is right behind its CHNK")
        residual += residual_levels(frames[2 * i + 1].payload, layer, len(chunk.rows))
    return chunks, residual


def read_filled_rows(
    data: bytes, n_rows: int, tables: Tables, layer: Residual | None = None
) -> tuple[list[bool], list[Chunk], list[list[int]]]:
    """A chunk of a zarr array: which of its rows are coded, and what `read_rows` finds of those."""
    need(len(data) >= 20, "a frame head has 20 bytes")
    size = 20 + struct.unpack_from("<Q", data, 8)[0]
    need(size <= len(data), "a frame ends inside the chunk")
    (head,) = frames_of(data[:size], 0)
    need(head.kind == "ROWS" and head.critical, "a chunk begins with a critical frame ROWS")
    source = Bytes(head.payload)
    need(source.varint() == n_rows, "T is that of the array's chunks")
    runs = [source.varint() for _ in range(source.varint(n_rows + 1))]
    source.end()
    need(bool(runs) and all(runs[1:]) and sum(runs) == n_rows, "the runs are not empty and make up the rows")
    coded = [i % 2 == 0 for i, n in enumerate(runs) for _ in range(n)]
    chunks, residual = read_rows(data[size:], tables, layer)
    need(sum(len(chunk.rows) for chunk in chunks) == sum(coded), "the chunks hold the coded rows")
    return coded, chunks, residual


def _tensors(
    frames: list[Frame], header: dict[str, Any], tables: Tables, codec: CodecFile | None
) -> tuple[dict[str, np.ndarray], str]:
    """Tensors of the decoder at hand, and its normalization."""
    if header["embed"] == "decoder":
        (weights,) = (frame for frame in frames if frame.kind == "SAEW")
        precision = header.get("weights", "float32")
        record, tensors = weights_frame(weights.payload, tables.n_latents, header["width"], precision)
        return tensors, normalization_of(record)
    return (codec.tensors, codec.normalization) if codec else ({}, "none")
