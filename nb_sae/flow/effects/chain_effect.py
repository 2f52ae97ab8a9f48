"""What steering along a chain does to the model's answer, beside chains chosen by chance and steered as strongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from nb_sae.analysis.lens import logit_lens
from nb_sae.errors import ConfigError, InputError
from nb_sae.flow.effects.chain_steering import (
    LAST,
    RATE,
    ChainedFlow,
    ChainStep,
    Mode,
    Schedule,
    chain_steps,
    one_change,
    steer_chain,
)
from nb_sae.flow.effects.readouts import CosineReadout, Readout, TokenReadout, token_numbers
from nb_sae.flow.schema import CHAIN_EFFECT, GENERATIONS
from nb_sae.flow.settings import check_whole
from nb_sae.flow.sources import SourceLane, matches_of, sources_of, sources_of_latent
from nb_sae.hooks import intervene
from nb_sae.sae.dictionary import Dictionary
from nb_sae.sae.edits import Changes, Unit, activations_of, make_changes
from nb_sae.sae.origin import check_model
from nb_sae.types import Edit

PROMOTED_TOKENS = 10
"""Tokens that are scored where none are given: those that the latent's decoder row promotes most."""


@dataclass(frozen=True, repr=False)
class ChainEffect:
    """The model's answer with and without the edits of a chain, and with those of control chains."""

    frame: pl.DataFrame
    """`schema.CHAIN_EFFECT`: the chain first, then the controls."""
    generations: pl.DataFrame | None
    """`schema.GENERATIONS`: what a language model writes after each prompt, before and after; None for a CLIP."""
    about: Mapping[str, Any]
    """`site`, `latent`, `steps` (site, latent, layer, strength), `toward`, `measure`, `effect`, and `p`: the share of
    controls whose effect is as large in the direction of the push (up where the latent is raised, down where it is
    lowered), (1 + those) / (1 + controls); null without controls."""

    def __repr__(self) -> str:
        about = self.about
        against = "" if about["p"] is None else f", p {about['p']:.3f} against {self.frame.height - 1} control chains"
        return (
            f"ChainEffect({about['site']!r} latent {about['latent']}, {len(about['steps'])} edits: "
            f"{about['measure']} {about['effect']:+.3f}{against})"
        )


@torch.no_grad()
def chain_effect(
    flow: ChainedFlow,
    dictionaries: Mapping[str, Dictionary],
    model: Any,
    inputs: Any,
    *,
    site: str,
    latent: int,
    toward: Sequence[str] | Sequence[int] | str | None = None,
    add: float | None = None,
    set: float | None = None,  # noqa: A002 (the users' word)
    scale: float | None = None,
    mode: Mode = "cumulative",
    schedule: Schedule = "constant",
    rate: float = RATE,
    last: float = LAST,
    lanes: Sequence[str] = ("residual",),
    unit: Unit = "activation",
    analyses: Mapping[str, Any] | None = None,
    controls: int = 20,
    tokens: int = 40,
    write: int = 4,
    seed: int = 0,
    batch: int = 16,
) -> ChainEffect:
    """Steer along a chain as `steer_chain` does, and measure what the chain should move.

    Of a language model that is the mean log-probability of the tokens `toward` as the next one, over all positions of
    the prompts; of a CLIP the mean cosine of the image embeddings with the texts `toward`. A control is the chain of
    another latent of the same site, drawn by chance and followed through the same sites; at every token it is pushed
    exactly as far as the chain is, along its own decoder rows (by `set` and `scale` at a later site as far as the
    chain's latent would be moved from where the control has brought it). `cost` is what else the push changed.

    Args:
        flow: From `feature_flow`.
        dictionaries: Those from which it was made.
        model: From `load_lm` or `load_clip`: the model that they were trained on.
        inputs: Prompts (texts, or token ids), or pictures.
        site: Where the chain ends.
        latent: Its number there.
        toward: Tokens (each one token, or its id), or texts for a CLIP. None: the `PROMOTED_TOKENS` that the latent's
            decoder row promotes most through the unembedding, which it then moves directly: a small p is no surprise
            there. A CLIP needs texts.
        add: See `steer_chain`, as are set, scale, mode, schedule, rate, last, lanes, unit and analyses.
        controls: Control chains; 0: none.
        tokens: Tokens that are written after each prompt.
        write: Prompts that are continued, from the first on; 0: none.
        seed: Of the controls. Texts are written without chance, the most probable token each time.
        batch: Inputs per forward pass.

    Raises:
        ConfigError: what `steer_chain` refuses, another model, an encoder without next tokens, texts that are no single
            token, or fewer other latents than controls.
        HookError: the model lacks a site.
    """
    what, strength = one_change(add=add, set=set, scale=scale)
    check_whole(controls=controls, write=write, seed=seed)
    how: dict[str, Any] = {"mode": mode, "schedule": schedule, "rate": rate, "last": last, "lanes": lanes}
    steps = chain_steps(flow, dictionaries, site, latent, what, strength, **how)
    for step in steps:
        check_model(model, dictionaries[step.site], step.site)
    push: dict[str, Any] = {what: strength, "unit": unit, "analyses": analyses}
    edits = steer_chain(flow, dictionaries, site, latent, **push, **how)
    readout, shown = _readout(model, inputs, toward, dictionaries[site], site, latent, batch)
    drawn = _control_chains(flow, dictionaries, steps, controls, seed)
    others = [_pushes(dictionaries, steps, chain, what, unit=unit, analyses=analyses) for chain in drawn]
    measured = _measured(model, readout, [edits, *others])
    ends = [latent, *(chain[-1] for chain in drawn)]
    lines = [
        (number, "control" if number else "chain", end, before, after, after - before, cost)
        for number, (end, (before, after, cost)) in enumerate(zip(ends, measured, strict=True))
    ]
    frame = pl.DataFrame(lines, schema=CHAIN_EFFECT, orient="row")
    # A strong push along anything else lowers the log-probability of most tokens: only the direction asked for counts.
    lowers = strength <= 0 if what == "set" else strength < (1 if what == "scale" else 0)
    direction = -1 if lowers else 1
    effect, rest = lines[0][5], [line[5] for line in lines[1:]]
    about = {
        "site": site,
        "latent": latent,
        "steps": [(step.site, step.latent, step.layer, step.strength) for step in steps],
        "change": what,
        "unit": unit,
        **{name: how[name] for name in ("mode", "schedule")},
        "toward": shown,
        "measure": readout.name,
        "effect": effect,
        "p": (1 + sum(direction * one >= direction * effect for one in rest)) / (1 + len(rest)) if rest else None,
        "seed": seed,
    }
    return ChainEffect(frame, _written(model, inputs, edits, others, tokens, write), about)


def _readout(
    model: Any, inputs: Any, toward: Any, dictionary: Dictionary, site: str, latent: int, batch: int
) -> tuple[Readout, list[Any]]:
    """What is measured, and toward which tokens or texts."""
    listed: list[Any] = [toward] if isinstance(toward, str | int) else list(toward or ())
    if hasattr(model, "token_losses"):
        model.require_next_token()
        listed = listed or _promoted(model, dictionary, latent)
        ids = token_numbers(model, listed)
        return TokenReadout(model, inputs, ids, batch), model.token_strings(ids) if model.tokenizer else ids
    if not listed or not all(isinstance(one, str) for one in listed):
        raise ConfigError(f"toward={toward!r}: give one text or several, such as 'a photo of a dog'.")
    model.site(site, "image")
    return CosineReadout(model, inputs, listed, batch), listed


def _measured(model: Any, readout: Readout, chains: Sequence[Sequence[Edit]]) -> list[tuple[float, float, float]]:
    """Per chain the mean score without and with its edits, and the mean cost; a batch at a time."""
    rows, before = 0, 0.0
    after, cost = [0.0] * len(chains), [0.0] * len(chains)
    for batch in readout.batches():
        clean = readout.answer(batch)
        rows, before = rows + len(clean), before + float(readout.score(clean).double().sum())
        for number, edits in enumerate(chains):
            with intervene(model, edits):
                moved = readout.answer(batch)
            after[number] += float(readout.score(moved).double().sum())
            cost[number] += float(readout.cost(clean, moved).double().sum())
    if not rows:
        raise InputError("The inputs hold no position that counts. Give texts with tokens, or pictures.")
    return [(before / rows, one / rows, price / rows) for one, price in zip(after, cost, strict=True)]


def _pushes(
    dictionaries: Mapping[str, Dictionary],
    steps: Sequence[ChainStep],
    chain: Sequence[int],
    what: str,
    *,
    unit: Unit,
    analyses: Mapping[str, Any] | None,
) -> list[Edit]:
    """The edits of a control chain, one for each of the chain itself."""
    edits = []
    for step, other in zip(steps, chain, strict=True):
        dictionary, analysis = dictionaries[step.site], (analyses or {}).get(step.site)
        changes = make_changes(dictionary, {what: {step.latent: step.strength}}, unit=unit, analysis=analysis)
        edits.append(_along(dictionary, step.site, changes, other))
    return edits


def _promoted(model: Any, dictionary: Dictionary, latent: int) -> list[int]:
    lines = logit_lens(model, dictionary, top=PROMOTED_TOKENS, latents=[latent])
    return lines.filter((pl.col("side") == "write") & (pl.col("sign") == "promoted")).sort("rank")["token_id"].to_list()


def _control_chains(
    flow: ChainedFlow, dictionaries: Mapping[str, Dictionary], steps: Sequence[ChainStep], count: int, seed: int
) -> list[list[int]]:
    """Per control one latent for each site of the chain: a latent drawn by chance at the last, and its matches."""
    end = steps[-1]
    random = np.random.default_rng(seed)
    usable = (dictionaries[end.site].W_dec.norm(dim=-1) > 0).cpu().numpy()
    usable[end.latent] = False
    if not 0 <= count <= int(usable.sum()):
        raise ConfigError(
            f"controls={count}: {end.site!r} has {int(usable.sum())} other latents. Ask for 0 to as many."
        )
    chains = []
    for first in random.choice(np.flatnonzero(usable), count, replace=False).tolist():
        chain = [first]
        for place in range(len(steps) - 1, 0, -1):
            chain.insert(0, _before(flow, dictionaries, steps[place], steps[place - 1], chain[0], random))
        chains.append(chain)
    return chains


def _before(
    flow: ChainedFlow,
    dictionaries: Mapping[str, Dictionary],
    here: ChainStep,
    there: ChainStep,
    latent: int,
    random: np.random.Generator,
) -> int:
    """The match of a latent at the site before, if it is not that of the chain itself; else one by chance."""
    lanes: list[SourceLane] = [lane for lane, source in sources_of(flow, here.site).items() if source == there.site]
    match = int(matches_of(flow, here.site, lanes[0])[latent]) if lanes else -1
    if match >= 0 and match != there.latent:
        return match
    near = {there.latent, *sources_of_latent(flow, here.site, here.latent, there.site)}
    other = [one for one in range(dictionaries[there.site].d_sae) if one not in near]
    return int(random.choice(other or [one for one in range(dictionaries[there.site].d_sae) if one != there.latent]))


def _along(dictionary: Dictionary, site: str, changes: Changes, other: int) -> Edit:
    """The push of one latent in another's direction: as far, at every row, as the latent itself would be moved."""
    (latent,) = changes.latents
    rows = dictionary.W_dec
    direction = rows[other] * (rows[latent].norm() / rows[other].norm().clamp_min(1e-12))

    def apply(x: Tensor) -> Tensor:
        flat: Float[Tensor, "rows d_in"] = x.reshape(-1, x.shape[-1]).float()
        if changes.reads_latents:
            delta = changes.of(activations_of(dictionary, flat, [latent]))
        else:
            delta = flat.new_tensor([changes.shift]).to(dictionary.device).expand(len(flat), -1)
        step = delta * direction * (dictionary.row_scale(flat) if dictionary.row_norm is not None else 1.0)
        return (flat + step.to(flat.device)).reshape(x.shape).to(x.dtype)

    return Edit(site, apply, f"push latent {latent} along latent {other}")


def _written(
    model: Any, inputs: Any, edits: list[Edit], others: list[list[Edit]], tokens: int, write: int
) -> pl.DataFrame | None:
    """What the model writes after the first prompts: as it is, steered, and steered along the first control."""
    if not hasattr(model, "generate") or isinstance(inputs, Tensor) or write < 1:
        return None
    prompts = [inputs] if isinstance(inputs, str) else [inputs[n] for n in range(min(write, len(inputs)))]
    lines = []
    for prompt in prompts:
        texts: list[str | None] = [model.generate(prompt, tokens=tokens)]
        for of in (edits, others[0] if others else None):
            if of is None:
                texts.append(None)
                continue
            with intervene(model, of):
                texts.append(model.generate(prompt, tokens=tokens))
        lines.append((prompt, *texts))
    return pl.DataFrame(lines, schema=GENERATIONS, orient="row")
