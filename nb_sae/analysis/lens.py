"""The weight logit lens: which tokens a direction in the residual stream raises and lowers, by the weights alone.

Owns the linearised way from a direction to the vocabulary and its null; `logit_lens` asks it for the latents of a
dictionary, `nb_sae.attribution.neurons` for the neurons of an MLP.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nb_sae.analysis.schema import PROMOTED
from nb_sae.errors import ConfigError, ShapeError
from nb_sae.layers import place_of
from nb_sae.models.lm import LanguageModel
from nb_sae.models.parts import parts
from nb_sae.models.weights import linear_part
from nb_sae.sae.origin import check_model

if TYPE_CHECKING:
    from nb_sae.sae.dictionary import Dictionary

BLOCK_BYTES = 64 * 2**20
"""Size of the block of logits that is held at a time."""
DRAWS = 1000
"""Random directions of the null; each counts twice, as itself and reversed."""
GROUP = 64
"""Neighbouring tokens whose strongest is looked at first."""
MOST_TOKENS = 255
"""Per direction and sign: what the table can number."""
SIDES = ("write", "read")
SIGNS = ("promoted", "suppressed")


@dataclass(frozen=True)
class Strongest:
    """The strongest tokens of some directions; the second axis is promoted, suppressed."""

    logits: Float[Tensor, "rows 2 top"]
    """About the mean over the vocabulary, signed."""
    ids: Int[Tensor, "rows 2 top"]
    z: Float[Tensor, "rows 2 top"]
    """The logit in standard deviations of the direction's logits over the vocabulary."""
    pointing: Bool[Tensor, " rows"]
    """Whether anything of the direction reaches the vocabulary; False for a zero row."""


class TokenLens:
    """From directions of the residual stream to logits, linearised.

    The final norm divides a row by its own spread, a positive number that is the same for every token: it changes no
    order and is left out, so that logits are those of a last row of spread 1. What is linear in it stays: its weight,
    and for a LayerNorm that the mean of the row is taken off. The bias of the norm and that of the unembedding belong
    to no direction. Logits are centred over the vocabulary, because softmax does not see what all tokens share. A soft
    cap of the logits (Gemma 2) keeps their order and is left out.

    Raises:
        ConfigError: the model has no unembedding (an encoder, a CLIP), or a final norm of another form.
    """

    def __init__(self, model: Any) -> None:
        found = parts(model)
        unembed, _ = found.unembed
        known = min(unembed.shape[1], model.vocabulary)
        self.model = model
        self.unembed: Float[Tensor, "d_model vocabulary"] = unembed[:, :known]
        """Of the tokens that the tokenizer has: the rest of a padded vocabulary means nothing."""
        self.gain, self.centres = linear_part(found.final_norm, unembed.shape[0], unembed.device)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.unembed.shape[0]

    def fold(self, rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        """Directions after the linear part of the final norm."""
        rows = rows.detach().to(self.unembed)
        if self.centres:
            rows = rows - rows.mean(-1, keepdim=True)
        return rows * self.gain

    @torch.no_grad()
    def logits(self, rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocabulary"]:
        """Logits per unit along each direction, about their mean over the vocabulary."""
        found = self.fold(rows) @ self.unembed
        return found.sub_(found.mean(-1, keepdim=True))

    def strongest(self, rows: Float[Tensor, "rows d_model"], top: int) -> Strongest:
        """The `top` most raised and most lowered tokens of each direction; in blocks, never rows × vocabulary."""
        top = min(top, self.unembed.shape[1])
        typical = float(self.unembed.norm()) / self.unembed.numel() ** 0.5
        parts_found = []
        for block in self._blocks(rows):
            logits = self.logits(block)
            ids = torch.stack([_extremes(logits, top, largest=largest) for largest in (True, False)], 1)
            values = logits.gather(1, ids.flatten(1)).view_as(ids).cpu()
            spread = (torch.linalg.vector_norm(logits, dim=-1) / logits.shape[1] ** 0.5).cpu()  # they are centred
            # Rounding leaves something of a direction that the norm takes off.
            pointing = spread > 1e-6 * typical * block.norm(dim=-1).cpu()
            z = values / torch.where(pointing, spread, torch.inf)[:, None, None]
            parts_found.append((values, ids.cpu(), z, pointing))
        return Strongest(*map(torch.cat, zip(*parts_found, strict=True)))

    def null(self, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
        """Ascending: z of the best token of random directions, all directions being equally likely; 2 · draws."""
        rows = F.normalize(torch.randn(draws, self.d_model, generator=torch.Generator().manual_seed(seed)), dim=-1)
        return np.sort(self.strongest(rows, 1).z.abs().double().flatten().numpy())

    def _blocks(self, rows: Tensor) -> Iterator[Tensor]:
        yield from rows.detach().split(max(1, BLOCK_BYTES // (4 * self.unembed.shape[1])))


def logit_lens(
    model: Any,
    dictionary: Dictionary,
    *,
    top: int = 10,
    latents: Sequence[int] | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """The tokens that each latent promotes and suppresses, by its weights alone; `schema.PROMOTED`.

    Side "write" is the decoder row: what the latent adds to the logits per unit of activation, if nothing lay between
    its site and the unembedding. Side "read" is the encoder column against the same token directions: which of them
    make the latent active. How the final norm is linearised is said in `TokenLens`. For a site in early blocks much
    lies between, and the tokens say less.

    The null is a random direction: `p` is the chance that the best of all tokens is, for such a direction, at least as
    many standard deviations above the rest as this token is. Memory is one block of logits and latents × top.

    Args:
        model: A language model with an unembedding.
        dictionary: Of its residual stream, attention output after W_O or MLP output.
        top: Tokens per latent, side and sign.
        latents: Only these; None: all. A latent without a direction has no lines.
        seed: Of the null.

    Raises:
        ConfigError: a model without an unembedding, a dictionary of another model or of a site before W_O, a `top` that
            the table cannot hold, or no such latent.
        ShapeError: rows of another width than the residual stream.

    Source:
        nostalgebraist 2020, the logit lens; applied to weights as in "Decoding specialised feature neurons in LLMs with
        the final projection layer".
    """
    check_top(top)
    check_model(model, dictionary)
    chosen = _chosen(latents, dictionary.d_sae)
    lens = TokenLens(model)
    _check_dictionary(lens, dictionary)
    return _promoted(lens, dictionary, chosen, top, seed)


def promoted_where_known(model: Any, dictionary: Dictionary, site: str, *, top: int) -> pl.DataFrame | None:
    """`logit_lens` for `analyze`: None where the latents of a dictionary have no logits of their own.

    That is: no language model or another one, none with an unembedding that is linear up to a norm, or a site that is
    none of residual stream, attention output and MLP output of a block.
    """
    place = place_of(site)
    if top == 0 or not isinstance(model, LanguageModel) or place is None or place.point == "heads":
        return None
    check_top(top)
    try:
        lens = TokenLens(model)
        _check_dictionary(lens, dictionary)
    except (ConfigError, ShapeError):
        return None
    return _promoted(lens, dictionary, np.arange(dictionary.d_sae), top, 0)


def _promoted(lens: TokenLens, dictionary: Dictionary, chosen: NDArray[np.int64], top: int, seed: int) -> pl.DataFrame:
    rows = {"write": dictionary.W_dec, "read": dictionary.W_enc.T}
    null = lens.null(seed=seed)
    numbers = torch.from_numpy(chosen).to(dictionary.W_dec.device)
    frames = [token_lines(lens, rows[side][numbers], chosen, "latent", side, top=top, null=null) for side in SIDES]
    frame = pl.concat(frames).sort("latent", "side", "sign", "rank")
    return frame.select(PROMOTED.names()).cast(dict(PROMOTED))  # pyright: ignore[reportArgumentType]


def token_lines(
    lens: TokenLens,
    rows: Float[Tensor, "rows d_model"],
    numbers: NDArray[np.int64],
    what: str,
    side: str,
    *,
    top: int,
    null: NDArray[np.float64],
) -> pl.DataFrame:
    """One line per direction, sign and rank: `{what}, side, sign, rank, token_id, token, logit, z, p`."""
    found = lens.strongest(rows, top)
    kept = found.pointing.numpy()
    top = found.ids.shape[-1]
    ids = found.ids[kept].numpy()
    z = found.z[kept].double().numpy()
    count = len(ids)
    words = _words(lens.model, np.unique(ids))
    above = len(null) - np.searchsorted(null, np.abs(z).ravel(), side="left")
    return pl.DataFrame(
        {
            what: np.repeat(numbers[kept], 2 * top),
            "side": pl.repeat(side, count * 2 * top, dtype=pl.Enum(SIDES), eager=True),
            "sign": pl.Series(np.tile(np.repeat(np.arange(2), top), count), dtype=pl.UInt32).replace_strict(
                [0, 1], list(SIGNS), return_dtype=pl.Enum(SIGNS)
            ),
            "rank": np.tile(np.arange(top), 2 * count),
            "token_id": ids.ravel(),
            "token": pl.Series(ids.ravel()).replace_strict(list(words), list(words.values()), return_dtype=pl.String)
            if words
            else pl.repeat(None, ids.size, dtype=pl.String, eager=True),
            "logit": found.logits[kept].numpy().ravel(),
            "z": z.ravel(),
            "p": (1 + above) / (1 + len(null)),
        }
    )


def _check_dictionary(lens: TokenLens, dictionary: Dictionary) -> None:
    check_model(lens.model, dictionary)
    for site in (dictionary.site, dictionary.target):
        place = place_of(site) if site else None
        if place is not None and place.point == "heads":
            raise ConfigError(
                f"{site!r} holds the concatenated heads before W_O, which are no directions of the residual stream. "
                "Train on the attention output after W_O."
            )
    for what, width in (("reads", dictionary.d_in), ("writes", dictionary.W_dec.shape[1])):
        if width != lens.d_model:
            raise ShapeError(
                f"The dictionary {what} rows of width {width} (site {dictionary.site!r}); the unembedding of "
                f"{lens.model.name} takes the residual stream, {lens.d_model} wide. Use a dictionary of the residual "
                "stream, the attention output or the MLP output."
            )


def check_top(top: int) -> None:
    """Raises `ConfigError` for a number of tokens that the table cannot hold."""
    if not isinstance(top, int) or not 1 <= top <= MOST_TOKENS:
        raise ConfigError(f"top={top!r} is outside 1 … {MOST_TOKENS} tokens. Choose another.")


def _chosen(latents: Sequence[int] | None, d_sae: int) -> NDArray[np.int64]:
    if latents is None:
        return np.arange(d_sae)
    chosen = np.asarray(latents)
    if chosen.ndim != 1 or not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
        raise ConfigError(f"latents={latents!r}: give the numbers of at least one latent, such as [3, 417].")
    if chosen.min() < 0 or chosen.max() >= d_sae:
        raise ConfigError(f"latents holds {chosen.min()} … {chosen.max()}; this dictionary has 0 … {d_sae - 1}.")
    return chosen.astype(np.int64)


def _words(model: Any, ids: NDArray[np.int64]) -> dict[int, str]:
    """Token id → its text; empty without a tokenizer."""
    if getattr(model, "tokenizer", None) is None:
        return {}
    listed = ids.tolist()
    return dict(zip(listed, model.token_strings(listed), strict=True))


def _extremes(logits: Float[Tensor, "rows vocabulary"], k: int, *, largest: bool) -> Int[Tensor, "rows k"]:
    """Numbers of the k largest or smallest of each row, strongest first, reading all of it once.

    They lie in the k groups of columns with the strongest members; a full `topk` of a vocabulary costs several times
    as much.
    """
    groups = logits.shape[1] // GROUP
    if groups <= 4 * k:
        return logits.topk(k, largest=largest).indices
    inside = logits[:, : groups * GROUP].unflatten(1, (groups, GROUP))
    chosen = (inside.amax(-1) if largest else inside.amin(-1)).topk(k, largest=largest).indices
    numbers = (chosen[:, :, None] * GROUP + torch.arange(GROUP, device=logits.device)).flatten(1)
    rest = torch.arange(groups * GROUP, logits.shape[1], device=logits.device).expand(len(logits), -1)
    numbers = torch.cat([numbers, rest], 1)
    return numbers.gather(1, logits.gather(1, numbers).topk(k, largest=largest).indices)
