"""How many concepts each of several dictionaries holds, and how many as many meaningless directions would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from nb_sae.analysis.bundle import Analysis
from nb_sae.concepts.naming import Accept, name_concepts
from nb_sae.concepts.schema import COUNTS
from nb_sae.concepts.words import EmbeddedWords, Gap, embed_words
from nb_sae.data.vocabulary import Vocabulary
from nb_sae.errors import ConfigError, closest


def count_concepts(
    dictionaries: Mapping[str, Any],
    clip: Any,
    vocabulary: Vocabulary | EmbeddedWords | str | Sequence[str] | Mapping[str, str],
    *,
    analyses: Mapping[str, Analysis] | None = None,
    gap: Gap = "text_mean",
    accept: Accept = "null",
    false_name_rate: float = 0.05,
    pmi: float = 0.0,
    seed: int = 0,
) -> pl.DataFrame:
    """Latents with an accepted name, and different names among them, of each dictionary (`schema.COUNTS`).

    The same rule for all of them, and each beside its own null: `expected_by_chance` is the share of its null
    directions that the rule names, times its live latents. A count says something only where it is far above that.

    Args:
        dictionaries: Name → dictionary, all of the same model and site.
        clip: See `name_concepts`.
        vocabulary: The words are embedded once.
        analyses: Name → analysis, so that dead latents do not count.
        gap: See `name_concepts`.
        accept: See `name_concepts`; with `"paper"` the count is the paper's number of valid concepts.
        false_name_rate: See `name_concepts`.
        pmi: See `name_concepts`.
        seed: See `name_concepts`.

    Raises:
        ConfigError: no dictionary, or an analysis of a name that is none of them; and what `name_concepts` raises.
    """
    if not isinstance(dictionaries, Mapping) or not dictionaries:
        raise ConfigError("count_concepts() needs dictionaries by name, such as {'MSAE': dictionary}.")
    analyses = analyses or {}
    for name in analyses:
        if name not in dictionaries:
            raise ConfigError(f"analyses has {name!r}, which is no dictionary. {closest(name, dictionaries)}")
    embedded = embed_words(clip, vocabulary)
    lines = []
    for name, dictionary in dictionaries.items():
        names = name_concepts(
            dictionary, clip, embedded, analysis=analyses.get(name), gap=gap, accept=accept,
            false_name_rate=false_name_rate, pmi=pmi, seed=seed,
        )  # fmt: skip
        accepted = names.frame.filter(pl.col("accepted"))
        live = names.about["live"]
        lines.append((name, live, accepted.height, accepted["name"].n_unique(), names.about["null_named"] * live))
    return pl.DataFrame(lines, schema=COUNTS, orient="row")
