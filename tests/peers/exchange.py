"""Our side of the exchange with other libraries: dictionaries to export, shared by its test and by `make test`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nb_sae.errors import ConfigError
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.formats import FORMATS, export_dictionary, load_dictionary
from nb_sae.sae.formats.door import Format

D_IN, D_OUT, D_SAE = 8, 6, 24


class Exported(NamedTuple):
    """One dictionary, written in one format."""

    format: Format
    name: str
    dictionary: Dictionary
    path: Path


def rows(n: int = 48) -> Tensor:
    return torch.randn(n, D_IN, generator=torch.Generator().manual_seed(3)) * 1.3 - 0.2


def random_dictionary(
    sparsity: str, *, seed: int = 0, unit: bool = True, d_out: int = D_IN, one_threshold: bool = False, **about: Any
) -> Dictionary:
    """Random weights with no term at its default: biases not zero, thresholds not equal."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.5

    weights = {"W_enc": noise(D_IN, D_SAE), "b_enc": noise(D_SAE), "W_dec": noise(D_SAE, d_out), "b_dec": noise(d_out)}
    if unit:
        weights["W_dec"] = weights["W_dec"] / weights["W_dec"].norm(dim=-1, keepdim=True)
    if sparsity in ("jump_relu", "batch_top_k"):
        weights["threshold"] = torch.full((D_SAE,), 0.6) if one_threshold else noise(D_SAE).abs() + 0.05
    if sparsity == "gated":
        weights |= {"r_mag": noise(D_SAE), "b_mag": noise(D_SAE)}
    about.setdefault("budgets", (2, 4) if sparsity in ("top_k", "batch_top_k") else None)
    about.setdefault("site", "blocks.0.hook_resid_post")
    return Dictionary(weights, sparsity=sparsity, **about)  # pyright: ignore[reportArgumentType]


def dictionaries() -> dict[str, Dictionary]:
    """Every kind that a dictionary can be of."""
    made: dict[str, Dictionary] = {}
    for seed, sparsity in enumerate(("relu", "top_k", "batch_top_k", "jump_relu", "gated")):
        made[sparsity] = random_dictionary(sparsity, seed=seed)
        made[f"{sparsity}-unequal-rows"] = random_dictionary(sparsity, seed=seed + 10, unit=False)
        made[f"{sparsity}-no-pre-bias"] = random_dictionary(sparsity, seed=seed + 20, pre_bias=False)
        made[f"{sparsity}-layer-norm"] = random_dictionary(sparsity, seed=seed + 30, row_norm="layer_norm")
        made[f"{sparsity}-constant-norm"] = random_dictionary(sparsity, seed=seed + 40, row_norm="constant_norm")
    made["batch_top_k-one-threshold"] = random_dictionary("batch_top_k", seed=51, one_threshold=True)
    widths = (6, 12, 24)
    made["matryoshka"] = random_dictionary("batch_top_k", seed=52, one_threshold=True, widths=widths)
    made["msae-widths"] = random_dictionary("top_k", seed=53, widths=widths)
    for sparsity in ("relu", "jump_relu"):
        made[f"{sparsity}-transcoder"] = random_dictionary(
            sparsity, seed=54, d_out=D_OUT, pre_bias=False, target="blocks.0.hook_mlp_out"
        )
    return made


def exports(folder: Path, formats: tuple[Format, ...] = FORMATS) -> Iterator[Exported]:
    """Write every dictionary in every format that holds it."""
    for format in formats:  # noqa: A001
        for name, dictionary in dictionaries().items():
            place = folder / format / name
            try:
                path = export_dictionary(
                    dictionary, place / "sae.pth" if format == "overcomplete" else place, format=format
                )
            except ConfigError:
                continue
            yield Exported(format, name, dictionary, path)


CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def load(path: Path | str, **options: Any) -> Dictionary:
    """`load_dictionary` without its words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return load_dictionary(path, verbose=False, **options)


def same_function(a: Dictionary, b: Dictionary) -> None:
    """Equal latents and reconstructions."""
    x = rows()
    torch.testing.assert_close(a.encode(x), b.encode(x), **CLOSE)
    torch.testing.assert_close(a.reconstruct(x), b.reconstruct(x), **CLOSE)
