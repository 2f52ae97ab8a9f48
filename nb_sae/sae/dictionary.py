"""The result of training: an encoder and a decoder in the model's own units, with where they came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from nb_sae.atomic import read_header, write_atomically, write_json
from nb_sae.errors import ConfigError, FormatError, PathExistsError, ShapeError, StoreError
from nb_sae.sae.model import decode_sparse, nested_decode
from nb_sae.sae.sparsity import to_dense, top_k
from nb_sae.types import ActivationSource

FORMAT = "nb_sae.dictionary"
VERSION = 1
_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")

SCALE_TOLERANCE = 4.0
"""Rows whose mean square distance differs by more than this factor from the training rows are of another scale."""


class Dictionary:
    """Latents of one site, in model units: `encode` takes rows as the model gives them, `decode` gives such rows back.

    The training scale is folded into the weights, so it is applied in no other place. `W_dec` has unit rows: an
    activation is a length along its row, in the units of the model.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        budgets: tuple[int, ...] | None,
        site: str | None = None,
        model: str | None = None,
        revision: str | None = None,
        mean: Float[Tensor, " d_in"] | None = None,
        mean_square_distance: float | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.W_enc, self.b_enc, self.W_dec, self.b_dec = (weights[name].detach().float() for name in _WEIGHTS)
        _check_shapes(self.W_enc, self.b_enc, self.W_dec, self.b_dec)
        if budgets is not None and budgets[-1] > self.d_sae:
            raise ConfigError(f"k={budgets[-1]} is larger than d_sae={self.d_sae}.")
        self.budgets = budgets
        self.site = site
        self.model = model
        self.revision = revision
        self.mean = mean
        self.mean_square_distance = mean_square_distance
        self.provenance = dict(provenance or {})

    @classmethod
    def from_weights(
        cls,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        *,
        budgets: tuple[int, ...] | None = None,
        site: str | None = None,
    ) -> Dictionary:
        """Somebody else's weights: pre = (x − b_dec) W_enc + b_enc, x̂ = latents W_dec + b_dec.

        Rows of `W_dec` are brought to unit norm and the encoder is scaled to match, which changes no reconstruction
        of a ReLU dictionary. `budgets=None` means ReLU: every positive pre-activation is active.
        """
        _check_shapes(W_enc, b_enc, W_dec, b_dec)
        norm = W_dec.norm(dim=-1).clamp_min(1e-12)
        weights = {"W_enc": W_enc * norm, "b_enc": b_enc * norm, "W_dec": W_dec / norm[:, None], "b_dec": b_dec}
        return cls(weights, budgets=budgets, site=site)

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    def to(self, device: torch.device | str) -> Dictionary:
        """The same dictionary on another device."""
        weights = {name: getattr(self, name).to(device) for name in _WEIGHTS}
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
            k: Active latents per row: the k largest of ReLU(pre). None: the rule it was trained with (the largest
                budget; every positive one for a ReLU dictionary).
            sparse: Give `(values, latent numbers)`, strongest first, in place of `(rows, d_sae)`.

        Raises:
            ShapeError: rows of another width.
            ConfigError: k outside [1, d_sae].
        """
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise ShapeError(f"Rows of shape {tuple(x.shape)} were given; this dictionary takes (rows, {self.d_in}).")
        x = x.to(self.device, torch.float32)
        pre = torch.addmm(self.b_enc - self.b_dec @ self.W_enc, x, self.W_enc)
        if k is None:
            k = self.budgets[-1] if self.budgets else None
        if k is None and not sparse:
            return pre.relu()
        values, indices = top_k(pre, self.d_sae if k is None else k)
        return (values, indices) if sparse else to_dense(values, indices, self.d_sae)

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "rows d_sae"] | tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]
    ) -> Float[Tensor, "rows d_in"]:
        """Rows in model units from latents, dense or as `(values, latent numbers)`."""
        if isinstance(latents, tuple):
            return self.b_dec + decode_sparse(*latents, self.W_dec)
        if latents.ndim != 2 or latents.shape[1] != self.d_sae:
            raise ShapeError(f"Latents of shape {tuple(latents.shape)} were given; expected (rows, {self.d_sae}).")
        return torch.addmm(self.b_dec, latents.to(self.device, torch.float32), self.W_dec)

    @torch.no_grad()
    def decode_levels(
        self, values: Float[Tensor, "rows k"], indices: Int[Tensor, "rows k"]
    ) -> list[Float[Tensor, "rows d_in"]]:
        """One reconstruction per budget from latents sorted by strength, sparsest first."""
        return nested_decode(values, indices, self.W_dec, self.b_dec, self.budgets or (values.shape[1],))

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
        tensors = {name: getattr(self, name).cpu().contiguous() for name in _WEIGHTS}
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
            budgets=None if header["budgets"] is None else tuple(header["budgets"]),
            mean=tensors.get("mean"),
            **{key: header[key] for key in ("site", "model", "revision", "mean_square_distance", "provenance")},
        )

    def _about(self) -> dict[str, Any]:
        return {
            "budgets": self.budgets,
            "site": self.site,
            "model": self.model,
            "revision": self.revision,
            "mean": self.mean,
            "mean_square_distance": self.mean_square_distance,
            "provenance": self.provenance,
        }

    def __repr__(self) -> str:
        rule = f"budgets {', '.join(map(str, self.budgets))}" if self.budgets else "ReLU"
        place = f"{self.site!r} of {self.model!r}" if self.site else "no site"
        return f"Dictionary({self.d_sae:,} latents of width {self.d_in}, {rule}, {place})"


def _check_shapes(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> None:
    shapes = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in shapes.items())
    if W_dec.ndim != 2 or W_enc.shape != W_dec.shape[::-1] or b_enc.shape != W_dec.shape[:1]:
        raise ShapeError(f"{given}; expected (d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,).")
    if b_dec.shape != W_dec.shape[1:]:
        raise ShapeError(f"{given}; expected (d_in, d_sae), (d_sae,), (d_sae, d_in), (d_in,).")
    bad = [name for name, tensor in shapes.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ShapeError(f"{', '.join(bad)} hold NaN or infinity. The training diverged or the file is damaged.")
