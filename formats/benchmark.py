"""`bench`: this codec and its peers side by side on a user's rows, every size a real one, every decode a real one."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from saecodec.codec import DEFAULT_CHUNK_ROWS
from saecodec.curves import RatePoint, bits_at
from saecodec.distortion import Distortion
from saecodec.errors import InputError, SaecodecError, TargetError
from saecodec.formats.array_source import ArraySource, MemoryArray
from saecodec.formats.codecfile import save_codec
from saecodec.formats.encoding import encode_array, fit_array
from saecodec.formats.saec import open_saec
from saecodec.goal import Goal
from saecodec.peers.peer import PeerFamily
from saecodec.sae import SAE
from saecodec.search import MODES

TARGETS: Final = (0.3, 0.2, 0.15, 0.1, 0.05, 0.02)
MODE_NAMES: Final = (*MODES, *(f"{mode}+residual" for mode in MODES))
_MAX_SHARED: Final = 0.01  # of the measured rows; a few rows recur honestly, such as those of a first token
_BEYOND: Final = 1.05  # the outer targets are aimed past by this, so that they lie between two points

Log = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """A codec at a setting. bits_per_row: of everything encoded. encode_mb_s, decode_mb_s: 10^6 bytes of float32 rows a
    second. model_bytes: what decoding takes beside the encoded bytes (codec file, codebooks); sae_bytes: the SAE, where
    it takes that too. fit_seconds: of the calibration."""

    codec: str
    setting: str
    bits_per_row: float
    nmse: float
    encode_mb_s: float
    decode_mb_s: float
    model_bytes: int
    sae_bytes: int
    fit_seconds: float


@dataclass(frozen=True)
class Curve:
    """The points of one codec, by falling NMSE. ours: whether it is this codec."""

    name: str
    ours: bool
    points: tuple[Measured, ...]

    def bits_at(self, nmse: float) -> float | None:
        """Bits per row at an NMSE, see `curves.bits_at`."""
        return bits_at([RatePoint(point.bits_per_row, point.nmse) for point in self.points], nmse)


@dataclass(frozen=True, eq=False)
class Rows:
    """What everything is fitted on, and what it is measured on: float32 (N, d) and (T, d)."""

    calibration: NDArray[np.float32]
    test: NDArray[np.float32]

    @classmethod
    def read(
        cls, source: ArraySource, calibration: ArraySource | None, max_rows: int, max_calibration: int
    ) -> tuple[Rows, int]:
        """From arrays; without a calibration array the first half of the input calibrates and the second is measured.

        Also returns how many measured rows occur among the calibration rows. InputError when they overlap, when widths
        differ, or a row is not finite.
        """
        if calibration is None:
            half = source.n_rows // 2
            result = cls(_part(source, 0, min(half, max_calibration)), _part(source, half, half + max_rows))
        else:
            if any(source.lies_in(file) for file in calibration.files):
                raise InputError(
                    f"{source.path}: is also the calibration: what is fitted on rows is not measured on them"
                )
            if calibration.width != source.width:
                raise InputError(
                    f"{calibration.path}: rows of {calibration.width} values, but {source.path} has {source.width}"
                )
            result = cls(_part(calibration, 0, max_calibration), _part(source, 0, max_rows))
        if not len(result.calibration) or not len(result.test):
            raise InputError(f"{source.path}: {source.n_rows} rows are too few to calibrate on and to measure")
        seen = {row.tobytes() for row in result.calibration}
        shared = sum(row.tobytes() in seen for row in result.test)
        if shared > _MAX_SHARED * len(result.test):
            raise InputError(
                f"{source.path}: {shared:,} of {len(result.test):,} rows to be measured are also among the calibration "
                "rows: give others (--calibration)"
            )
        return result, shared


def _part(source: ArraySource, start: int, stop: int) -> NDArray[np.float32]:
    """Rows start:stop; InputError names the first of them that is not finite."""
    parts, at = [np.zeros((0, source.width), np.float32)], 0
    for x in source.batches(DEFAULT_CHUNK_ROWS):
        part = x[max(start - at, 0) : max(stop - at, 0)]
        if not np.isfinite(part).all():
            bad = max(start, at) + int(np.flatnonzero(~np.isfinite(part).all(axis=1))[0])
            raise InputError(f"{source.path}: row {bad} holds NaN or infinity: drop or repair such rows")
        parts.append(part.copy())
        at += len(x)
        if at >= stop:
            break
    return np.concatenate(parts)


def bench_sae(rows: Rows, sae: SAE, modes: Sequence[str], targets: Sequence[float], log: Log) -> Iterator[Curve]:
    """A curve for each mode of this codec: fitted for each target on the calibration rows, codec file outside."""
    for mode in modes:
        search, _, layer = mode.partition("+")
        points: list[Measured] = []
        aims = sorted(targets, reverse=True)
        aims = [aims[0] * _BEYOND, *aims[1:-1], aims[-1] / _BEYOND]
        for aim in aims:
            goal = Goal.of(nmse=min(aim, 0.95), search=search, residual=bool(layer))
            try:
                point = _measure_sae(rows, sae, mode, goal)
            except TargetError as error:
                log(f"{sae.name}, {mode}: {error}")
                if points:
                    break  # finer ones are out of reach too
                continue
            points.append(point)
            log(_line(point))
        yield Curve(f"{sae.name}, {mode}", True, tuple(points))


def _measure_sae(rows: Rows, sae: SAE, mode: str, goal: Goal) -> Measured:
    started = time.perf_counter()
    codec = fit_array(MemoryArray(rows.calibration, "calibration rows"), sae, goal, verify=False)
    fit_seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory(prefix="saecodec-") as folder:
        path = Path(folder) / "test.saec"
        save_codec(codec, Path(folder) / "c.saecodec")
        model_bytes = (Path(folder) / "c.saecodec").stat().st_size
        started = time.perf_counter()
        encode_array(MemoryArray(rows.test, "rows"), path, codec=codec, goal=Goal.of(search=goal.search))
        encoded = time.perf_counter() - started
        started = time.perf_counter()
        with open_saec(path, sae=sae, codec=codec) as file:
            x_hat = file.rows()
            decoded = time.perf_counter() - started
            n_bytes, sae_bytes = file.size, 4 * sum(part.size for part in sae.decoder_tensors().values())
    setting = f"step {codec.quantizer.step:.4g}"
    if codec.residual is not None:
        setting += f", residual step {codec.residual.step:.4g}"
    name = f"{sae.name}, {mode}"
    return _measured(name, setting, rows, x_hat, n_bytes, encoded, decoded, model_bytes, sae_bytes, fit_seconds)


def bench_peer(rows: Rows, family: PeerFamily, targets: Sequence[float], log: Log) -> Curve:
    """The curve of a peer family, over the settings that matter for the targets."""
    points: list[Measured] = []
    for setting in family.settings(rows.test.shape[1]):
        try:
            points.append(_measure_peer(rows, family, setting))
        except SaecodecError as error:
            log(f"{family.name}: {error}")
            continue
        log(_line(points[-1]))
        if points[-1].nmse < min(targets):
            break  # finer ones are beyond every target
    return Curve(family.name, False, tuple(points))


def _measure_peer(rows: Rows, family: PeerFamily, setting: float) -> Measured:
    started = time.perf_counter()
    peer = family.fit(rows.calibration, setting)
    fit_seconds = time.perf_counter() - started
    started = time.perf_counter()
    data = peer.encode(rows.test)
    encoded = time.perf_counter() - started
    started = time.perf_counter()
    x_hat = peer.decode(data)
    decoded = time.perf_counter() - started
    return _measured(
        family.name, peer.setting, rows, x_hat, len(data), encoded, decoded, peer.model_bytes, 0, fit_seconds
    )


def _measured(
    name: str,
    setting: str,
    rows: Rows,
    x_hat: NDArray[np.float32],
    n_bytes: int,
    encoded: float,
    decoded: float,
    model_bytes: int,
    sae_bytes: int,
    fit_seconds: float,
) -> Measured:
    distortion = Distortion(rows.test.shape[1])
    distortion.add(rows.test, x_hat)
    if distortion.nmse is None:
        raise InputError("the rows to be measured do not vary: there is no NMSE to compare at")
    megabytes = rows.test.nbytes / 1e6
    return Measured(
        name,
        setting,
        8 * n_bytes / len(rows.test),
        distortion.nmse,
        megabytes / encoded,
        megabytes / decoded,
        model_bytes,
        sae_bytes,
        fit_seconds,
    )


def _line(point: Measured) -> str:
    return (
        f"{point.codec}, {point.setting}: {point.bits_per_row:.1f} bits/row at NMSE {point.nmse:.4f} "
        f"(fitted in {point.fit_seconds:.0f} s)"
    )


def report(curves: Sequence[Curve], rows: Rows, shared: int, targets: Sequence[float]) -> dict[str, Any]:
    """Everything that was measured, for programs."""
    return {
        "rows": len(rows.test),
        "calibration_rows": len(rows.calibration),
        "shared_rows": shared,
        "width": rows.test.shape[1],
        "targets": list(targets),
        "curves": [
            {
                "name": curve.name,
                "ours": curve.ours,
                "bits_per_row_at": {f"{target:g}": curve.bits_at(target) for target in targets},
                "points": [asdict(point) for point in curve.points],
            }
            for curve in curves
        ],
    }
