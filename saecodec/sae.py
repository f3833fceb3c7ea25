"""The sparse autoencoder: feature activations of rows, and rows from feature activations.

An `SAE` is in canonical form whatever file it came from: a normalization of rows (mostly none), an encoder
(`encoder.py`), and a decoder `x_hat = z W_dec + b_dec`. T rows, d activation width, F latents, K nonzeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saecodec import exact
from saecodec.encoder import HALF, AnyEncoder, encoder_of
from saecodec.encoder import Encoder as Encoder
from saecodec.errors import CheckpointError, InputError, MissingPieceError
from saecodec.features import Features, Side
from saecodec.identity import content_hash
from saecodec.limits import check_limit
from saecodec.normalization import KINDS, exact_side_of, normalized, restored, sequence_scales, side_of

_BATCH_CELLS: Final = 1 << 21  # T x F pre-activations at a time: 8 MB stay in the cache
_MIN_BATCH_ROWS: Final = 64


@dataclass(frozen=True, eq=False)
class SAE:
    """A trained sparse autoencoder.

    w_dec: float32 (F, d), decoder directions in rows. b_dec: float32 (d,). encoder: None when only the decoder is at
    hand. architecture, name, source: for people. metadata: what its file says of where it was trained. normalization:
    of rows before encoding, one of `normalization.KINDS`. row_dims: 2 when arrays (..., heads, d_head) are its rows.
    """

    w_dec: Tensor
    b_dec: Tensor
    encoder: AnyEncoder | None
    architecture: str
    name: str = ""
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    normalization: str = "none"
    row_dims: int = 1

    def __post_init__(self) -> None:
        """Shapes, dtypes and finiteness; CheckpointError names the tensor."""
        if self.normalization not in KINDS:
            raise CheckpointError(f"{self.name}: normalization {self.normalization!r} is none of {', '.join(KINDS)}")
        if self.w_dec.ndim != 2:
            raise CheckpointError(f"{self.name}: w_dec has shape {tuple(self.w_dec.shape)}, expected (F, d)")
        check_limit("latents", self.n_latents, self.name)
        check_limit("width", self.width, self.name)
        tensors, expected = self._tensors(), self._shapes()
        for key, tensor in tensors.items():
            if tuple(tensor.shape) != expected[key]:
                raise CheckpointError(f"{self.name}: {key} has shape {tuple(tensor.shape)}, expected {expected[key]}")
            half = key in ("w_enc", "b_enc", "w_glu", "b_glu") and tensor.dtype in HALF.values()
            if not (tensor.dtype == torch.float32 or half) or not torch.isfinite(tensor).all():
                raise CheckpointError(
                    f"{self.name}: {key} must be finite float32, found {tensor.dtype} or NaN or infinity"
                )

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"w_dec": self.w_dec, "b_dec": self.b_dec}
        if self.encoder is not None:
            tensors |= self.encoder.tensors()
        return tensors

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        known = {"w_dec": (self.n_latents, self.width), "b_dec": (self.width,)}
        known |= dict.fromkeys(("w_enc", "w_glu"), (self.width, self.n_latents))
        return {key: known.get(key, (self.n_latents,)) for key in self._tensors()}

    def __repr__(self) -> str:
        return f"SAE({self.name!r}, {self.architecture}, d={self.width}, F={self.n_latents})"

    @property
    def width(self) -> int:
        """d."""
        return int(self.w_dec.shape[1])

    @property
    def n_latents(self) -> int:
        """F."""
        return int(self.w_dec.shape[0])

    @property
    def nbytes(self) -> int:
        """Size of the canonical tensors, float32."""
        return sum(4 * math.prod(shape) for shape in self._shapes().values())

    @property
    def signed(self) -> bool:
        """Whether feature activations can be negative."""
        return self.encoder is not None and self.encoder.signed

    @property
    def deterministic(self) -> bool:
        """Whether what it computes is the same bits on every machine: see `exact_encoder.deterministic`."""
        return self.encoder is not None and self.encoder.deterministic

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.w_dec.device

    def to(self, device: str | torch.device) -> SAE:
        """This SAE on another device; "auto" is cuda where there is one, else the CPU."""
        device = available(device)
        encoder = None if self.encoder is None else self.encoder.to(device)
        return replace(self, w_dec=self.w_dec.to(device), b_dec=self.b_dec.to(device), encoder=encoder)

    # -- encoding ------------------------------------------------------------------------------------------------------

    @property
    def batch_rows(self) -> int:
        """Rows that `features` sends through the encoder at a time."""
        return max(_MIN_BATCH_ROWS, _BATCH_CELLS // self.n_latents)

    @torch.no_grad()
    def features(self, x: NDArray[np.float32], first_row: int = 0, side: Side | None = None) -> Features:
        """The nonzero feature activations of rows, with their side information.

        x: float32 (T, d), finite (InputError names the first row that is not, counted from `first_row`). side: of the
        rows, which kind "sequence_norm" cannot tell from the rows alone.
        """
        self.check_rows(x, first_row)
        side = self.side(x) if side is None else side
        parts, counts = [], [np.zeros(0, np.int64)]
        batch = min(self.batch_rows, max(len(x), 1))
        # Fresh ones would fragment the heap; exact products are float64, and go elsewhere.
        scratch = None if self.deterministic else torch.empty(batch, self.n_latents, device=self.device)
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            rows = torch.from_numpy(part if part.flags.writeable else part.copy()).to(self.device)
            part_side = None if side is None else side[start : start + batch]
            rows = normalized(self.normalization, rows, part_side)
            flat, values = self._active(rows, None if scratch is None else scratch[: len(rows)])
            row, latent = np.divmod(flat, self.n_latents)
            counts.append(np.bincount(row, minlength=len(rows)))
            parts.append((latent.astype(np.int32), values))
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        latents = np.concatenate([np.zeros(0, np.int32), *(p[0] for p in parts)])
        return Features(indptr, latents, np.concatenate([np.zeros(0, np.float32), *(p[1] for p in parts)]), side)

    @torch.no_grad()
    def side(self, x: NDArray[np.float32]) -> Side | None:
        """Side information of rows x, float32 (T, d); None for an SAE that needs none.

        InputError with kind "sequence_norm", for which `normalization.sequence_scales` has to be told the sequences.
        """
        if self.normalization == "none":
            return None
        if self.normalization == "sequence_norm":
            raise InputError(
                f"the SAE {self.name!r} divides rows by the mean norm of their sequence: say which rows are one "
                "(--seq IDS.npy, or an array of shape (..., position, d))"
            )
        parts = [x[start : start + self.batch_rows] for start in range(0, max(len(x), 1), self.batch_rows)]
        if self.deterministic:
            found = [exact_side_of(self.normalization, part) for part in parts]
        else:
            found = [side_of(self.normalization, torch.from_numpy(np.array(part)).to(self.device)) for part in parts]
        sides = [side for side in found if side is not None]
        means = [side.mean for side in sides if side.mean is not None]
        return Side(np.concatenate([side.scale for side in sides]), np.concatenate(means) if means else None)

    def _active(self, x: Tensor, scratch: Tensor | None = None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        index, values = self._encoder().active(x, self.w_dec, self.b_dec, scratch)
        return index.cpu().numpy(), values.cpu().numpy()

    @torch.no_grad()
    def magnitudes(self, x: Tensor) -> Tensor:
        """What each latent's activation would be if it were active, float32 (T, F), of normalized rows x (T, d)."""
        return self._encoder().magnitudes(x, self.w_dec, self.b_dec)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Feature activations of rows in the units of the SAE's library: (..., d) -> dense float32 (..., F).

        With normalization "sequence_norm" the second-to-last dimension is a sequence. InputError when a row is not
        finite, or of another width.
        """
        x = torch.as_tensor(self.joined(torch.as_tensor(x)))
        if x.ndim < 1 or x.shape[-1] != self.width:
            raise InputError(
                f"the SAE {self.name!r} codes rows of {self.width} values, got a tensor of shape {tuple(x.shape)}"
            )
        flat = x.reshape(-1, self.width).to(self.device, torch.float32)
        self.check_rows(flat.cpu().numpy())
        index, values = self._active(normalized(self.normalization, flat, self._dense_side(x)))
        z = torch.zeros(len(flat) * self.n_latents, device=self.device)
        z[torch.from_numpy(index).to(self.device)] = torch.from_numpy(values).to(self.device)
        z = z.reshape(*x.shape[:-1], self.n_latents)
        return z if self._scale is None else z * self._scale

    def joined(self, x: Any) -> Any:
        """An array or tensor (..., heads, d_head) as (..., d), for an SAE with such rows; any other as it is."""
        if self.row_dims == 1 or x.ndim < 2 or x.shape[-1] == self.width or math.prod(x.shape[-2:]) != self.width:
            return x
        return x.reshape(*x.shape[:-2], self.width)

    def _dense_side(self, x: Tensor) -> Side | None:
        """Side information of rows (..., d), flattened."""
        rows = x.detach().reshape(-1, self.width).float().cpu().numpy()
        if self.normalization != "sequence_norm":
            return self.side(rows)
        length = x.shape[-2] if x.ndim > 1 else 1
        ids = np.arange(len(rows)) // max(length, 1)
        return Side(sequence_scales(np.sqrt(exact.squares(rows)), ids, self.width))

    @property
    def _scale(self) -> Tensor | None:
        return None if self.encoder is None else self.encoder.scale

    def check_rows(self, x: NDArray[np.float32], first_row: int = 0) -> None:
        """InputError unless `x` is (T, d), finite and not huge; rows are counted from `first_row` in the message."""
        if x.ndim != 2 or x.shape[1] != self.width:
            raise InputError(
                f"the SAE {self.name!r} codes rows of {self.width} values, got an array of shape {x.shape}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            bad = np.flatnonzero(~np.isfinite(np.einsum("td,td->t", x, x)))
        if not bad.size:
            return
        infinite = np.flatnonzero(~np.isfinite(x[bad]).all(axis=1))
        if infinite.size:
            raise InputError(
                f"row {first_row + bad[infinite[0]]} holds NaN or infinity ({infinite.size} such rows among {len(x)}), "
                "or float64 values that float32 cannot hold: drop or repair these rows, they have no squared error"
            )
        raise InputError(
            f"row {first_row + bad[0]} has a norm above 1.8e19, whose square float32 cannot hold: scale the rows down"
        )

    def _encoder(self) -> AnyEncoder:
        if self.encoder is None:
            raise MissingPieceError(f"encoding needs the whole SAE {self.name!r}; only its decoder is at hand")
        return self.encoder

    # -- decoding ------------------------------------------------------------------------------------------------------

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """Norm of each decoder direction, float64 (F,)."""
        return np.asarray(np.sqrt(exact.squares(self.w_dec.cpu().numpy())))

    @torch.no_grad()
    def rows(self, features: Features) -> Tensor:
        """x_hat of feature activations, float32 (T, d), as a weighted sum of decoder directions per row, normalization
        undone."""
        check_limit("array_bytes", 4 * features.n_rows * self.width, "rows that are reconstructed together")
        if self.deterministic:
            sums = exact.weighted_sums(features.indptr, features.latents, features.values, self.w_dec.numpy())
            return restored(torch.from_numpy(sums).add_(self.b_dec.double()).float(), features.side)
        bags = torch.nn.functional.embedding_bag(
            torch.from_numpy(features.latents.astype(np.int64)).to(self.device),
            self.w_dec,
            torch.from_numpy(features.indptr).to(self.device),
            mode="sum",
            per_sample_weights=torch.from_numpy(features.values).to(self.device),
            include_last_offset=True,
        )
        return restored(bags.add_(self.b_dec), features.side)

    @torch.no_grad()
    def decode(self, z: Tensor, side: Side | None = None) -> Tensor:
        """x_hat of dense feature activations in the units of `encode`: (..., F) -> float32 (..., d).

        side: side information of the rows, flattened; InputError when the SAE normalizes rows and it is not given.
        """
        if side is None and self.normalization != "none":
            raise InputError(
                f"the SAE {self.name!r} normalizes rows ({self.normalization}), so feature activations alone do not "
                "give them back: use reconstruct(x), or give decode the side information, sae.side(x)"
            )
        z = z.to(self.device, torch.float32)
        if self._scale is not None:
            z = z / torch.where(self._scale > 0, self._scale, 1)
        if self.deterministic:
            dense = z.reshape(-1, self.n_latents).numpy()
            row, latent = np.nonzero(dense)
            indptr = np.searchsorted(row, np.arange(len(dense) + 1))
            y = self.rows(Features(indptr, latent.astype(np.int32), dense[row, latent], side))
        else:
            y = restored((z @ self.w_dec + self.b_dec).reshape(-1, self.width), side)
        return y.reshape(*z.shape[:-1], self.width)

    def reconstruct(self, x: Tensor) -> Tensor:
        """x_hat of rows, nothing quantized: (..., d) -> float32 (..., d)."""
        x = torch.as_tensor(x)
        rows = self.joined(x)
        return self.decode(self.encode(rows), self._dense_side(rows)).reshape(x.shape)

    # -- identity ------------------------------------------------------------------------------------------------------

    @cached_property
    def decoder_id(self) -> str:
        """sha256 over what decoding needs: W_dec and b_dec as little-endian float32, and how rows are normalized
        (docs/format.md, "Identity")."""
        return content_hash({"kind": "decoder"} | self.decoder_config(), self.decoder_tensors())

    @cached_property
    def sae_id(self) -> str | None:
        """sha256 over the canonical encoder and decoder; None when only the decoder is at hand."""
        if self.encoder is None:
            return None
        config = {key: value for key, value in self.config().items() if key != "row_dims"}  # it changes no number
        return content_hash({"kind": "sae"} | config, self.tensors())

    def decoder_config(self) -> dict[str, Any]:
        """What makes the canonical decoder beside its tensors: the normalization, where there is one."""
        return {} if self.normalization == "none" else {"normalization": self.normalization}

    def config(self) -> dict[str, Any]:
        """What makes the canonical form beside its tensors; `from_tensors` takes it."""
        out: dict[str, Any] = {"architecture": self.architecture} | self.decoder_config()
        if self.encoder is not None:
            out |= self.encoder.config() | ({} if self.row_dims == 1 else {"row_dims": self.row_dims})
        return out

    def decoder_tensors(self) -> dict[str, NDArray[np.float32]]:
        """The canonical decoder."""
        return {"w_dec": self.w_dec.cpu().numpy(), "b_dec": self.b_dec.cpu().numpy()}

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """The canonical decoder and, where it is at hand, encoder."""
        return {key: tensor.float().cpu().numpy() for key, tensor in self._tensors().items()}

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]], name: str) -> SAE:
        """The SAE that `config` and `tensors` (or `decoder_tensors`) describe."""
        held = {key: torch.from_numpy(np.array(value, np.float32)) for key, value in tensors.items()}
        if not {"w_dec", "b_dec"} <= held.keys():
            raise CheckpointError(f"{name}: tensors w_dec and b_dec are needed, found {sorted(held)}")
        encoder = encoder_of(config, held, name)
        architecture, normalization = str(config.get("architecture", "unknown")), config.get("normalization", "none")
        row_dims = 2 if config.get("row_dims") == 2 else 1
        return cls(
            held["w_dec"],
            held["b_dec"],
            encoder,
            architecture,
            name,
            normalization=str(normalization),
            row_dims=row_dims,
        )


def available(device: str | torch.device) -> torch.device:
    """`device` as torch knows it ("auto": cuda where there is one, else the CPU); InputError when it is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {str(device)!r} is not available here ({str(error).splitlines()[0]})") from error
    return found
