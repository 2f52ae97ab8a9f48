"""How well the own class of an input stands out among all, block by block, and what random texts give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nb_sae.attribution.schema import IDENTIFIABILITY
from nb_sae.errors import ConfigError, InputError, closest

if TYPE_CHECKING:
    from nb_sae.attribution.vision_lens import VisionLens

BLOCK_BYTES = 64 * 2**20
"""Of the cosines with random texts that are held at a time."""


def checked_labels(labels: Sequence[str | int | None], texts: Sequence[str], inputs: int) -> Int[Tensor, " inputs"]:
    """Number of the own text of every input; −1 where it is not known. Raises `InputError`."""
    if isinstance(labels, str) or not hasattr(labels, "__len__"):
        raise InputError(f"labels={labels!r}: expected a list with one label for each of the {inputs} inputs.")
    listed = list(labels)
    if len(listed) != inputs:
        raise InputError(f"{len(listed)} labels were given for {inputs} inputs. Give one for each, None if unknown.")
    known = {text: number for number, text in enumerate(texts)}
    own = []
    for place, label in enumerate(listed):
        if label is None:
            own.append(-1)
        elif isinstance(label, str) and label in known:
            own.append(known[label])
        elif isinstance(label, int | np.integer) and not isinstance(label, bool) and 0 <= label < len(texts):
            own.append(int(label))
        else:
            raise InputError(
                f"The label {label!r} of input {place} is none of the texts. {closest(str(label), texts)}Give one of "
                f"the {len(texts)} texts, its number from 0 to {len(texts) - 1}, or None."
            )
    if max(own, default=-1) < 0:
        raise InputError("No input has a label. Give the class of at least one.")
    return torch.tensor(own)


@torch.no_grad()
def identifiability_frame(lens: VisionLens, own: Int[Tensor, " inputs"], *, draws: int, seed: int) -> pl.DataFrame:
    """`schema.IDENTIFIABILITY` of a lens for inputs of known classes; see `VisionLens.identifiability`."""
    if draws < 2:
        raise ConfigError(f"draws={draws} must be at least 2 sets of random texts.")
    labelled = (own >= 0).nonzero().flatten()
    own = own[labelled]
    lines = []
    for tokens, embedded in (("cls", lens.answers[:, :, None]), ("patches", lens.patches_embedded)):
        before = None
        if embedded is None:
            continue
        null = _null(lens, embedded, labelled, own, draws=draws, seed=seed)
        for place, (layer, site) in enumerate(zip(lens.layers, lens.sites, strict=True)):
            rows = embedded[labelled, place]
            # What all texts share (the modality gap) tells no class.
            mine = torch.einsum("itw,iw->it", rows, lens.text_vectors[own] - lens.text_vectors.mean(0))
            low, high = np.quantile(null[place], (0.025, 0.975))
            lines.append(
                {
                    "layer": layer,
                    "site": site,
                    "tokens": tokens,
                    "identifiability": float(_nearness(rows, lens.text_vectors, own).mean()),
                    "null": float(null[place].mean()),
                    "null_low": float(low),
                    "null_high": float(high),
                    "change": None if before is None else float((mine > before).double().mean()),
                    "rows": mine.numel(),
                }
            )
            before = mine
    return pl.DataFrame(lines, schema=IDENTIFIABILITY, orient="row")


def _null(
    lens: VisionLens,
    embedded: Float[Tensor, "inputs layers tokens embed_dim"],
    labelled: Int[Tensor, " labelled"],
    own: Int[Tensor, " labelled"],
    *,
    draws: int,
    seed: int,
) -> NDArray[np.float64]:
    """`(layers, 2 draws)`: identifiability with random directions for texts; one set of them is held at a time.

    Each set counts reversed too, which turns the ranks round, so that which directions are near evens out.
    """
    generator = torch.Generator().manual_seed(seed)
    found = np.empty((len(lens.layers), draws))
    for draw in range(draws):
        texts = F.normalize(torch.randn(lens.text_vectors.shape, generator=generator), dim=-1)
        for place in range(len(lens.layers)):
            found[place, draw] = float(_nearness(embedded[labelled, place], texts, own).mean())
    return np.concatenate([found, 1 - found], axis=1)


def _nearness(
    rows: Float[Tensor, "inputs tokens embed_dim"], texts: Float[Tensor, "texts embed_dim"], own: Int[Tensor, " inputs"]
) -> Float[Tensor, "inputs tokens"]:
    """1 − rank of the own text / (texts − 1); of equal cosines half count as nearer."""
    found = []
    at_a_time = max(1, BLOCK_BYTES // (4 * rows.shape[1] * len(texts)))
    for part, mine in zip(rows.split(at_a_time), own.split(at_a_time), strict=True):
        cosines = part @ texts.T
        reached = _of_own(cosines, mine)[..., None]
        nearer = (cosines > reached).sum(-1) + ((cosines == reached).sum(-1) - 1) / 2
        found.append(1 - nearer.double() / (len(texts) - 1))
    return torch.cat(found)


def _of_own(
    cosines: Float[Tensor, "inputs tokens texts"], own: Int[Tensor, " inputs"]
) -> Float[Tensor, "inputs tokens"]:
    return cosines.gather(-1, own[:, None, None].expand(-1, cosines.shape[1], 1))[..., 0]
