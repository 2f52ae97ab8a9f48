"""The result of training: an encoder and a decoder in the model's own units, with where they came from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from nb_sae.atomic import read_header, write_atomically, write_json
from nb_sae.errors import ConfigError, FormatError, PathExistsError, ShapeError, StoreError
from nb_sae.sae.config import BUDGETED, Sparsity
from nb_sae.sae.decoder import LinearDecoder
from nb_sae.sae.edits import Editable
from nb_sae.sae.model import nested_decode
from nb_sae.sae.residual import residual_encode
from nb_sae.sae.sparsity import to_dense, top_k
from nb_sae.sae.splice import Spliceable
from nb_sae.types import ActivationSource

FORMAT = "nb_sae.dictionary"
VERSION = 3
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
_OPTIONAL = ("threshold", "r_mag", "b_mag")
RowNorm = Literal["layer_norm", "constant_norm"]

SCALE_TOLERANCE = 4.0
"""Rows whose mean square distance differs by more than this factor from the training rows are of another scale."""

UNIT_TOLERANCE = 1e-3
"""Rows whose root mean square norm is so near to 1 count as L2-normalised."""


class Dictionary(LinearDecoder, Editable, Spliceable):
    """Latents of one site, in model units: `encode` takes rows as the model gives them, `decode` gives such rows back.

    The training scale is folded into the weights, so it is applied in no other place. `W_dec` of what was trained here
    has unit rows: an activation is a length along its row, in the units of the model.

    Args:
        weights: `W_enc (d_in, d_sae)`, `b_enc (d_sae,)`, `W_dec (d_sae, d_out)`, `b_dec (d_out,)`; `threshold (d_sae,)`
            where a latent is active only above it (JumpReLU, BatchTopK); `r_mag` and `b_mag (d_sae,)` of a gated one;
            `level_scale (budgets,)`, what each budget multiplies its latents by, the last being 1.
        budgets: Nested k's of a top-k rule, ascending; None for the other rules.
        sparsity: What makes a latent active. None: "top_k" with budgets, else "relu".
        widths: Nested prefixes of the dictionary; the last is d_sae.
        pre_bias: Whether `b_dec` is taken off before the encoder; a transcoder has none.
        residual: Whether each budget encodes what those before it left (`SAEConfig.residual`).
        looks: Rounds in which each budget is then filled (`SAEConfig.looks`).
        target: Site whose rows are reconstructed, for a transcoder; None: the site itself.
        row_norm: Normalisation of every row before the encoder, undone after the decoder (imported ones only).
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        budgets: tuple[int, ...] | None = None,
        sparsity: Sparsity | None = None,
        widths: tuple[int, ...] | None = None,
        pre_bias: bool = True,
        residual: bool = False,
        looks: int = 1,
        target: str | None = None,
        row_norm: RowNorm | None = None,
        site: str | None = None,
        model: str | None = None,
        revision: str | None = None,
        mean: Float[Tensor, " d_in"] | None = None,
        mean_square_distance: float | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (weights[name].detach().float() for name in _WEIGHTS)
        extra = {name: weights[name].detach().float() for name in _OPTIONAL if name in weights}
        self.threshold: Tensor | None = extra.get("threshold")
        self.r_mag: Tensor | None = extra.get("r_mag")
        self.b_mag: Tensor | None = extra.get("b_mag")
        scale = weights.get("level_scale")
        self.level_scale: Tensor | None = None if scale is None else scale.detach().float()
        self.sparsity: Sparsity = sparsity or ("top_k" if budgets is not None else "relu")
        self.budgets = budgets
        self.widths = widths
        self.pre_bias = pre_bias
        self.residual = residual
        self.looks = looks
        self.target = target
        self.row_norm = row_norm
        self.site = site
        self.model = model
        self.revision = revision
        self.mean = mean
        self.mean_square_distance = mean_square_distance
        self.provenance = dict(provenance or {})
        _check_shapes(self.W_enc, self.b_enc, self.W_dec, self.b_dec, **extra)
        self._check_rule()

    @classmethod
    def from_weights(
        cls,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_out"],
        b_dec: Float[Tensor, " d_out"],
        *,
        threshold: Float[Tensor, " d_sae"] | None = None,
        budgets: tuple[int, ...] | None = None,
        site: str | None = None,
        unit_rows: bool = True,
        **about: Any,
    ) -> Dictionary:
        """Somebody else's weights: pre = (x − b_dec) W_enc + b_enc, x̂ = latents W_dec + b_dec.

        Rows of `W_dec` are brought to unit norm and encoder and thresholds are scaled to match, which changes no
        reconstruction of a ReLU or JumpReLU dictionary; `unit_rows=False` keeps the weights and so the latents as they
        are, which a top-k dictionary with unequal rows needs. `budgets=None` means ReLU: every positive pre-activation
        is active; with `threshold`, every one above it. `about` is what `Dictionary` takes besides.
        """
        _check_shapes(W_enc, b_enc, W_dec, b_dec)
        weights = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        if threshold is not None:
            weights["threshold"] = threshold
            about.setdefault("sparsity", "jump_relu")
        if unit_rows:
            norm = W_dec.norm(dim=-1).clamp_min(1e-12)
            weights |= {"W_enc": W_enc * norm, "b_enc": b_enc * norm, "W_dec": W_dec / norm[:, None]}
            if threshold is not None:
                weights["threshold"] = threshold * norm
        return cls(weights, budgets=budgets, site=site, **about)

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.W_enc.shape[0]

    @property
    def sets_k(self) -> bool:
        """Whether the trained rule sets how many latents of a row are active: a top-k, no threshold, gate or ReLU."""
        return self.sparsity == "top_k" and self.budgets is not None

    @property
    def rank_budgets(self) -> tuple[int, ...]:
        """Budgets that a row's latents, sorted by strength, fall into: those of a top-k rule, else all of `d_sae`."""
        return self.budgets if self.sets_k and self.budgets else (self.d_sae,)

    def scale_at(self, k: int) -> float:
        """What latents are multiplied by when k of them are kept: learned for each budget, 1 for the largest.

        Between two budgets it is interpolated over log k; outside them it is that of the nearest. 1 where none was
        learned.
        """
        if self.level_scale is None or not self.budgets:
            return 1.0
        logs = [math.log(budget) for budget in self.budgets]
        return float(np.interp(math.log(max(1, k)), logs, self.level_scale.cpu().numpy()))

    def to(self, device: torch.device | str) -> Dictionary:
        """The same dictionary on another device."""
        weights = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        mean = None if self.mean is None else self.mean.to(device)
        return Dictionary(weights, **{**self._about(), "mean": mean})

    @overload
    def encode(
        self, x: Float[Tensor, "rows d_in"], k: int | None = None, sparse: Literal[False] = False
    ) -> Float[Tensor, "rows d_sae"]: ...

    @overload
    def encode(
        self, x: Float[Tensor, "rows d_in"], k: int | None = None, *, sparse: Literal[True]
    ) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]: ...

    @torch.no_grad()
    def encode(self, x, k=None, sparse=False):
        """Latents of rows in model units.

        Args:
            x: `(rows, d_in)`.
            k: Active latents per row: the k largest of ReLU(pre), times `scale_at(k)`; of a residual dictionary those
                that the rounds up to k take, in that order. None: the rule it was trained
                with (the largest budget of a top-k, the threshold of BatchTopK and JumpReLU, the gate, every positive
                one of a ReLU).
            sparse: Give `(values, latent numbers)`, strongest first, in place of `(rows, d_sae)`; where the rule sets
                no number, as many columns as the fullest row needs.

        Raises:
            ShapeError: rows of another width.
            ConfigError: k outside [1, d_sae].
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ShapeError(f"Rows of shape {tuple(x.shape)} were given; this dictionary takes (rows, {self.d_in}).")
        x, _, _ = self._normalise(x.to(self.device, torch.float32))
        pre = torch.addmm(self.b_enc - self.b_dec @ self.W_enc if self.pre_bias else self.b_enc, x, self.W_enc)
        if self.sparsity == "gated" and self.r_mag is not None and self.b_mag is not None:
            pre = ((pre - self.b_enc) * self.r_mag.exp() + self.b_mag) * (pre > 0)
        if k is None and self.sets_k:
            k = self.rank_budgets[-1]
        if self.residual and k is not None:
            values, indices = self._rounds(x, k)
            return (values, indices) if sparse else to_dense(values, indices, self.d_sae)
        if k is None:
            latents = pre.relu() if self.threshold is None else pre * (pre > self.threshold)
            if not sparse:
                return latents
            return top_k(latents, max(1, int((latents > 0).sum(-1).max())) if len(latents) else 1)
        values, indices = top_k(pre, k)
        values = values * self.scale_at(k)
        return (values, indices) if sparse else to_dense(values, indices, self.d_sae)

    @torch.no_grad()
    def decode_levels(
        self, values: Float[Tensor, "rows k"], indices: Int[Tensor, "rows k"]
    ) -> list[Float[Tensor, "rows d_in"]]:
        """One reconstruction per budget from the latents of the largest one, sorted by strength; sparsest first."""
        return self.decode_prefixes(values, indices, self.rank_budgets)

    @torch.no_grad()
    def decode_prefixes(
        self, values: Float[Tensor, "rows k"], indices: Int[Tensor, "rows k"], ks: Sequence[int]
    ) -> list[Float[Tensor, "rows d_out"]]:
        """x̂ at each k (ascending) from latents of the largest of them, sorted by strength; each is decoded once."""
        x_hats = nested_decode(values, indices, self.W_dec, self.b_dec, ks)
        whole = self.scale_at(ks[-1])
        factors = [self.scale_at(k) / whole for k in ks]
        return [
            x_hat if factor == 1 else self.b_dec + factor * (x_hat - self.b_dec)
            for x_hat, factor in zip(x_hats, factors, strict=True)
        ]

    @torch.no_grad()
    def reconstruct(self, x: Float[Tensor, "rows d_in"], k: int | None = None) -> Float[Tensor, "rows d_out"]:
        """x̂ of rows in model units: `decode(encode(x, k))`, with the normalisation of each row undone."""
        _, shift, scale = self._normalise(x.to(self.device, torch.float32))
        return self.decode(self.encode(x, k, sparse=True)) * scale + shift

    @torch.no_grad()
    def reconstruct_levels(
        self, x: Float[Tensor, "rows d_in"]
    ) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"], list[Float[Tensor, "rows d_out"]]]:
        """Latents of the trained rule, `(values, latent numbers)`, and x̂ at each of `rank_budgets`, in model units."""
        values, indices = self.encode(x, sparse=True)
        _, shift, scale = self._normalise(x.to(self.device, torch.float32))
        return values, indices, [x_hat * scale + shift for x_hat in self.decode_levels(values, indices)]

    def _rounds(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if not 1 <= k <= self.d_sae:
            raise ConfigError(f"k={k} is outside [1, d_sae={self.d_sae}]. Ask for fewer active latents per row.")
        weights = self.W_enc, self.b_enc, self.W_dec, self.b_dec
        return residual_encode(x, *weights, budgets=self.budgets or (k,), k=k, looks=self.looks)

    def row_scale(self, x: Float[Tensor, "rows d_in"]) -> Tensor | float:
        """What a step in latents is multiplied with in each row, `(rows, 1)`; 1 without `row_norm`."""
        return self._normalise(x.to(self.device, torch.float32))[2]

    def _normalise(self, x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        if self.row_norm == "layer_norm":
            # The small number keeps constant rows finite; SAELens and ViT-Prisma leave it out where they undo this.
            shift, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
            return (x - shift) / (scale + 1e-5), shift, scale
        if self.row_norm == "constant_norm":
            scale = x.norm(dim=-1, keepdim=True).clamp_min(1e-12) / self.d_in**0.5
            return x / scale, 0.0, scale
        return x, 0.0, 1.0

    def check(self, source: ActivationSource) -> None:
        """Refuse rows that this dictionary was not made for: another width, model, site or scale.

        Raises:
            StoreError: names what was given and what was expected.
        """
        if source.d_in != self.d_in:
            raise StoreError(
                f"The rows have width {source.d_in} ({source.site.name!r} of {source.model!r}); this dictionary takes "
                f"{self.d_in} ({self.site!r} of {self.model!r}). Collect the site it was trained on."
            )
        for what, given, expected in (
            ("site", source.site.name, self.site),
            ("model", source.model, self.model),
            ("revision", source.revision, self.revision),
        ):
            if expected is not None and given != expected:
                raise StoreError(
                    f"The rows come from {what} {given!r}; this dictionary was trained on {what} {expected!r}. "
                    "Collect with the same model and site, or train a dictionary on these rows."
                )
        if self.mean is None or not self.mean_square_distance:
            return
        statistics = source.statistics()
        norm = _root_mean_square(np.asarray(statistics.mean), statistics.mean_square_distance)
        trained = _root_mean_square(self.mean.cpu().double().numpy(), self.mean_square_distance)
        # Where all rows point nearly one way, as CLIP's do, normalised ones can lie near the training mean.
        if abs(norm - 1) < UNIT_TOLERANCE and abs(trained - 1) > 0.1:
            raise StoreError(
                f"The rows have norm 1, in training the norm was {trained:.3g}: they were L2-normalised. Collect the "
                "raw activations (encode_image without normalize), or train a dictionary on the normalised ones."
            )
        offset = torch.as_tensor(statistics.mean) - self.mean.cpu().double()
        distance = statistics.mean_square_distance + float(offset.square().sum())
        ratio = distance / self.mean_square_distance
        if not 1 / SCALE_TOLERANCE <= ratio <= SCALE_TOLERANCE:
            raise StoreError(
                f"The rows are of another scale: their mean square distance from the training mean is {distance:.3g}, "
                f"in training it was {self.mean_square_distance:.3g}. If they were L2-normalised, collect the raw "
                "activations; if they are of another data set, train a dictionary on them."
            )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write one folder: `dictionary.json` (format, version, settings) and `dictionary-<hash>.safetensors`.

        The JSON is replaced last, in one step: a crash leaves either the old dictionary or the new one.

        Raises:
            PathExistsError: something is there and `overwrite` is False.
        """
        folder = Path(path)
        if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
            raise PathExistsError(f"{folder} exists. Choose another path or pass overwrite=True.")
        folder.mkdir(parents=True, exist_ok=True)
        # Copies: two of them may share their memory, which the format refuses.
        tensors = {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in self._tensors().items()
        }
        if self.mean is not None:
            tensors["mean"] = self.mean.cpu().contiguous()
        content = safetensors_bytes(tensors)
        weights_file = folder / f"dictionary-{sha256(content).hexdigest()[:12]}.safetensors"
        write_atomically(weights_file, [content])
        about = {key: value for key, value in self._about().items() if key != "mean"}
        header = {"format": FORMAT, "version": VERSION, "weights": weights_file.name, "d_in": self.d_in}
        write_json(folder / "dictionary.json", {**header, "d_sae": self.d_sae, **about})
        for old in folder.glob("dictionary-*.safetensors"):
            if old != weights_file:
                old.unlink()
        return folder

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Dictionary:
        """Read what `save` wrote.

        Raises:
            InputNotFoundError: no dictionary there.
            FormatError: another format, a newer version, or a damaged file.
        """
        folder = Path(path)
        header = read_header(folder / "dictionary.json", FORMAT, VERSION)
        try:
            tensors = load_file(folder / header["weights"], device=str(device))
        except (OSError, SafetensorError) as error:
            raise FormatError(
                f"The weights of {folder} cannot be read ({error}). Save the dictionary again."
            ) from error
        return cls(
            tensors,
            mean=tensors.get("mean"),
            **{name: _tupled(header[name]) for name in _ABOUT if name in header},
        )

    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: Any,  # noqa: A002 (the users' word)
        k: int | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write it for another library; `ns.export_dictionary` says which formats there are and what each can hold."""
        from nb_sae import export_dictionary  # formats know dictionaries, not the other way round

        return export_dictionary(self, path, format=format, k=k, overwrite=overwrite)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish it on the Hugging Face Hub; options are those of `ns.push_to_hub`. Read it: `from_pretrained`."""
        from nb_sae import push_to_hub

        return push_to_hub(self, repo_id, **options)

    @staticmethod
    def from_pretrained(source: str | os.PathLike[str], **options: Any) -> Dictionary:
        """Read `owner/name` from the Hugging Face Hub, or a folder in any known format: `ns.load_dictionary`."""
        from nb_sae import load_dictionary

        return load_dictionary(source, **options)

    def _about(self) -> dict[str, Any]:
        return {"mean": self.mean, **{name: getattr(self, name) for name in _ABOUT}}

    def _tensors(self) -> dict[str, Tensor]:
        named = {name: getattr(self, name) for name in (*_WEIGHTS, *_OPTIONAL, "level_scale")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def _check_rule(self) -> None:
        if self.residual and (self.sparsity != "top_k" or self.budgets is None or not self.pre_bias):
            raise ConfigError("residual=True needs sparsity='top_k', budgets and the pre-bias.")
        if self.budgets is not None:
            if self.sparsity not in BUDGETED:
                raise ConfigError(f"sparsity={self.sparsity!r} has no budgets; budgets={self.budgets} were given.")
            if self.budgets[-1] > self.d_sae:
                raise ConfigError(f"k={self.budgets[-1]} is larger than d_sae={self.d_sae}.")
        if self.level_scale is not None and self.level_scale.shape != (len(self.budgets or ()),):
            raise ShapeError(
                f"level_scale {tuple(self.level_scale.shape)} must have one number for each of budgets={self.budgets}."
            )
        if self.widths is not None and self.widths[-1] != self.d_sae:
            raise ConfigError(f"widths={self.widths} must end at d_sae={self.d_sae}.")
        needs = {"jump_relu": ("threshold",), "batch_top_k": ("threshold",), "gated": ("r_mag", "b_mag")}
        missing = [name for name in needs.get(self.sparsity, ()) if getattr(self, name) is None]
        if missing:
            raise ConfigError(f"sparsity={self.sparsity!r} needs {' and '.join(missing)} among the weights.")

    def __repr__(self) -> str:
        rule = f"budgets {', '.join(map(str, self.budgets))}" if self.budgets else self.sparsity
        if self.widths:
            rule += f", widths {', '.join(map(str, self.widths))}"
        place = f"{self.site!r} of {self.model!r}" if self.site else "no site"
        return f"Dictionary({self.d_sae:,} latents of width {self.d_in}, {rule}, {place})"


def _root_mean_square(mean: np.ndarray, mean_square_distance: float) -> float:
    """Of the norms of rows, from their statistics."""
    return math.sqrt(mean_square_distance + float(mean @ mean))


_ABOUT = (
    "budgets",
    "sparsity",
    "widths",
    "pre_bias",
    "residual",
    "looks",
    "target",
    "row_norm",
    "site",
    "model",
    "revision",
    "mean_square_distance",
    "provenance",
)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_shapes(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, **per_latent: Tensor) -> None:
    shapes = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, **per_latent}
    given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in shapes.items())
    expected = "(d_in, d_sae), (d_sae,), (d_sae, d_out), (d_out,)" + ", (d_sae,)" * len(per_latent)
    matrices = W_enc.ndim == W_dec.ndim == 2 and W_enc.shape[1] == W_dec.shape[0]
    vectors = all(tensor.shape == W_dec.shape[:1] for tensor in (b_enc, *per_latent.values()))
    if not matrices or not vectors or b_dec.shape != W_dec.shape[1:]:
        raise ShapeError(f"{given}; expected {expected}.")
    bad = [name for name, tensor in shapes.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ShapeError(f"{', '.join(bad)} hold NaN or infinity. The training diverged or the file is damaged.")
