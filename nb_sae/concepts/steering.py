"""Steering curves: what zero-shot says of embeddings as a latent is raised, beside latents chosen by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nb_sae.concepts.lookup import find_latent
from nb_sae.concepts.schema import STEERING
from nb_sae.concepts.usage import ROWS_AT_A_TIME, usage
from nb_sae.errors import ConfigError, ShapeError
from nb_sae.sae.controls import matched_latents
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import activations_of, make_changes, moved
from nb_sae.types import ActivationSource

Mode = Literal["set", "add", "scale"]
CURVE_ROWS = 500
"""Rows that are steered, where more are given."""
USAGE_ROWS = 5_000
"""Rows from which density, mean and percentile of the latents are taken."""
_STEPS = {"set": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0), "scale": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)}


@dataclass(frozen=True, repr=False)
class SteeringCurve:
    """What steering one latent does, and what steering others like it does."""

    frame: pl.DataFrame
    """`schema.STEERING`: the latent and every control at every strength."""
    controls: pl.DataFrame
    """`latent, density, mean, effect` of the latent (first line) and of every control. `effect` is the mean probability
    of the first prompt at the largest strength less that at the smallest."""
    about: Mapping[str, Any]
    """Latent, name, mode, unit of the strength, prompts, rows, effect, and the share of controls whose effect is as
    large, `p` = (1 + those) / (1 + controls); null without controls."""

    @property
    def monotone(self) -> bool:
        """Whether the mean probability of the first prompt never falls as the strength grows."""
        curve = self._first("latent").sort("strength")["mean"].to_numpy()
        return bool((np.diff(curve) >= -1e-6).all())

    def __repr__(self) -> str:
        about = self.about
        p = "" if about["p"] is None else f", p {about['p']:.3f} against {self.controls.height - 1} controls"
        what = f"{about['prompts'][0]!r} {about['effect']:+.3f}"
        return f"SteeringCurve({about['mode']} {about['name']}: {what} over {about['rows']:,} rows{p})"

    def _first(self, kind: str) -> pl.DataFrame:
        of = (pl.col("kind") == kind) & (pl.col("prompt") == self.about["prompts"][0])
        return self.frame.filter(of & (pl.col("measure") == "probability"))


@torch.no_grad()
def steering_curve(
    dictionary: Dictionary,
    rows: Float[Tensor, "rows d_in"] | ActivationSource,
    latent: int | str,
    *,
    clip: Any,
    prompts: Sequence[str],
    strengths: Sequence[float] | None = None,
    mode: Mode = "set",
    controls: int = 20,
    names: Any = None,
    seed: int = 0,
) -> SteeringCurve:
    """Zero-shot probabilities of the prompts, and the cosine to the row as it was, at each strength.

    Edits keep the reconstruction error. Controls are live latents matched in density and mean activation, drawn by
    chance among the best matches and edited by the same strengths. Bands are over rows.

    Args:
        dictionary: Trained on embeddings that `clip` shares with texts, such as `image_embed`.
        rows: Embeddings in model units, or a store of them. Of many, `CURVE_ROWS` drawn by chance are steered.
        latent: Number, or a name that `names` knows.
        clip: What embeds the prompts (`encode_text`, `logit_scale`).
        prompts: Two or more; the effect is that on the first.
        strengths: In activation units, or factors for mode "scale". None: from 0 to twice the latent's 99th percentile,
            or factors 0 … 3.
        mode: How the latent is changed: "set", "add" or "scale".
        controls: How many; 0: none.
        names: From `name_concepts`.
        seed: Of the rows and of the controls.

    Raises:
        ConfigError: fewer than two prompts, no strengths, an unknown latent or mode, a latent that is never active on
            these rows, or fewer live latents than controls.
        StoreError: the rows are not those the dictionary was trained for.
        ShapeError: rows or text embeddings of another width.
    """
    if dictionary.is_transcoder:
        raise ConfigError("A transcoder writes other rows than it reads. Steer with an SAE of the embeddings.")
    if mode not in ("set", "add", "scale"):
        raise ConfigError(f"mode={mode!r} is not known. Use 'set', 'add' or 'scale'.")
    if isinstance(prompts, str) or len(prompts) < 2:
        raise ConfigError(f"prompts={prompts!r} leaves nothing to choose; give two or more texts.")
    number = find_latent(latent, names, dictionary.d_sae)
    x, some = _rows(dictionary, rows, seed)
    used = usage(dictionary, some.split(ROWS_AT_A_TIME))
    if not used.active[number]:
        raise ConfigError(
            f"Latent {number} is never active on {len(some):,} rows. Steer one that is, or give more rows."
        )
    steps = _strengths(strengths, mode, used.p99[number])
    others = matched_latents(used.density, used.mean, number, controls, seed=seed)
    texts = F.normalize(clip.encode_text(list(prompts)).float().cpu(), dim=-1)
    if texts.shape[1] != x.shape[1]:
        raise ShapeError(f"The prompts have width {texts.shape[1]}, the rows {x.shape[1]}: zero-shot needs one space.")
    chosen = [number, *others]
    acts, unit = activations_of(dictionary, x, chosen), F.normalize(x, dim=-1)
    frames = []
    for place, one in enumerate(chosen):
        for strength in steps:
            delta = make_changes(dictionary, {mode: {one: strength}}).of(acts[:, place : place + 1])
            edited = F.normalize(moved(dictionary, x, [one], delta), dim=-1)
            chance = (float(clip.logit_scale) * edited @ texts.T).softmax(-1)
            measured = torch.cat([chance, (edited * unit).sum(-1, keepdim=True)], dim=1).double().numpy()
            frames.append(_lines(one, "control" if place else "latent", strength, prompts, measured))
    frame = pl.concat(frames)
    effects = _effects(frame, prompts[0])
    table = pl.DataFrame(
        {
            "latent": np.array(chosen, dtype=np.uint32),
            "density": used.density[chosen],
            "mean": used.mean[chosen],
            "effect": [effects[one] for one in chosen],
        }
    )
    effect, rest = effects[number], [effects[one] for one in others]
    about = {
        "latent": number,
        "name": names.name_of(number) if names is not None else f"latent {number}",
        "mode": mode,
        "unit": "factor" if mode == "scale" else "activation",
        "prompts": list(prompts),
        "rows": len(x),
        "p99": used.p99[number],
        "effect": effect,
        "p": (1 + sum(abs(one) >= abs(effect) for one in rest)) / (1 + len(rest)) if rest else None,
        "seed": seed,
    }
    return SteeringCurve(frame, table, about)


def _rows(
    dictionary: Dictionary, rows: Tensor | ActivationSource, seed: int
) -> tuple[Float[Tensor, "steered d_in"], Float[Tensor, "more d_in"]]:
    """The rows to steer, and rows from which usage is taken; float32 on the CPU."""
    if isinstance(rows, Tensor):
        if rows.ndim != 2 or rows.shape[1] != dictionary.d_in or not len(rows):
            raise ShapeError(f"Rows of shape {tuple(rows.shape)} were given; expected (rows, {dictionary.d_in}).")
    else:
        dictionary.check(rows)
    order = np.random.default_rng(seed).permutation(len(rows))[:USAGE_ROWS]
    some = rows[torch.from_numpy(order)].float().cpu() if isinstance(rows, Tensor) else rows[order]
    return some[:CURVE_ROWS], some


def _strengths(strengths: Sequence[float] | None, mode: Mode, p99: float) -> list[float]:
    if strengths is None:
        steps = _STEPS["scale" if mode == "scale" else "set"]
        return [step * (1.0 if mode == "scale" else float(p99)) for step in steps]
    listed = sorted({float(one) for one in strengths})
    if not listed:
        raise ConfigError("strengths is empty. Give some, such as [0, 2, 4, 8], or leave it out.")
    return listed


def _lines(
    latent: int, kind: str, strength: float, prompts: Sequence[str], measured: NDArray[np.float64]
) -> pl.DataFrame:
    """One line per prompt and one for the cosine, which is the last column of `measured (rows, prompts + 1)`."""
    low, high = np.quantile(measured, (0.025, 0.975), axis=0)
    count = measured.shape[1]
    return pl.DataFrame(
        {
            "latent": [latent] * count,
            "kind": [kind] * count,
            "strength": [strength] * count,
            "prompt": [*prompts, None],
            "measure": ["probability"] * len(prompts) + ["cosine"],
            "mean": measured.mean(0),
            "low": low,
            "high": high,
            "rows": [len(measured)] * count,
        },
        schema=STEERING,
    )


def _effects(frame: pl.DataFrame, prompt: str) -> dict[int, float]:
    """Latent → mean probability of the prompt at the largest strength less that at the smallest."""
    lines = frame.filter((pl.col("prompt") == prompt) & (pl.col("measure") == "probability")).sort("strength")
    ends = lines.group_by("latent").agg(effect=pl.col("mean").last() - pl.col("mean").first())
    return dict(ends.iter_rows())
