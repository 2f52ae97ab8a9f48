"""Names for latents: the word whose embedding is nearest to what a latent adds, and whether that is better than chance.

Owns the matching and the acceptance. What names are good for afterwards is in `names.ConceptNames`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nb_sae.analysis.bundle import Analysis
from nb_sae.concepts.names import ConceptNames, labels_of
from nb_sae.concepts.nearest import nearest_words
from nb_sae.concepts.nulls import Null, directions_for, draw_null
from nb_sae.concepts.schema import NAMES
from nb_sae.concepts.words import EmbeddedWords, Gap, check_gap, check_space, embed_words
from nb_sae.data.vocabulary import Vocabulary
from nb_sae.errors import ConfigError, ShapeError

Accept = Literal["null", "paper"] | tuple[float, float]

PAPER = (0.42, 2.0)
"""Least cosine and least ratio to the second word of accept="paper". The authors published no code of their filter; the
numbers are remembered, not checked."""
RUNNER_UPS = 4
LOGIT_SCALE = 100.0
"""Of a model that states none: CLIP's upper limit, which trained ones reach."""
NULL_TEXT = (
    "unit draws from the Gaussian with the mean and the (OAS-shrunk) covariance of the directions of the live latents, "
    "named in the same way"
)


@torch.no_grad()
def name_concepts(
    dictionary: Any,
    clip: Any,
    vocabulary: Vocabulary | EmbeddedWords | str | Sequence[str] | Mapping[str, str],
    *,
    analysis: Analysis | None = None,
    gap: Gap = "text_mean",
    accept: Accept = "null",
    false_name_rate: float = 0.05,
    pmi: float = 0.0,
    latents: Sequence[int] | None = None,
    seed: int = 0,
    block: int | None = None,
) -> ConceptNames:
    """Name each latent by the word nearest to the direction that it adds to a row.

    The direction of latent j, in the units of the model, is decode(e_j) − decode(0), a row of `W_dec`; the mean of the
    pictures is in none of them. A name is `accepted` when its score is one that a meaningless direction reaches with a
    chance of at most `false_name_rate`: per latent, so that of 1,000 meaningless latents up to 50 have an accepted name
    at 0.05. The score is the cosine in standard deviations above what this word has to null directions; the null is
    described in `nb_sae.concepts.nulls` and in `.about["null"]`.

    Args:
        dictionary: Of site `image_embed` (or `text_embed`) of the same CLIP.
        clip: The model that embeds the words; None for words that `embed_words` has embedded.
        vocabulary: What `ns.vocabulary` gives or takes, or embedded words.
        analysis: Of the dictionary: brings mean activation, density, the user's own labels, and which latents are dead.
            A dead latent gets no accepted name. Without it every latent counts as live.
        gap: `"text_mean"` takes the mean of the words off every word, so that what all texts share names nothing;
            `"raw"` leaves it in. Neither touches the directions.
        accept: `"null"`; `"paper"`, cosine ≥ 0.42 and ratio ≥ 2, fixed numbers that hold for no chance in particular;
            or your own `(cosine, ratio)`.
        false_name_rate: For accept="null".
        pmi: λ of the pointwise mutual information that takes hubs back: about 0.2 in MILAN; 0 is off. See `draw_null`.
        latents: Only these; None: all.
        seed: Of the null.
        block: Directions at a time; None: by memory.

    Raises:
        ConfigError: fewer than two words, a number out of range, or a dictionary of another model or site.
        ShapeError: directions of another width than the words, or an analysis of another dictionary.
    """
    check_gap(gap)
    cosine_and_ratio = _accepting(accept)
    count = directions_for(false_name_rate)
    if not (np.isfinite(pmi) and pmi >= 0):
        raise ConfigError(f"pmi={pmi!r} must be 0 (off) or above, such as 0.2.")
    if block is not None and block < 1:
        raise ConfigError(f"block={block} must be at least 1 direction at a time.")
    embedded = embed_words(clip, vocabulary)
    check_space(dictionary, embedded)
    chosen = _chosen(latents, dictionary.d_sae)
    directions = dictionary.W_dec.detach().float()
    words = embedded.unit(gap).to(directions)
    live = _live(directions, analysis)
    unit = F.normalize(directions, dim=-1)
    temperature = 1.0 / float(getattr(clip, "logit_scale", LOGIT_SCALE))
    null = draw_null(unit[live], words, count=count, pmi=pmi, temperature=temperature, seed=seed, block=block)
    picked = unit if latents is None else unit[torch.as_tensor(chosen, device=unit.device)]
    values, numbers = nearest_words(picked, words, null.penalty, min(RUNNER_UPS + 1, len(words)), block=block)
    can = live.cpu().numpy()[chosen]
    pointing = (picked.abs().amax(-1) > 0).cpu()
    frame = _frame(chosen, can, pointing, values, numbers, embedded, null, analysis)
    threshold = null.threshold(false_name_rate)
    frame = frame.with_columns(
        accepted=pl.Series(_accepted(frame, null, values, numbers, can, cosine_and_ratio, threshold))
    )
    named = numbers[:, 0].cpu()[torch.from_numpy(can)]
    about = _about(dictionary, embedded, gap, accept, false_name_rate, pmi, seed)
    about |= {
        "null": NULL_TEXT,
        "null_directions": count,
        "threshold_score": threshold,
        "null_named": _null_named(null, cosine_and_ratio, threshold),
        "cosine_and_ratio": None if cosine_and_ratio is None else list(cosine_and_ratio),
        "live": int(can.sum()),
        "temperature": temperature,
    }
    return ConceptNames(
        frame=frame,
        hubs=null.hubs(embedded.vocabulary.words, named),
        null=null.frame(),
        about=about,
        labels=_labels(analysis),
    )


def _accepting(accept: Any) -> tuple[float, float] | None:
    """None for the null, else least cosine and least ratio."""
    if accept == "null":
        return None
    if accept == "paper":
        return PAPER
    try:
        cosine, ratio = (float(number) for number in accept)
    except (TypeError, ValueError):
        raise ConfigError(f"accept={accept!r} is not known. Use 'null', 'paper' or (cosine, ratio).") from None
    if not (-1 <= cosine <= 1 and ratio >= 0):
        raise ConfigError(f"accept={accept!r}: the cosine lies in [-1, 1] and the ratio is 0 or above.")
    return cosine, ratio


def _chosen(latents: Sequence[int] | None, d_sae: int) -> np.ndarray:
    if latents is None:
        return np.arange(d_sae)
    chosen = np.asarray(latents)
    if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer) or not len(chosen):
        raise ConfigError(f"latents={latents!r}: give the numbers of at least one latent, such as [3, 417].")
    if chosen.min() < 0 or chosen.max() >= d_sae:
        raise ConfigError(f"latents holds {chosen.min()} … {chosen.max()}; this dictionary has 0 … {d_sae - 1}.")
    return chosen.astype(np.int64)


def _live(directions: Float[Tensor, "d_sae d"], analysis: Analysis | None) -> Tensor:
    """`(d_sae,)`: has a direction, and is not known to be dead."""
    live = directions.abs().amax(-1) > 0
    if analysis is None:
        return live
    if analysis.d_sae != len(directions):
        raise ShapeError(
            f"The analysis is of {analysis.d_sae:,} latents, the dictionary has {len(directions):,}. Analyze this "
            "dictionary."
        )
    dead = torch.from_numpy(analysis.latents.sort("latent")["dead"].to_numpy().copy())
    return live & ~dead.to(live.device)


def _frame(
    chosen: np.ndarray,
    can: np.ndarray,
    pointing: Tensor,
    values: Tensor,
    numbers: Tensor,
    embedded: EmbeddedWords,
    null: Null,
    analysis: Analysis | None,
) -> pl.DataFrame:
    """`NAMES` without `accepted` filled in; a latent without a direction has no name at all."""
    words = embedded.vocabulary.words
    cosine, second = values[:, 0].double().cpu().numpy(), values[:, 1].double().cpu().numpy()
    p = null.p_of(null.score_of(values[:, 0], numbers[:, 0])).cpu().numpy()
    ratio = np.divide(cosine, second, out=np.full_like(cosine, np.nan), where=second > 0)
    listed, cosines = numbers.cpu().tolist(), values.double().cpu().tolist()
    frame = pl.DataFrame(
        {
            "latent": chosen.astype(np.uint32),
            "name": [words[row[0]] for row in listed],
            "cosine": cosine,
            "margin": cosine - second,
            "ratio": pl.Series(ratio).fill_nan(None),
            "runner_ups": [[words[i] for i in row[1:]] for row in listed],
            "runner_up_cosines": [row[1:] for row in cosines],
            "p": pl.Series(p).set(pl.Series(~can), None),
        }
    )
    empty = ~pl.Series(pointing.numpy())
    measured = ("name", "cosine", "margin", "ratio", "runner_ups", "runner_up_cosines")
    frame = frame.with_columns(pl.when(empty).then(None).otherwise(pl.col(name)).alias(name) for name in measured)
    if analysis is not None:
        seen = analysis.latents.sort("latent")
        here = chosen.tolist()
        mean = pl.when(pl.col("active_rows") > 0).then(pl.col("mean"))
        frame = frame.with_columns(seen.select(mean)["mean"][here], seen["density"][here])
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in NAMES.items() if name not in frame.columns]
    return frame.with_columns(missing).select(NAMES.names()).cast(dict(NAMES))  # pyright: ignore[reportArgumentType]


def _accepted(
    frame: pl.DataFrame,
    null: Null,
    values: Tensor,
    numbers: Tensor,
    can: np.ndarray,
    cosine_and_ratio: tuple[float, float] | None,
    threshold: float,
) -> np.ndarray:
    if cosine_and_ratio is None:
        return (null.score_of(values[:, 0], numbers[:, 0]) > threshold).cpu().numpy() & can
    return _passes(values[:, 0], values[:, 1], cosine_and_ratio).cpu().numpy() & can


def _passes(cosine: Tensor, second: Tensor, least: tuple[float, float]) -> Tensor:
    """The fixed rule; where the second word is not above 0, the ratio is beyond all bounds."""
    return (cosine >= least[0]) & ((second <= 0) | (cosine >= least[1] * second))


def _null_named(null: Null, cosine_and_ratio: tuple[float, float] | None, threshold: float) -> float:
    """Share of null directions that the same rule would give a name."""
    if cosine_and_ratio is None:
        return float((null.score > threshold).float().mean())
    return float(_passes(null.cosine, null.runner_up, cosine_and_ratio).float().mean())


def _about(
    dictionary: Any, embedded: EmbeddedWords, gap: str, accept: Accept, rate: float, pmi: float, seed: int
) -> dict[str, Any]:
    listed = embedded.vocabulary
    return {
        "site": getattr(dictionary, "site", None),
        "model": embedded.model,
        "d_sae": int(dictionary.d_sae),
        "vocabulary": listed.name,
        "words": len(listed),
        "templates": list(listed.templates),
        "duplicates": listed.duplicates,
        "blank": listed.blank,
        "meanings": dict(listed.meanings),
        "gap": gap,
        "accept": accept if isinstance(accept, str) else list(accept),
        "false_name_rate": rate,
        "pmi": pmi,
        "seed": seed,
    }


def _labels(analysis: Analysis | None) -> dict[int, str]:
    notes = getattr(analysis, "notes", None)
    return {} if notes is None else labels_of(notes)
