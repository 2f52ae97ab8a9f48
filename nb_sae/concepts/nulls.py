"""What a direction that means nothing in particular is called, and how well: the null that names are judged by.

A null direction is drawn from the Gaussian that has the mean and the covariance of the dictionary's own directions, and
brought to unit norm. So it lies where they lie, in the few dimensions that the data spans and towards whatever they
share, and mixes them at random. An isotropic direction would be too easy a null: in an embedding of 768 dimensions of
which data uses 50, it is far from every word, and anything that merely lies in the 50 would be "named".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nb_sae.concepts.nearest import nearest_words
from nb_sae.concepts.schema import HUBS, NULL
from nb_sae.errors import ConfigError

DIRECTIONS = 4096
"""Null directions; more where a small false-name rate needs them."""
CONFIDENCE = 0.95
SMALLEST_RATE, LARGEST_RATE = 0.001, 0.5
QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
HUB_TIMES, HUB_SHARE = 10.0, 0.01
"""A hub names at least so many times its even share of the null directions, and at least this share of them."""


@dataclass(frozen=True, kw_only=True)
class Null:
    """The names of directions that mean nothing in particular."""

    cosine: Float[Tensor, " directions"]
    """Of the name."""
    margin: Float[Tensor, " directions"]
    score: Float[Tensor, " directions"]
    """`score_of` the name."""
    word: Tensor
    """Number of the name, `(directions,)`."""
    mean: Float[Tensor, " words"]
    """Mean cosine of each word to null directions."""
    std: Float[Tensor, " words"]
    """Standard deviation of it."""
    penalty: Float[Tensor, " words"] | None
    """What PMI takes off each word's cosine when words are ranked."""
    runner_up: Float[Tensor, " directions"]
    """Cosine of the second word."""

    def score_of(self, cosine: Tensor, word: Tensor) -> Tensor:
        """How far a name's cosine lies above what this word has to null directions, in standard deviations.

        A word that is near to everything has to be nearer still to count.
        """
        return (cosine - self.mean[word]) / self.std[word]

    def p_of(self, score: Tensor) -> Tensor:
        """Chance that a null direction scores as high, (1 + how many did) / (1 + directions); float64."""
        ordered = self.score.sort().values
        above = len(ordered) - torch.searchsorted(ordered, score.contiguous(), side="left")
        return (above.double() + 1) / (len(ordered) + 1)

    def threshold(self, rate: float) -> float:
        """A score that a null direction exceeds with chance ≤ `rate`, with 95 % confidence over the draw of the null.

        The r-th largest of N draws is exceeded with a chance that is Beta(r, N − r + 1); r is the largest for which
        P(Beta ≤ rate) = P(Binomial(N, rate) ≥ r) is at least 0.95.
        """
        rank = order_for(len(self.score), rate)
        return float(self.score.sort(descending=True).values[rank - 1])

    def frame(self) -> pl.DataFrame:
        """Quantiles of cosine, margin and score of the null's names."""
        at = torch.tensor(QUANTILES, dtype=torch.double)
        columns = {
            name: getattr(self, name).double().cpu().quantile(at).tolist() for name in ("cosine", "margin", "score")
        }
        return pl.DataFrame({"quantile": list(QUANTILES), **columns}, schema=NULL)

    def hubs(self, words: tuple[str, ...], named: Tensor) -> pl.DataFrame:
        """Every word that names a null direction or a latent, with its shares; what names most of the null first.

        Args:
            words: In the order they were embedded.
            named: Number of the name of each latent that has one.
        """
        null_share = torch.bincount(self.word.cpu(), minlength=len(words)).double() / len(self.word)
        latent_share = torch.bincount(named.cpu(), minlength=len(words)).double() / max(1, len(named))
        used = torch.nonzero((null_share > 0) | (latent_share > 0)).flatten()
        order = used[torch.argsort(null_share[used], descending=True, stable=True)].tolist()
        least = hub_share(len(words))
        return pl.DataFrame(
            {
                "word": [words[i] for i in order],
                "mean_cosine": self.mean.double().cpu()[order].tolist(),
                "null_share": null_share[order].tolist(),
                "latent_share": latent_share[order].tolist(),
                "hub": (null_share[order] >= least).tolist(),
            },
            schema=HUBS,
        )


def hub_share(words: int) -> float:
    """Share of the null directions from which a word is a hub; of few words it lies between their even share and 1."""
    return max(HUB_SHARE, min(HUB_TIMES / words, (1 + 1 / words) / 2))


def order_for(draws: int, rate: float) -> int:
    """The largest r with P(Binomial(draws, rate) ≥ r) ≥ 0.95. Raises `ConfigError` where even r = 1 has less."""
    logs = math.log(rate), math.log1p(-rate)
    below, rank = 0.0, 0
    while True:
        # P(Binomial = rank), so that `below` becomes P(Binomial ≤ rank) = 1 − P(Binomial ≥ rank + 1).
        choose = math.lgamma(draws + 1) - math.lgamma(rank + 1) - math.lgamma(draws - rank + 1)
        below += math.exp(choose + rank * logs[0] + (draws - rank) * logs[1])
        if below > 1 - CONFIDENCE:
            break
        rank += 1
    if not rank:
        raise ConfigError(
            f"{draws:,} null directions cannot vouch for a false-name rate of {rate:g}. Draw at least "
            f"{directions_for(rate):,}."
        )
    return rank


def directions_for(rate: float) -> int:
    """How many null directions are drawn for a rate. Raises `ConfigError` outside [0.001, 0.5]."""
    if not SMALLEST_RATE <= rate <= LARGEST_RATE:
        raise ConfigError(
            f"false_name_rate={rate!r} is outside [{SMALLEST_RATE}, {LARGEST_RATE}]. It is the share of meaningless "
            "directions that may be named, such as 0.05."
        )
    return max(DIRECTIONS, math.ceil(20 / rate))


@torch.no_grad()
def null_directions(directions: Float[Tensor, "n d"], count: int, *, seed: int) -> Float[Tensor, "count d"]:
    """Unit draws from the Gaussian with the mean and the covariance of unit directions.

    The covariance is shrunk towards a multiple of the identity by the amount that is best for Gaussian rows, so that
    fewer directions than dimensions leave no dimension out. Of one direction nothing can be learned: draws are then
    isotropic.

    Source:
        Chen, Wiesel, Eldar & Hero 2010, Shrinkage Algorithms for MMSE Covariance Estimation (OAS), equation 23.
    """
    n, d = directions.shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, d, generator=generator).to(directions)
    if n < 2:
        return F.normalize(noise, dim=-1)
    mean = directions.mean(0)
    centred = directions - mean
    covariance = (centred.T @ centred / n).double()
    trace, square = covariance.trace(), covariance.square().sum()
    above = (n + 1 - 2 / d) * (square - trace.square() / d)
    share = ((1 - 2 / d) * square + trace.square()) / above if above > 0 else torch.ones(())
    share = float(share.clamp(0, 1))
    covariance = (1 - share) * covariance + share * trace / d * torch.eye(d, dtype=torch.double, device=noise.device)
    values, axes = torch.linalg.eigh(covariance)
    root = (axes * values.clamp_min(0).sqrt()).to(noise)
    return F.normalize(mean + noise @ root.T, dim=-1)


@torch.no_grad()
def draw_null(
    directions: Float[Tensor, "n d"],
    words: Float[Tensor, "words d"],
    *,
    count: int,
    pmi: float,
    temperature: float,
    seed: int,
    block: int | None = None,
) -> Null:
    """Name `count` null directions exactly as the latents will be named.

    Args:
        directions: Unit directions of the live latents.
        words: Unit embeddings.
        count: Null directions.
        pmi: λ of the correction: words are ranked by log p(word | direction) − λ log p(word), with p(word | direction)
            the softmax of cosine / temperature and p(word) its mean over null directions. 0 leaves cosines alone.
        temperature: Of that softmax, 1 / the model's logit scale.
        seed: Of the draw.
        block: Directions at a time.

    Source:
        Hernandez et al. 2022, Natural Language Descriptions of Deep Visual Features (MILAN), arXiv:2201.11114.
    """
    drawn = null_directions(directions, count, seed=seed)
    # Mean and spread of every word's cosines follow from the first two moments of the draws: no product with them all.
    mean = words @ drawn.mean(0)
    second = drawn.T @ drawn / count
    std = ((words @ second * words).sum(-1) - mean.square()).clamp_min(0).sqrt().clamp_min(1e-6)
    penalty = _penalty(drawn, words, pmi=pmi, temperature=temperature, block=block) if pmi else None
    values, numbers = nearest_words(drawn, words, penalty, 2, block=block)
    null = Null(
        cosine=values[:, 0],
        margin=values[:, 0] - values[:, 1],
        score=torch.empty(0),
        word=numbers[:, 0],
        mean=mean,
        std=std,
        penalty=penalty,
        runner_up=values[:, 1],
    )
    return Null(**{**vars(null), "score": null.score_of(null.cosine, null.word)})


def _penalty(
    drawn: Float[Tensor, "count d"],
    words: Float[Tensor, "words d"],
    *,
    pmi: float,
    temperature: float,
    block: int | None,
) -> Float[Tensor, " words"]:
    """What the correction takes off each word's cosine.

    log p(word | direction) is cosine / temperature less a number that all words share: ranking by it less λ log p is
    ranking by the cosine less λ · temperature · log p.
    """
    prior = torch.zeros(len(words), dtype=torch.double, device=words.device)
    for part in drawn.split(block or max(1, 2**24 // len(words))):
        prior += torch.softmax((part @ words.T) / temperature, dim=-1).sum(0)
    return (pmi * temperature * (prior / len(drawn)).clamp_min(1e-30).log()).to(words)
